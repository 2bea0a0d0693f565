"""What a file or a folder of features holds, before it is looked at as data: arrays that can be read, by names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from runs.feature_files.names import KINDS, SPLITS, assign, listed, role_of, split_of
from utils.errors import UserError
from utils.text import shown

Values = Tensor | np.ndarray  # an array is one of texts


@dataclass(frozen=True)
class Array:
    """An array of a file that has not been read: shape and type in words, whether it holds texts, and how to read it.

    `read` is given the name that a message has for it.
    """

    words: str
    text: bool
    read: Callable[[str], Values]


@dataclass
class Source:
    """What was read: its sha256, the arrays by this project's names for them, the names of the classes, and what to
    tell: `taken`, which names stood for which, `unused`, and all that there `is`, with shapes and types."""

    digest: str
    arrays: dict[str, Values]
    class_names: list[str] | None = None
    taken: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    holds: str = ""


def describe(values: Values) -> str:
    """Return shape and type of an array in words."""
    kind = "texts" if isinstance(values, np.ndarray) and values.dtype.kind in "US" else str(values.dtype)
    return f"{tuple(values.shape)} in {kind.removeprefix('torch.')}"


def holdings(words: Mapping[str, str]) -> str:
    """Return in a line what a file holds, given the words for each of its arrays."""
    return listed([f"{name} {text}".strip() for name, text in words.items()])


def read_arrays(digest: str, arrays: Mapping[str, Array], split: str | None = None) -> Source:
    """Read of the arrays of a file those whose names say what they are; what else there is is not even read.

    Features and labels without a split are those of `split`. Raises UserError for two names for one thing.
    """
    roles = {name: role_of(name, split) for name in arrays}
    # `classes` may be anything, while `class_names` must be names.
    roles = {n: r if r != "class_names" or n == r or arrays[n].text else None for n, r in roles.items()}
    taken = assign(roles)
    read = {role: arrays[name].read(name) for role, name in taken.items()}
    names = read.pop("class_names", None)
    if names is not None and names.ndim != 1:
        raise UserError(f"'class_names' must be one text a class, not {describe(names)}")
    return Source(
        digest,
        read,
        None if names is None else names.tolist(),
        taken,
        sorted(arrays.keys() - set(taken.values())),
        holdings({name: array.words for name, array in arrays.items()}),
    )


def divide(arrays: dict[str, Values]) -> dict[str, Values]:
    """Return arrays of all splits as arrays of one each, by the array `split` of a text a row; others as they are.

    Rows keep their order. Raises UserError where a text is no known split or the lengths differ.
    """
    if "split" not in arrays or not all(kind in arrays for kind in KINDS):
        return arrays
    column = arrays["split"]
    if not isinstance(column, np.ndarray) or column.ndim != 1:
        raise UserError(f"'split' must be one text a row (train, test or holdout), not {describe(column)}")
    texts, places = np.unique(column, return_inverse=True)
    splits = [split_of(text) for text in texts.tolist()]
    unknown = [text for text, split in zip(texts.tolist(), splits, strict=True) if split is None]
    if unknown:
        raise UserError(f"'split' holds {listed(map(repr, unknown), 5)}; it may be train, test or holdout")
    for kind in KINDS:
        if len(arrays[kind]) != len(column):
            raise UserError(f"'{kind}' has {len(arrays[kind])} rows and 'split' {len(column)}")
    divided = {name: values for name, values in arrays.items() if name not in (*KINDS, "split")}
    numbers = np.array([-1 if split is None else list(SPLITS).index(split) for split in splits])[places]
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(numbers == number)
        if len(rows):
            together = rows[-1] - rows[0] + 1 == len(rows)  # then nothing is copied
            chosen = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
            divided |= {f"{split}_{kind}": arrays[kind][chosen] for kind in KINDS}
    return divided


def refuse_missing(source: Source) -> None:
    """Raise UserError, with what there is, where train or test lacks its features or labels, or held-out rows do."""
    arrays = source.arrays
    splits = list(SPLITS) if any(name.startswith("holdout_") for name in arrays) else ["train", "test"]
    missing = [f"{split}_{kind}" for split in splits for kind in KINDS if f"{split}_{kind}" not in arrays]
    if not missing:
        return
    advice = ""
    if all(kind in arrays for kind in KINDS):
        advice = (
            ": 'features' and 'labels' do not say of which split they are; name them train_features, train_labels, "
            "test_features and test_labels, add 'split' with train or test for each row, or name a folder that has "
            "train and test in the names of its files"
        )
    elif missing == ["test_features", "test_labels"]:
        advice = ": there is nothing to report on; put a part of the rows there that is in no other split"
    raise UserError(f"'{missing[0]}' is missing{advice}; it holds {source.holds or 'nothing'}")


def too_few_words(count: int, whole: int, name: str) -> str:
    """Return the line for a file that is shorter than it says of an array."""
    return f"'{shown(name)}' says that it has {whole:,} bytes, and the file has {count:,}"
