"""The rules of budgets, and schedules found in parts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from solm.core.actions import ActionSpace
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes, axis_levels
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import Static, take, two_levels, unroll

SPACE = ActionSpace.preset("joint-27")
SPARSITY = SparsityConfig(page_size=8, window=8)
SHAPES = ModelShapes(layers=4, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocabulary=259, gated=True)
TARGET = np.array([[0.31, 0.52, 0.43], [0.55, 0.71, 0.5], [0.83, 0.9, 0.77]])
KV_LENGTH = np.array([10, 100, 400])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(-0.5, 1.5))
def test_two_levels_enclose_a_target_and_are_the_outer_ones_beyond_the_ends(levels, target):
    rising = np.array([sorted(levels)])
    lower, upper = two_levels(rising, np.array([target]))
    assert int(upper[0]) == min(int(lower[0]) + 1, len(levels) - 1)
    low, high = take(rising, lower)[0], take(rising, upper)[0]
    if rising[0, 0] <= target < rising[0, -1]:
        assert low <= target + 1e-12
        assert target < high + 1e-12


def budget_of(kv_length, first, count):
    """What steps can spend that see kv_length [N] keys or more, from the step `first` on."""
    seen = kv_length[:, None] + np.arange(first, first + count)
    return axis_levels(SPACE, seen, SPARSITY, SHAPES), SPARSITY.controllable(seen)


def nothing() -> Ledger:
    return Ledger(np.zeros((3, 3)), np.zeros((3, 3), np.int64))


def test_a_schedule_found_in_parts_equals_the_whole():
    whole = unroll(Static(SPACE), *budget_of(KV_LENGTH, 0, 20), TARGET, nothing())
    policy, ledger, parts = Static(SPACE), nothing(), []
    for first, last in ((0, 7), (7, 8), (8, 20)):
        possible = budget_of(KV_LENGTH, first, last - first)
        part = unroll(policy, *possible, TARGET, ledger)
        ledger = part.ledger
        parts.append(part)
    assert np.array_equal(np.concatenate([part.actions for part in parts], 1), whole.actions)
    assert np.array_equal(np.concatenate([part.realised for part in parts], 1), whole.realised)
    assert np.array_equal(ledger.spent, whole.ledger.spent)
    # In the first steps of the shortest row attention reads only what is always read: dense, and not counted.
    levels = SPACE.levels[whole.actions[0, :4]]
    assert (levels[:, 0] == len(SPACE.attention) - 1).all()
    assert (levels[:, 1:] < np.array(SPACE.shape[1:]) - 1).any(0).all()
    assert whole.ledger.steps.tolist() == [[16, 20, 20], [20] * 3, [20] * 3]
