"""Holds a time per token under load: budgets fall, of low priorities before others, and prompts wait.

The paper leaves run-time budgets to future work (its section on limitations). A governed row keeps its policy. Its
budget changes for the steps to come, between the request's own and its floor. Budgets are lowered where that is
measured to make steps faster (`Savings`): rows of a batch share the passes over the weights, so that a row that spends
less need not make the step shorter. A prompt waits until the replies that decode can spare the time, and as long as one
row more would make steps too long at the lowest budgets: reading it makes every reply wait, and with its own reply
every later step takes longer. A reply has time to spare where it took less than the objective per token so far. Only
such time is spent on prompts, so that each reply meets the objective at every token, and not just on average.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from solm.core.arrays import Array

_SMOOTHING = 0.03
"""Weight of the latest gap in the mean. Small, so that a prompt that is read every dozen steps makes no peak."""
_GAIN = 0.05
"""Change of the pressure per step at a time per token twice, or half, the objective."""
_LONGEST_CHANGE = 0.1
FORGETS = 5.0
"""Seconds without a row after which what was learnt of the load is forgotten."""
_MARGIN = 0.9
"""Budgets hold the mean at this share of the objective, so that the 95th percentile meets the objective."""
_ADMITTED = 0.99
"""Prompts are read as long as every reply stays below this share of the objective."""
_WORTH = 0.05
"""Share of a step's time that the floors must save for budgets to be lowered."""
_PAIRS = 32
"""Comparisons that make a measurement."""
_FEWEST = 8
"""Comparisons without which nothing was seen to be saved."""
_SURE_SHARE = 2 / 3
"""Share of the comparisons that must save as much: the median of noisy steps shows savings where there are none."""
_LONGEST = 128
"""Steps of a measurement, where the number of rows changes too often for as many comparisons."""
_SAVINGS_LAST = 4000
"""Steps after which a measurement is made anew."""
_WEIGHT = 0.05
"""Weight of the latest step in the time of its number of rows. The first ones count equally."""
_SURE = 4
"""Steps of a number of rows without which its time does not count: single ones are disturbed."""
_REMEMBERED = 512
"""Steps after which a number of rows that was not seen again is forgotten, so that one that took too long may be tried
again."""
_WEIGHT_OF_PROMPTS = 0.2 / 128
"""Weight of a token that was read in the time per token. Short stretches say little."""
_HORIZON = 256
"""Tokens in which a reply has to be able to make up for the time it lost. One that needs more is not waited for."""
_PATIENCE = 256
"""Steps without a stretch of a prompt after which one is read even if no reply can spare the time."""


class Progress(NamedTuple):
    """A reply so far. seconds: since its first token. tokens: after the first one. left: that it may still have."""

    seconds: float
    tokens: int
    left: int


