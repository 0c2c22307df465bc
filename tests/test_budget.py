"""Actions, budgets, ledgers, costs and the schedules that keep them; properties over random ones."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solm.core.actions import PRESETS, Action, ActionSpace
from solm.core.budget import Budget, Ledger
from solm.core.cost import ModelShapes, relative_cost, step_cost
from solm.core.errors import BudgetError, SolmError
from solm.core.sparsity import SparsityConfig
from solm.policies.protocol import Observation, budget_prior, feasible
from solm.policies.schedules import Dense, Random, Replay, Static

SHAPES = ModelShapes(
    layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, gated=True
)
SPACES = st.sampled_from([PRESETS[name] for name in ("joint-8", "joint-27", "joint-336", "mlp-40", "bits-5-10")])


def run_schedule(policy, target, steps, seed=0):
    """Drive a blind schedule over constant levels; realised averages [N, 3]."""
    space, rows = policy.space, len(target)
    levels = tuple(
        torch.tensor(axis, dtype=torch.float64).expand(rows, -1) / (16 if index == 2 else 1)
        for index, axis in enumerate((space.attention, space.mlp, space.bits))
    )
    ledger, generator = Ledger.empty(rows), torch.Generator().manual_seed(seed)
    previous = torch.full((rows,), space.dense_index)
    on = torch.ones(rows, dtype=torch.bool)
    shares = space.table / torch.tensor([1, 1, 16.0])
    for step in range(steps):
        observation = Observation(None, None, target, ledger, levels, step, steps, on, previous)
        previous, _ = policy.act(observation, None, generator)
        ledger = ledger.book(shares[previous], on)
    return ledger.average


def test_presets_are_the_papers_grids():
    sizes = {name: len(space) for name, space in PRESETS.items() if name.startswith("joint")}
    assert sizes == {"joint-8": 8, "joint-27": 27, "joint-336": 336, "joint-1560": 1560}
    for space in PRESETS.values():
        assert space.actions[space.dense_index] == (1.0, 1.0, 16)
    order = [action.tag for action in PRESETS["joint-8"].actions[:3]]
    assert order == ["k010-s060-q5", "k010-s060-q16", "k010-s100-q5"]


@given(SPACES, st.data())
def test_tags_and_indices_round_trip(space, data):
    index = data.draw(st.integers(0, len(space) - 1))
    assert space.index(Action.from_tag(space.actions[index].tag)) == index


@pytest.mark.parametrize("levels", [{"mlp": (0.5,)}, {"mlp": (1.0, 0.5)}, {"bits": (1, 16)}, {"attention": (0.0, 1.0)}])
def test_spaces_without_the_dense_action_or_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match=r"levels must rise|keep rates|activation bits"):
        ActionSpace(**levels)


@given(SPACES, st.floats(0, 1))
def test_a_net_budget_is_met_on_average_by_its_axes(space, fraction):
    low, high = (sum(side) / 3 for side in zip(*space.ranges, strict=True))
    net = low + fraction * (high - low)
    budget = Budget.from_net(net, space)
    assert budget.net == pytest.approx(net)
    assert budget.check(space) is budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1", "0.1 is unreachable: this action space spends 0.3375 to 1"),
        ("nan", "unreachable"),
        ("1.5", "unreachable"),
        ("attention=0.05", "attention=0.05 is unreachable: this action space offers 0.1 to 1"),
        ("mlp=2", "out of range"),
        ("bits=x", "'x' is not a number"),
        ("speed=3", "not a number or a list"),
        ("", "not a number or a list"),
    ],
)
def test_bad_budgets_name_the_value_and_the_range(text, message):
    with pytest.raises(BudgetError, match=message.replace("(", r"\(")):
        Budget.parse(text, PRESETS["joint-8"])


def test_parse_per_axis_leaves_the_others_dense():
    budget = Budget.parse("mlp=0.7,bits=8", PRESETS["joint-8"])
    assert budget.shares == (1.0, 0.7, 0.5)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30))
def test_ledger_averages_only_what_was_controllable(history):
    ledger = Ledger.empty(1)
    for share, on in history:
        ledger = ledger.book(torch.full((1, 3), share, dtype=torch.float64), torch.tensor([on]))
    counted = [share for share, on in history if on]
    expected = sum(counted) / len(counted) if counted else 1.0
    assert ledger.average[0].tolist() == pytest.approx([expected] * 3)
    target = torch.full((1, 3), 0.5, dtype=torch.float64)
    assert ledger.deviation(target)[0].tolist() == pytest.approx([expected - 0.5 if counted else 0.0] * 3)


@given(SPACES, st.floats(0, 1), st.integers(1, 150), st.integers(0, 9))
def test_static_and_random_meet_the_target_within_half_a_quantum(space, fraction, steps, seed):
    low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
    target = (low + fraction * (high - low)).expand(2, 3)
    for policy in (Static(space), Random(space)):
        average = run_schedule(policy, target, steps, seed)
        for axis, levels in enumerate((space.attention, space.mlp, space.bits)):
            shares = [level / (16 if axis == 2 else 1) for level in levels]
            quantum = max((b - a for a, b in pairwise(shares)), default=0)
            assert (average[:, axis] - target[:, axis]).abs().max() <= quantum / steps / 2 + 1e-9


def test_static_matches_128_steps_within_0_002_on_the_papers_large_grids():
    for name in ("joint-336", "joint-1560"):
        space = PRESETS[name]
        low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
        target = low + (high - low) * torch.rand(64, 3, dtype=torch.float64)
        assert (run_schedule(Static(space), target, 128) - target).abs().max() <= 0.002


def test_random_is_a_permutation_and_differs_between_rows():
    space = PRESETS["mlp-40"]
    target = torch.tensor([[1.0, 0.7, 1.0]], dtype=torch.float64).expand(50, 3)
    seen = {seed: run_schedule(Random(space), target, 10, seed) for seed in range(2)}
    assert torch.allclose(seen[0][:, 1], torch.tensor(0.7, dtype=torch.float64))


def test_dense_and_replay_do_what_they_say():
    space = PRESETS["joint-8"]
    target = torch.full((2, 3), 0.5, dtype=torch.float64)
    assert run_schedule(Dense(space), target, 5).tolist() == [[1.0] * 3] * 2
    replay = Replay(space, torch.zeros(2, 5, dtype=torch.long))
    assert run_schedule(replay, target, 5)[0].tolist() == pytest.approx([0.1, 0.6, 5 / 16])


class Prior:
    """Samples from the prior alone, or takes its best action."""

    def __init__(self, space, greedy=False):
        self.space, self.greedy = space, greedy

    def act(self, observation, state, generator):
        p = budget_prior(observation).softmax(-1)
        return (p.argmax(-1) if self.greedy else torch.multinomial(p, 1, generator=generator)[:, 0]), None


@given(SPACES, st.floats(0.1, 0.9), st.integers(0, 9))
def test_sampling_the_prior_keeps_the_budget_without_a_horizon(space, fraction, seed):
    low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
    target = (low + fraction * (high - low)).expand(4, 3)
    assert (run_schedule(Prior(space), target, 100, seed) - target).abs().max() < 0.03


@given(SPACES, st.floats(0, 1), st.integers(1, 60))
def test_the_best_action_of_the_prior_is_the_static_schedule(space, fraction, steps):
    low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
    target = (low + fraction * (high - low)).expand(2, 3)
    greedy, static = (run_schedule(policy, target, steps) for policy in (Prior(space, greedy=True), Static(space)))
    quantum = max(
        b - a
        for axis in (space.attention, space.mlp, [b / 16 for b in space.bits])
        for a, b in pairwise([*axis, axis[-1]])
    )
    assert (greedy - static).abs().max() <= quantum / steps + 1e-6


@given(SPACES, st.floats(0, 1), st.integers(1, 60), st.integers(0, 5))
def test_any_feasible_choice_keeps_the_budget_in_reach(space, fraction, steps, seed):
    """A policy that picks at random among feasible actions ends within one level of its target."""

    class Anything:
        def __init__(self):
            self.space = space

        def act(self, observation, state, generator):
            allowed = feasible(observation)
            assert allowed.any(1).all()
            return torch.multinomial(allowed.double(), 1, generator=generator)[:, 0], None

    low, high = torch.tensor(space.ranges, dtype=torch.float64).unbind(1)
    target = (low + fraction * (high - low)).expand(3, 3)
    average = run_schedule(Anything(), target, steps, seed)
    for axis, levels in enumerate((space.attention, space.mlp, space.bits)):
        shares = [level / (16 if axis == 2 else 1) for level in levels]
        quantum = max((b - a for a, b in pairwise(shares)), default=0)
        assert (average[:, axis] - target[:, axis]).abs().max() <= quantum / steps + 1e-6


def test_costs_are_one_when_dense_and_fall_with_every_share():
    sparsity = SparsityConfig()
    dense = torch.ones(3, dtype=torch.float64)
    for model in ("nominal", "bytes", "flops"):
        assert float(relative_cost(dense, 600, SHAPES, sparsity, model)) == pytest.approx(1)
    half_mlp = torch.tensor([1, 0.5, 1], dtype=torch.float64)
    half_kv = torch.tensor([0.5, 1, 1], dtype=torch.float64)
    for model in ("bytes", "flops"):
        assert float(relative_cost(half_mlp, 600, SHAPES, sparsity, model)) < 0.75
        assert float(relative_cost(half_kv, 8000, SHAPES, sparsity, model)) < 0.9
        few = torch.tensor([1, 1, 5 / 16], dtype=torch.float64)
        assert float(relative_cost(few, 600, SHAPES, sparsity, model)) == pytest.approx(1)
    # Shares of the step's weights as measured by hand: gate+up 39.5 %, down 19.7 %, attention 19.7 %, head 21 %.
    sparse = torch.tensor([1, 0.6, 1], dtype=torch.float64)
    assert float(relative_cost(sparse, 0, SHAPES, sparsity, "bytes")) == pytest.approx(1 - 0.4 * 0.592, abs=0.002)
    assert float(relative_cost(dense, 600, SHAPES, sparsity, "bytes", 10**6)) > 1
    with pytest.raises(SolmError, match="unknown cost model"):
        relative_cost(dense, 600, SHAPES, sparsity, "watts")


@pytest.mark.parametrize("model", ["nominal", "bytes", "flops"])
@pytest.mark.parametrize(
    "sparsity",
    [
        SparsityConfig(),
        SparsityConfig.preset("cpu"),
        SparsityConfig.preset("paper"),
    ],
    ids=["default", "cpu", "paper"],
)
@given(shares=st.tuples(*[st.floats(0, 1)] * 3), length=st.integers(1, 9000), policy=st.integers(0, 10**6))
def test_a_single_steps_cost_is_the_tensors(sparsity, model, shares, length, policy):
    realised = torch.tensor([shares], dtype=torch.float64)
    expected = relative_cost(realised, torch.tensor([length]), SHAPES, sparsity, model, policy)
    assert step_cost(shares, length, SHAPES, sparsity, model, policy) == pytest.approx(float(expected), rel=1e-12)
