"""Generators of bad input, and what has to hold whatever comes out of them: for property tests and for long runs.

A `Kind` draws cases from files and command lines that are right and then damaged, so that they come far before they are
noticed. Its `attempt` hands a case to the code in a folder of its own and returns "accepted", where something stated
holds of the result, or "refused", where the user got one printable line that names the file. It raises AssertionError
where neither is so; every other exception is a traceback that a user would have seen.
"""

import contextlib
import copy
import dataclasses
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import benchmarks.command
import benchmarks.jobs.paper_runs
import benchmarks.robustness.image_trees
import benchmarks.robustness.layouts
import benchmarks.speed.ablation
import benchmarks.speed.decode
import benchmarks.speed.parity
import benchmarks.speed.roofline
import benchmarks.speed.scaling
import benchmarks.speed.startup
import benchmarks.speed.throughput
import evaluate
import main_stage1
import main_stage2
import predict
import reproduce
import stages.linear_probe_start
import stages.user_features
import tools.check_dataset
import tools.compare
import tools.export_features
import tools.release
from datasets import IN_MEMORY
from datasets.cifar import CIFAR10, CIFAR100, load_cifar
from datasets.decode import decode_rgb
from datasets.lists import read_json_list, read_list
from runs.checkpoint import Checkpoint, load_checkpoint, with_backbone
from runs.feature_files import read_features
from settings.fields import EVALUATE, FLAGS, STAGE1, STAGE2
from settings.resolve import Command
from utils.command import run_command
from utils.errors import UserError

SECONDS = 20  # after which a case counts as hanging
LONGEST_MESSAGE = 2100  # characters
ACCEPTED, REFUSED = "accepted", "refused"
HUGE_NUMBER = "9" * 5000  # more digits than Python turns into an integer


class Hang(BaseException):
    """A case took too long; no `except Exception` swallows it."""


class ReachedError(BaseException):
    """A command line was taken so far that its work would begin; it holds the command, where there is one."""

    def __init__(self, command: Command | None = None) -> None:
        super().__init__()
        self.command = command


@dataclass(frozen=True)
class Material:
    """Right files to start from: `home` is a folder with runs, images, lists, features and released weights."""

    home: Path
    texts: dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """One kind of input: what is drawn, and what is done with it in a fresh folder."""

    name: str
    cases: Callable[[Material], SearchStrategy[Any]]
    attempt: Callable[[Material, Path, Any], str]


# What every case has in common


@contextlib.contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Raise `Hang` where the block takes longer."""

    def stop(*_: object) -> None:
        raise Hang(f"still running after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def stand(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file below a folder."""
    return {
        str(path.relative_to(folder)): (status.st_size, status.st_mtime_ns)
        for path in folder.rglob("*")
        if (status := path.lstat()) and not path.is_dir()
    }


@dataclass(frozen=True)
class Ending:
    """How a command ended: `status` 0 to 2, None where it was stopped at its work; `err` is what stderr shows."""

    status: int | None
    out: str
    err: str
    command: Command | None = None


def shell(main: Callable[[list[str]], object], argv: Sequence[str]) -> Ending:
    """Run a command as `python -m` does, on streams that encode as those of a terminal in UTF-8 do."""
    raw_out, raw_err = io.BytesIO(), io.BytesIO()
    out = io.TextIOWrapper(raw_out, encoding="utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(raw_err, encoding="utf-8", errors="backslashreplace", write_through=True)
    status: int | None = 0
    command = None
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        with time_limit(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(lambda: main(list(argv)))
    except ReachedError as reached:
        status, command = None, reached.command
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
    return Ending(status, raw_out.getvalue().decode(), raw_err.getvalue().decode(), command)


def check_line(message: str, named: str = "") -> None:
    """Assert that a message is one printable line of bounded length that has `named` in it."""
    assert message.isprintable(), f"not printable: {message!r}"
    assert 0 < len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:300]!r}"
    assert named in message, f"{named} is not named: {message!r}"


def check_ending(ending: Ending, named: str = "") -> str:
    """Assert that a command was refused in one line, or not at all; return which of the two."""
    if ending.status in (0, 1, None):
        assert "Traceback" not in ending.err
        return ACCEPTED
    assert ending.status == 2, ending
    *notes, last = ending.err.removesuffix("\n").split("\n")
    assert last.startswith("error: "), ending.err
    assert all(note.startswith(("not used ", "warning: ")) for note in notes), ending.err
    check_line(last, named)
    return REFUSED


def refusal(read: Callable[[], Any], named: str) -> tuple[str, Any]:
    """Call a reader; return "accepted" and its result, or "refused" after checking the one line."""
    noise = io.StringIO()
    try:
        with time_limit(), contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
            result = read()
    except UserError as error:
        check_line(" ".join(str(error).split()), named)
        return REFUSED, None
    for line in noise.getvalue().splitlines():
        check_line(line)
    return ACCEPTED, result


# Bytes and text

Damage = tuple[str, float, float, bytes]
JUNK_BYTES = [b"", b"\0", b"\xff", b"\n", b"\r", b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"0" * 64, b"\x80\x04."]


def damages() -> SearchStrategy[list[Damage]]:
    """Draw what is done to bytes: where (as a share of their length), how much, and what comes in the place."""
    operations = st.sampled_from(["cut off", "flip a bit", "leave out", "double", "insert", "overwrite", "swap"])
    shares = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
    one = st.tuples(operations, shares, shares, st.sampled_from(JUNK_BYTES) | st.binary(max_size=12))
    return st.lists(one, min_size=1, max_size=3)


def damage(data: bytes, done: Sequence[Damage]) -> bytes:
    """Return bytes after all that `damages` drew."""
    for operation, where, much, junk in done:
        at = int(where * len(data))
        end = min(len(data), at + 1 + int(much**4 * (len(data) - at)))  # a small part more often than a large one
        if operation == "cut off":
            data = data[:at]
        elif operation == "flip a bit" and data:
            data = data[:at] + bytes([data[at] ^ (1 << int(much * 8))]) + data[at + 1 :]
        elif operation == "leave out":
            data = data[:at] + data[end:]
        elif operation == "double":
            data = data[:end] + data[at:]
        elif operation == "insert":
            data = data[:at] + junk + data[at:]
        elif operation == "overwrite":
            data = data[:at] + junk + data[at + len(junk) :]
        elif operation == "swap":
            data = data[at:] + data[:at]
    return data


# Nested content: JSON and checkpoints

