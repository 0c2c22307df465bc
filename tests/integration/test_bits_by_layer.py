"""Allocations of weight bits: layers that read only the upper bits of their MLP's weights, on both backends."""

import shutil

import numpy as np
import pytest
import torch

from helpers.engine import engine_of
from helpers.models import keep_of, tiny_model, tokens
from helpers.policies import EVEN
from helpers.weights import GRID_SIZES
from solm.backends.cpu.session import CpuSession
from solm.backends.torch.backend import TorchBackend
from solm.core.cost import realised_mlp
from solm.core.sparsity import KNOTS, Allocation, ChannelThresholds, SparsityConfig

SIZES = {**GRID_SIZES, "intermediate_size": 352}
ALL = (1.0,) * KNOTS
NEVER = (*(0.0,) * (KNOTS - 1), 1.0)
"""The curve of weights whose lower bits no step reads that leaves anything out."""
FROM_HALF = (*(0.0,) * (KNOTS // 2), *(1.0,) * (KNOTS - KNOTS // 2))
PART = 0.6
compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def ruled(input_bits, hidden_bits, channels=EVEN, **options) -> SparsityConfig:
    """The curves of bits of two layers, which keep `channels` at both sites of the MLP."""
    curves = (channels, channels)
    allocation = Allocation(
        attention=(EVEN, EVEN), mlp=curves, hidden=curves, input_bits=input_bits, hidden_bits=hidden_bits
    )
    return SparsityConfig(
        window=16, bits_site="weights", allocation=allocation, upper_bits_part=PART, hidden_power=2, **options
    )


def run(session, keep, ids=None):
    session.prefill(tokens(2, 100))
    return session.extend(tokens(2, 30, seed=5) if ids is None else ids, keep)


@compiled
def test_layers_without_lower_bits_are_steps_without_lower_bits():
    """To the last bit, and counted as channels."""
    model = tiny_model("llama", torch.float32, **SIZES)
    plain = SparsityConfig(window=16, bits_site="weights")
    engine = engine_of(model, plain, "nested")
    never, half = (ruled((curve, curve), (curve, curve), ALL) for curve in (NEVER, FROM_HALF))
    expected = run(CpuSession(engine, plain), keep_of((1.0, 1.0, 4), 2, 30))
    whole = run(CpuSession(engine, plain), keep_of((1.0, 1.0, 16), 2, 30))
    assert not torch.equal(expected.logits, whole.logits)
    for sparsity, keep, same, share in (
        (never, 0.9, expected, PART), (never, 1.0, whole, 1.0), (half, 0.4, expected, PART), (half, 0.6, whole, 1.0),
    ):  # fmt: skip
        found = run(CpuSession(engine, sparsity), keep_of((1.0, keep, 16), 2, 30))
        assert torch.equal(found.logits, same.logits)
        assert torch.allclose(found.realised[..., 1], torch.tensor(share, dtype=torch.float64))
        assert (found.realised[..., 2] == 1).all(), "the third axis is that of an action's bits"


def thresholds() -> ChannelThresholds:
    return ChannelThresholds.of(np.tile(np.linspace(1.5, 0, 101), (2, 2, 1)))


@compiled
@pytest.mark.parametrize("limits", [None, thresholds()])
@pytest.mark.parametrize("step_by_step", [False, True])
def test_the_engine_follows_the_allocation_as_the_simulation_does(limits, step_by_step):
    """Other layers and sites at every level; several rows at once, as products of matrices, and in single steps."""
    sparsity = ruled((NEVER, FROM_HALF), (FROM_HALF, ALL), thresholds=limits)
    model = tiny_model("llama", torch.float32, **SIZES)
    simulated, engine = TorchBackend(model), engine_of(model, sparsity, "nested")
    levels = torch.tensor([1.0, 0.8, 0.4, 0.6, 0.3], dtype=torch.float64)[torch.arange(30) % 5]
    keep = keep_of((1.0, 1.0, 16), 2, 30).clone()
    keep[..., 1] = levels
    keep[1, :, 1] = levels.flip(0)
    expected = run(simulated.session(sparsity), keep)
    session = CpuSession(engine, sparsity)
    session.prefill(tokens(2, 100))
    following = tokens(2, 30, seed=5)
    if step_by_step:
        steps = [session.step(following[:, q], keep[:, q]) for q in range(30)]
        hidden, realised = (torch.cat([getattr(step, name) for step in steps], 1) for name in ("hidden", "realised"))
    else:
        found = session.extend(following, keep)
        hidden, realised = found.hidden, found.realised
    away = (hidden - expected.hidden).norm(dim=-1) / expected.hidden.norm(dim=-1)
    if limits is None:
        torch.testing.assert_close(realised, expected.realised)
        assert realised[0, 2, 1] == pytest.approx(float(np.mean(realised_mlp(np.array(0.4), sparsity, engine.shapes))))
    else:
        assert (realised - expected.realised).abs().mean() < 0.01
    control = ruled((ALL, ALL), (ALL, ALL), thresholds=limits)
    other = run(simulated.session(control), keep)
    off = (other.hidden - expected.hidden).norm(dim=-1) / expected.hidden.norm(dim=-1)
    assert off.median() > 2 * away.median(), "all bits compute something else"
    simulated.detach()


@compiled
@pytest.mark.parametrize("rows", [3, 19])
def test_a_dense_row_does_not_notice_which_bits_its_neighbours_read(rows):
    sparsity = ruled((NEVER, FROM_HALF), (FROM_HALF, ALL))
    engine = engine_of(tiny_model("llama", torch.float32, **SIZES), sparsity, "nested")
    together = CpuSession(engine, sparsity)
    together.prefill(tokens(1, 40))
    for row in range(1, rows):
        other = CpuSession(engine, sparsity)
        other.prefill(tokens(1, 40 + row, seed=row))
        together.join(other)
    following = tokens(rows, 1, seed=3)[:, 0]
    keep = torch.tensor([(1.0, 1.0, 16.0), *[(1.0, 0.4, 16.0)] * (rows - 1)], dtype=torch.float64)
    mixed = together.fork(1).step(following, keep).logits
    dense = together.fork(1).step(following, keep[:1].expand(rows, 3)).logits
    assert torch.equal(mixed[0], dense[0])
    assert not torch.isclose(mixed[1:], dense[1:]).all(-1).any()
