"""`benchmarks/features.py` and its parts: what predictions of sensitivities are worth at equal shares."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import solm
from helpers.models import tiny_model
from helpers.policies import under_values
from solm.core.actions import ActionSpace
from solm.core.sparsity import SparsityConfig
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
    assert np.mean(known["saved_by_text"]) == pytest.approx(known["saved"]["value"])
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


def test_samples_are_kept_apart_by_text_and_settings(
    foresight: Any, cpu_lm: solm.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = import_module("features")
    text, made = torch.arange(12)[None], []

    def measured(lm: solm.LanguageModel, text: torch.Tensor, context: int, layers: list[int]) -> Any:
        made.append((text, context, layers))
        return {"policy": text[0, :3] * context + sum(layers)}

    monkeypatch.setattr(features, "measured", measured)
    every = [(text, 4, [1]), (text + 1, 4, [1]), (text, 5, [1]), (text, 4, [2])]
    first = [features.kept(tmp_path, cpu_lm, *one) for one in every]
    assert len(made) == 4
    again = [features.kept(tmp_path, cpu_lm, *one) for one in every]
    assert len(made) == 4
    assert all(torch.equal(ours["policy"], theirs["policy"]) for ours, theirs in zip(first, again, strict=True))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_every_row_of_the_table_is_an_arm_that_is_measured(
    foresight: Any, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, tables = import_module("features"), import_module("tables_features")
    model = tiny_model("llama", torch.float32, num_hidden_layers=4)
    with solm.attach(model, tokenizer=byte_tokenizer) as plain:
        policy = under_values(plain, SparsityConfig(window=32)).trained
    torch.manual_seed(0)
    steps, texts = 16, torch.randint(3, 250, (8, 1, 49))
    with solm.attach(model, policy, byte_tokenizer, backend="cpu", precision="int8") as lm:
        found = [features.measured(lm, text, 48 - steps, [1, 2, 3]) for text in texts]
    assert found[0]["kl"].shape == found[0]["cost"].shape == found[0]["share"].shape == (3, 3, steps)
    assert found[0]["cheap"].shape == (steps, len(features.CHEAP))
    halves = ({key: torch.stack([text[key] for text in some]) for key in some[0]} for some in (found[:5], found[5:]))
    arms = features.Foresight(*halves).arms()
    assert tables.ROWS.keys() | tables.TRIED.keys() <= arms.keys()
    assert all(arm["missed"] < 0.01 for arm in arms.values())
    assert arms["known"]["saved"]["value"] > max(0, arms["all"]["saved"]["value"])
    for arm in arms.values():
        arm["more"] = features.more(arm, arms["policy"])
    numbers = {"texts": 5, "tokens": 80, "held_out_texts": 3, "held_out_tokens": 48, "context": 32, "depth": 4}
    results = {"arms": arms, "tuned": {"gradient": {"0": arms["policy, as it is"]}}, "layers": [1, 2, 3], **numbers}
    results |= {"levels": foresight.LEVELS, "base": foresight.BASE}
    monkeypatch.setattr(tables, "found", lambda: {"Tiny": results})
    table, tried = tables.features(), tables.features_tried()
    assert "| What is seen | Tiny, explained | Tiny, saved, % | Tiny, more than N |\n" in table
    assert "| policy gradient, 0 updates | " in table
    assert table.count("\n| ") == len(tables.ROWS) + 5  # two heads with their lines, and the network fine-tuned
    assert tried.count("\n- ") == len(tables.TRIED)
    assert " on Tiny. Not kept." in tried


def test_a_feature_is_worth_building_where_it_gains_on_every_model(foresight: Any) -> None:
    tables = import_module("tables_features")
    gain, doubtful, small = ({"value": value, "low": low} for value, low in ((0.04, 0.01), (0.04, -0.01), (0.02, 0.01)))
    assert tables.worth([gain, gain])
    assert not tables.worth([gain, doubtful])
    assert not tables.worth([gain, small])


def test_what_an_arm_saves_beyond_another_is_paired_over_texts(foresight: Any) -> None:
    draw = np.random.default_rng(3)
    theirs = 0.1 + 0.1 * draw.normal(size=24)
    ours = theirs + 0.03 + 0.001 * draw.normal(size=24)
    found = import_module("features").more({"saved_by_text": ours.tolist()}, {"saved_by_text": theirs.tolist()})
    assert 0.029 < found["low"] < found["value"] < found["high"] < 0.031
