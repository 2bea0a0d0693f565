"""Gaussian clouded logits: random margins, the larger the rarer the class."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.functional import Loss, add_constants, known_labels, mean_of, true_class

MARGIN = 0.1  # on the true cosine, in the released stage 2 (`m` of its classifier training for CIFAR)
FOCUS = 1.0  # exponent of the focal factor there (`gamma`)


class GaussianClouded(Loss):
    """Cross-entropy of z_j - scale * noise * delta_j * |e| (Li et al., "Long-Tailed Visual Recognition via Gaussian
    Clouded Logit Adjustment", CVPR 2022).

    delta_j = log n_max - log n_j over its largest value, 0 for every class where all counts are equal. e is drawn anew
    for each sample and class, the true one included, from a normal distribution of deviation 1/3 clamped to [-1, 1],
    as in the released code, and from torch's global generator. The logits are those of a cosine head, already
    multiplied by its `scale`. Under `vmap` choose `randomness`: with "same" each instance sees the clouds it would see
    alone.

    `gcl_loss`: "paper" is that; "released" is the loss of the released stage 2, which also takes scale * MARGIN off the
    true logit and multiplies each sample's loss by (1 - p_y)^FOCUS, a factor that is not differentiated.
    """

    plain_logits: ClassVar[bool] = False
    clouds: Tensor
    margin: Tensor
    focus: Tensor

    def __init__(
        self, class_counts: Sequence[int], *, scale: float = 30.0, noise: float = 0.5, gcl_loss: str = "paper"
    ) -> None:
        super().__init__()
        logs = torch.as_tensor(class_counts, dtype=torch.float64).log()
        sizes = logs.max() - logs
        if sizes.max() > 0:
            sizes = sizes / sizes.max()
        # The choice is two numbers, so that instances that differ in it can be stacked.
        released = float(gcl_loss == "released")
        add_constants(self, clouds=scale * noise * sizes, margin=scale * MARGIN * released, focus=FOCUS * released)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        noise = torch.randn(logits.shape, dtype=logits.dtype, device=logits.device)
        draws = (noise / 3).clamp(-1, 1).abs()
        known, labels = known_labels(labels)
        margins = self.margin.to(logits.dtype) * true_class(logits, labels)
        losses = F.cross_entropy(logits - self.clouds.to(logits.dtype) * draws - margins, labels, reduction="none")
        factor = (-torch.expm1(-losses.detach())) ** self.focus.to(logits.dtype)
        return mean_of(factor * losses, known)
