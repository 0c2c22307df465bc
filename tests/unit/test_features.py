"""`benchmarks/foresight.py` and `tuning.py`: what predictions of sensitivities are worth at equal shares."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solm.core.actions import ActionSpace
from solm.policies.value_network import ValueNetwork
from solm.policies.value_weights import ValueConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def foresight(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("foresight")


@pytest.fixture
def tuning(foresight: Any) -> Any:
    return import_module("tuning")


def measured(foresight: Any, texts: int = 12, steps: int = 64) -> tuple[np.ndarray, ...]:
    """True sensitivities [W, T], and arrays [W, D, L, T] of two looks, of which the second acts on half the layers."""
    draw = np.random.default_rng(0)
    sensitivity = np.exp(draw.normal(size=(texts, steps)))
    levels, base = np.array(foresight.LEVELS), foresight.BASE
    share = np.stack([levels, (levels + base) / 2])[:, :, None] * np.ones((texts, 1, 1, steps))
    kl = np.exp(-10 * share) * sensitivity[:, None, None]
    return sensitivity, kl, kl.copy(), share


def test_what_is_foreseen_saves_at_equal_shares_and_what_is_not_saves_nothing(foresight: Any) -> None:
    sensitivity, *arrays = measured(foresight)
    look = foresight.Look.of(*arrays, 0, None)
    assert np.allclose(look.sensitivity, sensitivity / sensitivity.mean(), rtol=0.05, atol=0.05)
    blind = foresight.saving([look], [look], [np.ones_like(sensitivity)])
    assert blind["saved"]["value"] == 0
    assert blind["nats"] == pytest.approx(look.loss[..., foresight._AT_BASE].mean(), rel=1e-3)
    known = foresight.saving([look], [look], [look.sensitivity])
    # A share moves by ln(s) / 10, so that all lose alike: the geometric mean of the sensitivities, but for the ends.
    assert known["saved"]["value"] == pytest.approx(1 - np.exp(-0.5), abs=0.1)
    assert known["missed"] < 1e-6
    shuffled = np.random.default_rng(1).permutation(look.sensitivity, axis=1)
    assert foresight.saving([look], [look], [shuffled])["saved"]["high"] < 0


def test_a_second_look_acts_on_the_layers_after_it(foresight: Any) -> None:
    sensitivity, *arrays = measured(foresight)
    whole, late = foresight.Look.of(*arrays, 0, None), foresight.Look.of(*arrays, 1, None)
    early = foresight.Look.of(*arrays, 0, 1)
    for name in ("loss", "cost", "share"):
        assert np.allclose(getattr(early, name) + getattr(late, name), getattr(whole, name))
    ones, guess = np.ones_like(sensitivity), whole.sensitivity
    saved = [
        foresight.saving(looks, looks, guesses)["saved"]["value"]
        for looks, guesses in [([late], [guess]), ([early, late], [ones, guess]), ([whole], [guess])]
    ]
    assert 0 < saved[0] < saved[2]
    assert 0 < saved[1] < saved[2]


def test_predictions_follow_a_feature_that_tells_something_and_ignore_noise(foresight: Any) -> None:
    draw = np.random.default_rng(2)
    told = draw.normal(size=(40, 64, 1))
    sensitivity = np.exp(told[..., 0] + 0.3 * draw.normal(size=(40, 64)) - 0.5)
    found = foresight.predicted(told[:20], sensitivity[:20], told[20:])
    assert np.corrcoef(np.log(found).ravel(), np.log(sensitivity[20:]).ravel())[0, 1] > 0.9
    assert found.mean() == pytest.approx(sensitivity[:20].mean(), rel=0.1)
    noise = draw.normal(size=(40, 64, 50))
    blind = foresight.predicted(noise[:20], sensitivity[:20], noise[20:])
    assert np.log(blind).std() < 0.15


def test_a_policy_gradient_learns_what_regression_learns_from_the_same_network(
    foresight: Any, tuning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_UPDATES", (0, 60))
    monkeypatch.setattr(tuning, "_RATE", 1e-3)
    torch.manual_seed(0)
    sensitivity, *arrays = measured(foresight, texts=24)
    stream = torch.randn(24, 64, 8)
    stream[..., 0] = 3 * torch.from_numpy(sensitivity).log()
    network = ValueNetwork(ValueConfig(base_hidden=8, layer=0, grid=ActionSpace.preset("sites")))
    looks = [foresight.Look.of(*(values[half] for values in arrays), 0, None) for half in (slice(16), slice(16, 24))]
    found = tuning.tuned(network, [stream[:16], stream[16:]], looks)
    for updates in found.values():
        assert updates["0"]["saved"]["value"] == 0
        assert updates["60"]["saved"]["low"] > 0.05
    assert found["gradient"]["60"]["saved"]["value"] < found["regression"]["60"]["saved"]["value"] + 0.1
    assert torch.equal(network.head.weight, torch.zeros(3, 64))
