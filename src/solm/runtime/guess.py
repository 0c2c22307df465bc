"""Which of a reply's next tokens are guessed, how far, and whether it pays; one dense pass then verifies the guesses.

The tokens of a reply are those of dense steps, whatever is guessed: a guess is kept where the dense pass chooses the
same token, and the cache keeps nothing else. Guesses change the time alone. Only where a request lets its reply lose
something, a guess is also kept that the dense pass finds nearly as good as its own choice (`Allowance`).
"""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from solm.core.errors import SolmError
from solm.runtime.sources import Memory, Source

MOST_GUESSES = 15
"""Of one row and pass: with the token before them as many as one pass computes to the last bit as single steps do."""
MOST_REGRET = math.log(2)
"""Nats that one token may give up: a guess that is kept is at least half as likely as the dense step's choice."""
DRAFT = "draft"
"""The name of the draft model among sources."""
_TOPS = (0.2, 0.4, 0.6, 0.75, 0.87, 0.95, 0.985)
"""Probabilities of the draft model's likeliest token from which on its guess belongs to the next class."""
_PER_PASS = 3
"""Tokens that a pass with a draft model gives, roughly."""
_FEWEST_TRIED, _HOPED = 4, 0.9
"""Guesses of the draft model for a reply from which on their acceptance decides whether it guesses at all. Until then
it is taken to be at least this: a draft model guesses some replies much better than others."""
_SHORT = 8.0
"""Passes of one token up to which reading a row's text is short. The draft model begins to read a longer one when its
guesses would have saved as much as reading takes: how long a reply will be is not known before."""
_ALONG = len(_TOPS) + 1
"""The class of all guesses of the draft model together, of all replies."""
_PRIORS = {
    "lookup": (0.25, 0.4, 0.5, 0.6, 0.75, 0.85),
    "prediction": (0.3, 0.45, 0.6, 0.7, 0.8, 0.9),
    "recalled": (0.4, 0.5, 0.6, 0.7),
    "grammar": (0.9,),
    DRAFT: (0.15, 0.3, 0.45, 0.6, 0.72, 0.82, 0.9, 0.97, 0.8),
}
"""By source and class, how often a guess is accepted before anything is known: rough, corrected within a few passes."""
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


@dataclass
class Allowance:
    """What a reply may lose by guesses that are kept although the dense step would choose otherwise.

    loss: nats per token, over the reply so far at every token. regret: the sum of the log-probabilities given up;
    tokens: over which.
    """

    loss: float
    regret: float = 0.0
    tokens: int = 0

    @property
    def next(self) -> float:
        """Nats that the next token may give up."""
        return min(MOST_REGRET, self.loss * (self.tokens + 1) - self.regret)

    @property
    def average(self) -> float:
        """Nats per token given up so far."""
        return self.regret / max(1, self.tokens)

    def take(self, regret: float) -> None:
        """The next token gave up so much."""
        self.regret += regret
        self.tokens += 1


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
        self._single, self._passes = 0.0, 0
        self._sums = np.zeros(5)
        """Weighted, of 1, n, n^2, seconds and n * seconds over passes of several tokens."""

    @property
    def known(self) -> bool:
        """Whether a pass was measured."""
        return self._single > 0

    def add(self, tokens: int, seconds: float) -> None:
        """A pass of so many tokens took so long. What took much longer than expected was disturbed, and counts less."""
        if not self._single:
            self._single = seconds / (1 if tokens == 1 else (_PRIOR_BASE + _PRIOR_SLOPE * tokens))
            for few in (2, 8):  # what is known before
                self._count(few, self._single * (_PRIOR_BASE + _PRIOR_SLOPE * few))
        seconds = min(seconds, 2 * self.seconds(tokens))
        if tokens == 1:
            self._passes += 1
            self._single += max(1 - _MEMORY, 1 / self._passes) * (seconds - self._single)
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


class Text(Protocol):
    """A row of a batch, as it is known where tokens are guessed: `solm.runtime.batch.Row` says what these are."""

    prompt: np.ndarray
    ids: list[int]
    longest: int
    sampler: Any
    sources: list[Source]
    drafting: bool
    guess: int | None

    @property
    def left(self) -> int: ...
    @property
    def most(self) -> int: ...
    @property
    def drawn(self) -> bool: ...


@dataclass
class Guess:
    """The guesses of one row, of one source. kinds: the acceptance that each should have."""

    source: str = ""
    tokens: list[int] = field(default_factory=list)
    kinds: list[_Acceptance] = field(default_factory=list)

    def chances(self) -> Iterator[float]:
        """How likely the first of them are to hold, all the first two, and so on."""
        chance = 1.0
        for kind in self.kinds:
            chance *= kind.probability
            yield chance


@dataclass(frozen=True)
class Drafted:
    """One step of the draft model. found: by row its next token and the probability that the model gives it. tokens,
    seconds: of the pass."""

    found: dict[Any, tuple[int, float]]
    tokens: int
    seconds: float


