"""Gaussian clouded logits: random margins, the larger the rarer the class."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.functional import add_constants


class GaussianClouded(nn.Module):
    """Cross-entropy of z_j - scale * noise * delta_j * |e| (Li et al., "Long-Tailed Visual Recognition via Gaussian
    Clouded Logit Adjustment", CVPR 2022).

    delta_j = log n_max - log n_j over its largest value, 0 for every class where all counts are equal. e is drawn anew
    for each sample and class, the true one included, from a normal distribution of deviation 1/3 clamped to [-1, 1],
    as in the released code, and from torch's global generator. The logits are those of a cosine head, already
    multiplied by its `scale`. Under `vmap` choose `randomness`: with "same" each instance sees the clouds it would see
    alone.
    """

    plain_logits: ClassVar[bool] = False
    clouds: Tensor

    def __init__(self, class_counts: Sequence[int], *, scale: float = 30.0, noise: float = 0.5) -> None:
        super().__init__()
        logs = torch.as_tensor(class_counts, dtype=torch.float64).log()
        sizes = logs.max() - logs
        if sizes.max() > 0:
            sizes = sizes / sizes.max()
        add_constants(self, clouds=scale * noise * sizes)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        noise = torch.randn(logits.shape, dtype=logits.dtype, device=logits.device)
        draws = (noise / 3).clamp(-1, 1).abs()
        return F.cross_entropy(logits - self.clouds.to(logits.dtype) * draws, labels)
