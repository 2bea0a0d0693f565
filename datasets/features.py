"""A data set whose images are given by their features: what a backbone, which need not be here, made of them.

A split's `images` are then (N, 1, d) or, with the mirrored images' features behind those of the images as they are,
(N, 2, d). `DeviceFeatures` hands them out as `DeviceImages` does images, so that nothing else has to tell the two apart
but the network, whose `features` are what it is given (`models.given_features`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from datasets.device_images import DeviceImages
from datasets.long_tail import (
    Augmentation,
    LongTailedData,
    Split,
    hash_images,
    index_sha256,
    refuse_equal_names,
    subset_identity,
)
from utils.errors import UserError
from utils.outside import HeldFile

EXACT = 1 << 24  # up to which float32 holds every whole number
CHUNK = 1 << 18  # numbers that are looked at in one go: they stay in a CPU's cache
# Floating-point numbers as whole ones of their size, and the bits of their exponent.
EXPONENTS = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}


@dataclass(frozen=True)
class FileRows:
    """Features (N, d) that stay in their file: rows are read when they are asked for, as a tensor of their own.

    It is indexed, split and asked for its shape as the tensor on the CPU that it stands for. `place` is where the first
    row lies in the file, in bytes, `stored` how numbers are written there, `dtype` what they become, and `rows` (N,)
    which rows of the file these are, None for all in order.
    """

    file: HeldFile
    place: int
    shape: tuple[int, ...]
    stored: torch.dtype
    dtype: torch.dtype
    rows: np.ndarray | None = None

    device = torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Return how many numbers there are."""
        return math.prod(self.shape)

    def take(self, rows: np.ndarray | slice) -> "FileRows":
        """Return the rows at positions (n,), in that order, without reading them."""
        own = (np.arange(len(self)) if self.rows is None else self.rows)[rows]
        return replace(self, shape=(len(own), *self.shape[1:]), rows=own)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return the rows of a slice, at positions (n,), or where a mask (N,) is true; UserError for a changed file."""
        if isinstance(rows, slice):
            places = np.arange(*rows.indices(len(self)))
        else:
            places = (rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows).cpu().numpy()
        return self._read(places if self.rows is None else self.rows[places]).to(self.dtype)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Return the rows at positions (n,); `dim` is 0."""
        assert dim == 0
        return self[rows]

    def split(self, count: int) -> Iterator[Tensor]:
        """Yield the rows in order, `count` at a time."""
        for start in range(0, len(self), count):
            yield self[start : start + count]

    def whole(self) -> Tensor:
        """Return all rows, which are then in memory."""
        return self[:]

    def _read(self, places: np.ndarray) -> Tensor:
        """Return rows (n, d) of the file as they are written; rows that follow one another are read together."""
        size = self.stored.itemsize * math.prod(self.shape[1:])
        flat = torch.empty(len(places) * size, dtype=torch.uint8)
        buffer = memoryview(flat.numpy().data)
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        edges = [*starts.tolist(), len(places)]
        for start, end, row in zip(edges, edges[1:], places[starts].tolist(), strict=False):
            self.file.read_into(buffer[start * size : end * size], self.place + row * size)
        self.file.refuse_changed()
        return flat.view(self.stored).view(len(places), *self.shape[1:])


Features = Tensor | FileRows  # (N, d), in memory or in the file that they are from


