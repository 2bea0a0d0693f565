"""What a data set is here, and how a balanced one is made long-tailed.

`LongTailedData` is what every data set function returns. Profiles follow Cui et al., "Class-Balanced Loss Based on
Effective Number of Samples", CVPR 2019 (exponential) and Buda et al., "A systematic study of the class imbalance
problem", 2018 (step), in the form that Cao et al. (LDAM, NeurIPS 2019) made the field's convention.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError
from utils.text import counted, shown

IMB_TYPES = ["exp", "step"]
SUBSETS = ["first", "shuffle"]
DIGEST = 32  # bytes of a sha256
KEY = 8  # the first bytes of one, by which copies are found
LINES = 1 << 14  # of what is hashed, that are written together


class ShotBounds(NamedTuple):
    """Where the groups of classes end, in training images of a class: many-shot ones have more than `many_above`,
    few-shot ones fewer than `few_below`, medium-shot ones are between."""

    many_above: int
    few_below: int


# Liu et al., "Large-Scale Long-Tailed Recognition in an Open World" (OLTR), CVPR 2019: those of the field.
FIELD_BOUNDS = ShotBounds(100, 20)


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, 3) uint8, labels (N,) int64, and ids (N,) int64: each image's index in the original files."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """What `digests` and `keys` are; computed once, together."""
        return hash_images(self.images)

    @property
    def digests(self) -> np.ndarray:
        """The sha256 (N, 32) uint8 of each image, of whatever the images hold."""
        return self.hashes[0]

    @property
    def keys(self) -> np.ndarray:
        """The first 64 bits (N,) of the sha256 of each image: of features without those of the mirrored image."""
        return self.hashes[1]

    def take(self, rows: np.ndarray) -> "Split":
        """Return the images at the integer positions `rows` (n,), in that order, with their digests where known."""
        taken = Split(self.images[rows], self.labels[rows], self.ids[rows])
        if "hashes" in vars(self):
            vars(taken)["hashes"] = (self.digests[rows], self.keys[rows])
        return taken


def hash_images(images: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sha256 (N, 32) uint8 of each image, and the first 64 bits (N,) of it.

    An image (ways, d) is features of the image as it is and, behind them, mirrored: the 64 bits are of the first way.
    """
    whole, first = bytearray(), bytearray()
    for image in images:
        content = np.ascontiguousarray(image)
        if content.ndim == 2 and len(content) > 1:  # pixels (H, W, 3) are one way
            digest = hashlib.sha256(content[0].data)
            first += digest.digest()[:KEY]
            digest.update(content[1:].data)
        else:
            digest = hashlib.sha256(content.data)
        whole += digest.digest()
    digests = np.frombuffer(bytes(whole), np.uint8).reshape(-1, DIGEST)
    return digests, np.frombuffer(bytes(first), np.uint64) if first else short_keys(digests)


def short_keys(digests: np.ndarray) -> np.ndarray:
    """Return the first 64 bits (N,) of hashes (N, 32): enough to tell ten million images apart."""
    return np.ascontiguousarray(digests[:, :KEY]).view(np.uint64).ravel()


@dataclass(frozen=True)
class Augmentation:
    """What a training image of a data set may undergo, and the constants that normalise it.

    `padding`: zero pixels added on every side before a crop back to the image's size. `mirror`: whether a mirrored
    image still shows its class; without it neither training nor evaluation mirrors. `mean` and `std` are in units of
    [0, 1].
    """

    padding: int
    mirror: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Profile:
    """How a balanced data set is made long-tailed.

    `imb_ratio` is the imbalance factor (largest over smallest class), None for the imbalance that the data have of
    themselves, and `imb_type` the shape (`long_tail_counts`). `subset` says which images of a class are kept
    (`select_subset`), `holdout` which share of them stays out of training, for tuning (`split_holdout`). Of images on
    disk, `test_share` of each class are tested on where there is no test split (`test_seed` chooses them, so that runs
    of every seed have the same test), and with `drop_empty_classes` a class without training images is left out.
    """

    imb_ratio: float | None = 100
    imb_type: str = "exp"
    subset: str = "first"
    subset_seed: int = 0
    holdout: float = 0.0
    holdout_seed: int = 0
    test_share: float = 0.0
    test_seed: int = 0
    drop_empty_classes: bool = False

    def counts(self, n_max: int, num_classes: int) -> list[int]:
        """Return the images per class where the largest class has `n_max`, the held-out ones included.

        Raises UserError without an `imb_ratio`.
        """
        if self.imb_ratio is None:
            raise UserError("these data are balanced: --imb_ratio says how long-tailed to make them, 1 for not at all")
        return long_tail_counts(n_max, num_classes, self.imb_ratio, self.imb_type)


