"""Thresholds on channels in the engine: measured, kept to, counted, and made up for by the budget."""

import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from helpers.engine import engine_of, pair
from helpers.engine_edges import Rows
from helpers.models import keep_of, tiny_model, tokens
from helpers.policies import BENDS, profile_of, with_hidden, with_projections
from solm.backends.cpu.border import MAGNITUDES
from solm.backends.cpu.session import CpuSession
from solm.backends.torch.backend import TorchBackend
from solm.core.actions import ActionSpace
from solm.core.cost import realised_mlp
from solm.core.errors import DataError, PolicyMismatchError
from solm.core.sparsity import PERCENTAGES, SITES, Allocation, ChannelThresholds, SparsityConfig
from solm.policies.schedules import static

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
SPARSITY = SparsityConfig(window=16)


@pytest.fixture(scope="module")
def control():
    control = TorchBackend(tiny_model("llama", torch.float32, num_hidden_layers=4))
    yield control
    control.detach()


@pytest.fixture(scope="module")
def thresholds(control):
    return measured(control)


@pytest.fixture(scope="module")
def all_thresholds(control):
    """Those of attention's projections, too."""
    return measured(control, len(SITES))


def measured(control, *sites):
    return engine_of(control.model).channel_thresholds(tokens(4, 90, seed=6), *sites)


def test_both_backends_measure_the_same(control, thresholds, all_thresholds):
    windows = tokens(4, 90, seed=6)
    for found in (thresholds, all_thresholds):
        others = control.channel_thresholds(windows, found.sites)
        ours, theirs = (np.array(some.limits)[..., 1:-1] for some in (found, others))
        assert np.allclose(ours, theirs, rtol=0.03, atol=1e-4)
    assert np.array_equal(np.array(thresholds.limits), np.array(all_thresholds.limits)[:, :2])


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "gpt_oss"])
@pytest.mark.parametrize("dealt", [False, True])
def test_a_token_visits_experts_until_they_hold_enough_of_the_probability(family, dealt):
    """On both backends, in stretches and step by step: as many as the limits say, the first one always."""
    control = TorchBackend(tiny_model(family, torch.float32, num_hidden_layers=4))
    found, others = measured(control, 1), control.channel_thresholds(tokens(4, 90, seed=6), 1)
    ours, theirs = (np.array(some.limits)[..., 34:95] for some in (found, others))  # below a third all have limit 1
    assert np.allclose(ours, theirs, rtol=0.05, atol=1e-3)
    bends = profile_of(*BENDS)
    allocation = Allocation(attention=bends.attention, mlp=bends.mlp) if dealt else None
    sparsity = SPARSITY.changed(mlp_site="experts", thresholds=found, allocation=allocation)
    for keep in (0.01, 0.7):
        ours, native = pair(control, sparsity)
        following, kept = tokens(2, 20, seed=5), keep_of((1.0, keep, 16), 2, 20)
        for first, last in ((0, 16), *((step, step + 1) for step in range(16, 20))):
            part, some = following[:, first:last], kept[:, first:last]
            expected, done = ours.extend(part, some), native.extend(part, some)
            torch.testing.assert_close(expected.logits, done.logits, atol=1e-3, rtol=0)
            torch.testing.assert_close(expected.realised, done.realised)
        visits = done.realised[..., 1] * 4 * 3  # of four layers' three experts
        torch.testing.assert_close(visits, visits.round())
        assert keep > 0.5 or (visits == 4).all()
    known = native.fork(1).extend(tokens(2, 60, seed=8), keep_of((1.0, 0.7, 16), 2, 60)).realised[..., 1]
    expected = realised_mlp(np.array([0.7]), sparsity, control.shapes).mean()
    assert float(known.mean()) == pytest.approx(expected, abs=0.05), "limits are those of shares"
    assert float(known.std()) > 0.01, "which differ by token"
    control.detach()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dealt", [False, True])
