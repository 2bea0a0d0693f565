"""Balanced softmax: the softmax that is right for a balanced test set when training on an imbalanced one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.cross_entropy import CrossEntropy
from losses.los import ONE_HOT, Target
from losses.parts import add_constants


class BalancedSoftmax(CrossEntropy):
    """Cross-entropy of z + log n against `target` (Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual
    Recognition", NeurIPS 2020). It equals logit adjustment with tau = 1: the two shifts differ by a constant."""

    shift: Tensor

    def __init__(self, class_counts: Sequence[int], target: Target = ONE_HOT) -> None:
        super().__init__(target)
        add_constants(self, shift=torch.as_tensor(class_counts, dtype=torch.float64).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        return super().forward(logits + self.shift.to(logits.dtype), labels)
