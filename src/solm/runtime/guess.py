"""Guesses of a reply's next tokens, which one dense pass verifies: what is guessed, how far, and whether it pays.

The tokens of a reply are those of dense steps, whatever is guessed: a guess is kept where the dense pass chooses the
same token, and the cache keeps nothing else. Guesses change the time alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
_PRIOR_SLOPE = 0.2
"""What another token of a pass takes, as a share of what a pass takes in any case, before it is measured."""


def guesses(wanted: str | int, exact: bool) -> int | None:
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
class _Class:
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


@dataclass
class Pace:
    """Seconds of a pass as a line in its tokens, `base` + `slope` * tokens, from recent passes."""

    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    """Weighted, of 1, n, n^2, seconds and n * seconds."""

    def add(self, tokens: int, seconds: float) -> None:
        """A pass of so many tokens took so long. What took much longer than expected was disturbed, and counts less."""
        if self._sums[0]:
            base, slope = self.line
            seconds = min(seconds, 2 * (base + slope * tokens))
        else:
            unit = seconds / (1 + _PRIOR_SLOPE * tokens)
            for few in (1, 8):
                self._count(few, unit * (1 + _PRIOR_SLOPE * few))
        self._sums = [_MEMORY * part for part in self._sums]
        self._count(tokens, seconds)

    def _count(self, tokens: int, seconds: float) -> None:
        parts = (1, tokens, tokens * tokens, seconds, tokens * seconds)
        self._sums = [mine + part for mine, part in zip(self._sums, parts, strict=True)]

    @property
    def line(self) -> tuple[float, float]:
        """Seconds of a pass without tokens, and of every token; both above 0."""
        weight, first, second, seconds, products = self._sums
        if not weight:
            return 1.0, _PRIOR_SLOPE
        spread = weight * second - first * first
        mean, average = first / weight, seconds / weight
        # Where all passes had the same length, there is no slope to be seen.
        slope = (weight * products - first * seconds) / spread if spread > 1e-3 * weight * weight else 0.0
        slope = min(max(slope, 0.02 * average), average / max(mean, 1.0) * 0.98)
        return average - slope * mean, slope


class Guesser:
    """What the rows of a batch guess. It learns from every pass what is accepted and what tokens take."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._classes = [_Class(prior) for prior in _PRIOR]
        self._made: list[_Class] = []
        """Of the rows of the last `choose`."""

    def choose(self, texts: Sequence[tuple[Lookup | None, int, int | None]]) -> list[list[int]]:
        """The guesses of every row. texts: per row its text (None: it guesses nothing), the most guesses, and how many
        it wants where its request says so.

        Guesses are added by falling probability for as long as the pass gives more tokens per second with them.
        """
        base, slope = self.pace.line
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
        given, size = float(len(texts)), len(texts)
        counts = [0] * len(texts)
        for gain, row in sorted(gains, reverse=True):
            if gain * (base + slope * size) <= slope * given:
                break
            given, size, counts[row] = given + gain, size + 1, counts[row] + 1
        for kind, tokens, count in zip(self._made, found, counts, strict=True):
            if tokens and not count:
                kind.fade(_RECOVERY)
        return [tokens[:count] for tokens, count in zip(found, counts, strict=True)]

    def learn(self, row: int, guessed: int, accepted: int) -> None:
        """Of the guesses of a row in the last `choose`, the first `accepted` ones were what the dense pass chose."""
        for place in range(min(guessed, accepted + 1)):
            self._made[row].learn(place < accepted)
