"""Logit adjustment: cross-entropy that adds the log of the class prior to the logits while training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from losses.closed_gradient import SoftmaxForm
from losses.functional import add_constants
from losses.los import ONE_HOT, CrossEntropy, Target


def class_prior(class_counts: Sequence[int]) -> Tensor:
    """Return n_j / sum n (K,) float64."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    return counts / counts.sum()


class LogitAdjustment(CrossEntropy):
    """Cross-entropy of z + tau log pi against `target` (Menon et al., "Long-tail learning via logit adjustment",
    ICLR 2021, eq. 10); pi is the class prior."""

    shift: Tensor

    def __init__(self, class_counts: Sequence[int], target: Target = ONE_HOT, *, tau: float = 1.0) -> None:
        super().__init__(target)
        add_constants(self, shift=tau * class_prior(class_counts).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,), or probabilities (B, K), to a scalar in nats."""
        return super().forward(logits + self.shift.to(logits.dtype), labels)

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        return replace(CrossEntropy.softmax_form(constants), shift=constants["shift"])


class BalancedSoftmax(CrossEntropy):
    """Cross-entropy of z + log n against `target` (Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual
    Recognition", NeurIPS 2020). It equals logit adjustment with tau = 1: the two shifts differ by a constant."""

    shift: Tensor

    def __init__(self, class_counts: Sequence[int], target: Target = ONE_HOT) -> None:
        super().__init__(target)
        add_constants(self, shift=torch.as_tensor(class_counts, dtype=torch.float64).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,), or probabilities (B, K), to a scalar in nats."""
        return super().forward(logits + self.shift.to(logits.dtype), labels)

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        return replace(CrossEntropy.softmax_form(constants), shift=constants["shift"])
