"""What a classifier's probabilities are worth: likelihood, Brier score, calibration, the true class among five.

One pass over the logits, a block of rows at a time in float64: memory does not grow with the images.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.blocks import Rows, largest, row_blocks

CALIBRATION_BINS = 15
SCORES = ("ece", "classwise_ece", "brier", "nll")  # what a temperature changes, in the order in which they are shown
TOP = 5


class Scored(NamedTuple):
    """What one pass over logits (N, K) gives: the predicted classes (N,), the share of images whose label is among the
    five largest in percent (`top_accuracy`), what the probabilities are worth (`probability_scores`), their mean (K,)
    of each class in float64, and whether all logits are finite."""

    predictions: Tensor
    top_5: float | None
    scores: dict[str, float]
    means: Tensor
    finite: bool


class _Sums(NamedTuple):
    """What is added up over the images, on their device, in float64."""

    top: Tensor  # (bins,): correct minus confidence, by the bin of the top probability
    classes: Tensor  # (K * bins,): label minus probability, by class and bin of its probability
    brier: Tensor
    nll: Tensor


def bin_of(probability: Tensor, bins: int) -> Tensor:
    """Return the bin, from 0, of each probability: bins of one width, each with its upper bound; 0 is in the first."""
    return (probability * bins).ceil().long().sub_(1).clamp_(0, bins - 1)


def _no_sums(classes: int, bins: int, device: torch.device) -> _Sums:
    sizes = ((bins,), (classes * bins,), (), ())
    return _Sums(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))


def _scores_of(sums: _Sums, count: int, classes: int) -> dict[str, float]:
    return {
        "ece": 100 * float(sums.top.abs().sum()) / count,
        "classwise_ece": 100 * float(sums.classes.abs().sum()) / (count * classes),
        "brier": float(sums.brier) / count,
        "nll": float(sums.nll) / count,
    }


@torch.no_grad()
def score_logits(logits: Rows, labels: Tensor, bins: int = CALIBRATION_BINS) -> Scored:
    """Return all that one pass over logits (N, K) with labels (N,) gives (`Scored`): they are looked at once."""
    labels, classes = labels.to(logits.device), logits.shape[1]
    sums = _no_sums(classes, bins, logits.device)
    # Written in place: small results kept between large temporaries would keep the allocator from reusing their place.
    predictions = torch.empty(len(labels), dtype=torch.int64, device=logits.device)
    means = torch.zeros(classes, dtype=torch.float64, device=logits.device)
    hits, lowest, highest = (torch.zeros((), dtype=torch.float64, device=logits.device) for _ in range(3))
    for rows in row_blocks(logits):
        block, own = logits[rows], labels[rows]
        low, high = block.aminmax()
        lowest, highest = torch.minimum(lowest, low), torch.maximum(highest, high)  # NaN stays
        predictions[rows] = largest(block)
        hits += _among_top(block, own, TOP).sum()
        scaled = block.double()
        probability = scaled.softmax(dim=1)
        means += probability.sum(dim=0)
        _add(sums, scaled, probability, own, bins)
    top_5 = 100 * int(hits) / len(labels) if classes > TOP else None
    finite = bool(lowest.isfinite() & highest.isfinite())
    return Scored(predictions, top_5, _scores_of(sums, len(labels), classes), means / len(labels), finite)


@torch.no_grad()
def probability_scores(
    logits: Rows, labels: Tensor, temperature: float = 1.0, bins: int = CALIBRATION_BINS
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
    sums = _no_sums(classes, bins, logits.device)
    for rows in row_blocks(logits):
        scaled = logits[rows].double() / temperature
        _add(sums, scaled, scaled.softmax(dim=1), labels[rows], bins)
    return _scores_of(sums, len(labels), classes)


def _add(sums: _Sums, scaled: Tensor, probability: Tensor, labels: Tensor, bins: int) -> None:
    """Add a block of logits (B, K), over their temperature, with its probabilities to the sums."""
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
def top_accuracy(logits: Rows, labels: Tensor, top: int = TOP) -> float | None:
    """Return how many of the images, in percent, have their label (N,) among the `top` largest logits (N, K)
    (Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012).

    Of equal logits the class of the lower number comes first, as for the prediction itself. NaN comes before all, and
    an image whose class has NaN is not right. None where there are no more than `top` classes: all would be among them.
    """
    if logits.shape[1] <= top:
        return None
    labels, hits = labels.to(logits.device), 0
    for rows in row_blocks(logits):
        hits += int(_among_top(logits[rows], labels[rows], top).sum())
    return 100 * hits / len(labels)


def _among_top(logits: Tensor, labels: Tensor, top: int) -> Tensor:
    """Tell for each row of logits (B, K) whether its label is among the `top` largest, of equal ones the first.

    NaN is the largest, as for `argmax`, and a label whose logit is NaN is not among them: what diverged is not right.
    """
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
    return before.sum(dim=1) < top
