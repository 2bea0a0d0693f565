"""Test sets with other class shares, as long-tailed papers report them, and the accuracy on them.

Hong et al. ("Disentangling Label Distribution for Long-tailed Visual Recognition", LADE, CVPR 2021, arXiv 2012.00321)
cut a balanced test set down: `forward-F` has the classes in the order of their training images, with an exponential
profile of imbalance factor F, `backward-F` the same in reverse. Here no image is left out: classes get weights. That is
what dropping images at random gives on average, without its noise and without rounding class sizes down.
"""

import numpy as np
import torch
from torch import Tensor

FACTORS = (50, 25, 10, 5, 2)


def shifted_shares(class_counts: np.ndarray, factor: float, backward: bool = False) -> Tensor:
    """Return shares (K,) float64 in proportion to factor^(-r / (K - 1)), r from 0 the place of a class by its training
    images (K,), the largest first, or `backward` the smallest. Classes of one size keep their order."""
    order = np.argsort(-class_counts, kind="stable")
    profile = float(factor) ** (-np.arange(len(order)) / max(len(order) - 1, 1))
    shares = np.empty(len(order))
    shares[order] = profile[::-1] if backward else profile
    return torch.from_numpy(shares / shares.sum())


def shifted_profiles(class_counts: np.ndarray) -> dict[str, Tensor]:
    """Return the shares (K,) of all test sets by their names, from the most forward to the most backward."""
    forward = {f"forward-{factor}": shifted_shares(class_counts, factor) for factor in FACTORS}
    backward = {f"backward-{factor}": shifted_shares(class_counts, factor, True) for factor in reversed(FACTORS)}
    return {**forward, "uniform": shifted_shares(class_counts, 1), **backward}


def weighted_accuracy(predictions: Tensor, labels: Tensor, shares: Tensor) -> float:
    """Return the accuracy in percent of predicted classes (N,) for labels (N,) where classes have the `shares` (K,).

    It is the mean of the class accuracies by share. A class without an image is left out, its share with it.
    """
    labels, predictions = labels.cpu(), predictions.cpu()
    images = torch.bincount(labels, minlength=len(shares)).double()
    hits = torch.bincount(labels[predictions == labels], minlength=len(shares)).double()
    present = images > 0
    weights = shares[present] / shares[present].sum()
    return 100 * float((weights * hits[present] / images[present]).sum())
