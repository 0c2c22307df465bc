"""A reply while it is decoded: the job, the tokens so far, and the events for the client."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solm.backends.session import Session
from solm.core.actions import AXES
from solm.core.arrays import Array, as_numpy
from solm.core.budget import Budget
from solm.runtime.decode import Draft, StepTaken
from solm.runtime.grammars import Constraint
from solm.runtime.language_model import LanguageModel
from solm.runtime.reply import Compute, Token
from solm.runtime.sampling import Sampler
from solm.serving.budgets import RequestBudget
from solm.serving.governor import Progress
from solm.serving.tools import overlap


@dataclass(frozen=True)
class Said:
    """A token as reported to the client. likely: (id, log-probability) of the most likely tokens at its position."""

    id: int
    log_probability: float | None = None
    likely: tuple[tuple[int, float], ...] = ()
    spent: Token | None = None


@dataclass(frozen=True)
class Piece:
    """Text that can no longer change, and the tokens since the last piece."""

    text: str
    tokens: tuple[Said, ...]


@dataclass(frozen=True)
class Ended:
    """The end of a reply. reason: stop or length. allowed: what the governor and the deadline left of the budget."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    compute: Compute
    allowed: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The end of a reply that could not be completed."""

    message: str
    kind: str = "server_error"
    param: str | None = None


Event = Piece | Ended | Failed


@dataclass(eq=False)
class Job:
    """A request for one reply.

    ids: prompt [C] int64. emit: receives every event, called in the scheduler's thread. logprobs: number of likely
    tokens to report, None: no log-probabilities. echo: also report those of the prompt.
    """

    ids: np.ndarray
    max_tokens: int
    order: RequestBudget
    emit: Callable[[Event], None]
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    deadline: float | None = None
    """Seconds on the scheduler's clock by which the reply should be complete."""
    constraint: Constraint | None = None
    """A grammar at its beginning, which the reply has to match."""
    shown: Collection[int] = ()
    """Special tokens that are part of the text."""
    counted: bool = True
    """Whether the metrics count it."""
    expires: float = float("inf")
    arrived: float = 0.0
    cancelled: bool = False
    kept: int | None = None
    """Tokens of the prompt that were kept of earlier ones when its turn came first."""
    filling: "Filling | None" = None
    """What is read of the prompt, where it had to make way for another."""


