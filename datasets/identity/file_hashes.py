"""The sha256 of many files, each read once: one file keeps them, with what a file system says of a changed file.

A kept hash holds as long as path, size, time of change (of the content and of the entry, in ns) and inode are the same.
So half a million files cost a look at each the second time, and no reading.
"""

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from datasets.identity.early_look import EarlyLook, available_cores
from datasets.identity.kept_hashes import DIGEST, NOTHING, find_places, kept_file, read_kept, save
from datasets.identity.states import CHUNK, NO_FILE, STATE, THREADS, look_at_all, state_of
from datasets.on_disk.listed_split import ListedSplit
from utils.errors import UserError
from utils.progress import show_progress
from utils.text import shown

SLOW_READ = 100e-6  # seconds a file takes where many at once pay; more threads than cores only get in each other's way
FAST_THREADS = 4  # of a fast disk: Python itself is what takes longest then
SAVE_SECONDS = 30.0  # what a kill may lose
WORTH_SECONDS = 1.0  # what takes less is done again
SMALL = 2**20  # bytes that a thread may hold: a buffer for larger ones costs more than a small file
TRIES = 5  # of reading a file that is being written
ABSENT = bytes(DIGEST)  # the hash of what is no readable file: training says what is wrong with it


def file_digests(split: ListedSplit, folder: Path | None = None, early: EarlyLook | None = None) -> np.ndarray:
    """Return the sha256 (N, 32) uint8 of a split's files, zeros where there is no readable file.

    Hashes are kept in `folder` (None: nowhere), in a file for each folder of images: those that took `WORTH_SECONDS`
    or more, and on the way every `SAVE_SECONDS`. An `early` look at them saves another. A file that changes while it is
    read is read again. Raises UserError for one that never stops changing.
    """
    place = None if folder is None else kept_file(folder, split.root)
    if early is not None and early.place != place:
        early = None
    kept = early.kept if early is not None else NOTHING if place is None else read_kept(place)
    places = find_places(kept, split.images)
    states = look_at_files(split, None if early is None else early.states(), places)
    digests = np.zeros((len(split), DIGEST), dtype=np.uint8)
    same = np.flatnonzero(places >= 0)
    same = same[(kept.states[places[same]] == states[same]).all(axis=1)]
    digests[same] = kept.digests[places[same]]
    absent = states[:, 0] < 0
    digests[absent] = 0
    todo = np.flatnonzero(~digests.any(axis=1) & ~absent)
    if len(todo) == 0:
        return digests
    started = saved = time.monotonic()
    for rows, found, after in hash_chunks(split, todo):
        digests[rows], states[rows] = found, after
        if place is not None and time.monotonic() - saved > SAVE_SECONDS:
            save(place, kept, split.images, states, digests)
            saved = time.monotonic()
    if place is not None and time.monotonic() - started >= WORTH_SECONDS:
        save(place, kept, split.images, states, digests)
    return digests


def look_at_files(split: ListedSplit, early: np.ndarray | None, places: np.ndarray) -> np.ndarray:
    """Return what `look_at` says of each file of a split (N, 4) int64, from an early look (M, 4) where there was one.

    `places` (N,) is where each file is in it, -1 where it is not.
    """
    states = np.empty((len(split), STATE), dtype=np.int64)
    rows = np.arange(len(split))
    if early is not None:
        states[places >= 0] = early[places[places >= 0]]
        rows = np.flatnonzero(places < 0)
    root = os.path.join(os.fsencode(split.root), b"")
    paths = [root + path for path in split.images[rows].tolist()]
    states[rows] = np.array(look_at_all(paths), dtype=np.int64).reshape(-1, STATE)
    return states


def hash_chunks(split: ListedSplit, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (rows, their sha256, what was said of the files as they were read), a part at a time, as it is done."""
    root = os.path.join(os.fsencode(split.root), b"")

    def work(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = [hash_file(root + path) for path in split.images[part].tolist()]
        digests = np.frombuffer(b"".join(digest for digest, _ in found), np.uint8).reshape(-1, DIGEST)
        return part, digests, np.array([state for _, state in found], dtype=np.int64).reshape(-1, STATE)

    parts = np.array_split(rows, -(-len(rows) // CHUNK))
    started = time.perf_counter()
    yield work(parts[0])
    fast = (time.perf_counter() - started) / len(parts[0]) < SLOW_READ
    threads = min(THREADS, *((FAST_THREADS, available_cores()) if fast else ()), max(len(parts) - 1, 1))
    with ThreadPool(threads) as pool:
        yield from show_progress(pool.imap(work, parts[1:]), "hashing the images", len(parts) - 1)


def hash_file(path: bytes) -> tuple[bytes, tuple[int, int, int, int]]:
    """Return the sha256 of a file and its state, which was the same before and after it was read."""
    for _ in range(TRIES):
        try:
            opened = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            return ABSENT, NO_FILE
        try:
            before = os.fstat(opened)
            if not stat.S_ISREG(before.st_mode):
                return ABSENT, NO_FILE
            digest = hash_opened(opened, before.st_size)
            after = os.fstat(opened)
        except OSError:
            return ABSENT, NO_FILE
        finally:
            os.close(opened)
        if state_of(before) == state_of(after):
            return digest, state_of(after)
    raise UserError(f"{shown(os.fsdecode(path))} changes while it is read; start again when its writer is done")


def hash_opened(opened: int, size: int) -> bytes:
    """Return the sha256 of an opened file of `size` bytes: of a small one, as images are, from one read."""
    beginning = os.read(opened, size + 1) if size <= SMALL else b""
    if beginning and len(beginning) == size:
        return hashlib.sha256(beginning).digest()
    os.lseek(opened, 0, os.SEEK_SET)
    with open(opened, "rb", buffering=0, closefd=False) as file:
        return hashlib.file_digest(file, "sha256").digest()