Edit = tuple[str, int, str]
PLAIN_JUNK: dict[str, Callable[[Any], Any]] = {
    "null": lambda old: None, "true": lambda old: True, "minus one": lambda old: -1, "zero": lambda old: 0,
    "huge": lambda old: 10**30, "more than huge": lambda old: f"@{HUGE_NUMBER}@", "fraction": lambda old: 0.5,
    "nan": lambda old: math.nan, "infinity": lambda old: math.inf, "empty text": lambda old: "",
    "text": lambda old: "nosuch", "long text": lambda old: "x" * 100_000, "escape": lambda old: "\x1b[2Jhidden\r\nb",
    "surrogate": lambda old: "\ud800", "path": lambda old: "../../etc/passwd", "absolute": lambda old: "/etc/passwd",
    "list": lambda old: [], "object": lambda old: {}, "in a list": lambda old: [old], "as text": lambda old: str(old),
    "in an object": lambda old: {"a": old}, "deep": lambda old: f"@{'[' * 100_000}@", "twice": lambda old: [old, old],
}  # fmt: skip
TENSOR_JUNK: dict[str, Callable[[Any], Any]] = {
    **{name: junk for name, junk in PLAIN_JUNK.items() if name not in ("more than huge", "deep")},
    "empty tensor": lambda old: torch.zeros(0), "number": lambda old: torch.tensor(3.0),
    "declared huge": lambda old: torch.zeros(1).expand(10**12),
    "all nan": lambda old: old * math.nan if floating(old) else old,
    "all infinite": lambda old: old * 0 + math.inf if floating(old) else old,
    "other shape": lambda old: old[None] if isinstance(old, torch.Tensor) else torch.zeros(2, 2),
    "a row less": lambda old: old[1:] if isinstance(old, torch.Tensor) and old.ndim else old,
    "double": lambda old: old.double() if floating(old) else old,
    "half": lambda old: old.half() if floating(old) else old,
    "integers": lambda old: old.long() if floating(old) else old,
    "boolean": lambda old: old.bool() if isinstance(old, torch.Tensor) else old,
    "complex": lambda old: old.to(torch.complex64) if floating(old) else old,
    "sparse": lambda old: old.to_sparse() if floating(old) and old.ndim else old,
    "quantised": lambda old: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8) if floating(old) else old,
    "meta": lambda old: old.to("meta") if floating(old) else old,
    "parameter": lambda old: torch.nn.Parameter(old) if floating(old) else old,
    "float8": lambda old: old.to(torch.float8_e4m3fn) if floating(old) else old,
    "nested": lambda old: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "dtype": lambda old: torch.float32, "size": lambda old: torch.Size([2]), "set": lambda old: {1, 2},
    "tuple": lambda old: (old,), "bytes": lambda old: b"\xff",
}  # fmt: skip


def floating(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def places(content: Any, prefix: tuple[Any, ...] = (), most: int = 3) -> list[tuple[Any, ...]]:
    """Return the keys that lead to every entry of nested dictionaries and lists, of long lists to the first few."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content))[:most]
    return [here for key, value in pairs for here in ((*prefix, key), *places(value, (*prefix, key), most))]


def edits(junk: Sequence[str], most: int = 3) -> SearchStrategy[list[Edit]]:
    """Draw what is done to nested content: leave an entry out, give it another value or name, put another beside it."""
    operations = st.sampled_from(["replace", "replace", "remove", "rename", "add"])
    return st.lists(
        st.tuples(operations, st.integers(0, 10**6), st.sampled_from(list(junk))), min_size=1, max_size=most
    )


def edited(content: Any, done: Sequence[Edit], junk: dict[str, Callable[[Any], Any]]) -> Any:
    """Return a copy of nested content after all that `edits` drew."""
    content = copy.deepcopy(content)
    for operation, number, name in done:
        known = places(content)
        if not known:
            return junk[name](content)
        *way, key = known[number % len(known)]
        holder = content
        for step in way:
            holder = holder[step]
        if operation == "replace":
            holder[key] = junk[name](holder[key])
        elif operation == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, junk[name](holder[key]))
        else:
            holder[f"{key}2"] = holder.pop(key) if operation == "rename" else junk[name](holder[key])
    return content


def as_json(content: Any) -> str:
    """Return JSON text, with what stands between @ and @ in a text as it is: no Python value would be written so."""
    return re.sub(r'"@([^"@]*)@"', r"\1", json.dumps(content))


TEXT_FORMS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode("utf-8", "surrogatepass"),
    "with a mark": lambda text: b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass"),
    "utf-16": lambda text: text.encode("utf-16", "surrogatepass"),
    "latin-1": lambda text: text.replace("a", "\xe9").encode("latin-1", "replace"),
    "doubled keys": lambda text: text.replace("{", '{"id": 1, "id": 2, ', 3).encode("utf-8", "surrogatepass"),
    "two": lambda text: (text * 2).encode("utf-8", "surrogatepass"),
}


def json_cases(names: Sequence[str]) -> SearchStrategy[Any]:
    """Draw which JSON file is damaged, edits of its content, a form of its text, and sometimes damage to the bytes."""
    forms = st.sampled_from(["utf-8"] * 6 + list(TEXT_FORMS))
    return st.tuples(
        st.sampled_from(list(names)), edits(list(PLAIN_JUNK)), forms, st.just([]) | st.just([]) | damages()
    )


def json_bytes(text: bytes, done: Sequence[Edit], form: str, broken: Sequence[Damage]) -> bytes:
    """Return the bytes of a JSON file after what `json_cases` drew."""
    return damage(TEXT_FORMS[form](as_json(edited(json.loads(text), done, PLAIN_JUNK))), broken)


# Lists

LINES = [
    "", " ", "\t", "nolabel", "img.png", "a.png -1", "a.png 1.0", "a.png 99999999999", "a.png 3", "a.png 0x1",
    "a.png 1 2",
    "a.png \u0663", "a.png\u00a01", "a.png,1", "a.png;1", "a.png\t1", "  a.png   1  ", "/etc/passwd 0", "../a.png 0",
    "..\\a.png 0", "C:\\a.png 0", "a/../../b.png 1", "a\0b.png 0", "a.png 0\0", "\ufeffa.png 1", "a\x1b[31m.png 1",
    "a.png \x1b[31m", "é.png 1", "\udcff.png 1", "\u2028.png 1", "x" * 2000 + " 1", "a b c.png 0", "0 a.png",
    "# comment",
    "a.png +1", "a.png 1_0", "a.png ", " 1", "a.png " + "1" * 5000, "a.png 1\x85b.png 0", "a.png 1\x0bb.png 0",
]  # fmt: skip


def list_cases(material: Material) -> SearchStrategy[Any]:
    """Draw edits of a list's lines, the ends of its lines, its encoding, and sometimes damage to its bytes."""
    operation = st.sampled_from(["insert", "insert", "remove", "double", "swap label"])
    edit = st.tuples(operation, st.integers(0, 10**6), st.sampled_from(LINES))
    ends = st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "", "\0"])
    coding = st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    classes = st.sampled_from([None, 2, 3, 1000])
    return st.tuples(st.lists(edit, max_size=4), ends, coding, classes, st.just([]) | damages())


