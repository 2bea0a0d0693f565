"""Tables in `.parquet`, one row an image: a column of lists or a column a feature, one of labels, perhaps of splits.

A file is read batch by batch into arrays of their final size, with pyarrow, which is needed for nothing else.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from runs.archives import refuse_unpacked
from runs.feature_files.names import SPLITS, assign, listed, role_of, split_of
from runs.feature_files.numpy_arrays import from_numpy
from runs.feature_files.source import Source, Stored, Values, holdings, whole_as_float
from runs.shards import joint_sha256
from utils.errors import UserError
from utils.files import sha256_of
from utils.outside import open_plain
from utils.text import shown

BATCH = 1 << 22  # numbers that are read in one go
NUMBERED = re.compile(r"(.*?)[-_.](\d+)-of-(\d+)(.*)", re.DOTALL)
# Columns that count rows or name images.
NO_FEATURES = re.compile(r"__index_level_\d+__|unnamed: ?\d+|index|idx|id|(image|img|sample|row|file)_?(id|idx|index)")


@dataclass(frozen=True)
class Part:
    """A file of a table: its name in messages and the split that its name says."""

    path: Path
    name: str
    split: str | None = None


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are: features in one column of lists or a column each, labels, splits."""

    features: tuple[str, ...]
    labels: str
    split: str | None
    lists: bool
    half: bool  # float16, which is kept; all others become float32
    class_names: tuple[str, ...] | None
    unused: tuple[str, ...]


def read_parquet(parts: Sequence[Part]) -> Source:
    """Read a table of one or several files, in the order of the numbers in their names.

    A file is of the split that its name says, else each row of that in the column of splits. Raises UserError where
    pyarrow is missing, where files differ in columns, and where one of several numbered ones is missing.
    """
    refuse_missing_parts(parts)
    parts = sorted(parts, key=lambda part: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", part.name)])
    digests, tables = [], []
    for part in parts:
        with open_plain(part.path, "the features") as file:
            digest = sha256_of(file)
            digests.append(digest if len(parts) == 1 else f"{part.split} {digest}\n")
            tables.append(columns_of(open_table(file, part.name).schema_arrow, part))
    columns = common_columns(tables, parts)
    labels, numbers = zip(*(read_rows(part, columns) for part in parts), strict=True)
    features = read_all_features(parts, columns, numbers)
    if any(isinstance(one, np.ndarray) for one in labels) and any(isinstance(one, torch.Tensor) for one in labels):
        raise UserError("the labels of some files are texts and those of others numbers; write them alike")
    where = np.concatenate(numbers)
    together = np.concatenate([np.asarray(one) for one in labels])
    arrays: dict[str, Stored] = {}
    for number, split in [(-1, ""), *enumerate(SPLITS)]:
        if number in features:
            name = f"{split}_" if split else ""
            arrays[f"{name}features"] = torch.from_numpy(features[number])
            arrays[f"{name}labels"] = from_numpy(together[where == number], "labels")
    named = {"features": columns.features[0] if columns.lists else "", "labels": columns.labels}
    taken = {role: name for role, name in {**named, "split": columns.split}.items() if name}
    if not columns.lists:
        taken["features"] = f"{len(columns.features)} columns, {columns.features[0]} to {columns.features[-1]},"
    names = None if columns.class_names is None else list(columns.class_names)
    there = [f"({sum(where == i):,} rows of {split})" for i, split in enumerate(SPLITS) if i in features]
    holds = holdings({**dict.fromkeys([columns.labels, *columns.features], "")}) + " " + " ".join(there)
    return Source(joint_sha256(digests), arrays, names, taken, list(columns.unused), holds)


def open_table(file: IO[bytes], name: str) -> Any:
    """Return pyarrow's reader of an opened file; a UserError says that pyarrow is missing, or what it cannot read."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("reading .parquet needs pyarrow: pip install pyarrow") from error
    try:
        table = ParquetFile(file, pre_buffer=False)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{name} is damaged, or not a .parquet file ({reason})") from error
    meta, size = table.metadata, os.fstat(file.fileno()).st_size
    for i in range(meta.num_row_groups):
        group = meta.row_group(i)
        # A column that repeats one number is smaller than any archive: what counts is how many there will be.
        refuse_unpacked(max([group.column(j).num_values * 4 for j in range(group.num_columns)], default=0), size)
    return table


def refuse_missing_parts(parts: Sequence[Part]) -> None:
    """Raise UserError where files are numbered `-00000-of-00004` and one of them is missing."""
    found: dict[tuple[str, str], set[int]] = {}
    for part in parts:
        match = NUMBERED.fullmatch(part.name)
        if match and len(parts) > 1:
            found.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (start, count), numbers in found.items():
        first = min(numbers | {1})  # some count from 0, others from 1
        expected = range(first, first + int(count[:9]))
        lacking = next((i for i in expected if i not in numbers), None)
        if lacking is not None:
            raise UserError(f"{shown(start)} is in {int(count)} files, of which number {lacking} is missing")


def columns_of(schema: Any, part: Part) -> Columns:
    """Return what the columns of a file are, by their names and types; a UserError says what they are instead."""
    from pyarrow import types

    def is_list(kind: Any) -> bool:
        return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_string(kind) or types.is_large_string(kind)

    def is_number(kind: Any) -> bool:
        return types.is_integer(kind) or types.is_floating(kind)

    kinds = {field.name: field.type for field in schema}
    if len(kinds) != len(schema):
        raise UserError(f"{part.name} has two columns of one name; rename one")
    lists = {name: None for name, kind in kinds.items() if is_list(kind) and is_number(kind.value_type)}
    singles = {name: kind for name, kind in kinds.items() if is_number(kind) or is_text(kind)}
    roles: dict[str, str | None] = {name: role_of(name) for name in singles}
    roles = {name: role if role == "labels" else None for name, role in roles.items()}
    splits = [name for name in kinds if name not in lists and role_of(name) == "split"]
    texts = [name for name in splits if is_text(kinds[name])]
    # Where nothing else says the split, a column of that name must: its numbers are refused by what they are.
    roles |= dict.fromkeys(texts or (splits if part.split is None else []), "split")
    named = {name for name in lists if role_of(name) == "features"}
    if len(named or lists) == 1:
        roles |= dict.fromkeys(named or lists, "features")
    taken = assign(roles)
    there = f"; {part.name} holds {holdings({name: str(kind) for name, kind in kinds.items()})}"
    if "labels" not in taken:
        raise UserError(f"no column of labels: it may be named label, target, y, ...{there}")
    features = (taken["features"],) if "features" in taken else ()
    if not lists:
        features = tuple(n for n, k in singles.items() if n not in taken.values() and is_feature(n) and is_number(k))
    if not features:
        raise UserError(f"no column of features: one of lists, named features or embedding, or a column each{there}")
    values = [kinds[name].value_type if lists else kinds[name] for name in features]
    used = {*features, taken["labels"], taken.get("split")}
    return Columns(
        features,
        taken["labels"],
        taken.get("split"),
        bool(lists),
        all(types.is_float16(kind) for kind in values),
        class_names(schema, taken["labels"]),
        tuple(sorted(kinds.keys() - used)),
    )


def is_feature(name: str) -> bool:
    """Tell whether a column of numbers can be a feature by its name."""
    return NO_FEATURES.fullmatch(name.lower()) is None


def class_names(schema: Any, labels: str) -> tuple[str, ...] | None:
    """Return the names of the classes that Hugging Face's `datasets` writes beside a column of labels, if any."""
    try:
        record = json.loads((schema.metadata or {})[b"huggingface"])
        names = record["info"]["features"][labels]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) and names else None


