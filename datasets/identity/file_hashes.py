"""The sha256 of many files, each read once: one file keeps them, with what a file system says of a changed file.

A kept hash holds as long as path, size, time of change (of the content and of the entry, in ns) and inode are the same.
So half a million files cost a look at each the second time, and no reading.
"""

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from datasets.on_disk.listed_split import ListedSplit
from utils.errors import UserError
from utils.files import make_folder, write_atomically
from utils.progress import show_progress
from utils.text import tell

DIGEST = 32  # bytes of a sha256
THREADS = 16  # a network disk answers many at once
SLOW_DISK = 20e-6  # seconds a look at a file takes where many at once pay
CHUNK = 512  # files that a thread is given at once
SAVE_SECONDS = 30.0  # what a kill may lose
WORTH_SECONDS = 1.0  # what takes less is done again
UNSETTLED_NS = 2 * 10**9  # a file that changed just now may change again within one tick of its clock
TRIES = 5  # of reading a file that is being written
ABSENT = bytes(DIGEST)  # the hash of what is no readable file: training says what is wrong with it
STATE = 4  # size, mtime_ns, ctime_ns, inode
NO_FILE = (-1, 0, 0, 0)  # the state of what is no plain file, or not there


@dataclass(frozen=True)
class Kept:
    """Hashes from earlier: `paths` (M,) bytes, what `look_at` said of them (M, 4), and their sha256 (M, 32) uint8."""

    paths: np.ndarray
    states: np.ndarray
    digests: np.ndarray


NOTHING = Kept(np.empty(0, "S1"), np.empty((0, STATE), np.int64), np.empty((0, DIGEST), np.uint8))


def file_digests(
    split: ListedSplit,
    folder: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    worth_seconds: float = WORTH_SECONDS,
) -> np.ndarray:
    """Return the sha256 (N, 32) uint8 of a split's files, zeros where there is no readable file.

    Hashes are kept in `folder` (None: nowhere), in a file for each folder of images: those that took `worth_seconds` or
    more, and on the way every `save_seconds`. A file that changes while it is read is read again. Raises UserError for
    one that never stops changing.
    """
    place = None if folder is None else kept_file(folder, split.root)
    kept = NOTHING if place is None else read_kept(place)
    states = look_at_all(split)
    digests = find_kept(kept, split.images, states)
    absent = states[:, 0] < 0
    digests[absent] = 0
    todo = np.flatnonzero(~digests.any(axis=1) & ~absent)
    if len(todo) == 0:
        return digests
    started = saved = time.monotonic()
    for rows, found, after in hash_chunks(split, todo):
        digests[rows], states[rows] = found, after
        if place is not None and time.monotonic() - saved > save_seconds:
            save(place, kept, split.images, states, digests)
            saved = time.monotonic()
    if place is not None and time.monotonic() - started >= worth_seconds:
        save(place, kept, split.images, states, digests)
    return digests


def kept_file(folder: Path, root: Path) -> Path:
    """Return the file of the hashes of the images below `root`."""
    return folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.npz"


def look_at(paths: Sequence[bytes]) -> list[int]:
    """Return size, times of change and inode of each file, one behind the other; -1 as the size of no plain file."""
    found: list[int] = []
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            found += NO_FILE
            continue
        found += state_of(status) if stat.S_ISREG(status.st_mode) else NO_FILE
    return found


def state_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return what tells a changed file from an unchanged one."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)


def look_at_all(split: ListedSplit) -> np.ndarray:
    """Return what `look_at` says of each file of a split (N, 4) int64: from many threads where the disk is slow."""
    root = os.path.join(os.fsencode(split.root), b"")
    paths = [root + path for path in split.images.tolist()]
    started = time.perf_counter()
    found = look_at(paths[:CHUNK])
    slow = (time.perf_counter() - started) / max(len(paths[:CHUNK]), 1) > SLOW_DISK
    if slow and len(paths) > CHUNK:
        parts = [paths[first : first + CHUNK] for first in range(CHUNK, len(paths), CHUNK)]
        with ThreadPool(THREADS) as pool:
            for part in pool.imap(look_at, parts):
                found += part
    else:
        found += look_at(paths[CHUNK:])
    return np.array(found, dtype=np.int64).reshape(-1, STATE)


