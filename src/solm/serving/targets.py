"""What the next step of every row may spend."""

from solm.runtime.batch import Batch
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

    def set(self, batch: Batch[Row], now: float) -> None:
        """Tell the rows of `batch` what their next step may spend. now: seconds, on the scheduler's clock."""
        governor, rows = self.governor, batch.rows
        if governor.objective is not None or any(row.job.deadline is not None for row in rows):
            for row in rows:
                dial, whole = governor.dials_for(row.job.order.rank, row.job.deadline, now, row.left)
                row.allow(dial, whole if self._whole_bits else dial)
        if self._skipping_rows is None or len(rows) <= self._skipping_rows:
            batch.aim([row.granted for row in rows])
        else:
            batch.aim([(row.granted[0], 1.0, row.granted[2]) for row in rows])
