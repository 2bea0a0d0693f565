"""The data set that splits of images on disk make: cut down, held out, counted, empty classes refused or left out."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from datasets.long_tail import (
    Augmentation,
    LongTailedData,
    Profile,
    refuse_equal_names,
    select_subset,
    split_holdout,
)
from datasets.on_disk.labels.writing import folded
from datasets.on_disk.listed_split import ListedSplit, join, path_identity
from utils.errors import UserError
from utils.text import counted, printable, shown

UNUSED = ("image of the validation split is", "images of the validation split are")

# The constants of ImageNet's images, which pre-trained weights expect too. Crops are resized, not padded.
AUGMENTATION = Augmentation(padding=0, mirror=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

Notes = tuple[str, ...]  # `LongTailedData.notes`
NAMED = 10  # classes that a line names


def long_tailed(
    name: str,
    train: ListedSplit,
    val: ListedSplit | None,
    test: ListedSplit,
    class_names: list[str],
    profile: Profile,
    notes: Notes = (),
) -> LongTailedData:
    """Return the data set, cut down where the profile has an `imb_ratio`, its held-out images split off or those of
    `val`.

    The ids of `val` follow on those of `train`, so that an id names one image. Class names are made printable: those of
    folders can be any bytes. A class without training images is left out where the profile says so, with its images
    elsewhere; one without test images stays, with a warning. Raises UserError for one class alone, for a class without
    training images, and where no test image is left.
    """
    if profile.drop_empty_classes:
        class_names, train, val, test, dropped = without_empty_classes(class_names, train, val, test)
        notes += dropped
    if len(class_names) < 2:
        raise UserError(f"{name}: the training images are of one class, '{shown(class_names[0])}'; two are needed")
    refuse_empty_classes(train.labels, len(class_names), "training", class_names)
    notes += untested_classes(test.labels, class_names)
    if val is not None and profile.holdout > 0:
        notes += (f"the {counted(len(val), *UNUSED)} unused beside --holdout",)
    names = [printable(class_name) for class_name in class_names]
    refuse_equal_names(names, name)
    chosen = train
    if profile.imb_ratio is not None:
        counts = largest_profile(np.bincount(train.labels), profile)
        chosen = train.take(select_subset(train.labels, counts, profile.subset, profile.subset_seed))
    kept, out = split_holdout(chosen.labels, profile.holdout, profile.holdout_seed)
    holdout = chosen.take(out)
    if val is not None and profile.holdout == 0:
        holdout = replace(val, ids=train.ids.max() + 1 + np.arange(len(val)))
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
        notes=notes,
    )


def with_splits(
    data: LongTailedData,
    train: ListedSplit,
    holdout: ListedSplit,
    test: ListedSplit,
    *,
    drop_empty_classes: bool = False,
) -> LongTailedData:
    """Return a data set with other images in its splits, counted and identified anew.

    Raises UserError for a class without training images, unless such are left out, and where no test image is left.
    """
    if len(test) == 0:
        raise UserError(f"{data.name}: no test image is left")
    names, lists = data.class_names, data.lists
    dropped: Notes = ()
    if drop_empty_classes:
        lists = lists_of_classes(data, np.unique(train.labels))
        names, train, left, test, dropped = without_empty_classes(names, train, holdout, test)
        holdout = holdout if left is None else left
    refuse_empty_classes(train.labels, len(names), "training", names)
    known = untested_classes(data.test.labels, data.class_names)
    notes = (*(note for note in data.notes if note not in known), *dropped, *untested_classes(test.labels, names))
    return replace(
        data,
        train=train,
        holdout=holdout,
        test=test,
        class_names=names,
        class_counts=np.bincount(train.labels),
        subset=path_identity(join([train, holdout])),
        notes=notes,
        lists=lists,
    )


def lists_of_classes(data: LongTailedData, kept: np.ndarray) -> dict[str, Any] | None:
    """Return the record of a data set's lists with the labels of the classes `kept` (k,) alone."""
    if data.lists is None or len(kept) == data.num_classes:
        return data.lists
    labels = list((data.lists["labels"] or {name: name for name in data.class_names}).items())
    return {**data.lists, "labels": dict(labels[label] for label in kept)}


