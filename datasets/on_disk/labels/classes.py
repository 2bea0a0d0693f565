"""From the labels of lists to classes 0..K-1: learned from the training list, applied to the others.

One order: numbers by their value, names as the class folders of `--dataset folder` are sorted, COCO's categories by
their ids. Labels that begin at 0 are the numbers of the classes as they are; without a 0 they are ids, and the smallest
is class 0.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from datasets.on_disk.labels.writing import folded, is_decimal, look_alikes, number_of, runs_of, several_labels
from datasets.on_disk.listed_split import ListedSplit
from datasets.on_disk.rows import Listing
from utils.errors import UserError
from utils.text import counted, shown

# A blank behind the ending of an image, and no ending behind it.
CUT = re.compile(rb"\.(jpe?g|png|webp|bmp|gif|tiff?|ppm|pgm)\s[^.]*$", re.IGNORECASE)
NAMED = 12  # classes that a line names one by one


@dataclass(frozen=True)
class Classes:
    """Which label is which class: `class_of` has a label's key, the number or the name that it is.

    `count` is K, `keys` (K,) are the labels in the order of the classes; both empty where `class_of` is: there a label
    is the number of its class, below `count`. `positions` lets other lists use the numbers of named classes.
    """

    count: int
    class_of: Mapping[int | str, int] = field(default_factory=dict)
    numeric: bool = True
    positions: bool = False
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether labels are the numbers of the classes as they are."""
        return not self.class_of

    def keys(self) -> list[int | str]:
        """Return the labels (K,) in the order of the classes."""
        return list(range(self.count)) if self.plain else list(self.class_of)

    def of(self, word: str) -> int | None:
        """Return the class that a label is, None where it is none."""
        number = number_of(word)
        if self.plain:
            return number if number is not None and 0 <= number < self.count else None
        if self.numeric:
            return None if number is None else self.class_of.get(number)
        found = self.class_of.get(word)
        if found is None and self.positions and number is not None and 0 <= number < self.count:
            return number
        return found

    def apply(self, listing: Listing) -> ListedSplit:
        """Return the images of a list with their classes; a UserError names a label that the training list lacks."""
        classes = self.by_order(listing) or [self.of(word) for word in listing.words]
        for code, label in enumerate(classes):
            if label is None:
                raise UserError(
                    f"{listing.where(code)}: the label '{shown(listing.words[code])}' {self.lacking(listing, code)}"
                )
        numbers = np.array(classes, dtype=np.int64)
        return replace(listing.images, labels=numbers[listing.images.labels])

    def known_part(self, listing: Listing) -> Listing:
        """Return a list without the images whose labels are of classes that the training list lacks, with a note.

        What is no such label stays, and `apply` refuses it: text among numbers, a negative number, another spelling of
        a class. Raises UserError where no image is left.
        """
        if self.plain and listing.order is not None:
            return listing  # its own order says which class is which
        alike = {folded(str(key)) for key in self.class_of}
        counts = listing.counts()
        gone = [code for code, word in enumerate(listing.words) if counts[code] and self.is_other(word, alike)]
        if not gone:
            return listing
        lost = int(counts[gone].sum())
        if lost == len(listing.images):
            raise UserError(f"{listing.path}: no image is of a class that has training images")
        words = [listing.words[code] for code in gone]
        lacking = "of labels that the training list lacks"
        left = counted(lost, f"image {lacking} is", f"images {lacking} are")
        note = f"{listing.path}: {left} left out: {names_line(words)}"
        return listing.without(gone, note)

    def is_other(self, word: str, alike: set[str]) -> bool:
        """Tell whether a label is none of the classes and may be one of others; `alike` are their folded names."""
        if self.of(word) is not None:
            return False
        number = number_of(word)
        if self.plain or self.numeric:
            return number is not None and number >= 0
        return folded(word) not in alike

    def by_order(self, listing: Listing) -> list[int | None]:
        """Return the classes of a COCO list's labels where the classes have no names; nothing of any other list."""
        if not self.plain or listing.order is None:
            return []
        if len(listing.order) != self.count:
            raise UserError(
                f"{listing.path} has {len(listing.order)} categories where {self.count} classes are expected"
            )
        place = {name: label for label, name in enumerate(listing.order)}
        return [place[word] for word in listing.words]

    def lacking(self, listing: Listing, code: int) -> str:
        """Return in words why a label is no class."""
        word = listing.words[code]
        if self.plain:
            return f"is not an integer from 0 to {self.count - 1}{self.way_out(word)}"
        labels = (
            runs_of(key for key in self.class_of if isinstance(key, int)) if self.numeric else names_line(self.keys())
        )
        near = [key for key in self.class_of if folded(str(key)) == folded(word)]
        hint = f"; it has '{shown(str(near[0]))}'" if near else f": it has {labels}"
        return f"is of no image of the training list{hint}{self.way_out(word)}"

    def way_out(self, word: str) -> str:
        """Return in words how images of a label that the training list lacks are left out, where they can be."""
        other = self.is_other(word, {folded(str(key)) for key in self.class_of})
        return "; --drop_empty_classes leaves such images out" if other else ""


