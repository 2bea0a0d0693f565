"""Tensors as torch and safetensors write them: dictionaries in `.pt` and `.pth`; `.safetensors`, whole or in shards.

No code of a file is run: `runs.weights.pickles` reads tensors, plain values and numpy's arrays, and makes nothing else.
"""

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runs.archives import refuse_flipped_bits, refuse_strange_tensors, refuse_zip_bomb
from runs.feature_files.names import plain
from runs.feature_files.numpy_arrays import from_numpy
from runs.feature_files.source import Array, Source, Stay, Values, describe, read_arrays, rows_in
from runs.shards import find_shards, read_safetensors
from runs.weights.pickles import find_stand_in, load_pickled
from utils.errors import UserError
from utils.files import sha256_of
from utils.outside import HeldFile, open_plain
from utils.text import shown

DEEPEST = 4  # dictionaries inside one another


def read_dictionary(path: Path, split: str | None = None, stay: Stay = Stay.NEVER) -> Source:
    """Read a dictionary that torch.save wrote, flat (`train_features`) or of dictionaries (`train`: `features`, ...).

    It may hold tensors, numpy arrays, and lists of numbers or texts.
    """
    with open_plain(path, "the features") as file:
        digest = sha256_of(file)
        refuse_zip_bomb(file)
        file.seek(0)
        try:
            content = load_pickled(file)
        except pickle.UnpicklingError as error:
            if "unsupported" not in str(error).lower():
                raise
            raise more_than_arrays() from error
        refuse_flipped_bits(file)
        refuse_strange_tensors(content, os.fstat(file.fileno()).st_size)
    name = find_stand_in(content)
    if name is not None:
        raise more_than_arrays(name)
    if not isinstance(content, dict):
        kind = describe(content) if isinstance(content, Tensor) else type(content).__name__
        raise UserError(f"it must hold a dictionary of tensors by their names, not {shown(kind)}")
    if isinstance(content.get("stage"), str) and "config" in content:
        raise UserError("this project wrote this file itself; name it with --pretrained_pth")
    return read_arrays(digest, dict(entries(content)), split, stay)


def more_than_arrays(name: str = "") -> UserError:
    """Return the error of a file that names a class or a function, this one, beside what is read."""
    if name.endswith(("multiarray._reconstruct", "multiarray.scalar")):
        return UserError("it holds a numpy array of objects, or a damaged one; save plain numbers or texts")
    named = f" ({shown(name)})" if name else ""
    return UserError(
        f"it holds more than tensors, numpy arrays, numbers and texts{named}, and reading it could run any code; save "
        "a dictionary of tensors: torch.save({'train_features': ..., 'train_labels': ..., ...}, FILE)"
    )


def entries(content: dict[Any, Any], above: str = "", depth: int = 1) -> Iterator[tuple[str, Array]]:
    """Yield what a dictionary holds, inside others too, by names such as `train.features`."""
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and depth < DEEPEST:
            yield from entries(value, f"{name}.", depth + 1)
        else:
            yield name, stored(value)


def stored(value: Any) -> Array:
    """Return a value of a dictionary as an array; what is none is refused when it is read."""
    if isinstance(value, np.ndarray):
        return Array(describe(value), True, lambda name: from_numpy(value, name))
    if isinstance(value, Tensor):
        return Array(describe(value), False, lambda name: value.detach())
    kinds = {type(one) for one in value} if isinstance(value, list | tuple) else set()
    if kinds == {str}:
        return Array(f"({len(value)},) in texts", True, lambda name: np.array(value, dtype=str))
    if kinds and kinds <= {int, float}:
        return Array(f"({len(value)},) of a list", False, lambda name: list_of_numbers(value, name))
    words = f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
    return Array(f"({words})", False, lambda name: refuse_value(name, words))


def list_of_numbers(value: list[int | float], name: str) -> Values:
    """Return a list of numbers as a tensor; a UserError names one of numbers that are too large."""
    try:
        return torch.tensor(value, dtype=torch.int64 if all(type(one) is int for one in value) else torch.float64)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise UserError(f"'{shown(name)}' holds numbers that are too large") from error


def refuse_value(name: str, words: str) -> Values:
    """Raise UserError for a value that is no array, under a name for one."""
    more = "; join its tensors (torch.cat)" if words.startswith(("list", "tuple")) else ""
    raise UserError(f"'{shown(name)}' must be a tensor, an array, or a list of numbers or texts, not a {words}{more}")


def read_tensors(path: Path, split: str | None = None, stay: Stay = Stay.NEVER) -> Source:
    """Read a safetensors file, whole or in shards."""
    held = [] if stay is Stay.NEVER else hold(find_shards(path))
    digest, tensors, metadata = read_safetensors(path)
    places = {name: place for file in held for name, place in tensor_places(file).items()}
    if "checkpoint" in metadata:
        raise UserError("this project wrote this file itself; name it with --pretrained_pth")
    names = None
    if "class_names" in metadata:
        try:
            names = json.loads(metadata["class_names"])
        except ValueError as error:
            raise UserError(f"the metadata's 'class_names' are no JSON list ({error})") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError("the metadata's 'class_names' must be a JSON list of strings")
    arrays = {name: stored(tensor) for name, tensor in tensors.items() if plain(name) != "classnames"}
    for name in arrays.keys() & places.keys():
        rows = rows_in(*places[name], tuple(tensors[name].shape), tensors[name].dtype)
        arrays[name] = replace(arrays[name], rows=rows, moved=arrays[name].words)
    source = read_arrays(digest, arrays, split, stay)
    for file in held:
        file.refuse_replaced()
    source.unused = sorted({*source.unused, *(tensors.keys() - arrays.keys())})
    source.class_names = names
    return source


def hold(paths: Sequence[Path]) -> list[HeldFile]:
    """Open files to read parts of them later."""
    found = []
    for path in paths:
        with open_plain(path, "the features") as file:
            found.append(HeldFile(file, path))
    return found


def tensor_places(file: HeldFile) -> dict[str, tuple[HeldFile, int]]:
    """Return where the numbers of each tensor of a safetensors file begin, by names: the file and the byte.

    The format: the length of a header in 8 bytes, the header in JSON, then the numbers of all tensors.
    """
    length = memoryview(bytearray(8))
    file.read_into(length, 0)
    header = memoryview(bytearray(int.from_bytes(length, "little")))
    file.read_into(header, len(length))
    entries = json.loads(bytes(header))
    start = len(length) + len(header)
    return {name: (file, start + own["data_offsets"][0]) for name, own in entries.items() if name != "__metadata__"}
