"""CSV files: written so that a spreadsheet takes no text for a formula, and read back as what was written.

A text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return, and is no number, gets a `'` before it; so does
one that begins with `'` and would be taken for such a cell. To undo it, take one `'` away from every cell that begins
with `'`, any number more of them and one of those signs. `read_csv` does; numbers are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.outside import open_plain

if TYPE_CHECKING:
    import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\r]")
GUARDED = re.compile(r"''*[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")


def guarded(value: Any) -> Any:
    """Return the cell of a CSV for a value: text that a spreadsheet would take for a formula behind a `'`."""
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def unguarded(value: Any) -> Any:
    """Return the value that `guarded` made a cell of."""
    return value[1:] if isinstance(value, str) and GUARDED.match(value) else value


def changed(table: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """Return a table after a change of its texts; columns in which nothing changes are as they were."""
    import pandas as pd

    new: dict[str, pd.Series] = {}
    for name, column in table.items():
        cells = [] if pd.api.types.is_numeric_dtype(column) else [change(cell) for cell in column]
        if any(isinstance(cell, str) and cell != old for cell, old in zip(cells, column, strict=False)):
            new[str(name)] = pd.Series(cells, index=column.index, dtype=object)
    return table.assign(**new)


def csv_text(table: pd.DataFrame, float_format: str | None = None) -> str:
    """Return a table as CSV, without its index, its texts `guarded`."""
    return changed(table, guarded).to_csv(index=False, float_format=float_format)


def read_csv(path: Path, needed: Sequence[str] = (), **options: Any) -> pd.DataFrame:
    """Read a CSV file of ours; a UserError names one that is missing, damaged, or lacks columns that are needed."""
    import pandas as pd

    try:
        with open_plain(path) as file:
            table = pd.read_csv(file, **options)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged, or no CSV file ({error})") from error
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise UserError(f"{path} is damaged: it has no column {', '.join(missing)}")
    return changed(table, unguarded)
