"""Schedules that depend on budgets alone: dense, static, random; and how such a schedule is found for steps to come.

All is computed in NumPy.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from solm.core.actions import ActionSpace
from solm.core.budget import Ledger
from solm.core.sparsity import SparsityConfig

Count = int | np.ndarray
"""A number of steps: the same for all rows, or [N] int64."""
SHORTEST_HORIZON = 8
"""Steps over which a deviation from the budget is made good, even where fewer are left."""
Levels = tuple[np.ndarray, ...]
"""Per axis [..., levels] float64: the share that each level of an action space would realise."""


@dataclass(frozen=True)
class Observation:
    """The state of N rows before their next step.

    target: [N, 3] float64 budget shares. ledger: what was spent. levels: what the levels would realise at this step,
    [N, levels] each. step: steps taken so far; horizon: steps that the budget is meant for. controllable: [N, 3] bool,
    per axis; on others the step is dense, whatever is decided.
    """

    target: np.ndarray
    ledger: Ledger
    levels: Levels
    step: Count
    horizon: Count
    controllable: np.ndarray

    @property
    def remaining(self) -> Count:
        """Steps left, this one included; at least 1."""
        return np.maximum(1, self.horizon - self.step)


class Policy(Protocol):
    """Decides the actions of rows from their budgets alone, so that those of steps to come can be found before the
    model runs (`unroll`), and all of them be scored in one pass."""

    space: ActionSpace
    reads_model: bool

    def act(self, observation: Observation) -> np.ndarray:
        """Action indices [N] int64."""


def due_share(target: np.ndarray, spent: np.ndarray, steps: np.ndarray, horizon: Count) -> np.ndarray:
    """The average share that the next `horizon` steps must realise for the average over all steps to be `target`.

    target: share requested; spent: sum of the shares realised in the `steps` counted so far. Of any shapes that
    broadcast.
    """
    return np.asarray((target * (steps + horizon) - spent) / horizon)


def two_levels(levels: np.ndarray, target: np.ndarray, tolerance: float = 1e-12) -> tuple[np.ndarray, np.ndarray]:
    """Indices [...] int64 of the two neighbouring levels around `target` [...], the lower one first.

    levels: [..., L] realised shares, rising. Below the first level and above the last one: the first or last two. The
    same index twice where there is one level. tolerance: a level that exceeds the target by no more counts as met.
    """
    last = levels.shape[-1] - 1
    # Every token needs them: minimum and maximum take a third of the time of clip.
    met = (levels <= target[..., None] + tolerance).sum(-1) - 1
    lower = np.minimum(np.maximum(met, 0), max(0, last - 1))
    return lower, np.minimum(lower + 1, last)


def take(levels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The entries [...] of levels [..., L] at `index` [...]."""
    flat = levels.reshape(-1, levels.shape[-1])  # np.take_along_axis takes five times as long
    return flat[np.arange(index.size), index.reshape(-1)].reshape(index.shape)


class Dense:
    """Every step dense: the reference."""

    reads_model = False

    def __init__(self, space: ActionSpace):
        self.space = space

    def act(self, observation: Observation) -> np.ndarray:
        return np.full(len(observation.target), self.space.dense_index)


