"""What is measured of a model: the test set plain and flip-averaged, LoMa and RSD, calibration, re-balanced
predictions. `utils.printing` shows it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from datasets.device import DeviceImages
from datasets.long_tail import LongTailedData
from utils.errors import DivergedError
from utils.metrics import (
    calibration_error,
    class_balanced_accuracy,
    class_wise_column_means,
    classification_report,
    column_means,
    fit_temperature,
    logits_magnitude,
    rebalance,
    summarise,
)

# Features (N, d) of a split ("train", "holdout" or "test"), of its images as they are or mirrored.
FeaturesOf = Callable[[str, bool], Tensor]
Images = dict[str, DeviceImages]


class LogitsOf:
    """Logits (N, K) of a split, of its images as they are or mirrored; each pass is made once, so that one of
    these serves one state of the weights.

    The classifier runs in full precision whatever the network runs in: rounded to bf16, logits tie.
    """

    def __init__(self, features_of: FeaturesOf, classifier: nn.Module) -> None:
        self.features_of = features_of
        self.classifier = classifier
        self._features: dict[tuple[str, bool], Tensor] = {}
        self._logits: dict[tuple[str, bool], Tensor] = {}

    def features(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the features (N, d) that the logits are computed from."""
        if (split, mirrored) not in self._features:
            self._features[split, mirrored] = self.features_of(split, mirrored)
        return self._features[split, mirrored]

    @torch.no_grad()
    def __call__(self, split: str, mirrored: bool = False) -> Tensor:
        if (split, mirrored) not in self._logits:
            self._logits[split, mirrored] = self.classifier(self.features(split, mirrored))
        return self._logits[split, mirrored]


def evaluate_test(logits_of: LogitsOf, images: Images, data: LongTailedData) -> dict[str, Any]:
    """Report on the test set plain, and with the logits of each image and its mirror image averaged (`flip`).

    `flip` is None for a data set whose mirrored images show something else.
    """
    logits = logits_by_way(logits_of, data)
    if not bool(logits["plain"].isfinite().all()):
        raise DivergedError(
            "the network's logits on the test images are not finite: its weights are damaged or diverged"
        )
    return report_ways(logits, images, data)


def logits_by_way(logits_of: LogitsOf, data: LongTailedData) -> dict[str, Tensor]:
    """Return the test logits (N, K) `plain` and, where mirrored images show the same, `flip`-averaged."""
    logits = {"plain": logits_of("test")}
    if data.augmentation.mirror:
        logits["flip"] = (logits["plain"] + logits_of("test", True)) / 2
    return logits


def report_ways(logits: dict[str, Tensor], images: Images, data: LongTailedData) -> dict[str, Any]:
    """Return the report of each way of testing; None for the one that is missing."""
    labels = images["test"].labels
    return {
        way: classification_report(logits[way], labels, data.class_counts) if way in logits else None
        for way in ("plain", "flip")
    }


def selection_score(record: dict[str, Any]) -> float:
    """Return what `best` is chosen by: flip-averaged accuracy, plain where there is no flip."""
    return (record["flip"] or record["plain"])["all"]


def logits_report(logits_of: LogitsOf, images: Images) -> dict[str, Any]:
    """Return LoMa and RSD on the un-augmented training images and on the test images, plain logits."""
    return {split: logits_magnitude(logits_of(split), images[split].labels) for split in ("train", "test")}


def logits_summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return mean, deviation and coefficient of variation over the classes of everything in a `logits_report`."""
    return {
        split: {
            reading: {name: summarise(values) for name, values in of_reading.items()}
            for reading, of_reading in readings.items()
        }
        for split, readings in report.items()
    }


def held_out_temperature(logits_of: LogitsOf, images: Images) -> float | None:
    """Return the temperature that calibrates the logits on the held-out images, None where none were held out."""
    if len(images["holdout"]) == 0:
        return None
    return fit_temperature(logits_of("holdout"), images["holdout"].labels)


def calibration_report(
    logits_of: LogitsOf,
    images: Images,
    data: LongTailedData,
    given: float | None = None,
    source: str = "given",
) -> dict[str, Any] | None:
    """Return the temperature, `given` from some `source` or fitted on held-out images, and the calibration error in
    percent on the test images, before and after; None where there is no temperature."""
    temperature = held_out_temperature(logits_of, images) if given is None else given
    if temperature is None:
        return None
    report: dict[str, Any] = {"temperature": temperature, "source": "held-out images" if given is None else source}
    for way, logits in logits_by_way(logits_of, data).items():
        labels = images["test"].labels
        before, after = (calibration_error(logits / divisor, labels) for divisor in (1.0, temperature))
        report[way] = {"ece_before": before, "ece_after": after}
    return report


def rebalanced_report(logits_of: LogitsOf, images: Images, data: LongTailedData, tau: float) -> dict[str, Any]:
    """Report on the test set with re-balanced predictions (`utils.metrics.rebalance`).

    `transductive` divides by the column means over the test images themselves, as published: it needs all of them at
    once and supposes that they are balanced. `inductive` divides by the class-wise means over the held-out images, so
    that one image can be classified alone; None where none were held out. The scores are no calibrated probabilities:
    their calibration error is left out.
    """
    logits = logits_by_way(logits_of, data)
    means = {"transductive": {way: column_means(values) for way, values in logits.items()}}
    if len(images["holdout"]):
        held_out = class_wise_column_means(logits_of("holdout"), images["holdout"].labels)
        means["inductive"] = dict.fromkeys(logits, held_out)
    report: dict[str, Any] = {"tau": tau, "transductive": None, "inductive": None}
    for form, of_way in means.items():
        scores = {way: rebalance(values, of_way[way], tau) for way, values in logits.items()}
        report[form] = report_ways(scores, images, data)
        for of_test in report[form].values():
            if of_test is not None:
                del of_test["ece"]
    return report


def holdout_report(logits_of: LogitsOf, images: Images) -> dict[str, Any] | None:
    """Return the class-balanced accuracy on the held-out images, None where none were held out."""
    if len(images["holdout"]) == 0:
        return None
    balanced = class_balanced_accuracy(logits_of("holdout"), images["holdout"].labels)
    return {"images": len(images["holdout"]), "class_balanced_accuracy": balanced}
