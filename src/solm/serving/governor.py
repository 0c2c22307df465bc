"""Holds a time per token under load: budgets fall first, of low priorities before others, and only then fewer rows
decode together.

The paper leaves run-time budgets to future work (its section on limitations). A governed row keeps its policy. Its
budget changes for the steps to come, between the request's own and its floor. Budgets are lowered where that is
measured to make steps faster, see `solm.serving.savings`; elsewhere they are left alone, and rows are held back at
once.
"""

import time
from collections.abc import Callable, Sequence

from solm.serving.savings import Savings
from solm.serving.settings import PRIORITIES

_SMOOTHING = 0.03
"""Weight of the latest gap in the mean. Small, so that a prompt that is read every dozen steps makes no peak."""
_GAIN = 0.05
"""Change of the pressure per step at a time per token twice, or half, the objective."""
_LONGEST_CHANGE = 0.1
_STEPS_PER_ROW_CHANGE = 32
_FIRST_RETRY, _LAST_RETRY = 64, 512
"""After so many steps a number of rows that took too long is tried again: soon, because a few prompts in a row look
like too many rows; then each time after twice as many."""
_FORGETS = 5.0
"""Seconds without a row after which what was learnt of the load is forgotten."""
_MARGIN = 0.9
"""The mean is held at this share of the objective, so that the 95th percentile meets the objective."""
_ROUNDING = 1e-9
_WORTH = 0.05
"""Share of a step's time that the floors must save for budgets to be lowered."""


