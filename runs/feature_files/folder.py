"""A folder of features: `.npy` files that are an array each, or files that are a split each, by their names.

`train_features.npy`, `X_train.npy`, `train/features.npy` are arrays. `train.npz`, `test.pth`,
`data/train-00000-of-00004.parquet` are splits, in which names need not repeat the split.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runs.feature_files.names import assign, listed, role_in, split_in
from runs.feature_files.numpy_arrays import list_npy, read_npy, read_npz
from runs.feature_files.parquet import Part, read_parquet
from runs.feature_files.source import Source, Stay, Stored, Values, describe, holdings
from runs.feature_files.tensors import read_dictionary, read_tensors
from runs.shards import SHARD_NAME, find_shards, joint_sha256
from utils.errors import UserError
from utils.outside import read_plain
from utils.text import shown

Reader = Callable[[Path, str | None, Stay], Source]
# Files of many arrays, by the ends of their names.
READERS: dict[str, Reader] = {
    ".npz": read_npz,
    ".safetensors": read_tensors,
    ".pt": read_dictionary,
    ".pth": read_dictionary,
    ".parquet": lambda path, split, stay: read_table([Part(path, path.name, split)], stay),
}
SUFFIXES = (*READERS, ".npy")
CLASS_NAMES = ("class_names.txt", "classes.txt")  # a name a line
DEEPEST = 3  # folders inside one another
MOST_FILES = 10_000


@dataclass
class Group:
    """Files of a folder that belong together: the roles of arrays and the splits of others, by relative names."""

    arrays: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)

    def roles(self) -> set[str]:
        """What the arrays are."""
        return set(self.arrays.values())


def read_folder(folder: Path, named: Path | None = None, asked: Stay = Stay.NEVER) -> Source:
    """Read the features of a folder; of several sets that lie there, the one that the file `named` belongs to.

    The sha256 is that over the parts' own and over what each of them is, whatever their names are. Raises UserError
    where the names say too little or too much.
    """
    files = find_files(folder)
    if not files:
        raise UserError(f"no features in this folder; looked for {', '.join(SUFFIXES)}")
    stay = asked.settled([part for path in files.values() for part in find_shards(path)])
    groups, parts = grouped(files)
    here = None if named is None else named.relative_to(folder).as_posix()
    if parts and not any(group.splits or group.roles() - {"class_names"} for group in groups.values()):
        source = read_table(parts, stay)
        source.unused += sorted(files.keys() - {part.name for part in parts})
        return source
    alone = [path for path in files.values() if path.suffix in READERS]
    if not groups and len(alone) == len(files) == 1:
        return READERS[alone[0].suffix](alone[0], None, stay)
    return read_group(chosen(groups, here, files), files, stay)


def find_files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder that may hold features, by their names relative to it, sorted.

    Shards of a safetensors file are that file. What is hidden is left out.
    """
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder, followlinks=False):
        below = Path(place).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and len(below.parts) < DEEPEST)
        for name in names:
            path = Path(place) / name
            if name.startswith(".") or (path.suffix not in SUFFIXES and (name not in CLASS_NAMES or below.parts)):
                continue
            shard = SHARD_NAME.fullmatch(path.stem) if path.suffix == ".safetensors" else None
            path = path.with_stem(shard[1]) if shard else path
            found[path.relative_to(folder).as_posix()] = path
        if len(found) > MOST_FILES:
            raise UserError(f"more than {MOST_FILES:,} files; name the folder that holds features alone")
    return dict(sorted(found.items()))


def grouped(files: Mapping[str, Path]) -> tuple[dict[str, Group], list[Part]]:
    """Return the sets that the files of a folder are, by the words beside role or split in their names, and the parquet
    files, of which each is a part of one table."""
    groups: dict[str, Group] = {}
    parts = []
    for name, path in files.items():
        stem = name.removesuffix(path.suffix)
        split, rest = split_in(stem)
        if path.suffix == ".parquet":
            parts.append(Part(path, name, split))
        elif path.suffix == ".npy":
            role, rest = role_in(stem)
            if role is not None:
                groups.setdefault(rest, Group()).arrays[name] = role
        elif path.suffix == ".txt":
            groups.setdefault("", Group()).arrays[name] = "class_names"
        elif split is not None:
            groups.setdefault(rest, Group()).splits[name] = split
    divided = [part for part in parts if part.split]
    return groups, divided or parts


