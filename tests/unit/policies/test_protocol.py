"""The prior over actions and what keeps a budget in reach."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.schedules import SPACES, run_schedule
from solm.policies.protocol import budget_prior, feasible
from solm.policies.schedules import Static


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
