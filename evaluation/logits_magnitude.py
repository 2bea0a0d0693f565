"""Logits Magnitude (LoMa) and Regularized Standard Deviation (RSD), the metrics of the LOS paper."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.blocks import Rows, row_blocks
from evaluation.metrics import finite_or_none

LEAST_ROWS = 16  # of a block: with fewer, joining its moments, a few numbers a class, costs more than making them
# LoMa, both deviations and both RSD per class, in each reading.
Readings = dict[str, dict[str, list[float | None]]]


class Moments(NamedTuple):
    """Of sets of numbers, each a tensor of one shape in float64: how many, mean (0 of none), squared deviations."""

    rows: Tensor
    mean: Tensor
    squares: Tensor

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of each set joined with the other's (Chan, Golub and LeVeque, "Updating formulae and a
        pairwise algorithm for computing sample variances", 1979). Equal means are kept to the last bit."""
        share = other.rows / (self.rows + other.rows).clamp(min=1)
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta.square() * self.rows * share
        return Moments(self.rows + other.rows, self.mean + delta * share, squares)

    def deviation(self) -> Tensor:
        """Return the sample deviation of each set, NaN below two numbers."""
        return torch.where(self.rows > 1, self.squares / (self.rows - 1), torch.nan).sqrt()

    def known_mean(self) -> Tensor:
        """Return the mean of each set, NaN where it is empty."""
        return torch.where(self.rows > 0, self.mean, torch.nan)


def true_moments(values: Tensor, labels: Tensor, count: Tensor) -> Moments:
    """Return, for each class, the moments (K,) of the `values` (N, K) of its column in its own `count` (K,) rows."""
    own = values.gather(1, labels[:, None]).squeeze(1)
    # Sums of distances to one of the numbers, the smallest: 0, and not a rounding error, where all are equal. Found by
    # sorting: PyTorch refuses to scatter a minimum where results on CUDA shall repeat bit for bit.
    order = own.argsort()
    order = order[labels[order].argsort(stable=True)]
    first = (count.cumsum(0) - count).long().clamp(max=len(own) - 1)
    pivot = torch.where(count > 0, own[order[first]], 0.0)
    divisor = count.clamp(min=1)
    shift = torch.zeros_like(count).index_add_(0, labels, own - pivot[labels]) / divisor
    distance = own - pivot[labels] - shift[labels]
    return Moments(count, pivot + shift, torch.zeros_like(count).index_add_(0, labels, distance.square()))


def other_moments(values: Tensor, labels: Tensor, count: Tensor) -> Moments:
    """Return, for each class, the moments (K,) of the `values` (N, K) of its column in the `count` (K,) other rows."""
    pivot = values[0].clone()  # is another row for all classes but its own, which takes the first row of another class
    first = labels[:1]
    pivot[first] = values[(labels != first).long().argmax(), first]
    distance = (values - pivot).scatter_(1, labels[:, None], 0.0)
    shift = distance.sum(dim=0) / count.clamp(min=1)
    distance.sub_(shift).scatter_(1, labels[:, None], 0.0)
    return Moments(count, torch.where(count > 0, pivot + shift, 0.0), distance.square_().sum(dim=0))


