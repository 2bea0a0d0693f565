"""Work behind the caller's back: a checkpoint is written while the next epoch trains."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Self

from torch import Tensor


class Background:
    """Does one job at a time in a thread; what a job raises is raised at the next `start`, or on leaving the block.

    ResNet-34's checkpoint takes as long to write as a fast GPU needs for the next epoch.
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin `job`, after the one before it has ended well."""
        self.finish()
        self.job = self.pool.submit(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.finish()
        finally:
            self.pool.shutdown()

    def finish(self) -> None:
        """Wait for the job that is under way; an interruption of the wait forgets nothing."""
        if self.job is not None:
            wait([self.job])
            job, self.job = self.job, None
            job.result()


def snapshot(content: Any) -> Any:
    """Return nested dictionaries and lists with every tensor copied to the CPU, where no later step changes it."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: snapshot(value) for key, value in content.items()}
    return [snapshot(value) for value in content] if isinstance(content, list) else content
