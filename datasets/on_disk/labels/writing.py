"""The ways in which public data sets write the label of an image."""

import re
import unicodedata
from collections.abc import Iterable

WHOLE = re.compile(r"-?[0-9]{1,18}")
DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?")
BRACKETS = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
SEPARATORS = ("|", ";", ",", None)  # of several labels; None is white space
SURE = 2**53  # above it, a floating-point number may have been another whole number


def number_of(word: str) -> int | None:
    """Return the whole number that a label is, as `7`, `007`, `7.0` or `7e0`; None where it is none."""
    if WHOLE.fullmatch(word):
        return int(word)
    if not DECIMAL.fullmatch(word):
        return None
    value = float(word)
    return int(value) if value.is_integer() and abs(value) < SURE else None


def is_decimal(word: str) -> bool:
    """Tell whether a label is a number, whole or not."""
    return DECIMAL.fullmatch(word) is not None


def several_labels(word: str, words: set[str]) -> bool:
    """Tell whether a label is a list of labels: in brackets, or parts that are numbers or stand alone in `words`."""
    if BRACKETS.fullmatch(word):
        return True
    for sign in SEPARATORS:
        parts = [part.strip() for part in word.split(sign)]
        if len(parts) > 1 and all(parts) and (words.issuperset(parts) or all(map(str.isdecimal, parts))):
            return True
    return False


def folded(word: str) -> str:
    """Return a name without what the eye hardly sees: case, kinds of accents and blanks."""
    return " ".join(unicodedata.normalize("NFKC", word).casefold().replace("_", " ").split())


def look_alikes(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of names that differ in what the eye hardly sees."""
    seen: dict[str, str] = {}
    found = [(seen.setdefault(folded(word), word), word) for word in words]
    return [(one, other) for one, other in found if one != other]


def runs_of(numbers: Iterable[int], most: int = 8) -> str:
    """Return ascending numbers as text, neighbours drawn together: "1-3, 17, 501"; of many runs the first ones and the
    last."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [f"{low}" if low == high else f"{low}-{high}" for low, high in runs]
    return ", ".join(words if len(words) <= most else [*words[: most - 1], "...", words[-1]])
