"""A share of the training rows of anyone's features as held-out rows (`--holdout` beside `--features`)."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from datasets.features import FileSplit
from datasets.long_tail import split_holdout
from utils.errors import UserError


def hold_out(content: dict[str, Any], share: float, seed: int) -> dict[str, Any]:
    """Return the content of a file of features with `share` of the training rows of each class as held-out rows.

    They are drawn by `seed`, as images are (`datasets.long_tail.split_holdout`): of two rows or more at least one is
    held out and one kept. Raises UserError for a file with held-out rows of its own, and where no class has two rows.
    """
    tensors, config = dict(content["features"]), content["config"]
    if "holdout_labels" in tensors:
        raise UserError("--holdout: the file has held-out rows of its own; leave --holdout out")
    kept, out = split_holdout(tensors["train_labels"].numpy(), share, seed)
    if len(out) == 0:
        raise UserError(f"--holdout {share:g}: no class has two training rows, so none can be held out")
    before = content["data"]
    train, holdout = before.train.take(kept), before.train.take(out)
    for name, split in (("train", train), ("holdout", holdout)):
        stays = isinstance(split, FileSplit)
        arrays = {"labels": split.labels, "ids": split.ids, **({} if stays else {"features": split.images[:, 0]})}
        tensors |= {f"{name}_{part}": torch.from_numpy(array) for part, array in arrays.items()}
    counts = np.bincount(train.labels, minlength=before.num_classes)
    data = replace(before, train=train, holdout=holdout, class_counts=counts)
    settings = {**config["settings"], "holdout": share}
    record = {"settings": settings, "subset": data.subset, "class_counts": data.class_counts.tolist()}
    return {**content, "features": tensors, "data": data, "config": {**config, **record}}


def is_held_out(content: dict[str, Any]) -> bool:
    """Tell whether a share of the content of a file of features has been held out."""
    return bool(content["config"]["settings"].get("holdout"))