@dataclass(frozen=True)
class FileSplit(Split):
    """Features that stay in their file: those of the images as they are and, where there are any, of the mirrored ones.

    `images` (0, 1 or 2, d) has none of them.
    """

    ways: tuple[FileRows, ...]

    @cached_property
    def hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """What `digests` and `keys` are, as of features in memory; computed once, in one pass over the file."""
        count = max(1, CHUNK // math.prod(self.images.shape[1:]))
        blocks = zip(*(way.split(count) for way in self.ways), strict=True)
        return hash_images(row for parts in blocks for row in torch.stack(parts, dim=1).numpy())

    def take(self, rows: np.ndarray) -> "FileSplit":
        """Return the rows at integer positions (n,), in that order, with their digests where known."""
        ways = tuple(way.take(rows) for way in self.ways)
        taken = FileSplit(self.images, self.labels[rows], self.ids[rows], ways)
        if "hashes" in vars(self):
            vars(taken)["hashes"] = (self.digests[rows], self.keys[rows])
        return taken


def in_memory(features: Features) -> Tensor:
    """Return features (N, d) as a tensor: for what needs all of them at once."""
    return features.whole() if isinstance(features, FileRows) else features


def features_data(
    name: str,
    tensors: Mapping[str, Features],
    class_names: Sequence[str],
    mirror: bool,
    subset: dict[str, str] | None = None,
    *,
    finite: bool = False,
) -> LongTailedData:
    """Return the data set of features `<split>_features` (N, d) float16 or float32, `<split>_labels` and `<split>_ids`
    (N,) int64 for the splits train and test and, where images were held out, holdout.

    With `mirror` there are also `test_features_mirrored`. `subset` identifies the images; without it the features are
    identified as images are. `finite` says that the numbers have been looked at. Raises UserError for tensors that are
    missing, damaged or do not fit together.
    """
    refuse_equal_names(class_names, "'class_names'")
    features = require(tensors, "train_features")
    width = features.shape[-1] if features.ndim == 2 else 0
    train = read_split(tensors, "train", False, len(class_names), width, finite)
    test = read_split(tensors, "test", mirror, len(class_names), width, finite)
    if any(key.startswith("holdout_") for key in tensors):
        holdout = read_split(tensors, "holdout", False, len(class_names), width, finite)
    else:
        holdout = train.take(np.arange(0))
    counts = np.bincount(train.labels, minlength=len(class_names))
    if counts.min() == 0:
        raise UserError(f"class {int(counts.argmin())} has no training image")
    if subset is None:
        subset = subset_identity(train, holdout)
    elif subset.get("index_sha256") != index_sha256(np.concatenate([train.ids, holdout.ids])):
        raise UserError("the images of train_ids and holdout_ids are not those that its configuration names")
    return LongTailedData(
        name=name,
        train=train,
        holdout=holdout,
        test=test,
        class_names=list(class_names),
        class_counts=counts,
        augmentation=Augmentation(padding=0, mirror=mirror, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        subset=subset,
    )


def require(tensors: Mapping[str, Features], name: str) -> Features:
    """Return a tensor, or rows in a file; a UserError names it where it is missing."""
    if name not in tensors:
        raise UserError(f"'{name}' is missing")
    return tensors[name]


def read_split(
    tensors: Mapping[str, Features], split: str, mirrored: bool, num_classes: int, width: int, finite: bool
) -> Split:
    """Check the tensors of one split and return them, the features as (N, 1, d) or, with mirrored ones, (N, 2, d)."""
    ways = [f"{split}_features", *([f"{split}_features_mirrored"] if mirrored else [])]
    labels, ids = (in_memory(require(tensors, f"{split}_{kind}")) for kind in ("labels", "ids"))
    for name, values in ((f"{split}_labels", labels), (f"{split}_ids", ids)):
        if values.dtype != torch.int64 or values.ndim != 1 or values.shape != labels.shape:
            words = f"{tuple(values.shape)} in {str(values.dtype).removeprefix('torch.')}"
            raise UserError(f"'{name}' must be one int64 number an image, like '{split}_labels', not {words}")
    for name in ways:
        features = require(tensors, name)
        if features.dtype not in (torch.float16, torch.float32) or features.ndim != 2:
            raise UserError(
                f"'{name}' must be (images, features) in float16 or float32, not {tuple(features.shape)} "
                f"in {str(features.dtype).removeprefix('torch.')}"
            )
        if features.shape[1] != width or width == 0:
            raise UserError(f"'{name}' has {features.shape[1]} features an image, 'train_features' {width}")
        if len(features) != len(labels) or len(features) == 0:
            raise UserError(f"'{name}' has {len(features)} rows and '{split}_labels' {len(labels)}")
        if not finite and not is_finite(in_memory(features)):
            raise UserError(f"'{name}' holds numbers that are not finite")
    if not bool(((labels >= 0) & (labels < num_classes)).all()):
        raise UserError(f"'{split}_labels' holds something else than classes 0 to {num_classes - 1}")
    found = [tensors[name] for name in ways]
    in_files = tuple(rows for rows in found if isinstance(rows, FileRows))
    if len(in_files) == len(found):
        return FileSplit(np.empty((0, len(found), width), np.float16), labels.numpy(), ids.numpy(), in_files)
    whole = [in_memory(rows) for rows in found]
    views = whole[0].unsqueeze(1) if len(whole) == 1 else torch.stack(whole, dim=1)  # one alone is not copied
    return Split(views.numpy(), labels.numpy(), ids.numpy())


def is_finite(values: Tensor) -> bool:
    """Tell whether all floating-point numbers are finite, without a second copy of them in memory.

    Infinity and NaN are the numbers whose exponent has all bits set: a few times faster than to ask each number.
    """
    whole, exponent = EXPONENTS[values.dtype]
    rows = max(1, CHUNK // max(1, values[:1].numel())) if values.ndim else 1
    parts = values.contiguous().view(whole).split(rows) if values.ndim else [values.view(whole)]
    return all(int((part & exponent).amax()) < exponent for part in parts if part.numel())


def holds_features(data: LongTailedData) -> bool:
    """Tell whether the images of a data set are given by their features."""
    return data.train.images.ndim == 3


class DeviceFeatures(DeviceImages):
    """The features of one split on a device, in the place of its images: `images` (N, 1 or 2, d), or in their file."""

    size = 1  # as cheap to hand on as images of a single pixel

    def __init__(self, split: Split, device: torch.device) -> None:
        self.ways = split.ways if isinstance(split, FileSplit) else ()
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.ids = torch.from_numpy(split.ids).to(device)

    def whole(self, mirrored: bool = False) -> Features:
        """Return the features (N, d) of all images, in the precision in which they are given, without a copy."""
        return self.ways[int(mirrored)] if self.ways else self.images[:, int(mirrored)]

    def plain(self, rows: Tensor | slice, mirrored: bool = False) -> Tensor:
        """Return the features (B, d) of the images at `rows` as they are, or mirrored, in float32."""
        return self.whole(mirrored)[rows].float().to(self.labels.device)

    def augmented(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """Raise UserError: from features an image cannot be augmented."""
        raise UserError("features are those of the images as they are, which cannot be augmented: use --views plain")
