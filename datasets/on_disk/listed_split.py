"""The images of a split that lie on disk: their paths, labels and ids. Nothing is decoded here."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.long_tail import Split, index_sha256


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


def without_rows(split: ListedSplit, rows: Sequence[int]) -> ListedSplit:
    """Return a split without the images at the positions `rows`."""
    return split.take(np.setdiff1d(np.arange(len(split)), rows))


def path_identity(split: ListedSplit) -> dict[str, str]:
    """Return what `subset_identity` does without decoding: the content is sorted "label path" lines, not pixels."""
    content = hashlib.sha256()
    order = np.lexsort((split.images, split.labels))
    for rows in np.array_split(order, len(order) // 65536 + 1):  # never all lines at once
        pairs = zip(split.labels[rows].tolist(), split.images[rows].tolist(), strict=True)
        content.update(b"".join(b"%d %s\n" % pair for pair in pairs))
    return {
        "index_sha256": index_sha256(split.ids),
        "content_sha256": content.hexdigest(),
        "content": "labels and relative paths",
    }
