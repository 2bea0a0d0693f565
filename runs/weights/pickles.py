"""PyTorch's files, read without running anything that is inside them.

`torch.load(weights_only=True)` makes tensors and plain values and refuses every file that names another class or
function. Training scripts save such names beside the weights: namespaces of arguments, paths, numpy's numbers,
configurations of classes that are not here. Each name that a file asks for gets a stand-in of ours
(`runs.weights.stand_ins`), which does nothing: the weights are read, and what stood beside them is not made.
"""

import pickle
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from datasets.numpy_pickles import Array, StandIn
from runs.weights.stand_ins import stand_in_for
from utils.errors import UserError

MOST_NAMES = 1000  # that a file can ask for
LEGACY_PICKLES = 4  # of torch.save before PyTorch 1.6: a magic number, the format, the machine, the content
Uses = dict[str, set[str]]


def load_pickled(file: IO[bytes], trust_pickle: bool = False) -> Any:
    """Return what a file of torch.save holds, by plain types; a stand-in where it holds anything else.

    A file that is trusted is unpickled as it is, and modules become their state dicts. Raises what `torch.load` does.
    """
    with warnings.catch_warnings():  # of what is refused later, or is none of a user's business
        warnings.simplefilter("ignore")
        try:
            content = torch.load(file, map_location="cpu", weights_only=not trust_pickle)
        except pickle.UnpicklingError as error:
            if trust_pickle or "unsupported global" not in str(error).lower():
                raise
            content = load_with_stand_ins(file)
    return plain(content, {})


def load_with_stand_ins(file: IO[bytes]) -> Any:
    """Return what a file holds with a stand-in for everything that its pickle names and PyTorch does not know."""
    uses = names_in(file)
    if len(uses) > MOST_NAMES:
        raise UserError(f"it names {len(uses)} classes and functions, more than {MOST_NAMES}: this is no checkpoint")
    file.seek(0)
    # PyTorch looks a name up among its own first, so that a stand-in takes the place of none of these.
    with torch.serialization.safe_globals([(stand_in_for(name, use), name) for name, use in uses.items()]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"unsupported global or a strange use of one ({error})") from error


def names_in(file: IO[bytes]) -> Uses:
    """Return the names that a file's pickle asks for, with what is done to the objects made of each.

    Nothing is unpickled. A use is "item" where entries of a dictionary are set, "append" where a list is appended to.
    """
    uses: Uses = {}
    file.seek(0)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.namelist():
                if entry.rpartition("/")[2] == "data.pkl":
                    with archive.open(entry) as opened:
                        trace(opened, uses)
        return uses
    file.seek(0)
    for _ in range(LEGACY_PICKLES):
        trace(file, uses)
    return uses


def trace(stream: IO[bytes], uses: Uses) -> None:
    """Follow the one pickle at the start of a stream on a stack of names, as `pickletools.dis` does, into `uses`.

    Every value on the stack stands as the name that it is, or was made, of; None for plain values.
    """
    stack: list[str | None] = []
    marks: list[int] = []
    memo: dict[Any, str | None] = {}
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        if name == "MARK":
            marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(global_name(str(argument)))
            uses.setdefault(str(stack[-1]), set())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("NEWOBJ", "REDUCE", "BUILD"):
            stack.pop()  # what is below it is, or becomes, the object
        elif name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS"):
            del stack[marks.pop() if name.endswith("S") else -2 if name == "SETITEM" else -1 :]
            if stack[-1] is not None:
                uses[stack[-1]].add("item" if name.startswith("SET") else "append")
        else:
            before = operation.stack_before
            if pickletools.markobject in before:
                del stack[marks.pop() :]
            elif before:
                del stack[-len(before) :]
            stack += [None] * len(operation.stack_after)


def global_name(argument: str) -> str:
    """Return "module.name" for the "module name" of a pickle, by Python 3's names for those of Python 2."""
    module, _, name = argument.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def plain(value: Any, done: dict[int, Any]) -> Any:
    """Return nested values with every dictionary a plain one, modules as their state dicts, arrays of numbers as
    tensors and those of texts as numpy's.

    `done` holds what was made of each value so far, by its `id`: a file can hold one value many times.
    """
    if id(value) in done:
        return done[id(value)]
    made = value
    if isinstance(value, Array):
        made = values_in(value)
    elif isinstance(value, nn.Module):
        made = dict(value.state_dict())
    elif isinstance(value, dict):
        items = (OrderedDict if isinstance(value, OrderedDict) else dict).items(value)  # whatever the object says
        made = {key: plain(inner, done) for key, inner in items}
    elif isinstance(value, list):
        made = [plain(inner, done) for inner in list.__iter__(value)]
    elif type(value) is tuple:
        made = tuple(plain(inner, done) for inner in value)
    done[id(value)] = made
    return made


def values_in(value: Array) -> Any:
    """Return an array of numbers as a tensor, in this machine's byte order, and one of texts; any other as it is."""
    if value.array is None:
        return value
    own = np.array(value.array, dtype=value.array.dtype.newbyteorder("="), order="C")
    return own if own.dtype.kind in "US" else torch.from_numpy(own)


def find_stand_in(content: Any, seen: set[int] | None = None) -> str | None:
    """Return the name of the first class among nested values that was not made; None where there is none."""
    seen = set() if seen is None else seen
    if isinstance(content, StandIn):
        return content.origin
    if isinstance(content, type) and issubclass(content, StandIn):
        return content.origin
    if not isinstance(content, dict | list | tuple) or id(content) in seen:
        return None
    seen.add(id(content))
    inner = content.values() if isinstance(content, dict) else content
    return next((name for value in inner if (name := find_stand_in(value, seen)) is not None), None)
