"""Images in a folder a class."""

import os
from pathlib import Path

from datasets.on_disk.listed_split import ListedSplit, pack
from utils.errors import UserError
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
