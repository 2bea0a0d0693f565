"""Tables with a row for each image: what they are, and their rows, read by pandas in parts of a bounded size."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.on_disk.layouts import TABLES, ListFiles
from datasets.on_disk.rows import Listing, Row, Source, collect
from datasets.on_disk.tables.columns import (
    LABELS,
    ONES,
    PATHS,
    ZEROS,
    Columns,
    guess_split,
    is_file_name,
)
from datasets.on_disk.tables.splits import plain_word, split_of
from utils.errors import UserError
from utils.outside import open_plain
from utils.text import shown

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = dict(zip(TABLES, (",;\t|", "\t", "\t", "|"), strict=True))  # and their separators
OTHERS = (".xlsx", ".xls", ".ods", ".parquet", ".feather", ".jsonl", ".ndjson", ".pkl", ".pickle")
SEPARATORS = ",;\t|"
HEAD = 1 << 16  # bytes that are looked at to tell the separator
SAMPLE = 1000  # rows by which columns are told
CELLS = 2_000_000  # of a part: tables of thousands of columns are read in smaller ones
RAGGED = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


@dataclass(frozen=True)
class Table:
    """A table: its file, its separator, the encoding of its text, its columns' names, and its first rows.

    `first_row` is the number of the first row with an image as spreadsheets count: 2 behind a header, 1 without one.
    """

    path: Path
    separator: str
    encoding: str
    header: tuple[str, ...]
    sample: list[list[str]]
    first_row: int

    def place(self, number: int) -> str:
        """Return in words where a row is."""
        return f"{self.path}, row {number}"


def head_of(path: Path) -> tuple[str, str]:
    """Return the first lines of a list as text, and their encoding, which a byte order mark tells."""
    try:
        with open_plain(path, "the list") as file:
            start = file.read(HEAD)
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = start.decode(encoding, "ignore" if encoding == "utf-16" else "surrogateescape")
    return (text if len(start) < HEAD else text[: text.rfind("\n") + 1] or text), encoding


def first_rows(text: str, separator: str, most: int = 20) -> list[list[str]]:
    """Return the first rows of a text under a separator that are not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
            if len(rows) == most:
                break
    except csv.Error:  # a field without an end
        pass
    return rows


def separator_of(text: str, candidates: str) -> str | None:
    """Return the sign that parts the first rows into most fields, all rows alike where one does so; None for none."""
    best: tuple[bool, int, str] | None = None
    for sign in candidates:
        widths = [len(row) for row in first_rows(text, sign)]
        if widths and widths[0] > 1 and (best is None or (len(set(widths)) == 1, widths[0]) > best[:2]):
            best = (len(set(widths)) == 1, widths[0], sign)
    return None if best is None else best[2]


def is_table(path: Path, files: ListFiles) -> bool:
    """Tell whether a list is a table: by the end of its name, by flags that name its columns, or by its header.

    Raises UserError for kinds of tables that are not read.
    """
    if path.suffix.lower() in OTHERS:
        raise UserError(f"{path}: such files are not read as lists; save the table as CSV")
    if path.suffix.lower() == ".json":
        return False
    text, _ = head_of(path)
    separator = separator_of(text, ENDINGS.get(path.suffix.lower(), SEPARATORS))
    if path.suffix.lower() in ENDINGS:
        return separator is not None or files.names_columns()
    if files.names_columns():
        return True
    header = {plain_word(word) for word in first_rows(text, separator, 1)[0]} if separator else set()
    return bool(header & PATHS and header & LABELS)


def open_table(path: Path) -> Table:
    """Look at a table: its separator, its header, its first rows. A first row with the name of an image is no header,
    and the columns are then called 1, 2, ..."""
    text, encoding = head_of(path)
    if encoding != "utf-16" and "\0" in text:
        raise UserError(f"{path} is no UTF-8 text; save the table as CSV in UTF-8")
    candidates = ENDINGS.get(path.suffix.lower(), SEPARATORS + " ")
    separator = separator_of(text, candidates) or separator_of(text, SEPARATORS + " ")
    if separator is None:
        kinds = "comma, semicolon, tab, |"
        raise UserError(f"{path}: its first line has one column alone; a table has columns parted by {kinds}")
    table = Table(path, separator, encoding, (), [], 1)
    first = next(parts_of(table, SAMPLE), None)
    rows = [] if first is None else first.to_numpy().tolist()
    start = next((number for number, row in enumerate(rows) if any(cell.strip() for cell in row)), None)
    if start is None:
        raise UserError(f"the list {path} names no images")
    header, begins = [cell.strip() for cell in rows[start]], start + 1
    if any(map(is_file_name, header)):
        header, begins = [str(number) for number in range(1, len(header) + 1)], start
    sample = [row for row in rows[begins:] if any(cell.strip() for cell in row)]
    if not sample:
        raise UserError(f"the list {path} names no images: it has a header alone")
    return replace(table, header=tuple(header), sample=sample, first_row=begins + 1)


