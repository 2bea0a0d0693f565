"""Identities of data sets from earlier, each in a file that is named by all that it was made of.

Of half a million images an identity takes a second, once the hashes of the files are known: sorting and hashing these.
"""

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.long_tail import Identity
from utils.errors import UserError
from utils.files import make_folder, read_json, remove_leftovers, write_text
from utils.text import tell

FORMAT = 2  # of what an identity is made of; another one makes all anew
WORTH_SECONDS = 0.2  # what takes less is done again


def kept_or_made(
    folder: Path | None, words: Sequence[Any], arrays: Sequence[np.ndarray], make: Callable[[], Identity]
) -> Identity:
    """Return the identity that `make` gives, from `folder` where it was made of the same `words` and `arrays` before.

    It is kept where it took a while. A folder that cannot be written costs the next command its time.
    """
    place = None if folder is None else folder / f"{record_key(words, arrays)}.json"
    kept = None if place is None else read_record(place)
    if kept is not None:
        return kept
    started = time.perf_counter()
    made = make()
    if place is not None and time.perf_counter() - started >= WORTH_SECONDS:
        with contextlib.suppress(UserError):  # `file_hashes` has said so, or is not asked
            make_folder(place.parent)
            write_text(place, json.dumps({"sha256": checksum(made), **fields(made)}))
    return made


def record_key(words: Sequence[Any], arrays: Sequence[np.ndarray]) -> str:
    """Return a sha256 over everything that an identity depends on."""
    content = [FORMAT, *words, *([array.dtype.str, array.shape] for array in arrays)]
    digest = hashlib.sha256(json.dumps(content).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def fields(identity: Identity) -> dict[str, Any]:
    return {"record": identity.record, "warnings": list(identity.warnings)}


def checksum(identity: Identity) -> str:
    """Return a sha256 by which a damaged file is noticed."""
    return hashlib.sha256(json.dumps(fields(identity)).encode()).hexdigest()


def read_record(place: Path) -> Identity | None:
    """Return the identity in a file, None where it is missing or damaged: then it is made anew."""
    if not place.is_file():
        return None
    remove_leftovers(place.parent, [place.name])
    try:
        content = read_json(place)
        found = Identity(content["record"], tuple(content["warnings"]))
        if content["sha256"] == checksum(found):
            return found
    except (UserError, KeyError, TypeError):
        pass
    tell(f"{place} is damaged: the identity of the data is made anew", file=sys.stderr)
    return None
