"""What is measured of a model: accuracies plain and flip-averaged, LoMa and RSD, calibration, re-balanced predictions.

`evaluation.metrics` and `evaluation.logits_magnitude` compute on tensors; here they meet the splits of a data set.
`evaluation.text_tables` shows what comes out.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datasets.features import Features
from datasets.image_source import ImageSource
from datasets.long_tail import LongTailedData, ShotBounds
from evaluation.blocks import ComputedRows, block_rows, largest
from evaluation.logits_magnitude import MagnitudeStatistics, Readings, logits_magnitude, summarise
from evaluation.metrics import (
    Report,
    class_balanced_accuracy,
    class_wise_column_means,
    fit_temperature,
    prediction_report,
    rebalanced_predictions,
    scored_report,
    why_no_temperature,
)
from evaluation.probabilities import SCORES, Scored, probability_scores, score_logits
from utils.errors import DivergedError, memory_for

# Features (N, d) of a split ("train", "holdout" or "test"), of its images as they are or mirrored; on any device, the
# CPU's may be mapped from a file or left in it.
SplitFeatures = Callable[[str, bool], Features]
Images = dict[str, ImageSource]
# Logits, or features that they are made of, that are computed together: 16 MiB in float32, on a GPU 64.
CPU_CHUNK, GPU_CHUNK = 1 << 22, 1 << 24


class SplitLogits:
    """Logits (N, K) of a split, of its images as they are or mirrored, on the device of the classifier, wherever the
    features are. One of these serves one state of the weights.

    `rows` has them computed when they are looked at, and keeps few or none of many: what is measured goes by blocks of
    rows. Called, it returns all logits of a split and keeps them. Those of the training images of a large data set fit
    into no memory (iNaturalist 2018: 14 GB): `blocks` yields them a part at a time.

    The classifier runs in full precision whatever the network runs in: rounded to bf16, logits tie.
    """

    def __init__(self, features_of: SplitFeatures, classifier: nn.Module) -> None:
        self.features_of = features_of
        self.classifier = classifier
        self._features: dict[tuple[str, bool], Features] = {}
        self._rows: dict[tuple[str, bool], ComputedRows] = {}
        self._flip: ComputedRows | None = None
        self._scored: dict[str, Scored] = {}

    def features(self, split: str, mirrored: bool = False) -> Features:
        """Return the features (N, d) that the logits are computed from."""
        if (split, mirrored) not in self._features:
            self._features[split, mirrored] = self.features_of(split, mirrored)
        return self._features[split, mirrored]

    def __call__(self, split: str, mirrored: bool = False) -> Tensor:
        """Return all logits (N, K) of a split; computed once."""
        return self._whole(split, mirrored)

    def rows(self, split: str, mirrored: bool = False) -> ComputedRows:
        """Return the logits (N, K) of a split as rows that are computed when they are looked at."""
        if (split, mirrored) not in self._rows:
            features, weight = self.features(split, mirrored), self.classifier.get_parameter("weight")
            # Of this object it knows nothing: a circle would keep a run's folder locked after an error.
            compute = partial(compute_logits, self.classifier, features, split)
            shape = (len(features), len(weight))
            self._rows[split, mirrored] = ComputedRows(compute, shape, weight.device, chunk_rows(weight))
        return self._rows[split, mirrored]

    def flipped(self) -> ComputedRows:
        """Return the test logits (N, K) averaged over each image and its mirror image, as `rows` does."""
        if self._flip is None:
            plain, mirrored = self.rows("test"), self.rows("test", True)
            self._flip = ComputedRows(
                lambda rows: (plain[rows] + mirrored[rows]).div_(2), plain.shape, plain.device, plain.chunk
            )
        return self._flip

    def scored(self, way: str, labels: Tensor) -> Scored:
        """Return what one pass over the test logits of a way, `plain` or `flip`, gives, with the test labels (N,)."""
        if way not in self._scored:
            self._scored[way] = score_logits(self.rows("test") if way == "plain" else self.flipped(), labels)
        return self._scored[way]

    def blocks(self, split: str, mirrored: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of a split, in order, as slices and their logits (B, K), of which none is kept."""
        computed = self.rows(split, mirrored)
        for rows in computed.chunks():
            yield rows, computed.compute(rows)

    def _whole(self, split: str, mirrored: bool) -> Tensor:
        """Join the blocks without ever holding them twice."""
        count = len(self.features(split, mirrored))
        assert count, f"no images in {split}"
        with memory_for(f"logits of {split}: {count} images by all classes", "the number of test or held-out images"):
            return self.rows(split, mirrored).whole()


