"""Images in a folder a class."""

import os
from pathlib import Path

from datasets.on_disk.listed_split import ListedSplit, pack
from datasets.on_disk.walk import LeftOut, file_number, folders_in, numbers_above, walk
from utils.errors import UserError
from utils.text import shown


def read_folder(
    root: Path, part: str, class_names: list[str] | None = None, left_out: LeftOut | None = None
) -> tuple[ListedSplit, list[str]]:
    """Read `<root>/<part>/<class>/**`; return the images, sorted by class and name, and the class names.

    Class folders are walked to the bottom (`walk`); what is not taken is counted in `left_out`. Labels follow
    `class_names`: by default the sorted names of the class folders. Images of a class folder that `class_names` lacks
    have the labels behind its last one, in the order of the folders' names, which the class names returned then follow.
    With `part` "" the class folders lie in `root` itself. Raises UserError for a folder without images.
    """
    left_out = LeftOut() if left_out is None else left_out
    prefix = f"{part}/" if part else ""
    found = folders_in(root / part, left_out, prefix)
    names = found if class_names is None else [*class_names, *sorted(set(found) - set(class_names))]
    above = {*numbers_above(root / part), file_number(root / part)}
    paths: list[bytes] = []
    labels: list[int] = []
    present = set(found)
    for label, name in enumerate(names):
        files = walk(root, prefix + name, left_out, above) if name in present else []
        paths += map(os.fsencode, files)
        labels += [label] * len(files)
    if not paths:
        seen = "; ".join(line.removeprefix("warning: ") for line in left_out.lines())
        raise UserError(
            f"{root / part} holds no images; they belong into a folder for each class, {prefix}<class>/*"
            f"{f' ({seen})' if seen else ''}"
        )
    return pack(root, paths, labels), names


def nested_images(split: ListedSplit, depth: int) -> tuple[int, str]:
    """Return how many images lie deeper than `depth` folders below the root, and the first of them."""
    deeper = [path for path in split.images.tolist() if path.count(b"/") > depth]
    return len(deeper), shown(os.fsdecode(deeper[0])) if deeper else ""
