"""Networks of several kinds as modules that map images to features."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.network import Network


class FeaturesOf(nn.Module):
    """The features (B, d) of a network of `models`, without its classifier."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        network.fc = nn.Identity()  # type: ignore[assignment]
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, d)."""
        return self.network.features(images)


class Embedder(nn.Module):
    """The image side of a model of images and texts: embeddings (B, d) of unit length."""

    def __init__(self, model: nn.Module, encode: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self.encode = encode

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to embeddings (B, d)."""
        return F.normalize(self.encode(self.model, images).float(), dim=-1)


class OutputOf(nn.Module):
    """A model whose answer is a record, of which `pick` takes the features."""

    def __init__(self, model: nn.Module, pick: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.pick = pick

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, d)."""
        return self.pick(self.model(pixel_values=images))
