"""A progress bar with the time to go, silent where nobody watches."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from progress.bar import Bar

Item = TypeVar("Item")


def show_progress(items: Iterable[Item], message: str, total: int) -> Iterator[Item]:
    """Yield `items`, drawing a bar on standard error; nothing is drawn where that is not a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    bar = Bar(message, max=total, suffix="%(index)d/%(max)d  %(eta_td)s to go", file=sys.stderr)
    try:
        for item in items:
            yield item
            bar.next()
    finally:
        bar.clearln()
        bar.finish()