def list_bytes(text: bytes, done: Sequence[tuple[str, int, str]], end: str, coding: str) -> bytes:
    """Return the bytes of a list after what `list_cases` drew."""
    lines = text.decode().splitlines()
    for operation, number, line in done:
        at = number % (len(lines) or 1)
        if operation == "insert" or not lines:
            lines.insert(at, line)
        elif operation == "remove":
            lines.pop(at)
        elif operation == "double":
            lines.append(lines[at])
        else:
            lines[at] = f"{lines[at].split()[0] if lines[at].split() else ''} {line.split(' ')[-1]}"
    errors = "surrogateescape" if coding.startswith("utf-8") else "replace"
    return "".join(line + end for line in lines).encode(coding, errors)


def plain_rows(data: bytes) -> list[tuple[bytes, int]]:
    """Return the rows of a list by another way than `read_list`: bytes and one regular expression a line."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    rows = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.strip():
            match = re.fullmatch(r"(.*\S)\s+([0-9]+)\s*", line, re.DOTALL)
            assert match, f"no row: {line!r}"
            rows.append((os.fsencode(match[1]), int(match[2])))
    return rows


def try_list(material: Material, folder: Path, case: Any) -> str:
    """Read a list: what is accepted has exactly the rows that `plain_rows` finds, with paths that stay inside."""
    done, end, coding, classes, broken = case
    file = folder / "train.txt"
    file.write_bytes(damage(list_bytes(material.texts["train.txt"], done, end, coding), broken))
    outcome, split = refusal(lambda: read_list(file, folder, classes), str(file))
    if outcome == ACCEPTED:
        rows = list(zip(split.images.tolist(), split.labels.tolist(), strict=True))
        assert rows == plain_rows(file.read_bytes())
        check_rows(split, folder, classes)
    return outcome


def check_rows(split: Any, folder: Path, classes: int | None) -> None:
    """Assert that paths stay below the folder and labels are those of the classes."""
    for row in range(len(split)):
        assert Path(os.path.normpath(split.path(row))).is_relative_to(folder), split.path(row)
    assert int(split.labels.min()) >= 0 and (classes is None or int(split.labels.max()) < classes)


def try_coco(material: Material, folder: Path, case: Any) -> str:
    """Read a list in COCO's form: what is accepted pairs every image with the one category of its annotation."""
    name, done, form, broken = case
    file = folder / name
    file.write_bytes(json_bytes(material.texts[name], done, form, broken))
    outcome, found = refusal(lambda: read_json_list(file, folder), str(file))
    if outcome == ACCEPTED:
        split, names = found
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
        order = sorted(category["id"] for category in content["categories"])
        label_of = {entry["image_id"]: order.index(entry["category_id"]) for entry in content["annotations"]}
        rows = [(os.fsencode(image["file_name"]), label_of[image["id"]]) for image in content["images"]]
        assert list(zip(split.images.tolist(), split.labels.tolist(), strict=True)) == rows
        assert len(names) == len(order)
        for class_name in names:
            check_line(class_name or "-")
        check_rows(split, folder, len(names))
    return outcome


# Features

FEATURE_FILES = ("mine.npz", "mine.safetensors")
ARRAY_JUNK: dict[str, Callable[[np.ndarray], Any]] = {
    "other width": lambda a: a[..., :-1], "a row less": lambda a: a[1:], "empty": lambda a: a[:0],
    "transposed": lambda a: a.T, "flat": lambda a: a.ravel(), "a dimension more": lambda a: a[None],
    "nan": lambda a: a * np.nan if a.dtype.kind == "f" else a, "inf": lambda a: a / 0.0 if a.dtype.kind == "f" else a,
    "half": lambda a: a.astype(np.float16) if a.dtype.kind in "fi" else a,
    "double": lambda a: a.astype(np.float64) if a.dtype.kind in "fi" else a,
    "integers": lambda a: a.astype(np.int8) if a.dtype.kind in "fi" else a,
    "unsigned": lambda a: a.astype(np.uint64) if a.dtype.kind in "i" else a,
    "boolean": lambda a: a.astype(bool) if a.dtype.kind in "fi" else a,
    "complex": lambda a: a.astype(complex) if a.dtype.kind in "fi" else a,
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder(">")) if a.dtype.kind in "fi" else a,
    "minus": lambda a: -a if a.dtype.kind in "fi" else a, "larger": lambda a: a * 1000 if a.dtype.kind in "fi" else a,
    "texts": lambda a: a.astype(str), "bytes": lambda a: np.array([b"a", b"b"]), "number": lambda a: np.array(3),
    "dates": lambda a: np.array(["2020-01-01"], dtype="datetime64[D]"), "wide": lambda a: np.zeros((2, 2),
    np.longdouble),
    "records": lambda a: np.zeros(3, dtype=[("a", int), ("b", float)]),
    "escape": lambda a: np.array(["\x1b[2J", "a\nb", "\ud800"]), "objects": lambda a: np.array([{}, None],
    dtype=object),
}  # fmt: skip
ARCHIVE_JUNK = ["../up.npy", "/abs.npy", "train_features", "train_labels.npy", "\x1b[2J\n.npy", "x" * 300, "a/b/c.npy"]
HEADERS = [
    {"descr": "<f4", "fortran_order": False, "shape": (10**12, 8)}, {"descr": "<f4", "fortran_order": True,
    "shape": (2,)},
    {"descr": "<f4", "fortran_order": False, "shape": (-1, 8)}, {"descr": "|O", "fortran_order": False, "shape": (1,)},
    {"descr": "nosuch", "fortran_order": False, "shape": (1,)}, {"descr": "<f4", "fortran_order": False,
    "shape": (2**63,)},
    {"descr": "<f4", "fortran_order": False, "shape": (0, 2**40)}, {"descr": "<V0", "fortran_order": False,
    "shape": (5,)},
]  # fmt: skip


def feature_arrays() -> dict[str, np.ndarray]:
    """Return features of two classes, a row of numbers a class apart."""
    labels = np.repeat([0, 1, 2], [6, 4, 2])
    rows = (labels[:, None] + np.linspace(0, 0.4, 12 * 6).reshape(12, 6)).astype(np.float32)
    held = {"holdout_features": rows[::4], "holdout_labels": labels[::4]}
    classifier = {"fc.weight": np.eye(3, 6, dtype=np.float32), "fc.bias": np.zeros(3, np.float32)}
    names = {"class_names": np.array(["ant", "bee", "cat"])}
    return {
        "train_features": rows, "train_labels": labels, "test_features": rows[::2] + 0.01, "test_labels": labels[::2],
        "test_features_mirrored": rows[::2] - 0.01, **held, **names, **classifier,
    }  # fmt: skip


