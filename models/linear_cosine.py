"""A linear classifier and a cosine classifier added: what an ensemble of two heads comes to."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linear_head import Linear, nonzero_norms


class LinearCosine(Linear):
    """z_k = w_k f + b_k + s cos(v_k, f): `weight` (K, d) and `bias` (K,) of the linear part, `direction` (K, d) and
    `scale`, s, of the cosine part (Gidaris and Komodakis, CVPR 2018), which starts at 0.

    Nothing is trained: `add_linear` and `set_cosine` put classifiers in.
    """

    direction: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.freeze()
        self.register_buffer("direction", torch.zeros_like(self.weight))
        self.register_buffer("scale", self.full(0.0))

    @torch.no_grad()
    def add_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Add a linear classifier, (K, d) and (K,), to the linear part."""
        self.weight.add_(weight)
        self.bias.add_(bias)

    @torch.no_grad()
    def set_cosine(self, weight: Tensor, scale: Tensor) -> None:
        """Make the cosine part that of rows (K, d) of any length and of `scale`."""
        self.direction.copy_(weight / nonzero_norms(weight))
        self.scale.copy_(scale)

    def effective_weight(self) -> Tensor | None:
        """Return the rows (K, d) that features are multiplied by, None with a cosine part."""
        return self.weight if float(self.scale) == 0 else None

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        cosine = F.linear(features / nonzero_norms(features), self.direction)
        return super().forward(features) + self.scale * cosine


def empty_linear_cosine(linear: nn.Linear) -> LinearCosine:
    """Return one of the shape of a linear classifier (K, d), with logits of 0."""
    head = LinearCosine(linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    return head