def common_columns(tables: Sequence[Columns], parts: Sequence[Part]) -> Columns:
    """Return what the columns of all files are; a UserError names the first file that differs."""
    first = tables[0]
    for columns, part in zip(tables, parts, strict=True):
        same = replace(columns, unused=first.unused, half=first.half, class_names=first.class_names)
        if part.split is not None:
            same = replace(same, split=first.split)
        if same != first or columns.class_names != first.class_names:
            raise UserError(f"{part.name} and {parts[0].name} have other columns of features, labels or splits")
    return replace(first, half=all(columns.half for columns in tables))


def batches(part: Part, names: Sequence[str], rows: int) -> Iterator[Any]:
    """Yield some columns of a file, `rows` rows at a time; a UserError names a file that is damaged."""
    with open_plain(part.path, "the features") as file:
        table = open_table(file, part.name)
        try:
            yield from table.iter_batches(batch_size=rows, columns=list(names))
        except UserError:
            raise
        except Exception as error:  # of a damaged page
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{part.name} is damaged ({reason})") from error


def read_rows(part: Part, columns: Columns) -> tuple[Values, np.ndarray]:
    """Return the labels of a file and, a row each, the number of its split; -1 where there is none."""
    split = columns.split if part.split is None else None
    labels, numbers = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    names = [columns.labels, *([split] if split else [])]
    for batch in batches(part, names, 1 << 16):
        labels.append(column_values(batch, columns.labels, part))
        if split is None:
            numbers.append(np.full(len(batch), -1 if part.split is None else list(SPLITS).index(part.split)))
        else:
            numbers.append(split_numbers(column_values(batch, split, part), split))
    return from_numpy(np.concatenate(labels[1:] or labels), "labels"), np.concatenate(numbers)


