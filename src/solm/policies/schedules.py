"""Schedules that depend on budgets alone, dense and static; and how such a schedule is found for steps to come.

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


class Policy(Protocol):
    """Decides the actions of rows from their budgets alone, so that those of steps to come can be found before the
    model runs (`unroll`), and all of them be scored in one pass."""

    space: ActionSpace
    reads_model: bool

    def act(self, target: np.ndarray, ledger: Ledger, levels: Levels) -> np.ndarray:
        """Action indices [N] int64 of rows that may spend target [N, axes] float64 shares on average and have spent
        what `ledger` says. levels: what the levels would realise at this step, [N, levels] each."""


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

    def act(self, target: np.ndarray, ledger: Ledger, levels: Levels) -> np.ndarray:
        return np.full(len(target), self.space.dense_index)


class Static:
    """Per axis, of the two levels whose realised shares enclose the target, the one after which the sum of realised
    shares is closest to target times steps.

    Over a run of T steps the average misses the target by at most half the distance of the two levels over T.
    """

    reads_model = False

    def __init__(self, space: ActionSpace):
        self.space = space

    def act(self, target: np.ndarray, ledger: Ledger, levels: Levels) -> np.ndarray:
        action = np.zeros(len(target), dtype=np.int64)
        for axis, realised in enumerate(levels):
            if realised.shape[1] > 1:
                chosen = self._level(realised, target[:, axis], ledger.spent[:, axis], ledger.steps[:, axis])
                action = action * realised.shape[1] + chosen
        return action

    def _level(self, levels: np.ndarray, target: np.ndarray, spent: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The level [N] of one axis, of levels [N, L], for rows that have spent `spent` [N] in `steps` [N] steps."""
        return _nearer(levels, target, spent, target * (steps + 1))


class Paced(Static):
    """Static where a level's share is only an expectation, as under thresholds: the two levels lie around the share
    that is due to be back at the target within a few steps."""

    def _level(self, levels: np.ndarray, target: np.ndarray, spent: np.ndarray, steps: np.ndarray) -> np.ndarray:
        due = due_share(target, spent, steps, SHORTEST_HORIZON).clip(0, 1)
        return _nearer(levels, due, np.zeros(1), due)


def _nearer(levels: np.ndarray, target: np.ndarray, spent: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Of the two levels around `target` [N], among levels [N, L], the one with which `spent` [N] is nearer to `goal`
    [N]; the lower one where both are."""
    lower, upper = two_levels(levels, target)
    low, high = take(levels, lower), take(levels, upper)
    return np.where(abs(spent + high - goal) < abs(spent + low - goal), upper, lower)


def static(space: ActionSpace, sparsity: SparsityConfig) -> Static:
    """The static schedule that meets budgets under `sparsity`."""
    return Static(space) if sparsity.thresholds is None else Paced(space)


@dataclass(frozen=True)
class Schedule:
    """T steps of N rows: actions [N, T] int64, the shares that they realise, realised [N, T, 3] float64, and the rows'
    ledger after them."""

    actions: np.ndarray
    realised: np.ndarray
    ledger: Ledger


def unroll(policy: Policy, levels: Levels, controllable: np.ndarray, target: np.ndarray, ledger: Ledger) -> Schedule:
    """The next T actions of a policy; dense on axes that a step cannot control.

    levels: what the levels of the policy's space realise in these steps, [N, T, levels] each. controllable: [N, T, 3]
    bool. target: [N, 3] float64 shares. ledger: what the rows have spent, arrays.
    """
    space, (rows, steps, _) = policy.space, controllable.shape
    actions, realised = np.empty((rows, steps), np.int64), np.empty((rows, steps, len(levels)))
    for step in range(steps):
        now, on = tuple(axis[:, step] for axis in levels), controllable[:, step]
        actions[:, step] = space.controlled(policy.act(target, ledger, now), on)
        index = space.levels[actions[:, step]]
        realised[:, step] = np.stack([take(axis, index[:, number]) for number, axis in enumerate(now)], 1)
        ledger = ledger.add(realised[:, step], on)
    return Schedule(actions, realised, ledger)
