"""Classifiers compared on held-out images by one number, with the paired interval of each difference to the first."""

from typing import NamedTuple

import numpy as np

from evaluation.class_accuracies import ZERO_AS
from evaluation.intervals.bootstrap import Interval, class_accuracies, interval, resampled_accuracies
from evaluation.intervals.choices import CRITERIA

DRAWS = 1000


class Compared(NamedTuple):
    """A classifier beside the first: its difference, better ones above 0, and the ends of the paired interval.

    `apart` says whether it can be told apart from the best: whether the paired interval to it leaves out 0.
    """

    scores: dict[str, float]
    difference: float
    low: float
    high: float
    apart: bool = False


def from_classes(criterion: str, of_class: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the criterion (...) from what it is of each class, (..., K): accuracies in percent, of `nll` the mean.

    `images` (K,) are the held-out images of each class; classes without any are left out.
    """
    present = images > 0
    seen = of_class[..., present]
    if criterion == "harmonic":
        return 1 / (1 / np.where(seen > 0, seen, ZERO_AS)).mean(axis=-1)
    if criterion == "all":
        return seen @ (images[present] / images.sum())
    return seen.min(axis=-1) if criterion == "worst" else seen.mean(axis=-1)


def compare_classifiers(
    correct: np.ndarray, nll: np.ndarray, labels: np.ndarray, num_classes: int, criterion: str, seed: int = 0
) -> list[Compared]:
    """Return every criterion of each of M classifiers, and its difference to the first by `criterion`.

    `correct` (M, N) says which images each gets right, `nll` (M, N) the negative log-likelihood of their labels (N,).
    The interval of 95 % is that of a bootstrap over the images of each class, paired: all see the same draws. As in
    tables, the harmonic mean has none, NaN, where either has a class of which no image is right.
    """
    order = np.argsort(labels, kind="stable")
    images = np.bincount(labels, minlength=num_classes)
    values = {name: nll[:, order] / 100 if name == "nll" else correct[:, order] for name in CRITERIA}
    found = {
        name: from_classes(name, class_accuracies(own.astype(np.float64), images), images)
        for name, own in values.items()
    }
    drawn = drawn_scores(values[criterion], images, criterion, seed)
    sign = -1.0 if criterion == "nll" else 1.0
    ends = (-np.inf, np.inf) if criterion == "nll" else (-100.0, 100.0)
    top = int((sign * found[criterion]).argmax())
    guessed = (found["worst"] == 0) & (criterion == "harmonic")

    def to(other: int, place: int) -> Interval:
        if place == other:
            return Interval(0.0, 0.0, 0.0)
        value = sign * float(found[criterion][place] - found[criterion][other])
        if guessed[place] or guessed[other]:
            return Interval(value, np.nan, np.nan)
        return interval(value, sign * (drawn[:, place] - drawn[:, other]), within=ends)

    compared = []
    for place in range(len(correct)):
        of_first = to(0, place)
        scores = {name: float(own[place]) for name, own in found.items()}
        compared.append(Compared(scores, *of_first, apart=to(top, place).high < 0))
    return compared


def drawn_scores(values: np.ndarray, images: np.ndarray, criterion: str, seed: int) -> np.ndarray:
    """Return the criterion (draws, M) over bootstrap draws of what is measured of each image, (M, N), by class."""
    of_class = np.full((DRAWS, len(values), len(images)), np.nan, dtype=np.float32)
    for label, own in resampled_accuracies(values, images, DRAWS, seed):
        of_class[:, :, label] = own
    return from_classes(criterion, of_class, images)


def best_of(compared: list[Compared], criterion: str) -> int:
    """Return the place of the best by `criterion`, of equal ones by class-balanced accuracy, then of the first.

    By `balanced`, which is coarse where classes have a handful of images, it is the one with the least class-balanced
    NLL of those that are better than the first and cannot be told apart from the best; the first where none is better.
    """
    if criterion == "balanced":
        near = [place for place, one in enumerate(compared) if one.difference > 0 and not one.apart]
        return min(near, key=lambda place: compared[place].scores["nll"], default=0)
    sign = -1.0 if criterion == "nll" else 1.0
    keys = [(sign * one.scores[criterion], one.scores["balanced"]) for one in compared]
    return keys.index(max(keys))