def parts_of(table: Table, size: int) -> Iterator[pd.DataFrame]:
    """Yield all rows of a table as text, `size` at a time; nothing becomes a number or a missing value.

    All columns are read: with `usecols`, pandas does not see that a row has too many fields.
    """
    import pandas as pd

    try:
        with open_plain(table.path, "the list") as file:
            yield from pd.read_csv(
                file,
                sep=table.separator,
                header=None,
                dtype=object,  # of text: `str` may be Arrow's, which holds no bytes that are not UTF-8
                na_filter=False,
                skip_blank_lines=False,
                skipinitialspace=True,
                encoding=table.encoding,
                encoding_errors="surrogateescape",
                chunksize=size,
            )
    except OSError as error:
        raise UserError(f"cannot read the list {table.path}: {error.strerror or error}") from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"the list {table.path} names no images") from error
    except (pd.errors.ParserError, UnicodeError) as error:
        found = RAGGED.search(str(error))
        words = shown(" ".join(str(error).split()))
        if found:
            words = f"row {found[2]} has {found[3]} fields, not {found[1]}; quote a field that holds the separator"
        raise UserError(f"{table.path}: {words}") from error


def read_table(table: Table, columns: Columns, root: Path, suffix: str, part: str | None = None) -> Listing:
    """Read the rows of a table, of one split alone where `part` names it.

    Raises UserError, with the row's number, for what `collect` refuses, for a row without path, label or split, and for
    one of several classes.
    """
    rows = one_hot_rows(table, columns, part) if columns.one_hot else labelled_rows(table, columns, part)
    return collect(Source(table.path, root, suffix, table.place), rows)


def count_splits(table: Table, columns: Columns) -> Counter[str]:
    """Return how many rows each split has."""
    assert columns.split is not None
    header = columns.header[columns.split]
    return Counter(str(split_of(cells[0], header)) for _, cells in cells_of(table, [columns.split], columns, None))


def cells_of(
    table: Table, places: list[int], columns: Columns, part: str | None
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the number of each row of a split, and its cells in the columns `places`, without blanks around them."""
    number = 0
    for frame in parts_of(table, max(CELLS // len(table.header), 1)):
        wanted = [frame[place].tolist() for place in [*places, *([] if columns.split is None else [columns.split])]]
        for row in zip(*wanted, strict=True):
            number += 1
            cells = list(row)
            if number < table.first_row or not "".join(cells).strip():
                continue
            if columns.split is not None:
                value = cells.pop()
                found = split_of(value, columns.header[columns.split])
                if found is None:
                    raise UserError(
                        f"{table.place(number)}: the split '{shown(value)}' is none of train, val and test, nor one of "
                        "their usual other names"
                    )
                if part is not None and found != part:
                    continue
            yield number, tuple(cell.strip() for cell in cells)


def labelled_rows(table: Table, columns: Columns, part: str | None) -> Iterator[Row]:
    """Yield the rows whose label stands in one column; other columns of labels must say the same."""
    first, *others = columns.labels
    same: list[dict[str, str]] = [{} for _ in range(2 * len(others))]
    for number, (path, word, *rest) in cells_of(table, [columns.path, first, *others], columns, part):
        if not path or not word:
            lacking = columns.header[first if path else columns.path]
            raise UserError(
                f"{table.place(number)} has nothing in its column '{shown(lacking)}'; fill it or leave it out"
            )
        for place, other in enumerate(rest):
            there, back = same[2 * place].setdefault(word, other), same[2 * place + 1].setdefault(other, word)
            if (there, back) != (other, word):
                names = [f"'{shown(columns.header[column])}'" for column in (first, others[place])]
                raise UserError(
                    f"{table.place(number)}: the columns {' and '.join(names)} name other classes; choose one with "
                    "--label_column"
                )
        yield number, path, word


def one_hot_rows(table: Table, columns: Columns, part: str | None) -> Iterator[Row]:
    """Yield the rows whose class is the column that holds a 1."""
    for number, (path, *cells) in cells_of(table, [columns.path, *columns.labels], columns, part):
        marked = [columns.header[column] for column, cell in zip(columns.labels, cells, strict=True) if cell in ONES]
        strange = [cell for cell in cells if cell not in (*ONES, *ZEROS)]
        if strange or len(marked) != 1 or not path:
            words = (
                f"'{shown(strange[0])}' beside 0 and 1"
                if strange
                else f"{len(marked)} classes ({shown(', '.join(marked))})"
            )
            raise UserError(
                f"{table.place(number)} has {words} in its columns of classes, where one 1 is wanted; leave the row out"
            )
        yield number, path, marked[0]


def with_split(table: Table, columns: Columns) -> Columns:
    """Return the columns with the one that says the split, where there is one and no flag names it."""
    return columns if columns.split is not None else replace(columns, split=guess_split(columns, table.sample))
