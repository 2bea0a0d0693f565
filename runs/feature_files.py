"""Files of features that any model made, in the place of images and of a network.

FILE is `.npz` (never unpickled) or `.safetensors`, whole or in shards. It holds `train_features` (N, d) and
`train_labels` (N,), `test_features` and `test_labels`, and, if wanted:

- `test_features_mirrored`, `holdout_features` and `holdout_labels`;
- `class_names` (npz: an array of strings; safetensors: a JSON list in the metadata);
- a linear classifier `fc.weight` (K, d) with `fc.bias` (K,), which is 0 where it is left out.

Features are float16, bfloat16, float32 or float64, labels are integers 0 to K-1 with an image of each class in train.

What is read becomes the content of a stage-1 checkpoint (`runs.checkpoint`) whose backbone has done its work
elsewhere: everything that stage 2, the tables and `evaluate.py` can do with one, they can do with the file.
"""

import json
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from datasets.features import features_data, require, user_dataset_name
from datasets.long_tail import LongTailedData
from runs.shards import read_safetensors
from utils.errors import UserError
from utils.files import sha256_of
from utils.outside import open_plain
from utils.text import printable, shown, tell

USER_FEATURES = "features that another model made"  # the kind of such a checkpoint
SUFFIXES = (".npz", ".safetensors")
SPLITS = ("train", "test", "holdout")
CLASSIFIER = ("fc.weight", "fc.bias")
ARRAYS = {f"{split}_{kind}" for split in SPLITS for kind in ("features", "labels")}
KNOWN = {*ARRAYS, "test_features_mirrored", "class_names", *CLASSIFIER}
# What a zip archive may unpack to: this many bytes in any case, and this many times the size of the file.
UNPACKED, RATIO = 1 << 26, 100
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NPY_START = b"\x93NUMPY"  # how a file of a single array begins

# The sha256 of a file, its arrays by their known names, its class names, and the names of what else it holds.
Read = tuple[str, dict[str, Tensor], list[str] | None, set[str]]