class Drafting(Protocol):
    """A draft model that guesses for rows of a batch. weight: its step over that of the model, before it is
    measured."""

    @property
    def weight(self) -> float: ...

    def behind(self, row: Any) -> int | None:
        """Tokens of a row's text that the draft model has not read; None where it has no room for it."""

    def draft(self, rows: Sequence[Any]) -> Iterator[Drafted]:
        """The next tokens of rows, a step at a time, as long as they are asked for."""


class Guesser:
    """What was learned about guesses of one model: what replies said, what is accepted, and what tokens take. May be
    used by several threads."""

    def __init__(self) -> None:
        self.pace, self.draft_pace = Pace(), Pace()
        """Of the passes that verify, and of the draft model's."""
        self.memory = Memory()
        """Of recent replies."""
        self._kinds: dict[tuple[str, int, bool], _Acceptance] = {}
        self._drafted = WeakKeyDictionary[Any, _Acceptance]()
        """By row the same of all guesses of the draft model for it."""
        self._missed = WeakKeyDictionary[Any, float]()
        """By row seconds that guesses of the draft model should have saved while it had not read the row's text."""
        self._lock = threading.Lock()

    def choose(self, rows: Sequence[Text], drafting: Drafting | None = None) -> list[Guess]:
        """The guesses of every row.

        Of guesses by falling probability, so many are made that the pass should give the most tokens per second. The
        draft model guesses where this should give more than the other sources do, and goes on as long as its next step
        should.
        """
        with self._lock:
            found, wanted = [self._proposal(row) for row in rows], [row.guess for row in rows]
            made, speed = self._cut(wanted, found)
            drafted = [] if drafting is None else self._worth_drafting(rows, made, speed, drafting)
        first = list(found)
        if drafting is not None and drafted:
            spent, ready = 0.0, drafted
            for number, step in enumerate(drafting.draft([rows[place] for place in drafted]), 1):
                spent += step.seconds
                with self._lock:
                    self.draft_pace.add(step.tokens, step.seconds)
                    if number == 1:
                        ready = [place for place in drafted if rows[place] in step.found]
                        for place in ready:
                            found[place] = Guess(DRAFT)
                    for place in ready:
                        row = rows[place]
                        if number <= row.most:
                            token, top = step.found[row]
                            found[place].tokens.append(token)
                            kind = sum(top >= least for least in _TOPS)
                            found[place].kinds.append(self._kind(DRAFT, kind, row.drawn))
                    if not self._goes_on(rows, found, ready, spent):
                        break
            with self._lock:
                made, _ = self._cut(wanted, found, spent)
        with self._lock:
            for guess, cut in zip(first, made, strict=True):
                if guess.tokens and cut.source != guess.source:
                    guess.kinds[0].fade(_RECOVERY)
            if drafting is not None and not drafted:
                of_drafts = [kind for (source, *_), kind in self._kinds.items() if source == DRAFT]
                for acceptance in (*self._drafted.values(), *of_drafts):
                    acceptance.fade(_RECOVERY)
        return made

    def paying(self, probability: float) -> int:
        """How many guesses of one row pay where each is accepted with this probability if those before it are."""
        guess = Guess("", [0] * MOST_GUESSES, [_Acceptance(probability)] * MOST_GUESSES)
        with self._lock:
            return len(self._cut([None], [guess])[0][0].tokens)

    def learn(self, row: Text, guess: Guess, accepted: int) -> None:
        """Of the guesses of a row the first `accepted` ones were kept."""
        with self._lock:
            for place, kind in enumerate(guess.kinds[: accepted + 1]):
                kind.learn(place < accepted)
                if guess.source == DRAFT:
                    self._along(row).learn(place < accepted)
                    self._kind(DRAFT, _ALONG, row.drawn).learn(place < accepted)

    def passed(self, tokens: int, seconds: float) -> None:
        """A pass that verified so many tokens of all rows took so long."""
        with self._lock:
            self.pace.add(tokens, seconds)

    def _kind(self, source: str, kind: int, drawn: bool) -> _Acceptance:
        key = source, kind, drawn
        if key not in self._kinds:
            self._kinds[key] = _Acceptance(_PRIORS[source][kind])
        return self._kinds[key]

    def _along(self, row: Text) -> _Acceptance:
        """Of all guesses of the draft model for a row; at first as for other rows."""
        if row not in self._drafted:
            self._drafted[row] = _Acceptance(self._kind(DRAFT, _ALONG, row.drawn).probability)
        return self._drafted[row]

    def _proposal(self, row: Text) -> Guess:
        """The best guess without a draft model."""
        best, most = Guess(), min(row.most, MOST_GUESSES if row.guess is None else row.guess)
        for source in row.sources:
            tokens, kind = source.propose(most)
            if tokens:
                acceptance = self._kind(source.name, kind, row.drawn)
                if not best.tokens or acceptance.probability > best.kinds[0].probability:
                    best = Guess(source.name, tokens, [acceptance] * len(tokens))
        return best

    def _cut(
        self, wanted: Sequence[int | None], found: Sequence[Guess], spent: float = 0.0
    ) -> tuple[list[Guess], float]:
        """The first ones of the guesses that were found, so many that the pass should give the most tokens per second,
        and how many it should give. spent: seconds that it took to find them."""
        gains = [
            (1.0 if number else chance, place)
            for place, (number, guess) in enumerate(zip(wanted, found, strict=True))
            for chance in guess.chances()
        ]
        gains.sort(reverse=True)
        given, size = float(len(wanted)), len(wanted)
        best, most = given / (self.pace.seconds(size) + spent), 0
        for number, (gain, _) in enumerate(gains, 1):
            given += gain
            speed = given / (self.pace.seconds(size + number) + spent)
            if speed > best or gain == 1:  # what a request asked for is guessed whether it pays or not
                best, most = speed, number
        counts = [0] * len(wanted)
        for _, place in gains[:most]:
            counts[place] += 1
        made = [
            Guess(guess.source if count else "", guess.tokens[:count], guess.kinds[:count])
            for guess, count in zip(found, counts, strict=True)
        ]
        return made, best

    def _draft_seconds(self, tokens: int, drafting: Drafting) -> float:
        if self.draft_pace.known:
            return self.draft_pace.seconds(tokens)
        return drafting.weight * self.pace.seconds(tokens)

    def _worth_drafting(
        self, rows: Sequence[Text], made: Sequence[Guess], speed: float, drafting: Drafting
    ) -> list[int]:
        """The places of the rows that the draft model should guess for; none where it should not pay. made: what is
        guessed without it, which should give `speed` tokens per second."""
        behind, given, size = dict[int, int](), float(len(rows)), len(rows)
        for place, (row, guess) in enumerate(zip(rows, made, strict=True)):
            unread = drafting.behind(row) if row.drafting and row.guess != 0 and row.most > 0 else None
            known = guess.tokens and row.guess is None  # what is guessed without it
            if unread is None or (known and guess.kinds[0].probability > self._along(row).probability):
                given, size = given + sum(guess.chances()), size + len(guess.tokens)
            else:
                behind[place] = unread
        places = list(behind)
        if not places or any(rows[place].guess for place in places):
            return places
        step = self._draft_seconds(len(places), drafting)
        each = self._draft_seconds(MOST_GUESSES, drafting) / MOST_GUESSES
        reading = {place: each * max(0, unread - 2) for place, unread in behind.items()}
        chances = [self._along(rows[place]) for place in places]

        def saved(probabilities: Sequence[float]) -> float:
            """Seconds that this pass saves with the best number of guesses, without what has to be read before."""
            most, tokens, passed = -math.inf, given, size
            for number in range(1, MOST_GUESSES + 1):
                for place, probability in zip(places, probabilities, strict=True):
                    if number <= rows[place].most:
                        tokens += probability**number
                        passed += 1
                found = tokens / speed - self.pace.seconds(passed) - number * step
                if found <= most:
                    break
                most = found
            return most

        # What it has to read besides the last tokens, such as the prompt, pays off over the rest of the reply.
        passes = max(1.0, max(rows[place].left for place in places) / _PER_PASS)
        hoped = [max(each.probability, _HOPED * (each.tried < _FEWEST_TRIED)) for each in chances]
        if saved(hoped) <= sum(reading.values()) / passes:
            return []
        short, missed = _SHORT * self.pace.seconds(1), self._missed
        waiting = [place for place, seconds in reading.items() if seconds > short]
        if waiting and self.pace.known:
            part = max(0.0, saved([each.probability for each in chances])) / len(places)
            for place in waiting:
                missed[rows[place]] = missed.get(rows[place], 0.0) + part
        return [place for place in places if place not in waiting or missed.get(rows[place], 0.0) >= reading[place]]

    def _goes_on(self, rows: Sequence[Text], found: Sequence[Guess], drafted: Sequence[int], spent: float) -> bool:
        """Whether another step of the draft model should pay: whether it gives more tokens per second than the pass
        does without it."""
        given, size, more, longer = float(len(rows)), len(rows), 0.0, 0
        for place, (row, guess) in enumerate(zip(rows, found, strict=True)):
            chances = list(guess.chances())
            given, size = given + sum(chances), size + len(chances)
            number = len(guess.tokens) if place in drafted else row.most
            if number < min(row.most, MOST_GUESSES if row.guess is None else row.guess):
                more += 1.0 if row.guess else chances[-1] * self._along(row).probability
                longer += 1
            if longer and row.guess:
                return True
        if not longer:
            return False
        before, after = self.pace.seconds(size), self.pace.seconds(size + longer)
        cost = self.draft_pace.seconds(len(drafted)) + after - before
        return more / cost > given / (before + spent)
