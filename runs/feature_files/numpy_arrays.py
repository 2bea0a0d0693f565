"""Arrays as numpy writes them: `.npz` archives and single `.npy` files, never unpickled."""

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch

from datasets.features import FileRows
from runs.archives import refuse_zip_bomb
from runs.feature_files.source import (
    Array,
    Source,
    Stay,
    Stored,
    Values,
    read_array,
    read_arrays,
    rows_in,
    too_few_words,
)
from utils.errors import UserError
from utils.files import sha256_of
from utils.outside import HeldFile, open_plain
from utils.text import shown

START = b"\x93NUMPY"  # how a file of a single array begins
MAPPED = 1 << 26  # bytes from which on an array stays on disk until its rows are used
PART = 1 << 20  # bytes of an entry that are looked at together
LOCAL = struct.Struct("<26xHH")  # what stands before an entry of a zip archive: at its end the lengths of two texts
# Numbers in this machine's byte order that rows of a file can be.
STORED = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}


def read_npz(path: Path, split: str | None = None, stay: Stay = Stay.NEVER) -> Source:
    """Read an npz file; what it holds beside the known arrays is not even read."""
    with open_plain(path, "the features") as file:
        held = None if stay is Stay.NEVER else HeldFile(file, path)
        digest = sha256_of(file)
        start = file.read(len(START))
        if not zipfile.is_zipfile(file) and start != START:
            raise UserError("damaged, or not a .npz file (no zip archive)")
        refuse_zip_bomb(file)
        file.seek(0)
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError("this is a single array, not an archive of named ones; write it with numpy.savez")
        with archive as opened:
            return read_arrays(digest, {name: packed(opened, name, held) for name in opened.files}, split, stay)


def packed(opened: Mapping[str, np.ndarray], name: str, held: HeldFile | None) -> Array:
    """Return an array of an archive, described by its header alone; what cannot be described may not be needed.

    One that is not compressed can stay in the file where it is `held` open.
    """
    archive: zipfile.ZipFile = opened.zip  # type: ignore[attr-defined]
    words, text, lacking, compressed, array = "(no array)", False, "", False, None
    try:
        info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
        with archive.open(info) as entry:
            shape, columns_first, dtype = read_header(entry)
            start = entry.tell()
    except Exception:  # of a damaged archive, nearly anything
        pass
    else:
        words, text = f"{shape} in {words_of(dtype)}", dtype.kind in "US"
        needed = math.prod(shape) * (0 if dtype.hasobject else dtype.itemsize)
        lacking = too_few_words(info.file_size, needed, name) if needed > info.file_size else ""
        compressed = info.compress_type != zipfile.ZIP_STORED
        if held is not None and not lacking and not columns_first and not compressed:
            array = rows_in(held, entry_place(held, info) + start, shape, STORED.get(dtype.str))

    def read(role: str) -> Values:
        if lacking:  # numpy would first make room for all of it
            raise UserError(f"damaged: {lacking}")
        return from_numpy(load(opened, name), role)

    def stay() -> FileRows:
        assert array is not None
        with archive.open(info) as entry:
            while entry.read(PART):  # raises BadZipFile at the end of an entry that is not what its checksum says
                pass
        return array()

    if array is None:
        moved = "compressed" if compressed else words
        return Array(words, text, read, moved=moved)
    return Array(words, text, read, stay)


def entry_place(held: HeldFile, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of an entry begin in its archive."""
    found = memoryview(bytearray(LOCAL.size))
    held.read_into(found, info.header_offset)
    return info.header_offset + LOCAL.size + sum(LOCAL.unpack(found))


def load(opened: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return an array of an archive; a UserError names one that is damaged or would have to be unpickled."""
    try:
        return opened[name]
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise UserError(f"'{shown(name)}' is damaged ({error})") from error
        raise objects_error(name) from error


def objects_error(name: str) -> UserError:
    """Return the line for an array that only pickle could read."""
    return UserError(
        f"'{shown(name)}' is an array of Python objects, which only pickle could read; save numbers (or, for names, "
        "strings: numpy.array(names, dtype=str))"
    )


def from_numpy(array: np.ndarray, name: str) -> Values:
    """Return numbers as a tensor and texts as an array, in this machine's byte order; a UserError names others."""
    if not isinstance(array, np.ndarray):
        raise UserError(f"'{shown(name)}' is no array")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    kinds, words = ("U", "strings") if name == "class_names" else ("fiubU", "numbers or texts")
    if array.dtype.kind not in kinds:
        raise UserError(f"'{shown(name)}' must hold {words}, not {array.shape} in {words_of(array.dtype)}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array if array.dtype.kind == "U" else torch.from_numpy(np.ascontiguousarray(array))


def words_of(dtype: np.dtype) -> str:
    """Return a type of numpy's in words."""
    return {"U": "texts", "S": "texts", "O": "Python objects"}.get(dtype.kind, str(dtype))


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether columns come first, and type of an array in a file; a ValueError says that it is none."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"written in version {version} of the format")
    return readers[version](file)


def header_of(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return what `read_header` does of the file that is opened from `path`; a UserError says that it has none."""
    try:
        return read_header(file)
    except ValueError as error:
        raise UserError(f"{path} is damaged, or not a .npy file ({error})") from error


def list_npy(path: Path) -> Array:
    """Return the array of a `.npy` file, described by its header; a UserError says that it is none."""
    with open_plain(path, "the features") as file:
        shape, _, dtype = header_of(file, path)
    return Array(f"{shape} in {words_of(dtype)}", dtype.kind in "US", partial(read_numbers, path))


def read_numbers(path: Path, name: str) -> Values:
    """Return the array of a `.npy` file, in memory or mapped; raises as `read_npy` does."""
    values = read_npy(path, name)[1]
    assert not isinstance(values, FileRows)
    return values


def read_npy(path: Path, name: str, role: str = "", stay: Stay = Stay.NEVER) -> tuple[str, Stored]:
    """Return the sha256 of a `.npy` file and its array, which stays on disk where it is large.

    Raises UserError where it would have to be unpickled, or has fewer numbers than it says.
    """
    with open_plain(path, "the features") as file:
        held = None if stay is Stay.NEVER else HeldFile(file, path)
        digest = sha256_of(file)
        file.seek(0)
        shape, columns_first, dtype = header_of(file, path)
        if dtype.hasobject:
            raise objects_error(name)
        needed, there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
        if min(shape, default=0) < 0 or needed > there:
            raise UserError(f"{path} is damaged: {too_few_words(there, needed, name)}")
        own = None
        if held is not None and "features" in role and not columns_first:
            own = rows_in(held, file.tell(), shape, STORED.get(dtype.str))
        if own is not None or (stay is Stay.ALWAYS and "features" in role):  # which refuses what cannot
            moved = f"{shape} in {words_of(dtype)}" + ", a column after the other" * columns_first
            return digest, read_array(Array(moved, False, partial(read_numbers, path), own, moved), name, role, stay)
        if needed < MAPPED:
            flat = np.frombuffer(bytearray(file.read(needed)), dtype) if needed else np.empty(0, dtype)
            array = flat.reshape(shape, order="F" if columns_first else "C")
        else:  # of one's own: nothing is ever written back
            order = "F" if columns_first else "C"
            array = np.asarray(np.memmap(file, dtype, "c", file.tell(), shape, order))  # type: ignore[call-overload]
    return digest, from_numpy(array, name)
