"""Bootstrap over test images within each class, and over seeds where there are several (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993; stratified by class, since test sets of this field fix the images of a class).

All classifiers see the same draws, so that differences between them are paired.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from evaluation.class_accuracies import ZERO_AS
from evaluation.metrics import shot_groups

DRAWS = 10_000
LEVEL = 0.95
SCORES = ("all", "many", "medium", "few", "harmonic")
CELLS = 1 << 24  # class accuracies, or weights of images, that are held at once


class Interval(NamedTuple):
    """A number, in percent, and the ends of its interval."""

    value: float
    low: float
    high: float


def scores(accuracy: np.ndarray, images: np.ndarray, class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return `SCORES` (...) of class accuracies (..., K) in percent, for the test images (K,) of each class and its
    training images (K,); NaN where a group is empty. Classes without a test image are in none of them.

    `harmonic` is the harmonic mean of the class accuracies with 0 as `ZERO_AS` (Du and Wu, CVPR 2023).
    """
    present = images > 0
    seen = accuracy[..., present]
    found = {"all": (seen * (images[present] / images.sum())).sum(axis=-1)}
    for name, members in shot_groups(class_counts).items():
        of_group = accuracy[..., members & present]
        found[name] = of_group.mean(axis=-1) if of_group.shape[-1] else np.full(accuracy.shape[:-1], np.nan)
    found["harmonic"] = 1 / (1 / np.where(seen > 0, seen, ZERO_AS)).mean(axis=-1)
    return found


def class_accuracies(correct: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the accuracy (M, K) of each class in percent, for images predicted right (M, N), N in the order of their
    classes of `images` (K,); NaN for a class without one."""
    edges = np.concatenate([[0], np.cumsum(images)])
    total = np.concatenate([np.zeros((len(correct), 1)), np.cumsum(correct, axis=1)], axis=1)
    hits = total[:, edges[1:]] - total[:, edges[:-1]]
    return np.divide(100 * hits, images, out=np.full(hits.shape, np.nan), where=images > 0)


def resampled_accuracies(
    correct: np.ndarray, images: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> Iterator[np.ndarray]:
    """Yield class accuracies (draws, M, K) in percent of test sets drawn anew with replacement within each class.

    `correct` (M, N) is bool: the images that each of M classifiers predicts right, N in the order of their classes of
    `images` (K,). A part of the draws comes at a time; all classifiers see the same ones.
    """
    generator = np.random.default_rng(seed)
    kinds, count = correct.shape[0], len(images)
    size = max(min(CELLS // max(kinds * count, int(images.max(initial=1))), draws), 1)
    edges = np.concatenate([[0], np.cumsum(images)])
    outcome = correct.astype(np.float64)
    for start in range(0, draws, size):
        part = min(size, draws - start)
        accuracy = np.full((part, kinds, count), np.nan)
        for label in np.flatnonzero(images):
            first, last = edges[label], edges[label + 1]
            n = last - first
            drawn = generator.integers(n, size=(part, n)) + n * np.arange(part)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=part * n).reshape(part, n)  # how often each image is drawn
            accuracy[:, :, label] = 100 * (weights @ outcome[:, first:last].T) / n
        yield accuracy


def bootstrap(
    correct: np.ndarray,
    images: np.ndarray,
    class_counts: np.ndarray,
    members: Mapping[str, list[int]],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the draws (draws,) of each of `SCORES` for each name of `members`: a method and the rows of `correct`
    (M, N) that are its seeds. Where a method has several, each draw takes as many of them with replacement.
    """
    generator = np.random.default_rng([seed, 1])
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {score: [] for score in SCORES} for name in members}
    for accuracy in resampled_accuracies(correct, images, draws, seed):
        of_row = scores(accuracy, images, class_counts)
        for name, rows in members.items():
            chosen = generator.integers(len(rows), size=(len(accuracy), len(rows)))
            for score, values in of_row.items():
                picked = np.take_along_axis(values[:, rows], chosen, axis=1)
                found[name][score].append(picked.mean(axis=1))
    return {name: {score: np.concatenate(parts) for score, parts in of.items()} for name, of in found.items()}


def interval(value: float, drawn: np.ndarray, level: float = LEVEL) -> Interval:
    """Return a number with the ends of its percentile interval over the draws (draws,)."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
