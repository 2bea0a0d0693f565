"""What training, held-out and test images have in common, found by the hashes that their identity is made of.

Of images on disk it is their files or paths; of images in memory their pixels, of features their numbers. Of a row 8
bytes are sorted, so no content is looked at again.
"""

import os
from collections.abc import Sequence

import numpy as np

from datasets.long_tail import Split, short_keys
from datasets.on_disk.listed_split import ListedSplit, join
from utils.text import counted, shown

NAMES = ("train", "holdout", "test")
# The splits whose images are looked for among those of the splits before them: number and name in words.
LOOKED_FOR = ((1, "held-out"), (2, "test"))


def overlaps(splits: Sequence[ListedSplit], digests: Sequence[np.ndarray], by: str) -> list[str]:
    """Return a line for paths that stand under two labels, and for training images that are test or held-out images
    too, `by` content or by name, with the hashes (n, 32) of either in `digests`.

    Held-out images count as training images where test images are looked for.
    """
    keys = [short_keys(found) for found in digests]
    lines = []
    for words, split, own in (
        ("training", join(splits[:2]), np.concatenate(keys[:2])),
        ("test", splits[2], keys[2]),
    ):
        twice = under_two_labels(split, own)
        if len(twice):
            stand = counted(len(twice), f"{words} image stands", f"{words} images stand")
            lines.append(f"{stand} under two labels (first: {first_names(twice)})")
    for number, words in LOOKED_FOR:
        learned = np.concatenate(keys[:number])
        found = are_among(keys[number], learned)
        if found.any():
            row = int(np.flatnonzero(found)[0])
            images = join(splits[:number]).images
            same = images[np.flatnonzero(learned == keys[number][row])[0]]
            pair = f"{shown(os.fsdecode(splits[number].images[row]))} is {shown(os.fsdecode(same))}"
            lines.append(copies_line(int(found.sum()), words, "image", f"by {by} (first: {pair})"))
    return lines


def copies(splits: Sequence[Split], what: str) -> list[str]:
    """Return a line for test and held-out images, or rows (`what` says which), that are training images too.

    Those that stand under more than one label have a line of their own: rows of zeros are no leak, and say nothing of
    any class.
    """
    lines = []
    for number, words in LOOKED_FOR:
        learned = np.concatenate([split.keys for split in splits[:number]])
        own = splits[number].keys
        found = are_among(own, learned)
        if not found.any():
            continue
        labels = np.concatenate([split.labels for split in splits[:number]])
        unclear = found & are_among(own, of_several_labels(own[found], splits[number].labels[found], learned, labels))
        for rows, end in ((found & ~unclear, ""), (unclear, f": empty {what}s, or wrong labels")):
            if rows.any():
                row = int(np.flatnonzero(rows)[0])
                same = place_of(splits, int(np.flatnonzero(learned == own[row])[0]), what)
                pair = f"(first: {what} {splits[number].ids[row]} of {NAMES[number]} is {same}){end}"
                under = "under more than one label" if end else "by content"
                lines.append(copies_line(int(rows.sum()), words, what, f"{under} {pair}"))
    return lines


def copies_line(count: int, words: str, what: str, end: str) -> str:
    """Return the line for so many images or rows of a split that are training images or rows too."""
    both = (f"{words} {what} is a training {what}", f"{words} {what}s are training {what}s")
    return f"{counted(count, *both)} too, {end}"


def place_of(splits: Sequence[Split], row: int, what: str) -> str:
    """Return in words which image, or row, stands at a position of splits that follow on one another."""
    for split, name in zip(splits, NAMES, strict=True):
        if row < len(split):
            return f"{what} {split.ids[row]} of {name}"
        row -= len(split)
    raise IndexError(row)


def are_among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tell which keys (N,) are among those `known` (M,); 0 is the key of a file that could not be read, and is not."""
    if len(known) == 0:
        return np.zeros(len(keys), bool)
    ordered = np.sort(known)
    places = np.searchsorted(ordered, keys)
    places[places == len(ordered)] = 0
    return (ordered[places] == keys) & (keys != 0)


def of_several_labels(own: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray) -> np.ndarray:
    """Return which keys (n,) have, with `other_labels` of the same keys among `others` (N,), more than one label."""
    same = are_among(others, own)
    keys, every = np.concatenate([own, others[same]]), np.concatenate([labels, other_labels[same]])
    order = np.argsort(keys, kind="stable")
    keys, every = keys[order], every[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    return keys[starts][np.minimum.reduceat(every, starts) != np.maximum.reduceat(every, starts)]


def under_two_labels(split: ListedSplit, keys: np.ndarray) -> np.ndarray:
    """Return the paths that stand under more than one label; only rows with equal keys (N,) can have equal paths."""
    order = np.argsort(keys, kind="stable")
    equal = keys[order][1:] == keys[order][:-1]
    rows = np.unique(np.concatenate([order[1:][equal], order[:-1][equal]]))
    paths, labels = split.images[rows], split.labels[rows]
    order = np.lexsort((labels, paths))
    paths, labels = paths[order], labels[order]
    return np.unique(paths[1:][(paths[1:] == paths[:-1]) & (labels[1:] != labels[:-1])])


def first_names(paths: np.ndarray) -> str:
    """Return the first three of many paths in words."""
    return ", ".join(shown(os.fsdecode(path)) for path in paths[:3].tolist())