def write_arrays(file: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as npz or safetensors, by the file's ending; what safetensors cannot hold is left out there."""
    if file.suffix == ".npz":
        np.savez(file, **arrays)
        return
    tensors, metadata = {}, {}
    for name, array in arrays.items():
        if isinstance(array, np.ndarray) and array.dtype.kind in "SU" and name == "class_names":
            metadata[name] = json.dumps(array.tolist(), default=str)
            continue
        with contextlib.suppress(TypeError, ValueError):
            if array.dtype.kind == "c":
                continue
            native = array.astype(array.dtype.newbyteorder("="))
            tensors[name] = torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
    save_file(tensors, file, metadata or None)


def feature_cases(material: Material) -> SearchStrategy[Any]:
    """Draw a format, changes of arrays, an entry of the zip archive of one's own making, sometimes damage to bytes."""
    name = st.sampled_from([*feature_arrays(), "extra"])
    change = st.tuples(name, st.sampled_from(["remove", *ARRAY_JUNK]))
    entry = st.tuples(st.sampled_from(ARCHIVE_JUNK), st.integers(0, len(HEADERS) - 1), st.booleans())
    return st.tuples(
        st.sampled_from(FEATURE_FILES), st.lists(change, max_size=2), st.none() | entry, st.just([]) | damages()
    )


def try_features(material: Material, folder: Path, case: Any) -> str:
    """Read features: what is accepted fits together and is, number by number, what numpy or safetensors reads."""
    name, changes, entry, broken = case
    arrays: dict[str, Any] = feature_arrays()
    for key, change in changes:
        if change == "remove":
            arrays.pop(key, None)
        else:
            with np.errstate(all="ignore"):
                arrays[key] = ARRAY_JUNK[change](arrays.get(key, np.arange(3.0)))
    file = folder / name
    write_arrays(file, arrays)
    if entry is not None and name.endswith(".npz"):
        add_entry(file, *entry)
    file.write_bytes(damage(file.read_bytes(), broken))
    before = stand(folder)
    outcome, found = refusal(lambda: read_features(file), str(file))
    assert stand(folder) == before
    if outcome == ACCEPTED:
        check_features(file, found[1])
    return outcome


def add_entry(file: Path, name: str, header: int, packed: bool) -> None:
    """Append an entry to a zip archive: an array that its header describes wrongly."""
    body = io.BytesIO()
    text = repr(HEADERS[header]).encode() + b"\n"
    body.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64))
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "a") as archive, pytest.warns() if name in archive.namelist() else no_context():
        archive.writestr(name, body.getvalue(), kind)


def no_context() -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def check_features(file: Path, content: dict[str, Any]) -> None:
    """Assert that features that were read fit together, and are those of the file by a reader of its own."""
    features, classes = content["features"], len(content["class_names"])
    for split in ("train", "test"):
        rows, labels = features[f"{split}_features"], features[f"{split}_labels"]
        assert len(rows) == len(labels) > 0 and bool(rows.isfinite().all())
        assert int(labels.min()) >= 0 and int(labels.max()) < classes
    assert set(features["train_labels"].tolist()) == set(range(classes))
    if file.suffix == ".npz":
        with np.load(file) as opened:
            stored = {key: opened[key] for key in ("train_features", "test_labels")}
    else:
        tensors = load_file(file)
        stored = {key: tensors[key].float().numpy() for key in ("train_features", "test_labels")}
    for key, array in stored.items():
        assert np.array_equal(features[key].numpy().astype(np.float64), array.astype(np.float32).astype(np.float64))
    for name in content["class_names"]:
        check_line(name or "-")


# Images

PICTURES = {
    "JPEG": {}, "progressive JPEG": {"progressive": True}, "PNG": {}, "GIF": {}, "BMP": {}, "TIFF": {}, "WEBP": {},
    "PPM": {},
}  # fmt: skip
MODES = ["RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F", "LA"]
NAMES = ["a.jpg", "a.png", "a.gif", "\x1b[31m.jpg", "a\nb.jpg", "\udcff.jpg"]


def image_bytes(form: str, mode: str) -> bytes:
    """Return a small picture in a format and a mode; in RGB where the format has no such mode."""
    pixels = Image.fromarray(np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3))
    for wanted in (mode, "RGB"):
        file = io.BytesIO()
        with contextlib.suppress(OSError, ValueError, KeyError):
            pixels.convert(wanted).save(file, form.removeprefix("progressive "), **PICTURES[form])
            return file.getvalue()
    raise AssertionError(form)


def image_cases(material: Material) -> SearchStrategy[Any]:
    """Draw a format, a mode, a file's name (which may be another format's), sizes in the header, damage to bytes."""
    sizes = st.none() | st.sampled_from([0, 1, 65535, 30000, 2**31 - 1])
    return st.tuples(
        st.sampled_from(list(PICTURES)), st.sampled_from(MODES), st.sampled_from(NAMES), sizes, st.just([]) | damages()
    )


def with_size(data: bytes, size: int) -> bytes:
    """Return a picture whose header says another size, for the formats where that is easy to find."""
    if data[:2] == b"\xff\xd8":
        frame = re.search(rb"\xff[\xc0\xc2]..\x08", data, re.DOTALL)
        if frame:
            return data[: frame.end()] + struct.pack(">HH", size % 65536, size % 65536) + data[frame.end() + 4 :]
    if data[:4] == b"\x89PNG":
        header = data[12:16] + struct.pack(">II", size, size) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if data[:3] == b"GIF":
        return data[:6] + struct.pack("<HH", size % 65536, size % 65536) + data[10:]
    if data[:2] == b"BM":
        return data[:18] + struct.pack("<ii", size, size) + data[26:]
    return data


def try_image(material: Material, folder: Path, case: Any) -> str:
    """Decode an image: the pixels are of the size that the header says, and the check of data sets judges alike."""
    form, mode, name, size, broken = case
    data = image_bytes(form, mode)
    data = damage(data if size is None else with_size(data, size), broken)
    path = os.path.join(folder, name)
    Path(path).write_bytes(data)
    printable = "" if not name.isprintable() else path
    outcome, pixels = refusal(lambda: decode_rgb(path), printable)
    with time_limit(), contextlib.redirect_stderr(io.StringIO()):
        kinds = tools.check_dataset.present(path) or tools.check_dataset.examine(path)
    usable = all(tools.check_dataset.KINDS[kind] for kind in kinds)
    assert usable == (outcome == ACCEPTED), (kinds, outcome)
    if outcome == ACCEPTED:
        assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3
        with Image.open(path) as image:
            assert (image.height, image.width) == tuple(pixels.shape[1:])
    assert Path(path).read_bytes() == data
    return outcome


