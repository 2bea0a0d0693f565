"""Images that lie on disk as files: who they are, read from lists, JSON and folders. Nothing is decoded here.

Three forms: text files of `path label` a line (Liu et al., "Large-Scale Long-Tailed Recognition in an Open World",
CVPR 2019, and the field since), JSON in COCO's form (iNaturalist's), and a folder a class. Paths are relative to an
image folder and stay as they are written; one that leaves that folder is refused, while symbolic links in it, which
its owner made, are followed.
"""

import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.long_tail import Split
from utils.errors import UserError
from utils.outside import open_plain, read_plain
from utils.text import shown

IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
LABEL = re.compile(r"[0-9]{1,9}")
LONGEST = 1000  # characters of a path: every row of a split takes as much memory as its longest one


@dataclass(frozen=True)
class ListedSplit(Split):
    """Images on disk: `images` (N,) bytes are their paths below the folder `root`, labels and ids as everywhere.

    One array of fixed width holds iNaturalist's 437,513 paths in 30 MB, and worker processes share it, where a list of
    strings would take three times that, and again in every worker as their reference counts change.
    """

    root: Path

    def take(self, rows: np.ndarray) -> "ListedSplit":
        """Return the rows given by integer positions, in that order."""
        return replace(self, images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows])

    def path(self, row: int) -> str:
        """Return where the image at `row` lies."""
        return os.path.join(self.root, os.fsdecode(self.images[row]))


def pack(root: Path, paths: Sequence[bytes], labels: Sequence[int]) -> ListedSplit:
    """Return the split of N paths below `root`, their labels, and as ids their row numbers 0..N-1."""
    images = np.array(paths, dtype=np.bytes_)
    return ListedSplit(images, np.array(labels, dtype=np.int64), np.arange(len(paths)), root)


def join(splits: Sequence[ListedSplit]) -> ListedSplit:
    """Return the images of splits with one folder, one split behind the other."""
    images, labels, ids = (
        np.concatenate([getattr(split, field) for split in splits]) for field in ("images", "labels", "ids")
    )
    return ListedSplit(images, labels, ids, splits[0].root)


def read_list(path: Path, root: Path, num_classes: int | None = None) -> ListedSplit:
    """Read a text file of `path label` a line, the label behind the last white space.

    A byte order mark, Windows line ends and blank lines are accepted. Raises UserError, with the line's number, for a
    line without a label, a label that is no integer from 0 to `num_classes` - 1, and a path that leaves `root`.
    """
    limit = 10**9 if num_classes is None else num_classes
    paths: list[bytes] = []
    labels: list[int] = []
    try:
        # File names are bytes: whatever is not UTF-8 in them comes out as it went in.
        with io.TextIOWrapper(open_plain(path, "the list"), encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                words = line.rsplit(None, 1)
                if not words:
                    continue
                fault = line_fault(words, limit)
                if fault and "\0" in line:
                    fault = "this is no UTF-8 text; save the list as plain text in UTF-8"
                if fault:
                    raise UserError(f"{path}, line {number}: {fault}")
                paths.append(os.fsencode(words[0]))
                labels.append(int(words[1]))
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error
    if not paths:
        raise UserError(f"the list {path} names no images; it needs lines of 'path label'")
    return pack(root, paths, labels)


def line_fault(words: list[str], limit: int) -> str:
    """Return what is wrong with a line of a list, split into [path, label]; "" if nothing is."""
    if len(words) < 2:
        return f"'{shown(words[0])}' has no label; a line is 'path label'"
    if not LABEL.fullmatch(words[1]) or int(words[1]) >= limit:
        wanted = "an integer of 0 or more" if limit == 10**9 else f"an integer from 0 to {limit - 1}"
        return f"the label '{shown(words[1])}' is not {wanted}"
    return path_fault(words[0])


def path_fault(path: str) -> str:
    """Return what is wrong with a path that a list names; "" if nothing is. Windows' paths count too."""
    upwards = ".." in path and ".." in path.replace("\\", "/").split("/")
    if upwards or path.startswith(("/", "\\")) or path[1:2] == ":" or "\0" in path or not path:
        return f"the path '{shown(path)}' leaves the image folder; it must be relative to it, without '..'"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # JSON can hold half a character
        return f"the path '{shown(path)}' cannot be the name of a file"
    return "" if len(path) <= LONGEST else f"the path '{shown(path)}' has more than {LONGEST} characters"


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


def read_folder(root: Path, part: str, class_names: list[str] | None = None) -> tuple[ListedSplit, list[str]]:
    """Read `<root>/<part>/<class>/*`; return the images, sorted by class and name, and the class names.

    Labels follow `class_names`: by default the sorted names of the class folders. Files of other extensions, hidden
    ones and folders in a class folder are passed over (`image_files` counts them). Raises UserError for a class folder
    that `class_names` lacks.
    """
    found = class_folders(root / part)
    names = found if class_names is None else class_names
    alone = sorted(set(found) - set(names))
    if alone:
        raise UserError(
            f"{root / part} has {len(alone)} class folders that the training images lack (first: "
            f"'{shown(alone[0])}'): a class can only be tested that can be learned"
        )
    paths: list[bytes] = []
    labels: list[int] = []
    present = set(found)
    for label, name in enumerate(names):
        files = image_files(root / part / name)[0] if name in present else []
        paths += [os.fsencode(f"{part}/{name}/{file}") for file in files]
        labels += [label] * len(files)
    if not paths:
        raise UserError(f"{root / part} holds no images; they belong into a folder for each class, {part}/<class>/*")
    return pack(root, paths, labels), names


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder or a link to one; a link to itself is none, and no image either."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder`, without the hidden ones (as `.ipynb_checkpoints`)."""
    return [entry.name for entry in scan(folder) if is_folder(entry) and not entry.name.startswith(".")]


def image_files(folder: Path) -> tuple[list[str], int]:
    """Return the sorted names of the image files in a folder, and the number of its other entries."""
    entries = scan(folder)
    names = [
        entry.name
        for entry in entries
        if entry.name.lower().endswith(IMAGE_EXTENSIONS) and not entry.name.startswith(".") and not is_folder(entry)
    ]
    return names, len(entries) - len(names)
