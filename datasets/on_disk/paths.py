"""What a list may name: paths below an image folder, in the forms in which lists are written.

A path that leaves that folder is refused, while symbolic links in it, which its owner made, are followed.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from utils.text import shown

LONGEST = 1000  # characters of a path: every row of a split takes as much memory as its longest one
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".webp", ".tif", ".bmp")  # that an id may lack
SAMPLE = 5  # paths of a list that are looked for before it is used
FOLDERS = 200  # of an image folder, in which they are looked for too


def path_fault(path: str) -> str:
    """Return what is wrong with a path that a list names; "" if nothing is. Windows' paths count too."""
    upwards = ".." in path and ".." in path.replace("\\", "/").split("/")
    if upwards or path.startswith(("/", "\\")) or path[1:2] == ":" or "\0" in path or not path:
        return f"the path '{shown(path)}' leaves the image folder; it must be relative to it, without '..'"
    return "" if len(path) <= LONGEST else f"the path '{shown(path)}' has more than {LONGEST} characters"


def is_odd(path: str) -> bool:
    """Tell whether a path needs a second look: quickly, since a list has half a million of them."""
    return (
        "\\" in path or ".." in path or path[:1] in ("/", "") or path[1:2] == ":" or len(path) > LONGEST or "\0" in path
    )


class PathForms:
    """Reads the odd paths of one list as paths below the image folder `root`.

    The first path of a form decides for all of the list: those with `\\` are Windows' unless such a file is there, and
    those that begin with `/` and are not below `root` start from it if that file is there (Places365's lists are
    written so, and torchvision reads them so). `notes` says which forms were found.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.homes = tuple(dict.fromkeys(os.path.join(home, "") for home in (os.path.abspath(root), real(root))))
        self.windows: bool | None = None
        self.rooted: bool | None = None
        self.folders: dict[str, str | None] = {}
        self.notes: dict[str, None] = {}

    def read(self, path: str) -> tuple[str, str]:
        """Return a path relative to the image folder, and what is wrong with it, "" if nothing is."""
        plain = path
        if "\\" in path and path_fault(path.lstrip("\\")) == "":
            if self.windows is None:
                self.windows = not os.path.lexists(os.path.join(self.root, path))
            if self.windows:
                plain = path.replace("\\", "/")
        if plain.startswith("/") and path_fault(plain.lstrip("/")) == "":
            inside = self.below(plain)
            if inside is None:
                return path, path_fault(path) + self.elsewhere(plain)
            plain = inside
        fault = path_fault(plain)
        if fault:
            return path, path_fault(path) or fault
        if "\\" in path and plain != path:
            self.notes["paths with \\ are read with /"] = None
        return plain, ""

    def below(self, path: str) -> str | None:
        """Return an absolute path as one relative to the image folder; None where it is not below it."""
        for home in self.homes:
            if path.startswith(home):
                self.notes[f"absolute paths lie below {self.root}"] = None
                return path[len(home) :]
        folder, name = os.path.split(path)
        if folder not in self.folders:  # a folder's links are resolved once
            place = os.path.join(real(Path(folder)), "")
            self.folders[folder] = place[len(self.homes[-1]) :] if place.startswith(self.homes[-1]) else None
        inside = self.folders[folder]
        if inside is not None:
            self.notes[f"absolute paths lie below {self.root}, links followed"] = None
            return inside + name
        if self.rooted is None:
            self.rooted = os.path.isfile(os.path.join(self.root, path.lstrip("/")))
        if self.rooted:
            self.notes[f"paths that begin with / start from {self.root}, as those of Places365 do"] = None
            return path.lstrip("/")
        return None

    def elsewhere(self, path: str) -> str:
        """Return in words where the end of an absolute path, perhaps of another machine, is below the image folder."""
        parts = path.split("/")
        for cut in range(1, min(len(parts), 20)):
            if os.path.isfile(os.path.join(self.root, *parts[cut:])):
                rest = "/".join(parts[cut:])
                return f"; below {self.root} it is there as '{shown(rest)}': cut '{shown(path[: -len(rest)])}' off"
        return ""


def real(path: Path) -> str:
    """Return a path with its links resolved; as it is where it cannot be followed."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return os.path.abspath(path)


def there(root: Path, paths: list[str]) -> bool:
    """Tell whether all paths are files below `root`; one that no system can hold is none."""
    try:
        return all(os.path.isfile(os.path.join(root, path)) for path in paths)
    except ValueError:
        return False


def doubled_prefix(root: Path, paths: list[str]) -> str:
    """Return the end of `root` that paths repeat ("flowers/" of `flowers/train/a.jpg`), "" where the files are there
    as they are written or are not there without it either."""
    if any(there(root, [path]) for path in paths):
        return ""
    parts = Path(os.path.abspath(root)).parts[1:]
    for count in range(1, len(parts) + 1):
        prefix = "".join(f"{part}/" for part in parts[-count:])
        if all(path.startswith(prefix) for path in paths) and there(root, [path[len(prefix) :] for path in paths]):
            return prefix
    return ""


def told_apart(root: Path, paths: list[str]) -> str:
    """Return in words how files are there that are not as paths of a list name them; "" where nothing is known.

    All of the `paths`, a few of a list, must be missing as they are and be there in the one other form.
    """
    if not paths or any(os.path.lexists(os.path.join(root, path)) for path in paths):
        return ""
    for form, advice in other_forms(root):
        changed = [form(path) for path in paths]
        if changed != paths and there(root, changed):
            first, other = (shown(words[0]) for words in (paths, changed))
            return f"'{first}' is not below {root}, but '{other}' is: {advice}"
    return ""


def other_forms(root: Path) -> Iterator[tuple[Callable[[str], str], str]]:
    """Yield other ways to write a path, and what to do where the files are there so."""
    for suffix in SUFFIXES:
        yield partial(placed, end=suffix), f"add --image_suffix {suffix}"
    try:
        with os.scandir(root) as entries:
            inside = [entry.name for entry in itertools.islice(entries, FOLDERS) if entry.is_dir()]
    except OSError:
        inside = []
    for folder in sorted(inside):
        advice = f"name {root / folder} with --image_root, or write {folder}/ before the paths"
        for suffix in ("", *SUFFIXES):
            more = f", and add --image_suffix {suffix}" if suffix else ""
            yield partial(placed, start=f"{folder}/", end=suffix), f"{advice}{more}"
    advice = "write the list so, or place the images as it says"
    for count in range(1, 6):
        yield partial(without_first, count=count), advice
    yield without_folder, f"{advice} (a folder for each class)"
    for suffix in SUFFIXES:
        yield partial(with_ending, end=suffix), advice
    yield str.lower, advice


def placed(path: str, start: str = "", end: str = "") -> str:
    """Return a path with something before and behind it."""
    return f"{start}{path}{end}"


def without_first(path: str, count: int) -> str:
    """Return a path without its first folders."""
    return "/".join(path.split("/")[count:]) or path


def without_folder(path: str) -> str:
    """Return a path without the folder that its file is in, as validation images often lie."""
    parts = path.split("/")
    return "/".join([*parts[:-2], parts[-1]])


def with_ending(path: str, end: str) -> str:
    """Return a path with another ending."""
    return os.path.splitext(path)[0] + end
