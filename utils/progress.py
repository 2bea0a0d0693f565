"""A progress bar with the time to go, silent where nobody watches."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from progress.bar import Bar

from utils.distributed import is_main

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 60.0


class LineAMinute:
    """Lines that say how far a long work is, one a minute at most, for those who read them in a file or through a pipe.

    `stream` is where they go: standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self.last = time.monotonic()

    def __call__(self, line: Callable[[], str]) -> None:
        """Print a line, if it is time for one."""
        if is_main() and time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(line(), file=self.stream or sys.stdout, flush=True)


ERASE_LINE = "\r\x1b[K"  # the next line of the report takes the bar's place


def show_progress(items: Iterable[Item], message: str, total: int) -> Iterator[Item]:
    """Yield `items`, drawing a bar on standard error; where that is no terminal, a line a minute.

    Without a `message` nothing is shown.
    """
    if not message:
        yield from items
        return
    if not (is_main() and sys.stderr.isatty()):
        tell, started = LineAMinute(sys.stderr), time.monotonic()
        for number, item in enumerate(items):
            if number:
                left = (total - number) * (time.monotonic() - started) / number
                tell(lambda done=number, left=left: f"{message}: {done}/{total}, {left / 60:.0f} min to go")  # type: ignore[misc]
            yield item
        return
    bar = Bar(message, max=total, suffix="%(index)d/%(max)d  %(eta_td)s to go", file=sys.stderr, hide_cursor=False)
    try:
        for item in items:
            yield item
            bar.next()
    finally:
        print(ERASE_LINE, end="", file=sys.stderr, flush=True)
