"""Random and centre crops of large images, drawn and resized as torchvision draws and resizes them."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.decoding.options import AREA
from utils.hashing import MASK64, mix64

# Of a random crop: its width over its height, and how often one is drawn that does not fit.
RATIO, TRIES = (3 / 4, 4 / 3), 10
LONGEST_RATIO = 20  # of the sides of an image that is resized as a whole
SPLITMIX_STEP = 0x9E3779B97F4A7C15

Box = tuple[int, int, int, int]  # top, left, height, width


def uniforms(draw: int) -> Iterator[float]:
    """Yield numbers uniform in [0, 1), a function of `draw` alone (SplitMix64; Steele et al., OOPSLA 2014)."""
    while True:
        yield (mix64(draw) >> 11) / (1 << 53)
        draw = (draw + SPLITMIX_STEP) & MASK64


def draw_box(height: int, width: int, numbers: Iterator[float], smallest: float = AREA[0]) -> Box:
    """Draw a crop as torchvision's `RandomResizedCrop.get_params` does: its area, from the `smallest` share of the
    image on, and the logarithm of its ratio are uniform; after ten that do not fit, the largest centre crop whose ratio
    is within bounds."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(TRIES):
        area = height * width * (smallest + (AREA[1] - smallest) * next(numbers))
        ratio = math.exp(low + (high - low) * next(numbers))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int((height - h + 1) * next(numbers)), int((width - w + 1) * next(numbers)), h, w
    w = max(min(width, round(height * RATIO[1])), 1)
    h = max(min(height, round(width / RATIO[0])), 1)
    return (height - h) // 2, (width - w) // 2, h, w


def resize_pixels(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (3, H, W) uint8 to (3, height, width), bilinear and antialiased, as torchvision's `resize` does.

    Channels last in memory is the fast path of both the copy out of a larger image and the interpolation.
    """
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)[0]


def random_crop(image: Tensor, size: int, draw: int, smallest: float = AREA[0]) -> Tensor:
    """Return the crop of an image (3, H, W) uint8 that `draw` chooses, resized: (3, size, size). It takes at least the
    `smallest` share of the image."""
    top, left, height, width = draw_box(image.shape[1], image.shape[2], uniforms(draw), smallest)
    return resize_pixels(image[:, top : top + height, left : left + width], size, size)


def centre(image: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of an image (3, H, W) with at most `height` x `width` pixels, rounded as torchvision does."""
    top, left = (max(round((now - then) / 2), 0) for now, then in zip(image.shape[1:], (height, width), strict=True))
    return image[:, top : top + height, left : left + width]


def centre_crop(image: Tensor, size: int, resize: int) -> Tensor:
    """Return the centre crop (3, size, size) of an image (3, H, W) uint8 whose shorter side was resized to `resize`."""
    short = min(image.shape[1:])
    # A strip of one pixel by thousands would be enlarged to gigabytes, of which one square is used.
    image = centre(image, LONGEST_RATIO * short, LONGEST_RATIO * short)
    height, width = (int(resize * side / short) for side in image.shape[1:])
    return centre(resize_pixels(image, height, width), size, size)
