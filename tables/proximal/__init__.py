"""Proximal LOS, a table a view: over lambda, over scales and solvers, beside the path, its parts, a held-out choice."""

from collections.abc import Callable

from tables.proximal import choice, grid, parts, path, sensitivity
from tables.request import Request

VIEWS: dict[str, Callable[[Request], None]] = {
    "lambda": grid.make_table,
    "sensitivity": sensitivity.make_table,
    "path": path.make_table,
    "parts": parts.make_table,
    "choice": choice.make_table,
}


def make_table(request: Request) -> None:
    """Make the views that were asked for, over lambda if none was."""
    for view in request.views or ["lambda"]:
        VIEWS[view](request)
