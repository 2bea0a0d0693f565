"""Data sets whose images lie on disk as files: ImageNet-LT, Places-LT, iNaturalist 2018, anyone's lists and folders.

The images of a split are their paths (`ListedSplit`); `datasets.decode` reads one. Lists come from Liu et al. (OLTR,
CVPR 2019: ImageNet-LT, Places-LT) and Van Horn et al. ("The iNaturalist Species Classification and Detection Dataset",
CVPR 2018), whose JSON Kang et al. (ICLR 2020) turned into the field's text files, row by row.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from datasets.lists import ListedSplit, join, read_folder, read_json_list, read_list
from datasets.long_tail import (
    Augmentation,
    LongTailedData,
    Profile,
    index_sha256,
    refuse_equal_names,
    select_subset,
    split_holdout,
)
from utils.errors import UserError
from utils.text import printable, shown

# The constants of ImageNet's images, which pre-trained weights expect too. Crops are resized, not padded.
AUGMENTATION = Augmentation(padding=0, mirror=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Facts:
    """What the field's lists hold: images, the largest and the smallest training class, many-medium-few classes."""

    train: int
    test: int
    largest: int
    smallest: int
    shots: tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Where the lists of a data set lie: below `folder` of the data sets' folder, the first of the names that is there.

    `num_classes` is None where the training list decides, `facts` None where nothing is known beforehand.
    """

    name: str
    folder: str
    num_classes: int | None
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    facts: Facts | None = None


IMAGENET_LT = Layout(
    name="imagenet_lt",
    folder="imagenet_lt",
    num_classes=1000,
    train=("ImageNet_LT_train.txt",),
    val=("ImageNet_LT_val.txt",),
    test=("ImageNet_LT_test.txt",),
    facts=Facts(train=115846, test=50000, largest=1280, smallest=5, shots=(385, 479, 136)),
)
PLACES_LT = Layout(
    name="places_lt",
    folder="places_lt",
    num_classes=365,
    train=("Places_LT_train.txt",),
    val=("Places_LT_val.txt",),
    test=("Places_LT_test.txt",),
    facts=Facts(train=62500, test=36500, largest=4980, smallest=5, shots=(131, 163, 71)),
)
INATURALIST_2018 = Layout(
    name="inaturalist2018",
    folder="inaturalist2018",
    num_classes=8142,
    train=("iNaturalist18_train.txt", "train2018.json"),
    val=(),
    test=("iNaturalist18_val.txt", "val2018.json"),  # what the field tests on: the 3 validation images of each class
    facts=Facts(train=437513, test=24426, largest=1000, smallest=2, shots=(842, 4076, 3224)),
)
GIVEN_LISTS = Layout(
    name="list",
    folder=".",
    num_classes=None,
    train=("train.txt", "train.json"),
    val=("val.txt", "val.json"),
    test=("test.txt", "test.json"),
)
LAYOUTS = {layout.name: layout for layout in (IMAGENET_LT, PLACES_LT, INATURALIST_2018, GIVEN_LISTS)}


@dataclass(frozen=True)
class ListFiles:
    """What a user names instead of a layout's own: list files and the folder that their paths are relative to."""

    train: str | None = None
    val: str | None = None
    test: str | None = None
    image_root: str | None = None

    def as_flags(self) -> list[str]:
        """Return the flags that a user would have named these with, each with its value."""
        return [f"{flag} {value}" for flag, value in zip(LIST_FLAGS, astuple(self), strict=True) if value is not None]


LIST_FLAGS = ["--train_list", "--val_list", "--test_list", "--image_root"]  # of the fields of `ListFiles`, in order
NO_FILES = ListFiles()


def find_lists(layout: Layout, data_dir: str, files: ListFiles) -> dict[str, Path]:
    """Return the list files "train", "test" and, where there is one, "val".

    The layout's own validation list goes with the layout's own training list alone: another one may hold its images.
    """
    folder = Path(data_dir) / layout.folder
    found = {}
    for part in ("train", "val", "test"):
        given, names = getattr(files, part), getattr(layout, part)
        own = next((folder / name for name in names if (folder / name).is_file()), None)
        if given is not None:
            found[part] = Path(given)
        elif own is not None and (part != "val" or files.train is None):
            found[part] = own
        elif part != "val":
            raise UserError(f"{folder} has no {' or '.join(names)}; put it there or name a list with --{part}_list")
    return found


def load_listed(layout: Layout, data_dir: str, profile: Profile, files: ListFiles = NO_FILES) -> LongTailedData:
    """Load a data set from its lists, with images below `files.image_root` or else beside the layout's lists.

    Its imbalance is its own (`profile.imb_ratio` None) or, for `list` alone, made (`long_tailed`). A validation list
    is held out where the profile holds out no share of the training list.
    """
    if layout.facts is not None and profile.imb_ratio is not None:
        raise UserError(f"{layout.name} is long-tailed as it is: leave --imb_ratio out, which is for balanced data")
    root = Path(data_dir) / layout.folder if files.image_root is None else Path(files.image_root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root} for the images of {layout.name}; see --data_dir and --image_root")
    lists = find_lists(layout, data_dir, files)
    train, names = read_any(lists["train"], root, layout.num_classes)
    num_classes = layout.num_classes or (len(names) if names else int(train.labels.max()) + 1)
    refuse_empty_classes(train.labels, num_classes, "training", names)  # first: a mistyped label is a billion classes
    splits = {}
    for part, path in lists.items():
        if part != "train":
            splits[part], other_names = read_any(path, root, num_classes)
            if names and other_names and names != other_names:
                raise UserError(f"{path} and {lists['train']} differ in their categories")
            names = names or other_names
    names = names or [str(label) for label in range(num_classes)]
    return long_tailed(layout.name, train, splits.get("val"), splits["test"], names, profile)