class StepTimes:
    """Seconds of a step by its number of rows, at most `most`, as measured lately."""

    def __init__(self, most: int):
        self._seconds = np.full(most + 1, np.nan)
        self._seen = np.zeros(most + 1, dtype=np.int64)
        self._last = np.zeros(most + 1, dtype=np.int64)
        self._steps = 0
        self._line: Array | None = None

    def add(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`. Times of other numbers of rows change by the same factor: budgets,
        contexts and other processes change them all."""
        self._steps, self._line = self._steps + 1, None
        if self._seen[rows]:
            ratio = seconds / self._seconds[rows]
            own = self._seconds[rows] * ratio ** max(_WEIGHT, 1 / (self._seen[rows] + 1))
            if self._seen[rows] >= _SURE:
                self._seconds *= ratio**_WEIGHT
            self._seconds[rows] = own
        else:
            self._seconds[rows] = seconds
        self._seen[rows] += 1
        self._last[rows] = self._steps
        old = self._steps - self._last > _REMEMBERED
        self._seconds[old], self._seen[old] = np.nan, 0

    @property
    def by_rows(self) -> Array:
        """Seconds of a step of 0, 1, ... rows, never less than of fewer rows. Between numbers that were seen, and for
        one row more, times lie on a line. Those of still more rows are infinite. All are 0 where none was seen."""
        if self._line is None:
            seen = np.flatnonzero(self._seen >= _SURE)
            self._line = np.zeros(len(self._seconds))
            if len(seen):
                seconds = np.maximum.accumulate(self._seconds[seen])
                slope = (seconds[-1] - seconds[-2]) / (seen[-1] - seen[-2]) if len(seen) > 1 else 0.0
                numbers, most = np.arange(len(self._seconds)), seen[-1] + 1
                self._line = np.interp(numbers, [*seen, most], [*seconds, seconds[-1] + slope])
                self._line[most + 1 :] = np.inf
        return self._line


class Savings:
    """Compares neighbouring steps of the same rows, of which one runs at the floors and one at what was requested.

    Results are kept by the numbers of rows and of those that can be lowered, each to a factor of two.
    """

    def __init__(self) -> None:
        self.measuring = False
        self.lowered = False
        """While measuring: whether the next step runs at the floors."""
        self._measured: dict[tuple[int, int], tuple[float, int]] = {}
        self._steps = self._begun = 0
        self._ratios: list[float] = []
        self._last: tuple[int, int, bool, float] | None = None

    def of(self, rows: int, lowerable: int) -> float | None:
        """The share of a step's time that the floors save at least, by two thirds of the comparisons, with `rows` rows,
        `lowerable` of which can be lowered; None where that was not measured."""
        saved, at = self._measured.get((rows.bit_length(), lowerable.bit_length()), (None, self._steps))
        return None if self._steps - at > _SAVINGS_LAST else saved

    def begin(self) -> None:
        """Measure with the steps to come."""
        self.measuring, self.lowered, self._begun = True, True, self._steps
        self._ratios, self._last = [], None

    def cancel(self) -> None:
        """End a measurement without a result."""
        self.measuring = False

    def stepped(self, rows: int, lowerable: int, seconds: float) -> None:
        """After every step, which took `seconds`."""
        self._steps += 1
        if not self.measuring:
            return
        if not lowerable:
            self.cancel()
            return
        last, self._last = self._last, (rows, lowerable, self.lowered, seconds)
        if last is not None and last[:2] == (rows, lowerable):
            self._ratios.append(seconds / last[3] if self.lowered else last[3] / seconds)
        self.lowered = not self.lowered
        if len(self._ratios) >= _PAIRS or self._steps - self._begun >= _LONGEST:
            saved = 1 - float(np.quantile(self._ratios, _SURE_SHARE)) if len(self._ratios) >= _FEWEST else 0.0
            self._measured[rows.bit_length(), lowerable.bit_length()] = (saved, self._steps)
            self.measuring = False


class Governor:
    """An integral controller on the smoothed time between tokens.

    objective: seconds per token, None: budgets are left alone. max_rows: rows that may decode together. clock: a
    function that returns seconds.
    """

    def __init__(self, objective: float | None, max_rows: int, clock: Callable[[], float] = time.perf_counter):
        self.objective, self.max_rows, self.clock = objective, max_rows, clock
        self.savings = Savings()
        self._per_token = 0.0
        """Seconds to read a token of a prompt, beside those that any pass takes."""
        self._patience = _PATIENCE
        self._reading = 0.0
        """Seconds in which prompts were read since the last step."""
        self._no_row = self._no_time = False
        """Whether a prompt has had to wait since the last step: for room for its row, or for time to read it."""
        self._last: float | None = None
        self._idle_since: float | None = None
        self._begin()

    def _begin(self) -> None:
        self.pressure = 0.0
        """How far budgets are lowered: from 0 to 1 those of the lowest priority, from 1 to 2 those of the next."""
        self.seconds: float | None = None
        """Smoothed time between tokens, prompts that are read in between included."""
        self._times = StepTimes(self.max_rows)

    def dial(self, rank: int) -> float:
        """Where the budgets of a priority are: 1 as requested, 0 at their floors."""
        if self.savings.measuring:
            return 0.0 if self.savings.lowered else 1.0
        return min(1.0, max(0.0, rank + 1 - self.pressure))

    def dial_for(self, rank: int, deadline: float | None, now: float, left: int) -> float:
        """The dial of a row with `left` tokens to go until `deadline` (seconds on the clock); 0 where no time is
        left."""
        dial = self.dial(rank)
        if deadline is None or self.seconds is None or left < 1:
            return dial
        allowed = (deadline - now) / left
        return min(dial, 1.0 if allowed >= self.seconds else max(0.0, 2 * allowed / self.seconds - 1))

    @property
    def rows(self) -> int:
        """How many rows may decode together now, at least 1."""
        if self.objective is None:
            return self.max_rows
        return max(1, int((self._times.by_rows <= self.objective * _ADMITTED).sum()) - 1)

    def may_read(self, tokens: int, replies: Sequence[Progress], joins: bool = True) -> bool:
        """Whether so many tokens of a prompt may be read now, beside replies that decode. joins: they are the first of
        their prompt, so that there is one reply more from then on."""
        if not replies:
            return True
        if joins and len(replies) >= self.max_rows:
            return False
        if self.objective is None:
            return True
        aim, step = self.objective * _ADMITTED, self._times.by_rows[len(replies) + joins]
        self._no_row = bool(aim < step < math.inf)
        self._no_time = not self._spared(aim, tokens, replies)
        return bool(step <= aim) and not self._no_time

    def _spared(self, aim: float, tokens: int, replies: Sequence[Progress]) -> bool:
        """Whether all replies can wait until so many tokens of a prompt are read and have taken at most `aim` seconds
        per token then. Those that will not reach that soon do not count. After many steps without a prompt the answer
        is yes."""
        if self._patience <= 0:
            return True
        # A pass over the weights is what a stretch of any length takes.
        step, wait = self._times.by_rows[len(replies)], self._times.by_rows[1] + tokens * self._per_token
        for seconds, after, left in replies:
            spare = aim * after - seconds
            if spare < wait and spare + min(left, _HORIZON) * (aim - step) >= 0:
                return False
        return True

    def was_read(self, tokens: int, seconds: float) -> None:
        """Called after so many tokens of a prompt were read in `seconds`; 0 where they say nothing of other prompts."""
        self._reading += seconds
        if tokens:
            now = max(0.0, seconds - float(self._times.by_rows[1])) / tokens
            weight = min(0.5, _WEIGHT_OF_PROMPTS * tokens) if self._per_token else 1.0
            self._per_token += weight * (now - self._per_token)
            self._patience = _PATIENCE

    def idle(self) -> None:
        """No row decodes: the time until the next step does not count as time per token. Called again after `FORGETS`
        seconds: then it begins as a server that has just started, since other replies are to come."""
        if self._idle_since is None:
            self._idle_since = self.clock()
        elif self.clock() - self._idle_since >= FORGETS:
            self._begin()
        self._last, self._reading = None, 0.0
        self.savings.cancel()

    def stepped(self, rows: int, lowerable: Sequence[int], seconds: float) -> None:
        """Called after every step of `rows` rows, which took `seconds`. lowerable: by rank of their priority how many
        of the rows have a floor below their budget."""
        now, last, reading = self.clock(), self._last, self._reading
        self._last, self._idle_since, self._reading = now, None, 0.0
        if last is None:
            return
        gap = now - last
        self.seconds = gap if self.seconds is None else self.seconds + _SMOOTHING * (gap - self.seconds)
        if self.objective is None:
            return
        self._times.add(rows, gap - reading)
        self._patience -= 1
        self.savings.stepped(rows, sum(lowerable), seconds)
        if self.savings.measuring:
            return
        self._adjust(rows, lowerable, (self.objective * _MARGIN - self.seconds) / self.objective)
        self._no_row = self._no_time = False

    def _adjust(self, rows: int, lowerable: Sequence[int], slack: float) -> None:
        """Change the pressure after a step, see `stepped`. slack: share of the objective that the time is below it."""
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
        left, up = abs(change), change > 0
        while left > 0 and (self.pressure < floors if up else self.pressure > 0):
            rank = int(self.pressure) if up else math.ceil(self.pressure) - 1
            end = rank + up  # of what lowers this priority alone
            step = min(left, abs(end - self.pressure)) if lowerable[rank] else 0.0
            moved = self.pressure + (step if up else -step)
            self.pressure = float(end) if not lowerable[rank] or step < left else moved
            left -= step
        self.pressure = min(self.pressure, float(floors))
