"""Text files of `path label` a line (Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019,
and the field since)."""

import io
import os
import re
from pathlib import Path

from datasets.on_disk.listed_split import ListedSplit, pack
from datasets.on_disk.paths import path_fault
from utils.errors import UserError
from utils.outside import open_plain
from utils.text import shown

LABEL = re.compile(r"[0-9]{1,9}")


def read_list(path: Path, root: Path, num_classes: int | None = None) -> ListedSplit:
    """Read a text file of `path label` a line, the label behind the last white space.

    A byte order mark, Windows line ends and blank lines are accepted. Raises UserError, with the line's number, for a
    line without a label, a label that is no integer from 0 to `num_classes` - 1, and a path that leaves `root`.
    """
    limit = 10**9 if num_classes is None else num_classes
    paths: list[bytes] = []
    labels: list[int] = []
    try:
        # File names are bytes: whatever is not UTF-8 in them comes out as it went in.
        with io.TextIOWrapper(open_plain(path, "the list"), encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                words = line.rsplit(None, 1)
                if not words:
                    continue
                fault = line_fault(words, limit)
                if fault and "\0" in line:
                    fault = "this is no UTF-8 text; save the list as plain text in UTF-8"
                if fault:
                    raise UserError(f"{path}, line {number}: {fault}")
                paths.append(os.fsencode(words[0]))
                labels.append(int(words[1]))
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error
    if not paths:
        raise UserError(f"the list {path} names no images; it needs lines of 'path label'")
    return pack(root, paths, labels)


def line_fault(words: list[str], limit: int) -> str:
    """Return what is wrong with a line of a list, split into [path, label]; "" if nothing is."""
    if len(words) < 2:
        return f"'{shown(words[0])}' has no label; a line is 'path label'"
    if not LABEL.fullmatch(words[1]) or int(words[1]) >= limit:
        wanted = "an integer of 0 or more" if limit == 10**9 else f"an integer from 0 to {limit - 1}"
        return f"the label '{shown(words[1])}' is not {wanted}"
    return path_fault(words[0])
