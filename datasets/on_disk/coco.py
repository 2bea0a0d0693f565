"""Lists in COCO's form of JSON, which iNaturalist's are."""

import json
import os
from pathlib import Path
from typing import Any

from datasets.on_disk.listed_split import ListedSplit, pack
from datasets.on_disk.paths import path_fault
from utils.errors import UserError
from utils.outside import read_plain
from utils.text import shown


def read_json_list(path: Path, root: Path) -> tuple[ListedSplit, list[str]]:
    """Read a list in COCO's form, {"images", "annotations", "categories"}; return the images and the class names.

    The labels 0..K-1 are the categories in the order of their ids, which for iNaturalist 2018 are these numbers. Raises
    UserError, with the entry's number, for anything else than one category an image.
    """
    try:
        content = json.loads(read_plain(path, "the list").decode("utf-8-sig"), object_hook=compact)
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise UserError(f"{path} is not in COCO's form: an object with the lists 'images', 'annotations', 'categories'")
    names: dict[int, str] = {}
    for number, entry in enumerate(content["categories"]):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or entry["id"] in names:
            raise UserError(f"{path}: categories[{number}] has no integer 'id' of its own")
        names[entry["id"]] = shown(str(entry.get("name", entry["id"])))
    label_of = {category: label for label, category in enumerate(sorted(names))}
    labels: dict[int | str, int] = {}
    for number, entry in enumerate(content["annotations"]):
        if not is_pair(entry, int) or entry[1] not in label_of:
            raise UserError(f"{path}: annotations[{number}] needs an 'image_id' and a 'category_id' of the categories")
        if labels.setdefault(entry[0], label_of[entry[1]]) != label_of[entry[1]]:
            raise UserError(f"{path}: annotations[{number}] gives the image {entry[0]} a second category")
    paths, chosen = [], []
    for number, entry in enumerate(content["images"]):
        if not is_pair(entry, str) or entry[0] not in labels:
            raise UserError(f"{path}: images[{number}] needs a 'file_name' and an 'id' of its own that is annotated")
        if path_fault(entry[1]):
            raise UserError(f"{path}: images[{number}]: {path_fault(entry[1])}")
        paths.append(os.fsencode(entry[1]))
        chosen.append(labels.pop(entry[0]))
    if labels:
        first = shown(str(next(iter(labels))))
        raise UserError(f"{path}: {len(labels)} annotations are of images that it does not list (first: {first})")
    if not paths:
        raise UserError(f"the list {path} names no images")
    return pack(root, paths, chosen), [names[category] for category in sorted(names)]


def compact(entry: dict[str, Any]) -> Any:
    """Keep a pair of each image and annotation: nearly a million dictionaries would take most of a gigabyte."""
    if "file_name" in entry:
        return entry.get("id"), entry["file_name"]
    if "category_id" in entry:
        return entry.get("image_id"), entry["category_id"]
    return entry


def is_pair(entry: object, kind: type) -> bool:
    """Tell whether an entry is what `compact` makes of (an id, something of `kind`)."""
    return isinstance(entry, tuple) and type(entry[0]) in (int, str) and type(entry[1]) is kind
