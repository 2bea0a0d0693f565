"""What a run has written, read back and made comparable: weights bit for bit, clocks aside."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from utils.files import LOCK, read_json

CLOCKS = {"seconds", "evaluation_seconds", "train_seconds", "images_per_second"}
# Of files whose content holds clocks (rows and features depend on such a checkpoint), and of the code while somebody
# works on it.
OF_CHECKPOINTS = {"sha256", "stage1_sha256", "backbone", "depends", "checkpoint"}
NOT_COMPARED = CLOCKS | OF_CHECKPOINTS | {"resumed", "parts", "git_revision", "command", "resume"}


def content(path: Path) -> Any:
    """Return what a file holds, clocks aside; whatever is damaged raises."""
    if path.suffix == ".pth":
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return plain(read_json(path))
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if is_not_compared(str(name))]).to_csv()
    if path.suffix == ".npy":
        return plain(torch.from_numpy(np.load(path, allow_pickle=False)))
    if path.suffix == ".npz":  # hashes of files, with times and inodes that a copy has anew
        with np.load(path, allow_pickle=False) as opened:
            return [opened[name].tolist() for name in ("paths", "digests")]
    if path.suffix == ".safetensors":
        return plain(load_file(path))
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            return image.size
    return bool(path.read_text().strip())  # Markdown, which has seconds in its cells


def is_not_compared(name: str) -> bool:
    return name in NOT_COMPARED or "seconds" in name or ("sha256" in name and name.startswith(("stage1", "splits")))


def plain(value: Any) -> Any:
    """Return nested values without what is set aside, tensors as type, shape and hash of their bytes."""
    if isinstance(value, Tensor):
        data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not is_not_compared(str(key))}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def contents(folder: Path) -> dict[str, Any]:
    """Return the content of every file that runs and tables have written, by a name without hashes.

    Raises where one is damaged. Temporary files and locks are no data.
    """
    found = {}
    for top in ("runs", "results"):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and path.name != LOCK and not path.name.endswith(".tmp"):
                found[re.sub(r"(?<=[/_])([0-9a-f]{16}|[0-9a-f]{32})(?=[/.])", "*", str(path.relative_to(folder)))] = (
                    content(path)
                )
    return found


# Nats by which the last epoch's loss may differ where processes came or went: they sum in another order.
NEAR = 0.1


def is_continued(found: dict[str, Any], reference: dict[str, Any], epochs: int) -> bool:
    """Tell whether a run whose processes became more or fewer after `epochs` epochs is the reference until then, bit
    for bit, and near it afterwards: as many epochs, the same files, and nearly the loss."""
    if found.keys() != reference.keys():
        return False
    [name] = [name for name in reference if name.endswith("log.csv")]
    mine, its = found[name].splitlines(), reference[name].splitlines()
    last = [pd.read_csv(io.StringIO(text))["loss"].iloc[-1] for text in (found[name], reference[name])]
    return len(mine) == len(its) and mine[: 1 + epochs] == its[: 1 + epochs] and bool(abs(last[0] - last[1]) < NEAR)


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
