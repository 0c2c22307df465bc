"""What a policy sees before a step, and the protocol every policy answers."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from solm.core.actions import ActionSpace
from solm.core.budget import Ledger

Count = int | np.ndarray
SCALARS = 8
_PRIOR_SHARPNESS = 3.0


@dataclass(frozen=True)
class Observation:
    """The state of N rows before their next step.

    Args:
        hidden: [N, H] last-layer hidden state of the previous step; embedding: [N, H] of the token about to be
            processed. None for policies that do not read the model.
        target: [N, 3] float64 budget shares. ledger: what was spent.
        levels: per axis [N, levels] float64, the share that each of its levels would realise at this step.
        step: steps taken so far, of all rows or [N] of each. horizon: steps in all, likewise; it is what progress and
            feasibility refer to.
        controllable: [N] bool. previous: [N] int64 action of the previous step (dense at first).
        later: lowest and highest average share [N, 3] that the steps after this one can realise; None: this one's.
    """

    hidden: torch.Tensor | None
    embedding: torch.Tensor | None
    target: torch.Tensor
    ledger: Ledger
    levels: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    step: Count
    horizon: Count
    controllable: torch.Tensor
    previous: torch.Tensor
    later: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def remaining(self) -> Count:
        """Steps left, this one included."""
        return np.maximum(1, self.horizon - self.step)

    def scalars(self) -> torch.Tensor:
        """[N, 8] float32: progress, controllable flag, three targets, three ledger deviations."""
        rows = len(self.target)
        done = np.minimum(1.0, np.broadcast_to(self.step / self.horizon, (rows,)))
        progress = torch.from_numpy(done.astype(np.float64))[:, None]
        flag = self.controllable[:, None].to(torch.float64)
        parts = [progress.to(flag.device), flag, self.target, self.ledger.deviation(self.target)]
        return torch.cat(parts, dim=1).float()


class Policy(Protocol):
    """Decides the action of every row, step by step.

    A policy with `reads_model` False depends on budget and ledger alone, so its whole schedule can be known before
    the model runs and be scored in one pass.
    """

    space: ActionSpace
    reads_model: bool

    def start(self, rows: int, device: torch.device) -> Any:
        """The state of `rows` new rows."""

    def act(self, observation: Observation, state: Any, generator: torch.Generator | None) -> tuple[torch.Tensor, Any]:
        """Action indices [N] int64 and the next state."""


def budget_prior(observation: Observation) -> torch.Tensor:
    """Log-odds [N, A] float32 of a schedule that knows the budget and nothing else.

    Per axis the running residual says what share this step should realise for the average to be on target; levels
    lose the square of their distance to it, on a scale where the axis's range is 1. Taking the best level would be
    `Static`. A policy that adds what it learns to this keeps budgets from its first update on, starts as well as
    the strongest blind schedule, and spends its learning on where compute goes rather than on how much.
    """
    parts = []
    for axis, levels in enumerate(observation.levels):
        span = levels[:, -1:] - levels[:, :1]
        due = observation.target[:, axis] * (observation.ledger.steps + 1) - observation.ledger.spent[:, axis]
        distance = (levels - due[:, None]) / span.clamp(min=1e-9)
        parts.append(torch.where(span > 1e-9, -_PRIOR_SHARPNESS * distance**2, 0.0))
    attention, mlp, bits = parts
    grid = attention[:, :, None, None] + mlp[:, None, :, None] + bits[:, None, None, :]
    return grid.flatten(1).float()


def feasible_levels(observation: Observation) -> list[np.ndarray]:
    """Per axis [N, levels] bool: levels after which the budget can still be met by the horizon.

    Where no level of an axis can meet it any more, the levels that miss it least.
    """
    allowed = []
    left = np.reshape(observation.remaining - 1, (-1, 1))
    steps = (observation.ledger.steps.numpy() + observation.remaining)[:, None]
    target, booked = observation.target.numpy(), observation.ledger.spent.numpy()
    later = None if observation.later is None else [bound.numpy() for bound in observation.later]
    for axis, shares in enumerate(observation.levels):
        levels = shares.numpy()
        low, high = (levels[:, :1], levels[:, -1:]) if later is None else (bound[:, axis, None] for bound in later)
        goal, spent = target[:, axis, None] * steps, booked[:, axis, None] + levels
        miss = np.maximum(spent + left * low - goal, 0) + np.maximum(goal - spent - left * high, 0)
        allowed.append(miss <= miss.min(1, keepdims=True) + 1e-9)
    return allowed


def feasible(observation: Observation) -> torch.Tensor:
    """[N, A] bool: actions whose levels are all feasible."""
    attention, mlp, bits = feasible_levels(observation)
    grid = attention[:, :, None, None] & mlp[:, None, :, None] & bits[:, None, None, :]
    return torch.from_numpy(grid.reshape(len(grid), -1))