@pytest.mark.parametrize("projections", [False, True])
def test_thresholds_give_the_torch_backends_logits_and_shares(
    control, thresholds, all_thresholds, projections, dealt, rows
):
    """In stretches, whose steps are one product of matrices, and step by step."""
    allocation = with_hidden(profile_of(*BENDS), -0.9, -0.7, -0.8, -0.6) if dealt else None
    if allocation and projections:
        allocation = with_projections(allocation, -0.5, 0.4, -0.3, -0.6)
    sparsity = SparsityConfig(
        window=16, hidden_power=2, input_part=0.7, projection_part=0.1 * projections, allocation=allocation,
        thresholds=all_thresholds if projections else thresholds,
    )  # fmt: skip
    ours, native = pair(control, sparsity, rows=rows)
    following, keep = tokens(rows, 20, seed=5), keep_of((0.3, 0.5, 16), rows, 20)
    for first, last in ((0, 16), *((step, step + 1) for step in range(16, 20))):
        part, some = following[:, first:last], keep[:, first:last]
        expected, found = ours.extend(part, some), native.extend(part, some)
        torch.testing.assert_close(expected.logits, found.logits, atol=1e-3, rtol=0)
        torch.testing.assert_close(expected.realised, found.realised, atol=1e-3, rtol=0)
    asked = 0.5 * (0.7 + 0.3 * 0.5)
    asked += 0.1 * (0.5 - asked) * projections
    assert found.realised[0, 0, 1] != pytest.approx(asked, abs=1e-9), "what passed, not what was asked for"
    torch.testing.assert_close(ours.ledger.spent, native.ledger.spent, atol=0.01, rtol=0)
    dense = keep_of((1.0, 1.0, 16), rows, 1)
    one = native.fork(1).extend(following[:, :1], dense)
    other = native.fork(1, sparsity=sparsity.exact).extend(following[:, :1], dense)
    assert torch.equal(one.logits, other.logits)
    assert (one.realised == 1).all()


def test_budgets_are_kept_on_text_whose_activations_are_others(control, thresholds):
    """Every limit is a third too low, so that more channels pass than were asked for. Steps that are decoded make up
    for it, and stretches of known text nearly so."""
    low = ChannelThresholds(limits=[[[0.67 * x for x in site] for site in layer] for layer in thresholds.limits])
    space = ActionSpace(mlp=tuple(percent / 100 for percent in range(20, 101)))
    sparsity = SPARSITY.model_copy(update={"thresholds": low})
    parent = CpuSession(engine_of(control.model), sparsity)
    parent.prefill(tokens(2, 30))
    target = torch.tensor([[1.0, 0.62, 1.0]] * 2, dtype=torch.float64)
    ids = tokens(2, 129, seed=7)
    known, decoded = parent.fork(1), parent.fork(1)
    for session in (known, decoded):
        session.control(static(space, sparsity), target, 128)
    realised = known.score(ids).realised[..., 1]
    assert float(realised[:, :16].mean()) > 0.7
    torch.testing.assert_close(known.ledger.average[:, 1], realised.mean(1))
    assert (realised.mean(1) - 0.62).abs().max() < 0.03
    for step in range(128):
        decoded.step(ids[:, step])
    assert (decoded.ledger.average[:, 1] - 0.62).abs().max() < 0.01


def test_what_does_not_fit_is_refused(control, thresholds):
    engine = engine_of(control.model)
    other = SPARSITY.model_copy(update={"thresholds": ChannelThresholds(limits=thresholds.limits[:3])})
    with pytest.raises(DataError, match="the thresholds are for 3 layers, and the model has 4"):
        Rows(engine, sparsity=other).run(tokens(1, 1))
    with pytest.raises(PolicyMismatchError, match="thresholds of 3 layers: the model has 4"):
        other.check(4)
    with pytest.raises(ValidationError, match="a projection_part needs thresholds of attention's projections"):
        SparsityConfig(window=16, projection_part=0.1, thresholds=thresholds)
    with pytest.raises(ValidationError, match="thresholds of one site are of experts"):
        SparsityConfig(window=16, mlp_site="experts", thresholds=thresholds)
    with pytest.raises(ValidationError, match="fall to 0"):
        ChannelThresholds(limits=[[[1.0] * PERCENTAGES] * 2])
    for wrong in (np.zeros((4, 2, 8), np.uint32), np.zeros((4, 2, MAGNITUDES), np.int64)):
        with pytest.raises(DataError, match="a histogram must be writable uint32"):
            Rows(engine).run(tokens(1, 1), histogram=wrong)
