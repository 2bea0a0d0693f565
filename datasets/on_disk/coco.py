"""Lists in COCO's form of JSON, which iNaturalist's are, and what annotation tools export in it."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.long_tail import refuse_equal_names
from datasets.on_disk.listed_split import ListedSplit
from datasets.on_disk.paths import path_fault
from datasets.on_disk.rows import Listing, Row, Source, collect
from utils.errors import UserError
from utils.outside import read_plain
from utils.text import counted, shown

Id = int | str


@dataclass
class Categories:
    """The categories of a file: the name of each id, in the order of the ids, and the names of their groups."""

    name_of: dict[Id, str]
    groups: set[str]


def read_json_list(path: Path, root: Path) -> tuple[ListedSplit, list[str]]:
    """Read a list in COCO's form; return the images and the class names, whose order is that of the labels 0..K-1."""
    listing = read_coco(path, root)
    assert listing.order is not None
    place = {name: label for label, name in enumerate(listing.order)}
    numbers = np.array([place[word] for word in listing.words], dtype=np.int64)
    return replace(listing.images, labels=numbers[listing.images.labels]), listing.order


def read_coco(path: Path, root: Path, suffix: str = "") -> Listing:
    """Read a list in COCO's form, {"images", "annotations", "categories"}; labels are the names of the categories.

    The classes are the categories in the order of their ids, which for iNaturalist 2018 are 0..K-1. An image may have
    several annotations of one category, as in files for detection. Left out and noted are images without annotation,
    annotations that are captions alone, and a category without images that others name as their `supercategory`.
    Raises UserError, with the entry's number, for anything else than one category an image.
    """
    content = load_json(path)
    categories = read_categories(path, content["categories"])
    labels, captions = annotated(path, content["annotations"], categories)
    bare: list[str] = []
    rows = image_rows(path, content["images"], labels, categories, bare)
    listing = collect(Source(path, root, suffix, lambda number: f"{path}: images[{number}]"), rows)
    if labels:
        unlisted = [image for image, category in labels.items() if category is not None]
        if unlisted:
            first = shown(str(unlisted[0]))
            raise UserError(f"{path}: {len(unlisted)} annotations are of images that it does not list (first: {first})")
    used = set(listing.words)
    order = list(categories.name_of.values())
    refuse_equal_names(order, str(path))
    group = [name for name in order if name in categories.groups and name not in used]
    left = counted(len(bare), "image without annotation is", "images without annotation are")
    notes = [f"{left} left out (first: '{shown(bare[0])}')"] if bare else []
    notes += [f"{captions} annotations are captions without a category, and left out"] if captions else []
    notes += [f"the category '{name}' has no image and is the group of others: it is no class" for name in group]
    said = tuple(f"{path}: {note}" for note in notes)
    return replace(listing, order=[name for name in order if name not in group], notes=(*listing.notes, *said))


def load_json(path: Path) -> dict[str, Any]:
    """Return the content of a file in COCO's form."""
    try:
        content = json.loads(read_plain(path, "the list").decode("utf-8-sig"), object_hook=compact)
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise UserError(f"{path} is not in COCO's form: an object with the lists 'images', 'annotations', 'categories'")
    return content


def read_categories(path: Path, entries: list[Any]) -> Categories:
    """Return the categories in the order of their ids: numbers by their value, text that is no number behind them."""
    names: dict[Id, str] = {}
    groups = set()
    for number, entry in enumerate(entries):
        known = isinstance(entry, dict) and type(entry.get("id")) in (int, str)
        if not known or entry["id"] in names or other_id(entry["id"]) in names:
            raise UserError(f"{path}: categories[{number}] has no integer 'id' of its own")
        names[entry["id"]] = shown(str(entry.get("name", entry["id"])))
        group = shown(str(entry.get("supercategory", "")))
        if group != names[entry["id"]]:  # some tools repeat the name
            groups.add(group)
    order = sorted(names, key=lambda key: (not is_number(key), int(key) if is_number(key) else 0, str(key)))
    return Categories({key: names[key] for key in order}, groups)


def is_number(key: Id) -> bool:
    """Tell whether an id is a number, as a string or not."""
    return isinstance(key, int) or (key.isascii() and key.removeprefix("-").isdecimal() and len(key) < 20)


def other_id(key: Id) -> Id | None:
    """Return a number as a string, and a string as the number that it is: tools write ids either way."""
    if isinstance(key, int):
        return str(key)
    return int(key) if is_number(key) and str(int(key)) == key else None


def known_id(key: Id, known: Collection[Id]) -> Id | None:
    """Return an id as `known` has it, None where it has not."""
    if key in known:
        return key
    other = other_id(key)
    return other if other in known else None


def annotated(path: Path, entries: list[Any], categories: Categories) -> tuple[dict[Id, Id | None], int]:
    """Return the category of each image that has one, by its id, and the number of captions."""
    labels: dict[Id, Id | None] = {}
    captions = 0
    for number, entry in enumerate(entries):
        if isinstance(entry, dict) and "caption" in entry:
            captions += 1
            continue
        category = entry[1] if is_pair(entry, (int, str)) else None
        if category not in categories.name_of:
            category = None if category is None else known_id(category, categories.name_of)
        if category is None:
            raise UserError(f"{path}: annotations[{number}] needs an 'image_id' and a 'category_id' of the categories")
        if labels.setdefault(entry[0], category) != category:
            raise UserError(
                f"{path}: annotations[{number}] gives the image {shown(str(entry[0]))} a second category; an image has "
                "one class here: keep one of them, or leave the image out"
            )
    return labels, captions


def image_rows(
    path: Path, entries: list[Any], labels: dict[Id, Id | None], categories: Categories, bare: list[str]
) -> Iterator[Row]:
    """Yield the images that have a category; those without go to `bare`. An image's category in `labels` becomes None
    once the image has come."""
    for number, entry in enumerate(entries):
        if not is_pair(entry, (str,)):
            raise UserError(f"{path}: images[{number}] needs a 'file_name' and an 'id' of its own")
        key, name = entry
        if key not in labels:  # not at once: there are half a million
            key = known_id(key, labels)
        if key is None:
            bare.append(name)
            continue
        category = labels[key]
        if category is None:
            raise UserError(f"{path}: images[{number}] needs an 'id' of its own: another image has it")
        if not name:
            raise UserError(f"{path}: images[{number}]: {path_fault(name)}")
        yield number, name, categories.name_of[category]
        labels[key] = None
    if entries and len(bare) == len(entries):
        raise UserError(f"{path}: none of its {len(bare)} images has an annotation: an image's class stands in one")


def compact(entry: dict[str, Any]) -> Any:
    """Keep a pair of each image and annotation: nearly a million dictionaries would take most of a gigabyte."""
    if "file_name" in entry:
        return entry.get("id"), entry["file_name"]
    if "category_id" in entry:
        return entry.get("image_id"), entry["category_id"]
    return entry


def is_pair(entry: object, kinds: tuple[type, ...]) -> bool:
    """Tell whether an entry is what `compact` makes of (an id, something of `kinds`)."""
    return isinstance(entry, tuple) and type(entry[0]) in (int, str) and type(entry[1]) in kinds
