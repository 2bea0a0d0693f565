"""What is measured on logits and features: accuracy by shot, F1, calibration, LoMa and RSD. Functions on tensors.

Whatever is computed in float64 is computed a block of rows at a time: memory does not grow with the images, and time
grows with them and with the classes as the work does.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MANY_ABOVE = 100
FEW_BELOW = 20
SHOTS = ["many", "medium", "few"]
CALIBRATION_BINS = 15
# Numbers that are handled together in float64. On a CPU, temporaries of more than a few MB leave the cache and are
# mapped anew, page by page, at every use, which takes several times as long; a GPU wants work enough for each kernel.
CPU_BLOCK, GPU_BLOCK = 1 << 18, 1 << 24

Report = dict[str, Any]
# LoMa, both deviations and both RSD per class, in each reading.
Readings = dict[str, dict[str, list[float | None]]]


def row_blocks(values: Tensor, device: torch.device | None = None) -> Iterator[slice]:
    """Yield the rows of `values` (N, K), in order, in blocks of at most `CPU_BLOCK` numbers, at least one row each, or
    `GPU_BLOCK` where the `device` that computes, that of `values` if not given, is no CPU."""
    block = CPU_BLOCK if (device or values.device).type == "cpu" else GPU_BLOCK
    rows = max(block // max(values.shape[1], 1), 1)
    for start in range(0, len(values), rows):
        yield slice(start, min(start + rows, len(values)))


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return a mask (K,) a group: many > 100 training images, medium 20 to 100, few < 20 (OLTR, 2019)."""
    many, few = class_counts > MANY_ABOVE, class_counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def calibration_error(logits: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS, temperature: float = 1.0) -> float:
    """Return the expected calibration error of softmax(logits / temperature) in percent, equal-width bins of the top
    probability (Guo et al., 2017)."""
    labels = labels.to(logits.device)
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    for rows in row_blocks(logits):
        confidence, prediction = (logits[rows].double() / temperature).softmax(dim=1).max(dim=1)
        correct = (prediction == labels[rows]).double()
        which = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
        gaps.index_add_(0, which, correct - confidence)
    return 100 * float(gaps.abs().sum()) / len(labels)


def prediction_report(predictions: Tensor, labels: Tensor, class_counts: np.ndarray) -> Report:
    """Summarise predicted classes (N,) for labels (N,), of the K classes of `class_counts`: accuracies and macro F1 in
    percent.

    `all` counts images; the groups are means over classes, None where a group is empty. A class without an evaluated
    image has accuracy None and is in no mean. Macro F1 is over the classes that have one.
    """
    labels = labels.to(predictions.device)
    hits, actual, predicted = (  # images a class; the confusion matrix (K, K) would have 66 million cells at K = 8142
        torch.bincount(classes, minlength=len(class_counts)).cpu().double().numpy()
        for classes in (labels[predictions == labels], labels, predictions)
    )
    present = actual > 0
    accuracy = np.divide(100 * hits, actual, out=np.full(len(hits), np.nan), where=present)
    f1 = 200 * hits / np.maximum(actual + predicted, 1)
    report: Report = {"all": float(100 * hits.sum() / actual.sum())}
    for name, members in shot_groups(class_counts).items():
        report[name] = float(accuracy[members & present].mean()) if (members & present).any() else None
    report["macro_f1"] = float(f1[present].mean())
    report["per_class_accuracy"] = [None if np.isnan(value) else float(value) for value in accuracy]
    return report


def classification_report(logits: Tensor, labels: Tensor, class_counts: np.ndarray) -> Report:
    """Summarise logits (N, K) for labels (N,): `prediction_report` of their largest, and the calibration error `ece` in
    percent."""
    report = prediction_report(logits.argmax(dim=1), labels, class_counts)
    return {**report, "ece": calibration_error(logits, labels)}


def class_balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes present of their accuracy, in percent."""
    report = prediction_report(logits.argmax(dim=1), labels, np.zeros(logits.shape[1], dtype=np.int64))
    values = [value for value in report["per_class_accuracy"] if value is not None]
    return sum(values) / len(values)


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
    """LoMa and RSD of any number of logits in one pass, `add` a block of rows at a time, then `result`.

    Keeps a few numbers a class in float64, whatever the number of rows. Each block's means and squared deviations are
    computed in two passes over it and merged with those before (Chan et al., 1979), so that nothing cancels. Equal
    logits have deviation 0 exactly.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        zeros = torch.zeros(4, num_classes, dtype=torch.float64)
        # Of each class: its centred logit over its own rows and over the others, and its raw logit over both.
        self.moments = Moments(zeros, zeros, zeros)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take in further logits (N, K), any N, with labels (N,) in [0, K); works on the device of the logits."""
        labels = labels.to(logits.device)
        self.moments = Moments(*(part.to(logits.device) for part in self.moments))
        for rows in row_blocks(logits):
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


def logits_magnitude(logits: Tensor, labels: Tensor) -> Readings:
    """Return LoMa, both deviations and both RSD per class, in the readings that the LOS paper's definition allows.

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


