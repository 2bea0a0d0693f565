"""A progress bar with the time to go, silent where nobody watches."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from progress.bar import Bar

from utils.distributed import is_main

Item = TypeVar("Item")

ERASE_LINE = "\r\x1b[K"  # the next line of the report takes the bar's place


def show_progress(items: Iterable[Item], message: str, total: int) -> Iterator[Item]:
    """Yield `items`, drawing a bar on standard error; nothing is drawn where that is not a terminal."""
    if not (is_main() and sys.stderr.isatty()):
        yield from items
        return
    bar = Bar(message, max=total, suffix="%(index)d/%(max)d  %(eta_td)s to go", file=sys.stderr, hide_cursor=False)
    try:
        for item in items:
            yield item
            bar.next()
    finally:
        print(ERASE_LINE, end="", file=sys.stderr, flush=True)
