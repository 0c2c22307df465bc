"""What the next step of every row may spend."""

from collections.abc import Sequence

import numpy as np

from solm.backends.session import Session
from solm.runtime.language_model import LanguageModel
from solm.serving.governor import Governor
from solm.serving.rows import Row


class Targets:
    """The budgets of rows as governor, deadlines and the size of the batch leave them.

    With more rows than `Backend.skipping_rows` steps that skip channels lose quality and save no time. As long as a
    batch is that large, the budgets of its rows for channels are 1. Later steps do not make up for what is spent then.
    always_skip: budgets stay as they are.
    """

    def __init__(self, lm: LanguageModel, governor: Governor, always_skip: bool = False):
        self.governor = governor
        self._skipping_rows = None if always_skip else lm.backend.skipping_rows
        self._whole_bits = lm.sparsity.bits_site == "weights"  # a step reads them for all its rows, or in full

    def set(self, session: Session, rows: Sequence[Row], now: float) -> None:
        """Tell the session of `rows` what their next step may spend. now: seconds, on the scheduler's clock."""
        governor = self.governor
        if governor.objective is not None or any(row.job.deadline is not None for row in rows):
            for row in rows:
                dial, whole = governor.dials_for(row.job.order.rank, row.job.deadline, now, row.left)
                row.allow(dial, whole if self._whole_bits else dial)
        if self._skipping_rows is None or len(rows) <= self._skipping_rows:
            targets = [row.target for row in rows]
        else:
            targets = [(row.target[0], 1.0, row.target[2]) for row in rows]
        if any(target != row.aimed for target, row in zip(targets, rows, strict=True)):
            session.aim(np.array(targets))
            for target, row in zip(targets, rows, strict=True):
                row.aimed = target
