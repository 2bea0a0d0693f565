"""A share of the training rows of anyone's features as held-out rows (`--holdout` beside `--features`)."""

from typing import Any

from datasets.features import KINDS, features_data
from datasets.long_tail import split_holdout
from utils.errors import UserError

PARTS = ("features", *KINDS[1:])


def hold_out(content: dict[str, Any], share: float, seed: int) -> dict[str, Any]:
    """Return the content of a file of features with `share` of the training rows of each class as held-out rows.

    They are drawn by `seed`, as images are (`datasets.long_tail.split_holdout`): of two rows or more at least one is
    held out and one kept. Raises UserError for a file with held-out rows of its own, and where no class has two rows.
    """
    tensors, config = dict(content["features"]), content["config"]
    if "holdout_features" in tensors:
        raise UserError("--holdout: the file has held-out rows of its own; leave --holdout out")
    kept, out = split_holdout(tensors["train_labels"].numpy(), share, seed)
    if len(out) == 0:
        raise UserError(f"--holdout {share:g}: no class has two training rows, so none can be held out")
    for part in PARTS:
        rows = tensors[f"train_{part}"]
        tensors |= {f"train_{part}": rows[kept], f"holdout_{part}": rows[out]}
    data = features_data(
        config["settings"]["dataset"], tensors, content["class_names"], content["augmentation"]["mirror"]
    )
    settings = {**config["settings"], "holdout": share}
    record = {"settings": settings, "subset": data.subset, "class_counts": data.class_counts.tolist()}
    return {**content, "features": tensors, "config": {**config, **record}}


def is_held_out(content: dict[str, Any]) -> bool:
    """Tell whether a share of the content of a file of features has been held out."""
    return bool(content["config"]["settings"].get("holdout"))
