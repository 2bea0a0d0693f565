"""What is measured on logits and features: accuracy by shot, F1, calibration, re-balancing. Functions on tensors.

LoMa and RSD have a file of their own, `evaluation.logits_magnitude`.

Whatever is computed in float64 is computed a block of rows at a time: memory does not grow with the images, and time
grows with them and with the classes as the work does.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.features import Features
from datasets.long_tail import FIELD_BOUNDS, ShotBounds
from evaluation.blocks import Rows, largest, row_blocks
from evaluation.class_accuracies import class_measures, describe_test_images
from evaluation.intervals.correct import pack_correct
from evaluation.probabilities import CALIBRATION_BINS, Scored, bin_of, score_logits
from utils.parameters import TEMPERATURES

SHOTS = ["many", "medium", "few"]
Report = dict[str, Any]
STEPS = 100  # of the fit of a temperature at most: a handful, unless the logits are strange
SLOW = 3  # steps that do not become shorter, after which the interval is halved
CLOSE = 1e-7  # a step of Newton's method in log(1 / T) that is the last: what is left is its square


def shot_groups(class_counts: np.ndarray, bounds: ShotBounds = FIELD_BOUNDS) -> dict[str, np.ndarray]:
    """Return a mask (K,) a group for the training images (K,) of each class: many > 100, medium 20 to 100, few < 20,
    or by other `bounds`.

    Liu et al., "Large-Scale Long-Tailed Recognition in an Open World" (OLTR), CVPR 2019.
    """
    many, few = class_counts > bounds.many_above, class_counts < bounds.few_below
    return {"many": many, "medium": ~many & ~few, "few": few}


@torch.no_grad()
def calibration_error(logits: Rows, labels: Tensor, bins: int = CALIBRATION_BINS, temperature: float = 1.0) -> float:
    """Return the expected calibration error in percent of softmax(z / T), for logits z (N, K) and labels (N,).

    Images are binned by their top probability, in bins of one width (Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017).
    """
    labels = labels.to(logits.device)
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    for rows in row_blocks(logits):
        confidence, prediction = (logits[rows].double() / temperature).softmax(dim=1).max(dim=1)
        correct = (prediction == labels[rows]).double()
        gaps.index_add_(0, bin_of(confidence, bins), correct - confidence)
    return 100 * float(gaps.abs().sum()) / len(labels)


def third_bounds(class_counts: np.ndarray) -> ShotBounds:
    """Return the bounds by which a third of the classes each, by their training images (K,), are many-, medium- and
    few-shot; of classes as large as that at a bound all are medium-shot."""
    sizes, third = np.sort(class_counts), round(len(class_counts) / 3)
    return ShotBounds(int(sizes[len(sizes) - 1 - third]), int(sizes[third]))


def thirds_fill(class_counts: np.ndarray) -> bool:
    """Tell whether the field's bounds leave a group of classes empty, and `third_bounds` none: with fewer than three
    classes, or classes all alike, they do not help."""
    field, thirds = (shot_groups(class_counts, bounds) for bounds in (FIELD_BOUNDS, third_bounds(class_counts)))
    return all(members.any() for members in thirds.values()) and not all(members.any() for members in field.values())


def recorded_bounds(metrics: Mapping[str, Any]) -> ShotBounds:
    """Return the bounds that a run's metrics.json groups its classes by; earlier versions had the field's alone.

    Raises TypeError for what is no bounds.
    """
    bounds = ShotBounds(**metrics.get("shot_bounds", FIELD_BOUNDS._asdict()))
    if not all(type(bound) is int for bound in bounds):
        raise TypeError("shot_bounds are no whole numbers")
    return bounds


def prediction_report(
    predictions: Tensor, labels: Tensor, class_counts: np.ndarray, bounds: ShotBounds = FIELD_BOUNDS
) -> Report:
    """Return accuracies and macro F1 in percent of predicted classes (N,) for labels (N,).

    `class_counts` (K,) are the training images of each class, which make the groups `many`, `medium` and `few`
    (`shot_groups`; Liu et al., CVPR 2019). `all` counts images; the groups are means over classes, None where a group
    is empty, and so are the measures of `class_measures`. A class without an evaluated image has accuracy None and is
    in no mean. Macro F1 (Sokolova and Lapalme, 2009) is over the classes that have one. `test_images` says how the
    images are spread over the classes (`describe_test_images`). `correct` has the images that are right, a bit each
    (`pack_correct`), and `class_images` how many each class has: intervals and paired tests are made of them.
    """
    labels = labels.to(predictions.device)
    correct = predictions == labels
    hits, actual, predicted = (  # images a class; the confusion matrix (K, K) would have 66 million cells at K = 8142
        torch.bincount(classes, minlength=len(class_counts)).cpu().double().numpy()
        for classes in (labels[correct], labels, predictions)
    )
    present = actual > 0
    accuracy = np.divide(100 * hits, actual, out=np.full(len(hits), np.nan), where=present)
    f1 = 200 * hits / np.maximum(actual + predicted, 1)
    report: Report = {"all": float(100 * hits.sum() / actual.sum())}
    for name, members in shot_groups(class_counts, bounds).items():
        report[name] = float(accuracy[members & present].mean()) if (members & present).any() else None
    report["macro_f1"] = float(f1[present].mean())
    report |= class_measures(accuracy)
    report["test_images"] = describe_test_images(actual)
    report["per_class_accuracy"] = [None if np.isnan(value) else float(value) for value in accuracy]
    report["class_images"] = actual.astype(np.int64).tolist()
    report["correct"] = pack_correct(correct.cpu().numpy(), labels.cpu().numpy())
    return report


def predicted_classes(logits: Rows) -> Tensor:
    """Return the class (N,) of the largest of each row of logits (N, K)."""
    predictions = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for rows in row_blocks(logits):
        predictions[rows] = largest(logits[rows])
    return predictions


def classification_report(
    logits: Rows, labels: Tensor, class_counts: np.ndarray, bounds: ShotBounds = FIELD_BOUNDS
) -> Report:
    """Return `prediction_report` of the largest of logits (N, K) for labels (N,), with `top_5`, the images whose class
    is among the five largest in percent, and what the probabilities are worth (`probability_scores`).

    `class_counts` (K,) are the training images of each class. Calibration is that of Guo et al., ICML 2017.
    """
    return scored_report(score_logits(logits, labels), labels, class_counts, bounds)


def scored_report(
    scored: Scored, labels: Tensor, class_counts: np.ndarray, bounds: ShotBounds = FIELD_BOUNDS
) -> Report:
    """Return the `classification_report` of logits that have been looked at (`evaluation.probabilities`)."""
    report = prediction_report(scored.predictions, labels, class_counts, bounds)
    return {**report, "top_5": scored.top_5, **scored.scores}


def class_balanced_accuracy(logits: Rows, labels: Tensor) -> float:
    """Return the mean over the classes present of their accuracy, in percent, for logits (N, K) and labels (N,).

    Brodersen et al., "The Balanced Accuracy and Its Posterior Distribution", ICPR 2010.
    """
    counts = np.zeros(logits.shape[1], dtype=np.int64)
    return prediction_report(predicted_classes(logits), labels, counts)["class_balanced"]


def column_means(logits: Rows) -> Tensor:
    """Return the mean predicted probability (K,) of each class over logits (N, K), in float64.

    What GALA's re-balancing divides by (arXiv 2403.09036): see `rebalance`.
    """
    total = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    for rows in row_blocks(logits):
        total += logits[rows].double().softmax(dim=1).sum(dim=0)
    return total / len(logits)


def class_wise_column_means(logits: Rows, labels: Tensor) -> Tensor:
    """Return `column_means` (K,) of logits (N, K), every class of `labels` (N,) weighing the same.

    The inductive form of GALA's re-balancing (arXiv 2403.09036), for held-out images that are not balanced.
    """
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
    return logits.double().log_softmax(dim=1) - _log_bonus(means, tau)


def _log_bonus(means: Tensor, tau: float) -> Tensor:
    tiny = torch.finfo(torch.float64).tiny  # a class whose every probability underflows is no infinite bonus
    return tau * means.clamp(min=tiny).log()


def rebalanced_predictions(logits: Rows, means: Tensor, tau: float) -> Tensor:
    """Return the class (N,) of the largest score of `rebalance` for each row of logits (N, K), without keeping them.

    GALA's prediction re-balancing (arXiv 2403.09036) with `means` (K,) and the power `tau`. What makes logits
    probabilities is the same for all classes of an image, so that it decides nothing and is left out.
    """
    predictions, bonus = torch.empty(len(logits), dtype=torch.int64, device=logits.device), _log_bonus(means, tau)
    for rows in row_blocks(logits):
        predictions[rows] = largest(logits[rows] - bonus)
    return predictions


class Excess(NamedTuple):
    """The mean over classes of the mean over its images of the expected minus the true logit at 1 / T, the derivative
    of the class-balanced cross-entropy by 1 / T times the number of classes present, and its own `slope`."""

    value: float
    slope: float


def excess(logits: Rows, labels: Tensor, inverse: float) -> Excess:
    """Return the `Excess` of logits (N, K) with labels (N,) at 1 / T = `inverse`; the slope is a mean variance."""
    labels = labels.to(logits.device)
    weight = 1 / torch.bincount(labels, minlength=logits.shape[1]).double()[labels]
    total = torch.zeros(2, dtype=torch.float64, device=logits.device)
    for rows in row_blocks(logits):
        block = logits[rows].double()
        values = block - block.gather(1, labels[rows, None])
        probability = (values * inverse).softmax(dim=1)
        expected = torch.linalg.vecdot(probability, values)
        squares = torch.linalg.vecdot(probability, values.square_())
        total += torch.stack([weight[rows] @ expected, weight[rows] @ (squares - expected.square())])
    return Excess(*total.tolist())


@torch.no_grad()
def fit_temperature(logits: Rows, labels: Tensor) -> float | None:
    """Return the T > 0 that minimises the cross-entropy of softmax(z / T), all classes weighing alike.

    z are logits (N, K), with labels (N,) (Guo et al., ICML 2017, whose classes weigh as many images as they have).
    The loss is convex in 1 / T: Newton's method finds the zero of its derivative, the expected minus the true logit,
    between 1e-4 and 1e4, in log(1 / T), and halves the interval where a step would leave it. None where the best T is
    not among them: 0 where no image is misclassified, infinity where the logits mislead (`why_no_temperature`).
    """
    low, high = -math.log(TEMPERATURES.high), -math.log(TEMPERATURES.low)  # of log(1 / T)
    place, ends = 0.0, {low, high}  # that have not been looked at
    before, slow = math.inf, 0  # the step before, and how many were not half as long as theirs
    for _ in range(STEPS):
        found = excess(logits, labels, math.exp(place))
        if place in ends and (found.value > 0) == (place == low):
            return None  # all of the interval is on one side of the zero
        ends.discard(place)
        low, high = (low, place) if found.value > 0 else (place, high)
        slope = found.slope * math.exp(place)  # by log(1 / T)
        step = -found.value / slope if slope > 0 else math.inf
        if abs(step) < CLOSE:
            place += step
            break
        before, slow = step, slow + 1 if abs(step) > abs(before) / 2 else 0
        if slow == SLOW:  # far out on an exponential steps stay as they are
            place, slow = (low + high) / 2, 0
        else:
            place = place + step if low < place + step < high else next_place(low, high, step, ends)
    temperature = math.exp(-place)
    return temperature if 1.001 * TEMPERATURES.low < temperature < 0.999 * TEMPERATURES.high else None


def next_place(low: float, high: float, step: float, ends: set[float]) -> float:
    """Return where to go on when a step would leave the interval: its end, if that has not been looked at, or its
    middle."""
    end = high if step > 0 else low
    return end if end in ends else (low + high) / 2


@torch.no_grad()
def why_no_temperature(logits: Rows, labels: Tensor) -> str:
    """Return in words why `fit_temperature` finds none for the logits (N, K) of held-out images with labels (N,)."""
    labels = labels.to(logits.device)
    if bool((predicted_classes(logits) == labels).all()):
        return f"all {len(labels)} held-out images are right, and the likelihood grows as the temperature falls to 0"
    if excess(logits, labels, 1 / TEMPERATURES.high).value > 0:
        return f"the logits of the {len(labels)} held-out images mislead, so that the best temperature is infinite"
    return f"the best one for the {len(labels)} held-out images is not {TEMPERATURES}"


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


@torch.no_grad()
def feature_variance_ratio(features: Features, labels: Tensor) -> float | None:
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
