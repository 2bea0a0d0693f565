"""AutoAugment's CIFAR-10 policy and Cutout, for many uint8 images at once.

The policy is the one that Cubuk et al. ("AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019) found on
reduced CIFAR-10; magnitudes become numbers as in torchvision's `v2.AutoAugment`. Cutout is DeVries & Taylor's (2017).
Which image undergoes what is read from integer draws, so this module holds no random state.
"""

import math
from collections.abc import Callable

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from utils.hashing import split_draws

Step = tuple[str, float, int | None]  # operation, probability, magnitude's index among MAGNITUDES (None: has none)

# GALA's code keeps the policy's usual grey where an operation uncovers the outside of an image.
GREY = 128
HOLE = 16
MAGNITUDES = 10

POLICY: list[tuple[Step, Step]] = [
    (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
    (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
    (("Color", 0.9, 9), ("Equalize", 0.6, None)),
    (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, None), ("Invert", 0.1, None)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
]

UNSIGNED = {"Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"}


def _move(images: Tensor, x: float, y: float, fill: int) -> Tensor:
    return F.affine(images, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0], fill=fill)


def _shear_y(images: Tensor, slope: float, fill: int) -> Tensor:
    """Lower each column by `slope` times its distance from the left edge, as the policy's authors do."""
    angle = math.degrees(math.atan(slope))
    return F.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, angle], fill=fill, center=[0, 0])


# Each takes images (N, 3, H, W) uint8, the signed magnitude and the grey of uncovered pixels; torchvision's default
# interpolation, nearest, is the policy's.
OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "ShearY": _shear_y,
    "TranslateX": lambda images, value, fill: _move(images, value, 0, fill),
    "TranslateY": lambda images, value, fill: _move(images, 0, value, fill),
    "Rotate": lambda images, value, fill: F.rotate(images, angle=value, fill=fill),
    "Brightness": lambda images, value, _: F.adjust_brightness(images, 1 + value),
    "Color": lambda images, value, _: F.adjust_saturation(images, 1 + value),
    "Contrast": lambda images, value, _: F.adjust_contrast(images, 1 + value),
    "Sharpness": lambda images, value, _: F.adjust_sharpness(images, 1 + value),
    "Posterize": lambda images, value, _: F.posterize(images, int(value)),
    "Solarize": lambda images, value, _: F.solarize(images, 255 * value),
    "AutoContrast": lambda images, value, _: F.autocontrast(images),
    "Equalize": lambda images, value, _: F.equalize(images),
    "Invert": lambda images, value, _: F.invert(images),
}


def magnitude(operation: str, index: int | None, height: int, width: int) -> float:
    """Return what magnitude `index` means for an operation on images of height x width, its sign left out.

    Degrees for Rotate, pixels for Translate, a slope for ShearY, bits for Posterize, a share of white for Solarize,
    the distance of the blending factor from 1 for the others; 0 where the operation takes no magnitude.
    """
    if index is None:
        return 0.0
    if operation == "Posterize":
        return float(round(8 - 4 * index / (MAGNITUDES - 1)))
    # Translations reach as far, in proportion, as the 150 pixels of the ImageNet images (331 wide) of the search.
    low, high = {
        "ShearY": (0.0, 0.3),
        "TranslateX": (0.0, 150 / 331 * width),
        "TranslateY": (0.0, 150 / 331 * height),
        "Rotate": (0.0, 30.0),
        "Solarize": (1.0, 0.0),
    }.get(operation, (0.0, 0.9))
    return float(torch.linspace(low, high, MAGNITUDES)[index])


def policy_variants(height: int, width: int) -> tuple[list[tuple[str, float]], Tensor]:
    """Return the distinct (operation, signed magnitude) of the policy, and which one every step is.

    The second, (25, 2, 2) int64, holds positions in the first, by sub-policy, step, and sign (1: negative).
    """
    variants: dict[tuple[str, float], int] = {}
    table = torch.empty(len(POLICY), 2, 2, dtype=torch.int64)
    for i, steps in enumerate(POLICY):
        for j, (operation, _, index) in enumerate(steps):
            value = magnitude(operation, index, height, width)
            for negative in (0, 1):
                signed = -value if negative and operation not in UNSIGNED else value
                table[i, j, negative] = variants.setdefault((operation, signed), len(variants))
    return list(variants), table


def draw_policy(draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read from draws (N,) each image's sub-policy (N,) int64, which of its two steps apply and which are negative.

    The last two are (N, 2) bool, one column a step. The policy's probabilities are tenths (the paper's search space),
    so a digit below 10 decides exactly.
    """
    tenths = torch.tensor([[round(10 * step[1]) for step in steps] for steps in POLICY], device=draws.device)
    sub_policies, first, second, *signs = split_draws(draws, len(POLICY), 10, 10, 2, 2)
    applied = torch.stack([first, second], dim=1) < tenths[sub_policies]
    return sub_policies, applied, torch.stack(signs, dim=1).bool()


def apply_policy(images: Tensor, sub_policies: Tensor, applied: Tensor, negative: Tensor, fill: int = GREY) -> Tensor:
    """Apply to each image (N, 3, H, W) uint8 the steps of its sub-policy; return new images.

    `sub_policies` (N,), `applied` (N, 2) and `negative` (N, 2) are as from `draw_policy` and lie on the CPU: all images
    that undergo the same operation with the same magnitude go through it together, so the host must know the groups.
    """
    images = images.clone()
    variants, table = policy_variants(*images.shape[-2:])
    untouched = len(variants)
    for step in (0, 1):
        chosen = table[sub_policies, step, negative[:, step].long()].where(applied[:, step], untouched)
        counts = torch.bincount(chosen, minlength=untouched + 1).tolist()
        groups = chosen.argsort(stable=True).to(images.device).split(counts)
        for (operation, value), rows in zip(variants, groups[:untouched], strict=True):
            if len(rows):
                images[rows] = OPERATIONS[operation](images[rows], value, fill)
    return images


def cutout(images: Tensor, draws: Tensor, size: int = HOLE) -> Tensor:
    """Blacken in each image (N, 3, H, W) a square of `size` (even) pixels around a pixel that `draws` (N,) choose.

    Every pixel is as likely to be the centre, and what reaches over the border is cut off, so a hole shows between a
    quarter and all of its area.
    """
    inside = []
    for length, centres in zip(images.shape[-2:], split_draws(draws, *images.shape[-2:]), strict=True):
        distance = torch.arange(length, device=images.device) - centres[:, None]
        inside.append((-size // 2 <= distance) & (distance < size // 2))
    rows, columns = inside
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)
