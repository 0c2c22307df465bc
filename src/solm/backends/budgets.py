"""The budget state of a session's rows: one record a row, for both backends.

The compiled engine reads and writes these records directly (`RowState` in csrc), so nothing is mirrored.
"""

import numpy as np
import torch

from solm.core.budget import Ledger

ROW_STATE = np.dtype(
    [
        ("decider", np.uint64),
        *((name, np.float64, 3) for name in ("target", "spent", "early", "shift")),
        *((name, np.int64) for name in ("counted", "taken", "horizon", "previous")),
    ]
)
"""One record per row; shares (attention, mlp, bits / 16) are float64 [3].

decider: address of the policy in the engine's terms, 0 where the engine does not decide. target: average shares that
the budget allows. spent: realised shares, summed over the controllable steps. early: the same for the layers before a
priced policy's, as if they were the whole model. shift: what `aim` has added to spent. counted: number of controllable
steps. taken: number of all steps. horizon: steps that the budget is meant for. previous: index of the last action.
"""


def open_budgets(
    target: torch.Tensor,
    horizon: int,
    previous: int,
    ledger: Ledger | None = None,
    early: torch.Tensor | None = None,
) -> np.ndarray:
    """Records [N] for target [N, 3] float64 shares over `horizon` steps.

    ledger, early [N, 3] float64: what the rows have spent before; by default nothing.
    """
    state = np.zeros(len(target), ROW_STATE)
    state["target"], state["horizon"], state["previous"] = target.numpy(), horizon, previous
    if ledger is not None:
        state["spent"], state["counted"] = ledger.spent.numpy(), ledger.steps.numpy()
    if early is not None:
        state["early"] = early.numpy()
    return state


def uncontrolled(rows: int) -> np.ndarray:
    """Records [N] of rows without a policy."""
    return open_budgets(torch.ones(rows, 3, dtype=torch.float64), 1, 0)


def aim(state: np.ndarray, target: torch.Tensor) -> None:
    """Let target [N, 3] hold from here on. What was spent before is moved by what targets differ, so that decisions see
    it against what was allowed then."""
    moved = (target.numpy() - state["target"]) * state["counted"][:, None]
    for name in ("spent", "early", "shift"):
        state[name] += moved
    state["target"] = target.numpy()


def add(state: np.ndarray, realised: torch.Tensor, controllable: torch.Tensor) -> None:
    """Add Q steps of realised [N, Q, 3] shares, of which those marked controllable [N, Q] count."""
    counted = controllable.numpy()
    state["spent"] += (realised.numpy() * counted[..., None]).sum(1)
    state["counted"] += counted.sum(1)
    state["taken"] += realised.shape[1]


def ledger_of(state: np.ndarray) -> Ledger:
    """What rows have really spent, as a copy."""
    return Ledger(torch.from_numpy(state["spent"] - state["shift"]), torch.from_numpy(state["counted"].copy()))
