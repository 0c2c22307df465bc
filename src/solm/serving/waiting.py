"""Jobs that wait for a place: higher priorities first, within one by arrival."""

from collections import deque
from collections.abc import Callable

from solm.serving.rows import Job
from solm.serving.settings import PRIORITIES


class WaitingJobs:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self._by_rank: tuple[deque[Job], ...] = tuple(deque() for _ in PRIORITIES)

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def counts(self) -> list[int]:
        """Jobs by rank of their priority."""
        return [len(jobs) for jobs in self._by_rank]

    def add(self, job: Job) -> None:
        """Put a job behind those of its priority."""
        self._by_rank[job.order.rank].append(job)

    def put_back(self, job: Job) -> None:
        """Put a job before those of its priority."""
        self._by_rank[job.order.rank].appendleft(job)

    @property
    def first(self) -> Job | None:
        """The job whose turn it is."""
        return next((jobs[0] for jobs in reversed(self._by_rank) if jobs), None)

    def take(self, job: Job) -> None:
        """Remove a job that was `first`."""
        self._by_rank[job.order.rank].popleft()

    def drop(self, over: Callable[[Job], bool], all_of_them: bool) -> None:
        """Remove the jobs that are over. all_of_them: look at every job, and not only at the oldest of each priority,
        which expire first."""
        for jobs in self._by_rank:
            if all_of_them:
                left = [job for job in jobs if not over(job)]
                jobs.clear()
                jobs.extend(left)
            else:
                while jobs and over(jobs[0]):
                    jobs.popleft()

    def clear(self) -> list[Job]:
        """Remove all jobs."""
        found = [job for jobs in self._by_rank for job in jobs]
        for jobs in self._by_rank:
            jobs.clear()
        return found