# Checkpoints

RUN = Path("runs/digits_expIF25_resnet8/seed0")
RELEASED = ("released.safetensors", "classifier.safetensors", "exported.safetensors")
PICKLED = ("last.pth", "best.pth", "weights.pth", "legacy.pth")


def checkpoint_cases(material: Material) -> SearchStrategy[Any]:
    """Draw a file, edits of its content or of its header, or damage to its bytes."""
    names = st.sampled_from([*PICKLED, *PICKLED, *RELEASED])
    both: SearchStrategy[Any] = st.tuples(edits(list(TENSOR_JUNK)), st.just([]))
    return st.tuples(names, both | both | st.tuples(st.just([]), damages()))


def try_checkpoint(material: Material, folder: Path, case: Any) -> str:
    """Read a checkpoint and, where that works, report on it: what is accepted has the numbers of a real report.

    Damage to bytes that a checksum covers is noticed, or what was read is what was there before.
    """
    name, (done, broken) = case
    for other in (*RELEASED, "weights.pth", "mine.npz"):
        shutil.copy(material.home / other, folder / other)
        card = material.home / Path(other).with_suffix(".json")
        if card.exists():
            shutil.copy(card, folder)
    source = material.home / (RUN / "stage1_epochs1_width4" / name if name in ("last.pth", "best.pth") else name)
    file = folder / name
    if done and name in PICKLED:
        content = edited(torch.load(source, weights_only=True), done, TENSOR_JUNK)
        try:
            torch.save(content, file, _use_new_zipfile_serialization=name != "legacy.pth")
        except (RuntimeError, NotImplementedError, AttributeError):
            return REFUSED  # nobody can write such a file
    elif done:
        rewrite_released(source, file, done)
    else:
        file.write_bytes(damage(source.read_bytes(), broken))
    before = stand(folder)
    outcome, checkpoint = refusal(lambda: with_backbone(load_checkpoint(file)), str(folder))
    if outcome == ACCEPTED:
        if broken and name not in ("legacy.pth",):
            check_same(checkpoint, load_checkpoint(source))
        outcome = try_report(file)
    assert stand(folder) == before
    return outcome


def check_same(read: Checkpoint, original: Checkpoint) -> None:
    """Assert that a damaged file that was accepted gave what stood in it before."""
    assert all(torch.equal(read.state[key], value) for key, value in original.state.items())
    assert json.dumps(read.config, sort_keys=True) == json.dumps(original.config, sort_keys=True)