def read_features(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the sha256 of a file of anyone's features and what it holds, as the content of a stage-1 checkpoint.

    Raises UserError, which names the file, for whatever is wrong with it.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--features {path}: the name must end in {' or '.join(SUFFIXES)}")
    try:
        digest, arrays, names, unknown = (read_npz if path.suffix == ".npz" else read_tensors)(path)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"--features {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read the features {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"--features {path}: damaged, or not a {path.suffix} file ({reason})") from error
    try:
        content = content_of(user_dataset_name(path), arrays, names)
    except UserError as error:
        raise UserError(f"--features {path}: {error}") from error
    if unknown:
        tell(f"not used of {path}: {shown(', '.join(sorted(unknown)))}", file=sys.stderr)
    return digest, content


def read_npz(path: Path) -> Read:
    """Read an npz file; what it holds beside the known arrays is not even read."""
    with open_plain(path, "the features") as file:
        return read_arrays(file)


def read_arrays(file: IO[bytes]) -> Read:
    """Read an opened npz file."""
    digest = sha256_of(file)
    start = file.read(len(NPY_START))
    if not zipfile.is_zipfile(file) and start != NPY_START:
        raise UserError("damaged, or not a .npz file (no zip archive)")
    refuse_zip_bomb(file)
    file.seek(0)
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError("this is a single array, not an archive of named ones; write it with numpy.savez")
    with archive as opened:
        arrays = {name: read_array(opened, name) for name in opened.files if name in KNOWN}
    names = arrays.pop("class_names", None)
    if names is not None and names.ndim != 1:
        raise UserError(f"'class_names' must be one string a class, not {describe(names)}")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return digest, tensors, None if names is None else names.tolist(), set(opened.files) - KNOWN


def refuse_zip_bomb(file: IO[bytes]) -> None:
    """Raise UserError for a zip archive that would fill the memory, before anything of it is unpacked.

    Numbers are packed to a tenth of their size at the best, and no entry can unpack to more than the archive says.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(UNPACKED, RATIO * os.fstat(file.fileno()).st_size):
        raise UserError(
            f"it unpacks to {unpacked:,} bytes, more than {RATIO} times its size: this is taken for an attack on the "
            "memory; save it again without compression"
        )


def read_array(opened: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return an array in this machine's byte order; a UserError names one that would have to be unpickled."""
    try:
        array = opened[name]
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise UserError(f"'{name}' is damaged ({error})") from error
        raise UserError(
            f"'{name}' is an array of Python objects, which only pickle could read; save numbers (or, for "
            "'class_names', strings: numpy.array(names, dtype=str))"
        ) from error
    kinds, words = ("U", "strings") if name == "class_names" else ("fiub", "numbers")
    if array.dtype.kind not in kinds:
        raise UserError(f"'{name}' must hold {words}, not {describe(array)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_tensors(path: Path) -> Read:
    """Read a safetensors file, whole or in shards."""
    digest, tensors, metadata = read_safetensors(path)
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
    known = {name: tensor for name, tensor in tensors.items() if name in KNOWN}
    return digest, known, names, tensors.keys() - KNOWN


def describe(values: np.ndarray | Tensor) -> str:
    """Return shape and type of an array in words."""
    return f"{tuple(values.shape)} in {str(values.dtype).removeprefix('torch.')}"


def content_of(name: str, arrays: Mapping[str, Tensor], names: list[str] | None) -> dict[str, Any]:
    """Return the content of the checkpoint that a file's arrays stand for, after checking that they fit together."""
    for split in SPLITS if any(key.startswith("holdout_") for key in arrays) else SPLITS[:2]:
        for kind in ("features", "labels"):
            require(arrays, f"{split}_{kind}")
    tensors = {key: as_float(key, value) for key, value in arrays.items() if "_features" in key}
    for split in SPLITS:
        if f"{split}_labels" in arrays:
            tensors[f"{split}_labels"] = labels = as_labels(f"{split}_labels", arrays[f"{split}_labels"])
            tensors[f"{split}_ids"] = torch.arange(len(labels))  # rows are their own names
    classes = count_classes(tensors["train_labels"])
    if names is not None and len(names) != classes:
        raise UserError(f"'class_names' are {len(names)}, and 'train_labels' have {classes} classes")
    names = [printable(given) for given in names] if names else [str(label) for label in range(classes)]
    mirror = "test_features_mirrored" in tensors
    data = features_data(name, tensors, names, mirror)
    return {
        "format": 1,
        "stage": "stage1",
        "epoch": 0,
        "holds": USER_FEATURES,
        "model": classifier_of(arrays, classes, data.train.images.shape[2]),
        "config": config_of(data),
        "features": tensors,
        "class_names": names,
        "augmentation": {"mirror": mirror},
    }


def config_of(data: LongTailedData) -> dict[str, Any]:
    """Return what the configuration of a stage 1 would say of such data: no network, no epochs, their own imbalance."""
    counts = data.class_counts
    settings = {
        "dataset": data.name,
        "imb_type": "natural",
        "imb_ratio": float(f"{counts.max() / counts.min():.4g}"),
        "subset": "first",
        "subset_seed": 0,
        "holdout": 0.0,
        "network": "features",
        "width": None,
        "seed": 0,
        "stage1_seed": None,
        "epochs": 0,
    }
    record = {"tags": [], "subset": data.subset, "class_counts": counts.tolist()}
    return {"stage": "stage1", "settings": settings, **record}


def as_float(name: str, values: Tensor) -> Tensor:
    """Return features in float16 where they are, else in float32, which is what classifiers are trained in."""
    if values.dtype not in FLOATS:
        raise UserError(f"'{name}' must be (images, features) in float16, float32 or float64, not {describe(values)}")
    converted = values if values.dtype == torch.float16 else values.float()
    if not bool(converted.isfinite().all()):
        beyond = bool(values.isfinite().all())
        raise UserError(f"'{name}' holds numbers that are {'too large for float32' if beyond else 'not finite'}")
    return converted


def as_labels(name: str, values: Tensor) -> Tensor:
    """Return labels (N,) as int64; a UserError says what else they are."""
    if values.dtype.is_floating_point or values.dtype == torch.bool or values.ndim != 1:
        raise UserError(f"'{name}' must be one integer a row, not {describe(values)}")
    labels = values.long()
    if len(labels) and int(labels.min()) < 0:
        raise UserError(f"'{name}' holds {int(labels.min())}; labels are integers from 0 up")
    return labels


def count_classes(labels: Tensor) -> int:
    """Return K for training labels 0 to K-1; a UserError names the first class that has no row."""
    if len(labels) == 0:
        raise UserError("'train_labels' are empty")
    present = labels.unique()  # sorted; a label may be so large that no table of counts could be made
    gaps = torch.nonzero(present != torch.arange(len(present)))
    if len(gaps):
        raise UserError(
            f"class {int(gaps[0])} has no training image, and the largest label is {int(present[-1])}: labels must be "
            "0 to K-1, each in 'train_labels'"
        )
    if len(present) < 2:
        raise UserError("'train_labels' hold one class; at least two are needed")
    return len(present)


def classifier_of(arrays: Mapping[str, Tensor], classes: int, width: int) -> dict[str, Tensor]:
    """Return the classifier that a file brings, in float32 with a bias, or nothing where it brings none."""
    given = {name: arrays[name] for name in CLASSIFIER if name in arrays}
    if not given:
        return {}
    require(arrays, "fc.weight")
    shapes = {"fc.weight": (classes, width), "fc.bias": (classes,)}
    for name, values in given.items():
        if values.dtype not in FLOATS or values.shape != shapes[name]:
            raise UserError(f"'{name}' must be {shapes[name]} in floating point, not {describe(values)}")
    state = {name: as_float(name, values).float() for name, values in given.items()}
    return {"fc.bias": torch.zeros(classes), **state}