class MagnitudeStatistics:
    """LoMa and RSD (LOS, ICLR 2025) of any number of logits in one pass: `add` a block of rows, then `result`.

    Keeps a few numbers a class in float64, whatever the number of rows. Each block's means and squared deviations are
    computed in two passes over it and merged with those before (Chan et al., 1979), so that nothing cancels. Equal
    logits have deviation 0 exactly.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        zeros = torch.zeros(4, num_classes, dtype=torch.float64)
        # Of each class: its centred logit over its own rows and over the others, and its raw logit over both.
        self.moments = Moments(zeros, zeros, zeros)

    @torch.no_grad()
    def add(self, logits: Rows, labels: Tensor) -> None:
        """Take in further logits (N, K), any N, with labels (N,) in [0, K); works on the device of the logits."""
        labels = labels.to(logits.device)
        self.moments = Moments(*(part.to(logits.device) for part in self.moments))
        for rows in row_blocks(logits, least=LEAST_ROWS):
            self.moments = self.moments.merged(self._of_block(logits[rows].double(), labels[rows]))

    def _of_block(self, raw: Tensor, labels: Tensor) -> Moments:
        count = torch.bincount(labels, minlength=self.num_classes).double()
        parts = []
        for values in (raw - raw.mean(dim=1, keepdim=True), raw):
            parts.append(true_moments(values, labels, count))
            parts.append(other_moments(values, labels, len(labels) - count))
        return Moments(*(torch.stack(part) for part in zip(*parts, strict=True)))

    def result(self) -> Readings:
        """Return what `logits_magnitude` returns, of all rows so far."""
        mean, deviation = self.moments.known_mean().cpu(), self.moments.deviation().cpu()
        # z_k - mean_{j != k} z_j = K / (K - 1) * (z_k - mean_j z_j): the row reading is a multiple of the centred one.
        row = self.num_classes / (self.num_classes - 1)
        readings = {
            "column": (mean[0] - mean[1], deviation[0], deviation[1]),
            "row": (row * mean[0], row * deviation[0], row * deviation[1]),
            "uncentred": (mean[2] - mean[3], deviation[2], deviation[3]),
        }
        result = {}
        for name, (loma, sigma_true, sigma_other) in readings.items():
            divisor = torch.where(loma > 1e-6, loma, torch.nan)
            columns = {
                "loma": loma,
                "sigma_true": sigma_true,
                "sigma_other": sigma_other,
                "rsd_true": sigma_true / divisor,
                "rsd_other": sigma_other / divisor,
            }
            result[name] = {key: [finite_or_none(x) for x in value.tolist()] for key, value in columns.items()}
        return result


def logits_magnitude(logits: Rows, labels: Tensor) -> Readings:
    """Return LoMa, both deviations and both RSD per class, in the readings that the definition allows.

    Sun et al., "Rethinking Classifier Re-Training in Long-Tailed Recognition: Label Over-Smooth Can Balance" (LOS),
    ICLR 2025. All but RSD, a ratio, are in the unit of the logits, nats; labels are (N,).
    Logits z (N, K) are centred per sample first, because softmax knows them only up to a constant.

    - `column`: LoMa_k is the mean of z_k over the samples of class k minus its mean over all other samples;
      `sigma_true` and `sigma_other` are the deviations of z_k over these two sets.
    - `row`: the same with z_k minus the mean of the sample's other logits in place of z_k, and LoMa_k its mean over the
      samples of class k.
    - `uncentred`: the column reading of the logits as they are, for comparison; a constant added to all logits of a
      sample, which changes no prediction, changes it.

    RSD is a deviation divided by LoMa. What does not exist is None: RSD where LoMa <= 1e-6, a deviation below two
    samples, LoMa of an absent class. `MagnitudeStatistics` takes the logits a part at a time.
    """
    statistics = MagnitudeStatistics(logits.shape[1])
    statistics.add(logits, labels)
    return statistics.result()


def summarise(values: list[float | None]) -> dict[str, Any]:
    """Return mean, sample deviation, their ratio (`variation`) and median over the classes that have a value, and the
    `count` of those: an RSD whose LoMa is not positive has none, and one whose LoMa is small can be any number."""
    known = np.array([value for value in values if value is not None], dtype=float)
    mean = float(known.mean()) if len(known) else math.nan
    deviation = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    variation = deviation / mean if mean > 1e-6 else math.nan
    median = float(np.median(known)) if len(known) else math.nan
    summary = {"mean": mean, "deviation": deviation, "variation": variation, "median": median}
    return {**{name: finite_or_none(value) for name, value in summary.items()}, "count": len(known)}
