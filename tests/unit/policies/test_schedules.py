"""Schedules that need no model keep their budgets."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.schedules import SPACES, run_schedule
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes, axis_levels
from solm.core.sparsity import SparsityConfig
from solm.paper.config import GRIDS
from solm.policies.schedules import Random, Static, unroll

SHAPES = ModelShapes(layers=4, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocabulary=259, gated=True)


@given(SPACES, st.floats(0, 1), st.integers(1, 150), st.integers(0, 9))
def test_static_and_random_meet_the_target_within_half_a_quantum(space, fraction, steps, seed):
    low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
    target = (low + fraction * (high - low)).expand(2, 3)
    for policy in (Static(space), Random(space, seed)):
        average = run_schedule(policy, target, steps)
        for axis, levels in enumerate((space.attention, space.mlp, space.bits)):
            shares = [level / (16 if axis == 2 else 1) for level in levels]
            quantum = max((b - a for a, b in pairwise(shares)), default=0)
            assert (average[:, axis] - target[:, axis]).abs().max() <= quantum / steps / 2 + 1e-9


def test_static_matches_128_steps_within_0_002_on_the_papers_large_grids():
    for name in ("joint-336", "joint-1560"):
        space = GRIDS[name]
        low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
        target = low + (high - low) * torch.rand(64, 3, dtype=torch.float64)
        assert (run_schedule(Static(space), target, 128) - target).abs().max() <= 0.002


def test_random_is_a_permutation_and_differs_between_rows():
    space = GRIDS["mlp-40"]
    target = torch.tensor([[1.0, 0.7, 1.0]], dtype=torch.float64).expand(50, 3)
    assert torch.allclose(run_schedule(Random(space, 3), target, 10)[:, 1], torch.tensor(0.7, dtype=torch.float64))
    seen = np.full((50, 10), 400)
    possible = axis_levels(space, seen, SparsityConfig(), SHAPES), SparsityConfig().controllable(seen)
    nothing = Ledger(np.zeros((50, 3)), np.zeros((50, 3), np.int64))
    once = [unroll(Random(space, seed), *possible, target.numpy(), nothing).actions for seed in (3, 3, 4)]
    assert np.array_equal(once[0], once[1])
    assert not np.array_equal(once[0], once[2])
    assert len(np.unique(once[0], axis=0)) > 40
