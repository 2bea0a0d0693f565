"""The pixels of small images as they are, for `tools.extract`: features that no network made.

python -m tools.extract --backbone benchmarks/jobs/raw_pixels.py --dataset digits --imb_ratio 30 pixels.safetensors
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def load() -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Return a network that only flattens, and what makes the brightness (1, H, W) of an image, from 0 to 1."""
    return nn.Flatten(), brightness


def brightness(image: Image.Image) -> Tensor:
    """Return the first channel (1, H, W) of an image; of grey images it is all."""
    return torch.from_numpy(np.array(image)[None, :, :, 0]).float() / 255
