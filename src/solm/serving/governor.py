"""Holds a time per token under load: budgets fall, of low priorities before others, and prompts wait.

The paper leaves run-time budgets to future work (its section on limitations). A governed row keeps its policy. Its
budget changes for the steps to come, between the request's own and its floor. Budgets are lowered where that is
measured to make steps faster, see `solm.serving.savings`. A prompt waits until the replies that decode can spare the
time, and as long as one row more would make steps too long at the lowest budgets, see `solm.serving.admission`.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence

from solm.serving.admission import Admission, Progress
from solm.serving.savings import Savings
from solm.serving.settings import PRIORITIES

_SMOOTHING = 0.03
"""Weight of the latest gap in the mean. Small, so that a prompt that is read every dozen steps makes no peak."""
_GAIN = 0.05
"""Change of the pressure per step at a time per token twice, or half, the objective."""
_LONGEST_CHANGE = 0.1
_FORGETS = 5.0
"""Seconds without a row after which what was learnt of the load is forgotten."""
_MARGIN = 0.9
"""Budgets hold the mean at this share of the objective, so that the 95th percentile meets the objective."""
_ADMITTED = 0.99
"""Prompts are read as long as every reply stays below this share of the objective."""
_ROUNDING = 1e-9
_WORTH = 0.05
"""Share of a step's time that the floors must save for budgets to be lowered."""


class Governor:
    """An integral controller on the smoothed time between tokens.

    objective: seconds per token, None: budgets are left alone. max_rows: rows that may decode together. hold_rows:
    whether prompts wait. clock: a function that returns seconds.
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
        self.seconds: float | None = None
        """Smoothed time between tokens, prompts that are read in between included."""
        self.savings = Savings()
        self._whole, self._owed = [1.0] * len(PRIORITIES), [0.0] * len(PRIORITIES)
        self._admission = Admission(max_rows)
        self._reading = 0.0
        """Seconds in which prompts were read since the last step."""
        self._no_row = self._no_time = False
        """Whether a prompt has had to wait since the last step: for room for its row, or for time to read it."""
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

    @property
    def rows(self) -> int:
        """How many rows may decode together now."""
        self._forget()
        if self.objective is None or not self.hold_rows:
            return self.max_rows
        return self._admission.most(self.objective * _ADMITTED)

    def may_read(self, tokens: int, replies: Iterable[Progress], joins: bool = True) -> bool:
        """Whether so many tokens of a prompt may be read now, beside replies that decode. joins: they are the first of
        their prompt, so that there is one reply more from then on."""
        replies = list(replies)
        if not replies:
            return True
        if joins and len(replies) >= self.max_rows:
            return False
        if self.objective is None or not self.hold_rows:
            return True
        aim = self.objective * _ADMITTED
        step = self._admission.step(len(replies) + joins)
        self._no_row = aim < step < math.inf
        self._no_time = not self._admission.spared(aim, tokens, replies)
        return step <= aim and not self._no_time

    def was_read(self, tokens: int, seconds: float) -> None:
        """Called after so many tokens of a prompt were read in `seconds`; 0 where they say nothing of other prompts."""
        self._reading += seconds
        if tokens:
            self._admission.was_read(tokens, seconds)

    def idle(self) -> None:
        """No row decodes: the time until the next step does not count as time per token."""
        if self._idle_since is None:
            self._idle_since = self.clock()
        self._forget()
        self._last, self._reading = None, 0.0
        self.savings.cancel()

    def _forget(self) -> None:
        """After a while without a row, begin as a server that has just started."""
        if self._idle_since is None or self.clock() - self._idle_since < _FORGETS:
            return
        self.pressure, self.seconds = 0.0, None
        self._whole, self._owed = [1.0] * len(PRIORITIES), [0.0] * len(PRIORITIES)
        self._admission.forget_steps()

    def stepped(self, rows: int, lowerable: Sequence[int], seconds: float) -> None:
        """Called after every step of `rows` rows, which took `seconds`. lowerable: by rank of their priority how many
        of the rows have a floor below their budget."""
        self._forget()
        now, last, reading = self.clock(), self._last, self._reading
        self._last, self._idle_since, self._reading = now, None, 0.0
        if last is None:
            return
        gap = now - last
        self.seconds = gap if self.seconds is None else self.seconds + _SMOOTHING * (gap - self.seconds)
        if self.objective is None:
            return
        self._admission.stepped(rows, gap - reading)
        self.savings.stepped(rows, sum(lowerable), seconds)
        if self.savings.measuring:
            return
        self._adjust(rows, lowerable)
        self._no_row = self._no_time = False
        for rank, dial in enumerate(self.dials):
            self._owed[rank] += dial
            self._whole[rank] = float(self._owed[rank] >= 1 - _ROUNDING)
            self._owed[rank] -= self._whole[rank]

    def _adjust(self, rows: int, lowerable: Sequence[int]) -> None:
        """Change the pressure after a step, see `stepped`."""
        assert self.objective is not None
        assert self.seconds is not None
        slack = (self.objective * _MARGIN - self.seconds) / self.objective
        saved = self.savings.of(rows, sum(lowerable))
        if saved is None and any(lowerable) and (self._no_row or slack < 0):
            self.savings.begin()
            return
        floors = max((rank + 1 for rank, count in enumerate(lowerable) if count), default=0)
        if not floors or (saved is not None and saved < _WORTH):
            self.pressure = 0.0
        else:
            change = max(-_LONGEST_CHANGE, min(_LONGEST_CHANGE, -_GAIN * slack))
            if self._no_row:  # lower budgets make room for it
                change = _LONGEST_CHANGE
            elif self._no_time:
                change = max(0.0, change)
            self._press(change, lowerable, floors)

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
