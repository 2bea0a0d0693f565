"""Thresholds on probabilities, from held-out images: a class is in the set where its probability reaches its own.

Split conformal prediction with the score 1 - p_y (Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers
with Bounded Error Levels", JASA 2019). Everything is written in p_y itself, where the score's quantile of rank r from
below is that of rank n + 1 - r: probabilities near 0 keep their digits.

- `marginal`: one threshold for all classes. New images like the held-out ones are covered with the probability asked.
- `classwise` (class-conditional, Mondrian; Vovk, "Conditional Validity of Inductive Conformal Predictors", ACML 2012):
  a threshold a class, from its own images: every class is covered, whatever the shares of the classes. A class with
  fewer than (coverage / (1 - coverage)) held-out images has the threshold 0 and is in every set.
- `interpolated` (INTERP-Q of Ding, Fermanian and Salmon, "Conformal Prediction for Long-Tailed Classification",
  arXiv 2507.06867): the mean of both by a weight; the threshold 0 of a class with few images counts as the number 0. An
  image that it misses is missed by one of the two, so that marginal coverage is at least 1 - 2 (1 - coverage).
"""

import math

import numpy as np

MARGINAL, CLASSWISE, INTERPOLATED = "marginal", "classwise", "interpolated"
KINDS = (MARGINAL, CLASSWISE, INTERPOLATED)
WEIGHT = 0.5  # of the class's own threshold in the interpolated one


def threshold(probabilities: np.ndarray, coverage: float) -> float:
    """Return the threshold of the true classes' probabilities (n,) of held-out images: 0 where they are too few.

    It is the (n + 1 - r)-th smallest, r = ceil((n + 1) coverage): a new image of the same kind reaches it with a
    probability of at least `coverage`, and less than 1 / (n + 1) more where no two are equal.
    """
    count = len(probabilities)
    rank = math.ceil((count + 1) * coverage - 1e-9)  # 0.9 * 10 is above 9 in floating point
    if rank > count:
        return 0.0
    return float(np.partition(probabilities, count - rank)[count - rank])


def class_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, num_classes: int, coverage: float, kind: str
) -> np.ndarray:
    """Return the thresholds (K,) of one of `KINDS` from the true classes' probabilities (n,) and the labels (n,)."""
    shared = threshold(probabilities, coverage)
    if kind == MARGINAL:
        return np.full(num_classes, shared)
    own = np.array([threshold(probabilities[labels == label], coverage) for label in range(num_classes)])
    return own if kind == CLASSWISE else WEIGHT * own + (1 - WEIGHT) * shared


def without_threshold(labels: np.ndarray, num_classes: int, coverage: float) -> int:
    """Return how many of K classes have too few held-out images, by their labels (n,), for a threshold of their own."""
    counts = np.bincount(labels, minlength=num_classes)
    return int(sum(math.ceil((count + 1) * coverage - 1e-9) > count for count in counts))
