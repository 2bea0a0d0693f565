"""Sums of features by class, in double precision, a block at a time."""

import torch
from torch import Tensor

from datasets.features import Features
from utils.errors import UserError

BLOCK = 8192  # feature vectors that are added up together: all of them may not fit into memory


def class_sums(name: str, features: Features, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the sums (K, d) of the features (N, d) of each class, in float64 where the labels (N,) are, and the images
    (K,) of each.

    Raises UserError, in the name of the method, for labels that do not fit and for a class without an image.
    """
    index = labels.long()
    present = torch.bincount(index, minlength=classes)
    if len(present) != classes or len(index) != len(features):
        raise UserError(
            f"{name} needs one label below {classes} for every feature vector, not {len(index)} labels "
            f"of {len(present)} classes for {len(features)} vectors"
        )
    if (present == 0).any():
        raise UserError(f"{name} needs an image of every class; class {int((present == 0).nonzero()[0])} has none")
    sums = torch.zeros(present.shape + features.shape[1:], dtype=torch.float64, device=index.device)
    for rows, of_rows in zip(features.split(BLOCK), index.split(BLOCK), strict=True):
        sums.index_add_(0, of_rows, rows.to(index.device).double())
    return sums, present


def class_means(name: str, features: Features, labels: Tensor, classes: int) -> Tensor:
    """Return the mean features (K, d) of each class, in float64; UserError as `class_sums`."""
    sums, present = class_sums(name, features, labels, classes)
    return sums / present[:, None]