@torch.no_grad()
def compute_logits(classifier: nn.Module, features: Features, split: str, rows: slice) -> Tensor:
    """Return the logits (B, K) of `rows` of a split's features (N, d)."""
    weight = classifier.get_parameter("weight")
    with memory_for(f"logits of {split}: {rows.stop - rows.start} images by all classes", "--num_class"):
        return classifier(features[rows].to(weight.device, weight.dtype))


def chunk_rows(weight: Tensor) -> int:
    """Return how many rows of logits are computed together by a classifier of `weight` (K, d): whole blocks."""
    chunk = CPU_CHUNK if weight.device.type == "cpu" else GPU_CHUNK
    most, block = max(chunk // max(weight.shape), 1), block_rows(len(weight), weight.device)
    return most // block * block or most


def evaluate_test(logits_of: SplitLogits, images: Images, data: LongTailedData) -> dict[str, Any]:
    """Report on the test set plain, and with the logits of each image and its mirror image averaged (`flip`).

    `flip` is None for a data set whose mirrored images show something else.
    """
    labels = images["test"].labels
    if not logits_of.scored("plain", labels).finite:
        raise DivergedError(
            "the network's logits on the test images are not finite: its weights are damaged or diverged"
        )
    scored = {way: logits_of.scored(way, labels) for way in logits_by_way(logits_of, data)}
    return report_ways(scored_report, scored, images, data)


def logits_by_way(logits_of: SplitLogits, data: LongTailedData) -> dict[str, ComputedRows]:
    """Return the test logits (N, K) `plain` and, where mirrored images show the same, `flip`-averaged, as rows that are
    computed when they are looked at."""
    plain = {"plain": logits_of.rows("test")}
    return {**plain, "flip": logits_of.flipped()} if data.augmentation.mirror else plain


def report_ways(
    report: Callable[[Any, Tensor, np.ndarray, ShotBounds], Report],
    values: Mapping[str, Any],
    images: Images,
    data: LongTailedData,
) -> dict[str, Any]:
    """Return the `report` of what is known of each way of testing; None for the one that is missing."""
    labels = images["test"].labels
    counts, bounds = data.class_counts, data.shot_bounds
    return {way: report(values[way], labels, counts, bounds) if way in values else None for way in ("plain", "flip")}


def selection_score(record: dict[str, Any]) -> float:
    """Return what `best` is chosen by: flip-averaged accuracy, plain where there is no flip."""
    return (record["flip"] or record["plain"])["all"]


class TrainingFit(NamedTuple):
    """What one pass over the logits of the un-augmented training images gives: accuracy in percent, LoMa and RSD."""

    accuracy: float
    magnitude: Readings


def training_fit(logits_of: SplitLogits, images: Images) -> TrainingFit:
    """Measure the plain logits of the training images, a block at a time."""
    labels, statistics = images["train"].labels, None
    hits: Tensor | int = 0
    for rows, logits in logits_of.blocks("train"):
        statistics = statistics or MagnitudeStatistics(logits.shape[1])
        statistics.add(logits, labels[rows])
        hits += (largest(logits) == labels[rows].to(logits.device)).sum()
    assert statistics is not None, "no training images"
    return TrainingFit(100 * float(hits) / len(labels), statistics.result())


def logits_report(logits_of: SplitLogits, images: Images, fit: TrainingFit | None = None) -> dict[str, Readings]:
    """Return LoMa and RSD on the un-augmented training images, taken from `fit` where it has been made, and on the test
    images, plain logits."""
    fit = fit or training_fit(logits_of, images)
    return {"train": fit.magnitude, "test": logits_magnitude(logits_of.rows("test"), images["test"].labels)}


def logits_summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return mean, deviation and coefficient of variation over the classes of everything in a `logits_report`."""
    return {
        split: {
            reading: {name: summarise(values) for name, values in of_reading.items()}
            for reading, of_reading in readings.items()
        }
        for split, readings in report.items()
    }


class Temperature(NamedTuple):
    """A temperature, and where it is from; of one that is not there, why (`NO_FINITE`), as far as that is known."""

    value: float | None
    source: str | None


UNKNOWN = Temperature(None, None)
HELD_OUT = "held-out images"
NO_FINITE = "no finite temperature: "  # how the source of one that could not be fitted begins


def find_temperature(logits_of: SplitLogits, images: Images) -> Temperature:
    """Return the temperature that calibrates the logits on the held-out images, if there are any and it exists."""
    if len(images["holdout"]) == 0:
        return UNKNOWN
    logits, labels = logits_of.rows("holdout"), images["holdout"].labels
    value = fit_temperature(logits, labels)
    return Temperature(value, HELD_OUT if value is not None else NO_FINITE + why_no_temperature(logits, labels))


def missing_reason(temperature: Temperature) -> str | None:
    """Return why there is no finite temperature; None where there is one, or no image was held out."""
    known = temperature.value is None and (temperature.source or "").startswith(NO_FINITE)
    return temperature.source if known else None


def calibration_report(
    logits_of: SplitLogits, images: Images, data: LongTailedData, given: Temperature = UNKNOWN
) -> dict[str, Any] | None:
    """Return the temperature, `given` or fitted on held-out images, and what it makes of the scores of the
    probabilities on the test images (`probability_scores`): each `_before` and `_after`.

    Where the held-out images ask for no finite temperature `source` says why, and there is nothing after it. None where
    there is no temperature and no image was held out.
    """
    found = find_temperature(logits_of, images) if given.value is None else given
    if found.source is None and missing_reason(given) is not None:  # held-out images that are not here
        found = given
    if found.source is None:
        return None
    report: dict[str, Any] = {"temperature": found.value, "source": found.source}
    for way, logits in logits_by_way(logits_of, data).items():
        labels = images["test"].labels
        before = logits_of.scored(way, labels).scores
        after = {} if found.value is None else probability_scores(logits, labels, found.value)
        report[way] = {f"{name}_before": before[name] for name in SCORES}
        report[way] |= {f"{name}_after": after.get(name) for name in SCORES}
    return report


def rebalanced_report(logits_of: SplitLogits, images: Images, data: LongTailedData, tau: float) -> dict[str, Any]:
    """Report on the test set with re-balanced predictions (`evaluation.metrics.rebalance`).

    `transductive` divides by the column means over the test images themselves, as published: it needs all of them at
    once and supposes that they are balanced. `inductive` divides by the class-wise means over the held-out images, so
    that one image can be classified alone; None where none were held out. The scores are no calibrated probabilities:
    their calibration error is left out.
    """
    logits = logits_by_way(logits_of, data)
    labels = images["test"].labels
    means = {"transductive": {way: logits_of.scored(way, labels).means for way in logits}}
    if len(images["holdout"]):
        held_out = class_wise_column_means(logits_of.rows("holdout"), images["holdout"].labels)
        means["inductive"] = dict.fromkeys(logits, held_out)
    report: dict[str, Any] = {"tau": tau, "transductive": None, "inductive": None}
    for form, of_way in means.items():
        predictions = {way: rebalanced_predictions(values, of_way[way], tau) for way, values in logits.items()}
        report[form] = report_ways(prediction_report, predictions, images, data)
    return report


def holdout_report(logits_of: SplitLogits, images: Images) -> dict[str, Any] | None:
    """Return the class-balanced accuracy on the held-out images, None where none were held out."""
    if len(images["holdout"]) == 0:
        return None
    balanced = class_balanced_accuracy(logits_of.rows("holdout"), images["holdout"].labels)
    return {"images": len(images["holdout"]), "class_balanced_accuracy": balanced}
