"""Schedules that do not read the model: dense, static, random, replay. The baselines, on the policy's own terms."""

from abc import ABC, abstractmethod

import torch

from solm.actions import ActionSpace
from solm.policies.observation import Observation


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
        action = torch.zeros_like(observation.previous)
        for axis, levels in enumerate(observation.levels):
            size = levels.shape[1]
            target = observation.target[:, axis, None]
            below = ((levels <= target + 1e-12).sum(1, keepdim=True) - 1).clamp(0, max(0, size - 2))
            above = (below + 1).clamp(max=size - 1)
            low, high = levels.gather(1, below)[:, 0], levels.gather(1, above)[:, 0]
            spent = observation.ledger.spent[:, axis]
            take_high = self._choose(low, high, spent, observation, axis, generator)
            action = action * size + torch.where(take_high, above[:, 0], below[:, 0])
        return action, None

    @abstractmethod
    def _choose(
        self,
        low: torch.Tensor,
        high: torch.Tensor,
        spent: torch.Tensor,
        observation: Observation,
        axis: int,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Whether each row takes the higher of its two levels, of realised shares low and high [N]: [N] bool."""


class Static(_TwoLevel):
    """Uniform allocation, matched exactly: the level that leaves the smaller running residual.

    Over a run of T steps the average misses the target by at most half the distance of the two levels over T.
    """

    def _choose(self, low, high, spent, observation, axis, generator):  # type: ignore[no-untyped-def]
        goal = observation.target[:, axis] * (observation.ledger.steps + 1)
        return (spent + high - goal).abs() < (spent + low - goal).abs()


class Random(_TwoLevel):
    """A uniformly random permutation of the matched two-level schedule, drawn without replacement step by step."""

    def _choose(self, low, high, spent, observation, axis, generator):  # type: ignore[no-untyped-def]
        remaining = observation.remaining
        goal = observation.target[:, axis] * (observation.ledger.steps + remaining)
        # High levels still to place, rounded once to a whole number so that the last steps are certain.
        gap = (high - low).clamp(min=1e-12)
        place = torch.round((goal - spent - low * remaining) / gap).clamp(0, remaining)
        draw = torch.rand(len(low), generator=generator, dtype=torch.float64, device="cpu").to(low.device)
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
