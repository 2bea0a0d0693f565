"""What features depend on. Their files are named by it, and it stands beside them in words."""

import contextlib
import hashlib
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch

from datasets.identity.content import CONTENT
from datasets.long_tail import LongTailedData
from datasets.on_disk.listed_split import ListedSplit
from models.network import Network
from runs.checkpoint import CLASSIFIER
from runs.dependencies import differences
from runs.run_record import dependencies
from runs.session import LoadedModel
from utils.distributed import from_main, is_main
from utils.errors import UserError
from utils.files import make_folder, read_json, write_json
from utils.text import tell

STAT_THREADS = 16  # a network disk answers many at once
FORMAT = 1  # of kept features: raise it when a change of the code changes their numbers
COUNTER = "num_batches_tracked"  # of a batch norm: no feature depends on it


def backbone_sha256(model: Network) -> str:
    """Return the sha256 over names, shapes and numbers of everything before the classifier that features depend on.

    So a stage 2 that leaves the backbone alone shares its features with its stage 1, whose file is another.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith(CLASSIFIER) and not name.endswith(COUNTER):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def split_dependencies(loaded: LoadedModel, backbone: str) -> dict[str, dict[str, Any]]:
    """Return what the features of each split depend on: network and weights (the sha256 `backbone`), preparation, and
    which image stands in which row. Labels and other splits have no part in it."""
    depends = dependencies(loaded)
    for name in ("checkpoint", "identity", "class_names"):
        del depends[name]
    settings = loaded.settings
    network = {"format": FORMAT, "backbone": backbone, "network": f"{settings.network} {settings.stem}"}
    return {name: {**network, **depends, "rows": rows} for name, rows in row_dependencies(loaded.data).items()}


def row_dependencies(data: LongTailedData) -> dict[str, dict[str, Any]]:
    """Return which image stands in which row of each split.

    Where images on disk are known by name alone, size and time of change count too, so that exchanged ones are noticed.
    """
    assert data.identity is not None, "images that were loaded are known"
    identity, found = data.identity.record, {}
    for name, split in (("train", data.train), ("holdout", data.holdout), ("test", data.test)):
        rows = {"how": identity["how"], "of": identity["of"], "rows_sha256": identity[name]["rows_sha256"]}
        if isinstance(split, ListedSplit) and identity["how"] != CONTENT:
            rows["files"] = from_main(files_sha256(split) if is_main() else "")
        found[name] = rows
    return found


def note_dependencies(path: Path, name: str, depends: dict[str, Any]) -> None:
    """Write beside features that are about to be computed what they depend on; say what changed since others were."""
    before: list[list[str]] = []
    for file in path.parent.glob(f"{name}_????????????????.json") if path.parent.is_dir() else ():
        with contextlib.suppress(UserError):  # what cannot be read only explains
            before.append(differences({"format": 0, **read_json(file)}, depends))
    closest = min(before, key=len, default=[])
    if closest:  # else another process has just written the same
        tell(f"features of {name}: computed anew, since these are of {', '.join(closest)}")
    make_folder(path.parent)
    write_json(path.with_suffix(".json"), depends)


def files_sha256(split: ListedSplit) -> str:
    """Return the sha256 over path, size and time of change of a split's files; of a missing one over its absence."""

    def state(row: int) -> str:
        try:
            status = os.stat(split.path(row))
        except OSError:
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns}"

    digest = hashlib.sha256(os.fsencode(split.root.resolve()))
    with ThreadPool(STAT_THREADS) as pool:
        for row, found in enumerate(pool.imap(state, range(len(split)), chunksize=256)):
            digest.update(b"%d %s %s\n" % (row, bytes(split.images[row]), found.encode()))
    return digest.hexdigest()