def rewrite_released(source: Path, file: Path, done: Sequence[Edit]) -> None:
    """Write a released file with edits of its header and tensors, without its card, which would tell at once."""
    with safe_open(source, framework="pt") as opened:
        header = json.loads(opened.metadata()["checkpoint"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # no dictionary
    flat = [edit for edit in done if edit[1] % 2]
    header = edited(header, [edit for edit in done if not edit[1] % 2], {**TENSOR_JUNK, **PLAIN_JUNK})
    tensors = edited(tensors, flat, TENSOR_JUNK)
    tensors = {
        key: value.contiguous().clone()
        for key, value in (tensors.items() if isinstance(tensors, dict) else ())
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.numel() < 10**6
        and value.device.type == "cpu" and not value.is_quantized and not value.is_nested and not value.is_complex()
    }  # fmt: skip
    file.with_suffix(".json").unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    text = re.sub(r'"@([^"@]*)@"', r"\1", json.dumps(header, default=str))
    save_file(tensors, file, {"checkpoint": text})


def try_report(file: Path) -> str:
    """Report on a checkpoint to the end; an accepted one has accuracies from 0 to 100, a number for every class."""
    place = file.parent.parent / f"{file.parent.name}.report.json"
    known = ["--dataset", "digits", "--width", "4"]
    ending = shell(evaluate.main, [*known, "--pretrained_pth", str(file), "--json", str(place)])
    outcome = check_ending(ending)
    if outcome == ACCEPTED:
        assert ending.status == 0
        (report,) = strict_json(place)["checkpoints"].values()
        assert 0 <= report["plain"]["all"] <= 100
        place.unlink()
    return outcome


def strict_json(path: Path) -> Any:
    """Read JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# Records of runs

RECORDS = {
    "metrics.json": RUN / "stage1_epochs1_width4" / "metrics.json",
    "config.json": RUN / "stage1_epochs1_width4" / "config.json",
    "stage2 metrics.json": RUN / "stage2_los_epochs1_width4_finetune_epoch1" / "metrics.json",
    "stage2 config.json": RUN / "stage2_los_epochs1_width4_finetune_epoch1" / "config.json",
    "card": Path("released.json"),
}


def try_record(material: Material, folder: Path, case: Any) -> str:
    """Compare, go on with, start from and read what a damaged record belongs to; the numbers shown are the file's."""
    name, done, form, broken = case
    home = folder / "home"
    shutil.copytree(material.home, home)
    file = home / RECORDS[name]
    file.write_bytes(json_bytes(file.read_bytes(), done, form, broken))
    if name == "card":
        return refusal(lambda: load_checkpoint(home / "released.safetensors"), str(home))[0]
    before = stand(home)
    csv = folder / "rows.csv"
    with inside(home):
        run = str(RECORDS[name].parent)
        ending = shell(tools.compare.main, [run, "--csv", str(csv)])
        outcome = check_ending(ending, run if ending.status == 2 else "")
        if outcome == ACCEPTED:
            content = json.loads((home / RECORDS[name]).with_name("metrics.json").read_text())
            shown = pd.read_csv(csv)["last_plain_all"].iloc[0]
            recorded = content["last"]["plain"]["all"]
            assert pd.isna(shown) if recorded is None else shown == pytest.approx(recorded)
        common = ["--dataset", "digits", "--out", "runs", "--network", "resnet8", "--width", "4"]
        endings = [
            shell(main_stage1.main, [*common, "--epochs", "1", "--reuse"]),
            shell(main_stage2.main, [*common, "--finetune_epoch", "1", "--reuse"]),
            shell(evaluate.main, [*common, "--cur_stage", "stage2"]),
        ]
        outcomes = [check_ending(ending) for ending in endings]
    changed = {path for path, state in stand(home).items() if before.get(path) != state}
    # Where metrics.json is unreadable a run is gone on with: it may write its own records again, and no weights.
    assert all(Path(path).name in ("config.json",) for path in changed), changed
    return REFUSED if REFUSED in (outcome, *outcomes) else ACCEPTED


# Command lines

INTEGERS = [
    "0", "1", "2", "3", "-1", "-0", "+1", "007", "1_0", HUGE_NUMBER, "4294967295", "4294967296", "1e3", "2.5", "",
    " 3 ", "\u0663",
    "0x10", "None", "nan", str(2**63), str(-(2**63)), "1" * 400, "99999", "100000",
]  # fmt: skip
FLOATS = [
    "0", "1", "0.5", "-0", "-0.0", "nan", "NaN", "inf", "-inf", "1e999", "1e-999", "5e-324", "1e308", "-1", "1_0.5",
    "\u0663.\u0665",
    "0x1p3", "", "1,5", "100", "1e-5", "25", "0.98", "0.999999999999", "1" * 400,
]  # fmt: skip
WORDS = [
    "", "nosuch", "é", "\udcff", "x" * 5000, "\x1b[31m", "line\nbreak", "-", "--", "-x", "None", "{}", "%s",
    "%(prog)s", "~",
    "\uff21\uff22", "a'b\"c", "*", "$(touch ran)", ";", "\u202e",
]  # fmt: skip
PATHS = [
    "tree", "tree/train.txt", "tree/test.txt", "tree/val.txt", "tree/train.json", "tree/test.json", "mine.npz",
    "mine.safetensors", "released.safetensors", "classifier.safetensors", "exported.safetensors", "released.json",
    "weights.pth",
    "tree/train/ant/0.png", str(RUN / "stage1_epochs1_width4"), str(RUN / "stage2_los_epochs1_width4_finetune_epoch1"),
    str(RUN / "stage1_epochs1_width4" / "last.pth"), "runs", ".", "/dev/null", "/dev/zero", "pipe", "pipe.npz",
    "pipe.safetensors",
    "/proc/self/environ", "nosuch/deep/er", "a" * 300, "a/" * 3000, "mine.npz/inside", "empty.npz", "empty",
    "\udcff.npz",
    "\x1b[2J.npz", "a\nb.npz", "loop", *WORDS,
]  # fmt: skip
# Folders that are made and files that are written: nothing here may lie outside the folder of the case.
TARGETS = [
    "runs", "new", "new/deep", "mine.npz", "mine.npz/inside", "", ".", "/dev/null/x", "a" * 300, "\udcff", "\x1b[2J",
    "a\nb",
    "tree", "é", "-", "loop", "pipe",
]  # fmt: skip
STARTS: dict[str, list[list[str]]] = {
    "main_stage1": [
        ["--dataset", "digits", "--out", "new"],
        ["--dataset", "digits", "--width", "4", "--epochs", "1", "--out", "runs"],
        ["--dataset", "digits", "--width", "4", "--epochs", "1", "--out", "runs", "--resume"],
        ["--dataset", "folder", "--data_dir", "tree", "--network", "resnet8", "--stem", "cifar", "--image_size", "8"],
        ["--dataset", "list", "--data_dir", "tree", "--network", "resnet8", "--stem", "cifar", "--image_size", "8"],
        ["--features", "mine.npz"],
        ["--dataset", "digits", "--width", "4", "--epochs", "0", "--weights", "weights.pth"],
        [],
    ],
    "main_stage2": [
        ["--dataset", "digits", "--width", "4", "--out", "runs"],
        ["--dataset", "digits", "--width", "4", "--out", "runs", "--method", "crt"],
        ["--pretrained_pth", "released.safetensors"],
        ["--pretrained_pth", "exported.safetensors"],
        ["--features", "mine.safetensors"],
        ["--dataset", "digits", "--width", "4", "--weights", "weights.pth"],
        [],
    ],
    "evaluate": [
        ["--dataset", "digits", "--width", "4", "--out", "runs"],
        ["--dataset", "digits", "--width", "4", "--out", "runs", "--cur_stage", "stage2"],
        ["--pretrained_pth", "classifier.safetensors"],
        ["--features", "mine.npz"],
        [],
    ],
    "reproduce": [
        ["delta", "--pretrained_pth", "released.safetensors"],
        ["unified", "--features", "mine.npz"],
        ["cifar", "--dataset", "digits", "--width", "4", "--out", "runs"],
        ["path", "--pretrained_pth", "exported.safetensors"],
        ["nosuch"],
    ],
    "predict": [
        ["--pretrained_pth", str(RUN / "stage1_epochs1_width4"), "--images", "tree", "--workers", "0"],
        ["--pretrained_pth", "released.safetensors", "--images", "tree/train/ant/0.png", "--csv", "new.csv"],
        [],
    ],
    "tools.check_dataset": [
        ["--dataset", "digits"], ["--dataset", "folder", "--data_dir", "tree"], ["--dataset", "list", "--data_dir",
        "tree"], [],
    ],
    "tools.compare": [[str(RECORDS["config.json"].parent), str(RECORDS["stage2 config.json"].parent)], []],
    "tools.release": [
        [str(RECORDS["config.json"].parent), "made.safetensors"],
        [str(RECORDS["stage2 config.json"].parent), "made.safetensors", "--backbone", "released.safetensors"],
        [],
    ],
    "tools.export_features": [[str(RECORDS["config.json"].parent), "made.safetensors"], []],
    **{
        f"benchmarks.{name}": [["--results", "new", "--dataset", "digits"], ["--quick"], []]
        for name in ("agreement", "floor", "levers", "scaling", "speed")
    },
    "benchmarks.speed.decode": [["--results", "new"], ["--quick"], []],
    "benchmarks.speed.startup": [["--results", "new", "--quick"], []],
    "benchmarks.robustness.image_trees": [["new"], []],
    "benchmarks.jobs.paper_runs": [["--quick", "--list", "--out", "new"], []],
}  # fmt: skip
SCRIPTS = {"main_stage1": STAGE1, "main_stage2": STAGE2, "evaluate": EVALUATE}
SETTING_FLAGS = {"main_stage1", "main_stage2", "evaluate", "reproduce"} | {
    f"benchmarks.{name}" for name in ("agreement", "floor", "levers", "scaling", "speed", "paper_runs")
}
PATH_FLAGS = {
    "data_dir", "pretrained_pth", "features", "train_list", "val_list", "test_list", "image_root", "weights", "images",
    "backbone", "holdout_pth",
}  # fmt: skip
TARGET_FLAGS = {"out", "json", "csv", "plot", "markdown", "figure", "results", "bring_home"}
OWN_FLAGS: dict[str, dict[str, Any]] = {
    "reproduce": {"seeds": int, "methods": str, "select": bool, "holdout_pth": str, "results": str},
    "predict": {
        "pretrained_pth": str, "images": str, "csv": str, "overwrite": bool, "top": int, "temperature": float,
        "flip": bool,
        "skip_bad": int, "batch_size": int, "workers": int, "device": str, "gpu": int, "amp": str, "trust_pickle": bool,
    },
    "tools.check_dataset": {
        "dataset": str, "data_dir": str, "train_list": str, "val_list": str, "test_list": str, "image_root": str,
        "imb_ratio": float, "decode": int, "plot": str, "json": str,
    },
    "tools.compare": {"csv": str, "markdown": str, "figure": str},
    "tools.release": {"backbone": str, "part_mib": float},
    "tools.export_features": {"part_mib": float, "device": str},
    "benchmarks.speed.decode": {
        "images": int, "workers": int, "size": int, "rounds": int, "dataset": str, "data_dir": str, "device": str,
        "quick": bool,
        "results": str,
    },
    "benchmarks.speed.startup": {"rows": int, "classes": int, "rounds": int, "only": str, "quick": bool, "results":
    str}, "benchmarks.robustness.image_trees": {"data_dir": str, "imb_ratio": float, "test": int, "holdout": float},
    "benchmarks.jobs.paper_runs": {
        "minutes": float, "bring_home": str, "home_files": int, "home_mib": float, "only": str, "list": bool,
        "quick": bool,
    },
    **{f"benchmarks.{name}": {"quick": bool, "results": str} for name in ("agreement", "speed")},
    "benchmarks.speed.roofline": {"quick": bool, "results": str, "rounds": int, "seconds": float},
    "benchmarks.speed.ablation": {"quick": bool, "results": str, "rounds": int},
    "benchmarks.speed.scaling": {"quick": bool, "results": str, "rounds": int},
}  # fmt: skip
CHOICES: dict[str, list[str]] = {
    "dataset": ["digits", "folder", "list", "cifar100", "imagenet_lt"], "network": ["resnet8", "resnet20", "resnet10"],
    "device": ["auto", "cpu", "cuda"], "method": ["los", "ce", "ncm", "gala", "crt"], "views": ["plain", "fresh", "3"],
}  # fmt: skip


def flags_of(script: str) -> dict[str, Any]:
    """Return the flags of a script with the types of their values; `bool` has none."""
    settings = {name: flag.kind for name, flag in FLAGS.items()} if script in SETTING_FLAGS else {}
    return settings | OWN_FLAGS.get(script, {})


def values_of(name: str, kind: Any) -> SearchStrategy[str]:
    """Draw a value of a flag: from its domain, its edges and beyond."""
    if name in TARGET_FLAGS:
        return st.sampled_from(TARGETS)
    if name in PATH_FLAGS:
        return st.sampled_from(PATHS)
    if name == "workers":  # as many threads as one asks for are started, and processes
        return st.sampled_from(["0", "1", "2", "-1", "two", "1000001", "", "1.5"])
    known = CHOICES.get(name) or (FLAGS[name].choices if name in FLAGS else None) or []
    pool = {int: INTEGERS, float: FLOATS}.get(kind, WORDS + INTEGERS[:4])
    letters = st.characters(exclude_characters="\0/", codec="utf-8")
    return st.sampled_from([*known, *pool]) | st.text(letters, max_size=6)


@st.composite
def words_of(draw: Any, script: str) -> list[str]:
    """Draw one flag with its value, in one of many right and wrong ways of writing it."""
    flags = flags_of(script)
    if not draw(st.integers(0, 15)):  # the flag of another script
        flags = {name: kind for other in STARTS for name, kind in flags_of(other).items()}
    files = sorted(set(flags) & (PATH_FLAGS | TARGET_FLAGS))
    name = draw(st.sampled_from(files if files and draw(st.booleans()) else sorted(flags)))
    kind = flags[name]
    if kind is bool:
        return [f"--{name}", *draw(st.sampled_from([[], [], [], ["1"], ["False"]]))]
    value = draw(values_of(name, kind))
    forms: list[list[str]] = [
        [f"--{name}", value], [f"--{name}", value], [f"--{name}", value], [f"--{name}={value}"], [f"--{name}"],
        [f"--{name[:-1]}", value], [f"-{name}", value], [f"--{name.upper()}", value],
    ]  # fmt: skip
    if name in TARGET_FLAGS:  # only the right form is sure to keep to the folder
        forms = forms[:4]
    return draw(st.sampled_from(forms))


@st.composite
def command_cases(draw: Any, material: Material) -> tuple[str, list[str]]:
    """Draw a script and a command line that begins as a right one and goes wrong."""
    script = draw(st.sampled_from(["main_stage1", "main_stage2", "evaluate", *STARTS]))
    argv = list(draw(st.sampled_from(STARTS[script])))
    for words in draw(st.lists(words_of(script), min_size=1, max_size=2)):
        argv += words
    if not draw(st.integers(0, 9)):
        argv.insert(draw(st.integers(0, len(argv))), draw(st.sampled_from(WORDS + PATHS)))
    if argv and not draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(argv) - 1))
        if not any(word[2:] in TARGET_FLAGS for word in argv[max(at - 1, 0) : at + 1]):
            argv.pop(at)
    return script, [word.replace("\0", "") for word in argv]  # no process can be started with a NUL in its arguments


