"""The geometric-mean loss: no class of a batch may be left behind."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from losses.functional import Loss, add_constants, known_labels, true_class


class GeometricMean(Loss):
    """-mean over the classes of a batch of log(mean of p_y over the samples of the class), p the softmax of z + log n
    (Du and Wu, "No One Left Behind: Improving the Worst Categories in Long-Tailed Learning", GML, CVPR 2023, equations
    1 to 3): minus the log of the geometric mean of the classes' mean probabilities.

    It re-trains a classifier. Not for stage 1 here: its classes are those of a batch, which processes would share.
    """

    plain_logits: ClassVar[bool] = False
    shift: Tensor

    def __init__(self, class_counts: Sequence[int]) -> None:
        super().__init__()
        add_constants(self, shift=torch.as_tensor(class_counts, dtype=torch.float64).log())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        members = true_class(logits, labels)  # (B, K)
        _, labels = known_labels(labels)
        log_probability = (logits + self.shift.to(logits.dtype)).log_softmax(dim=1).gather(1, labels[:, None])
        count = members.sum(dim=0)
        present = count > 0
        # A class without a sample would have the log of 0, and a gradient that is none: it gets all samples instead,
        # and leaves the mean.
        chosen = torch.where(members | ~present, log_probability, -math.inf)
        log_mean = chosen.logsumexp(dim=0) - count.clamp(min=1).to(logits.dtype).log()
        return -torch.where(present, log_mean, 0).sum() / present.sum()