def chosen(groups: Mapping[str, Group], named: str | None, files: Iterable[str]) -> Group:
    """Return the set to read: that of the file `named`, else the one whose files have no other words in their names,
    else the only one. Names of classes alone are no set, and are those of any.

    Raises UserError for none and for several.
    """
    sets = {rest: group for rest, group in groups.items() if group.splits or group.roles() - {"class_names"}}
    if named is not None:
        sets = {rest: group for rest, group in sets.items() if named in (*group.arrays, *group.splits)}
    if not sets:
        what = "the name does not say" if named is not None else "no name says"
        raise UserError(
            f"{what} what is in it: train_features.npy, X_test.npy, train.npz, ... would; there are {listed(files)}"
        )
    if "" not in sets and len(sets) > 1:
        first = ", ".join(shown(min((*group.arrays, *group.splits))) for group in list(sets.values())[:5])
        raise UserError(f"several sets of features, such as {first}; name one of the files of the set to read")
    group = sets.get("") or next(iter(sets.values()))
    if "class_names" in group.roles() or "" not in groups:
        return group
    names = {name: role for name, role in groups[""].arrays.items() if role == "class_names"}
    return Group({**names, **group.arrays}, group.splits)


def read_table(parts: list[Part], stay: Stay) -> Source:
    """Read a table in parquet; a UserError refuses to leave its features in the file."""
    if stay is Stay.ALWAYS:
        raise UserError(
            "--mmap on: the features of a parquet table are packed and cannot stay in it; numpy.save, numpy.savez and "
            "safetensors write what can"
        )
    return read_parquet(parts)


def read_group(group: Group, files: Mapping[str, Path], stay: Stay) -> Source:
    """Read a set of files as one; a UserError names two that hold the same."""
    roles = {name: role for role, name in assign(group.arrays).items()}
    arrays: dict[str, Stored] = {}
    parts: list[str] = []
    names: list[str] | None = None
    taken: dict[str, str] = {}
    for name, role in roles.items():
        is_list = name in CLASS_NAMES
        digest, values = read_class_names(files[name]) if is_list else read_npy(files[name], name, role, stay)
        parts.append(f"{role} {digest}\n")
        arrays[role], taken[role] = values, name.removesuffix(".npy")
    words = {name: words_of(path) for name, path in files.items() if path.suffix == ".npy"}
    unused = files.keys() - roles.keys() - group.splits.keys()
    for name, split in group.splits.items():
        source = READERS[files[name].suffix](files[name], split, stay)
        parts.append(f"{split} {source.digest}\n")
        unused |= {f"{name}: {one}" for one in source.unused}
        words |= {name: f"({source.holds})"}
        again = sorted(source.arrays.keys() & arrays.keys())
        if again:
            raise UserError(f"'{again[0]}' is in {shown(taken[again[0]])} and in {shown(name)}; leave one out")
        if source.class_names is not None and names not in (None, source.class_names):
            raise UserError(f"{shown(name)} has other names of classes than the files before it")
        names = names or source.class_names
        arrays |= source.arrays
        taken |= {role: f"{name}: {own}" for role, own in source.taken.items()}
    given = arrays.pop("class_names", None)
    if given is not None:
        names = class_names(given)
    return Source(joint_sha256(sorted(parts)), arrays, names, taken, sorted(unused), holdings(words))


def words_of(path: Path) -> str:
    """Return shape and type of the array of a `.npy` file, which may be none and not be needed."""
    try:
        return list_npy(path).words
    except (UserError, OSError):
        return "(no array)"


def read_class_names(path: Path) -> tuple[str, Values]:
    """Return the sha256 of a text file in UTF-8 and its lines, the names of the classes."""
    content = read_plain(path, "the class names")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8") from error
    return hashlib.sha256(content).hexdigest(), np.array([line.strip() for line in lines if line.strip()], dtype=str)


def class_names(values: Stored) -> list[str]:
    """Return an array of names of classes as a list; a UserError says what else it is."""
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        raise UserError(f"'class_names' must be one text a class, not {describe(values)}")
    return values.tolist()