def last_values(script: str, argv: Sequence[str]) -> dict[str, str]:
    """Return the last value of each flag, by a simple walk through the words."""
    flags, found = flags_of(script), {}
    at = 0
    while at < len(argv):
        name, equals, value = argv[at].removeprefix("--").partition("=")
        name = "lr" if name == "learning-rate" else name
        if argv[at].startswith("--") and name in flags:
            if flags[name] is bool:
                found[name] = "True"
            elif equals:
                found[name] = value
            else:
                at += 1
                found[name] = argv[at]
        at += 1
    return found


def main_of(script: str) -> Callable[[list[str]], object]:
    """Return the function that a script runs."""
    if "." not in script:
        return {"main_stage1": main_stage1, "main_stage2": main_stage2, "evaluate": evaluate, "reproduce": reproduce,
                "predict": predict}[script].main  # fmt: skip
    return sys.modules[script].main


def try_command(material: Material, folder: Path, case: tuple[str, list[str]]) -> str:
    """Run a command line up to its work: a refused one writes nothing; an accepted one means what its words say."""
    script, argv = case
    home = folder / "home"
    shutil.copytree(material.home, home)
    for name in ("pipe", "pipe.npz", "pipe.safetensors"):
        os.mkfifo(home / name)
    (home / "loop").symlink_to("loop")
    before = stand(home)
    with inside(home):
        ending = shell(main_of(script), argv)
    assert "--help" not in argv
    outcome = check_ending(ending)
    after = stand(home)
    if outcome == REFUSED:
        # Of several files that a command was asked to write, the first may be there when the second cannot be.
        changed = {path for path in {**before, **after} if before.get(path) != after.get(path)}
        assert changed <= {os.path.normpath(word.partition("=")[2] or word) for word in argv}, changed
    lost = [path for path in before if path not in after]
    assert not lost or "--overwrite" in argv, f"lost: {lost}"
    check_command(script, argv, ending.command)
    return outcome