@dataclass(frozen=True)
class Identity:
    """Who a data set is (`datasets.identity.content.identity_record`), and what was noticed of it on the way."""

    record: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LongTailedData:
    """A long-tailed training set, the images held out of it (perhaps none), and a test set.

    `class_counts` (K,) are the images of each class in `train`. `subset` identifies the chosen images: see
    `subset_identity`. `identity` says it of all splits by content, once they were read (`with_identity`). `notes` say
    how it was read, those that may be a mistake with `warning: ` before them. `lists` record it of lists: columns of a
    table, and the class that each label names. `test_share` is the share of each class that was taken for the test, 0
    where there is a test split. `shot_bounds` say which classes a report groups as many-, medium- and few-shot.
    """

    name: str
    train: Split
    holdout: Split
    test: Split
    class_names: list[str]
    class_counts: np.ndarray
    augmentation: Augmentation
    subset: dict[str, str]
    identity: Identity | None = None
    notes: tuple[str, ...] = ()
    lists: dict[str, Any] | None = None
    test_share: float = 0.0
    shot_bounds: ShotBounds = FIELD_BOUNDS

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def imbalance_factor(self) -> float:
        """The largest class over the smallest."""
        return float(self.class_counts.max() / self.class_counts.min())


def long_tail_counts(n_max: int, num_classes: int, imb_ratio: float, imb_type: str = "exp") -> list[int]:
    """Return the images per class, largest class first.

    "exp": int(n_max * (1 / imb_ratio) ** (c / (K - 1))). "step": n_max for the first K // 2 classes, int(n_max /
    imb_ratio) for the others. Raises UserError for a ratio below 1 or one that leaves a class without images.
    """
    if imb_type not in IMB_TYPES:
        raise UserError(f"unknown --imb_type '{imb_type}'; known: {', '.join(IMB_TYPES)}")
    if not 1 <= imb_ratio < float("inf"):
        raise UserError(f"--imb_ratio must be a finite number at least 1, not {imb_ratio:g}")
    share = 1 / imb_ratio
    if imb_type == "exp":
        counts = [int(n_max * share ** (c / max(num_classes - 1, 1))) for c in range(num_classes)]
    else:
        counts = [n_max if c < num_classes // 2 else int(n_max * share) for c in range(num_classes)]
    if min(counts) < 1:
        raise UserError(
            f"--imb_ratio {imb_ratio:g} leaves {counts.count(0)} of {num_classes} classes without an image; "
            f"the largest class has {n_max} images, so use at most {n_max}"
        )
    return counts


def members_by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Return the positions of each class's images, ascending: from one sort, where a search a class costs N K."""
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(num_classes + 1))
    return [order[first:last] for first, last in itertools.pairwise(edges)]


def select_subset(labels: np.ndarray, counts: list[int], subset: str = "first", seed: int = 0) -> np.ndarray:
    """Choose counts[c] images of every class c; return their indices, ascending.

    "first" takes a class's first images in file order, as the released code of LOS does. "shuffle" shuffles each class
    with NumPy's legacy generator, class after class: with seed 0 the images that LDAM's code chooses.
    """
    if subset not in SUBSETS:
        raise UserError(f"unknown --subset '{subset}'; known: {', '.join(SUBSETS)}")
    generator = np.random.RandomState(seed)
    chosen = []
    for label, (members, count) in enumerate(zip(members_by_class(labels, len(counts)), counts, strict=True)):
        if len(members) < count:
            raise UserError(f"class {label} has {counted(len(members), 'image')} where the profile needs {count}")
        if subset == "shuffle":
            generator.shuffle(members)
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))


