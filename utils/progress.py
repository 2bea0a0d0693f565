"""A progress bar with the time to go, silent where nobody watches."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TextIO, TypeVar

from progress.bar import Bar

from utils.distributed import is_main
from utils.text import label

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 60.0
# What ends the work of a thread; each has its own, and one that works alone has none.
_ENDING: ContextVar[threading.Event | None] = ContextVar("ending", default=None)


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
            print(f"{label()}{line()}", file=self.stream or sys.stdout, flush=True)


ERASE_LINE = "\r\x1b[K"  # the next line of the report takes the bar's place


@contextlib.contextmanager
def beside_others(ending: threading.Event) -> Iterator[None]:
    """Let `show_progress` in this thread draw no bar, and end the work once `ending` is set, as Ctrl-C does."""
    token = _ENDING.set(ending)
    try:
        yield
    finally:
        _ENDING.reset(token)


def show_progress(items: Iterable[Item], message: str, total: int) -> Iterator[Item]:
    """Yield `items`, drawing a bar on standard error; where that is no terminal, a line a minute.

    Without a `message` nothing is shown. Raises KeyboardInterrupt where `beside_others` is to end.
    """
    ending = _ENDING.get()
    shown = _with_lines(items, message, total) if ending or not _has_terminal() else _with_bar(items, message, total)
    for item in shown if message else items:
        if ending is not None and ending.is_set():
            raise KeyboardInterrupt
        yield item


def _has_terminal() -> bool:
    return is_main() and sys.stderr.isatty()


def _with_lines(items: Iterable[Item], message: str, total: int) -> Iterator[Item]:
    tell, started = LineAMinute(sys.stderr), time.monotonic()
    for number, item in enumerate(items):
        if number:
            left = (total - number) * (time.monotonic() - started) / number
            tell(lambda done=number, left=left: f"{message}: {done}/{total}, {left / 60:.0f} min to go")  # type: ignore[misc]
        yield item


def _with_bar(items: Iterable[Item], message: str, total: int) -> Iterator[Item]:
    bar = Bar(message, max=total, suffix="%(index)d/%(max)d  %(eta_td)s to go", file=sys.stderr, hide_cursor=False)
    try:
        for item in items:
            yield item
            bar.next()
    finally:
        print(ERASE_LINE, end="", file=sys.stderr, flush=True)
