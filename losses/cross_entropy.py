"""Cross-entropy against a target (y_true, y_other): plain, label-smoothed and over-smoothed alike."""

import torch
from torch import Tensor, nn

from losses.los import ONE_HOT, Target
from losses.parts import add_constants


class CrossEntropy(nn.Module):
    """Mean of -y_true log p_y - y_other sum_{j != y} log p_j over a batch; p is the softmax of the logits.

    `target` ONE_HOT is plain cross-entropy; with `torch_target(s, K)` it equals
    `nn.CrossEntropyLoss(label_smoothing=s)`.
    """

    true: Tensor
    other: Tensor

    def __init__(self, target: Target = ONE_HOT) -> None:
        super().__init__()
        true, other = target
        add_constants(self, true=true, other=other)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        log_probability = logits.log_softmax(dim=1)
        true, other = self.true.to(logits.dtype), self.other.to(logits.dtype)
        # One-hot labels leave the sum out: for a logit of minus infinity it is infinite, and 0 * inf would be NaN.
        everything = torch.where(other > 0, log_probability.sum(dim=1).mean(), 0)
        return (other - true) * log_probability.gather(1, labels[:, None]).mean() - other * everything
