"""The tables on the screen: what `evaluation.measure` measured, for people.

A report of many classes, two checkpoints and two ways of testing becomes a few lines, with the headline starred.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from datasets.long_tail import LongTailedData
from evaluation.metrics import SHOTS, row_blocks

REFERENCE_NORM = 100  # mean squared norm of the features that the published rates are for, in round numbers
HEADLINE = {"honest": ("last", "plain"), "released": ("best", "flip")}
END_CLASSES = 50  # classes at each end of a table that is too long to be printed


def cell(value: object) -> str:
    """Return a number of a table as text: fractions with two digits, "-" for what does not exist."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def to_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as the text of a table, in columns as wide as they need."""
    return pd.DataFrame([{name: cell(value) for name, value in row.items()} for row in rows]).to_string(index=False)


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the report that the run's protocol quotes; plain where the data set has no mirrored images."""
    checkpoint, way = HEADLINE[metrics["protocol"]]
    return metrics[checkpoint][way] or metrics[checkpoint]["plain"]


def report_table(records: dict[str, dict[str, Any]], protocol: str) -> str:
    """Return the table of all / many / medium / few, a row a checkpoint and test, the headline starred."""
    starred = HEADLINE[protocol]
    if not any(record["flip"] for record in records.values()):
        starred = (starred[0], "plain")
    rows = []
    for name, record in records.items():
        for way in ("plain", "flip"):
            if record[way] is not None:
                star = "*" if (name, way) == starred else ""
                values = {key: record[way][key] for key in ("all", *SHOTS, "macro_f1", "ece")}
                rows.append({"": star, "checkpoint": name, "epoch": record.get("epoch"), "test": way, **values})
    note = f"* the headline of the {protocol} protocol" if any(row[""] for row in rows) else ""
    return "\n".join(part for part in (to_text(rows), note) if part)


def rebalanced_table(report: dict[str, Any]) -> str:
    """Return the table of `rebalanced_report`, with what each of its forms supposes."""
    means_over = {"transductive": "the test images themselves", "inductive": "held-out images"}
    rows = []
    for form, images in means_over.items():
        for way in ("plain", "flip"):
            if report[form] and report[form][way]:
                values = {key: report[form][way][key] for key in ("all", *SHOTS, "macro_f1")}
                rows.append({"re-balanced": form, "test": way, **values, "over": images})
    return (
        f"{to_text(rows)}\n(probabilities divided by their mean over images to the power tau = {report['tau']:g}; "
        "transductive: the test images are supposed balanced; inductive: one image at a time)"
    )


def logits_table(summary: dict[str, Any]) -> str:
    """Return the table of `logits_summary`: LoMa and RSD over the classes, a row a split and reading."""
    rows = []
    for split, readings in summary.items():
        for reading, values in readings.items():
            row = {"logits": split, "reading": reading}
            for name, label in (("loma", "LoMa"), ("rsd_true", "RSD true"), ("rsd_other", "RSD other")):
                row |= {label: values[name]["mean"], f"{label} +-": values[name]["deviation"]}
            rows.append({**row, "LoMa +-/mean": values["loma"]["variation"]})
    return to_text(rows)


def calibration_line(report: dict[str, Any] | None) -> str:
    """Return one line on calibration before and after the temperature."""
    if report is None:
        return (
            "no temperature: it is fitted on held-out images (train both stages with --holdout, or give --temperature)"
        )
    plain = report["plain"]
    return (
        f"temperature {report['temperature']:.4g} ({report['source']}): calibration error {plain['ece_before']:.2f} "
        f"before, {plain['ece_after']:.2f} after (plain test images)"
    )


def scale_line(features: Tensor, lr: float) -> str:
    """Return one line on the scale of features (N, d) beside the learning rate, which has to go with it."""
    norm = sum(float(features[rows].double().square().sum()) for rows in row_blocks(features)) / len(features)
    text = f"features: mean squared norm {norm:.3g}; learning rate {lr:g}"
    if REFERENCE_NORM / 10 <= norm <= REFERENCE_NORM * 10:
        return text
    return (
        f"{text}. warning: the published learning rates are for a mean squared norm of about {REFERENCE_NORM}; "
        f"a rate times {REFERENCE_NORM / max(norm, 1e-30):.2g} moves these features as far"
    )


def details(record: dict[str, Any]) -> str:
    """Return what is printed below the accuracies: re-balanced predictions, logits, calibration."""
    tables = (rebalanced_table(record["rebalanced"]), "", logits_table(record["logits_summary"]))
    return "\n".join((*tables, calibration_line(record["calibration"])))


def per_class_table(records: dict[str, dict[str, Any]], data: LongTailedData) -> str:
    """Tabulate the classes: training images and, a checkpoint, accuracy, LoMa and RSD (column, test images).

    Of more than `2 * END_CLASSES` classes only the `END_CLASSES` largest and smallest are printed, sorted by size.
    """
    columns: dict[str, Any] = {"class": data.class_names, "images": data.class_counts}
    for name, record in records.items():
        of = f"{name} " if len(records) > 1 else ""
        for way in ("plain", "flip"):
            if record[way] is not None:
                columns[f"{of}{way}"] = record[way]["per_class_accuracy"]
        columns[f"{of}LoMa"] = record["logits"]["test"]["column"]["loma"]
        columns[f"{of}RSD"] = record["logits"]["test"]["column"]["rsd_true"]
    order, more = list(range(data.num_classes)), data.num_classes - 2 * END_CLASSES
    if more > 0:
        by_size = np.argsort(-data.class_counts, kind="stable").tolist()
        order = [*by_size[:END_CLASSES], *by_size[-END_CLASSES:]]
    lines = to_text([{name: values[k] for name, values in columns.items()} for k in order]).splitlines()
    if more > 0:
        note = f"... and {more} more between the largest and the smallest {END_CLASSES}; --json has all"
        lines.insert(1 + END_CLASSES, note)
    return "\n".join(lines)
