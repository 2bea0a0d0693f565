"""What stands for the classes and functions that a pickle names, so that none of them is ever called.

A stand-in takes the arguments and the state that a file has for its name, and does nothing with them. Numbers and
arrays of numpy are the exception: theirs are read, as bytes of a plain type, without numpy's own unpickling.
"""

import math
import re
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

# Types of numbers, as numpy abbreviates them: no text, no objects, no records.
PLAIN_TYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c8|c16)")
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


class Items(StandIn):
    """A dictionary of some class: what is made is a plain one (of the kind that `torch.load` lets a file fill)."""

    def __new__(cls, *arguments: object) -> Any:
        """Make an empty dictionary; a Counter is one that starts empty and takes any values."""
        return Counter()


class Sequence(list[Any]):
    """A list of some class, to be filled."""

    def __init__(self, *arguments: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


class Attribute(StandIn):
    """`getattr` of a class that is not made, by which pickles name methods and inner classes: the class itself."""

    def __new__(cls, *arguments: object) -> Any:
        """Return the stand-in that is asked for an attribute, one without a name for anything else."""
        owner = arguments[0] if arguments else None
        return owner if isinstance(owner, type) and issubclass(owner, StandIn) else super().__new__(cls)


class NumberType(StandIn):
    """numpy's dtype: `code` is its name with the byte order, None for anything but a number."""

    code: str | None

    def __init__(self, code: object = None, *arguments: object) -> None:
        self.code = code if isinstance(code, str) and PLAIN_TYPE.fullmatch(code) else None

    def __setstate__(self, state: object) -> None:
        """Take the byte order, the second of the entries."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if self.code is not None and order in ("<", ">"):
            self.code = order + self.code.lstrip("<>|=")


class NoBytes(StandIn):
    """`bytes` without an argument, which is how no bytes at all are pickled; others have a form of their own."""

    def __new__(cls, *arguments: object) -> Any:
        """Return no bytes."""
        return b""


def numbers_of(kind: object, raw: object) -> np.ndarray | None:
    """Return the numbers (N,) that bytes of a plain type are; None for anything else."""
    if not isinstance(kind, NumberType) or kind.code is None or not isinstance(raw, bytes):
        return None
    dtype = np.dtype(kind.code)
    return None if len(raw) % dtype.itemsize else np.frombuffer(raw, dtype)


class Scalar(StandIn):
    """numpy's number: what is made is Python's."""

    def __new__(cls, *arguments: object) -> Any:
        """Return the number that (type, bytes) are, a stand-in for anything else."""
        found = numbers_of(*arguments) if len(arguments) == 2 else None
        return super().__new__(cls) if found is None or len(found) != 1 else found[0].item()


class Array(StandIn):
    """numpy's array: `tensor` holds its numbers, None for anything but numbers."""

    tensor: Tensor | None = None

    def __setstate__(self, state: object) -> None:
        """Take (version, shape, type, whether columns come first, bytes) where they fit together."""
        if not isinstance(state, tuple) or len(state) != 5:
            return
        _, shape, kind, columns_first, raw = state
        found = numbers_of(kind, raw)
        if found is None or not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
            return
        if all(type(side) is int and side >= 0 for side in shape) and math.prod(shape) == len(found):
            array = found.reshape(shape, order="F" if columns_first else "C")
            self.tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


NUMPY: dict[str, type[StandIn]] = {
    f"{package}.multiarray.{name}": kind
    for package in ("numpy.core", "numpy._core")  # of numpy 1 and 2
    for name, kind in (("_reconstruct", Array), ("scalar", Scalar))
}
KNOWN: dict[str, type[StandIn]] = {
    **NUMPY,
    "numpy.dtype": NumberType,
    "builtins.getattr": Attribute,
    "builtins.bytes": NoBytes,
}


def stand_in_for(name: str, uses: set[str]) -> type:
    """Return a class of its own for the name of a class or a function, by what a file does with what it makes."""
    base: type = KNOWN.get(name) or (Sequence if "append" in uses else Items if "item" in uses else StandIn)
    return type(name.rpartition(".")[2], (base,), {"origin": name, "__module__": __name__})
