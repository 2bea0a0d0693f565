"""The data set that splits of images on disk make: cut down, held out, counted, and without an empty class."""

import math
from dataclasses import replace

import numpy as np

from datasets.long_tail import (
    Augmentation,
    LongTailedData,
    Profile,
    refuse_equal_names,
    select_subset,
    split_holdout,
)
from datasets.on_disk.listed_split import ListedSplit, join, path_identity
from utils.errors import UserError
from utils.text import printable, shown

# The constants of ImageNet's images, which pre-trained weights expect too. Crops are resized, not padded.
AUGMENTATION = Augmentation(padding=0, mirror=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


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
