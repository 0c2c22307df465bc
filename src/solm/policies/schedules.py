"""Schedules that do not read the model: dense, static, random. The baselines of every comparison."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from solm.core.actions import ActionSpace
from solm.core.arrays import as_numpy, in_kind
from solm.core.sparsity import SparsityConfig
from solm.policies.protocol import SHORTEST_HORIZON, Count, Observation, due_share

if TYPE_CHECKING:
    import torch


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


class BlindSchedule:
    """A schedule that depends on budget and ledger alone and keeps no state of its own."""

    reads_model = False

    def __init__(self, space: ActionSpace):
        self.space = space

    def start(self, rows: int, device: "torch.device") -> None:
        return None


class Dense(BlindSchedule):
    """Every step dense: the reference."""

    def act(self, observation: Observation, state: None, generator: "torch.Generator | None") -> tuple[Any, None]:
        previous = observation.previous
        return in_kind(np.full(len(previous), self.space.dense_index), previous), None


class _TwoLevel(BlindSchedule, ABC):
    """Per axis the two levels whose realised shares enclose the target, and a rule to choose between them."""

    def act(self, observation: Observation, state: None, generator: "torch.Generator | None") -> tuple[Any, None]:
        action = np.zeros(len(observation.target), dtype=np.int64)
        target, ledger = as_numpy(observation.target), observation.ledger
        spent, steps = as_numpy(ledger.spent), as_numpy(ledger.steps)
        draws = self._drawn(observation)
        for axis, shares in enumerate(observation.levels):
            levels = as_numpy(shares)
            if levels.shape[1] == 1:
                continue
            aim = self._aim(target[:, axis], spent[:, axis], steps[:, axis], observation.remaining)
            lower, upper = two_levels(levels, aim)
            take_upper = self._choose(
                take(levels, lower), take(levels, upper), spent[:, axis], target[:, axis], steps[:, axis],
                observation.remaining, draws[:, axis],
            )  # fmt: skip
            action = action * levels.shape[1] + np.where(take_upper, upper, lower)
        return in_kind(action, observation.target), None

    def _aim(self, target: np.ndarray, spent: np.ndarray, steps: np.ndarray, remaining: Count) -> np.ndarray:
        """[N]: the share that the two levels lie around."""
        return target

    def _drawn(self, observation: Observation) -> np.ndarray:
        """[N, axes] numbers in [0, 1), where the rule draws."""
        return np.zeros(observation.target.shape)

    @abstractmethod
    def _choose(
        self,
        low: np.ndarray,
        high: np.ndarray,
        spent: np.ndarray,
        target: np.ndarray,
        steps: np.ndarray,
        remaining: Count,
        drawn: np.ndarray,
    ) -> np.ndarray:
        """[N] bool: whether each row takes the higher of its two levels, which realise the shares low and high [N]."""


class Static(_TwoLevel):
    """The level after which the sum of realised shares is closest to target times steps.

    Over a run of T steps the average misses the target by at most half the distance of the two levels over T.
    """

    def _choose(self, low, high, spent, target, steps, remaining, drawn):  # type: ignore[no-untyped-def]
        goal = target * (steps + 1)
        return abs(spent + high - goal) < abs(spent + low - goal)


class Paced(Static):
    """Static where a level's share is only an expectation, as under thresholds: the two levels lie around the share
    that is due to be back at the target within a few steps."""

    def _aim(self, target: np.ndarray, spent: np.ndarray, steps: np.ndarray, remaining: Count) -> np.ndarray:
        return np.asarray(due_share(target, spent, steps, SHORTEST_HORIZON)).clip(0, 1)

    def _choose(self, low, high, spent, target, steps, remaining, drawn):  # type: ignore[no-untyped-def]
        due = self._aim(target, spent, steps, remaining)
        return abs(high - due) < abs(low - due)


def static(space: ActionSpace, sparsity: SparsityConfig) -> Static:
    """The static schedule that meets budgets under `sparsity`."""
    return Static(space) if sparsity.thresholds is None else Paced(space)


class Random(_TwoLevel):
    """The levels of the static schedule in a uniformly random order, drawn without replacement step by step.

    What is drawn depends on `seed`, on the number of steps taken and on the row's place alone, so that there is no
    state.
    """

    def __init__(self, space: ActionSpace, seed: int = 0):
        super().__init__(space)
        self.seed = seed % (1 << 64)

    def _drawn(self, observation: Observation) -> np.ndarray:
        rows, axes = observation.target.shape
        found = np.empty((rows, axes))
        for place, step in enumerate(np.broadcast_to(observation.step, (rows,)).tolist()):
            bits = np.random.PCG64([self.seed, 1, place] if place else [self.seed, 1])
            found[place] = np.random.Generator(bits.advance(axes * step)).random(axes)
        return found

    def _choose(self, low, high, spent, target, steps, remaining, drawn):  # type: ignore[no-untyped-def]
        goal = target * (steps + remaining)
        # How often the higher level is still to be taken, rounded once so that the last steps are certain.
        gap = np.maximum(high - low, 1e-12)
        count = np.round((goal - spent - low * remaining) / gap).clip(0, remaining)
        return (drawn < count / remaining) & (high > low)
