"""Which prompt is read next, a stretch at a time between the steps of the rows that decode."""

from collections.abc import Callable, Sequence
from threading import Condition

from solm.runtime.language_model import LanguageModel
from solm.runtime.prefixes import PrefixCache
from solm.serving.governor import Governor
from solm.serving.rows import Filling, Job, Row, chunk_end
from solm.serving.settings import ServeSettings
from solm.serving.waiting import WaitingJobs


class Prompts:
    """The prompt that is being read, and the beginnings of earlier ones.

    changed: held while `waiting` changes. clock: a function that returns seconds. Except for `waiting`, used by one
    thread.
    """

    def __init__(
        self,
        lm: LanguageModel,
        settings: ServeSettings,
        governor: Governor,
        waiting: WaitingJobs,
        changed: Condition,
        clock: Callable[[], float],
    ):
        self._lm, self._settings, self._governor = lm, settings, governor
        self._waiting, self._changed, self._clock = waiting, changed, clock
        self.prefixes = PrefixCache(settings.prefix_mb * 1e6, lm.sparsity.page_size)
        self.filling: Filling | None = None

    def turn(self, rows: Sequence[Row]) -> Job | None:
        """The job of whose prompt a stretch is read now; None where none waits, or where `rows`, which decode, cannot
        spare the time. A prompt that is being read makes way for one of higher priority."""
        first, filling = self._waiting.first, self.filling
        if filling is not None:
            job = filling.row.job
            if first is None or first.order.rank <= job.order.rank:
                return job if self._may_read(job, filling.done, rows, joins=False) else None
            self._put_back(filling)
        if first is None or len(rows) >= self._settings.max_rows:
            return None
        if first.kept is None:
            first.kept = 0 if first.echo else self.prefixes.known(first.ids)
        done = first.kept if first.filling is None else first.filling.done
        return first if self._may_read(first, done, rows, joins=first.max_tokens > 1) else None

    def open(self, job: Job) -> Filling:
        """What is read of the prompt of a job whose turn it is. Raises what is wrong with the job."""
        if self.filling is None:
            try:
                self.filling = job.filling or self._new(job)
            finally:
                job.filling = None
                with self._changed:
                    self._waiting.take(job)
        return self.filling

    def _may_read(self, job: Job, done: int, rows: Sequence[Row], joins: bool) -> bool:
        tokens, now = chunk_end(len(job.ids), done, self._settings.prefill_chunk) - done, self._clock()
        return self._governor.may_read(tokens, [row.progress(now) for row in rows], joins)

    def _put_back(self, filling: Filling) -> None:
        """Let a prompt wait again, before all others of its priority, and keep what is read of it."""
        job, self.filling = filling.row.job, None
        job.filling = filling
        with self._changed:
            self._waiting.put_back(job)

    def _new(self, job: Job) -> Filling:
        row, capacity = Row(self._lm, job), len(job.ids) + job.max_tokens
        session = None if job.echo else self.prefixes.find(job.ids, capacity)
        if session is None:
            return Filling(row, self._lm.session(capacity), 0)
        row.cached = session.length(0)
        return Filling(row, session, row.cached)
