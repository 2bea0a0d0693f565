"""Label-aware smoothing: labels of large classes are smoothed more, for their predictions are too sure."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from losses.functional import add_constants, of_label, true_class


class LabelAwareSmoothing(nn.Module):
    """Cross-entropy against 1 - eps_y for the true class and eps_y / (K - 1) for each other one (Zhong et al.,
    "Improving Calibration for Long-Tailed Recognition", MiSLAS, CVPR 2021, its concave form).

    eps_j = smooth_tail + (smooth_head - smooth_tail) sin(pi / 2 * (n_j - n_min) / (n_max - n_min)). Where all classes
    have the same count each is as large as the largest: eps = smooth_head.
    """

    plain_logits: ClassVar[bool] = True
    smoothing: Tensor

    def __init__(self, class_counts: Sequence[int], *, smooth_head: float = 0.4, smooth_tail: float = 0.1) -> None:
        super().__init__()
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        span = counts.max() - counts.min()
        position = (counts - counts.min()) / span if span > 0 else torch.ones_like(counts)
        add_constants(self, smoothing=smooth_tail + (smooth_head - smooth_tail) * (math.pi / 2 * position).sin())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        true = true_class(logits, labels)
        smoothing = of_label(self.smoothing.to(logits.dtype), true)
        target = torch.where(true, 1 - smoothing, smoothing / (logits.shape[1] - 1))
        return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
