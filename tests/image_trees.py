"""Small trees of image files that several test files read."""

from pathlib import Path

import numpy as np
from PIL import Image


def image_tree(folder: Path, classes: int, train: int, test: int = 2, size: int = 12) -> Path:
    """Write a tree `{train,test}/<class>/*.png` of noisy images whose brightness tells the class, and return it.

    Class c has `train` - c training images, one at least.
    """
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label in range(classes):
            holder = folder / part / f"class{label}"
            holder.mkdir(parents=True)
            for number in range(max(count - label, 1) if part == "train" else count):
                noise = generator.normal(255 * (label + 0.5) / classes, 20, (size, size, 3))
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(holder / f"{number}.png")
    return folder
