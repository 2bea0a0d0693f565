"""A prior as a person gives it: `balanced`, `train`, or a file of class shares or counts.

A file is a JSON object of shares by class name, a CSV of two columns, name and share, or one number a line in the order
of the classes. Shares sum to 1; whole numbers are counts, which are divided by their sum.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evaluation.priors.correction import Prior
from evaluation.priors.words import BALANCED, CONTENT, FORMS, TRAIN
from utils.errors import UserError
from utils.files import refuse_constant
from utils.outside import read_plain
from utils.text import shown

ROUNDING = 0.01  # how far from 1 rounded shares may sum
MOST_NAMED = 3  # classes in an error


def read_prior(given: str, class_names: Sequence[str], class_counts: Sequence[int]) -> Prior:
    """Return the prior that `--test_prior` names for K classes, with their training images (K,).

    Raises UserError for a file that cannot be read, and for shares that no prior can have.
    """
    if given == BALANCED:
        return Prior(torch.full((len(class_names),), 1 / len(class_names), dtype=torch.float64), "every class alike")
    if given == TRAIN:
        return _normalised(list(map(float, class_counts)), "the training images", class_names)
    name = f"--test_prior {shown(given)}"
    return _normalised(_read_numbers(Path(given), name, class_names), name, class_names)


def refuse_absent(prior: Prior, labels: Tensor, class_names: Sequence[str]) -> None:
    """Raise UserError where the prior rules out a class that an image is of, by the labels (N,)."""
    seen = torch.bincount(labels.cpu(), minlength=len(class_names)) > 0
    wrong = (seen & (prior.shares == 0)).nonzero().flatten().tolist()
    if wrong:
        raise UserError(
            f"--test_prior gives the share 0 to {_names([class_names[k] for k in wrong])}, of which there are test "
            "images; give every class that occurs a share above 0"
        )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:MOST_NAMED]) + more


def _read_numbers(path: Path, name: str, class_names: Sequence[str]) -> list[float]:
    """Return the numbers of a file in the order of the classes."""
    try:
        text = read_plain(path).decode("utf-8-sig").strip()
    except (OSError, ValueError) as error:
        reason = "no text in UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise UserError(f"{name}: cannot read it ({reason}); it is balanced, train, or {FORMS}") from error
    try:
        if text.startswith(("{", "[")):
            return _in_order(_read_json(text), name, class_names)
        rows = [row for row in csv.reader(io.StringIO(text)) if any(map(str.strip, row))]
        if all(len(row) == 1 for row in rows) and rows:
            numbers = [float(row[0]) for row in rows]
        else:
            numbers = _in_order(_read_pairs(rows), name, class_names)
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        raise UserError(f"{name}: not {CONTENT} ({error})") from error
    if len(numbers) != len(class_names):
        raise UserError(f"{name} has {len(numbers)} numbers, and there are {len(class_names)} classes")
    return numbers


def _read_json(text: str) -> list[tuple[str, float]]:
    pairs = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=list)
    if text.startswith("["):
        raise ValueError("a list does not say which class is meant")
    if not all(type(value) in (int, float) for _, value in pairs):
        raise ValueError("its values are not all numbers")
    return [(key, float(value)) for key, value in pairs]


def _read_pairs(rows: list[list[str]]) -> list[tuple[str, float]]:
    if not rows or not all(len(row) == 2 for row in rows):
        raise ValueError("its rows are not two columns")
    if not _is_number(rows[0][1]):  # titles
        rows = rows[1:]
    return [(name.strip(), float(value)) for name, value in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _in_order(pairs: list[tuple[str, float]], name: str, class_names: Sequence[str]) -> list[float]:
    """Return the numbers given by class name in the order of the classes, each named once and none other."""
    found = dict(pairs)
    missing = [each for each in class_names if each not in found]
    unknown = [each for each in found if each not in set(class_names)]
    if missing or unknown:
        what = f"has no share for {_names(missing)}" if missing else f"names {_names(unknown)}, which is no class"
        raise UserError(f"{name} {what}; it needs one for each of the {len(class_names)} classes")
    if len(pairs) != len(found):
        raise UserError(f"{name} names a class twice")
    return [found[each] for each in class_names]


def _normalised(numbers: list[float], name: str, class_names: Sequence[str]) -> Prior:
    """Return numbers as shares, and say in the words what was done to them."""
    wrong = [class_names[k] for k, value in enumerate(numbers) if not (math.isfinite(value) and value >= 0)]
    if wrong:
        raise UserError(f"{name}: the share of {_names(wrong)} is not a number of at least 0")
    total = math.fsum(numbers)
    whole = all(value == int(value) for value in numbers)
    if total == 0:
        raise UserError(f"{name}: all shares are 0")
    if not whole and abs(total - 1) > ROUNDING:
        raise UserError(f"{name}: the shares sum to {total:.6g}, not 1; whole numbers would be taken for counts")
    words = name.removeprefix("--test_prior ")
    if whole and total > 1:
        words += f", counts divided by their sum, {total:.0f}"
    elif abs(total - 1) > 1e-6:
        words += f", shares divided by their sum, {total:.6g}"
    return Prior(torch.tensor(numbers, dtype=torch.float64) / total, words)
