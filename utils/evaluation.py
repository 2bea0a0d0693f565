"""What is reported of a model: the test set plain and flip-averaged, LoMa and RSD, metrics.json, the printed table."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from datasets.device import DeviceImages
from datasets.long_tail import LongTailedData
from utils.errors import UserError
from utils.metrics import SHOTS, class_balanced_accuracy, classification_report, logits_magnitude

# Features (N, d) of a split ("train", "holdout" or "test"), of its images as they are or mirrored.
FeaturesOf = Callable[[str, bool], Tensor]
Images = dict[str, DeviceImages]
HEADLINE = {"honest": ("last", "plain"), "released": ("best", "flip")}


class LogitsOf:
    """Logits (N, K) of a split, of its images as they are or mirrored; each pass through the network is made once.

    The classifier runs in full precision whatever the network runs in: rounded to bf16, logits tie.
    """

    def __init__(self, features_of: FeaturesOf, classifier: nn.Module) -> None:
        self.features_of = features_of
        self.classifier = classifier
        self._features: dict[tuple[str, bool], Tensor] = {}

    def features(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the features (N, d) that the logits are computed from."""
        if (split, mirrored) not in self._features:
            self._features[split, mirrored] = self.features_of(split, mirrored)
        return self._features[split, mirrored]

    @torch.no_grad()
    def __call__(self, split: str, mirrored: bool = False) -> Tensor:
        return self.classifier(self.features(split, mirrored))


def evaluate_test(logits_of: LogitsOf, images: Images, data: LongTailedData) -> dict[str, Any]:
    """Report on the test set plain, and with the logits of each image and its mirror image averaged (`flip`).

    `flip` is None for a data set whose mirrored images show something else.
    """
    labels = images["test"].labels
    logits = logits_of("test")
    if not bool(logits.isfinite().all()):
        raise UserError("the network's logits on the test images are not finite: its weights are damaged or diverged")
    report: dict[str, Any] = {"plain": classification_report(logits, labels, data.class_counts), "flip": None}
    if data.augmentation.mirror:
        averaged = (logits + logits_of("test", True)) / 2
        report["flip"] = classification_report(averaged, labels, data.class_counts)
    return report


def selection_score(record: dict[str, Any]) -> float:
    """Return what `best` is chosen by: flip-averaged accuracy, plain where there is no flip."""
    return (record["flip"] or record["plain"])["all"]


def logits_report(logits_of: LogitsOf, images: Images) -> dict[str, Any]:
    """Return LoMa and RSD on the un-augmented training images and on the test images, plain logits."""
    return {split: logits_magnitude(logits_of(split), images[split].labels) for split in ("train", "test")}


def holdout_report(logits_of: LogitsOf, images: Images) -> dict[str, Any] | None:
    """Return the class-balanced accuracy on the held-out images, None where none were held out."""
    if len(images["holdout"]) == 0:
        return None
    balanced = class_balanced_accuracy(logits_of("holdout"), images["holdout"].labels)
    return {"images": len(images["holdout"]), "class_balanced_accuracy": balanced}


def report_table(records: dict[str, dict[str, Any]], protocol: str) -> str:
    """Return the table of all / many / medium / few, a row a checkpoint and test, the headline starred."""
    headline = HEADLINE[protocol]
    if not any(record["flip"] for record in records.values()):
        headline = (headline[0], "plain")
    rows = []
    for name, record in records.items():
        for way in ("plain", "flip"):
            if record[way] is not None:
                star = "*" if (name, way) == headline else ""
                values = {key: record[way][key] for key in ("all", *SHOTS, "macro_f1", "ece")}
                rows.append({"": star, "checkpoint": name, "epoch": record.get("epoch"), "test": way, **values})
    table = pd.DataFrame(rows)
    formatted = table.to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-")
    note = f"* the headline of the {protocol} protocol" if any(row[""] for row in rows) else ""
    return "\n".join(part for part in (formatted, note) if part)


def per_class_table(records: dict[str, dict[str, Any]], data: LongTailedData) -> str:
    """Tabulate every class: training images and, a checkpoint, accuracy, LoMa and RSD (column, test images)."""
    columns: dict[str, Any] = {"class": data.class_names, "images": data.class_counts}
    for name, record in records.items():
        for way in ("plain", "flip"):
            if record[way] is not None:
                columns[f"{name} {way}"] = record[way]["per_class_accuracy"]
        columns[f"{name} LoMa"] = record["logits"]["test"]["column"]["loma"]
        columns[f"{name} RSD"] = record["logits"]["test"]["column"]["rsd_true"]
    return pd.DataFrame(columns).to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-")
