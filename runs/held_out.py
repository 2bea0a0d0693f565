"""What a checkpoint says of its classifier's class prior, and of the images that were held out."""

from collections.abc import Sequence
from typing import Any

import torch

from evaluation.prediction_sets.record import KEY, HeldOut, unpack_held_out
from evaluation.priors.correction import Prior, assumed_prior
from methods.priors import method_of, recipe_prior
from runs.checkpoint import Checkpoint

# How a run gets them, for errors.
HOLD_OUT = "train both stages with --holdout 0.1, or a val folder or list"


def assumed_of(config: dict[str, Any], class_counts: Sequence[int]) -> Prior:
    """Return the prior of the classifier of a run, by its configuration, with its training images (K,) of each class.

    A checkpoint of another code base, whose configuration is empty, counts as plain cross-entropy.
    """
    settings, method = config.get("settings", {}), method_of(config.get("method"), config.get("chosen"))
    loss, sampler = settings.get("loss"), settings.get("sampler")
    if method is None and config.get("stage1"):  # `auto` kept the classifier of stage 1, and what trained it
        loss, sampler = config["stage1"].get("loss", loss), None
    kind = recipe_prior(method, loss, sampler)
    name = f"--method {method}" if method else f"--loss {loss}" if loss else "plain cross-entropy"
    return assumed_prior(kind, torch.tensor(class_counts), name)


def stored_held_out(checkpoint: Checkpoint) -> HeldOut | None:
    """Return what a checkpoint keeps of its held-out images; None where it keeps nothing."""
    record = (checkpoint.content or {}).get(KEY)
    return None if record is None else unpack_held_out(record)
