"""Folds of labelled rows: each is held out once, and every class keeps a row to learn from."""

import numpy as np


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return for each of the labels (N,) the fold, from 0, that holds its row out; -1 for the only row of a class.

    Each class is spread over the folds as evenly as it goes, from a fold drawn by `seed` on, so that the rows of rare
    classes do not gather in the first.
    """
    numbers = np.full(len(labels), -1)
    generator = np.random.default_rng(seed)
    for label in range(int(labels.max(initial=-1)) + 1):
        members = generator.permutation(np.flatnonzero(labels == label))
        first = int(generator.integers(folds))
        if len(members) > 1:
            numbers[members] = (first + np.arange(len(members))) % folds
    return numbers