def load_folder(data_dir: str, profile: Profile) -> LongTailedData:
    """Load `<data_dir>/train/<class>/*` and `test/<class>/*`; `val/<class>/*` is held out or, alone, the test.

    Labels are the positions of the sorted class names.
    """
    root = Path(data_dir)
    train, names = read_folder(root, "train")
    parts = [part for part in ("test", "val") if (root / part).is_dir()]
    if not parts:
        raise UserError(f"{root} has neither a folder test nor val: there is nothing to test on")
    test, *held_out = (read_folder(root, part, names)[0] for part in parts)
    return long_tailed("folder", train, held_out[0] if held_out else None, test, names, profile)


def read_any(path: Path, root: Path, num_classes: int | None) -> tuple[ListedSplit, list[str] | None]:
    """Read a list, text or (its name ends in .json) COCO's JSON; return its images and the class names it gives."""
    if path.suffix.lower() != ".json":
        return read_list(path, root, num_classes), None
    split, names = read_json_list(path, root)
    if num_classes is not None and len(names) != num_classes:
        raise UserError(f"{path} has {len(names)} categories where {num_classes} classes are expected")
    return split, names


def long_tailed(
    name: str, train: ListedSplit, val: ListedSplit | None, test: ListedSplit, class_names: list[str], profile: Profile
) -> LongTailedData:
    """Return the data set, cut down where the profile has an `imb_ratio`, its held-out images split off or those of
    `val`.

    The ids of `val` follow on those of `train`, so that an id names one image. Class names are made printable: those of
    folders can be any bytes. Raises UserError for one class alone, and for a class without images in train or test.
    """
    if len(class_names) < 2:
        raise UserError(f"{name}: the training images are of one class, '{shown(class_names[0])}'; two are needed")
    for part, split in (("training", train), ("test", test)):
        refuse_empty_classes(split.labels, len(class_names), part, class_names)
    names = [printable(class_name) for class_name in class_names]
    refuse_equal_names(names, name)
    chosen = train
    if profile.imb_ratio is not None:
        counts = largest_profile(np.bincount(train.labels), profile)
        chosen = train.take(select_subset(train.labels, counts, profile.subset, profile.subset_seed))
    kept, out = split_holdout(chosen.labels, profile.holdout, profile.holdout_seed)
    holdout = chosen.take(out)
    if val is not None and profile.holdout == 0:
        holdout = replace(val, ids=val.ids + len(train))
    kept_images = chosen.take(kept)
    return LongTailedData(
        name=name,
        train=kept_images,
        holdout=holdout,
        test=test,
        class_names=names,
        class_counts=np.bincount(kept_images.labels),
        augmentation=AUGMENTATION,
        subset=path_identity(join([kept_images, holdout])),
    )


def without_rows(split: ListedSplit, rows: Sequence[int]) -> ListedSplit:
    """Return a split without the images at the positions `rows`."""
    return split.take(np.setdiff1d(np.arange(len(split)), rows))


def with_splits(data: LongTailedData, train: ListedSplit, holdout: ListedSplit, test: ListedSplit) -> LongTailedData:
    """Return a data set with other images in its splits, counted and identified anew.

    Raises UserError for a class without images in train or test.
    """
    for part, split in (("training", train), ("test", test)):
        refuse_empty_classes(split.labels, data.num_classes, part, data.class_names)
    counts, subset = np.bincount(train.labels), path_identity(join([train, holdout]))
    return replace(data, train=train, holdout=holdout, test=test, class_counts=counts, subset=subset)


def refuse_empty_classes(labels: np.ndarray, num_classes: int, part: str, class_names: list[str] | None) -> None:
    """Raise UserError where one of the classes 0..K-1 has no image; it needs no array of K numbers."""
    present = np.unique(labels)
    if len(present) < num_classes:
        gaps = np.flatnonzero(present != np.arange(len(present)))
        first = int(gaps[0]) if len(gaps) else len(present)
        name = f" '{shown(class_names[first])}'" if class_names else ""
        largest = "" if class_names else f"; the largest label is {present[-1]}: a slip of the pen?"
        raise UserError(
            f"{num_classes - len(present)} of {num_classes} classes have no {part} image (first: class {first}{name}); "
            f"add images or leave the class out{largest}"
        )


def largest_profile(sizes: np.ndarray, profile: Profile) -> list[int]:
    """Return the profile's counts (K,) with the largest first class for which every class has enough images.

    `sizes` (K,) are the images there are. Of K classes of n images each this is the profile from n downwards.
    """
    large = 10**12
    shares = np.array(profile.counts(large, len(sizes))) / large
    n_max = min(math.ceil(limit) - 1 for limit in (sizes + 1) / shares)
    while n_max > 1 and (np.array(profile.counts(n_max, len(sizes))) > sizes).any():
        n_max -= 1  # by one at most: the shares are rounded
    return profile.counts(n_max, len(sizes))


def path_identity(split: ListedSplit) -> dict[str, str]:
    """Return what `subset_identity` does without decoding: the content is sorted "label path" lines, not pixels."""
    content = hashlib.sha256()
    order = np.lexsort((split.images, split.labels))
    for rows in np.array_split(order, len(order) // 65536 + 1):  # never all lines at once
        pairs = zip(split.labels[rows].tolist(), split.images[rows].tolist(), strict=True)
        content.update(b"".join(b"%d %s\n" % pair for pair in pairs))
    return {
        "index_sha256": index_sha256(split.ids),
        "content_sha256": content.hexdigest(),
        "content": "labels and relative paths",
    }
