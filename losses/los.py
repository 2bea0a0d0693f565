"""Label over-smoothing, the loss of LOS / LORT (Sun et al., ICLR 2025, arXiv 2403.00250), target and loss together.

Stage 2 re-trains a classifier on frozen features with cross-entropy against a soft target. The target is a pair
(y_true, y_other): the probability of the true class and that of each of the K - 1 others, with
y_true + (K - 1) * y_other = 1. Ordinary label smoothing takes a little off a one-hot target. LOS takes nearly
everything off: at s = 0.98 and K = 100 the true class gets 0.0298 and each other 0.0098. No class counts are needed.

Two conventions exist for one smoothing value, the same but for a change of variable:

- `torch` (s): y_true = 1 - s + s / K, y_other = s / K. The true class keeps its share of what is spread. This is
  PyTorch's `label_smoothing`, and what the authors' released code runs.
- `rest` (d): y_true = 1 - d, y_other = d / (K - 1). The other reading of the paper's text. It equals `torch` at
  s = d * K / (K - 1), and it needs d < (K - 1) / K, or the true class would get less than the others.

With p the softmax of the logits z, the loss of a sample of class y is

    l(z, y) = -y_true * log p_y - y_other * sum_{j != y} log p_j

and its gradient in z is p minus the target. So the loss is smallest where p is the target: where the true logit
leads every other one by the gap ln(y_true / y_other), which is ln(1 + K * (1 - s) / s) in the `torch` convention.
One-hot labels ask for an infinite gap, over-smoothing for a small one, the same for large and for small classes.

An example, for three classes:

>>> import torch
>>> from losses.los import CrossEntropy, optimal_gap, smoothing_for_gap, torch_target
>>> target = torch_target(0.9, 3)                           # s = 0.9: (1 - 0.9 + 0.3, 0.3)
>>> [round(probability, 4) for probability in target]
[0.4, 0.3]
>>> round(optimal_gap(target), 4)                           # ln(0.4 / 0.3)
0.2877
>>> round(smoothing_for_gap(0.2877, 3), 4)                  # and back
0.9
>>> loss = CrossEntropy(target)
>>> logits, labels = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])
>>> round(float(loss(logits, labels)), 4)
1.3076
>>> pytorch = torch.nn.CrossEntropyLoss(label_smoothing=0.9)
>>> torch.testing.assert_close(loss(logits, labels), pytorch(logits, labels))
>>> best = torch.tensor([[optimal_gap(target), 0.0, 0.0]])  # no other logits have a smaller loss
>>> round(float(loss(best, labels)), 4)
1.0889
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from losses.closed_gradient import SoftmaxForm
from losses.functional import Loss, add_constants, known_labels, mean_of
from utils.errors import UserError
from utils.parameters import GAP, SMOOTHING

Target = tuple[float, float]  # (y_true, y_other)

ONE_HOT: Target = (1.0, 0.0)  # plain cross-entropy


def torch_target(smoothing: float, num_classes: int) -> Target:
    """Return the target (1 - s + s / K, s / K) of PyTorch's `label_smoothing`, for the smoothing s and K classes.

    Raises UserError for an s that is not in [0, 1).
    """
    if smoothing not in SMOOTHING:
        raise UserError(f"--label_smooth must be {SMOOTHING}, not {smoothing:g}")
    return 1 - smoothing + smoothing / num_classes, smoothing / num_classes


def rest_target(smoothing: float, num_classes: int) -> Target:
    """Return the target (1 - d, d / (K - 1)), for the smoothing d and K classes.

    Raises UserError for a d that is not in [0, (K - 1) / K): above it the true class would get less than the others.
    """
    limit = (num_classes - 1) / num_classes
    if not 0 <= smoothing < limit:
        raise UserError(
            f"--label_smooth {smoothing:g} is outside 0 <= d < {limit:g}, where the (1 - d, d / (K - 1)) convention "
            f"gives the true one of {num_classes} classes more than the others; --method los has no such limit"
        )
    return 1 - smoothing, smoothing / (num_classes - 1)


TARGETS = {"torch": torch_target, "rest": rest_target}


def optimal_gap(target: Target) -> float:
    """Return ln(y_true / y_other): the gap between true and other logits at which the loss of a sample is smallest.

    It is infinite for one-hot labels, and 1.11 for s = 0.98 at K = 100.
    """
    true, other = target
    return math.log(true / other) if other > 0 else math.inf


def smoothing_for_gap(gap: float, num_classes: int, convention: str = "torch") -> float:
    """Return the smoothing whose optimal gap is `gap`, so that one value serves any number of classes.

    `torch`: s = K / (K + exp(gap) - 1), the inverse of gap = ln(1 + K (1 - s) / s). `rest`: d = s (K - 1) / K.
    Raises UserError for a gap that is not in [1e-6, 100].
    """
    if gap not in GAP:
        raise UserError(f"--loma_target must be {GAP}, not {gap:g}")
    smoothing = num_classes / (num_classes + math.expm1(gap))
    return smoothing if convention == "torch" else smoothing * (num_classes - 1) / num_classes


class CrossEntropy(Loss):
    """Mean over the batch of -y_true log p_y - y_other sum_{j != y} log p_j; p is the softmax of the logits.

    It is LOS (Sun et al., ICLR 2025) with a target of `torch_target` or `rest_target` at a large smoothing, label
    smoothing (Szegedy et al., CVPR 2016) at a small one, and plain cross-entropy with ONE_HOT. With
    `torch_target(s, K)` it equals `nn.CrossEntropyLoss(label_smoothing=s)`, value and gradient. Of labels that are
    probabilities (B, K) it takes the mixture, sum_y t_y times the loss of class y, as that does.
    """

    plain_logits: ClassVar[bool] = True
    soft_labels: ClassVar[bool] = True
    true: Tensor
    other: Tensor

    def __init__(self, target: Target = ONE_HOT) -> None:
        super().__init__()
        true, other = target
        add_constants(self, true=true, other=other)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,), or probabilities (B, K), to a scalar in nats."""
        log_probability = logits.log_softmax(dim=1)
        true, other = self.true.to(logits.dtype), self.other.to(logits.dtype)
        # Written as (y_other - y_true) log p_y - y_other sum_j log p_j, with the sum over all classes.
        # One-hot labels leave the sum out: for a logit of minus infinity it is infinite, and 0 * inf would be NaN.
        everything = torch.where(other > 0, log_probability.sum(dim=1), 0)
        if labels.is_floating_point():
            return ((other - true) * (labels * log_probability).sum(dim=1) - other * everything).mean()
        known, labels = known_labels(labels)
        log_true = log_probability.gather(1, labels[:, None])[:, 0]
        return mean_of((other - true) * log_true - other * everything, known)

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        return SoftmaxForm(constants["true"][:, None], constants["other"][:, None])
