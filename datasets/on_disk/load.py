"""Data sets whose images lie on disk as files: from the field's lists and anyone's."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.long_tail import LongTailedData, Profile
from datasets.on_disk.labels.class_names import NamesFile, read_class_names
from datasets.on_disk.labels.classes import Classes, learn_classes
from datasets.on_disk.layouts import NO_FILES, Layout, ListFiles, find_lists, missing_list
from datasets.on_disk.listings import read_listings, split_hint
from datasets.on_disk.long_tailed import long_tailed, refuse_empty_classes
from datasets.on_disk.rows import Listing
from utils.errors import UserError

MOST_CLASSES = 10**6  # beyond which a label is a slip of the pen


def load_listed(layout: Layout, data_dir: str, profile: Profile, files: ListFiles = NO_FILES) -> LongTailedData:
    """Load a data set from its lists, with images below `files.image_root` or else beside the layout's lists.

    Its imbalance is its own (`profile.imb_ratio` None) or, for `list` alone, made (`long_tailed`). A validation list
    is held out where the profile holds out no share of the training list. `notes` of the data set say how its lists
    were read, `lists` record it.
    """
    if layout.facts is not None and profile.imb_ratio is not None:
        raise UserError(f"{layout.name} is long-tailed as it is: leave --imb_ratio out, which is for balanced data")
    root = Path(data_dir) / layout.folder if files.image_root is None else Path(files.image_root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root} for the images of {layout.name}; see --data_dir and --image_root")
    named = None if files.class_names is None else read_class_names(Path(files.class_names))
    listings = read_listings(find_lists(layout, data_dir, files), root, files)
    lists = listings.of
    if "test" not in lists:
        raise UserError(f"{missing_list(layout, data_dir, 'test')}{split_hint(lists['train'])}")
    classes = classes_of(layout, lists["train"], named)
    train = classes.apply(lists["train"])
    if not profile.drop_empty_classes or classes.count > MOST_CLASSES:  # first: a mistyped label is a billion classes
        refuse_empty_classes(train.labels, classes.count, "training", lists["train"].order)
    if profile.drop_empty_classes and layout.num_classes is None:
        lists = {part: classes.known_part(listing) if part != "train" else listing for part, listing in lists.items()}
    splits = {part: classes.apply(listing) for part, listing in lists.items() if part != "train"}
    names = named_classes(classes, lists, named)
    notes = (*(note for listing in lists.values() for note in listing.notes), *classes.notes)
    data = long_tailed(layout.name, train, splits.get("val"), splits["test"], names, profile, notes)
    kept = np.unique(train.labels).tolist()
    plain = classes.plain and named is None and len(kept) == classes.count
    keys = classes.keys()
    labels = None if plain else {str(keys[label]): names[label] for label in kept}
    record = {"columns": listings.columns, "labels": labels}
    return replace(data, lists=record if any(record.values()) else None)


def classes_of(layout: Layout, train: Listing, named: NamesFile | None) -> Classes:
    """Return the classes of a data set: those of its layout, else those of its training list."""
    if named is not None and train.order is not None:
        raise UserError(f"{train.path} names its classes: leave --class_names out")
    if layout.num_classes is None:
        return learn_classes(train, frozenset() if named is None else named.known())
    if train.order is None:
        return Classes(layout.num_classes)
    if len(train.order) != layout.num_classes:
        raise UserError(
            f"{train.path} has {len(train.order)} categories where {layout.num_classes} classes are expected"
        )
    return learn_classes(train)


def named_classes(classes: Classes, lists: dict[str, Listing], named: NamesFile | None) -> list[str]:
    """Return the name of each class (K,): from a file, from the lists, else its label."""
    if named is not None:
        return named.name(classes)
    orders = (listing.order for listing in lists.values() if listing.order is not None)
    given = next(orders, None) if classes.plain else None
    return given or list(map(str, classes.keys()))
