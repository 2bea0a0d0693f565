"""Folders of images, walked to the bottom: which files are images, and what is left out, with the reason.

Whatever the name of a file says, its content decides how it is decoded (`datasets.decode`); an ending only says that it
is meant as an image.
"""

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from datasets.on_disk.paths import LONGEST
from utils.errors import UserError
from utils.text import counted, shown

# The endings that PIL knows for `datasets.decode.FORMATS`, as Pillow 13.0 has them, with two that are read as well:
# .mpo (a JPEG of many pictures) and .dib (a BMP, as Paint writes it). Without .pfm, whose pixels are floating-point.
# Written down, so that another Pillow does not make other data sets of the same folders; a test compares.
IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".dib",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)

# What systems and tools leave in folders, in lower case: previews, indexes, waste-paper baskets, caches. Whatever else
# begins with a dot is hidden, and left out as well.
LITTER = frozenset(
    {
        "@eadir",  # Synology
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "__macosx",  # archives made on macOS; ._x.jpg and .DS_Store are hidden
        "icon\r",
        "thumbs.db",  # Windows
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",  # Linux
        "__pycache__",
        "picasa.ini",
    }
)

LOOP = "links back into folders that are walked through already"
HIDDEN = "hidden (the name begins with a dot)"
OF_TOOLS = "left behind by systems and tools"
ENDING = "files whose ending is of no image that can be read"
NO_ENDING = "files without an ending"
LOOSE = "images outside the class folders"
EMPTY = "folders without images in class folders"
UNUSED = "folders that are no split"
# Reasons that may mean that images are missing; the others are as it should be.
SUSPECT = (ENDING, NO_ENDING, LOOSE, LOOP, UNUSED)
# What a single one of them is called.
ONE = {
    LOOP: "link back into a folder that is walked through already",
    ENDING: "file whose ending is of no image that can be read",
    NO_ENDING: "file without an ending",
    LOOSE: "image outside the class folders",
    EMPTY: "folder without images in class folders",
    UNUSED: "folder that is no split",
}
Number = tuple[int, int]  # of a folder: device and inode
NAMED = 3  # of what is left out for one reason
MOST_ENDINGS = 5


@dataclass
class LeftOut:
    """What was not taken of folders: for each reason how many entries, and the first of them; endings by their name."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, path: str) -> None:
        """Count an entry that is left out."""
        self.counts[reason] += 1
        if self.counts[reason] <= NAMED:
            self.first.setdefault(reason, []).append(path)
        if reason == ENDING:
            self.endings[os.path.splitext(path)[1].lower()] += 1

    def total(self) -> int:
        """Return the number of entries."""
        return self.counts.total()

    def lines(self) -> list[str]:
        """Return a line for each reason; those that may mean that images are missing begin with `warning: `."""
        return [f"{'warning: ' if reason in SUSPECT else ''}{self._line(reason)}" for reason in self.counts]

    def _line(self, reason: str) -> str:
        endings = ", ".join(f"{shown(end)} {count}" for end, count in self.endings.most_common(MOST_ENDINGS))
        which = f": {endings}{', ...' if len(self.endings) > MOST_ENDINGS else ''}" if reason == ENDING else ""
        names = ", ".join(map(shown, self.first[reason]))
        more = ", ..." if self.counts[reason] > NAMED else ""
        what = counted(self.counts[reason], ONE.get(reason, reason), reason)
        return f"left out: {what}{which} ({names}{more})"


def scan(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {shown(str(folder))}: {error.strerror or error}") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder or a link to one; a link to itself is none, and no image either."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_image_name(name: str) -> bool:
    """Tell whether a file of this name is meant as an image; no litter is."""
    return name[0] != "." and name.lower().endswith(IMAGE_EXTENSIONS)


def litter_reason(name: str) -> str | None:
    """Return why an entry of this name is no class, folder or image whatever it holds; None where it may be one."""
    if name.lower() in LITTER:
        return OF_TOOLS
    return HIDDEN if name.startswith(".") else None


def file_reason(name: str) -> str:
    """Return why a file that is no image by its name is left out."""
    return ENDING if os.path.splitext(name)[1] else NO_ENDING


def folders_in(folder: Path, left_out: LeftOut, prefix: str = "") -> list[str]:
    """Return the sorted names of the folders in a folder, without litter; loose files are counted under `prefix`."""
    names = []
    for entry in scan(folder):
        reason = litter_reason(entry.name)
        if reason is None and is_folder(entry):
            names.append(entry.name)
            continue
        if reason is None:
            reason = LOOSE if is_image_name(entry.name) else file_reason(entry.name)
        left_out.add(reason, prefix + entry.name)
    return names


def walk(root: Path, inner: str, left_out: LeftOut, above: Collection[Number] = ()) -> list[str]:
    """Return the paths of all images in the folder `inner` of `root`, at any depth, relative to `root`.

    First a folder's own files, sorted by name, then those of each folder in it, sorted by name. Links are followed, but
    no folder is walked through twice, nor one of those `above` it (`numbers_above`): a loop of links ends. Raises
    UserError for a folder that cannot be read, and for a path that is too long to be kept.
    """
    paths: list[str] = []
    top = os.path.join(root, inner)
    seen = {*above, *(numbers_above(Path(top)) if os.path.islink(top) else ())}
    waiting = [inner]
    while waiting:
        below = waiting.pop()
        place = os.path.join(root, below)
        number = file_number(place)
        if number in seen:
            left_out.add(LOOP, below)
            continue
        seen.add(number)
        prefix = f"{below}/" if below else ""
        folders: list[str] = []
        images = len(paths)
        for entry in scan(place):
            name = entry.name
            if is_image_name(name) and not is_folder(entry):
                paths.append(prefix + name)
                continue
            reason = litter_reason(name)
            if reason is not None:
                left_out.add(reason, prefix + name)
            elif is_folder(entry):
                folders.append(prefix + name)
            else:
                left_out.add(file_reason(name), prefix + name)
        if len(paths) == images and not folders and below != inner:
            left_out.add(EMPTY, below)
        waiting += reversed(folders)
    if max(map(len, paths), default=0) > LONGEST:
        raise UserError(f"the path '{shown(max(paths, key=len))}' has more than {LONGEST} characters")
    return paths


def numbers_above(folder: Path) -> set[Number]:
    """Return what names the folders above a folder: those of its path, and those of the place that a link leads to."""
    ways = (Path(os.path.abspath(folder)), Path(os.path.realpath(folder)))
    return {file_number(above) for way in ways for above in way.parents}


def file_number(folder: Path | str) -> Number:
    """Return what names a folder whatever path led to it: device and inode."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise UserError(f"cannot read the folder {shown(str(folder))}: {error.strerror or error}") from error
    return status.st_dev, status.st_ino
