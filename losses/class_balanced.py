"""Class-balanced losses: samples weighted by the inverse of their class's effective number of images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.closed_gradient import SoftmaxForm, one_hot_form
from losses.functional import IGNORED, Loss, add_constants, known_labels, log_rest, mean_of, of_label, true_class
from utils.distributed import process_count, sum_over_processes


def effective_number_weights(class_counts: Sequence[int], beta: float) -> Tensor:
    """Return weights (K,) float64 in proportion to (1 - beta) / (1 - beta^n), with sum K, for beta in [0, 1).

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019. beta = 0 weighs every
    class alike; beta -> 1 weighs it by 1 / n.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    # 1 - beta^n through expm1: for beta close to 1 the difference would lose its digits. log(0) = -inf serves beta = 0.
    weights = -1 / torch.expm1(counts * torch.tensor(beta, dtype=torch.float64).log())
    return len(counts) * weights / weights.sum()


def weight_of_batch(weights: Tensor, labels: Tensor) -> Tensor:
    """Return what the sum of w_y times a loss over labels (B,) is divided by to be the mean of their weights (K,).

    Of a batch that many processes share, the sum of w_y is that of all: the mean of their losses, each weighted by its
    number of labelled samples, is the loss of the whole batch.
    """
    known, labels = known_labels(labels)
    here = torch.where(known, weights.gather(0, labels), 0).sum()
    if process_count() == 1:
        return here
    count = known.sum().to(here)
    weight, every = sum_over_processes(torch.stack([here, count]))
    return weight * count / every


class ClassBalancedCrossEntropy(Loss):
    """Sum over the batch of w_y * cross-entropy, w from `effective_number_weights` (Cui et al., CVPR 2019), divided by
    the number of its samples ("batch"; their code) or by the sum of its w_y ("weight"; the code of LDAM-DRW, Cao et
    al., NeurIPS 2019), as `cb_mean` says."""

    plain_logits: ClassVar[bool] = True
    weights: Tensor
    by_weights: Tensor

    def __init__(self, class_counts: Sequence[int], *, beta: float = 0.9999, cb_mean: str = "batch") -> None:
        super().__init__()
        # The choice is a number too, so that instances that differ in it can be stacked.
        by_weights = float(cb_mean == "weight")
        add_constants(self, weights=effective_number_weights(class_counts, beta), by_weights=by_weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        weights = self.weights.to(logits.dtype)
        losses = F.cross_entropy(logits, labels, weights, reduction="none")
        weight = weight_of_batch(weights, labels)
        return losses.sum() / torch.where(self.by_weights > 0, weight, (labels != IGNORED).sum())

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        weights, by_weights = constants["weights"], constants["by_weights"][:, None]
        return one_hot_form(weights, weights=weights, by_weights=by_weights)


def inverse_frequency_weights(class_counts: Sequence[int], rho: float) -> Tensor:
    """Return weights (K,) float64 in proportion to (1 / n)^rho, with sum K: rho = 0 weighs every class alike.

    None is below 1e-30: in float32 it would be 0, and a batch of such classes alone would have no weighted mean.
    """
    logs = -rho * torch.as_tensor(class_counts, dtype=torch.float64).log()
    return (len(logs) * logs.softmax(dim=0)).clamp(min=1e-30)


class InverseFrequencyCrossEntropy(Loss):
    """Sum over the batch of w_y * cross-entropy over the sum of its w_y, w from `inverse_frequency_weights`.

    The generalised re-weighting of DisAlign (Zhang et al., CVPR 2021), which MARC (Wang et al., ACML 2022) shares.
    """

    plain_logits: ClassVar[bool] = True
    weights: Tensor

    def __init__(self, class_counts: Sequence[int], *, rho: float = 1.2) -> None:
        super().__init__()
        add_constants(self, weights=inverse_frequency_weights(class_counts, rho))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        weights = self.weights.to(logits.dtype)
        return F.cross_entropy(logits, labels, weights, reduction="sum") / weight_of_batch(weights, labels)

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        weights = constants["weights"]
        return one_hot_form(weights, weights=weights, by_weights=weights.new_ones(len(weights), 1))


class ClassBalancedBinary(Loss):
    """Weight Balancing's class-balanced loss, as its code computes it (Alshammari et al., CVPR 2022).

    The K softmax outputs of a sample are taken as K yes-or-no answers: binary cross-entropy of each, times w_y of the
    sample's class, averaged over all B * K outputs. Torch clamps such logarithms at -100; here they are exact.
    """

    plain_logits: ClassVar[bool] = True
    weights: Tensor

    def __init__(self, class_counts: Sequence[int], *, beta: float = 0.9999) -> None:
        super().__init__()
        add_constants(self, weights=effective_number_weights(class_counts, beta))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats an output."""
        true = true_class(logits, labels)
        log_probability = logits.log_softmax(dim=1)
        # log(1 - p): at most one p of a sample can be close to 1, the largest; log1p is exact for the others.
        top = true_class(logits, logits.argmax(dim=1))
        small = log_probability.exp().masked_fill(top, 0)
        log_no = torch.where(top, log_rest(log_probability, top), torch.log1p(-small))
        known, labels = known_labels(labels)
        weights = of_label(self.weights.to(logits.dtype), labels)
        return mean_of(-(weights * torch.where(true, log_probability, log_no)).mean(dim=1), known)

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        return replace(one_hot_form(constants["weights"], weights=constants["weights"]), binary=True)
