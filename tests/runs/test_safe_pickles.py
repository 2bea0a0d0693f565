"""Checkpoints as training scripts save them: what stands beside the weights is not made, and nothing of it runs."""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import pickle
import random
import types
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.numpy_pickles import StandIn
from runs.checkpoint import load_checkpoint
from runs.weights import pickles, stand_ins
from runs.weights.pickles import MOST_NAMES, find_stand_in, load_pickled, names_in
from utils.errors import UserError


class Attributes(dict[str, Any]):
    """A dictionary of a class, as Lightning's AttributeDict."""


class Numbered(list[Any]):
    """A list of a class."""


class Kind(enum.Enum):
    """A choice."""

    A = 1


class Slots:
    """An object without a `__dict__`."""

    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 3


class Outer:
    """A class with a class in it, whose pickle asks for an attribute."""

    class Inner:
        """Found by `getattr`."""

    def method(self) -> None:
        """Found by `getattr` too."""


def written(content: object, new: bool = True) -> BytesIO:
    file = BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    file.seek(0)
    return file


WEIGHT = torch.arange(54.0).reshape(2, 3, 3, 3)
# Values as scripts leave them beside the weights.
NOT_MADE: dict[str, Callable[[], object]] = {
    "namespace": lambda: argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("a"), inner=argparse.Namespace(a=1)),
    "simple namespace": lambda: types.SimpleNamespace(a=1),
    "path": lambda: pathlib.Path("data"),
    "windows path": lambda: pathlib.PureWindowsPath("c:/data"),
    "enum": lambda: Kind.A,
    "slots": Slots,
    "inner class": Outer.Inner,
    "date": lambda: datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    "partial": lambda: functools.partial(len),
    "generator": lambda: np.random.RandomState(0),
    "array of objects": lambda: np.array([{}], dtype=object),
}
MADE: dict[str, tuple[object, object]] = {
    "float64": (np.float64(42.1), 42.1),
    "int64": (np.int64(-3), -3),
    "bool": (np.bool_(True), True),
    "dictionary of a class": (Attributes(lr=0.1), {"lr": 0.1}),
    "default dictionary": (collections.defaultdict(list, a=[1]), {"a": [1]}),
    "list of a class": (Numbered([1, 2]), [1, 2]),
    "deque": (collections.deque([1, 2], maxlen=3), [1, 2]),
    "ordered": (collections.OrderedDict(a=1), {"a": 1}),
    "counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "random state": (random.Random(0).getstate(), random.Random(0).getstate()),
    "size": (torch.Size([1, 2]), torch.Size([1, 2])),
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("case", NOT_MADE)
def test_what_stands_beside_the_weights_is_not_made(case: str, new: bool) -> None:
    value = NOT_MADE[case]()
    content = load_pickled(written({"state_dict": {"conv1.weight": WEIGHT}, "args": value, "more": [value]}, new))
    assert torch.equal(content["state_dict"]["conv1.weight"], WEIGHT)
    assert isinstance(content["args"], StandIn) and vars(content["args"]).keys() <= {"code", "array"}
    assert find_stand_in(content) == content["args"].origin
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(written(value), weights_only=True)  # nothing of ours stays behind


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("case", MADE)
def test_plain_values_of_other_classes(case: str, new: bool) -> None:
    value, expected = MADE[case]
    made = load_pickled(written({"a": value, "args": argparse.Namespace()}, new))["a"]
    assert made == expected and type(made) is type(expected)


def test_functions_and_classes_are_no_values() -> None:
    content = load_pickled(written({"a": Outer.method, "b": np.float64, "c": len, "d": torch.float32}))
    assert all(issubclass(content[key], StandIn) for key in "abc") and content["d"] is torch.float32


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", ">i4", "<i8", "|u1", "|b1", "<c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_become_tensors(dtype: str, order: Any) -> None:
    array = np.asarray(np.arange(12).reshape(2, 3, 2), dtype=dtype, order=order)
    content = load_pickled(written({"a": array, "empty": np.zeros((0, 3), dtype)}))
    assert isinstance(content["a"], Tensor) and np.array_equal(content["a"].numpy(), array)
    assert content["a"].numpy().dtype == np.dtype(dtype).newbyteorder("=") and content["empty"].shape == (0, 3)


@pytest.mark.parametrize("dtype", ["U3", ">U3", "S3"])
def test_arrays_of_text_stay_arrays(dtype: str) -> None:
    array = np.array([["a", "bcd"], ["", "e"]], dtype=dtype)
    made = load_pickled(written({"a": array, "b": array[0, 1], "args": argparse.Namespace()}))
    assert made["a"].dtype == np.dtype(dtype).newbyteorder("=") and made["a"].tolist() == array.tolist()
    assert made["b"] == array[0, 1].item() and type(made["b"]) in (str, bytes)


@pytest.mark.parametrize("package", ["core", "_core"])
def test_arrays_of_both_numpys(package: str) -> None:
    """The module was renamed in numpy 2; files name either."""
    names = {name for name in stand_ins.NUMPY if name.startswith(f"numpy.{package}.")}
    assert names == {f"numpy.{package}.multiarray._reconstruct", f"numpy.{package}.multiarray.scalar"}
    ours = f"numpy.{np.float64(1).__reduce__()[0].__module__.split('.')[1]}.multiarray".encode()
    raw = BytesIO()
    made = written({"a": np.float64(2.5), "b": np.arange(3.0)})
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(raw, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert ours in data
                data = data.replace(ours, f"numpy.{package}.multiarray".encode())
            target.writestr(entry.filename, data)
    raw.seek(0)
    content = load_pickled(raw)
    assert content["a"] == 2.5 and content["b"].tolist() == [0, 1, 2]


# Files of strangers


STATE = {"conv1.weight": torch.ones(2, 3, 3, 3)}


class Calls:
    """A pickle that calls something with arguments, and sets a state."""

    def __init__(self, function: Callable[..., Any], *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


CALLS: dict[str, Callable[[Path], object]] = {
    "eval": lambda marker: Calls(eval, f"__import__('os').mkdir({str(marker)!r})"),
    "exec": lambda marker: Calls(exec, f"import os; os.mkdir({str(marker)!r})"),
    "getattr": lambda marker: Calls(getattr, pathlib.Path(marker), "mkdir"),
    "method": lambda marker: Calls(pathlib.Path.mkdir, pathlib.Path(marker)),
    "import": lambda marker: Calls(__import__, "antigravity"),
    "open": lambda marker: Calls(open, str(marker), "w"),
    "partial": lambda marker: Calls(functools.partial, pathlib.Path.mkdir, pathlib.Path(marker)),
    "load": lambda marker: Calls(torch.load, str(marker)),
    "setattr": lambda marker: Calls(setattr, pickles.load_pickled, "__doc__", "changed"),
    "setattr of ours": lambda marker: Calls(setattr, UserError, "__doc__", "changed"),
    "a state of ours": lambda marker: Calls(UserError, "a", state={"__class__": 3, "args": (1,)}),
    "raw memory": lambda marker: Calls(np.ndarray, (1,), np.dtype("O"), b"AAAAAAAA"),
    "all memory": lambda marker: Calls(np.ndarray, (1 << 60,), np.dtype("u1")),
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_nothing_runs_and_nothing_of_ours_changes(call: str, new: bool, tmp_path: Path) -> None:
    marker, documents = tmp_path / "marker", (pickles.load_pickled.__doc__, UserError.__doc__)
    before = dict(vars(StandIn)), dict(vars(stand_ins)), dict(vars(UserError))
    file = written({"state_dict": STATE, "args": CALLS[call](marker), "more": [CALLS[call](marker)]}, new)
    content = load_pickled(file)
    assert torch.equal(content["state_dict"]["conv1.weight"], STATE["conv1.weight"])
    assert isinstance(content["args"], StandIn) or issubclass(content["args"], StandIn)
    assert not marker.exists() and documents == (pickles.load_pickled.__doc__, UserError.__doc__)
    assert before == (dict(vars(StandIn)), dict(vars(stand_ins)), dict(vars(UserError)))


def crafted(tmp_path: Path, payload: bytes) -> Path:
    """A file of torch.save whose pickle is the payload."""
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(written(STATE)) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, payload if entry.filename.endswith("data.pkl") else source.read(entry))
    return path


PICKLES = {
    "a state for a class": b"\x80\x02cargparse\nNamespace\n}X\x06\x00\x00\x00originX\x01\x00\x00\x00xsb.",
    "an item of a class": b"\x80\x02cargparse\nNamespace\nX\x01\x00\x00\x00aK\x01s.",
    "a call of what was made": b"\x80\x02cargparse\nNamespace\n)R)R.",
    "a method of what is known": b"\x80\x02ccollections\nOrderedDict.update\n)R.",
    "a name of ours": b"\x80\x02cdatasets.numpy_pickles\nStandIn\n)R.",
    "os": b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.",
    "sys": b"\x80\x02csys\nexit\n)R.",
    "too few on the stack": b"\x80\x02cargparse\nNamespace\nR.",
    "an entry that is not there": b"\x80\x02cargparse\nNamespace\nh\x07.",
}


@pytest.mark.parametrize("case", PICKLES)
def test_strange_uses_of_names_are_refused(case: str, tmp_path: Path) -> None:
    before = dict(vars(StandIn))
    with pytest.raises(UserError, match=r"file\.pth") as caught:
        load_checkpoint(crafted(tmp_path, PICKLES[case]))
    assert "\n" not in str(caught.value) and dict(vars(StandIn)) == before


def test_a_file_cannot_ask_for_names_without_end(tmp_path: Path) -> None:
    names = b"".join(f"cmade.up\nName{i}\n0".encode() for i in range(MOST_NAMES + 1))
    with pytest.raises(UserError, match="more than 1000"):
        load_checkpoint(crafted(tmp_path, b"\x80\x02" + names + b"}."))


def test_values_that_share_values_take_no_time(tmp_path: Path) -> None:
    """Sixty lists that each hold the one before it twice are 2^60 values to whoever does not notice."""
    value: list[Any] = [argparse.Namespace()]
    for _ in range(60):
        value = [value, value]
    torch.save({"state_dict": STATE, "deep": value}, tmp_path / "file.pth")
    assert load_checkpoint(tmp_path / "file.pth").state.keys() == STATE.keys()
    endless: list[Any] = []
    endless.append(endless)
    torch.save({"state_dict": STATE, "deep": endless}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"file\.pth"):
        load_checkpoint(tmp_path / "file.pth")


def test_names_are_found_without_unpickling() -> None:
    uses = names_in(written({"a": Attributes(b=1), "c": Numbered([1]), "d": argparse.Namespace(e=[1], f={"g": 1})}))
    here = __name__
    assert uses[f"{here}.Attributes"] == {"item"} and uses[f"{here}.Numbered"] == {"append"}
    assert uses["argparse.Namespace"] == set()
