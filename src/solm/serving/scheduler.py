"""The decode loop: rows join and leave between steps, and one thread owns the model."""

import logging
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait

from solm.core.errors import DataError, SolmError
from solm.runtime.batch import Batch
from solm.runtime.language_model import LanguageModel
from solm.serving.errors import ApiError
from solm.serving.governor import Governor
from solm.serving.metrics import Metrics
from solm.serving.outbox import Outbox
from solm.serving.prompts import Prompts
from solm.serving.rows import Failed, Job, Row
from solm.serving.settings import PRIORITIES, ServeSettings
from solm.serving.targets import Targets
from solm.serving.waiting import WaitingJobs

_LOG = logging.getLogger("solm.serving")
_FAILED = Failed("this server can no longer decode")
_IDLE = 10.0  # seconds after which a server without requests measures itself again


def _busy(message: str) -> ApiError:
    return ApiError(429, message, code="queue_full")


class Scheduler:
    """Takes jobs from any thread and decodes them in `thread`, by default a new one. `clock`: seconds, for deadlines.

    Load model and policy in that thread: every thread that uses OpenMP has workers of its own, and with more workers
    than cores a step took 34 ms instead of 23.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(self, lm: LanguageModel, settings: ServeSettings, metrics: Metrics, thread: Executor | None = None):
        self.lm, self.settings, self.metrics = lm, settings, metrics
        objective = None if settings.slo_tpot_ms is None else settings.slo_tpot_ms / 1000
        self.governor = Governor(objective, settings.max_rows, settings.slo_rows, self.clock)
        metrics.count_pages(lm.backend.pages_held)
        self._targets = Targets(lm, self.governor, settings.always_skip)
        self.outbox = Outbox()
        self._waiting = WaitingJobs()
        self._batch: Batch[Row] = Batch(lm)
        self._some_cancelled = False
        self._changed = threading.Condition()
        self._prompts = Prompts(lm, settings, self.governor, self._waiting, self._changed, self.clock)
        self.stopping = self.failed = False  # told to end; ended with an error
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="solm-decode")
        self.running: Future[None] | None = None

    def start(self) -> None:
        """Begin to decode."""
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
        return len(self._waiting) + (self._prompts.filling is not None) + len(self._batch.rows)

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs. Raises `ApiError` (429) where too many wait, while the server stops, and after it failed."""
        with self._changed:
            self.check_room(len(jobs))
            for job in jobs:
                job.arrived = self.clock()
                job.expires = job.arrived + self.settings.max_seconds
                self._waiting.add(job)
            self._changed.notify()

    def check_room(self, rows: int) -> None:
        """Raises `ApiError` (429) where no more rows are taken now."""
        if self.stopping or self.failed:
            raise _busy(_FAILED.message if self.failed else "the server is stopping")
        if rows > self.settings.max_waiting + self.settings.max_rows - self.busy:
            raise _busy(f"{self.busy} rows are waiting or running already; try again later")

    def cancel(self, job: Job) -> None:
        """Drop a job before the next step. It ends without an event."""
        with self._changed:
            job.cancelled = self._some_cancelled = True
            self._changed.notify()

    def _run(self) -> None:
        end = Failed("the server is stopping", "shutting_down")
        try:
            self._loop()
        except BaseException as error:
            _LOG.error("decoding failed; this server has to be started again", exc_info=error)
            end = _FAILED
        with self._changed:  # what is submitted from now on is refused
            self.failed = end is _FAILED
            filling = self._prompts.filling
            rows = self._batch.clear() if filling is None else [*self._batch.clear(), filling.row]
            left = [*self._waiting.clear(), *(row.job for row in rows)]
            self._prompts.filling = None
        for job in left:
            self._fail(job, end)
        self.outbox.send()
        self._measure()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._measure()
                while not (self.stopping or self.busy):
                    self.governor.idle()
                    self._changed.wait(_IDLE)
                    self._measure()
                if self.stopping:
                    return
            for act in (self._drop, self._fill, self._step):
                act()
                self.outbox.send()

    def _measure(self) -> None:
        metrics, filling = self.metrics, self._prompts.filling
        metrics.running.set(len(self._batch.rows))
        metrics.waiting.set(len(self._waiting) + (filling is not None))
        governor, running, waiting = self.governor, [0] * len(PRIORITIES), self._waiting.counts
        for row in self._batch.rows:
            running[row.job.order.rank] += 1
        if filling is not None:
            waiting[filling.row.job.order.rank] += 1
        metrics.set_classes(running, waiting, governor.dials)
        if self._batch.rows:  # else what was known last stays
            saved = governor.savings.of(len(self._batch.rows), sum(self._lowerable()))
            metrics.saving.set(float("nan") if saved is None else saved)
        metrics.allowed.set(self.governor.rows)
        metrics.prefix_tokens.set(self._prompts.prefixes.tokens)
        metrics.prefix_bytes.set(self._prompts.prefixes.bytes)

    def _drop(self) -> None:
        """Drop cancelled jobs, and fail those that have expired."""
        now = self.clock()

        def over(job: Job) -> bool:
            if not job.cancelled and now < job.expires:
                return False
            job.filling = None  # it refers to the job, too: without this its pages would be free only some time later
            if job.cancelled:
                self.metrics.of(job.counted).ended.labels("cancelled").inc()
            else:
                self._fail(job, Failed(f"not complete after {self.settings.max_seconds:g} s", "timeout"))
            return True

        with self._changed:
            self._waiting.drop(over, self._some_cancelled)
            self._some_cancelled = False
        if self._prompts.filling is not None and over(self._prompts.filling.row.job):
            self._prompts.filling = None
        for row in [row for row in self._batch.rows if over(row.job)]:
            self._batch.leave(row)

    def _fail(self, job: Job, failed: Failed) -> None:
        self.metrics.of(job.counted).ended.labels(failed.kind).inc()
        job.emit(failed)

    def _fill(self) -> None:
        """Read a stretch of the next prompt, where the rows that decode can spare the time."""
        job = self._prompts.turn(self._batch.rows)
        if job is None:
            return
        begun, tokens = self.clock(), 0
        try:
            tokens = self._read(job)
        except Exception as error:
            self._prompts.filling = None
            self._broken(job, error)
        # Log-probabilities of a prompt take longer: they say nothing about other prompts.
        self.governor.was_read(0 if job.echo else tokens, self.clock() - begun)

    def _read(self, job: Job) -> int:
        """Read a stretch of a prompt, and at its end let the row join the others. Returns how many tokens were read."""
        prompts, metrics = self._prompts, self.metrics
        new = prompts.filling is None
        filling = prompts.open(job)
        row, session, done = filling.row, filling.session, filling.done
        if new and done == row.cached > 0:
            metrics.of(job.counted).tokens.labels("cached").inc(row.cached)
        chunk, begun = filling.chunk(self.settings.prefill_chunk), self.clock()
        logits = session.prefill(chunk, every_logit=job.echo)
        metrics.reads.observe(self.clock() - begun)
        filling.done += chunk.shape[1]
        metrics.of(job.counted).tokens.labels("prompt").inc(chunk.shape[1])
        if job.echo:
            row.echo(logits[0], done)
            logits = logits[:, -1]
        if filling.done < len(job.ids):
            return chunk.shape[1]
        if not job.echo:
            prompts.prefixes.keep(job.ids, session)
        self._batch.join(row, logits[0], session)
        self._tell(row)
        prompts.filling = None
        return chunk.shape[1]

    def _step(self) -> None:
        """One token for every row that decodes."""
        rows, governor = len(self._batch.rows), self.governor
        if not rows:
            governor.idle()
            return
        self._targets.set(self._batch, self.clock())
        begun, lowerable = self.clock(), self._lowerable()
        try:
            stepped = self._batch.step()
        except Exception as error:
            for row in self._batch.clear():  # none of them can go on, and none of them is to blame
                self._broken(row.job, error, own=False)
            return
        seconds = self.clock() - begun
        self.metrics.steps.observe(seconds)
        governor.stepped(rows, lowerable, seconds)
        for row in stepped:
            if row.error is not None:
                self._broken(row.job, row.error)
                continue
            self._tell(row)

    def _lowerable(self) -> list[int]:
        """By rank of their priority how many of the rows have a floor below their budget."""
        orders = [row.job.order for row in self._batch.rows]
        ranks = [order.rank for order in orders if order.resolved.lowerable]
        return [ranks.count(rank) for rank in range(len(PRIORITIES))]

    def _tell(self, row: Row) -> None:
        row.tell()
        now, metrics = self.clock(), self.metrics.of(row.job.counted)
        told, since = (metrics.gap, row.told) if row.told is not None else (metrics.first, row.job.arrived)
        told.observe(now - since)
        row.begun, row.told = now if row.told is None else row.begun, now
        metrics.completion_tokens.inc(row.job.max_tokens > 0)
        if row.reason is not None:
            metrics.ended.labels(row.reason).inc()
            order, realised = row.job.order, row.end().compute.realised
            metrics.spent(order.rank, order.resolved.budget.net, order.resolved.floor.net, realised["net"])

    def _broken(self, job: Job, error: Exception, own: bool = True) -> None:
        """End a job with an error. It is the user's if the job's `own` request can have raised it: the engine raises
        plain `SolmError` and `DataError` for faults of the server, such as too little memory."""
        if own and isinstance(error, SolmError) and type(error) not in (SolmError, DataError):
            self._fail(job, Failed(str(error), "invalid_request_error", getattr(error, "field", None)))
            return
        _LOG.error("a row failed: %s", type(error).__name__, exc_info=error)
        self._fail(job, Failed("this reply failed inside the server; others go on"))
