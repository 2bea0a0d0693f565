"""Arrays of features and labels, checked, as the content of a stage-1 checkpoint whose backbone did its work elsewhere.

Features are float16, bfloat16, float32, float64, or whole numbers that float32 holds. What stage 2, the tables and
`evaluate.py` can do with a checkpoint (`runs.checkpoint`) they can do with this.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from datasets.features import Features, FileRows, FileSplit, features_data, is_finite
from datasets.long_tail import LongTailedData
from runs.feature_files.labels import map_labels
from runs.feature_files.names import SPLITS
from runs.feature_files.source import (
    FLOATS,
    Source,
    Stored,
    describe,
    divide,
    refuse_missing,
    tested_on_held_out,
    whole_as_float,
)
from utils.errors import UserError
from utils.text import counted

USER_FEATURES = "features that another model made"  # the kind of such a checkpoint
USER_NETWORK = "features"  # what such a checkpoint has in the place of a network's name
CLASSIFIER = ("fc.weight", "fc.bias")
BLOCK = 1 << 20  # numbers of a file that are looked at together
ALL_ALIKE = (
    "warning: all training rows are the same, so that no classifier can tell classes apart: look at how the features "
    "were made"
)
BOTH_WAYS = ("test_features", "test_features_mirrored")


def content_of(name: str, source: Source) -> tuple[dict[str, Any], list[str]]:
    """Return the content of the checkpoint that arrays stand for, after checking that they fit together, and lines that
    say what was done to them. `data` of the content are its features as a data set, in the same memory."""
    source.arrays, notes = tested_on_held_out(divide(source.arrays))
    refuse_missing(source)
    arrays = source.arrays
    tensors: dict[str, Features] = {
        key: left_in_file(key, values, notes) if isinstance(values, FileRows) else as_float(key, values, notes)
        for key, values in arrays.items()
        if "_features" in key
    }
    labels, names, lines = map_labels(
        {split: values for split in SPLITS if not isinstance(values := arrays.get(f"{split}_labels"), FileRows | None)},
        source.class_names,
    )
    for split, own in labels.items():
        tensors[f"{split}_labels"] = own
        tensors[f"{split}_ids"] = torch.arange(len(own))  # rows are their own names
        refuse_transposed(f"{split}_features", tensors[f"{split}_features"], len(own))
    classes = len(names)
    if all_alike(tensors["train_features"]):
        lines = [*lines, ALL_ALIKE]
    mirror = "test_features_mirrored" in tensors
    data = features_data(name, tensors, names, mirror, finite=True)
    tensors = {key: values for key, values in tensors.items() if isinstance(values, Tensor)}
    if mirror and not isinstance(data.test, FileSplit):  # both ways lie together: what the record holds is that memory
        tensors |= {name: torch.from_numpy(data.test.images[:, way]) for way, name in enumerate(BOTH_WAYS)}
    content = {
        "format": 1,
        "stage": "stage1",
        "epoch": 0,
        "holds": USER_FEATURES,
        "model": classifier_of(arrays, classes, data.train.images.shape[2]),
        "config": config_of(data),
        "features": tensors,
        "data": data,
        "class_names": names,
        "augmentation": {"mirror": mirror},
    }
    return content, [*notes, *lines]


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
        "network": USER_NETWORK,
        "width": None,
        "seed": 0,
        "stage1_seed": None,
        "epochs": 0,
    }
    record = {"tags": [], "subset": data.subset, "class_counts": counts.tolist()}
    return {"stage": "stage1", "settings": settings, **record}


def as_float(name: str, values: Stored, notes: list[str]) -> Tensor:
    """Return features (N, d) in float16 where they are, else in float32, which is what classifiers are trained in.

    Maps of one pixel, (N, d, 1, 1) or (N, 1, 1, d), become (N, d). Raises UserError for larger ones, for what is no
    number or not finite, and for whole numbers that float32 would round.
    """
    whole = isinstance(values, Tensor) and not (values.is_floating_point() or values.is_complex())
    if not isinstance(values, Tensor) or (values.dtype not in FLOATS and (not whole or values.dtype == torch.bool)):
        raise UserError(
            f"'{name}' must be (images, features) in float16, float32, float64 or whole numbers, not {describe(values)}"
        )
    if whole:
        if values.ndim < 2:  # labels, as like as not
            raise UserError(f"'{name}' must be (images, features), not {describe(values)}")
        values = torch.from_numpy(whole_as_float(values.numpy(), f"'{name}'"))
    if values.ndim > 2:
        values = flatten_maps(name, values, notes)
    converted = values if values.dtype == torch.float16 else values.float()
    if not is_finite(converted):
        raise bad_numbers(name, converted, beyond=is_finite(values))
    return converted


def bad_numbers(name: str, values: Features, *, beyond: bool) -> UserError:
    """Return the error of numbers (N, ...) that are not finite or, `beyond` float32, have become so, with a row."""
    found: list[int] = []
    start = 0
    for part in values.split(max(1, BLOCK // max(1, values.numel() // max(1, len(values))))):
        bad = ~part.isfinite().reshape(len(part), -1).all(dim=1)
        found += (start + bad.nonzero().squeeze(1)).tolist()
        start += len(part)
    words = f"'{name}' holds numbers that are {'too large for float32' if beyond else 'not finite'}"
    where = f"{words}, in {counted(len(found), 'row')} (first: row {found[0]})"
    return UserError(f"{where}; leave such rows out, with their labels, or make them anew" if "_f" in name else where)


def left_in_file(name: str, values: FileRows, notes: list[str]) -> FileRows:
    """Return features that stay in their file as (N, d), after they were looked at; raises as `as_float` does."""
    if values.ndim > 2:
        flat = flat_shape(name, values)
        notes.append(f"{name}: {values.shape} as {flat}")
        values = replace(values, shape=flat)
    count = max(1, BLOCK // max(1, values.shape[1]))
    if not all(map(is_finite, values.split(count))):
        beyond = all(map(is_finite, replace(values, dtype=values.stored).split(count)))
        raise bad_numbers(name, values, beyond=beyond)
    return values


def all_alike(values: Features) -> bool:
    """Tell whether all rows (N, d), of two or more, are the same; where they are not, a first block is looked at."""
    first = values[:1]
    count = max(1, BLOCK // max(1, first.numel()))
    return len(values) > 1 and all(bool((rows == first).all()) for rows in values.split(count))


def flatten_maps(name: str, values: Tensor, notes: list[str]) -> Tensor:
    """Return maps of one pixel as (N, d); a UserError says that they have more."""
    flat = values.view(flat_shape(name, values))
    notes.append(f"{name}: {tuple(values.shape)} as {tuple(flat.shape)}")
    return flat


def flat_shape(name: str, values: Features) -> tuple[int, int]:
    """Return the shape of maps (N, d, 1, 1) as (N, d); a UserError says that they have more pixels."""
    if sum(size > 1 for size in values.shape[1:]) > 1:
        raise UserError(
            f"'{name}' must be (images, features), not {describe(values)}; average maps over their pixels, and tokens "
            "over their places, or take the class token"
        )
    return len(values), math.prod(values.shape[1:])


def refuse_transposed(name: str, features: Features, rows: int) -> None:
    """Raise UserError for features (d, N), which MATLAB and others that count columns write."""
    if features.ndim == 2 and features.shape[1] == rows != features.shape[0]:
        raise UserError(
            f"'{name}' is {tuple(features.shape)} for {rows} labels: its columns are images, as MATLAB has it; "
            "transpose it (numpy: array.T), so that rows are"
        )


def classifier_of(arrays: Mapping[str, Stored], classes: int, width: int) -> dict[str, Tensor]:
    """Return the classifier that a file brings, in float32 with a bias, or nothing where it brings none."""
    given = {name: arrays[name] for name in CLASSIFIER if name in arrays}
    if not given:
        return {}
    if "fc.weight" not in given:
        raise UserError("'fc.weight' is missing")
    shapes = {"fc.weight": (classes, width), "fc.bias": (classes,)}
    for name, values in given.items():
        if not isinstance(values, Tensor) or values.dtype not in FLOATS or values.shape != shapes[name]:
            raise UserError(f"'{name}' must be {shapes[name]} in floating point, not {describe(values)}")
    state = {name: as_float(name, values, []).float() for name, values in given.items() if isinstance(values, Tensor)}
    return {"fc.bias": torch.zeros(classes), **state}