def refuse_empty_classes(labels: np.ndarray, num_classes: int, part: str, class_names: list[str] | None) -> None:
    """Raise UserError where one of the classes 0..K-1 has no image; it needs no array of K numbers."""
    present = np.unique(labels)
    if len(present) < num_classes:
        refuse_other_spelling(present, class_names or [])
        gaps = np.flatnonzero(present != np.arange(len(present)))
        first = int(gaps[0]) if len(gaps) else len(present)
        name = f" '{shown(class_names[first])}'" if class_names else ""
        largest = "" if class_names else f"; the largest label is {present[-1]}: a slip of the pen?"
        raise UserError(
            f"{num_classes - len(present)} of {num_classes} classes have no {part} image (first: class {first}{name}); "
            f"add images, or leave such classes out with --drop_empty_classes{largest}"
        )


def refuse_other_spelling(present: np.ndarray, class_names: Sequence[str]) -> None:
    """Raise UserError where a class that is not among those with training images, `present` (k,), has the name of one
    that is, but for case, accents' kinds and blanks: to leave it out would lose the images of one class."""
    known = {folded(class_names[label]): label for label in present if label < len(class_names)}
    for label in np.setdiff1d(np.arange(len(class_names)), present):
        same = known.get(folded(class_names[label]))
        if same is not None:
            raise UserError(
                f"class '{shown(class_names[label])}' has no training image, and '{shown(class_names[same])}', which "
                "looks like another spelling of it, has; give both one name"
            )


def untested_classes(labels: np.ndarray, class_names: list[str]) -> Notes:
    """Return a warning that names the classes without images among the test `labels` (N,), where there are any."""
    counts = np.bincount(labels, minlength=len(class_names))
    lacking = [class_names[label] for label in np.flatnonzero(counts == 0)]
    if not lacking:
        return ()
    words = f"{len(lacking)} of {len(class_names)} classes have no test image, so no accuracy, and are in no mean"
    return (f"warning: {words}: {name_some(lacking)}",)


def without_empty_classes(
    class_names: list[str], train: ListedSplit, val: ListedSplit | None, test: ListedSplit
) -> tuple[list[str], ListedSplit, ListedSplit | None, ListedSplit, Notes]:
    """Return the names of the classes with training images, the splits of these alone, and notes of what went.

    The classes keep their order; their labels move up. Raises UserError where no test image is left, and for a class
    that is another one in another spelling.
    """
    kept = np.unique(train.labels)
    if len(kept) == len(class_names):
        return class_names, train, val, test, ()
    refuse_other_spelling(kept, class_names)
    gone = np.setdiff1d(np.arange(len(class_names)), kept)
    names = name_some([class_names[label] for label in gone])
    notes = [f"{len(gone)} of {len(class_names)} classes have no training image and are left out: {names}"]
    for words, split in (("held-out", val), ("test", test)):
        lost = 0 if split is None else int(np.isin(split.labels, gone).sum())
        if lost:
            left = (f"{words} image is of these classes and is", f"{words} images are of these classes and are")
            notes.append(f"{counted(lost, *left)} left out too")
        if split is test and lost == len(test):
            raise UserError("no test image is of a class that has training images")
    held_out = None if val is None else of_classes(val, kept)
    return (
        [class_names[label] for label in kept],
        of_classes(train, kept),
        held_out,
        of_classes(test, kept),
        tuple(notes),
    )


def of_classes(split: ListedSplit, kept: np.ndarray) -> ListedSplit:
    """Return the images of the classes `kept` (k,), ascending, with labels 0..k-1."""
    known = split.take(np.flatnonzero(np.isin(split.labels, kept)))
    return replace(known, labels=np.searchsorted(kept, known.labels))


def name_some(class_names: Sequence[str]) -> str:
    """Return the first of some class names in words."""
    return ", ".join(map(shown, class_names[:NAMED])) + (", ..." if len(class_names) > NAMED else "")


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
