"""Schedules that need no model keep their budgets."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.schedules import SPACES, run_schedule
from solm.policies.schedules import Static


@given(SPACES, st.floats(0, 1), st.integers(1, 150))
def test_static_meets_the_target_within_half_a_quantum(space, fraction, steps):
    low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
    target = (low + fraction * (high - low)).expand(2, 3)
    average = run_schedule(Static(space), target, steps)
    for axis, levels in enumerate((space.attention, space.mlp, space.bits)):
        shares = [level / (16 if axis == 2 else 1) for level in levels]
        quantum = max((b - a for a, b in pairwise(shares)), default=0)
        assert (average[:, axis] - target[:, axis]).abs().max() <= quantum / steps / 2 + 1e-9
