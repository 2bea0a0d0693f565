"""What a list says, row by row, whatever its form: paths below the image folder, and labels as they are written."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.on_disk.listed_split import ListedSplit, pack
from datasets.on_disk.paths import SAMPLE, PathForms, doubled_prefix, is_odd, told_apart
from utils.errors import UserError
from utils.text import shown

Row = tuple[int, str, str]  # its number in the list, path, label


@dataclass(frozen=True)
class Listing:
    """A list: `images`, whose labels are positions in `words`, the labels as they are written.

    `first` (one for each of `words`) are the numbers of the rows that write it first, `place` says where a row is.
    `order` are the class names in the order of the classes where the list gives one. `notes` say how it was read.
    """

    path: Path
    images: ListedSplit
    words: list[str]
    first: list[int]
    place: Callable[[int], str]
    order: list[str] | None = None
    notes: tuple[str, ...] = ()

    def where(self, code: int) -> str:
        """Return the place that first writes the label `words[code]`."""
        return self.place(self.first[code])

    def counts(self) -> np.ndarray:
        """Return the images (len(words),) of each label."""
        return np.bincount(self.images.labels, minlength=len(self.words))

    def without(self, codes: Sequence[int], note: str) -> "Listing":
        """Return the list without the images of some labels, given by their positions in `words`, and a note of it."""
        kept = np.setdiff1d(np.arange(len(self.words)), codes)
        images = self.images.take(np.flatnonzero(np.isin(self.images.labels, kept)))
        return replace(
            self,
            images=replace(images, labels=np.searchsorted(kept, images.labels)),
            words=[self.words[code] for code in kept],
            first=[self.first[code] for code in kept],
            notes=(*self.notes, note),
        )


@dataclass(frozen=True)
class Source:
    """Where rows come from: the list, the folder that paths start from, the ending that they lack, the words for a
    row's place."""

    path: Path
    root: Path
    suffix: str
    place: Callable[[int], str]


def in_lines(path: Path) -> Callable[[int], str]:
    """Return what says in words where line n of a list is."""
    return lambda number: f"{path}, line {number}"


def collect(source: Source, rows: Iterable[Row]) -> Listing:
    """Return the rows of a list, packed; raises UserError for a path that leaves the folder, and where there are none.

    Half a million rows pass here: labels are numbered as they first come, and only odd paths are looked at twice.
    """
    paths: list[bytes] = []
    labels: list[int] = []
    codes: dict[str, int] = {}
    first: list[int] = []
    forms = PathForms(source.root)
    suffix = source.suffix.lower()
    for number, path, word in rows:
        if is_odd(path):
            path, fault = forms.read(path)
            if fault:
                raise UserError(f"{source.place(number)}: {fault}")
        if suffix and not path.lower().endswith(suffix):
            path += source.suffix
        code = codes.get(word)
        if code is None:
            code = codes[word] = len(first)
            first.append(number)
        try:
            paths.append(os.fsencode(path))
        except UnicodeEncodeError as error:  # JSON can hold half a character
            raise UserError(f"{source.place(number)}: the path '{shown(path)}' cannot be the name of a file") from error
        labels.append(code)
    if not paths:
        raise UserError(f"the list {source.path} names no images")
    listing = Listing(source.path, pack(source.root, paths, labels), list(codes), first, source.place)
    return settle_paths(replace(listing, notes=tuple(f"{source.path}: {note}" for note in forms.notes)))


def settle_paths(listing: Listing) -> Listing:
    """Return a list whose paths do not repeat the end of the image folder.

    Raises UserError where its images are not there as it names them, but are in another form. A few paths tell.
    """
    images = listing.images
    rows = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int))
    sample = [os.fsdecode(path) for path in images.images[rows].tolist()]
    prefix = doubled_prefix(images.root, sample)
    start = os.fsencode(prefix)
    if prefix and all(path.startswith(start) for path in images.images.tolist()):
        cut = np.array([path[len(start) :] for path in images.images.tolist()], dtype=np.bytes_)
        note = f"{listing.path}: '{prefix}' before its paths is the end of {images.root}, and left out"
        return replace(listing, images=replace(images, images=cut), notes=(*listing.notes, note))
    fault = told_apart(images.root, sample)
    if fault:
        raise UserError(f"{listing.path}: {fault}")
    return listing
