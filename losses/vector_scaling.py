"""Vector scaling: logits multiplied and shifted by functions of the class counts."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.closed_gradient import soft_target_gradient
from losses.functional import Loss, add_constants
from losses.logit_adjustment import class_prior


class VectorScaling(Loss):
    """Cross-entropy of (n_j / n_max)^gamma z_j + tau log pi_j (Kini et al., "Label-Imbalanced and Group-Sensitive
    Classification under Overparameterization", NeurIPS 2021; pi is the class prior).

    The defaults are the values for CIFAR100-LT with an imbalance factor of 100.
    """

    plain_logits: ClassVar[bool] = True
    soft_labels: ClassVar[bool] = True
    factor: Tensor
    shift: Tensor

    def __init__(self, class_counts: Sequence[int], *, gamma: float = 0.05, tau: float = 0.75) -> None:
        super().__init__()
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        add_constants(self, factor=(counts / counts.max()) ** gamma, shift=tau * class_prior(class_counts).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,), or probabilities (B, K), to a scalar in nats."""
        return F.cross_entropy(self.factor.to(logits.dtype) * logits + self.shift.to(logits.dtype), labels)

    @staticmethod
    def logit_gradient(constants: Mapping[str, Tensor], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return B times the losses (H,) and their gradient (B, H, K) (`losses.closed_gradient`)."""
        factor = constants["factor"]
        one, nothing = factor.new_ones(()), factor.new_zeros(())
        losses, gradient = soft_target_gradient(logits.mul_(factor).add_(constants["shift"]), labels, one, nothing)
        return losses.sum(dim=0), gradient.mul_(factor)
