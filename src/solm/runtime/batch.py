"""The one decode loop: rows join a batch, step together and leave it; each has its own policy, budget and sampler."""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import numpy as np

from solm.backends.results import Result
from solm.backends.session import AnyPolicy, Session
from solm.core.actions import DENSE
from solm.core.arrays import Array, as_numpy
from solm.core.budget import Terms, mean_terms
from solm.core.errors import first_line
from solm.policies.schedules import Dense
from solm.runtime.controlled import ControlledModel
from solm.runtime.draft import Drafter
from solm.runtime.guess import MOST_GUESSES, Guess
from solm.runtime.reply import TextStream, Trace, overlap
from solm.runtime.sampling import Sampler
from solm.runtime.sources import Forced, Lookup, Prediction, Recalled, Source
from solm.runtime.thinking import ThinkingReader

_LOG = logging.getLogger("solm")
Shares = tuple[float, ...]


class Row:
    """One reply that decodes.

    reason: why it ended: ``stop``, ``length``, ``cancelled``, or ``error``, which is in `error`; None while it decodes.
    possible: the logits [V] that the last token was chosen by: the model's, but for what a grammar forbids. new: the
    text that the last token completed. shown: text that the last token made final: what may become a stop string is
    held back, and what follows one is never shown. largest: how many of the largest logits count, 0: all of them.
    session: one row that has read the first tokens of the prompt, at most all but the last; None: nothing is read yet.
    guess: tokens that are guessed before every pass of a dense reply; None: as many as pay. predicted: tokens that the
    reply is expected to be like. Both are to be set before the row joins a batch. sources: where guesses come from;
    drafting: whether the draft model guesses, too. reasoning: thinking that the last token made final, where the reply
    may `think`. thought: tokens of the thinking, with its marks.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        policy: AnyPolicy,
        target: Sequence[float],
        longest: int,
        sampler: Sampler,
        *,
        text: TextStream | None = None,
        stops: Sequence[str] = (),
        criteria: Callable[[list[int]], bool] | None = None,
    ):
        """
        Args:
            prompt: token ids [C] int64.
            policy: decides the steps.
            target: shares per axis [axes] that steps may spend on average.
            longest: most tokens of the reply, over which `target` is an average.
            sampler: chooses the tokens, and ends the reply after an end token.
            text: where the text of every token is wanted, or `stops` are given.
            stops: texts that end the reply.
            criteria: called with all tokens of the reply after each; whether it ends the reply.
        """
        self.prompt, self.policy, self.longest, self.sampler = prompt, policy, longest, sampler
        self.target: Shares = tuple(target)
        self.trace = Trace(len(prompt), policy.space)
        self.trace.allowance = sampler.allowance
        self.ids = self.trace.ids
        self.largest = sampler.largest
        self.possible = np.zeros(0, np.float32)
        self.new = self.shown = self._held = ""
        self.reason: str | None = None
        self.error: Exception | None = None
        self.session: Session | None = None
        self.guess: int | None = 0
        self.predicted: Sequence[int] = ()
        self.sources: list[Source] = []
        self.drafting = True
        self.reasoning, self.thought = "", 0
        self._thinking: ThinkingReader | None = None
        self._shares = (self.target, self.target)
        """Of the answer, and of the thinking."""
        self._text, self._stops, self._criteria = text, stops, criteria

    @property
    def left(self) -> int:
        """Tokens that the reply may still have."""
        return self.longest - len(self.ids)

    @property
    def most(self) -> int:
        """Tokens that may be guessed before the next pass."""
        return min(self.left - 1, MOST_GUESSES) if self.sources else 0

    @property
    def drawn(self) -> bool:
        """Whether tokens are drawn, not the likeliest ones."""
        return self.sampler.plain is not None

    def think(self, reader: ThinkingReader, target: Sequence[float] | None = None) -> None:
        """Before the first token: the reply may think before it answers. Stop strings and a grammar then wait for the
        answer. reader: of its text, new. target: shares [axes] that the thinking may spend on average; None: those of
        the answer."""
        self._thinking, self._shares = reader, (self.target, self.target if target is None else tuple(target))
        self.sampler.free, self.sampler.opening = reader.thinking, reader.opening

    @property
    def thinks(self) -> bool:
        """Whether the next token is one of the thinking."""
        return self._thinking is not None and self._thinking.thinking

    @property
    def wanted(self) -> Shares:
        """The shares [axes] that the next step may spend on average."""
        return self._shares[self.thinks]

    def mean(self, answer: Terms, thinking: Terms) -> Terms:
        """The mean over the steps so far of what answer and thinking were allowed."""
        return mean_terms([thinking, answer], [self.thought, len(self.ids) - self.thought]) if self.thought else answer

    def take(self, logits: np.ndarray, guess: int | None = None) -> None:
        """Choose the next token by logits [V]; `guess` may be kept, see `Sampler.choose`."""
        if not self.longest:
            self.reason = "length"
            return
        self.possible = self.sampler.possible(logits)
        self.reasoning, thought = "", self.thinks
        token = self.sampler.choose(self.possible, guess)
        self.ids.append(token)
        for source in self.sources:
            source.add(token)
        if self.sampler.ended(token) or (self._criteria is not None and self._criteria(self.ids)):
            self.reason = "stop"
        elif len(self.ids) >= self.longest:
            self.reason = "length"
        if self._text is not None:
            self.new = self._text.push(token)
            text = self.new + (self._text.flush() if self.reason else "")
            if self._thinking is not None:
                self.reasoning, text = self._thinking.push(text, self.reason is not None)
                self.sampler.free = self.thinks
                if thought or self.thinks:
                    self.thought = len(self.ids)
            self._show(self._held + text)

    def _show(self, text: str) -> None:
        """Show `text`, as far as it cannot become part of a stop string."""
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.shown, self._held, self.reason = text[: min(places)], "", "stop"
            return
        held = 0 if self.reason else max((overlap(text, stop) for stop in self._stops), default=0)
        self.shown, self._held = text[: len(text) - held], text[len(text) - held :]


_Row = TypeVar("_Row", bound=Row)


class Batch(Generic[_Row]):
    """Rows that share the passes over the weights of one model.

    rows: in the order of the session's rows. session: None while there are no rows.
    """

    def __init__(self, lm: ControlledModel):
        self._lm, self._guesser = lm, lm.guesser
        self._drafter = None if lm.draft is None else Drafter(lm.draft, lm)
        self.rows: list[_Row] = []
        self.session: Session | None = None

    def metered(self, rows: Sequence[_Row]) -> AbstractContextManager[None]:
        """Count the energy that a block takes as that of `rows`, the same for each."""
        meter = self._lm.meter
        return nullcontext() if meter is None else meter.shared([row.trace for row in rows])

    def read(self, row: _Row) -> None:
        """Read what is left of the prompt of `row`, and let it join. Its session must not be used afterwards."""
        session = row.session or self._lm.session(capacity=len(row.prompt) + row.longest)
        row.session = None
        with self.metered([row]):
            logits = session.prefill(row.prompt[None, session.length(0) if session.rows else 0 :])
        self.join(row, logits[0], session)

    def join(self, row: _Row, logits: Array, session: Session) -> None:
        """Choose the first token by logits [V]. Unless it ends the reply, `row` decodes from here on.

        session: one row that has read the whole prompt. It must not be used afterwards.
        """
        if row.guess != 0 and isinstance(row.policy, Dense):
            if row.sampler.constraint is not None:
                row.sources.append(Forced(row.sampler.constraint))
            if len(row.predicted):
                row.sources.append(Prediction(row.predicted))
            row.sources += [Lookup(row.prompt.tolist()), Recalled(self._guesser.memory, row.prompt[-2:].tolist())]
        row.take(as_numpy(logits))
        if row.reason is not None:
            return
        row.target = row.wanted
        session.control(row.policy, np.array([row.target]), row.longest)
        if self.session is None:
            self.session = session
        else:
            self.session.join(session)
        self.rows.append(row)

    def step(self) -> Iterator[_Row]:
        """One pass, which gives every row a token, and more where it has guessed them. Returns the rows, each after
        every token that it took. Once all are read, those that have ended have left the batch.

        What a row's own sampler raises is in its `error`, and the others go on. Raises what the pass itself does.
        """
        rows = list(self.rows)
        with self.metered(rows):
            passed = self._pass(rows)
        return self._taken(rows, *passed)

    def _pass(self, rows: list[_Row]) -> tuple[list[Guess], Result, float]:
        """What was guessed, what the pass gave, and when it began."""
        assert self.session is not None
        guesses = [Guess() for _ in rows]
        guessing = any(row.sources for row in rows) and all(isinstance(row.policy, Dense) for row in rows)
        if guessing:
            guesses = self._guesses(rows)
        last, largest = np.array([row.ids[-1] for row in rows]), np.array([row.largest for row in rows])
        begun = time.perf_counter()
        if any(guess.tokens for guess in guesses):
            counts = np.array([1 + len(guess.tokens) for guess in guesses])
            tokens = np.zeros((len(rows), counts.max()), np.int64)
            tokens[:, 0] = last
            for place, guess in enumerate(guesses):
                tokens[place, 1 : counts[place]] = guess.tokens
            done = self.session.extend(tokens, counts=counts, exact_largest=largest)
        else:
            done = self.session.step(last, exact_largest=largest)
        if guessing:
            size = len(rows) + sum(len(guess.tokens) for guess in guesses)
            self._guesser.passed(size, time.perf_counter() - begun)
        return guesses, done, begun

    def _guesses(self, rows: list[_Row]) -> list[Guess]:
        """The guesses of every row. Where the draft model fails, its rows go on without it."""
        try:
            return self._guesser.choose(rows, self._drafter)
        except Exception as error:
            if self._drafter is None:
                raise
            name = getattr(self._lm.draft, "name", "")
            _LOG.warning("the draft model %s failed, and replies go on without it: %s", name, first_line(error))
            self._drafter.clear()
            for row in self.rows:
                row.drafting = False
            return self._guesser.choose(rows)

    def _taken(self, rows: list[_Row], guesses: list[Guess], done: Result, begun: float) -> Iterator[_Row]:
        """Let rows take what a pass over their last token and their guesses gives: the token after it, and those after
        guesses, as long as these are what was taken. What the cache holds of other guesses is forgotten.

        begun: when the pass did, by `time.perf_counter`."""
        session = self.session
        assert done.actions is not None
        assert session is not None
        logits = done.logits if type(done.logits) is np.ndarray else as_numpy(done.logits)
        actions, realised, controllable = done.actions.tolist(), done.realised.tolist(), done.controllable.tolist()
        try:
            for place, (row, made) in enumerate(zip(rows, guesses, strict=True)):
                accepted = 0
                row.trace.guessing(made.source, len(made.tokens))
                for at, guess in enumerate([*made.tokens, None]):
                    row.trace.stepped(actions[place][at], realised[place][at], controllable[place][at])
                    try:
                        row.take(logits[place, at], guess)
                    except Exception as error:
                        row.error, row.reason = error, "error"
                    if len(rows) == 1 and not made.tokens:
                        self._clocked(row, realised[place][at], begun)
                    right = row.error is None and row.ids[-1] == guess
                    accepted += right
                    if right:
                        row.trace.accept(made.source)
                    yield row
                    if not right or row.reason is not None:
                        break
                if made.tokens:
                    self._guesser.learn(row, made, accepted)
        finally:
            if any(guess.tokens for guess in guesses):
                session.truncate(np.array([len(row.prompt) + len(row.ids) - 1 for row in rows]))
            for place in reversed(range(len(rows))):
                if rows[place].reason is not None:
                    self._leave(place)

    def _clocked(self, row: _Row, shares: list[float], begun: float) -> None:
        """Tell the model's clock of a step of a single row, which began at `begun` and realised shares [axes]."""
        clock, session = self._lm.clock, self.session
        if clock is None or session is None or row.error is not None:
            return
        keys, token = len(row.prompt) + len(row.ids) - 1, np.array(row.ids[-1:])
        if clock.stepped(shares, keys, 1000 * (time.perf_counter() - begun)) and row.reason is None:
            probe = session.fork(1, 2)
            for _ in range(2):  # the first one also takes memory
                begun = time.perf_counter()
                probe.step(token, np.array([DENSE]), exact_largest=row.largest)
            clock.stepped([1.0] * len(shares), keys, 1000 * (time.perf_counter() - begun))

    def aim(self, targets: Sequence[Shares]) -> None:
        """Let rows spend other shares [N][axes] on average from here on."""
        if any(target != row.target for target, row in zip(targets, self.rows, strict=True)):
            assert self.session is not None
            self.session.aim(np.array(targets))
            for target, row in zip(targets, self.rows, strict=True):
                row.target = target

    def leave(self, row: _Row) -> None:
        """Drop a row before its end."""
        row.reason = "cancelled"
        self._leave(self.rows.index(row))

    def clear(self) -> list[_Row]:
        """Drop all rows."""
        rows, self.rows, self.session = self.rows, [], None
        if self._drafter is not None:
            self._drafter.clear()
        return rows

    def _leave(self, place: int) -> None:
        if self._drafter is not None:
            self._drafter.leave(self.rows[place])
        self.rows[place] = self.rows[-1]
        self.rows.pop()
        assert self.session is not None
        if self.rows:
            self.session.leave(place)
        else:
            self.session = None


def decode(lm: ControlledModel, rows: Sequence[Row], batch_size: int) -> Generator[Row, None, None]:
    """Decode all rows, at most `batch_size` together: a row after each of its tokens. Raises what a row's sampler
    does."""
    batch, waiting = Batch[Row](lm), deque(rows)
    while waiting or batch.rows:
        while waiting and len(batch.rows) < batch_size:
            row = waiting.popleft()
            batch.read(row)
            yield row
        batch.aim([row.wanted for row in batch.rows])
        for row in batch.step() if batch.rows else ():
            if row.error is not None:
                raise row.error
            yield row