class Row:
    """A job that decodes."""

    def __init__(self, lm: LanguageModel, job: Job):
        self.job, self._lm = job, lm
        constraint = None if job.constraint is None else job.constraint.copy()
        sampler = Sampler.of(lm, job.ids[None], job.seed, job.sampling, constraint)
        self.draft = Draft(lm, sampler, len(job.ids), job.order.policy, True, job.shown)
        self.cached = 0
        self.finished: str | None = None
        self.begun = 0.0
        """When its first token was."""
        self.told: float | None = None
        """When its last token was."""
        self._pending = ""
        self.target = job.order.resolved.target(1.0)
        """Shares that governor and deadline let the next steps spend on average."""
        self.aimed = self.target
        """Those that the session knows."""
        self._lowered = False
        self._allowed, self._counted = [0.0] * len(AXES), [0] * len(AXES)

    def allow(self, dial: float, bits: float) -> None:
        """Let the steps from here on spend what dials say, see `ResolvedBudget.target`."""
        self.target = self.job.order.resolved.target(dial, bits)
        self._lowered = self._lowered or (min(dial, bits) < 1 and self.job.order.resolved.lowerable)

    def control(self, session: Session) -> None:
        """Put a session of one row, whose prompt is read, under the job's policy."""
        self.draft.control(session, np.array([self.job.order.resolved.target(1.0)]), max(1, self.job.max_tokens))

    @property
    def largest(self) -> int:
        """How many of the largest logits are all that is needed; 0: all of them."""
        return self.draft.sampler.largest if self.job.logprobs is None else 0

    @property
    def last(self) -> int:
        """The token that was chosen last."""
        return self.draft.tokens[-1].id

    @property
    def left(self) -> int:
        """Tokens that the reply may still have."""
        return self.job.max_tokens - len(self.draft.tokens)

    def progress(self, now: float) -> Progress:
        """How fast it was so far."""
        return Progress(now - self.begun, len(self.draft.tokens) - 1, self.left)

    def echo(self, logits: Array, start: int) -> None:
        """Report the prompt's tokens from `start` on, with log-probabilities from the logits [C, V] after each."""
        ids = self.job.ids
        following = ids[start + 1 : start + 1 + len(logits)]
        told = [self._said(int(token), row, None) for row, token in zip(logits, following, strict=False)]
        if start == 0:
            told.insert(0, Said(int(ids[0])))
        self.job.emit(Piece("", tuple(told)))

    def take(self, logits: Array, step: StepTaken | None = None) -> None:
        """Choose the next token from logits [V] and report it.

        step: the decode step that gave the logits, None: the prefill.
        """
        if self.job.max_tokens == 0:
            self.finished = "length"
            return
        if step is not None:
            for axis, could in enumerate(step[2]):
                if could:
                    self._allowed[axis] += self.target[axis]
                    self._counted[axis] += 1
        token = self.draft.add(logits, step)
        new, ended = token.text, self.draft.sampler.ended(token.id)
        if ended or self.left == 0:
            self.finished = "stop" if ended else "length"
            new += self.draft.text.flush()
        self._tell(new, self._said(token.id, self.draft.possible, token))

    def _said(self, token: int, logits: Array, spent: Token | None) -> Said:
        if self.job.logprobs is None:
            return Said(token, spent=spent)
        known = as_numpy(logits).astype(np.float64)
        known -= known.max()
        known -= np.log(np.exp(known).sum())
        count = min(self.job.logprobs, len(known))
        best = np.argpartition(-known, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
        best = best[np.argsort(-known[best], kind="stable")]
        best = best[known[best] > -np.inf]  # what a grammar forbids is not told
        likely = tuple(zip(best.tolist(), known[best].tolist(), strict=True))
        return Said(token, float(known[token]), likely, spent)

    def _tell(self, new: str, said: Said) -> None:
        """Emit text as far as it cannot become part of a stop string."""
        text = self._pending + new
        places = [place for place in (text.find(stop) for stop in self.job.stops) if place >= 0]
        if places:
            text, self._pending, self.finished = text[: min(places)], "", "stop"
        elif self.finished:
            self._pending = ""
        else:
            held = max((overlap(text, stop) for stop in self.job.stops), default=0)
            text, self._pending = text[: len(text) - held], text[len(text) - held :]
        self.job.emit(Piece(text, (said,)))

    def end(self) -> Ended:
        """Report the end of the reply."""
        job = self.job
        assert self.finished is not None
        tokens = self.draft.tokens
        found = Compute.of(self._lm.budgets(job.order.policy), tokens, len(job.ids), job.order.resolved.terms)
        ended = Ended(self.finished, len(job.ids), self.cached, len(tokens), found, self._granted())
        job.emit(ended)
        return ended

    def _granted(self) -> dict[str, float]:
        """The average budget that steps had, in the words of what was asked for."""
        order = self.job.order
        if not self._lowered:
            return order.resolved.terms
        averages = [
            total / count if count else share
            for total, count, share in zip(self._allowed, self._counted, order.resolved.budget.shares, strict=True)
        ]
        context = len(self.job.ids) + len(self.draft.tokens) // 2
        return self._lm.budgets(order.policy).terms(Budget.of(averages), context, order.resolved.request)


def chunk_end(length: int, done: int, size: int) -> int:
    """Where a stretch of a prompt of `length` tokens ends, of which `done` are read: at a multiple of `size`, or at the
    prompt's end if half of `size` or less would be left, since a short rest takes less time together with what comes
    before it. Prompts are cut at the same places whatever was kept of them."""
    end = (done // size + 1) * size
    return length if length - end <= size // 2 else end


@dataclass
class Filling:
    """A row whose prompt is being read, `done` tokens of it so far."""

    row: Row
    session: Session
    done: int

    def chunk(self, size: int) -> np.ndarray:
        """The tokens [1, C] that are read next, see `chunk_end`."""
        ids = self.row.job.ids
        return ids[None, self.done : chunk_end(len(ids), self.done, size)]
