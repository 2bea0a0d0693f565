"""Colour jitter of many images at once: brightness, contrast and saturation, each image with factors of its own.

What torchvision's `ColorJitter` does to floating-point images, with the strength 0.4 and without a change of hue, as
Liu et al. (OLTR, CVPR 2019) and the field after them train on ImageNet-LT.
"""

import itertools

import torch
from torch import Tensor

from utils.hashing import split_draws

STRENGTH = 0.4  # factors lie within 1 +- this
BRIGHTNESS, CONTRAST, SATURATION = range(3)
ORDERS = list(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION)))
LEVELS = 1 << 18  # of a factor: far finer than what 8 bits can show
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as torchvision does


def colour_jitter(pixels: Tensor, draws: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in 0..255, of any dtype, with their colours changed: float32 in 0..255, not rounded.

    `draws` (B,) are well-mixed integers in [0, 2**62). The memory order is kept.
    """
    return apply_jitter(pixels, *draw_jitter(draws))


def draw_jitter(draws: Tensor, strength: float = STRENGTH) -> tuple[Tensor, Tensor]:
    """Read from draws (B,) each image's order of the three operations (B, 3) int64 and their factors (B, 3) float32.

    Column i of the order is the operation that comes i-th; column k of the factors belongs to the operation k. All
    orders are equally likely, and a factor is uniform in [1 - strength, 1 + strength].
    """
    which, *levels = split_draws(draws, len(ORDERS), LEVELS, LEVELS, LEVELS)
    shares = (torch.stack(levels, dim=1) + 0.5) / LEVELS
    # The orders are counted, not looked up: a table would be sent to the device for every batch.
    first, later = which // 2, which % 2
    second = later + (later >= first)
    order = torch.stack([first, second, sum((BRIGHTNESS, CONTRAST, SATURATION)) - first - second], dim=1)
    return order, 1 - strength + 2 * strength * shares


def apply_jitter(pixels: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Change the colours of images (B, 3, H, W) in 0..255 by `factors` (B, 3) in the `order` (B, 3): float32.

    Each of the three blends an image with another: black for brightness, its mean gray for contrast, itself in gray for
    saturation. That one form lets all images of a batch take a step together, whichever operation it is for each.
    """
    images = pixels.float()
    for step in range(order.shape[1]):
        operation = order[:, step]
        factor = factors.gather(1, operation[:, None])[:, :, None, None]
        gray = sum(weight * images[:, i : i + 1] for i, weight in enumerate(LUMA))
        assert isinstance(gray, Tensor)
        mean = gray.mean((1, 2, 3), keepdim=True)
        operation = operation[:, None, None, None]
        other = gray * (operation == SATURATION) + mean * (operation == CONTRAST)
        images = (images * factor).add_(other.mul_(1 - factor)).clamp_(0, 255)
    return images
