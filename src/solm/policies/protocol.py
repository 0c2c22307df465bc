"""What a policy sees before a step, and the protocol that every policy follows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from solm.core.actions import ActionSpace
from solm.core.arrays import AnyArray
from solm.core.budget import Ledger

if TYPE_CHECKING:
    import torch

Count = int | np.ndarray
"""A number of steps: the same for all rows, or [N] int64."""
SCALARS = 8
"""Numbers in `Observation.scalars`."""
SHORTEST_HORIZON = 8
"""Steps over which a deviation from the budget is made good, even where fewer are left."""
_PRIOR_SHARPNESS = 3.0


@dataclass(frozen=True)
class Observation:
    """The state of N rows before their next step.

    Args:
        hidden: [N, H] last-layer hidden state of the previous step; embedding: [N, H] of the token about to be
            processed. None for policies that do not read the model.
        target: [N, 3] float64 budget shares. ledger: what was spent.
        levels: per axis [N, levels] float64, the share that each of its levels would realise at this step.
        step: steps taken so far; horizon: steps that the budget is meant for.
        controllable: [N, 3] bool, per axis; on others the step is dense, whatever is decided.
        previous: [N] int64 action of the previous step (dense at first).

    All are tensors, but for the policies of `solm.policies.schedules`, which get arrays where no tensor is at hand.
    """

    hidden: "torch.Tensor | None"
    embedding: "torch.Tensor | None"
    target: "torch.Tensor"
    ledger: Ledger
    levels: "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"
    step: Count
    horizon: Count
    controllable: "torch.Tensor"
    previous: "torch.Tensor"

    @property
    def remaining(self) -> Count:
        """Steps left, this one included; at least 1."""
        return np.maximum(1, self.horizon - self.step)

    def scalars(self) -> "torch.Tensor":
        """[N, 8] float32: progress, whether attention is controllable, three targets, three ledger deviations."""
        import torch

        rows = len(self.target)
        done = np.minimum(1.0, np.broadcast_to(self.step / self.horizon, (rows,)))
        progress = torch.from_numpy(done.astype(np.float64))[:, None]
        flag = self.controllable[:, :1].to(torch.float64)
        parts = [progress.to(flag.device), flag, self.target, self.ledger.deviation(self.target)]
        return torch.cat(parts, dim=1).float()


class PolicyState(Protocol):
    """What a policy remembers of N rows."""

    def rows(self, index: "torch.Tensor") -> Self:
        """The state of rows index [n] int64; an index may occur several times, as forks of a row do."""


class Policy(Protocol):
    """Decides the action of every row, step by step.

    A policy with `reads_model` False depends on budget and ledger alone: its whole schedule can be found before the
    model runs (`solm.policies.unroll`), and all steps be scored in one pass.
    """

    space: ActionSpace
    reads_model: bool

    def start(self, rows: int, device: "torch.device") -> Any:
        """The state of `rows` new rows: a `PolicyState`, or None for a policy that remembers nothing."""

    def act(
        self, observation: Observation, state: Any, generator: "torch.Generator | None"
    ) -> "tuple[torch.Tensor, Any]":
        """Action indices [N] int64 and the next state."""


def due_share(target: AnyArray, spent: AnyArray, steps: AnyArray, horizon: AnyArray | int) -> AnyArray:
    """The average share that the next `horizon` steps must realise for the average over all steps to be `target`.

    target: share requested; spent: sum of the shares realised in the `steps` counted so far. NumPy arrays or tensors of
    any shapes that broadcast.
    """
    due: AnyArray = (target * (steps + horizon) - spent) / horizon
    return due


def budget_prior(observation: Observation) -> "torch.Tensor":
    """Log-odds [N, A] float32 of a schedule that knows the budget and nothing else.

    Per axis the score of a level is minus the squared distance between the share it realises and the share that is due
    at this step, where the axis's range is 1. The best action is that of `Static`. A network whose output is added to
    this meets its budgets from the first update on and starts as good as the static schedule.
    """
    import torch

    parts = []
    for axis, levels in enumerate(observation.levels):
        span = levels[:, -1:] - levels[:, :1]
        ledger = observation.ledger
        due = due_share(observation.target[:, axis], ledger.spent[:, axis], ledger.steps[:, axis], 1)
        distance = (levels - due[:, None]) / span.clamp(min=1e-9)
        parts.append(torch.where(span > 1e-9, -_PRIOR_SHARPNESS * distance**2, 0.0))
    attention, mlp, bits = parts
    grid = attention[:, :, None, None] + mlp[:, None, :, None] + bits[:, None, None, :]
    return grid.flatten(1).float()


def feasible_levels(
    levels: np.ndarray,
    target: np.ndarray,
    spent: np.ndarray,
    counted: np.ndarray,
    remaining: Count,
    later: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """[N, L] bool: levels of one axis after which the budget can still be met by the horizon.

    Where no level can meet it any more, the levels that miss it least.

    levels: [N, L] shares realised at this step. target, spent [N]: share asked for, and sum of shares over `counted`
    steps [N]. remaining: steps left, this one included. later: [N] lowest and highest average share that the steps
    after this one can realise.
    """
    left = np.reshape(np.asarray(remaining) - 1, (-1, 1))
    goal = target[:, None] * (counted + remaining)[:, None]
    total = spent[:, None] + levels
    low, high = (bound[:, None] for bound in later)
    miss = np.maximum(total + left * low - goal, 0) + np.maximum(goal - total - left * high, 0)
    return np.asarray(miss <= miss.min(1, keepdims=True) + 1e-9)


def feasible(observation: Observation) -> "torch.Tensor":
    """[N, A] bool: actions whose levels are all feasible, if later steps can realise what this one can."""
    import torch

    target, ledger = observation.target.numpy(), observation.ledger
    parts = []
    for axis, shares in enumerate(observation.levels):
        levels = shares.numpy()
        parts.append(
            feasible_levels(
                levels, target[:, axis], ledger.spent[:, axis].numpy(), ledger.steps[:, axis].numpy(),
                observation.remaining, (levels[:, 0], levels[:, -1]),
            )
        )  # fmt: skip
    attention, mlp, bits = parts
    grid = attention[:, :, None, None] & mlp[:, None, :, None] & bits[:, None, None, :]
    return torch.from_numpy(grid.reshape(len(grid), -1))
