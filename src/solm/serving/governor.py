"""Holds a time per token under load: lowers budgets first, then the number of rows that decode together.

The paper leaves run-time budgets to future work (its section on limitations). A governed row keeps its policy. Its
budget changes for the steps to come, between the request's own and its floor.
"""

import time
from collections.abc import Callable

_SMOOTHING = 0.03
"""Weight of the latest gap in the mean. Small, so that a prompt that is read every dozen steps makes no peak."""
_GAIN = 0.05
"""Change of the dial per step at a time per token twice, or half, the objective."""
_LONGEST_CHANGE = 0.1
_STEPS_PER_ROW_CHANGE = 32
_MARGIN = 0.9
"""The mean is held at this share of the objective, so that the 95th percentile meets the objective."""


class Governor:
    """An integral controller on the smoothed time between tokens.

    objective: seconds per token, None: budgets are left alone. max_rows: rows that may decode together. hold_rows:
    whether to decode fewer rows where budgets at their floors are not enough. clock: a function that returns seconds.
    """

    def __init__(
        self,
        objective: float | None,
        max_rows: int,
        hold_rows: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.objective, self.max_rows, self.hold_rows, self.clock = objective, max_rows, hold_rows, clock
        self.dial = 1.0
        self.rows = max_rows
        self.seconds: float | None = None
        """Smoothed time between tokens, prompts that are read in between included."""
        self._since_change = 0
        self._last: float | None = None

    def idle(self) -> None:
        """No row decodes: the time until the next step does not count as time per token."""
        self._last = None

    def stepped(self, rows: int) -> None:
        """Called after every step of `rows` rows."""
        now, last = self.clock(), self._last
        self._last = now
        if last is None:
            return
        gap = now - last
        self.seconds = gap if self.seconds is None else self.seconds + _SMOOTHING * (gap - self.seconds)
        if self.objective is None:
            return
        slack = (self.objective * _MARGIN - self.seconds) / self.objective
        change = max(-_LONGEST_CHANGE, min(_LONGEST_CHANGE, _GAIN * slack))
        self.dial = min(1.0, max(0.0, self.dial + change))
        self._since_change += 1
        if self.hold_rows and self._since_change >= _STEPS_PER_ROW_CHANGE:
            self._change_rows(rows)

    def _change_rows(self, rows: int) -> None:
        assert self.seconds is not None
        assert self.objective is not None
        aim = self.objective * _MARGIN
        if self.dial == 0 and self.seconds > aim and rows > 1:
            self.rows, self._since_change = max(1, min(rows - 1, int(rows * aim / self.seconds))), 0
        elif self.rows < self.max_rows and rows >= self.rows and self.seconds * (rows + 1) / rows < aim:
            self.rows, self._since_change = self.rows + 1, 0

    def dial_for(self, deadline: float | None, now: float, left: int) -> float:
        """The dial of a row with `left` tokens to go until `deadline` (seconds on the clock)."""
        if deadline is None or self.seconds is None or left < 1:
            return self.dial
        allowed = (deadline - now) / left
        return self.dial if allowed >= self.seconds else min(self.dial, max(0.0, 2 * allowed / self.seconds - 1))