def column_means(logits: Tensor) -> Tensor:
    """Return the mean predicted probability (K,) of each class over logits (N, K), in float64."""
    total = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    for rows in row_blocks(logits):
        total += logits[rows].double().softmax(dim=1).sum(dim=0)
    return total / len(logits)


def class_wise_column_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `column_means` (K,) with every class of `labels` (N,) weighing the same, however many images it has."""
    labels = labels.to(logits.device)
    count = torch.bincount(labels, minlength=logits.shape[1]).double()
    weights = 1 / (count[labels] * (count > 0).sum())
    total = torch.zeros_like(count)
    for rows in row_blocks(logits):
        total += weights[rows] @ logits[rows].double().softmax(dim=1)
    return total


def rebalance(logits: Tensor, means: Tensor, tau: float) -> Tensor:
    """Return log-scores (N, K): predicted probabilities divided by `means` (K,) to the power `tau`.

    With `column_means` of the very images that are classified this is GALA's prediction re-balancing (arXiv 2403.09036,
    "norm_logits" of its code): transductive, and it supposes that the images are balanced. With the class-wise means of
    held-out images it is inductive: each image is classified on its own. On class-balanced images the two agree.
    """
    tiny = torch.finfo(torch.float64).tiny  # a class whose every probability underflows is no infinite bonus
    return logits.double().log_softmax(dim=1) - tau * means.clamp(min=tiny).log()


def rebalanced_predictions(logits: Tensor, means: Tensor, tau: float) -> Tensor:
    """Return the class (N,) of the largest score of `rebalance` for each row of logits (N, K), without keeping them."""
    # Written in place: small results kept between large temporaries would keep the allocator from reusing their place.
    predictions = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for rows in row_blocks(logits):
        predictions[rows] = rebalance(logits[rows], means, tau).argmax(dim=1)
    return predictions


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return T > 0 that minimises the cross-entropy of softmax(z / T), all classes weighing alike (Guo et al., 2017).

    The loss is convex in 1 / T, so its derivative, the expected minus the true logit, is bisected between 1e-4 and 1e4.
    None where the best T is not among them: 0 where no image is misclassified, infinity where the logits mislead.
    """
    labels = labels.to(logits.device)
    count = torch.bincount(labels, minlength=logits.shape[1]).double()
    weight = 1 / count[labels]

    def excess(inverse: float) -> Tensor:
        """Return the weighted sum over images of the expected minus the true logit at 1 / T = `inverse`."""
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for rows in row_blocks(logits):
            values = logits[rows].double()
            true = values.gather(1, labels[rows, None]).squeeze(1)
            expected = torch.linalg.vecdot((values * inverse).softmax(dim=1), values)
            total += weight[rows] @ (expected - true)
        return total

    low, high = math.log(1e-4), math.log(1e4)  # of 1 / T
    for _ in range(50):
        middle = (low + high) / 2
        if float(excess(math.exp(middle))) > 0:
            high = middle
        else:
            low = middle
    temperature = math.exp(-(low + high) / 2)
    return temperature if 1.001e-4 < temperature < 0.999e4 else None


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def feature_variance_ratio(features: Tensor, labels: Tensor) -> float | None:
    """Return within-class over between-class variance of features (N, d), every class weighing the same.

    Within: mean over classes of the mean squared distance to the class mean. Between: mean squared distance of the
    class means to their mean; None where they are one point. Near 0 the features of a class have collapsed onto its
    mean (Papyan et al., PNAS 2020).

    Features on the CPU, mapped from a file or not, are brought a block at a time to the device of the labels.
    """
    device = labels.device if features.device.type == "cpu" else features.device
    classes, members = labels.to(device).unique(return_inverse=True)
    count = torch.bincount(members, minlength=len(classes)).double()
    means = torch.zeros(len(classes), features.shape[1], dtype=torch.float64, device=device)
    for rows in row_blocks(features, device):
        means.index_add_(0, members[rows], features[rows].to(device).double())
    means /= count[:, None]
    within = torch.zeros_like(count)
    for rows in row_blocks(features, device):
        distance = features[rows].to(device).double() - means[members[rows]]
        within.index_add_(0, members[rows], distance.square_().sum(dim=1))
    between = (means - means.mean(dim=0)).square().sum(dim=1)
    return finite_or_none(float((within / count).mean() / between.mean()))
