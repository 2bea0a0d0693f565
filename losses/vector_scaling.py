"""Vector scaling: logits multiplied and shifted by functions of the class counts."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.closed_gradient import SoftmaxForm, one_hot_form
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
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        return one_hot_form(constants["factor"], factor=constants["factor"], shift=constants["shift"])
