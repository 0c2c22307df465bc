"""The rules of budgets, and schedules and mid-pass decisions found in parts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solm.core.actions import ActionSpace
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes
from solm.core.sparsity import SparsityConfig
from solm.policies.mid_pass import decide_known
from solm.policies.protocol import due_share
from solm.policies.schedules import Random, Static, take, two_levels
from solm.policies.unroll import unroll
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig, ValuePolicy

SPACE = ActionSpace.preset("joint-27")
SPARSITY = SparsityConfig(page_size=8, window=8)
SHAPES = ModelShapes(layers=4, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocabulary=259, gated=True)
TARGET = torch.tensor([[0.31, 0.52, 0.43], [0.55, 0.71, 0.5], [0.83, 0.9, 0.77]], dtype=torch.float64)
KV_LENGTH = torch.tensor([10, 100, 400])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(-0.5, 1.5))
def test_two_levels_enclose_a_target_and_are_the_outer_ones_beyond_the_ends(levels, target):
    rising = np.array([sorted(levels)])
    lower, upper = two_levels(rising, np.array([target]))
    assert int(upper[0]) == min(int(lower[0]) + 1, len(levels) - 1)
    low, high = take(rising, lower)[0], take(rising, upper)[0]
    if rising[0, 0] <= target < rising[0, -1]:
        assert low <= target + 1e-12
        assert target < high + 1e-12


def test_two_levels_takes_any_leading_shape_and_a_tolerance():
    levels = np.broadcast_to(np.array([0.2, 0.5, 1.0]), (2, 3, 3))
    lower, upper = two_levels(levels, np.array([[0.1, 0.2, 0.49999], [0.5, 0.9, 1.2]]))
    assert lower.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert upper.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert two_levels(levels[0, :1], np.array([0.49999]), 1e-3)[0].tolist() == [1]


@given(st.floats(0, 1), st.integers(0, 50), st.integers(1, 50), st.floats(0, 1))
def test_what_is_due_brings_the_average_to_the_target(target, steps, horizon, average):
    spent = average * steps
    due = due_share(np.float64(target), np.float64(spent), np.int64(steps), horizon)
    assert (spent + due * horizon) / (steps + horizon) == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize("kind", [Static, Random])
def test_a_schedule_found_in_parts_equals_the_whole(kind):
    whole = unroll(
        kind(SPACE), KV_LENGTH, SPARSITY, SHAPES, 20, TARGET, Ledger.empty(3),
        generator=torch.Generator().manual_seed(0), record=True,
    )  # fmt: skip
    policy, generator, ledger, previous = kind(SPACE), torch.Generator().manual_seed(0), Ledger.empty(3), None
    parts, inputs = [], []
    for first, last in ((0, 7), (7, 8), (8, 20)):
        part = unroll(
            policy, KV_LENGTH + first, SPARSITY, SHAPES, last - first, TARGET, ledger, horizon=20,
            first_step=np.full(3, first), previous=previous, generator=generator, record=True,
        )  # fmt: skip
        ledger, previous = part.ledger, part.actions[:, -1]
        parts.append(part)
        inputs.append(part.inputs)
    assert torch.equal(torch.cat([part.actions for part in parts], 1), whole.actions)
    assert torch.equal(torch.cat([part.realised for part in parts], 1), whole.realised)
    assert torch.equal(ledger.spent, whole.ledger.spent)
    for index, wanted in enumerate(whole.inputs):
        assert torch.equal(torch.cat([part[index] for part in inputs], 1), wanted)
    # In the first steps of the shortest row attention reads only what is always read: dense, and not counted.
    levels = SPACE.level_table[whole.actions[0, :4]]
    assert (levels[:, 0] == len(SPACE.attention) - 1).all()
    assert (levels[:, 1:] < torch.tensor(SPACE.shape[1:]) - 1).any(0).all()
    assert whole.ledger.steps.tolist() == [[16, 20, 20], [20] * 3, [20] * 3]


def test_mid_pass_decisions_in_parts_equal_the_whole_and_leave_their_arguments_alone():
    torch.manual_seed(0)
    network = ValueNetwork(ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=16, kept_sensitivities=64)).eval()
    torch.nn.init.normal_(network.head.weight, std=1)
    network.training_sensitivities.copy_(torch.rand(64, 3) * 2)
    policy, hidden = ValuePolicy(network, SPACE), torch.randn(3, 20, 64)
    before = unroll(Static(SPACE), KV_LENGTH, SPARSITY, SHAPES, 20, TARGET, Ledger.empty(3)).actions
    start, horizon = torch.zeros(3, dtype=torch.int64), torch.tensor([20, 30, 12])
    nothing, spent = torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.float64)

    def decide(first: int, last: int, spent: torch.Tensor, expected: torch.Tensor, counted: torch.Tensor):
        return decide_known(
            policy, hidden[:, first:last], before[:, first:last], KV_LENGTH + first, SPARSITY, SHAPES, target=TARGET,
            spent=spent, expected=expected, counted=counted, taken=start + first, horizon=horizon,
        )  # fmt: skip

    whole = decide(0, 20, spent, spent, nothing)
    assert not spent.any()
    assert not nothing.any()
    assert len(whole.actions.unique()) > 3
    torch.testing.assert_close(whole.spent, (whole.realised * whole.controllable).sum(1))
    assert whole.counted.tolist() == whole.controllable.sum(1).tolist() == [[16, 20, 20], [20] * 3, [20] * 3]
    actions, expected, counted = [], spent, nothing
    for first, last in ((0, 4), (4, 5), (5, 20)):
        part = decide(first, last, spent, expected, counted)
        spent, expected, counted = part.spent, part.expected, part.counted
        actions.append(part.actions)
    assert torch.equal(torch.cat(actions, 1), whole.actions)
    assert torch.equal(spent, whole.spent)
    assert torch.equal(expected, whole.expected)
