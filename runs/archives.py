"""What a stranger's archive may not do to the memory, and what must be true of the tensors that it holds."""

import os
import zipfile
from typing import IO, Any

import torch
from torch import Tensor

from utils.errors import UserError

# What a file may unpack to: this many bytes in any case, and this many times its own size.
UNPACKED, RATIO = 1 << 26, 100


def refuse_unpacked(unpacked: int, size: int) -> None:
    """Raise UserError for a file of `size` bytes that would fill the memory, before anything of it is unpacked.

    Numbers are packed to a tenth of their size at the best.
    """
    if unpacked > max(UNPACKED, RATIO * size):
        raise UserError(
            f"it unpacks to {unpacked:,} bytes, more than {RATIO} times its size: this is taken for an attack on the "
            "memory; save it again without compression"
        )


def refuse_zip_bomb(file: IO[bytes]) -> None:
    """Raise UserError for a zip archive that would fill the memory.

    No entry can unpack to more than the archive says.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    refuse_unpacked(unpacked, os.fstat(file.fileno()).st_size)


def refuse_flipped_bits(file: IO[bytes]) -> None:
    """Raise UserError where a PyTorch file is a zip archive and not what its checksums say: PyTorch does not look.

    A checksum of 0 is none; PyTorch can be told to leave them out.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.CRC != 0 and not entry.is_dir():
                with archive.open(entry) as stored:
                    while stored.read(1 << 20):  # raises BadZipFile at the end of an entry that was changed
                        pass


def refuse_strange_tensors(content: Any, size: int | None, seen: set[int] | None = None) -> None:
    """Raise UserError for tensors that are no plain numbers in memory, or larger than the file of `size` bytes that
    they are from: one number in a file can stand for a tensor of any shape, which the first arithmetic would make
    real. `seen` are the values looked at so far, by their `id`: a file can hold one many times."""
    seen = set() if seen is None else seen
    if id(content) in seen:
        return
    seen.add(id(content))
    if isinstance(content, Tensor):
        if content.layout != torch.strided or content.is_quantized or content.is_nested or content.device.type != "cpu":
            raise UserError("it holds sparse, quantised or nested tensors, or some without numbers; save plain ones")
        if size is not None and content.numel() * content.element_size() > size:
            raise UserError(f"it holds a tensor of {tuple(content.shape)}, more numbers than the file has room for")
    elif isinstance(content, dict):
        for value in content.values():
            refuse_strange_tensors(value, size, seen)
    elif isinstance(content, list | tuple):
        for value in content:
            refuse_strange_tensors(value, size, seen)
