"""Thresholds on probabilities, from held-out images: a class is in the set where its probability reaches its own.

Split conformal prediction with the score 1 - p_y (Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers
with Bounded Error Levels", JASA 2019). Everything is written in p_y itself, where the score's quantile of rank r from
below is that of rank n + 1 - r: probabilities near 0 keep their digits.

- `marginal`: one threshold for all classes. New images like the held-out ones are covered with the probability asked;
  where their class shares are others, and known, `shared_thresholds` makes up for it.
- `classwise` (class-conditional, Mondrian; Vovk, "Conditional Validity of Inductive Conformal Predictors", ACML 2012):
  a threshold a class, from its own images: every class is covered, whatever the shares of the classes. A class with
  fewer than (coverage / (1 - coverage)) held-out images has the threshold 0 and is in every set.
- `interpolated` (INTERP-Q of Ding, Fermanian and Salmon, "Conformal Prediction for Long-Tailed Classification",
  arXiv 2507.06867): the mean of both by a weight; the threshold 0 of a class with few images counts as the number 0. An
  image that it misses is missed by one of the two, so that marginal coverage is at least 1 - 2 (1 - coverage).
"""

import math

import numpy as np

from evaluation.prediction_sets.kinds import CLASSWISE, MARGINAL

WEIGHT = 0.5  # of the class's own threshold in the interpolated one
ROUNDING = 1e-9  # 0.9 * 10 is above 9 in floating point


def threshold(probabilities: np.ndarray, coverage: float) -> float:
    """Return the threshold of the true classes' probabilities (n,) of held-out images: 0 where they are too few.

    It is the (n + 1 - r)-th smallest, r = ceil((n + 1) coverage): a new image of the same kind reaches it with a
    probability of at least `coverage`, and less than 1 / (n + 1) more where no two are equal.
    """
    count = len(probabilities)
    rank = _rank(count, coverage)
    return 0.0 if rank > count else float(np.partition(probabilities, count - rank)[count - rank])


def _rank(count: int, coverage: float) -> int:
    return math.ceil((count + 1) * coverage - ROUNDING)


def shared_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, num_classes: int, coverage: float, shares: np.ndarray | None = None
) -> np.ndarray:
    """Return the marginal thresholds (K,) for images like the held-out ones, or whose classes have the `shares` (K,).

    Then a held-out image of class k weighs as much as its share is larger there, and the new image as a class weighs
    what that class does (Podkopaev and Ramdas, "Distribution-Free Uncertainty Quantification for Classification under
    Label Shift", UAI 2021), so that the thresholds differ a little from class to class. A class that has a share and no
    held-out image gets the threshold 0.
    """
    if shares is None:
        return np.full(num_classes, threshold(probabilities, coverage))
    images = np.bincount(labels, minlength=num_classes)
    weights = np.divide(shares, images, out=np.zeros(num_classes), where=images > 0)
    order = np.argsort(-probabilities, kind="stable")
    reached = np.cumsum(weights[labels[order]])
    total = float(reached[-1]) if len(reached) else 0.0
    found = np.zeros(num_classes)
    for label in np.flatnonzero(images):
        needed = coverage * (total + weights[label]) - ROUNDING * total
        if needed <= total:
            found[label] = probabilities[order[np.searchsorted(reached, needed)]]
    return found


def class_thresholds(
    probabilities: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    coverage: float,
    kind: str,
    shares: np.ndarray | None = None,
) -> np.ndarray:
    """Return the thresholds (K,) of one of `KINDS` from the true classes' probabilities (n,) and the labels (n,), for
    images whose classes have the `shares` (K,), those of the held-out images if not given."""
    own = np.array([threshold(probabilities[labels == label], coverage) for label in range(num_classes)])
    if kind == CLASSWISE:
        return own
    shared = shared_thresholds(probabilities, labels, num_classes, coverage, shares)
    return shared if kind == MARGINAL else WEIGHT * own + (1 - WEIGHT) * shared


def without_threshold(labels: np.ndarray, num_classes: int, coverage: float) -> int:
    """Return how many of K classes have too few held-out images, by their labels (n,), for a threshold of their own."""
    counts = np.bincount(labels, minlength=num_classes).tolist()
    return sum(_rank(count, coverage) > count for count in counts)


def have(classes: int) -> str:
    """Return that many classes and their verb, in words."""
    return "1 class has" if classes == 1 else f"{classes} classes have"
