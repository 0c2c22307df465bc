"""A reply while it is decoded: the job, the tokens so far, and the events for the client."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solm.backends.session import Session
from solm.core.actions import AXES
from solm.core.arrays import Array, as_numpy
from solm.core.budget import Budget
from solm.runtime import batch
from solm.runtime.grammars import Constraint
from solm.runtime.language_model import LanguageModel
from solm.runtime.reply import Compute, TextStream, Token
from solm.runtime.sampling import Sampler
from solm.serving.budgets import RequestBudget
from solm.serving.governor import Progress


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


class Row(batch.Row):
    """A job that decodes."""

    def __init__(self, lm: LanguageModel, job: Job):
        constraint = None if job.constraint is None else job.constraint.copy()
        sampler = Sampler.of(lm, job.ids[None], job.seed, job.sampling, constraint)
        target = job.order.resolved.target(1.0)
        super().__init__(
            job.ids, job.order.policy, target, job.max_tokens, sampler, text=TextStream(lm.tokenizer, True, job.shown),
            stops=job.stops,
        )  # fmt: skip
        self.job, self._budgets = job, lm.budgets(job.order.policy)
        if job.logprobs is not None:
            self.largest = 0
        self.cached = 0
        self.begun = 0.0
        """When its first token was."""
        self.told: float | None = None
        """When its last token was."""
        self.granted = target
        """Shares that governor and deadline let the next steps spend on average."""
        self._lowered = False
        self._allowed, self._counted = [0.0] * len(AXES), [0] * len(AXES)

    def allow(self, dial: float, bits: float) -> None:
        """Let the steps from here on spend what dials say, see `ResolvedBudget.target`."""
        self.granted = self.job.order.resolved.target(dial, bits)
        self._lowered = self._lowered or (min(dial, bits) < 1 and self.job.order.resolved.lowerable)

    def progress(self, now: float) -> Progress:
        """How fast it was so far."""
        return Progress(now - self.begun, len(self.ids) - 1, self.left)

    def echo(self, logits: Array, start: int) -> None:
        """Report the prompt's tokens from `start` on, with log-probabilities from the logits [C, V] after each."""
        ids = self.job.ids
        following = ids[start + 1 : start + 1 + len(logits)]
        told = [self._said(int(token), row, None) for row, token in zip(logits, following, strict=False)]
        if start == 0:
            told.insert(0, Said(int(ids[0])))
        self.job.emit(Piece("", tuple(told)))

    def tell(self) -> None:
        """Report the token that was chosen last."""
        if not self.ids:
            return
        if len(self.ids) > 1:
            for axis, could in enumerate(self.trace.controllable[-1]):
                if could:
                    self._allowed[axis] += self.granted[axis]
                    self._counted[axis] += 1
        token = self.trace.token(len(self.ids) - 1, self.new, self._budgets)
        self.job.emit(Piece(self.shown, (self._said(token.id, self.possible, token),)))

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

    def end(self) -> Ended:
        """Report the end of the reply."""
        job = self.job
        assert self.reason is not None
        spent = self.trace.compute(self._budgets, job.order.resolved.terms)
        ended = Ended(self.reason, len(job.ids), self.cached, len(self.ids), spent, self._granted())
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
        context = len(self.job.ids) + len(self.ids) // 2
        return self._budgets.terms(Budget.of(averages), context, order.resolved.request)


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
