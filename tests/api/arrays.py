"""Long-tailed features of four classes that overlap, for the tests of this folder."""

import numpy as np

COUNTS = [60, 25, 10, 4]
WIDTH = 6


def draw(counts: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, d) in clouds, and the number of each one's class."""
    means = np.random.default_rng(0).normal(size=(len(counts), WIDTH))
    labels = np.arange(len(counts)).repeat(counts)
    noise = np.random.default_rng(seed).normal(size=(len(labels), WIDTH))
    return (means[labels] + noise).astype(np.float32), labels


TRAIN, TEST = draw(COUNTS, 1), draw([20] * 4, 2)
HELD_OUT = draw([5] * 4, 3)
