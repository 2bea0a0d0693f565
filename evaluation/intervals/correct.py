"""Which test images a classifier gets right, small enough for a report: a bit an image.

The images are in the order of their classes, and within a class in that of the test set. So the number of images of
each class says of which class a bit is, and two classifiers on one test set can be compared image by image.
"""

import base64
from collections.abc import Sequence

import numpy as np

from utils.errors import UserError


def pack_correct(correct: np.ndarray, labels: np.ndarray) -> str:
    """Return whether each image was predicted right, (N,) bool for labels (N,), as text: base64 of bits, by class."""
    return base64.b64encode(np.packbits(correct[np.argsort(labels, kind="stable")]).tobytes()).decode()


def unpack_correct(text: str, images: Sequence[int]) -> np.ndarray:
    """Return the bits (N,) bool of `pack_correct` for the number of test images (K,) of each class.

    Raises UserError for what `pack_correct` cannot have written.
    """
    count = sum(images)
    try:
        packed = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise UserError(f"the record of the images predicted right is damaged ({error})") from error
    if len(packed) != -(-count // 8):
        raise UserError(
            f"the record of the images predicted right is damaged: {len(packed)} bytes for {count} test images"
        )
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(bool)
