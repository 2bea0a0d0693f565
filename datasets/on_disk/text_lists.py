"""Text files of `path label` a line (Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019,
and the field since)."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.on_disk.listed_split import ListedSplit
from datasets.on_disk.rows import Listing, Row, Source, collect, in_lines
from utils.errors import UserError
from utils.outside import open_plain
from utils.text import shown

LABEL = re.compile(r"[0-9]{1,9}")
IMAGE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|ppm|pgm)$", re.IGNORECASE)
SEPARATORS = (",", ";", "|")  # of a table that is called a text


def read_text(path: Path, root: Path, suffix: str = "") -> Listing:
    """Read a text file of `path label` a line, the label behind the last white space or, where it is a name, behind a
    tab.

    A byte order mark, Windows line ends and blank lines are accepted. Raises UserError, with the line's number, for a
    line without a label and a path that leaves `root`.
    """
    return collect(Source(path, root, suffix, in_lines(path)), text_rows(path))


def read_list(path: Path, root: Path, num_classes: int | None = None) -> ListedSplit:
    """Read a text file of `path label` a line whose labels are the numbers of the classes.

    Raises UserError as `read_text` does, and for a label that is no integer from 0 to `num_classes` - 1.
    """
    return numbered(read_text(path, root), num_classes)


def numbered(listing: Listing, num_classes: int | None) -> ListedSplit:
    """Return the images of a list whose labels are the numbers of the classes; a UserError names any other label."""
    limit = 10**9 if num_classes is None else num_classes
    for code, word in enumerate(listing.words):
        if not LABEL.fullmatch(word) or int(word) >= limit:
            wanted = "an integer of 0 or more" if num_classes is None else f"an integer from 0 to {limit - 1}"
            raise UserError(f"{listing.where(code)}: the label '{shown(word)}' is not {wanted}")
    numbers = np.array([int(word) for word in listing.words], dtype=np.int64)
    return replace(listing.images, labels=numbers[listing.images.labels])


def text_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a text file; file names are bytes, and what is not UTF-8 in them comes out as it went in."""
    empty = True
    try:
        with io.TextIOWrapper(open_plain(path, "the list"), encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                words = line.rsplit(None, 1)
                if "\0" in line:
                    raise UserError(
                        f"{path}, line {number}: this is no UTF-8 text; save the list as plain text in UTF-8"
                    )
                if len(words) < 2:
                    if not words:
                        continue
                    table = any(sign in line for sign in SEPARATORS)
                    hint = "; a table needs a name that ends in .csv or .tsv" if table else ""
                    raise UserError(
                        f"{path}, line {number}: '{shown(words[0])}' has no label; a line is 'path label'{hint}"
                    )
                if "\t" in line:
                    words = behind_tab(line) or words
                empty = False
                yield number, words[0], words[1]
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error
    if empty:
        raise UserError(f"the list {path} names no images; it needs lines of 'path label'")


def behind_tab(line: str) -> list[str]:
    """Return path and label of a line whose label stands behind a tab and is a name of several words; else nothing."""
    path, _, label = line.strip().rpartition("\t")
    several = path and " " in label.strip() and (IMAGE.search(path.strip()) or not label[-1:].isdecimal())
    return [path.strip(), label.strip()] if several else []
