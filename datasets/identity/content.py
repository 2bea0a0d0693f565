"""The identity of a data set: what each split holds, in which order, and which class is which.

Of images on disk the content is that of their files or, `--identity names`, their relative paths alone, which is
weaker: other pictures under the same names go unnoticed. Of images in memory it is their pixels, of features their
numbers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.identity.early_look import EarlyLook
from datasets.identity.file_hashes import file_digests
from datasets.identity.kept_records import kept_or_made
from datasets.identity.overlaps import copies, overlaps
from datasets.long_tail import DIGEST, Identity, LongTailedData, Split, members_by_class, subset_identity
from datasets.on_disk.listed_split import ListedSplit, join, path_identity

CONTENT, NAMES = "content", "names"
HOW = (CONTENT, NAMES)
SPLITS = ("train", "holdout", "test")
CLASS_DIGITS = 16  # hexadecimal digits of a class's identity: 8,142 classes are to fit into a config.json


def with_identity(
    data: LongTailedData,
    how: str = CONTENT,
    folder: Path | None = None,
    *,
    held_out_share: bool = False,
    early: EarlyLook | None = None,
) -> LongTailedData:
    """Return a data set with its `identity`; the hashes of files, and what follows from many, are kept in `folder`.

    `held_out_share` says that the held-out images are a share of the training images, not a list of their own. See
    `identity_record` for what is recorded, `datasets.identity.overlaps` for the warnings. An `early` look at the files
    saves another (`datasets.identity.early_look`).
    """
    splits = [data.train, data.holdout, data.test]
    listed = [split for split in splits if isinstance(split, ListedSplit)]
    if not listed:
        digests = np.concatenate([split.digests for split in splits])
        record = identity_record(splits, parts_of(digests, splits), data.num_classes, held_out_share)
        of, what = ("features", "row") if data.train.images.ndim == 3 else ("pixels", "image")
        return replace(data, identity=Identity({"how": CONTENT, "of": of, **record}, tuple(copies(splits, what))))
    joined = join(listed)
    found = file_digests(joined, folder, early) if how == CONTENT else None

    def make() -> Identity:
        parts = parts_of(name_digests(joined) if found is None else found, splits)
        record = identity_record(splits, parts, data.num_classes, held_out_share)
        return Identity({"how": how, "of": "files", **record}, tuple(overlaps(listed, parts, how.removesuffix("s"))))

    words = [how, data.num_classes, held_out_share, [len(split) for split in splits]]
    arrays = [joined.images, joined.labels, joined.ids, *([] if found is None else [found])]
    return replace(data, identity=kept_or_made(folder, words, arrays, make))


def parts_of(digests: np.ndarray, splits: Sequence[Split]) -> list[np.ndarray]:
    """Return the hashes (n, 32) of each split out of those of all (N, 32)."""
    return np.split(digests, np.cumsum([len(split) for split in splits])[:-1])


def name_digests(split: ListedSplit) -> np.ndarray:
    """Return the sha256 (N, 32) uint8 of the relative paths."""
    found = b"".join(hashlib.sha256(path).digest() for path in split.images.tolist())
    return np.frombuffer(found, np.uint8).reshape(-1, DIGEST)


def identity_record(
    splits: Sequence[Split], digests: Sequence[np.ndarray], num_classes: int, held_out_share: bool = False
) -> dict[str, Any]:
    """Return what is recorded of train, held-out and test images with the sha256 (N, 32) of each.

    Of each split there are the number of images and four sha256: `content_sha256` of the (label, hash) pairs in any
    order, `images_sha256` of the hashes alone, `order_sha256` of (id, label, hash) row by row, and `rows_sha256` of
    (id, hash) row by row, which is what features depend on. `pool_sha256` is the content of all images that training
    could have used, whatever share was held out. `classes` are the identities of each class's training and test images.
    """
    orders = [hash_order(found) for found in digests]
    record: dict[str, Any] = {
        name: split_record(split, found, order)
        for name, split, found, order in zip(SPLITS, splits, digests, orders, strict=True)
    }
    record["pool_sha256"] = record["train"]["content_sha256"]
    if held_out_share and len(splits[1]):
        labels = np.concatenate([split.labels for split in splits[:2]])
        pool = np.concatenate(digests[:2])
        record["pool_sha256"] = content_sha256(labels, pool, hash_order(pool))
    record["classes"] = {
        name: class_digests(splits[part], digests[part], orders[part], num_classes) for name, part in CLASS_PARTS
    }
    return record


CLASS_PARTS = (("train", 0), ("test", 2))


def hash_order(digests: np.ndarray) -> np.ndarray:
    """Return the order (N,) of hashes (N, 32) by their value; half a hash sorts as well as a whole one."""
    keys = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)  # numpy sorts the machine's own numbers faster
    order = np.argsort(keys[:, 0], kind="stable")
    first = keys[order, 0]
    return np.lexsort((keys[:, 1], keys[:, 0])) if (first[1:] == first[:-1]).any() else order


def split_record(split: Split, digests: np.ndarray, order: np.ndarray) -> dict[str, Any]:
    """Return what is recorded of one split with the sha256 (N, 32) of its images and their `hash_order`."""
    rows = as_rows(split.labels, digests)
    ids = split.ids.astype(">i8")
    ordered, by_row = hashlib.sha256(ids.tobytes()), hashlib.sha256(ids.tobytes())
    ordered.update(rows.tobytes())
    by_row.update(np.ascontiguousarray(digests).tobytes())
    return {
        "images": len(split),
        "content_sha256": content_sha256(split.labels, digests, order),
        "images_sha256": hashlib.sha256(digests[order].tobytes()).hexdigest(),
        "order_sha256": ordered.hexdigest(),
        "rows_sha256": by_row.hexdigest(),
    }


def as_rows(labels: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """Return (N, 5) integers of 64 bits: the label and the four parts of the hash."""
    rows = np.empty((len(labels), 5), dtype=">u8")
    rows[:, 0], rows[:, 1:] = labels, np.ascontiguousarray(digests).view(">u8")
    return rows


def content_sha256(labels: np.ndarray, digests: np.ndarray, order: np.ndarray) -> str:
    """Return the sha256 of the (label, hash) pairs sorted by label and, within it, in the `hash_order`."""
    sorted_pairs = order[np.argsort(labels[order], kind="stable")]
    return hashlib.sha256(as_rows(labels[sorted_pairs], digests[sorted_pairs]).tobytes()).hexdigest()


def class_digests(split: Split, digests: np.ndarray, order: np.ndarray, num_classes: int) -> list[str]:
    """Return an identity for each class: of the hashes of its images in their `hash_order`, whatever its number."""
    members = members_by_class(split.labels[order], num_classes)
    return [hashlib.sha256(digests[order[rows]].tobytes()).hexdigest()[:CLASS_DIGITS] for rows in members]


def relabelled(data: LongTailedData, places: Sequence[int], class_names: list[str]) -> LongTailedData:
    """Return a data set whose class k has become class `places[k]` (K,), under the `class_names` of that order.

    Its identity is to be made anew (`with_identity`).
    """
    to = np.asarray(places)
    train, holdout, test = (replace(split, labels=to[split.labels]) for split in (data.train, data.holdout, data.test))
    counts = np.empty_like(data.class_counts)
    counts[to] = data.class_counts
    if isinstance(train, ListedSplit) and isinstance(holdout, ListedSplit):
        subset = path_identity(join([train, holdout]))
    else:
        subset = subset_identity(train, holdout)
    return replace(
        data,
        train=train,
        holdout=holdout,
        test=test,
        class_names=class_names,
        class_counts=counts,
        subset=subset,
        identity=None,
    )
