"""A reply while it is decoded: what is requested, its row in the batch, and the events for the client."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
class Chosen:
    """A token as reported to the client. likely: (id, log-probability) of the most likely tokens at its position."""

    id: int
    log_probability: float | None = None
    likely: tuple[tuple[int, float], ...] = ()
    spent: Token | None = None


@dataclass(frozen=True)
class Piece:
    """Text that can no longer change, and the tokens since the last piece."""

    text: str
    tokens: tuple[Chosen, ...]


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
    tokens to report, None: no log-probabilities. echo: also report those of the prompt. deadline: seconds on the
    scheduler's clock by which the reply should be complete. constraint: a grammar at its beginning, which the reply has
    to match. shown: special tokens that are part of the text. trace: report what every token cost.
    """

    ids: np.ndarray
    max_tokens: int
    budget: RequestBudget
    emit: Callable[[Event], None]
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    deadline: float | None = None
    constraint: Constraint | None = None
    shown: Collection[int] = ()
    trace: bool = False
    # What the scheduler notes:
    arrived: float = 0.0
    expires: float = float("inf")
    cancelled: bool = False
    kept: int | None = None
    """Tokens of the prompt that were kept of earlier ones when its turn came first."""
    row: "Row | None" = None
    """What is read of the prompt, while it makes way for another."""


class Row(batch.Row):
    """A job whose prompt is read, and that decodes then.

    read: tokens of the prompt that `session` has read; cached: those of them that were kept. begun, last: seconds at
    which its first and its last token were chosen. granted: shares that governor and deadline let the next steps spend.
    """

    def __init__(self, lm: LanguageModel, job: Job):
        constraint = None if job.constraint is None else job.constraint.copy()
        sampler = Sampler.of(lm, job.ids[None], job.seed, job.sampling, constraint)
        self.granted = job.budget.resolved.target(1.0)
        super().__init__(
            job.ids, job.budget.policy, self.granted, job.max_tokens, sampler,
            text=TextStream(lm.tokenizer, True, job.shown), stops=job.stops,
        )  # fmt: skip
        self.job, self._budgets = job, lm.budgets(job.budget.policy)
        if job.logprobs is not None:
            self.largest = 0
        self.read = self.cached = 0
        self.begun = 0.0
        self.last: float | None = None
        self._lowered = False
        self._allowed, self._counted = [0.0] * len(AXES), [0] * len(AXES)

    def allow(self, dial: float, bits: float) -> None:
        """Let the steps from here on spend what dials say, see `ResolvedBudget.target`."""
        self.granted = self.job.budget.resolved.target(dial, bits)
        self._lowered = self._lowered or (min(dial, bits) < 1 and self.job.budget.resolved.lowerable)

    def progress(self, now: float) -> Progress:
        """How fast it was so far."""
        return Progress(now - self.begun, len(self.ids) - 1, self.left)

    def echo(self, logits: Array, start: int) -> None:
        """Report the prompt's tokens from `start` on, with log-probabilities from the logits [C, V] after each."""
        ids = self.job.ids
        following = ids[start + 1 : start + 1 + len(logits)]
        tokens = [self._chosen(int(token), row) for row, token in zip(logits, following, strict=False)]
        if start == 0:
            tokens.insert(0, Chosen(int(ids[0])))
        self.job.emit(Piece("", tuple(tokens)))

    def report(self) -> None:
        """Report the token that was chosen last."""
        if not self.ids:
            return
        if len(self.ids) > 1:
            for axis, could in enumerate(self.trace.controllable[-1]):
                if could:
                    self._allowed[axis] += self.granted[axis]
                    self._counted[axis] += 1
        spent = self.trace.token(len(self.ids) - 1, self.new, self._budgets) if self.job.trace else None
        self.job.emit(Piece(self.shown, (self._chosen(self.ids[-1], self.possible, spent),)))

    def _chosen(self, token: int, logits: Array, spent: Token | None = None) -> Chosen:
        if self.job.logprobs is None:
            return Chosen(token, spent=spent)
        values = as_numpy(logits).astype(np.float64)
        values -= values.max()
        values -= np.log(np.exp(values).sum())
        count = min(self.job.logprobs, len(values))
        best = np.argpartition(-values, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
        best = best[np.argsort(-values[best], kind="stable")]
        best = best[values[best] > -np.inf]  # without what a grammar forbids
        likely = tuple(zip(best.tolist(), values[best].tolist(), strict=True))
        return Chosen(token, float(values[token]), likely, spent)

    def end(self) -> Ended:
        """Report the end of the reply."""
        job = self.job
        assert self.reason is not None
        spent = self.trace.compute(self._budgets, job.budget.resolved.terms)
        ended = Ended(self.reason, len(job.ids), self.cached, len(self.ids), spent, self._average())
        job.emit(ended)
        return ended

    def _average(self) -> dict[str, float]:
        """The average budget that steps had, in the units of what was requested."""
        resolved = self.job.budget.resolved
        if not self._lowered:
            return resolved.terms
        averages = [
            total / count if count else share
            for total, count, share in zip(self._allowed, self._counted, resolved.budget.shares, strict=True)
        ]
        context = len(self.job.ids) + len(self.ids) // 2
        return self._budgets.terms(Budget.of(averages), context, resolved.request)
