"""The linear classifier as a head, the base of all others."""

from typing import ClassVar

import torch
from torch import Tensor, nn


def nonzero_norms(rows: Tensor) -> Tensor:
    """Return the norms of the rows (..., d) as (..., 1), with 1 for a row of zeros: what may be divided by them.

    Unlike a small constant under the division, it leaves the gradient of such a row at a size that a step survives.
    """
    norms = rows.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, norms, 1)


class Linear(nn.Linear):
    """A copy of a linear classifier (K, d), on its device and in its dtype. The base of all other heads.

    Like every head it maps features (B, d) to logits (B, K) in nats. `rate_factors` names parameters that train at a
    multiple of the learning rate, `feature_powers` those that grow with a power of the length of the features: rows
    with -1, since features of half the length need rows of twice theirs.
    """

    rate_factors: ClassVar[dict[str, float]] = {}
    feature_powers: ClassVar[dict[str, int]] = {"weight": -1}

    def __init__(self, linear: nn.Linear) -> None:
        like = linear.weight
        super().__init__(linear.in_features, linear.out_features, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            self.weight.copy_(like)
            if linear.bias is None:
                self.bias.zero_()
            else:
                self.bias.copy_(linear.bias)

    def reset_parameters(self) -> None:
        """Draw nothing: the numbers are copied, and torch's global generator stays where it is."""

    def freeze(self) -> None:
        """Keep `weight` and `bias` as they are: only the head's own parameters are trained."""
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)

    def effective_weight(self) -> Tensor | None:
        """Return the rows (K, d) that features are multiplied by, None where they depend on the image."""
        return self.weight

    def full(self, value: float, *shape: int) -> Tensor:
        """Return a tensor of `shape`, filled with `value`, of the classifier's device and dtype."""
        return torch.full(shape, value, device=self.weight.device, dtype=self.weight.dtype)
