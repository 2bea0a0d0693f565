"""What is measured on logits and features: accuracy by shot, F1, calibration, LoMa and RSD. Functions on tensors."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

MANY_ABOVE = 100
FEW_BELOW = 20
SHOTS = ["many", "medium", "few"]
CALIBRATION_BINS = 15
BLOCK = 1 << 20  # logits whose statistics are computed together: more, in float64, leave the cache and fill the memory

Report = dict[str, Any]


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return a mask (K,) a group: many > 100 training images, medium 20 to 100, few < 20 (OLTR, 2019)."""
    many, few = class_counts > MANY_ABOVE, class_counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def calibration_error(logits: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error in percent, equal-width bins of the top probability (Guo et al., 2017)."""
    confidence, prediction = logits.double().softmax(dim=1).max(dim=1)
    correct = (prediction == labels).double()
    which = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add_(0, which, correct - confidence)
    return 100 * float(gaps.abs().sum()) / len(labels)


def classification_report(logits: Tensor, labels: Tensor, class_counts: np.ndarray) -> Report:
    """Summarise logits (N, K) for labels (N,): accuracies in percent, macro F1 in percent, calibration error in
    percent.

    `all` counts images; the groups are means over classes, None where a group is empty. A class without an evaluated
    image has accuracy None and is in no mean. Macro F1 is over the classes that have one.
    """
    predictions = logits.argmax(dim=1)
    hits, actual, predicted = (  # images a class; the confusion matrix (K, K) would have 66 million cells at K = 8142
        torch.bincount(classes, minlength=logits.shape[1]).cpu().double().numpy()
        for classes in (labels[predictions == labels], labels, predictions)
    )
    present = actual > 0
    accuracy = np.divide(100 * hits, actual, out=np.full(len(hits), np.nan), where=present)
    f1 = 200 * hits / np.maximum(actual + predicted, 1)
    report: Report = {"all": float(100 * hits.sum() / actual.sum())}
    for name, members in shot_groups(class_counts).items():
        report[name] = float(accuracy[members & present].mean()) if (members & present).any() else None
    report["macro_f1"] = float(f1[present].mean())
    report["ece"] = calibration_error(logits, labels)
    report["per_class_accuracy"] = [None if np.isnan(value) else float(value) for value in accuracy]
    return report


def class_balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes present of their accuracy, in percent."""
    report = classification_report(logits, labels, np.zeros(logits.shape[1], dtype=np.int64))
    values = [value for value in report["per_class_accuracy"] if value is not None]
    return sum(values) / len(values)


def mean_and_deviation(values: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and sample deviation (K,) of each column of `values` (N, K) over the rows where `members` (N, K) is
    1.

    NaN where there are too few rows: none for a mean, one for a deviation.
    """
    count = members.sum(dim=0)
    mean = (values * members).sum(dim=0) / count
    squares = ((values - mean).square() * members).sum(dim=0)
    return mean, torch.where(count > 1, squares / (count - 1), torch.nan).sqrt()


def logits_magnitude(logits: Tensor, labels: Tensor) -> dict[str, dict[str, list[float | None]]]:
    """Return LoMa, both deviations and both RSD per class, in the readings that the LOS paper's definition allows.

    Logits z (N, K) are centred per sample first, because softmax knows them only up to a constant.

    - `column`: LoMa_k is the mean of z_k over the samples of class k minus its mean over all other samples;
      `sigma_true` and `sigma_other` are the deviations of z_k over these two sets.
    - `row`: the same with z_k minus the mean of the sample's other logits in place of z_k, and LoMa_k its mean over the
      samples of class k.
    - `uncentred`: the column reading of the logits as they are, for comparison; a constant added to all logits of a
      sample, which changes no prediction, changes it.

    RSD is a deviation divided by LoMa. What does not exist is None: RSD where LoMa <= 1e-6, a deviation below two
    samples, LoMa of an absent class.
    """
    num_classes = logits.shape[1]
    sample_means = logits.mean(dim=1, keepdim=True, dtype=torch.float64)
    blocks = []
    for classes in torch.arange(num_classes, device=logits.device).split(max(BLOCK // max(len(logits), 1), 1)):
        raw = logits[:, classes].double()
        of_class = (labels[:, None] == classes).double()
        pairs = [(values, of) for values in (raw - sample_means, raw) for of in (of_class, 1 - of_class)]
        blocks.append([part for pair in pairs for part in mean_and_deviation(*pair)])
    statistics = [torch.cat(parts) for parts in zip(*blocks, strict=True)]
    true_mean, true_deviation, other_mean, other_deviation = statistics[:4]
    raw_mean, raw_deviation, raw_other_mean, raw_other_deviation = statistics[4:]
    # z_k - mean_{j != k} z_j = K / (K - 1) * (z_k - mean_j z_j): the row reading is a multiple of the centred logit.
    row = num_classes / (num_classes - 1)
    readings = {
        "column": (true_mean - other_mean, true_deviation, other_deviation),
        "row": (row * true_mean, row * true_deviation, row * other_deviation),
        "uncentred": (raw_mean - raw_other_mean, raw_deviation, raw_other_deviation),
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
    return logits.double().softmax(dim=1).mean(dim=0)


def class_wise_column_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `column_means` (K,) with every class of `labels` (N,) weighing the same, however many images it has."""
    count = torch.bincount(labels, minlength=logits.shape[1]).double()
    weights = 1 / (count[labels] * (count > 0).sum())
    return weights @ logits.double().softmax(dim=1)


def rebalance(logits: Tensor, means: Tensor, tau: float) -> Tensor:
    """Return log-scores (N, K): predicted probabilities divided by `means` (K,) to the power `tau`.

    With `column_means` of the very images that are classified this is GALA's prediction re-balancing (arXiv 2403.09036,
    "norm_logits" of its code): transductive, and it supposes that the images are balanced. With the class-wise means of
    held-out images it is inductive: each image is classified on its own. On class-balanced images the two agree.
    """
    tiny = torch.finfo(torch.float64).tiny  # a class whose every probability underflows is no infinite bonus
    return logits.double().log_softmax(dim=1) - tau * means.clamp(min=tiny).log()


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return T > 0 that minimises the cross-entropy of softmax(z / T), all classes weighing alike (Guo et al., 2017).

    The loss is convex in 1 / T, so its derivative, the expected minus the true logit, is bisected between 1e-4 and 1e4.
    None where the best T is not among them: 0 where no image is misclassified, infinity where the logits mislead.
    """
    values = logits.double()
    count = torch.bincount(labels, minlength=logits.shape[1]).double()
    weight = 1 / count[labels]
    true = values.gather(1, labels[:, None]).squeeze(1)
    low, high = math.log(1e-4), math.log(1e4)  # of 1 / T
    for _ in range(50):
        middle = (low + high) / 2
        expected = ((values * math.exp(middle)).softmax(dim=1) * values).sum(dim=1)
        if float((weight * (expected - true)).sum()) > 0:
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
    """
    values, classes = features.double(), labels.unique()
    rows = torch.searchsorted(classes, labels)
    count = torch.bincount(rows, minlength=len(classes)).double()
    means = values.new_zeros(len(classes), values.shape[1]).index_add_(0, rows, values) / count[:, None]
    distance = (values - means[rows]).square().sum(dim=1)
    within = values.new_zeros(len(classes)).index_add_(0, rows, distance) / count
    between = (means - means.mean(dim=0)).square().sum(dim=1)
    return finite_or_none(float(within.mean() / between.mean()))
