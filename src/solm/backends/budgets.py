"""The budget state of rows, as one record array that the compiled engine reads and writes directly."""

import numpy as np

ROW_STATE = np.dtype(
    [
        ("decider", np.uint64),
        *((name, np.float64, 3) for name in ("target", "spent", "early", "shift")),
        *((name, np.int64) for name in ("booked", "taken", "horizon", "previous")),
    ]
)
"""One record per row. Shares (attention, mlp, bits / 16) are float64 [3].

decider: address of the policy in the engine's terms, 0 for none. target: the average shares asked for. spent: realised
shares, summed over the booked steps. early: what the layers before the policy's would have spent as the whole model.
shift: bookkeeping of a changed target. booked: controllable steps. taken: all steps. horizon: steps that the budget is
meant for. previous: index of the last action.
"""
