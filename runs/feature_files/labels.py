"""Labels as people write them, mapped to 0..K-1 by one order.

The order is that of `class_names` where these are given and the labels are texts; else labels that are numbers, also
where they are written as texts, are in the order of the numbers, and other texts in that of their characters. Labels 0
to K-1 stay as they are.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from runs.feature_files.names import listed
from runs.feature_files.source import Values, describe
from utils.errors import UserError
from utils.text import printable

SHOWN = 5  # of many classes, these are shown
FAR = 1 << 53  # beyond it not every whole number is one of floating point


def map_labels(given: Mapping[str, Values], names: list[str] | None) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return labels (N,) int64 in 0 to K-1 for each of the splits train, test and holdout, the names of the K classes,
    and lines that say what was done to the labels.

    Each of `given` is (N,) or (N, 1) numbers or texts, or (N, K) one-hot. Raises UserError for anything else, and for
    a class that is not among the training labels. A label 0 to K-1 of another split is not judged here.
    """
    notes: list[str] = []
    labels = {split: one_a_row(f"{split}_labels", values, notes) for split, values in given.items()}
    if len(labels["train"]) == 0:
        raise UserError("'train_labels' are empty")
    texts = {split for split, values in labels.items() if isinstance(values, np.ndarray)}
    if texts and texts != labels.keys():
        raise UserError("the labels of some splits are texts and those of others numbers; write them alike")
    if texts and (values := as_numbers(labels, names)) is not None:
        labels, texts = values, set()
    mapped, names, line = map_texts(labels, names) if texts else map_numbers(labels, names)
    if len(names) < 2:
        raise UserError("'train_labels' hold one class; at least two are needed")
    return mapped, [printable(name) for name in names], [*notes, *([line] if line else [])]


def one_a_row(name: str, values: Values, notes: list[str]) -> Values:
    """Return labels as (N,) int64 or (N,) texts; a UserError says what else they are."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise UserError(f"'{name}' must be one label a row, not {describe(values)}")
        if (values == "").any():
            raise UserError(f"'{name}' has no text in row {int((values == '').argmax())}")
        return values
    if values.ndim == 2 and values.shape[1] > 1 and is_one_hot(values):
        notes.append(f"{name}: one-hot of {values.shape[1]} classes")
        return values.long().argmax(dim=1)
    if values.ndim != 1 or values.dtype == torch.bool or values.is_complex():
        raise UserError(f"'{name}' must be one label a row (or one-hot), not {describe(values)}")
    if values.dtype.is_floating_point and not bool(((values == values.round()) & (values.abs() < FAR)).all()):
        raise UserError(f"'{name}' holds numbers that are not whole: labels must be integers or texts")
    labels = values.long()
    if len(labels) and int(labels.min()) < 0:
        raise UserError(f"'{name}' holds {int(labels.min())}; labels are integers from 0 up")
    return labels


def is_one_hot(values: Tensor) -> bool:
    """Tell whether each row (N, K) is 1 in one place and 0 elsewhere."""
    ones = values == 1
    return bool((ones | (values == 0)).all()) and bool((ones.sum(dim=1) == 1).all())


def as_numbers(labels: Mapping[str, Values], names: list[str] | None) -> dict[str, Values] | None:
    """Return texts as the whole numbers that all of them are, or None; those that are names of classes stay texts."""
    if names is not None and set(np.unique(np.asarray(labels["train"])).tolist()) <= set(names):
        return None
    numbers: dict[str, Values] = {}
    for split, values in labels.items():
        texts, places = np.unique(np.asarray(values), return_inverse=True)
        if not all(text.isascii() and text.isdigit() and len(text) < 19 for text in texts.tolist()):
            return None
        numbers[split] = torch.tensor([int(text) for text in texts.tolist()], dtype=torch.int64)[torch.tensor(places)]
    return numbers


def map_texts(labels: Mapping[str, Values], names: list[str] | None) -> tuple[dict[str, Tensor], list[str], str]:
    """Return labels that are texts as places among the names of the classes, these, and a line on the order."""
    present = np.unique(np.asarray(labels["train"])).tolist()  # sorted
    order = present if names is None else names
    lacking = sorted(set(order) - set(present))
    if lacking:
        raise UserError(f"class {printable(lacking[0])} of 'class_names' has no training image")
    place = {text: i for i, text in enumerate(order)}
    mapped = {}
    for split, values in labels.items():
        texts, places = np.unique(np.asarray(values), return_inverse=True)
        strange = [text for text in texts.tolist() if text not in place]
        if strange:
            where = "'train_labels'" if names is None else "'class_names'"
            raise UserError(f"'{split}_labels' holds {listed(map(repr, strange), SHOWN)}, which {where} do not have")
        mapped[split] = torch.tensor([place[text] for text in texts.tolist()], dtype=torch.int64)[torch.tensor(places)]
    how = "sorted by their characters" if names is None else "in the order of 'class_names'"
    return mapped, order, f"labels are texts, {how}: {arrows(order)}"


def map_numbers(labels: Mapping[str, Values], names: list[str] | None) -> tuple[dict[str, Tensor], list[str], str]:
    """Return labels that are numbers as 0 to K-1, the names of the classes, and a line on the order if it is new."""
    numbers = {split: torch.as_tensor(values) for split, values in labels.items()}
    present = numbers["train"].unique()  # sorted
    count = len(present) if names is None else len(names)
    if int(present[-1]) < count:  # they are 0 to K-1
        gaps = torch.nonzero(present != torch.arange(len(present)))
        if len(present) < count:
            first = int(gaps[0]) if len(gaps) else len(present)
            raise UserError(f"class {first} has no training image: 'class_names' are {count}")
        return numbers, names or [str(label) for label in range(count)], ""
    if count != len(present):
        raise UserError(f"'class_names' are {count}, and 'train_labels' have {len(present)} classes")
    mapped = {}
    for split, values in numbers.items():
        places = torch.searchsorted(present, values).clamp(max=count - 1)
        strange = values[present[places] != values].unique().tolist()
        if strange:
            raise UserError(f"'{split}_labels' holds {listed(map(str, strange), SHOWN)}, without a training image")
        mapped[split] = places
    order = [str(number) for number in present.tolist()]
    line = f"labels are not 0 to {count - 1}, so mapped in the order of the numbers: {arrows(order)}"
    return mapped, names or order, line


def arrows(order: list[str]) -> str:
    """Return which label became which class, of many the first and the last ones."""
    words = [f"{text} -> {i}" for i, text in enumerate(order)]
    return ", ".join(words if len(words) <= 2 * SHOWN else [*words[:SHOWN], "...", *words[-SHOWN:]])