def split_holdout(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions 0..N-1 into (kept, held out), `fraction` of every class out, both ascending.

    Of a class with two images or more at least one is held out and at least one kept; a single image is kept.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"--holdout must be at least 0 and below 1, not {fraction:g}")
    out = np.zeros(len(labels), dtype=bool)
    if fraction > 0:
        generator = np.random.RandomState(seed)
        for members in filter(len, members_by_class(labels, labels.max(initial=-1) + 1)):
            members = generator.permutation(members)
            share = min(max(round(len(members) * fraction), 1), len(members) - 1)
            out[members[:share]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def subset_identity(*splits: Split) -> dict[str, str]:
    """Return two sha256 of splits together: of the sorted index list, and over the sorted (label, sha256 of the pixels)
    pairs.

    The second one does not depend on the order of the files: copies of a data set can hold the same label at every
    index and yet other images, and then the same index list means other pictures.
    """
    labels = np.concatenate([split.labels for split in splits])
    digests = np.concatenate([split.digests for split in splits])
    parts = digests.view(">u8").astype(np.uint64)  # in the order of their hexadecimal digits
    order = np.lexsort((*parts.T[::-1], labels))
    content, size = hashlib.sha256(), 2 * DIGEST
    for start in range(0, len(order), LINES):
        rows = order[start : start + LINES]
        text, own = digests[rows].tobytes().hex(), enumerate(labels[rows].tolist())
        lines = (f"{label} {text[i * size : (i + 1) * size]}\n" for i, label in own)
        content.update("".join(lines).encode())
    return {
        "index_sha256": index_sha256(np.concatenate([split.ids for split in splits])),
        "content_sha256": content.hexdigest(),
    }


def index_sha256(ids: np.ndarray) -> str:
    """Return the sha256 of the sorted index list (N,)."""
    return hashlib.sha256(np.sort(ids).astype("<i8").tobytes()).hexdigest()


def refuse_equal_names(class_names: Sequence[str], where: str) -> None:
    """Raise UserError where two classes have one name: a prediction could not say which it means."""
    seen: dict[str, int] = {}
    for label, name in enumerate(class_names):
        if seen.setdefault(name, label) != label:
            raise UserError(f"{where}: classes {seen[name]} and {label} are both named '{shown(name)}'; rename one")


def refuse_blank_images(split: Split, what: str) -> None:
    """Raise UserError where an image of the split is all zeros: the mark of an incomplete copy of a data set."""
    blank = np.flatnonzero(~split.images.reshape(len(split), -1).any(axis=1))
    if len(blank):
        raise UserError(
            f"{len(blank)} of {len(split)} chosen {what} images are all zeros (first: index {split.ids[blank[0]]}), "
            "so this copy of the data is incomplete; unpack it again in full, or choose a subset that the copy holds"
        )


@dataclass(frozen=True)
class BalancedData:
    """A whole, balanced data set: what `make_long_tailed` cuts down. `class_names` has K entries."""

    name: str
    train: Split
    test: Split
    class_names: list[str]
    augmentation: Augmentation


def make_long_tailed(data: BalancedData, profile: Profile, counts: list[int]) -> LongTailedData:
    """Cut the training images down to `counts` (K,) a class as `profile` says, and take the held-out share off.

    Raises UserError for images that are missing or blank, and for a profile that cannot be had.
    """
    chosen = data.train.take(select_subset(data.train.labels, counts, profile.subset, profile.subset_seed))
    refuse_equal_names(data.class_names, data.name)
    refuse_blank_images(chosen, "training")
    refuse_blank_images(data.test, "test")
    kept, out = split_holdout(chosen.labels, profile.holdout, profile.holdout_seed)
    return LongTailedData(
        name=data.name,
        train=chosen.take(kept),
        holdout=chosen.take(out),
        test=data.test,
        class_names=data.class_names,
        class_counts=np.bincount(chosen.labels[kept], minlength=len(data.class_names)),
        augmentation=data.augmentation,
        subset=subset_identity(chosen),
    )
