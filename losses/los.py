"""Label over-smoothing: the target of LOS / LORT (ICLR 2025, arXiv 2403.00250), apart from the loss that uses it.

A target is a pair (y_true, y_other): the probability of the true class and that of each other one, with
y_true + (K - 1) * y_other = 1. Two conventions exist for one smoothing value:

- `torch`: y_true = 1 - s + s / K, y_other = s / K. PyTorch's `label_smoothing`, and what the released code runs.
- `rest`: y_true = 1 - d, y_other = d / (K - 1). The other reading of the paper's text; equal to `torch` at
  s = d * K / (K - 1).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from losses.functional import add_constants
from utils.errors import UserError
from utils.parameters import Range

Target = tuple[float, float]

ONE_HOT: Target = (1.0, 0.0)

SMOOTHING = Range(0, 1, "[)")  # values of --label_smooth; `rest_target` takes fewer
GAP = Range(1e-6, 100)  # values of --loma_target


def torch_target(smoothing: float, num_classes: int) -> Target:
    """Return (1 - s + s / K, s / K) for s in [0, 1)."""
    if smoothing not in SMOOTHING:
        raise UserError(f"--label_smooth must be {SMOOTHING}, not {smoothing:g}")
    return 1 - smoothing + smoothing / num_classes, smoothing / num_classes


def rest_target(smoothing: float, num_classes: int) -> Target:
    """Return (1 - d, d / (K - 1)) for d in [0, (K - 1) / K): above it the true class would get less than the others."""
    limit = (num_classes - 1) / num_classes
    if not 0 <= smoothing < limit:
        raise UserError(
            f"--label_smooth {smoothing:g} is outside 0 <= d < {limit:g}, where the (1 - d, d / (K - 1)) convention "
            f"gives the true one of {num_classes} classes more than the others; --method los has no such limit"
        )
    return 1 - smoothing, smoothing / (num_classes - 1)


TARGETS = {"torch": torch_target, "rest": rest_target}


def optimal_gap(target: Target) -> float:
    """Return ln(y_true / y_other): the gap between true and other logits at which the loss of a sample is smallest."""
    true, other = target
    return math.log(true / other) if other > 0 else math.inf


def smoothing_for_gap(gap: float, num_classes: int, convention: str = "torch") -> float:
    """Return the smoothing whose optimal gap is `gap` > 0, so that one value serves any number of classes.

    `torch`: s = K / (K + exp(gap) - 1), the inverse of gap = ln(1 + K (1 - s) / s). `rest`: d = s (K - 1) / K.
    """
    if gap not in GAP:
        raise UserError(f"--loma_target must be {GAP}, not {gap:g}")
    smoothing = num_classes / (num_classes + math.expm1(gap))
    return smoothing if convention == "torch" else smoothing * (num_classes - 1) / num_classes


class CrossEntropy(nn.Module):
    """Mean of -y_true log p_y - y_other sum_{j != y} log p_j over a batch; p is the softmax of the logits.

    `target` ONE_HOT is plain cross-entropy; with `torch_target(s, K)` it equals
    `nn.CrossEntropyLoss(label_smoothing=s)`.
    """

    plain_logits: ClassVar[bool] = True
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
