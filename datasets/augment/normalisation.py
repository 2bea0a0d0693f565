"""The constants that normalise an image: (pixel / 255 - mean) / std, channel by channel.

They belong to the weights: a network that was trained under some is worth less under others. Which ones those of
strangers were trained under stands in no file of theirs, so a command can name them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from datasets.long_tail import Augmentation
from utils.errors import UserError
from utils.text import shown

Constants = tuple[float, float, float]
# Mean and standard deviation of the training images, of CIFAR-10 and of ImageNet, as the field's code has them; the
# deviation of `cifar` is that of images one by one, averaged, which nearly all code for CIFAR uses.
NAMED: dict[str, tuple[Constants, Constants]] = {
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def constants_text(values: Sequence[str]) -> str:
    """Return the words of `--mean` or `--std` as the one text that settings and names of folders have: a name, or
    three numbers with commas between.

    Numbers are apart by commas or spaces; one stands for all three channels, as of grey images. Raises UserError for
    anything else.
    """
    words = " ".join(values).replace(",", " ").split()
    if len(words) == 1 and words[0] in NAMED:
        return words[0]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise UserError(f"'{shown(' '.join(values))}' is neither one number, nor three, nor {' or '.join(NAMED)}")
    return ",".join(f"{number:.10g}" for number in numbers * (3 // len(numbers)))


def read_constants(mean: str | None, std: str | None) -> tuple[Constants, Constants] | None:
    """Return mean and deviation that `--mean` and `--std` name, in units of [0, 1]; None where neither was given.

    A name given as `--mean` stands for both. Raises UserError for numbers of the one without the other, and for numbers
    that cannot be.
    """
    if mean is None and std is None:
        return None
    if mean in NAMED and std in (None, mean):
        return NAMED[mean]
    if mean is None or std is None or mean in NAMED or std in NAMED:
        raise UserError("--mean and --std go together: give the numbers of both, or one name as --mean alone")
    found = [tuple(float(word) for word in text.split(",")) for text in (mean, std)]
    for name, numbers, sound in (
        ("mean", found[0], all(0 <= number <= 1 for number in found[0])),
        ("std", found[1], all(0 < number <= 1 for number in found[1])),
    ):
        if not sound:
            low, words = "above 0" if name == "std" else "at least 0", " ".join(f"{number:g}" for number in numbers)
            raise UserError(
                f"--{name} {words} is not in units of [0, 1], {low} and at most 1; divide numbers of 0 to 255 by 255"
            )
    (m1, m2, m3), (s1, s2, s3) = found
    return (m1, m2, m3), (s1, s2, s3)


def with_given(augmentation: Augmentation, mean: str | None, std: str | None, mirror: str | None) -> Augmentation:
    """Return what the images of a data set undergo, with what `--mean`, `--std` and `--mirror` say instead."""
    constants = read_constants(mean, std)
    if constants is not None:
        augmentation = replace(augmentation, mean=constants[0], std=constants[1])
    return augmentation if mirror is None else replace(augmentation, mirror=mirror == "on")


def recorded_constants(images: object) -> Augmentation | None:
    """Return what the record of a run, perhaps a stranger's, says of its images; None where it says nothing sound."""
    try:
        mean, std, mirror = (images[name] for name in ("mean", "std", "mirror"))  # type: ignore[index]
        (m1, m2, m3), (s1, s2, s3) = ((float(number) for number in numbers) for numbers in (mean, std))
    except (TypeError, KeyError, ValueError, IndexError):
        return None
    return Augmentation(padding=0, mirror=mirror is True, mean=(m1, m2, m3), std=(s1, s2, s3))


def describe_constants(augmentation: Augmentation) -> str:
    """Return what normalises an image, with its name if it has one, and whether it is mirrored."""
    mean, std = augmentation.mean, augmentation.std
    name = next((f" ({name})" for name, constants in NAMED.items() if constants == (mean, std)), "")
    words = [" ".join(f"{number:.5g}" for number in numbers) for numbers in (mean, std)]
    return f"mean {words[0]}, std {words[1]}{name}, {'mirrored' if augmentation.mirror else 'never mirrored'}"
