"""What a classifier's probabilities are worth: likelihood, Brier score, calibration, the true class among five.

One pass over the logits, a block of rows at a time in float64: memory does not grow with the images.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.blocks import row_blocks

CALIBRATION_BINS = 15
SCORES = ("ece", "classwise_ece", "brier", "nll")  # what a temperature changes, in the order in which they are shown
TOP = 5


class _Sums(NamedTuple):
    """What is added up over the images, on their device, in float64."""

    top: Tensor  # (bins,): correct minus confidence, by the bin of the top probability
    classes: Tensor  # (K * bins,): label minus probability, by class and bin of its probability
    brier: Tensor
    nll: Tensor


def bin_of(probability: Tensor, bins: int) -> Tensor:
    """Return the bin, from 0, of each probability: bins of one width, each with its upper bound; 0 is in the first."""
    return (probability * bins).ceil().long().sub_(1).clamp_(0, bins - 1)


@torch.no_grad()
def probability_scores(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, bins: int = CALIBRATION_BINS
) -> dict[str, float]:
    """Return what softmax(z / T) is worth, for logits z (N, K) and labels (N,): means over the images.

    - `ece`: expected calibration error of the top class, in percent (Guo et al., ICML 2017), as `calibration_error`;
    - `classwise_ece`: that of every class's probability, whether or not it is the largest, the mean over all K classes,
      in percent (Kull et al., "Beyond temperature scaling", NeurIPS 2019): mean over k of the sum over bins of
      |images of class k - sum of p_k| / N. A class without an image has frequency 0 in every bin, and counts;
    - `brier`: sum over the classes of (p_k - y_k)^2, between 0 and 2 (Brier, 1950);
    - `nll`: -log of the true class's probability, in nats.
    """
    labels, classes = labels.to(logits.device), logits.shape[1]
    sizes = ((bins,), (classes * bins,), (), ())
    sums = _Sums(*(torch.zeros(size, dtype=torch.float64, device=logits.device) for size in sizes))
    for rows in row_blocks(logits):
        _add(sums, logits[rows].double() / temperature, labels[rows], bins)
    count = len(labels)
    return {
        "ece": 100 * float(sums.top.abs().sum()) / count,
        "classwise_ece": 100 * float(sums.classes.abs().sum()) / (count * classes),
        "brier": float(sums.brier) / count,
        "nll": float(sums.nll) / count,
    }


def _add(sums: _Sums, scaled: Tensor, labels: Tensor, bins: int) -> None:
    """Add a block of logits (B, K), over their temperature, to the sums."""
    probability = scaled.softmax(dim=1)
    confidence, prediction = probability.max(dim=1)
    sums.top.index_add_(0, bin_of(confidence, bins), (prediction == labels).double() - confidence)
    true = probability.gather(1, labels[:, None]).squeeze(1)
    sums.nll.add_((scaled.logsumexp(dim=1) - scaled.gather(1, labels[:, None]).squeeze(1)).sum())
    # (1 - p_y)^2 and the squares of the others: nothing cancels where p_y is near 1.
    others = probability.scatter(1, labels[:, None], 0.0)
    sums.brier.add_((1 - true).square().sum() + others.square().sum())
    # Of a row, fewer than `bins` probabilities are above the first bin: these alone are looked up.
    first = probability * bins <= 1
    sums.classes.view(-1, bins)[:, 0].sub_(probability.where(first, 0.0).sum(dim=0))
    image, label = (~first).nonzero(as_tuple=True)
    large = probability[image, label]
    sums.classes.index_add_(0, label * bins + bin_of(large, bins), -large)
    sums.classes.index_add_(0, labels * bins + bin_of(true, bins), torch.ones_like(true))


@torch.no_grad()
def top_accuracy(logits: Tensor, labels: Tensor, top: int = TOP) -> float | None:
    """Return how many of the images, in percent, have their label (N,) among the `top` largest logits (N, K)
    (Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012).

    Of equal logits the class of the lower number comes first, as for the prediction itself. None where there are no
    more than `top` classes: all would be among them.
    """
    if logits.shape[1] <= top:
        return None
    labels, hits = labels.to(logits.device), 0
    classes = torch.arange(logits.shape[1], device=logits.device)
    for rows in row_blocks(logits):
        own = logits[rows].gather(1, labels[rows, None])
        before = (logits[rows] > own) | ((logits[rows] == own) & (classes < labels[rows, None]))
        hits += int((before.sum(dim=1) < top).sum())
    return 100 * hits / len(labels)