def names_line(names: Sequence[int | str]) -> str:
    """Return the first names of classes, with the last one."""
    words = [shown(str(name)) for name in names]
    return ", ".join(words if len(words) <= NAMED else [*words[:5], "...", words[-1]])


def learn_classes(listing: Listing, known: frozenset[str] = frozenset()) -> Classes:
    """Return the classes of a training list; `known` are labels that are told to be the classes.

    Raises UserError, with the place, for labels that are no classes: several of an image, numbers that are negative or
    not whole, names and numbers mixed.
    """
    if listing.order is not None:
        return Classes(
            len(listing.order), {name: label for label, name in enumerate(listing.order)}, numeric=False, positions=True
        )
    numbers = [number_of(word) for word in listing.words]
    if known.issuperset(listing.words) and None in numbers:
        return by_name(listing)
    refuse_several(listing)
    refuse_broken_numbers(listing, numbers)
    values = sorted({number for number in numbers if number is not None})
    if not values:
        return by_name(listing)
    refuse_mixed(listing, numbers)
    if values[0] == 0:
        return Classes(values[-1] + 1)
    return Classes(
        len(values), {number: label for label, number in enumerate(values)}, notes=(ids_note(listing, values),)
    )


def ids_note(listing: Listing, values: list[int]) -> str:
    """Return what is said of labels that are ids: which they are, and which classes they became."""
    gaps = values[-1] - values[0] + 1 - len(values)
    between = f"; {gaps} numbers between them have no image" if gaps else ""
    classes = f"classes 0-{len(values) - 1}, in the order of the numbers"
    return f"{listing.path}: labels {runs_of(values)} are {classes}{between}"


def by_name(listing: Listing) -> Classes:
    """Return the classes of a training list whose labels are names, sorted."""
    refuse_cut_names(listing)
    names = sorted(listing.words)
    notes = [f"{listing.path}: {len(names)} classes, sorted by name: {numbered_line(names)}"]
    alike = look_alikes(names)
    if alike:
        one, other = (shown(name) for name in alike[0])
        more = f" (and {len(alike) - 1} more such pairs)" if len(alike) > 1 else ""
        notes.append(f"warning: {listing.path}: '{one}' and '{other}' are two classes that look alike{more}")
    return Classes(len(names), {name: label for label, name in enumerate(names)}, numeric=False, notes=tuple(notes))


def refuse_cut_names(listing: Listing) -> None:
    """Raise UserError for a path that holds the first words of a label, as `a.jpg sea` does of `a.jpg sea lion`."""
    cut = next((path for path in listing.images.images.tolist() if b" " in path and CUT.search(path)), None)
    if cut is not None:
        path = shown(os.fsdecode(cut))
        raise UserError(
            f"{listing.path}: '{path}' is no name of an image; put a tab between path and label, or use CSV"
        )


def numbered_line(names: list[str]) -> str:
    """Return names with the numbers of their classes, of many the first ones and the last."""
    words = [f"{label} {shown(name)}" for label, name in enumerate(names)]
    return ", ".join(words if len(words) <= NAMED else [*words[:5], "...", words[-1]])


def refuse_several(listing: Listing) -> None:
    """Raise UserError for a label that is several: an image has one class here."""
    words = set(listing.words)
    for code, word in enumerate(listing.words):
        if several_labels(word, words):
            raise UserError(
                f"{listing.where(code)}: '{shown(word)}' is a list of labels, and an image has one class here; write "
                "one label, or leave these images out"
            )


def refuse_broken_numbers(listing: Listing, numbers: list[int | None]) -> None:
    """Raise UserError for a negative label, and for one that is not whole where all are numbers."""
    for code, number in enumerate(numbers):
        if number is not None and number < 0:
            raise UserError(
                f"{listing.where(code)}: the label '{shown(listing.words[code])}' is negative, as those of images "
                "without a label are; leave these images out"
            )
    if all(map(is_decimal, listing.words)) and None in numbers:
        code = numbers.index(None)
        raise UserError(
            f"{listing.where(code)}: the label '{shown(listing.words[code])}' is no whole number, so no class"
        )


def refuse_mixed(listing: Listing, numbers: list[int | None]) -> None:
    """Raise UserError where some labels are numbers and some are not; it names the first of the rarer kind."""
    names = np.array([number is None for number in numbers])
    if not names.any():
        return
    counts = listing.counts()
    named = counts[names].sum() <= counts[~names].sum()
    code = int(np.flatnonzero(names == named)[0])
    kind = "not a number as the others are" if named else "a number where the others are names"
    raise UserError(
        f"{listing.where(code)}: the label '{shown(listing.words[code])}' is {kind}; where both are names, "
        "--class_names FILE lists all of them"
    )