def split_numbers(texts: np.ndarray, name: str) -> np.ndarray:
    """Return the numbers of the splits that texts name; a UserError names one that is unknown, or what is no text."""
    known, places = np.unique(texts, return_inverse=True)
    splits = [split_of(str(text)) for text in known.tolist()]
    unknown = [repr(text) for text, split in zip(known.tolist(), splits, strict=True) if split is None]
    if unknown:
        kind = "" if texts.dtype.kind == "U" else f" ({texts.dtype})"
        raise UserError(
            f"'{shown(name)}' holds {listed(unknown, 5)}{kind}; it may be train, test or holdout, a text a row"
        )
    return np.array([list(SPLITS).index(split) for split in splits if split])[places]


def column_values(batch: Any, name: str, part: Part) -> np.ndarray:
    """Return a column of numbers or texts; a UserError says that a row has none."""
    column = batch.column(batch.schema.get_field_index(name))
    if column.null_count:
        raise UserError(f"'{shown(name)}' of {part.name} has rows without a value; fill them or leave them out")
    if hasattr(column, "dictionary_decode"):
        column = column.dictionary_decode()
    values = column.to_numpy(zero_copy_only=False)
    return np.array(values.tolist(), dtype=str) if values.dtype == object else values


def read_all_features(parts: Sequence[Part], columns: Columns, numbers: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Return the features (N, d) of each split, by its number; the arrays are made once, and filled batch by batch."""
    width = 0 if columns.lists else len(columns.features)
    arrays: dict[int, np.ndarray] = {}
    size = sum(os.path.getsize(part.path) for part in parts)
    counts = {
        int(i): int(count) for i, count in zip(*np.unique(np.concatenate(numbers), return_counts=True), strict=True)
    }
    filled = dict.fromkeys(counts, 0)
    for part, own in zip(parts, numbers, strict=True):
        done = 0
        for batch in batches(part, columns.features, max(1, BATCH // max(width, 1 << 10))):
            read = list_rows if columns.lists else column_rows
            rows = read(batch, columns, part, done)
            if not arrays:
                width = rows.shape[1]
                refuse_unpacked(sum(counts.values()) * width * 4, size)
                kind = np.float16 if columns.half else np.float32
                arrays = {i: np.empty((count, width), kind) for i, count in counts.items()}
            if rows.shape[1] != width:
                raise UserError(f"{part.name} has rows of {rows.shape[1]} features, and there are others of {width}")
            here = own[done : done + len(rows)]
            done += len(rows)
            for i in np.unique(here).tolist():
                chosen = rows if (here == i).all() else rows[here == i]
                arrays[i][filled[i] : filled[i] + len(chosen)] = chosen
                filled[i] += len(chosen)
    return arrays


def narrowed(rows: np.ndarray, what: str, start: int) -> np.ndarray:
    """Return float64 and whole numbers as float32; a UserError says that `what` holds numbers too large for that.

    `start` is the number of the first row in its file.
    """
    if rows.dtype.kind in "iu":
        return whole_as_float(rows, what, start)
    if rows.dtype != np.float64:
        return rows
    with np.errstate(over="ignore"):
        small = rows.astype(np.float32)
    if np.isinf(small).any() and not np.isinf(rows).any():
        raise UserError(f"{what} holds numbers that are too large for float32")
    return small


def list_rows(batch: Any, columns: Columns, part: Part, start: int) -> np.ndarray:
    """Return a column of lists as (rows, d); a UserError says that they differ in length or lack numbers.

    `start` is the number of the first row in its file.
    """
    from pyarrow import compute

    (name,) = columns.features
    column = batch.column(0)
    if column.null_count:
        raise UserError(f"'{shown(name)}' of {part.name} has rows without a value; fill them or leave them out")
    lengths = compute.list_value_length(column).unique().to_pylist()
    values = column.flatten()
    if len(lengths) != 1 or values.null_count:
        what = "rows of different lengths" if len(lengths) != 1 else "lists with numbers missing"
        raise UserError(f"'{shown(name)}' of {part.name} has {what}: {listed(map(str, sorted(lengths)), 5)}")
    rows = values.to_numpy(zero_copy_only=False).reshape(len(batch), lengths[0])
    return narrowed(rows, column_words(name, part), start)


def column_words(name: str, part: Part) -> str:
    """Return in words which column of which file it is."""
    return f"'{shown(name)}' of {part.name}"


def column_rows(batch: Any, columns: Columns, part: Part, start: int) -> np.ndarray:
    """Return columns of a number each as (rows, d), in the order of the table."""
    own = [narrowed(column_values(batch, name, part), column_words(name, part), start) for name in columns.features]
    return np.stack(own, axis=1)
