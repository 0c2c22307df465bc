"""What low budgets save of a step's time in a batch: measured while the server runs, since no model tells it.

Rows of a batch share the passes over the weights, so that a row that spends less need not make the step shorter.
"""

import numpy as np

_PAIRS = 32
"""Comparisons that make a measurement."""
_FEWEST = 8
"""Comparisons without which nothing was seen to be saved."""
_SURE = 2 / 3
"""Share of the comparisons that must save as much: the median of noisy steps shows savings where there are none."""
_LONGEST = 128
"""Steps of a measurement, where the number of rows changes too often for as many comparisons."""
_REMEMBERED = 4000
"""Steps after which a measurement is made anew."""


class Savings:
    """Compares neighbouring steps of the same rows, of which one runs at the floors and one at what was asked for.

    Results are kept by the numbers of rows and of those that can be lowered, each to a factor of two.
    """

    def __init__(self) -> None:
        self.measuring = False
        self.lowered = False
        """While measuring: whether the next step runs at the floors."""
        self._known: dict[tuple[int, int], tuple[float, int]] = {}
        self._steps = self._begun = 0
        self._ratios: list[float] = []
        self._last: tuple[int, int, bool, float] | None = None

    def of(self, rows: int, lowerable: int) -> float | None:
        """The share of a step's time that the floors save at least, by two thirds of the comparisons, with `rows` rows,
        `lowerable` of which can be lowered; None where it is not known."""
        found = self._known.get((rows.bit_length(), lowerable.bit_length()))
        return None if found is None or self._steps - found[1] > _REMEMBERED else found[0]

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
            saved = 1 - float(np.quantile(self._ratios, _SURE)) if len(self._ratios) >= _FEWEST else 0.0
            self._known[rows.bit_length(), lowerable.bit_length()] = (saved, self._steps)
            self.measuring = False