class Governor:
    """An integral controller on the smoothed time between tokens.

    objective: seconds per token, None: budgets are left alone. max_rows: rows that may decode together. hold_rows:
    whether to decode fewer rows where lower budgets are not enough. clock: a function that returns seconds.
    """

    def __init__(
        self,
        objective: float | None,
        max_rows: int,
        hold_rows: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.objective, self.max_rows, self.hold_rows, self.clock = objective, max_rows, hold_rows, clock
        self.pressure = 0.0
        """How far budgets are lowered: from 0 to 1 those of the lowest priority, from 1 to 2 those of the next."""
        self.rows = max_rows
        self.seconds: float | None = None
        """Smoothed time between tokens, prompts that are read in between included."""
        self.savings = Savings()
        self._whole, self._owed = [1.0] * len(PRIORITIES), [0.0] * len(PRIORITIES)
        self._since_change = self._steps = 0
        self._too_slow: dict[int, tuple[int, int]] = {}
        """Of a number of rows that took too long: the step at which it may be tried again, after how many that is."""
        self._last: float | None = None
        self._idle_since: float | None = None

    def dial(self, rank: int) -> float:
        """Where the budgets of a priority are: 1 as asked for, 0 at their floors."""
        self._forget()
        if self.savings.measuring:
            return 0.0 if self.savings.lowered else 1.0
        return min(1.0, max(0.0, rank + 1 - self.pressure))

    def whole_dial(self, rank: int) -> float:
        """The same of what saves time only where all rows of a step save it: 0 or 1, on average over steps the dial."""
        return self.dial(rank) if self.savings.measuring else self._whole[rank]

    def idle(self) -> None:
        """No row decodes: the time until the next step does not count as time per token."""
        if self._idle_since is None:
            self._idle_since = self.clock()
        self._forget()
        self._last = None
        self.savings.cancel()

    def _forget(self) -> None:
        """After a while without a row, begin as a server that has just started."""
        if self._idle_since is None or self.clock() - self._idle_since < _FORGETS:
            return
        self.pressure, self.rows, self.seconds = 0.0, self.max_rows, None
        self._whole, self._owed = [1.0] * len(PRIORITIES), [0.0] * len(PRIORITIES)
        self._too_slow.clear()

    def stepped(self, rows: int, lowerable: Sequence[int], seconds: float, waiting: int = 0) -> None:
        """Called after every step of `rows` rows, which took `seconds`.

        lowerable: by rank of their priority how many of the rows have a floor below their budget. waiting: jobs that
        wait for a place.
        """
        self._forget()
        now, last = self.clock(), self._last
        self._last, self._idle_since = now, None
        if last is None:
            return
        gap = now - last
        self.seconds = gap if self.seconds is None else self.seconds + _SMOOTHING * (gap - self.seconds)
        if self.objective is None:
            return
        self._since_change, self._steps = self._since_change + 1, self._steps + 1
        self.savings.stepped(rows, sum(lowerable), seconds)
        if self.savings.measuring:
            return
        self._adjust(rows, lowerable, waiting)
        for rank, dial in enumerate(self.dials):
            self._owed[rank] += dial
            self._whole[rank] = float(self._owed[rank] >= 1 - _ROUNDING)
            self._owed[rank] -= self._whole[rank]

    def _adjust(self, rows: int, lowerable: Sequence[int], waiting: int) -> None:
        """Change pressure and rows after a step, see `stepped`."""
        assert self.objective is not None
        assert self.seconds is not None
        slack = (self.objective * _MARGIN - self.seconds) / self.objective
        held = waiting > 0 and self.rows < self.max_rows and rows >= self.rows
        saved = self.savings.of(rows, sum(lowerable))
        if saved is None and any(lowerable) and (held or slack < 0):
            self.savings.begin()
            return
        floors = max((rank + 1 for rank, count in enumerate(lowerable) if count), default=0)
        if not floors or (saved is not None and saved < _WORTH):
            self.pressure, at_floors = 0.0, True
        else:
            # While rows wait that budgets could make room for, budgets stay low.
            change = _LONGEST_CHANGE if held else max(-_LONGEST_CHANGE, min(_LONGEST_CHANGE, -_GAIN * slack))
            self._press(change, lowerable, floors)
            at_floors = self.pressure >= floors
        if self.hold_rows and self._since_change >= _STEPS_PER_ROW_CHANGE:
            self._change_rows(rows, at_floors)

    def _press(self, change: float, lowerable: Sequence[int], floors: int) -> None:
        """Move the pressure, at most to where all rows are at their floors. Priorities without a row that can be
        lowered are passed over."""
        left = abs(change)
        while left > 0 and change > 0 and self.pressure < floors:
            rank = int(self.pressure)
            step = min(left, rank + 1 - self.pressure) if lowerable[rank] else 0.0
            self.pressure = rank + 1 if not lowerable[rank] or step < left else self.pressure + step
            left -= step
        while left > 0 and change < 0 and self.pressure > 0:
            rank = -int(-self.pressure // 1) - 1
            step = min(left, self.pressure - rank) if lowerable[rank] else 0.0
            self.pressure = float(rank) if not lowerable[rank] or step < left else self.pressure - step
            left -= step
        self.pressure = min(self.pressure, float(floors))

    def _change_rows(self, rows: int, at_floors: bool) -> None:
        assert self.seconds is not None
        assert self.objective is not None
        aim = self.objective * _MARGIN
        if at_floors and self.seconds > aim and rows > 1:
            wait = min(2 * self._too_slow.get(rows, (0, _FIRST_RETRY // 2))[1], _LAST_RETRY)
            self._too_slow[rows] = self._steps + wait, wait
            self.rows, self._since_change = max(1, min(rows - 1, int(rows * aim / self.seconds))), 0
        elif self.rows < self.max_rows and rows >= self.rows and self.seconds < aim and self._may_try(self.rows + 1):
            self.rows, self._since_change = self.rows + 1, 0

    def _may_try(self, rows: int) -> bool:
        """What they take cannot be told from what fewer do: much of a step does not depend on their number."""
        return self._steps >= self._too_slow.get(rows, (0, 0))[0]

    def dials_for(self, rank: int, deadline: float | None, now: float, left: int) -> tuple[float, float]:
        """The dial and the whole dial of a row with `left` tokens to go until `deadline` (seconds on the clock). The
        whole dial stays 0 or 1; where no time is left both are 0."""
        dial, whole = self.dial(rank), self.whole_dial(rank)
        if deadline is None or self.seconds is None or left < 1:
            return dial, whole
        allowed = (deadline - now) / left
        most = 1.0 if allowed >= self.seconds else max(0.0, 2 * allowed / self.seconds - 1)
        return min(dial, most), whole if most else 0.0

    @property
    def dials(self) -> list[float]:
        """By rank, as `dial`."""
        return [self.dial(rank) for rank in range(len(PRIORITIES))]
