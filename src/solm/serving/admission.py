"""When a prompt may be read beside replies that have an objective: reading it makes every one of them wait, and with
its reply every later step takes longer.

A reply has time to spare where it took less than the objective per token so far. Only such time is spent on prompts, so
that each reply meets the objective at every token, and not just the average of all.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_WEIGHT = 0.05
"""Weight of the latest step in the time of its number of rows. The first ones count equally."""
_REMEMBERED = 512
"""Steps after which a number of rows that was not seen again is forgotten, so that one that took too long is tried
again."""
_WEIGHT_OF_PROMPTS = 0.2


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

    def add(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took `seconds`. Times of other numbers of rows change by the same factor: budgets,
        contexts and other processes change them all."""
        self._steps += 1
        if self._seen[rows]:
            ratio = seconds / self._seconds[rows]
            own = self._seconds[rows] * ratio ** max(_WEIGHT, 1 / (self._seen[rows] + 1))
            self._seconds *= ratio**_WEIGHT
            self._seconds[rows] = own
        else:
            self._seconds[rows] = seconds
        self._seen[rows] += 1
        self._last[rows] = self._steps
        old = self._steps - self._last > _REMEMBERED
        self._seconds[old], self._seen[old] = np.nan, 0

    def all(self) -> np.ndarray:
        """Seconds of a step of 0, 1, ... rows, never less than of fewer rows. Between numbers that were seen, and for
        one row more, times lie on a line. Those of still more rows are infinite. All are 0 where none was seen."""
        known = np.flatnonzero(self._seen)
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
        self._steps = StepTimes(max_rows)
        self._per_token = 0.0

    def stepped(self, rows: int, seconds: float) -> None:
        """A step took `seconds`, all that is done between two steps included, without prompts."""
        self._steps.add(rows, seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """Tokens of a prompt were read in `seconds`."""
        now = seconds / tokens
        self._per_token += (_WEIGHT_OF_PROMPTS if self._per_token else 1.0) * (now - self._per_token)

    def most(self, aim: float) -> int:
        """How many rows decode together in `aim` seconds per step, at least 1."""
        return max(1, int((self._steps.all() <= aim).sum()) - 1)

    def spared(self, aim: float, tokens: int, replies: Iterable[Progress]) -> bool:
        """Whether all replies can wait until so many tokens of a prompt are read and have taken at most `aim` seconds
        per token then. Replies that cannot reach that by their end do not count."""
        replies = list(replies)
        step, wait = float(self._steps.all()[len(replies)]), tokens * self._per_token
        for seconds, after, left in replies:
            spare = aim * after - seconds
            if spare < wait and spare + left * (aim - step) >= 0:
                return False
        return True
