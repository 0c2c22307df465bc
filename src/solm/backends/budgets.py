"""The budget state of a session's rows: one record a row, for both backends.

The compiled engine reads and writes these records directly (`RowState` in csrc), so nothing is mirrored.
"""

import numpy as np

from solm.core.actions import AXES
from solm.core.arrays import Array, as_numpy, as_tensor
from solm.core.budget import Ledger

ROW_STATE = np.dtype(
    [
        ("decider", np.uint64),
        *((name, np.float64, len(AXES)) for name in ("target", "spent", "expected", "early", "shift")),
        ("counted", np.int64, len(AXES)),
        *((name, np.int64) for name in ("taken", "horizon", "previous")),
    ]
)
"""One record per row; what is per axis (attention, mlp, bits) has [axes].

decider: address of the policy in the engine's terms, 0 where the engine does not decide. Shares per axis, bits / 16:
target, the averages that the budget allows; spent, realised ones, summed over the steps that could be controlled on the
axis; expected, those that a priced policy's prices were set for, likewise; early, those of the layers before the
policy's, as if they were the whole model; shift, what `aim` has added to spent. counted: number of those steps per
axis. taken: number of all steps. horizon: steps that the budget is meant for. previous: index of the last action.
"""


def open_budgets(
    target: Array,
    horizon: int | np.ndarray,
    previous: int,
    ledger: Ledger | None = None,
    early: Array | None = None,
) -> np.ndarray:
    """Records [N] for target [N, axes] float64 shares over `horizon` steps, one number or one a row.

    ledger, early [N, axes] float64: what the rows have spent before; by default nothing.
    """
    state = np.zeros(len(target), ROW_STATE)
    state["target"], state["horizon"], state["previous"] = as_numpy(target), horizon, previous
    if ledger is not None:
        state["spent"], state["counted"] = as_numpy(ledger.spent), as_numpy(ledger.steps)
        state["expected"] = state["spent"]
    if early is not None:
        state["early"] = as_numpy(early)
    return state


def uncontrolled(rows: int) -> np.ndarray:
    """Records [N] of rows without a policy."""
    return open_budgets(np.ones((rows, len(AXES))), 1, 0)


def aim(state: np.ndarray, target: Array) -> None:
    """Let target [N, axes] hold from here on. What was spent before is moved by what targets differ, so that decisions
    see it against what was allowed then."""
    target = as_numpy(target)
    moved = (target - state["target"]) * state["counted"]
    for name in ("spent", "expected", "early", "shift"):
        state[name] += moved
    state["target"] = target


def add(state: np.ndarray, realised: np.ndarray, controllable: np.ndarray, counts: np.ndarray | None = None) -> None:
    """Add Q steps of realised [N, Q, axes] shares, of which those marked controllable [N, Q, axes] count; of every row
    the first counts [N] (None: all)."""
    if counts is not None:
        controllable = controllable & (np.arange(realised.shape[1]) < counts[:, None])[..., None]
    state["spent"] += (realised * controllable).sum(1)
    state["counted"] += controllable.sum(1)
    state["taken"] += realised.shape[1] if counts is None else counts


def ledger_of(state: np.ndarray) -> Ledger:
    """What rows have really spent, as a copy: tensors."""
    return Ledger(as_tensor(state["spent"] - state["shift"]), as_tensor(state["counted"].copy()))
