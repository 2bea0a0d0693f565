"""Label-aware smoothing: labels of large classes are smoothed more, for their predictions are too sure."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from losses.closed_gradient import SoftmaxForm
from losses.functional import Loss, add_constants, known_labels, mean_of, of_label, true_class


class LabelAwareSmoothing(Loss):
    """Cross-entropy against 1 - eps_y for the true class and eps_y / (K - 1) for each other one (Zhong et al.,
    "Improving Calibration for Long-Tailed Recognition", MiSLAS, CVPR 2021, its concave form).

    eps_j = smooth_tail + (smooth_head - smooth_tail) sin(pi / 2 * (n_j - n_min) / (n_max - n_min)). Where all classes
    have the same count each is as large as the largest: eps = smooth_head.

    `las_target`: "paper" is that; "released" gives each of the K classes eps_y / K, the true one too, as the released
    code does: 1 - eps_y + eps_y / K and eps_y / K.
    """

    plain_logits: ClassVar[bool] = True
    smoothing: Tensor
    released: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        smooth_head: float = 0.4,
        smooth_tail: float = 0.1,
        las_target: str = "paper",
    ) -> None:
        super().__init__()
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        span = counts.max() - counts.min()
        position = (counts - counts.min()) / span if span > 0 else torch.ones_like(counts)
        smoothing = smooth_tail + (smooth_head - smooth_tail) * (math.pi / 2 * position).sin()
        # The choice is a number too, so that instances that differ in it can be stacked.
        add_constants(self, smoothing=smoothing, released=float(las_target == "released"))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        known, labels = known_labels(labels)
        smoothing = of_label(self.smoothing.to(logits.dtype), labels)
        classes, released = logits.shape[1], self.released.to(logits.dtype)
        other = smoothing / (classes - 1 + released)
        target = torch.where(true_class(logits, labels), 1 - smoothing + released * other, other)
        return mean_of(-(target * logits.log_softmax(dim=1)).sum(dim=1), known)

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        smoothing, released = constants["smoothing"], constants["released"][:, None]
        other = smoothing / (smoothing.shape[1] - 1 + released)
        return SoftmaxForm(1 - smoothing + released * other, other)
