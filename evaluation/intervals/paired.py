"""Paired tests of two classifiers on the same test images, and what many of them together may claim."""

from collections.abc import Sequence

import numpy as np


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided p-value that two classifiers are right equally often, from what each gets right (N,).

    McNemar's test in its exact form (Psychometrika 12, 1947): of the images that only one of them gets right, each is
    the first one's with probability one half.
    """
    from scipy.special import bdtr

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def bootstrap_p(value: float, drawn: np.ndarray) -> float:
    """Return the two-sided p-value of a difference being 0, from its value and its bootstrap draws (draws,): 1 less the
    level of the basic interval (`evaluation.intervals.bootstrap.interval`) that ends at 0, ties by half.

    It is at least 1 / (draws + 1).
    """
    ends = 2 * value - drawn
    below = ((ends < 0).sum() + 0.5 * (ends == 0).sum() + 0.5) / (len(drawn) + 1)
    return float(min(1.0, 2 * min(below, 1 - below)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, so that the chance of one false claim among all is held.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
