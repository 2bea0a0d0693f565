"""Bootstrap over test images within each class, and over seeds where there are several (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993; stratified by class, since test sets of this field fix the images of a class).

All classifiers see the same draws, so that differences between them are paired. Of a class with n test images n - 1 are
drawn, with which the variance is right however few they are (Rao and Wu, "Resampling Inference with Complex Survey
Data", Journal of the American Statistical Association 83, 1988).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from evaluation.class_accuracies import ZERO_AS
from evaluation.metrics import SHOTS, shot_groups

DRAWS = 10_000
LEVEL = 0.95
SCORES = ("all", *SHOTS, "harmonic")
LINEAR = SCORES[:-1]  # those that are weighted sums of the class accuracies
CELLS = 1 << 22  # images drawn that are held at once


class Interval(NamedTuple):
    """A number, in percent, and the ends of its interval."""

    value: float
    low: float
    high: float


def score_weights(images: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
    """Return what each class weighs in each of `LINEAR`, (4, K), for its test images (K,) and its training images (K,);
    NaN where a group has no class with a test image."""
    present = images > 0
    weights = [images / images.sum()]
    for members in shot_groups(class_counts).values():
        own = members & present
        weights.append(own / own.sum() if own.any() else np.full(len(images), np.nan))
    return np.stack(weights)


def scores(accuracy: np.ndarray, images: np.ndarray, class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return `SCORES` (...) of class accuracies (..., K) in percent, for the test images (K,) of each class and its
    training images (K,); NaN where a group is empty. Classes without a test image are in none of them.

    `harmonic` is the harmonic mean of the class accuracies with 0 as `ZERO_AS` (Du and Wu, CVPR 2023).
    """
    present = images > 0
    seen = accuracy[..., present]
    linear = seen @ score_weights(images, class_counts)[:, present].T
    found = {name: linear[..., place] for place, name in enumerate(LINEAR)}
    return {**found, "harmonic": 1 / inverse(seen).mean(axis=-1)}


def inverse(accuracy: np.ndarray) -> np.ndarray:
    """Return 1 / accuracy in percent, of 0 that of `ZERO_AS`."""
    return 1 / np.where(accuracy > 0, accuracy, ZERO_AS)


def class_accuracies(correct: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the accuracy (M, K) of each class in percent, for images predicted right (M, N), N in the order of their
    classes of `images` (K,); NaN for a class without one."""
    edges = np.concatenate([[0], np.cumsum(images)])
    total = np.concatenate([np.zeros((len(correct), 1)), np.cumsum(correct, axis=1)], axis=1)
    hits = total[:, edges[1:]] - total[:, edges[:-1]]
    return np.divide(100 * hits, images, out=np.full(hits.shape, np.nan), where=images > 0)


def resampled_accuracies(
    correct: np.ndarray, images: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each class that has test images and its accuracies (draws, M) in percent, its images drawn anew with
    replacement.

    `correct` (M, N) is bool: the images that each of M classifiers predicts right, N in the order of their classes of
    `images` (K,). The draws of a class do not depend on the classifiers: all see the same ones, alone or together.
    """
    edges = np.concatenate([[0], np.cumsum(images)])
    for label in np.flatnonzero(images):
        first, last = edges[label], edges[label + 1]
        count = int(last - first)
        generator = np.random.default_rng([seed, int(label)])
        outcome = correct[:, first:last].T.astype(np.float32)
        accuracy = np.empty((draws, len(correct)), dtype=np.float32)
        size = max(CELLS // count, 1)
        taken = max(count - 1, 1)
        for start in range(0, draws, size):
            part = min(size, draws - start)
            drawn = generator.integers(count, size=(part, taken), dtype=np.int32)
            drawn += count * np.arange(part, dtype=np.int32)[:, None]
            times = np.bincount(drawn.ravel(), minlength=part * count).reshape(part, count)  # each image is drawn
            accuracy[start : start + part] = times.astype(np.float32) @ outcome
        yield int(label), 100 * accuracy.astype(np.float64) / taken


def bootstrap(
    correct: np.ndarray,
    images: np.ndarray,
    class_counts: np.ndarray,
    members: Mapping[str, list[int]],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the draws (draws,) of each of `SCORES` for each name of `members`: a method and the rows of `correct`
    (M, N) that are its seeds. `class_counts` are the training images of each class, (K,) or of each row (M, K).

    Where methods have several seeds, each draw takes as many of them with replacement; the same ones of all methods
    with as many, whose seeds are paired too. One seed says nothing of others.
    """
    counts = np.broadcast_to(class_counts, (len(correct), len(images)))
    weights = np.stack([score_weights(images, of_row) for of_row in counts], axis=1)  # (4, M, K)
    linear = np.where(np.isnan(weights[:, :, :1]), np.nan, np.zeros((len(LINEAR), len(correct), draws)))
    total = np.zeros((len(correct), draws))
    for label, accuracy in resampled_accuracies(correct, images, draws, seed):
        for place in range(len(LINEAR)):
            own = np.nan_to_num(weights[place, :, label])
            if own.any():
                linear[place] += own[:, None] * accuracy.T
        total += inverse(accuracy.T)
    of_rows = dict(zip(LINEAR, linear, strict=True)) | {"harmonic": (images > 0).sum() / total}
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, rows in members.items():
        generator = np.random.default_rng([seed, len(images), len(rows)])
        chosen = generator.integers(len(rows), size=(len(rows), draws))
        found[name] = {
            score: np.take_along_axis(values[rows], chosen, axis=0).mean(axis=0) for score, values in of_rows.items()
        }
    return found


def interval(
    value: float, drawn: np.ndarray, level: float = LEVEL, within: tuple[float, float] = (-np.inf, np.inf)
) -> Interval:
    """Return a number with the ends of its basic interval over the draws (draws,): what the draws are above it, it may
    be above the truth (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, equation 2.10). No end
    lies outside `within`, and the number is never outside its interval, be it by rounding.

    The percentile interval would be wrong for the harmonic mean. Class accuracies that are drawn lower weigh more than
    those drawn higher, so its draws lie below it, as it lies below the truth.
    """
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    ends = np.clip([2 * value - high, 2 * value - low], *within)
    return Interval(value, min(float(ends[0]), value), max(float(ends[1]), value))
