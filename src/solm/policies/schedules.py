"""Schedules that do not read the model: dense, static, random, replay. The baselines, on the policy's own terms."""

from abc import ABC, abstractmethod

import numpy as np
import torch

from solm.core.actions import ActionSpace
from solm.policies.protocol import Count, Observation


class BlindSchedule:
    """A schedule that depends on budget and ledger alone and keeps no state of its own."""

    reads_model = False

    def __init__(self, space: ActionSpace):
        self.space = space

    def start(self, rows: int, device: torch.device) -> None:
        return None


class Dense(BlindSchedule):
    """Every step dense: the reference."""

    def act(
        self, observation: Observation, state: None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, None]:
        return torch.full_like(observation.previous, self.space.dense_index), None


class _TwoLevel(BlindSchedule, ABC):
    """Per axis, the two grid levels whose realised shares enclose the target, and a rule to choose between them."""

    def act(
        self, observation: Observation, state: None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, None]:
        action = np.zeros(len(observation.target), dtype=np.int64)
        target, spent = observation.target.numpy(), observation.ledger.spent.numpy()
        steps, rows = observation.ledger.steps.numpy(), np.arange(len(action))
        for axis, shares in enumerate(observation.levels):
            levels = shares.numpy()
            size = levels.shape[1]
            below = ((levels <= target[:, axis, None] + 1e-12).sum(1) - 1).clip(0, max(0, size - 2))
            above = (below + 1).clip(max=size - 1)
            low, high = levels[rows, below], levels[rows, above]
            take_high = self._choose(
                low, high, spent[:, axis], target[:, axis], steps, observation.remaining, generator
            )
            action = action * size + np.where(take_high, above, below)
        return torch.from_numpy(action), None

    @abstractmethod
    def _choose(
        self,
        low: np.ndarray,
        high: np.ndarray,
        spent: np.ndarray,
        target: np.ndarray,
        steps: np.ndarray,
        remaining: Count,
        generator: torch.Generator | None,
    ) -> np.ndarray:
        """Whether each row takes the higher of its two levels, of realised shares low and high [N]: [N] bool."""


class Static(_TwoLevel):
    """Uniform allocation, matched exactly: the level that leaves the smaller running residual.

    Over a run of T steps the average misses the target by at most half the distance of the two levels over T.
    """

    def _choose(self, low, high, spent, target, steps, remaining, generator):  # type: ignore[no-untyped-def]
        goal = target * (steps + 1)
        return abs(spent + high - goal) < abs(spent + low - goal)


class Random(_TwoLevel):
    """A uniformly random permutation of the matched two-level schedule, drawn without replacement step by step."""

    def _choose(self, low, high, spent, target, steps, remaining, generator):  # type: ignore[no-untyped-def]
        goal = target * (steps + remaining)
        # High levels still to place, rounded once to a whole number so that the last steps are certain.
        gap = np.maximum(high - low, 1e-12)
        place = np.round((goal - spent - low * remaining) / gap).clip(0, remaining)
        draw = torch.rand(len(low), generator=generator, dtype=torch.float64).numpy()
        return (draw < place / remaining) & (high > low)


class Replay(BlindSchedule):
    """A schedule given in advance: actions [N, T] int64. Steps after T repeat the last one."""

    def __init__(self, space: ActionSpace, actions: torch.Tensor):
        super().__init__(space)
        self.actions = actions

    def act(
        self, observation: Observation, state: None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, None]:
        return self.actions[:, min(observation.step, self.actions.shape[1] - 1)], None
