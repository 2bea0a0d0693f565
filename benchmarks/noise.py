"""Noise in the shape of CIFAR-100: training does not depend on what images show."""

import numpy as np

from datasets.long_tail import Augmentation, LongTailedData, Split

AUGMENTATION = Augmentation(padding=4, mirror=True, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
CLASSES = 100


def noise_split(count: int) -> Split:
    """Return `count` images of noise in CIFAR's shape: (count, 32, 32, 3)."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Split(pixels, generator.integers(0, CLASSES, count), np.arange(count))


def noise_data(count: int) -> LongTailedData:
    """Return a data set of noise, as many training images as test images: `count`."""
    split = noise_split(count)
    names = [str(label) for label in range(CLASSES)]
    counts = np.bincount(split.labels, minlength=CLASSES)
    return LongTailedData("noise", split, split.take(np.arange(0)), split, names, counts, AUGMENTATION, {})
