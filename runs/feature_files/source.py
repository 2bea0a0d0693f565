"""What a file or a folder of features holds, before it is looked at as data: arrays that can be read, by names."""

import enum
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.features import EXACT, FileRows
from runs.feature_files.names import KINDS, SPLITS, assign, listed, role_of, split_of
from utils.errors import UserError
from utils.outside import HeldFile
from utils.text import shown

Values = Tensor | np.ndarray  # an array is one of texts
Stored = Values | FileRows  # these are features
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHARE = 0.5  # of the machine's memory: larger features stay in their file, unless the command says otherwise


class Stay(enum.Enum):
    """Which features stay in their file until their rows are needed; the value is that of `--mmap`."""

    LARGE = "auto"  # those of files that are large beside the memory, where their form allows it
    ALWAYS = "on"  # all; a form that does not allow it is refused
    NEVER = "off"  # none

    def settled(self, paths: Sequence[Path]) -> "Stay":
        """Return `ALWAYS`, `NEVER` or, of files that are large together, `LARGE`: all whose form allows it."""
        if self is not Stay.LARGE:
            return self
        size = sum(path.stat().st_size for path in paths if path.is_file())
        return Stay.LARGE if READS_PARTS and size > SHARE * memory_size() else Stay.NEVER


READS_PARTS = hasattr(os, "preadv")


def memory_size() -> float:
    """Return the memory of this machine or, where that is less, of this container, in bytes; infinity if unknown."""
    sizes = [math.inf]
    if hasattr(os, "sysconf"):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        sizes.append(int(text))
    return min(sizes)


@dataclass(frozen=True)
class Array:
    """An array of a file that has not been read: shape and type in words, whether it holds texts, and how to read it.

    `read` is given the name that a message has for it. `rows` returns it as rows that stay in the file; where that
    cannot be it is None, and `moved` says why not.
    """

    words: str
    text: bool
    read: Callable[[str], Values]
    rows: Callable[[], FileRows] | None = None
    moved: str = "in a form that must be read as a whole"


def rows_in(
    file: HeldFile, place: int, shape: tuple[int, ...], stored: torch.dtype | None
) -> Callable[[], FileRows] | None:
    """Return what makes rows (N, ...) that stay in a file from their `place`, None for what is no floating point."""
    if stored not in FLOATS or len(shape) < 2:
        return None
    own: torch.dtype = torch.float16 if stored == torch.float16 else torch.float32
    return lambda: FileRows(file, place, shape, stored, own)


def read_array(array: Array, name: str, role: str, stay: Stay) -> Stored:
    """Return an array of a file, which has this name there: features as rows of the file where they are to stay."""
    if stay is Stay.NEVER or "features" not in role:
        return array.read(name)
    if array.rows is not None:
        return array.rows()
    if stay is Stay.ALWAYS:
        raise UserError(
            f"--mmap on: '{shown(name)}' cannot stay in its file, being {array.moved}; numpy.save, numpy.savez and "
            "safetensors write what can, row by row in floating point"
        )
    return array.read(name)


@dataclass
class Source:
    """What was read: its sha256, the arrays by this project's names for them, the names of the classes, and what to
    tell: `taken`, which names stood for which, `unused`, and all that there `is`, with shapes and types."""

    digest: str
    arrays: dict[str, Stored]
    class_names: list[str] | None = None
    taken: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    holds: str = ""


def describe(values: Stored) -> str:
    """Return shape and type of an array in words."""
    kind = "texts" if isinstance(values, np.ndarray) and values.dtype.kind in "US" else str(values.dtype)
    kind = str(values.stored) if isinstance(values, FileRows) else kind
    return f"{tuple(values.shape)} in {kind.removeprefix('torch.')}"


def whole_as_float(values: np.ndarray, what: str, start: int = 0) -> np.ndarray:
    """Return whole numbers (N, ...) as float32; a UserError says that `what` holds numbers that would be rounded.

    `start` is the number of the first row.
    """
    if values.size and (int(values.max()) > EXACT or int(values.min()) < -EXACT):
        inside = ((values <= EXACT) & (values >= -EXACT)).reshape(len(values), -1)
        row = int(inside.all(axis=1).argmin())
        first = f"{values.reshape(len(values), -1)[row][~inside[row]][0]} in row {start + row}"
        raise UserError(
            f"{what} holds whole numbers beyond {EXACT:,}, which float32 rounds (first: {first}); leave out what only "
            "names images, and save measured numbers as float32"
        )
    return values.astype(np.float32)


def holdings(words: Mapping[str, str]) -> str:
    """Return in a line what a file holds, given the words for each of its arrays."""
    return listed([f"{name} {text}".strip() for name, text in words.items()])


def read_arrays(digest: str, arrays: Mapping[str, Array], split: str | None = None, stay: Stay = Stay.NEVER) -> Source:
    """Read of the arrays of a file those whose names say what they are; what else there is is not even read.

    Features and labels without a split are those of `split`. Features may `stay` in the file. Raises UserError for two
    names for one thing.
    """
    roles = {name: role_of(name, split) for name in arrays}
    # `classes` may be anything, while `class_names` must be names.
    roles = {n: r if r != "class_names" or n == r or arrays[n].text else None for n, r in roles.items()}
    taken = assign(roles)
    read = {role: read_array(arrays[name], name, role, stay) for role, name in taken.items()}
    names = read.pop("class_names", None)
    if names is not None and (not isinstance(names, np.ndarray) or names.ndim != 1):
        raise UserError(f"'class_names' must be one text a class, not {describe(names)}")
    return Source(
        digest,
        read,
        None if names is None else names.tolist(),
        taken,
        sorted(arrays.keys() - set(taken.values())),
        holdings({name: array.words for name, array in arrays.items()}),
    )


def divide(arrays: dict[str, Stored]) -> dict[str, Stored]:
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
        raise UserError(
            f"'split' holds {listed(map(repr, unknown), 5)}; it may be train, test or holdout, a text a row"
        )
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
            divided |= {f"{split}_{kind}": chosen_rows(arrays[kind], chosen) for kind in KINDS}
    return divided


def tested_on_held_out(arrays: dict[str, Stored]) -> tuple[dict[str, Stored], list[str]]:
    """Return arrays whose held-out rows are the test where there is no test, as of folders and lists, and a note of it;
    others as they are."""
    held_out = {f"holdout_{kind}": f"test_{kind}" for kind in KINDS}
    if not all(name in arrays for name in held_out) or any(name.startswith("test_") for name in arrays):
        return arrays, []
    count = len(arrays["holdout_labels"])
    note = f"there is no test split, so that the {count:,} held-out rows are the test"
    return {held_out.get(name, name): values for name, values in arrays.items()}, [note]


def chosen_rows(values: Stored, rows: np.ndarray | slice) -> Stored:
    """Return some rows of an array; of one that stays in its file they stay there."""
    return values.take(rows) if isinstance(values, FileRows) else values[rows]


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
        advice = ": there is nothing to report on; name rows that are in no other split so"
    raise UserError(f"'{missing[0]}' is missing{advice}; it holds {source.holds or 'nothing'}")


def too_few_words(count: int, whole: int, name: str) -> str:
    """Return the line for a file that is shorter than it says of an array."""
    return f"'{shown(name)}' says that it has {whole:,} bytes, and the file has {count:,}"