def find_kept(kept: Kept, paths: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return the kept hashes (N, 32) of unchanged files, zeros for all others."""
    count = len(paths)
    digests = np.zeros((count, DIGEST), dtype=np.uint8)
    if len(kept.paths) == 0 or count == 0:
        return digests
    # As a rule the same files are asked for in the same order: no search then.
    if len(kept.paths) >= count and np.array_equal(kept.paths[:count], paths):
        places = np.arange(count)
    else:
        order = np.argsort(kept.paths, kind="stable")
        places = order[np.searchsorted(kept.paths, paths, sorter=order).clip(max=len(order) - 1)]
    same = (kept.states[places] == states).all(axis=1) & (kept.paths[places] == paths)
    digests[same] = kept.digests[places[same]]
    return digests


def hash_chunks(split: ListedSplit, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (rows, their sha256, what was said of the files as they were read), a part at a time, as it is done."""

    def work(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = [hash_file(split.path(row)) for row in part]
        digests = np.frombuffer(b"".join(digest for digest, _ in found), np.uint8).reshape(-1, DIGEST)
        return part, digests, np.array([state for _, state in found], dtype=np.int64).reshape(-1, STATE)

    parts = np.array_split(rows, -(-len(rows) // CHUNK))
    with ThreadPool(min(THREADS, len(parts))) as pool:
        yield from show_progress(pool.imap(work, parts), "hashing the images", len(parts))


def hash_file(path: str) -> tuple[bytes, tuple[int, int, int, int]]:
    """Return the sha256 of a file and its state, which was the same before and after it was read."""
    for _ in range(TRIES):
        try:
            opened = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            return ABSENT, NO_FILE
        with open(opened, "rb", buffering=0) as file:
            before = os.fstat(opened)
            if not stat.S_ISREG(before.st_mode):
                return ABSENT, NO_FILE
            try:
                digest = hashlib.file_digest(file, "sha256").digest()
            except OSError:
                return ABSENT, NO_FILE
            after = os.fstat(opened)
        if state_of(before) == state_of(after):
            return digest, state_of(after)
    raise UserError(f"{path} changes while it is read; start again when its writer is done")


def read_kept(place: Path) -> Kept:
    """Return the hashes in a file, none where it is missing or damaged: then they are computed again."""
    try:
        with np.load(place, allow_pickle=False) as opened:
            kept = Kept(opened["paths"], opened["states"], opened["digests"])
    except FileNotFoundError:
        return NOTHING
    except Exception:  # a damaged archive can raise nearly anything
        tell(f"{place} is damaged: its images are hashed again", file=sys.stderr)
        return NOTHING
    count = len(kept.paths)
    fits = kept.states.shape == (count, STATE) and kept.digests.shape == (count, DIGEST)
    return kept if fits and kept.paths.dtype.kind == "S" and kept.digests.dtype == np.uint8 else NOTHING


def save(place: Path, kept: Kept, paths: np.ndarray, states: np.ndarray, digests: np.ndarray) -> None:
    """Write all hashes that are known and settled; a folder that cannot be written costs the next command its time."""
    settled = states[:, 1:3].max(axis=1) < time.time_ns() - UNSETTLED_NS
    known = digests.any(axis=1) & settled
    others = ~np.isin(kept.paths, paths) if len(kept.paths) else np.empty(0, bool)
    arrays = {
        "paths": np.concatenate([paths[known], kept.paths[others]]),
        "states": np.concatenate([states[known], kept.states[others]]),
        "digests": np.concatenate([digests[known], kept.digests[others]]),
    }
    if not len(arrays["paths"]):
        return
    try:
        make_folder(place.parent)
        write_atomically(place, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    except UserError as error:
        tell(f"warning: the hashes of the images are not kept: {error}", file=sys.stderr)
