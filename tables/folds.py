"""Features without held-out rows: the training rows in folds, each held out once from a classifier on the others."""

from dataclasses import replace

import numpy as np
import torch

from engine.choice.folds import fold_numbers
from engine.frozen_features import STAGE2_DRAWS, freeze
from methods.linear_probe import fit_probe
from models.given_features import GivenFeatures
from settings.presets import FEATURES_PRESET
from stages.data import device_images
from tables.rows import TableContext
from utils.text import tell

FOLDS = 3


def fold_contexts(context: TableContext) -> list[TableContext]:
    """Return, for each fold of the training rows of a context on features, the one that has learned from the others.

    Its stage 1 is a linear probe on its own rows, whatever classifier the file has: that may have seen them.
    """
    numbers = fold_numbers(context.data.train.labels, FOLDS, context.command.settings.seed)
    tell(
        f"no held-out rows: the training rows are held out in {FOLDS} folds. That is right where the model that made "
        "the features has not learned from these rows; else put holdout_features and holdout_labels into the file"
    )
    return [one_fold(context, numbers, number) for number in range(FOLDS)]


def one_fold(context: TableContext, numbers: np.ndarray, number: int) -> TableContext:
    """Return the context of a fold; the training rows of each class are those that are left."""
    loaded, settings = context.loaded, context.command.settings
    train, classes = context.data.train, context.data.num_classes
    kept = train.take(np.flatnonzero(numbers != number))
    data = replace(
        context.data,
        train=kept,
        holdout=train.take(np.flatnonzero(numbers == number)),
        class_counts=np.bincount(kept.labels, minlength=classes),
    )
    model = GivenFeatures(train.images.shape[2], classes)
    images = device_images(data, loaded.execution, settings)
    loaded.execution.place(model)
    of_fold = replace(loaded, data=data, images=images, model=model)
    frozen = freeze(of_fold, seed=settings.seed + STAGE2_DRAWS, views=settings.views)
    labels = images["train"].labels
    probe = fit_probe(frozen.plain("train"), labels, classes, FEATURES_PRESET["wd"], message="classifier")
    with torch.no_grad():
        of_fold.model.fc.weight.copy_(probe.weight)
        of_fold.model.fc.bias.copy_(probe.bias)
    trainer = replace(
        context.trainer,
        frozen=frozen,
        linear=of_fold.model.fc,
        labels=labels,
        class_counts=data.class_counts.tolist(),
    )
    return replace(context, loaded=of_fold, trainer=trainer, fold=(number, FOLDS))
