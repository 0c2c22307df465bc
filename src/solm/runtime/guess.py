"""Guesses of a reply's next tokens, which one dense pass verifies: what is guessed, how far, and whether it pays.

The tokens of a reply are those of dense steps, whatever is guessed: a guess is kept where the dense pass chooses the
same token, and the cache keeps nothing else. Guesses change the time alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solm.core.errors import SolmError

MOST_GUESSES = 15
"""Of one row and pass: with the token before them as many as one pass computes to the last bit as single steps do."""
_KEYS = (4, 2)
"""Lengths of the endings that are looked up, the longest first."""
_FARTHEST = 16
"""Tokens back to which an earlier passage is compared with the end of the text."""
_CLASSES = (3, 4, 6, 9, _FARTHEST)
"""Common lengths from which on a passage belongs to the next class of acceptance."""
_PRIOR = (0.25, 0.4, 0.5, 0.6, 0.75, 0.85)
"""Per class, how often a guess is accepted before anything is known: rough, corrected within a few passes."""
_PRIOR_WEIGHT, _MEMORY, _RECOVERY = 4.0, 0.97, 0.995
"""Guesses that the prior counts as; by how much older ones count less at every newer one, and where none was made: a
class that did not pay is tried again."""
_PRIOR_BASE, _PRIOR_SLOPE = 1.05, 0.15
"""Time of a pass of several tokens over that of one, a line in their number, before it is measured."""


def guess_count(wanted: str | int, exact: bool) -> int | None:
    """How many tokens a request wants guessed before every pass; None: as many as pay. exact: whether a pass over
    several tokens gives what single steps give. Raises `SolmError` for what is no such number."""
    if wanted in ("auto", "off"):
        return None if wanted == "auto" and exact else 0
    if type(wanted) is not int or not 0 <= wanted <= MOST_GUESSES:
        raise SolmError(f"guess must be auto, off or a number in [0, {MOST_GUESSES}], got {wanted!r}")
    return wanted


class Lookup:
    """Prompt lookup: what followed the last passage that ends as the text does now (Saxena, 2023).

    tokens: all of the text, prompt and reply.
    """

    def __init__(self, tokens: Sequence[int]):
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """By ending, the place of what followed it last."""
        self.add(tokens)

    def add(self, tokens: Sequence[int]) -> None:
        """More of the text."""
        known = self.tokens
        for token in tokens:
            for size in _KEYS:
                if len(known) >= size:
                    self._after[tuple(known[-size:])] = len(known)
            known.append(token)

    def propose(self, most: int) -> tuple[list[int], int]:
        """At most so many tokens that may come next, and how many tokens before them agree with the text's end."""
        known = self.tokens
        for size in _KEYS:
            place = self._after.get(tuple(known[-size:]))
            if place is not None and most > 0:
                alike = size
                while alike < min(_FARTHEST, place) and known[place - 1 - alike] == known[-1 - alike]:
                    alike += 1
                found = known[place : place + most]
                while len(found) < most:  # the passage reaches the end of the text, and so it repeats
                    found.append(found[len(found) - (len(known) - place)])
                return found, alike
        return [], 0


@dataclass
class _Acceptance:
    """How often guesses of one class were accepted; older ones count less."""

    prior: float
    tried: float = 0.0
    accepted: float = 0.0

    @property
    def probability(self) -> float:
        return (self.accepted + _PRIOR_WEIGHT * self.prior) / (self.tried + _PRIOR_WEIGHT)

    def fade(self, by: float) -> None:
        self.tried *= by
        self.accepted *= by

    def learn(self, accepted: bool) -> None:
        self.fade(_MEMORY)
        self.tried += 1
        self.accepted += accepted


class Pace:
    """Seconds of a pass by its number of tokens, from recent passes: those of one token apart, and a line through the
    others, since the first guess takes more than each after it."""

    def __init__(self) -> None:
        self._single = 0.0
        self._sums = np.zeros(5)
        """Weighted, of 1, n, n^2, seconds and n * seconds over passes of several tokens."""

    def add(self, tokens: int, seconds: float) -> None:
        """A pass of so many tokens took so long. What took much longer than expected was disturbed, and counts less."""
        if not self._single:
            self._single = seconds / (1 if tokens == 1 else (_PRIOR_BASE + _PRIOR_SLOPE * tokens))
            for few in (2, 8):  # what is known before
                self._count(few, self._single * (_PRIOR_BASE + _PRIOR_SLOPE * few))
        seconds = min(seconds, 2 * self.seconds(tokens))
        if tokens == 1:
            self._single += (1 - _MEMORY) * (seconds - self._single)
        else:
            self._sums *= _MEMORY
            self._count(tokens, seconds)

    def _count(self, tokens: int, seconds: float) -> None:
        self._sums += (1, tokens, tokens * tokens, seconds, tokens * seconds)

    def seconds(self, tokens: int) -> float:
        """Of a pass of so many tokens; in units of a single one where nothing was measured yet."""
        if not self._single:
            return 1.0 if tokens == 1 else _PRIOR_BASE + _PRIOR_SLOPE * tokens
        if tokens == 1:
            return self._single
        weight, first, second, total, products = self._sums.tolist()
        mean, average, spread = first / weight, total / weight, second / weight - (first / weight) ** 2
        # Where all passes had the same length, there is no slope to be seen.
        slope = (products / weight - mean * average) / spread if spread > 0.1 else _PRIOR_SLOPE * self._single
        slope = min(max(slope, 0.02 * self._single), 0.9 * average / mean)
        return float(max(average + slope * (tokens - mean), self._single))


class Guesser:
    """What the rows of a batch guess. It learns from every pass what is accepted and what tokens take."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._classes = [_Acceptance(prior) for prior in _PRIOR]
        self._made: list[_Acceptance] = []
        """Of the rows of the last `choose`."""

    def choose(self, texts: Sequence[tuple[Lookup | None, int, int | None]]) -> list[list[int]]:
        """The guesses of every row. texts: per row its text (None: it guesses nothing), the most guesses, and how many
        it wants where its request says so.

        Of guesses by falling probability, so many are made that the pass should give the most tokens per second.
        """
        found: list[list[int]] = []
        gains: list[tuple[float, int]] = []
        self._made = []
        for row, (text, most, wanted) in enumerate(texts):
            most = min(most, MOST_GUESSES if wanted is None else wanted)
            tokens, alike = ([], 0) if text is None else text.propose(most)
            kind = self._classes[sum(alike >= least for least in _CLASSES)]
            self._made.append(kind)
            found.append(tokens)
            gains += [(1.0 if wanted else kind.probability**place, row) for place in range(1, len(tokens) + 1)]
        gains.sort(reverse=True)
        given, size = float(len(texts)), len(texts)
        best, most = given / self.pace.seconds(size), 0
        for number, (gain, _) in enumerate(gains, 1):
            given += gain
            speed = given / self.pace.seconds(size + number)
            if speed > best or gain == 1:  # what a request asked for is guessed whether it pays or not
                best, most = speed, number
        counts = [0] * len(texts)
        for _, row in gains[:most]:
            counts[row] += 1
        for kind, tokens, count in zip(self._made, found, counts, strict=True):
            if tokens and not count:
                kind.fade(_RECOVERY)
        return [tokens[:count] for tokens, count in zip(found, counts, strict=True)]

    def learn(self, row: int, guessed: int, accepted: int) -> None:
        """Of the guesses of a row in the last `choose`, the first `accepted` ones were what the dense pass chose."""
        for place in range(min(guessed, accepted + 1)):
            self._made[row].learn(place < accepted)
