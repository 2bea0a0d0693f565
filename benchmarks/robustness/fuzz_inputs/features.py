"""Files of features that a user brings: npz, safetensors and dictionaries of torch."""

import contextlib
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import load_file, save_file

from benchmarks.robustness.fuzz_inputs.cases import ACCEPTED, Material, check_line, file_states, refusal
from benchmarks.robustness.fuzz_inputs.damage import damage, damages
from runs.feature_files import read_features
from runs.weights.pickles import load_pickled

FEATURE_FILES = ("mine.npz", "mine.safetensors", "mine.pth")
ARRAY_JUNK: dict[str, Callable[[np.ndarray], Any]] = {
    "other width": lambda a: a[..., :-1] if a.ndim else a,
    "a row less": lambda a: a[1:] if a.ndim else a,
    "empty": lambda a: a[:0] if a.ndim else a,
    "transposed": lambda a: a.T,
    "flat": lambda a: a.ravel(),
    "a dimension more": lambda a: a[None],
    "nan": lambda a: a * np.nan if a.dtype.kind == "f" else a,
    "inf": lambda a: a / 0.0 if a.dtype.kind == "f" else a,
    "half": lambda a: a.astype(np.float16) if a.dtype.kind in "fi" else a,
    "double": lambda a: a.astype(np.float64) if a.dtype.kind in "fi" else a,
    "integers": lambda a: a.astype(np.int8) if a.dtype.kind in "fi" else a,
    "unsigned": lambda a: a.astype(np.uint64) if a.dtype.kind in "i" else a,
    "boolean": lambda a: a.astype(bool) if a.dtype.kind in "fi" else a,
    "complex": lambda a: a.astype(complex) if a.dtype.kind in "fi" else a,
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder(">")) if a.dtype.kind in "fi" else a,
    "minus": lambda a: -a if a.dtype.kind in "fi" else a,
    "larger": lambda a: a * 1000 if a.dtype.kind in "fi" else a,
    "texts": lambda a: a.astype(str),
    "bytes": lambda a: np.array([b"a", b"b"]),
    "number": lambda a: np.array(3),
    "dates": lambda a: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "wide": lambda a: np.zeros((2, 2), np.longdouble),
    "records": lambda a: np.zeros(3, dtype=[("a", int), ("b", float)]),
    "escape": lambda a: np.array(["\x1b[2J", "a\nb", "\ud800"]),
    "objects": lambda a: np.array([{}, None], dtype=object),
}
ARCHIVE_JUNK = ["../up.npy", "/abs.npy", "train_features", "train_labels.npy", "\x1b[2J\n.npy", "x" * 300, "a/b/c.npy"]
HEADERS = [
    {"descr": "<f4", "fortran_order": False, "shape": (10**12, 8)},
    {"descr": "<f4", "fortran_order": True, "shape": (2,)},
    {"descr": "<f4", "fortran_order": False, "shape": (-1, 8)},
    {"descr": "|O", "fortran_order": False, "shape": (1,)},
    {"descr": "nosuch", "fortran_order": False, "shape": (1,)},
    {"descr": "<f4", "fortran_order": False, "shape": (2**63,)},
    {"descr": "<f4", "fortran_order": False, "shape": (0, 2**40)},
    {"descr": "<V0", "fortran_order": False, "shape": (5,)},
]


def feature_arrays() -> dict[str, np.ndarray]:
    """Return features of two classes, a row of numbers a class apart."""
    labels = np.repeat([0, 1, 2], [6, 4, 2])
    rows = (labels[:, None] + np.linspace(0, 0.4, 12 * 6).reshape(12, 6)).astype(np.float32)
    held = {"holdout_features": rows[::4], "holdout_labels": labels[::4]}
    classifier = {"fc.weight": np.eye(3, 6, dtype=np.float32), "fc.bias": np.zeros(3, np.float32)}
    names = {"class_names": np.array(["ant", "bee", "cat"])}
    return {
        "train_features": rows,
        "train_labels": labels,
        "test_features": rows[::2] + 0.01,
        "test_labels": labels[::2],
        "test_features_mirrored": rows[::2] - 0.01,
        **held,
        **names,
        **classifier,
    }


def write_arrays(file: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as npz, safetensors or a dictionary of torch, by the file's ending; what safetensors cannot hold is
    left out there."""
    if file.suffix == ".npz":
        np.savez(file, **arrays)
        return
    if file.suffix == ".pth":  # arrays too, which are then not torch's to read
        torch.save({name: array.tolist() if name == "class_names" else array for name, array in arrays.items()}, file)
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
    before = file_states(folder)
    outcome, found = refusal(lambda: read_features(file), str(file))
    assert file_states(folder) == before
    if outcome == ACCEPTED:
        check_features(file, found[1])
    return outcome


def add_entry(file: Path, name: str, header: int, packed: bool) -> None:
    """Append an entry to a zip archive: an array that its header describes wrongly."""
    body = io.BytesIO()
    text = repr(HEADERS[header]).encode() + b"\n"
    body.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64))
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that is there already
        archive.writestr(name, body.getvalue(), kind)


def check_features(file: Path, content: dict[str, Any]) -> None:
    """Assert that features that were read fit together, and are those of the file by a reader of its own."""
    features, classes = content["features"], len(content["class_names"])
    for split in ("train", "test"):
        rows, labels = features[f"{split}_features"], features[f"{split}_labels"]
        assert len(rows) == len(labels) > 0 and bool(rows.isfinite().all())
        assert int(labels.min()) >= 0 and int(labels.max()) < classes
    assert set(features["train_labels"].tolist()) == set(range(classes))
    stored = stored_arrays(file)
    array = stored["train_features"].reshape(len(stored["train_features"]), -1).astype(np.float32)
    assert np.array_equal(features["train_features"].numpy().astype(np.float64), array.astype(np.float64))
    present = np.unique(plain_labels(stored["train_labels"]))  # in the order of the classes
    assert np.array_equal(present[features["test_labels"].numpy()], plain_labels(stored["test_labels"]))
    for name in content["class_names"]:
        check_line(name or "-")


def stored_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return what a file holds by a reader of its own."""
    names = ("train_features", "train_labels", "test_labels")
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as opened:
            return {key: opened[key] for key in names}
    if file.suffix == ".pth":
        with file.open("rb") as opened:
            held = load_pickled(opened)  # numpy's own unpickling can be made to take numbers for addresses
        return {key: np.asarray(held[key]) for key in names}
    tensors = load_file(file)
    return {key: (t.float() if t.is_floating_point() else t).numpy() for key, t in tensors.items() if key in names}


def plain_labels(array: np.ndarray) -> np.ndarray:
    """Return labels (N,), also where they are a column, one-hot, or numbers as texts."""
    if array.ndim == 2 and array.shape[1] > 1:
        return array.argmax(axis=1)
    return array.reshape(len(array)).astype(np.float64)