def check_command(script: str, argv: Sequence[str], command: Command | None) -> None:
    """Assert that what a command took from its words is what they say, and that every number is one."""
    if command is None or command.script not in SCRIPTS.values() or script not in SCRIPTS:
        return
    if command.script == SCRIPTS[script]:
        said = last_values(script, argv)
        for name, value in command.given.items():
            if name in said:
                kind = FLAGS[name].kind
                wanted = True if kind is bool else None if name == "seed" and value is None else kind(said[name])
                assert value == wanted, (name, value, said[name])
    for name, value in dataclasses.asdict(command.settings).items():
        assert not isinstance(value, float) or math.isfinite(value), f"--{name} {value}"
        assert not isinstance(value, int) or value >= 0, f"--{name} {value}"


@contextlib.contextmanager
def cut_short() -> Iterator[None]:
    """Stop every command where its work would begin, after all that it says no to; what is read often is read once."""

    def stop(command: Command | None = None, *_: object, **__: object) -> None:
        raise ReachedError(command if isinstance(command, Command) else None)

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network in a test")

    digits = sklearn.datasets.load_digits()
    parse = benchmarks.command.Benchmark.parse

    def parse_and_stop(self: Any, *arguments: Any, **named: Any) -> None:
        parse(self, *arguments, **named)
        stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: digits)
        patch.setattr("datasets.digits.sklearn_digits", lambda: digits, raising=False)
        patch.setattr("engine.finish.draw_plots", lambda *_: None)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        for layout, name in ((CIFAR100, "cifar100"), (CIFAR10, "cifar10")):
            away = dataclasses.replace(layout, download=offline)  # type: ignore[arg-type]
            patch.setitem(IN_MEMORY, name, partial(load_cifar, away, name))
        patch.setattr(benchmarks.command.Benchmark, "parse", parse_and_stop)
        patch.setattr(benchmarks.speed.decode, "write_photos", stop)
        patch.setattr(benchmarks.speed.startup, "write_lists", stop)
        patch.setattr(benchmarks.jobs.paper_runs, "work", stop)
        patch.setattr(benchmarks.robustness.image_trees, "write_trees", stop)
        yield


@contextlib.contextmanager
def no_work() -> Iterator[None]:
    """Stop the stages and reports before they compute."""

    def stop(command: object, *_: object, **__: object) -> None:
        raise ReachedError(command if isinstance(command, Command) else None)

    with pytest.MonkeyPatch.context() as patch:
        for module in (main_stage1, main_stage2, evaluate, stages.user_features, stages.linear_probe_start):
            patch.setattr(module, "announce", stop)
        for name in ("tables.rows.train_heads", "tables.selection.train_heads", "tables.path.walk"):
            patch.setattr(name, stop)
        yield


def try_command_line(material: Material, folder: Path, case: tuple[str, list[str]]) -> str:
    """`try_command` with nothing computed."""
    with no_work():
        return try_command(material, folder, case)


KINDS = [
    Kind("command line", command_cases, try_command_line),
    Kind("list", list_cases, try_list),
    Kind("COCO list", lambda material: json_cases(["train.json"]), try_coco),
    Kind("record of a run", lambda material: json_cases(list(RECORDS)), try_record),
    Kind("features", feature_cases, try_features),
    Kind("image", image_cases, try_image),
    Kind("checkpoint", checkpoint_cases, try_checkpoint),
]


# Material


def make_material(folder: Path) -> Material:
    """Make all that the generators start from: two small runs on the digits, their released files, images, lists."""
    home = folder / "home"
    home.mkdir(parents=True)
    with inside(home):
        common = ["--dataset", "digits", "--width", "4", "--out", "runs"]
        for main, argv in (
            (main_stage1.main, [*common, "--epochs", "1"]),
            (main_stage2.main, [*common, "--finetune_epoch", "1"]),
        ):
            ending = shell(main, argv)
            assert ending.status == 0, ending.err
        run, classifier = (RECORDS[name].parent for name in ("config.json", "stage2 config.json"))
        noise = io.StringIO()
        with contextlib.redirect_stdout(noise):
            tools.release.main([str(run), "released.safetensors"])
            tools.release.main([str(classifier), "classifier.safetensors", "--backbone", "released.safetensors"])
            tools.export_features.main([str(run), "exported.safetensors"])
        state = torch.load(run / "last.pth", weights_only=True)["model"]
        torch.save(state, "weights.pth")
        torch.save({"state_dict": state, "epoch": 3}, "legacy.pth", _use_new_zipfile_serialization=False)
        for name in FEATURE_FILES:
            write_arrays(Path(name), feature_arrays())
        make_tree(Path("tree"))
        Path("empty").mkdir()
        Path("empty.npz").touch()
    texts = {name: (home / "tree" / name).read_bytes() for name in ("train.txt", "train.json")}
    return Material(home, texts)


def make_tree(tree: Path) -> None:
    """Write two classes of small images, as a folder a class and as lists in both forms."""
    rows: dict[str, list[tuple[str, int]]] = {}
    for part, counts in (("train", (4, 2)), ("val", (1, 1)), ("test", (2, 2))):
        for label, (name, count) in enumerate(zip(("ant", "bee"), counts, strict=True)):
            (tree / part / name).mkdir(parents=True)
            for number in range(count):
                place = f"{part}/{name}/{number}.{'jpg' if number % 2 else 'png'}"
                pixels = np.full((12, 10, 3), 60 * label + 10 * number, dtype=np.uint8)
                Image.fromarray(pixels).save(tree / place)
                rows.setdefault(part, []).append((place, label))
    for part, own in rows.items():
        (tree / f"{part}.txt").write_text("".join(f"{place} {label}\n" for place, label in own))
        content = {
            "images": [{"id": 7 + i, "file_name": place} for i, (place, _) in enumerate(own)],
            "annotations": [{"id": i, "image_id": 7 + i, "category_id": 3 + label} for i, (_, label) in enumerate(own)],
            "categories": [{"id": 3 + label, "name": name} for label, name in enumerate(("ant", "bee"))],
        }
        (tree / f"{part}.json").write_text(json.dumps(content))


def describe_case(kind: Kind, case: Any) -> str:
    """Return a case in a line, as it can be tried again."""
    if kind.name == "command line":
        return shlex.join([case[0], *(word if len(word) < 100 else f"{word[:50]}..." for word in case[1])])
    return repr(case)
