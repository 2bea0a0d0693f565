"""Hashes of files from earlier, in one file for each folder of images, and what was known of each file then."""

import hashlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.identity.states import STATE
from datasets.long_tail import DIGEST
from utils.errors import UserError
from utils.files import make_folder, remove_leftovers, write_atomically
from utils.text import tell

UNSETTLED_NS = 2 * 10**9  # a file that changed just now may change again within one tick of its clock


@dataclass(frozen=True)
class Kept:
    """Hashes from earlier: `paths` (M,) bytes, what `look_at` said of them (M, 4), and their sha256 (M, 32) uint8."""

    paths: np.ndarray
    states: np.ndarray
    digests: np.ndarray


NOTHING = Kept(np.empty(0, "S1"), np.empty((0, STATE), np.int64), np.empty((0, DIGEST), np.uint8))


def kept_file(folder: Path, root: Path) -> Path:
    """Return the file of the hashes of the images below `root`."""
    return folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.npz"


def read_kept(place: Path) -> Kept:
    """Return the hashes in a file, none where it is missing or damaged: then they are computed again.

    What a killed writer of the file has left goes: where all hashes are known, nobody writes it again.
    """
    remove_leftovers(place.parent, [place.name])
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


def find_places(kept: Kept, paths: np.ndarray) -> np.ndarray:
    """Return where each of the paths (N,) is among the kept ones (N,), -1 where it is not."""
    count = len(paths)
    if len(kept.paths) == 0:
        return np.full(count, -1)
    # As a rule the same files are asked for in the same order: no search then.
    if len(kept.paths) >= count and np.array_equal(kept.paths[:count], paths):
        return np.arange(count)
    order = np.argsort(kept.paths, kind="stable")
    places = order[np.searchsorted(kept.paths, paths, sorter=order).clip(max=len(order) - 1)]
    return np.where(kept.paths[places] == paths, places, -1)


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
