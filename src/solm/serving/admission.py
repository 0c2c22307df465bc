"""When a prompt may be read beside replies that have an objective: reading it makes every one of them wait, and with
its reply every later step takes longer.

A reply has time to spare where it took less than the objective per token so far. Only such time is spent on prompts, so
that each reply meets the objective at every token, and not just the average of all.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from solm.core.arrays import Array

_WEIGHT = 0.05
"""Weight of the latest step in the time of its number of rows. The first ones count equally."""
_SURE = 4
"""Steps of a number of rows without which nothing is said of it: single ones are disturbed."""
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
    """Seconds of a step by its number of rows, as seen lately."""

    def __init__(self, most: int):
        self._seconds = np.full(most + 1, np.nan)
        self._seen = np.zeros(most + 1, dtype=np.int64)
        self._last = np.zeros(most + 1, dtype=np.int64)
        self._steps = 0
        self._by_rows: Array | None = None

    def add(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`. Times of other numbers of rows change by the same factor: budgets,
        contexts and other processes change them all."""
        self._steps, self._by_rows = self._steps + 1, None
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
        if self._by_rows is None:
            self._by_rows = self._line()
        return self._by_rows

    def _line(self) -> Array:
        known = np.flatnonzero(self._seen >= _SURE)
        if not len(known):
            return np.zeros(len(self._seconds))
        seconds = np.maximum.accumulate(self._seconds[known])
        next_row = seconds[-1]
        if len(known) > 1:
            next_row += (seconds[-1] - seconds[-2]) / (known[-1] - known[-2])
        numbers, most = np.arange(len(self._seconds)), known[-1] + 1
        found = np.interp(numbers, [*known, most], [*seconds, next_row])
        found[most + 1 :] = np.inf
        return found


class Admission:
    """Decides when prompts are read, for at most `max_rows` rows that decode together."""

    def __init__(self, max_rows: int):
        self._max_rows = max_rows
        self._times = StepTimes(max_rows)
        self._per_token = 0.0
        """Seconds to read a token of a prompt, beside those that any pass takes."""
        self._patience = _PATIENCE

    def forget_steps(self) -> None:
        """Forget how long steps take. Other replies, of other lengths, are to come."""
        self._times = StepTimes(self._max_rows)

    def stepped(self, rows: int, seconds: float) -> None:
        """A step took `seconds`, all that is done between two steps included, without prompts."""
        self._times.add(rows, seconds)
        self._patience -= 1

    def was_read(self, tokens: int, seconds: float) -> None:
        """Tokens of a prompt were read in `seconds`, all that is done for it included."""
        now = max(0.0, seconds - self._pass) / tokens
        weight = min(0.5, _WEIGHT_OF_PROMPTS * tokens) if self._per_token else 1.0
        self._per_token += weight * (now - self._per_token)
        self._patience = _PATIENCE

    def step(self, rows: int) -> float:
        """Seconds of a step of so many rows; infinite where that cannot be told yet."""
        return float(self._times.by_rows[rows])

    def most(self, aim: float) -> int:
        """How many rows decode together in `aim` seconds per step, at least 1."""
        return max(1, int((self._times.by_rows <= aim).sum()) - 1)

    def spared(self, aim: float, tokens: int, replies: Iterable[Progress]) -> bool:
        """Whether all replies can wait until so many tokens of a prompt are read and have taken at most `aim` seconds
        per token then. Those that will not reach that soon do not count. After many steps without a prompt the answer
        is yes."""
        replies = list(replies)
        if self._patience <= 0:
            return True
        step, wait = self.step(len(replies)), self._pass + tokens * self._per_token
        for seconds, after, left in replies:
            spare = aim * after - seconds
            if spare < wait and spare + min(left, _HORIZON) * (aim - step) >= 0:
                return False
        return True

    @property
    def _pass(self) -> float:
        """Seconds of a pass over the weights, which a stretch of any length takes."""
        return self.step(1)
