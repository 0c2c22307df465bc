"""The scheduler: requests wait for their turn, prompts are read stretch by stretch, and rows decode in one batch."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from solm.core.actions import AXES
from solm.core.arrays import Array, as_numpy
from solm.core.budget import Budget
from solm.core.errors import DataError, SolmError
from solm.runtime.batch import Batch
from solm.runtime.batch import Row as BatchRow
from solm.runtime.clock import STALE
from solm.runtime.guess import Allowance
from solm.runtime.language_model import LanguageModel
from solm.runtime.prefixes import PrefixCache
from solm.runtime.reply import Compute, TextStream, Token
from solm.runtime.sampling import Sampler
from solm.serving.budgets import RequestBudget
from solm.serving.errors import ApiError
from solm.serving.governor import FORGETS, Governor, Progress
from solm.serving.metrics import Metrics
from solm.serving.settings import PRIORITIES, ServeSettings

_LOG = logging.getLogger("solm.serving")
_MLP, _BITS = AXES.index("mlp"), AXES.index("bits")
Queue = asyncio.Queue[Any]


@dataclass(frozen=True)
class Chosen:
    """A token as reported to the client. likely: (id, log-probability) of the most likely tokens at its position.
    thought: whether it belongs to the thinking."""

    id: int
    log_probability: float | None = None
    likely: tuple[tuple[int, float], ...] = ()
    spent: Token | None = None
    thought: bool = False


@dataclass(frozen=True)
class Piece:
    """Text that can no longer change, of the answer and of the thinking before it, and the tokens since the last
    piece."""

    text: str
    tokens: tuple[Chosen, ...]
    reasoning: str = ""


Event = Piece | ApiError | None
"""None: the reply has ended. An error: it could not be completed; its code is what the metrics count."""


class Row(BatchRow):
    """A reply to prompt ids [C] that waits until its prompt is read, and decodes then.

    emit: receives every event, called in the scheduler's thread. seed: of its sampler. logprobs: number of likely
    tokens to report, None: no log-probabilities. echoed: also report those of the prompt. deadline: seconds on the
    scheduler's clock by which it should be complete. traced: report what every token cost.
    read: tokens of the prompt that `session` has read; cached: those of them that were kept. arrived, begun, last:
    seconds at which it was submitted, and its first and its last token were chosen. granted: shares that governor and
    deadline let the next steps spend. What it spent can be read once it has ended.
    """

    seed = 0
    logprobs: int | None = None
    echoed = traced = False
    deadline: float | None = None
    arrived = begun = 0.0
    last: float | None = None
    expires = math.inf
    cancelled = False

    def __init__(
        self,
        lm: LanguageModel,
        ids: np.ndarray,
        longest: int,
        budget: RequestBudget,
        emit: Callable[[Event], None],
        sampler: Sampler,
        *,
        shown: Collection[int] = (),
        stops: Sequence[str] = (),
    ):
        """shown: special tokens that are part of the text. Others: as the base class has them."""
        loss = budget.resolved.loss
        sampler.allowance = None if loss is None else Allowance(loss)
        self.granted, text = budget.resolved.target(1.0), TextStream(lm.tokenizer, True, shown)
        super().__init__(ids, budget.policy, self.granted, longest, sampler, text=text, stops=stops)
        self.budget, self.emit, self._budgets = budget, emit, lm.budgets(budget.policy)
        self.read = self.cached = 0
        self._lowered = False
        self._grants = list[tuple[float, ...]]()

    def allow(self, dial: float, whole_bits: bool) -> None:
        """Let the steps from here on spend what a dial says, see `ResolvedBudget.target`. whole_bits: bits save time
        only in steps in which all rows do with less of them, so that they are at the budget or at the floor."""
        resolved, own = self.budget.reasoning if self.thinks else self.budget.resolved, self.budget.resolved
        target = resolved.target
        self.granted = target(dial)
        if whole_bits:
            self.granted = (*self.granted[:_BITS], target(round(dial))[_BITS], *self.granted[_BITS + 1 :])
        self._lowered = self._lowered or (dial < 1 and resolved.lowerable) or resolved is not own

    @property
    def wanted(self) -> tuple[float, ...]:
        return self.granted

    @property
    def may_think(self) -> bool:
        """Whether the model may think before it answers."""
        return self._thinking is not None

    def progress(self, now: float) -> Progress:
        """How fast it was so far."""
        return Progress(now - self.begun, len(self.ids) - 1, self.left)

    def echo(self, logits: Array, start: int) -> None:
        """Report the prompt's tokens from `start` on, with log-probabilities from the logits [C, V] after each."""
        ids = self.prompt
        following = ids[start + 1 : start + 1 + len(logits)]
        tokens = [self._chosen(int(token), row) for row, token in zip(logits, following, strict=False)]
        if start == 0:
            tokens.insert(0, Chosen(int(ids[0])))
        self.emit(Piece("", tuple(tokens)))

    def report(self) -> None:
        """Report the token that was chosen last."""
        if not self.ids:
            return
        if len(self.ids) > 1:
            self._grants.append(self.granted)
        spent = self.trace.token(len(self.ids) - 1, self.new, self._budgets) if self.traced else None
        self.emit(Piece(self.shown, (self._chosen(self.ids[-1], self.possible, spent),), self.reasoning))

    def _chosen(self, token: int, logits: Array, spent: Token | None = None) -> Chosen:
        thought = self.thought == len(self.ids) > 0
        if self.logprobs is None:
            return Chosen(token, spent=spent, thought=thought)
        values = as_numpy(logits).astype(np.float64)
        values -= values.max()
        values -= np.log(np.exp(values).sum())
        count = min(self.logprobs, len(values))
        best = np.argpartition(-values, count - 1)[:count] if count else np.zeros(0, dtype=np.int64)
        best = best[np.argsort(-values[best], kind="stable")]
        best = best[values[best] > -np.inf]  # without what a grammar forbids
        likely = tuple(zip(best.tolist(), values[best].tolist(), strict=True))
        return Chosen(token, float(values[token]), likely, spent, thought)

    @cached_property
    def compute(self) -> Compute:
        """What all of its steps spent."""
        asked = self.mean(self.budget.resolved.terms, self.budget.reasoning.terms)
        return self.trace.compute(self._budgets, asked)

    @property
    def phases(self) -> dict[str, tuple[Compute, int]]:
        """What the steps of the thinking and of the answer spent, and their tokens; empty where there was none."""
        if not self.thought:
            return {}
        budget, compute, split = self.budget, partial(self.trace.compute, self._budgets), self.thought - 1
        return {
            "reasoning": (compute(budget.reasoning.terms, 0, split), self.thought),
            "answer": (compute(budget.resolved.terms, split), len(self.ids)),
        }

    @cached_property
    def allowed(self) -> dict[str, float]:
        """What governor and deadline left of the budget on average, in the units of what was requested."""
        resolved = self.budget.resolved
        if not self._lowered:
            return resolved.terms
        could, grants = np.array(self.trace.controllable, dtype=bool), np.array(self._grants)
        averages = [
            float(shares[able].mean()) if able.any() else share
            for shares, able, share in zip(grants.T, could.T, resolved.budget.shares, strict=True)
        ]
        return self._budgets.terms(Budget.of(averages), len(self.prompt) + len(self.ids) // 2, resolved.request)


_FAILED = "this server can no longer decode"


class Scheduler:
    """Takes rows from any thread and decodes them in `thread`, by default a new one. `clock`: seconds, for deadlines.

    Load model and policy in that thread: every thread that uses OpenMP has workers of its own, and with more workers
    than cores a step took 34 ms instead of 23.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(self, lm: LanguageModel, settings: ServeSettings, metrics: Metrics, thread: Executor | None = None):
        self.lm, self.settings = lm, settings
        objective = None if settings.slo_tpot_ms is None else settings.slo_tpot_ms / 1000
        self.governor = Governor(objective, settings.max_rows, self.clock)
        self.prefixes = PrefixCache(settings.prefix_mb * 1e6, lm.sparsity.page_size)
        self._batch = Batch[Row](lm)
        self._waiting: list[Row] = []
        """Rows whose prompts are not read, or not to their ends, in the order of their arrival. Changed while
        `_changed` is held."""
        self._changed = threading.Condition()
        self._some_cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._posted: list[tuple[Queue, Any]] = []
        self._whole_bits = lm.sparsity.bits_site == "weights"
        self._skipping_rows = lm.backend.skipping_rows
        self._timed = self.clock()
        """When step times were measured last."""
        self.stopping = self.failed = False  # it is to end; it ended with an error
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="solm-decode")
        self.running: Future[None] | None = None
        self.count_in(metrics)

    def count_in(self, metrics: Metrics) -> None:
        """Count what happens from here on in `metrics`. What there is at a time is looked up when they are read."""
        self.metrics = metrics
        metrics.running.set_function(lambda: len(self._batch.rows))
        metrics.waiting.set_function(lambda: len(self._waiting))
        for rank, name in enumerate(PRIORITIES):
            metrics.class_rows.labels(name, "running").set_function(partial(self._count, rank, False))
            metrics.class_rows.labels(name, "waiting").set_function(partial(self._count, rank, True))
            metrics.class_dial.labels(name).set_function(partial(self.governor.dial, rank))
        metrics.allowed.set_function(lambda: self.governor.rows)
        metrics.prefix_tokens.set_function(lambda: self.prefixes.tokens)
        metrics.prefix_bytes.set_function(lambda: self.prefixes.bytes)
        metrics.pages.set_function(lambda: (self.lm.backend.pages_held() or (0, 0))[0])
        metrics.page_bytes.set_function(lambda: (self.lm.backend.pages_held() or (0, 0))[1])

    def _count(self, rank: int, waiting: bool) -> int:
        """How many rows with a priority of this rank wait, or decode."""
        return _of(rank, self._waiting if waiting else self._batch.rows)

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Begin to decode. loop: the one that reads the queues of `post`."""
        self._loop = loop
        self.running = self._thread.submit(self._run)

    def stop(self, seconds: float = 0.0) -> None:
        """End the loop, also one that has failed. Rows that are not complete after `seconds` fail."""
        end = self.clock() + seconds
        while self.clock() < end and self.busy:
            time.sleep(0.02)
        with self._changed:
            self.stopping = True
            self._changed.notify()
        if self.running is not None:
            wait([self.running])

    @property
    def busy(self) -> int:
        """Rows that wait, prefill or decode."""
        return len(self._waiting) + len(self._batch.rows)

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue rows. Raises `ApiError` (429) where too many wait, while the server stops, and after it failed."""
        with self._changed:
            self.check_room(len(rows))
            for row in rows:
                row.arrived = self.clock()
                row.expires = row.arrived + self.settings.max_seconds
                self._waiting.append(row)
            self._changed.notify()

    def check_room(self, rows: int) -> None:
        """Raises `ApiError` (429) where no more rows are taken now."""
        message = None
        if self.stopping or self.failed:
            message = _FAILED if self.failed else "the server is stopping"
        elif rows > self.settings.max_waiting + self.settings.max_rows - self.busy:
            message = f"{self.busy} rows are waiting or running already; try again later"
        if message is not None:
            raise ApiError(429, message, code="queue_full")

    def cancel(self, row: Row) -> None:
        """Drop a row before the next step. It ends without an event."""
        with self._changed:
            row.cancelled = self._some_cancelled = True
            self._changed.notify()

    def post(self, queue: Queue, item: Any) -> None:
        """Put an item into a queue that the event loop reads, together with all others of a step; called by rows'
        `emit`.

        A loop that woke for every item would want Python's lock in the middle of the others' work; after a step it
        answers clients while the engine computes the next one.
        """
        self._posted.append((queue, item))

    def _send(self) -> None:
        posted, self._posted = self._posted, []
        if posted and self._loop is not None:
            with suppress(RuntimeError):  # a loop that was closed wants nothing any more
                self._loop.call_soon_threadsafe(_deliver, posted)

    def _run(self) -> None:
        failed = False
        try:
            self._decode()
        except BaseException as error:
            _LOG.error("decoding failed; this server has to be started again", exc_info=error)
            failed = True
        with self._changed:  # what is submitted from now on is refused
            self.failed = failed
            left, self._waiting = [*self._waiting, *self._batch.clear()], []
        for row in left:
            if failed:
                self._fail(row, 500, _FAILED)
            else:
                self._fail(row, 503, "the server is stopping", "shutting_down")
        self._send()

    def _decode(self) -> None:
        while True:
            with self._changed:
                idle = False
                while not (self.stopping or self.busy or idle):
                    self.governor.idle()
                    idle = not self._changed.wait(FORGETS) and self.clock() > self._timed + STALE
                if self.stopping:
                    return
            if idle:
                self._timed = self.clock()
                self.lm.time_again(lambda: self.stopping or self.busy > 0)
                continue
            for act in (self._drop, self._read, self._step):
                act()
                self._send()

    def _drop(self) -> None:
        """Drop cancelled rows, and fail those that have expired."""
        now = self.clock()

        def over(row: Row) -> bool:
            if not row.cancelled and now < row.expires:
                return False
            if row.cancelled:
                self.metrics.ended.labels("cancelled").inc()
            else:
                self._fail(row, 504, f"not complete after {self.settings.max_seconds:g} s", "timeout")
            return True

        with self._changed:
            if self._waiting and (self._some_cancelled or now >= self._waiting[0].expires):  # the oldest expires first
                self._waiting = [row for row in self._waiting if not over(row)]
            self._some_cancelled = False
        for row in [row for row in self._batch.rows if over(row)]:
            self._batch.leave(row)

    def _fail(self, row: Row, status: int, message: str, kind: str = "server_error", param: str | None = None) -> None:
        self.metrics.ended.labels(kind).inc()
        row.emit(ApiError(status, message, param, kind))

    def _read(self) -> None:
        """Read a stretch of the first prompt of the highest priority, where the rows that decode can spare the time."""
        row = max(self._waiting, key=lambda row: row.budget.rank, default=None)
        if row is None or len(self._batch.rows) >= self.settings.max_rows:
            return
        begun, tokens = self.clock(), 0
        try:
            if row.session is None:
                self._open(row)
            # A stretch ends at a multiple of its size, so that prompts are cut at the same places whatever was kept of
            # them. A short rest takes less time together with what comes before it.
            size, length = self.settings.prefill_chunk, len(row.prompt)
            end = (row.read // size + 1) * size
            end = length if length - end <= size // 2 else end
            replies = [other.progress(begun) for other in self._batch.rows]
            joins = row.read == row.cached and row.longest > 1
            if not self.governor.may_read(end - row.read, replies, joins):
                return
            tokens = end - row.read
            self._read_to(row, end)
        except Exception as error:
            tokens = 0
            self._take(row)
            self._broken(row, error)
        # Log-probabilities of a prompt take longer: they say nothing about other prompts.
        self.governor.was_read(0 if row.echoed else tokens, self.clock() - begun)

    def _open(self, row: Row) -> None:
        """Give a row the session that reads its prompt, which begins with what is kept of earlier ones."""
        capacity = len(row.prompt) + row.longest
        kept = None if row.echoed else self.prefixes.find(row.prompt, capacity)
        row.session = self.lm.session(capacity) if kept is None else kept
        row.read = row.cached = 0 if kept is None else kept.length(0)
        if row.cached:
            self.metrics.tokens.labels("cached").inc(row.cached)

    def _read_to(self, row: Row, end: int) -> None:
        """Read a prompt up to `end`; where that is its own, let the row join the others."""
        session, done, begun = row.session, row.read, self.clock()
        assert session is not None
        with self._batch.metered([row]):
            logits = session.prefill(row.prompt[None, done:end], every_logit=row.echoed)
        row.read = end
        self.metrics.reads.observe(self.clock() - begun)
        self.metrics.tokens.labels("prompt").inc(end - done)
        if row.echoed:
            row.echo(logits[0], done)
            logits = logits[:, -1]
        if end == len(row.prompt):
            if not row.echoed:
                self.prefixes.keep(row.prompt, session)
            self._take(row)
            row.session = None
            self._batch.join(row, logits[0], session)
            self._report(row)

    def _take(self, row: Row) -> None:
        """A row waits no more."""
        with self._changed:
            if row in self._waiting:
                self._waiting.remove(row)

    def _step(self) -> None:
        """One pass for all rows that decode: a token for every one, and those after it that it has guessed."""
        rows = len(self._batch.rows)
        if not rows:
            self.governor.idle()
            return
        self._aim()
        begun, lowerable = self.clock(), self._lowerable()
        try:
            stepped = self._batch.step()
        except Exception as error:
            for row in self._batch.clear():  # none of them can go on, and none of them is to blame
                self._broken(row, error, own=False)
            return
        seconds, tokens = self.clock() - begun, 0
        self.metrics.steps.observe(seconds)
        for row in stepped:
            tokens += 1
            if row.error is None:
                self._report(row)
            else:
                self._broken(row, row.error)
        self.governor.stepped(rows, lowerable, seconds * rows / tokens)  # for a token of every row
        saved = self.governor.savings.of(rows, sum(lowerable))
        self.metrics.saving.set(float("nan") if saved is None else saved)

    def _aim(self) -> None:
        """Tell rows what their next step may spend, as governor, deadlines and the size of the batch leave it.

        With more rows than `Backend.skipping_rows` steps that skip channels lose quality and save no time: as long as a
        batch is that large, the budgets of its rows for channels are 1. Later steps do not make up for what is spent
        then.
        """
        governor, rows, now = self.governor, self._batch.rows, self.clock()
        if governor.objective is not None or any(row.deadline is not None or row.thought for row in rows):
            for row in rows:
                dial = governor.dial_for(row.budget.rank, row.deadline, now, row.left)
                row.allow(dial, self._whole_bits)
        if self._skipping_rows is None or len(rows) <= self._skipping_rows:
            self._batch.aim([row.granted for row in rows])
        else:
            self._batch.aim([(*row.granted[:_MLP], 1.0, *row.granted[_MLP + 1 :]) for row in rows])

    def _lowerable(self) -> list[int]:
        """By rank of their priority how many of the rows have a floor below their budget."""
        lowerable = [row for row in self._batch.rows if row.budget.resolved.lowerable]
        return [_of(rank, lowerable) for rank in range(len(PRIORITIES))]

    def _report(self, row: Row) -> None:
        """Report the token that was chosen last, and the end of the reply where it is that."""
        row.report()
        now, metrics = self.clock(), self.metrics
        if row.last is None:
            row.begun = now
            metrics.first.observe(now - row.arrived)
        else:
            metrics.gap.observe(now - row.last)
        row.last = now
        metrics.completion_tokens.inc(row.longest > 0)
        if row.reason is not None:
            nets = ({"net": each.budget.net} for each in (row.budget.resolved, row.budget.reasoning))
            metrics.replied(row.reason, row.budget.priority, row.mean(*nets)["net"], row.compute.realised, row.trace)
            row.emit(None)

    def _broken(self, row: Row, error: Exception, own: bool = True) -> None:
        """End a row with an error. It is the user's if the row's `own` request can have raised it: the engine raises
        plain `SolmError` and `DataError` for faults of the server, such as too little memory."""
        if own and isinstance(error, SolmError) and type(error) not in (SolmError, DataError):
            self._fail(row, 400, str(error), "invalid_request_error", getattr(error, "field", None))
            return
        _LOG.error("a row failed: %s", type(error).__name__, exc_info=error)
        self._fail(row, 500, "this reply failed inside the server; others go on")


def _of(rank: int, rows: Sequence[Row]) -> int:
    """How many rows have a priority of this rank."""
    return sum(row.budget.rank == rank for row in list(rows))


def _deliver(items: list[tuple[Queue, Any]]) -> None:
    for queue, item in items:
        queue.put_nowait(item)
