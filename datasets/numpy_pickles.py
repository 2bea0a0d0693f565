"""Numpy's numbers and arrays in pickles, made of their bytes by what stands here.

Numpy's own unpickling is never called: with what a stranger wrote it can be made to take numbers for addresses.
"""

import math
import re
from typing import Any, ClassVar

import numpy as np

# Types of numbers and texts, as numpy abbreviates them: no objects, no records.
PLAIN_TYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c8|c16|[US][1-9]\d{0,6})")
MOST_DIMENSIONS = 32


class StandIn:
    """An object of a class that is not made: its arguments and its state are dropped. `origin` is the class's name."""

    origin: ClassVar[str] = ""

    def __new__(cls, *arguments: object) -> Any:
        """Make one, whatever the arguments are."""
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        """Keep nothing."""

    def __setstate__(self, state: object) -> None:
        """Keep nothing: a state that a file brings must not become attributes."""


class PlainType(StandIn):
    """numpy's dtype: `code` is its name with the byte order, None for anything but a number or a text."""

    code: str | None

    def __init__(self, code: object = None, *arguments: object) -> None:
        self.code = code if isinstance(code, str) and PLAIN_TYPE.fullmatch(code) else None

    def __setstate__(self, state: object) -> None:
        """Take the byte order, the second of the entries."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if self.code is not None and order in ("<", ">"):
            self.code = order + self.code.lstrip("<>|=")


def values_of(kind: object, raw: object) -> np.ndarray | None:
    """Return the values (N,) that bytes of a plain type are, not to be written to; None for anything else.

    Python 2 has no type for bytes: its pickles are read as text of their code points.
    """
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    if not isinstance(kind, PlainType) or kind.code is None or not isinstance(raw, bytes | bytearray):
        return None
    dtype = np.dtype(kind.code)
    return None if len(raw) % dtype.itemsize else np.frombuffer(raw, dtype)


class Scalar(StandIn):
    """numpy's number or text: what is made is Python's."""

    def __new__(cls, *arguments: object) -> Any:
        """Return the value that (type, bytes) are, a stand-in for anything else."""
        found = values_of(*arguments) if len(arguments) == 2 else None
        return super().__new__(cls) if found is None or len(found) != 1 else found[0].item()


class Array(StandIn):
    """numpy's array: `array` holds its numbers or texts, not to be written to; None for anything else."""

    array: np.ndarray | None = None

    def __setstate__(self, state: object) -> None:
        """Take (version, shape, type, whether columns come first, bytes) where they fit together."""
        if isinstance(state, tuple) and len(state) == 5:
            _, shape, kind, columns_first, raw = state
            self.take(values_of(kind, raw), shape, "F" if columns_first else "C")

    def take(self, found: np.ndarray | None, shape: object, order: Any) -> None:
        """Take values (N,) as an array of a shape where they are as many."""
        if found is None or not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
            return
        if all(type(side) is int and side >= 0 for side in shape) and math.prod(shape) == len(found):
            self.array = found.reshape(shape, order=order)


def from_buffer(*arguments: object) -> Array:
    """Stand for numpy's `_frombuffer`, by which pickles of protocol 5 name arrays: (bytes, type, shape, order)."""
    made = Array()
    if len(arguments) == 4 and arguments[3] in ("C", "F"):
        raw, kind, shape, order = arguments
        made.take(values_of(kind, raw), shape, order)
    return made


def latin1(*arguments: object) -> bytes:
    """Stand for `_codecs.encode`, by which older protocols name bytes: (text, "latin1")."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise ValueError("bytes in a strange encoding")
    return arguments[0].encode("latin1")
