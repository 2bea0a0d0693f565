"""Handwritten digits, long-tailed: 1,797 real 8 x 8 images that come with scikit-learn, so nothing is downloaded.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part). The last 50 images of every
class in file order are the test set; the training classes are cut from the others, from 124 images downwards.
"""

from typing import Any

import numpy as np

from datasets.long_tail import Augmentation, BalancedData, LongTailedData, Profile, Split, make_long_tailed

NUM_CLASSES = 10
TEST_PER_CLASS = 50
TRAIN_MAX = 124  # the smallest class has 174 images, 50 of which are for the test

# A mirrored digit is another sign: no mirroring. Constants of the whole set, ink scaled from 0..16 to 0..240.
AUGMENTATION = Augmentation(padding=1, mirror=False, mean=(0.287, 0.287, 0.287), std=(0.354, 0.354, 0.354))


def sklearn_digits() -> Any:
    """Return scikit-learn's record of the digits: `images` (1797, 8, 8) of 0 to 16, `target` (1797,)."""
    from sklearn.datasets import load_digits  # takes a second, for this data set alone

    return load_digits()


def load_digits(profile: Profile) -> LongTailedData:
    """Load the digits and cut the training part down to its long-tailed profile."""
    counts = profile.counts(TRAIN_MAX, NUM_CLASSES)
    digits = sklearn_digits()
    ink = np.clip(digits.images * 15, 0, 255).astype(np.uint8)
    images = np.repeat(ink[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    whole = Split(images, labels, np.arange(len(labels)))
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(NUM_CLASSES):
        is_test[np.flatnonzero(labels == label)[-TEST_PER_CLASS:]] = True
    train, test = (whole.take(np.flatnonzero(rows)) for rows in (~is_test, is_test))
    names = [str(label) for label in range(NUM_CLASSES)]
    return make_long_tailed(BalancedData("digits", train, test, names, AUGMENTATION), profile, counts)
