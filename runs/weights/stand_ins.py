"""What stands for the classes and functions that a pickle names, so that none of them is ever called.

A stand-in takes the arguments and the state that a file has for its name, and does nothing with them. Numbers and
arrays of numpy are the exception: theirs are read, without numpy's own unpickling (`datasets.numpy_pickles`).
"""

from collections import Counter
from typing import Any

from datasets.numpy_pickles import Array, PlainType, Scalar, StandIn


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


class NoBytes(StandIn):
    """`bytes` without an argument, which is how no bytes at all are pickled; others have a form of their own."""

    def __new__(cls, *arguments: object) -> Any:
        """Return no bytes."""
        return b""


NUMPY: dict[str, type[StandIn]] = {
    f"{package}.multiarray.{name}": kind
    for package in ("numpy.core", "numpy._core")  # of numpy 1 and 2
    for name, kind in (("_reconstruct", Array), ("scalar", Scalar))
}
KNOWN: dict[str, type[StandIn]] = {
    **NUMPY,
    "numpy.dtype": PlainType,
    "builtins.getattr": Attribute,
    "builtins.bytes": NoBytes,
}


def stand_in_for(name: str, uses: set[str]) -> type:
    """Return a class of its own for the name of a class or a function, by what a file does with what it makes."""
    base: type = KNOWN.get(name) or (Sequence if "append" in uses else Items if "item" in uses else StandIn)
    return type(name.rpartition(".")[2], (base,), {"origin": name, "__module__": __name__})
