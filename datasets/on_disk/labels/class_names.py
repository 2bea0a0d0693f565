"""Names for the classes of a list, from a file that a user or a data set's authors wrote."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from datasets.on_disk.labels.classes import Classes
from datasets.on_disk.labels.writing import number_of
from utils.errors import UserError
from utils.outside import read_plain
from utils.text import shown

SEPARATORS = (",", "\t", ";")


class NamesFile:
    """A file of class names: `names` in the order of the classes, or `name_of` with the name of each label."""

    def __init__(self, path: Path, names: list[str], name_of: dict[int | str, str]) -> None:
        self.path, self.names, self.name_of = path, names, name_of

    def known(self) -> frozenset[str]:
        """Return what may be labels themselves: the names, where the file has nothing but them."""
        return frozenset(self.names)

    def name(self, classes: Classes) -> list[str]:
        """Return the name of each class (K,); a UserError says which one has none."""
        keys = classes.keys()
        if self.name_of:
            lacking = [key for key in keys if key not in self.name_of]
            if lacking:
                raise UserError(f"{self.path} has no name for the label '{shown(str(lacking[0]))}'")
            return [self.name_of[key] for key in keys]
        if set(keys) <= set(self.names):  # the labels are these names
            return [str(key) for key in keys]
        if len(self.names) == classes.count or (classes.plain and len(self.names) > classes.count):
            return self.names[: classes.count]
        raise UserError(
            f"{self.path} has {len(self.names)} names for {classes.count} classes; write 'number name' on each line to "
            "say which is which"
        )


def read_class_names(path: Path) -> NamesFile:
    """Read names of classes: one a line, `number name` or `name number` a line, two columns of a CSV, JSON.

    JSON is a list of names, or an object from number to name or from name to number. Where a file has no numbers, names
    are in the order of the classes. In the place of a number may stand a label that is a name itself (a synset). Raises
    UserError for anything else.
    """
    try:
        text = read_plain(path, "the class names").decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the class names {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text; save the class names in UTF-8") from error
    if path.suffix.lower() == ".json":
        return from_json(path, text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} holds no class names")
    return from_pairs(path, lines, columns_of(text) or [line.split(None, 1) for line in lines])


def columns_of(text: str) -> list[list[str]]:
    """Return the two columns of a table; nothing where the text is none."""
    for sign in SEPARATORS:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=sign, skipinitialspace=True) if row]
        if all(len(row) == 2 for row in rows) and number_column(rows[1:] or rows) is not None:
            cells = [[cell.strip() for cell in row] for row in rows]
            return cells if number_column(cells) is not None else cells[1:]  # without a header
    return []


def number_column(rows: list[list[str]]) -> int | None:
    """Return which of two columns, the first or the last, holds a whole number in every row."""
    for place in (0, -1):
        if rows and all(len(row) == 2 and number_of(row[place].strip()) is not None for row in rows):
            return place
    return None


def from_pairs(path: Path, lines: list[str], rows: list[list[str]]) -> NamesFile:
    """Return the names of a text, whose lines are pairs with a number or names alone."""
    place = number_column(rows)
    if place is None and rows and rows[0] == lines[0].split(None, 1):
        last = [line.rsplit(None, 1) for line in lines]
        place, rows = (number_column(last), last) if number_column(last) == -1 else (None, rows)
    if place is not None:
        return NamesFile(path, [], unique(path, [(number_of(row[place].strip()), row[-1 - place]) for row in rows]))
    firsts = [row[0] for row in rows if len(row) == 2]
    if len(firsts) == len(rows) == len(set(firsts)) and all(is_synset(word) for word in firsts):
        return NamesFile(path, [], unique(path, [(row[0], row[1]) for row in rows]))
    return NamesFile(path, lines, {})


def is_synset(word: str) -> bool:
    """Tell whether a word is an id of WordNet, as `n01440764`."""
    return len(word) == 9 and word[0] == "n" and word[1:].isdecimal()


def from_json(path: Path, text: str) -> NamesFile:
    """Return the names of a JSON list or object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return NamesFile(path, content, {})
    if isinstance(content, dict) and content:
        pairs = [(key_of(key), name_in(value)) for key, value in content.items()]
        if all(type(value) is int for value in content.values()):
            pairs = [(int(value), key) for key, value in content.items()]
        if all(pair[1] for pair in pairs):
            return NamesFile(path, [], unique(path, pairs))
    raise UserError(f"{path} is neither a list of class names nor an object from number to name")


def key_of(word: str) -> int | str:
    """Return a key of JSON as the label that it is."""
    number = number_of(word)
    return word if number is None else number


def name_in(value: Any) -> str:
    """Return the name that a value of JSON is: a string, or several (synset and name) one behind the other."""
    words = value if isinstance(value, list) else [value]
    return " ".join(words) if all(isinstance(word, str) for word in words) else ""


def unique(path: Path, pairs: list[tuple[Any, str]]) -> dict[int | str, str]:
    """Return a dictionary of the pairs; a UserError names a label that two of them have."""
    found: dict[int | str, str] = {}
    for label, name in pairs:
        if label in found:
            raise UserError(f"{path} names the label '{shown(str(label))}' twice")
        found[label] = name.strip()
    return found