class Static:
    """Per axis, of the two levels whose realised shares enclose the target, the one after which the sum of realised
    shares is closest to target times steps.

    Over a run of T steps the average misses the target by at most half the distance of the two levels over T.
    """

    reads_model = False

    def __init__(self, space: ActionSpace):
        self.space = space

    def act(self, observation: Observation) -> np.ndarray:
        action = np.zeros(len(observation.target), dtype=np.int64)
        for axis, levels in enumerate(observation.levels):
            if levels.shape[1] == 1:
                continue
            lower, upper = two_levels(levels, self._aim(observation, axis))
            take_upper = self._takes_upper(observation, axis, take(levels, lower), take(levels, upper))
            action = action * levels.shape[1] + np.where(take_upper, upper, lower)
        return action

    def _aim(self, observation: Observation, axis: int) -> np.ndarray:
        """[N]: the share that the two levels lie around."""
        return observation.target[:, axis]

    def _takes_upper(self, observation: Observation, axis: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """[N] bool: whether each row takes the higher of its two levels, which realise the shares low and high [N]."""
        spent = observation.ledger.spent[:, axis]
        goal = observation.target[:, axis] * (observation.ledger.steps[:, axis] + 1)
        return np.asarray(abs(spent + high - goal) < abs(spent + low - goal))


class Paced(Static):
    """Static where a level's share is only an expectation, as under thresholds: the two levels lie around the share
    that is due to be back at the target within a few steps."""

    def _aim(self, observation: Observation, axis: int) -> np.ndarray:
        spent, steps = observation.ledger.spent[:, axis], observation.ledger.steps[:, axis]
        return due_share(observation.target[:, axis], spent, steps, SHORTEST_HORIZON).clip(0, 1)

    def _takes_upper(self, observation: Observation, axis: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        due = self._aim(observation, axis)
        return np.asarray(abs(high - due) < abs(low - due))


def static(space: ActionSpace, sparsity: SparsityConfig) -> Static:
    """The static schedule that meets budgets under `sparsity`."""
    return Static(space) if sparsity.thresholds is None else Paced(space)


class Random(Static):
    """The levels of the static schedule in a uniformly random order, drawn without replacement step by step.

    What is drawn depends on `seed`, on the number of steps taken and on the row's place alone, so that there is no
    state.
    """

    def __init__(self, space: ActionSpace, seed: int = 0):
        super().__init__(space)
        self.seed = seed % (1 << 64)

    def _drawn(self, observation: Observation) -> np.ndarray:
        """[N, axes] numbers in [0, 1)."""
        rows, axes = observation.target.shape
        found = np.empty((rows, axes))
        for place, step in enumerate(np.broadcast_to(observation.step, (rows,)).tolist()):
            bits = np.random.PCG64([self.seed, 1, place] if place else [self.seed, 1])
            found[place] = np.random.Generator(bits.advance(axes * step)).random(axes)
        return found

    def _takes_upper(self, observation: Observation, axis: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        remaining, ledger = observation.remaining, observation.ledger
        goal = observation.target[:, axis] * (ledger.steps[:, axis] + remaining)
        # How often the higher level is still to be taken, rounded once so that the last steps are certain.
        gap = np.maximum(high - low, 1e-12)
        count = np.round((goal - ledger.spent[:, axis] - low * remaining) / gap).clip(0, remaining)
        return np.asarray((self._drawn(observation)[:, axis] < count / remaining) & (high > low))


@dataclass(frozen=True)
class Schedule:
    """T steps of N rows: actions [N, T] int64, the shares that they realise, realised [N, T, 3] float64, and the rows'
    ledger after them."""

    actions: np.ndarray
    realised: np.ndarray
    ledger: Ledger


def unroll(
    policy: Policy,
    levels: Levels,
    controllable: np.ndarray,
    target: np.ndarray,
    ledger: Ledger,
    first_step: Count = 0,
    horizon: Count | None = None,
) -> Schedule:
    """The next T actions of a policy; dense on axes that a step cannot control.

    levels: what the levels of the policy's space realise in these steps, [N, T, levels] each. controllable: [N, T, 3]
    bool. target: [N, 3] float64 shares. ledger: what the rows have spent, arrays. first_step: steps taken before;
    horizon: steps that the budget is meant for, by default those up to the last one found here.
    """
    space, (rows, steps, _) = policy.space, controllable.shape
    horizon = first_step + steps if horizon is None else horizon
    actions, realised = np.empty((rows, steps), np.int64), np.empty((rows, steps, len(levels)))
    for step in range(steps):
        now, on = tuple(axis[:, step] for axis in levels), controllable[:, step]
        chosen = policy.act(Observation(target, ledger, now, first_step + step, horizon, on))
        actions[:, step] = space.controlled(chosen, on)
        index = space.levels[actions[:, step]]
        realised[:, step] = np.stack([take(axis, index[:, number]) for number, axis in enumerate(now)], 1)
        ledger = ledger.add(realised[:, step], on)
    return Schedule(actions, realised, ledger)
