"""Work behind the caller's back: a checkpoint is written while the next epoch trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Self


class Background:
    """Does one job at a time in a thread; what a job raises is raised at the next `start`, or on leaving the block.

    Leaving it waits for the job that is under way, also where an interruption is the reason.
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.job: Future[None] | None = None
        self.failed: list[BaseException] = []
        self.broken = False  # whether a job has failed

    def start(self, job: Callable[[], None]) -> None:
        """Begin `job`, after the one before it has ended well."""
        self.finish()
        self.job = self.pool.submit(self._do, job)

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self.job is not None and not self.job.done()

    def __enter__(self) -> Self:
        # An interruption while the pool makes its thread would leave a job that nobody waits for.
        self.pool.submit(int).result()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.finish()
        finally:
            self.pool.shutdown()  # waits for a job too that an interruption of `start` kept out of `self.job`
            self._raise_failure()

    def finish(self) -> None:
        """Wait for the job that is under way; an interruption of the wait forgets nothing."""
        if self.job is not None:
            wait([self.job])
            self.job = None
            self._raise_failure()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.broken = True
            self.failed.append(error)

    def _raise_failure(self) -> None:
        if self.failed:
            raise self.failed.pop()
