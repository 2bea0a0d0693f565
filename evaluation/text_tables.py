"""The tables on the screen: what `evaluation.measure` measured, for people.

A report of many classes, two checkpoints and two ways of testing becomes a few lines, with the headline starred.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datasets.long_tail import LongTailedData
from evaluation.metrics import SHOTS
from evaluation.probabilities import SCORES
from utils.text import shown

HEADLINE = {"honest": ("last", "plain"), "released": ("best", "flip")}
# Everything that a report on test images may hold, as it is called on the screen; in percent but for the last two.
MEASURES = {
    "all": "all",
    **{name: name for name in SHOTS},
    "class_balanced": "class-balanced",
    "harmonic": "harmonic mean",
    "geometric": "geometric mean",
    "worst": "worst class",
    "worst_10": "worst 10 classes",
    "worst_10_percent": "worst 10 % of classes",
    "top_5": "top-5",
    "macro_f1": "macro F1",
    "ece": "ECE",
    "classwise_ece": "class-wise ECE",
    "brier": "Brier score",
    "nll": "NLL",
}
LONGEST_NAME = 22  # characters of a class's name in a table
END_CLASSES = 50  # classes at each end of a table that is too long to be printed


def short_name(name: str) -> str:
    """Return the name of a class as it fits into a table."""
    text = shown(name)
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 3]}..."


def cell(value: object) -> str:
    """Return a number of a table as text: fractions with two digits, "-" for what does not exist."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def to_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as the text of a table, in columns as wide as they need."""
    import pandas as pd

    return pd.DataFrame([{name: cell(value) for name, value in row.items()} for row in rows]).to_string(index=False)


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the report that the run's protocol quotes; plain where the data set has no mirrored images."""
    return headline_of(metrics, metrics["protocol"])


def headline_of(records: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """Return the report that a protocol quotes of the checkpoints' records; of the only one where there is no other."""
    checkpoint, way = HEADLINE[protocol]
    record = records[checkpoint] if checkpoint in records else next(iter(records.values()))
    return record[way] or record["plain"]


def measure_table(reports: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Return reports side by side, a column each, a row for each of the measures `names` that any of them has."""
    rows = [
        {"": words, **{title: report.get(name) for title, report in reports.items()}}
        for name, words in names.items()
        if any(name in report for report in reports.values())
    ]
    return to_text(rows)


def report_table(records: dict[str, dict[str, Any]], protocol: str) -> str:
    """Return the table of everything that is measured of the test images, a column a checkpoint and way of testing, the
    headline starred, and what has to be known to read it."""
    starred = HEADLINE[protocol]
    if not any(record["flip"] for record in records.values()):
        starred = (starred[0], "plain")
    columns: dict[str, dict[str, Any]] = {}
    for name, record in records.items():
        for way in ("plain", "flip"):
            if record[way] is not None:
                title = f"{name}, {way}{'*' * ((name, way) == starred)}"
                columns[title] = {"epoch": record.get("epoch"), **record[way]}
    notes = [f"* the headline of the {protocol} protocol"] if any(title.endswith("*") for title in columns) else []
    notes += balance_notes(next(iter(columns.values())).get("test_images"))
    return "\n".join([measure_table(columns, {"epoch": "epoch", **MEASURES}), *notes])


def balance_notes(images: dict[str, int] | None) -> list[str]:
    """Return what is said where the test images are not as many of each class, from `test_images` of a report, which
    those of earlier versions lack."""
    if images is None:
        return []
    smallest, largest, absent = (images[name] for name in ("smallest_class", "largest_class", "absent_classes"))
    notes = []
    if smallest != largest:
        notes.append(
            f"the test images are not balanced, {smallest} to {largest} of a class: in 'all' every image weighs the "
            "same, in 'class-balanced' every class; compare methods for rare classes by the latter"
        )
    if absent:
        words = "1 class has" if absent == 1 else f"{absent} classes have"
        notes.append(f"{words} no test image: no accuracy, and no part in any mean over classes")
    return notes


def rebalanced_table(report: dict[str, Any]) -> str:
    """Return the table of `rebalanced_report`, with what each of its forms supposes."""
    forms = {
        "transductive": "over the test images themselves, supposed balanced",
        "inductive": "over held-out images, one image at a time",
    }
    there = [form for form in forms if report[form]]
    wide = any(report[form]["flip"] for form in there)  # too wide for 80 columns side by side
    tables = [
        measure_table(
            {f"{form}, {way}": report[form][way] for form in group for way in ("plain", "flip") if report[form][way]},
            MEASURES,
        )
        for group in ([[form] for form in there] if wide else [there])
    ]
    said = ";\n".join(f"{form}: {forms[form]}" for form in there)
    return (
        "re-balanced predictions:\n" + "\n\n".join(tables) + "\n"
        f"(probabilities divided by their mean over images to the power tau = {report['tau']:g};\n{said})"
    )


def logits_table(summary: dict[str, Any]) -> str:
    """Return the table of `logits_summary`: LoMa and RSD over the classes, a row a split and reading."""
    rows = []
    for split, readings in summary.items():
        for reading, values in readings.items():
            row = {"logits": split, "reading": reading}
            for name, label in (("loma", "LoMa"), ("rsd_true", "RSD true"), ("rsd_other", "RSD other")):
                row |= {label: values[name]["mean"], f"{label.removeprefix('RSD ')} +-": values[name]["deviation"]}
            rows.append({**row, "+-/LoMa": values["loma"]["variation"]})
    return to_text(rows)


def calibration_text(report: dict[str, Any] | None) -> str:
    """Return what calibration changes: the scores of the plain test images before and after the temperature."""
    if report is None:
        return (
            "no temperature: it is fitted on held-out images\n(train both stages with --holdout, or give --temperature)"
        )
    if report["temperature"] is None:
        return f"{shown(report['source'])}; hold more images out, or give --temperature"
    scores = {when: {name: report["plain"].get(f"{name}_{when}") for name in SCORES} for when in ("before", "after")}
    line = (
        f"temperature {report['temperature']:.4g} ({shown(report['source'])}), plain test images before and after it:"
    )
    return f"{line}\n{measure_table(scores, {name: MEASURES[name] for name in SCORES})}"


def details(record: dict[str, Any]) -> str:
    """Return what is printed below the accuracies: re-balanced predictions, logits, calibration."""
    tables = (rebalanced_table(record["rebalanced"]), "", logits_table(record["logits_summary"]))
    return "\n".join((*tables, calibration_text(record["calibration"])))


def per_class_table(records: dict[str, dict[str, Any]], data: LongTailedData) -> str:
    """Tabulate the classes: training images and, a checkpoint, accuracy, LoMa and RSD (column, test images).

    Of more than `2 * END_CLASSES` classes only the `END_CLASSES` largest and smallest are printed, sorted by size.
    """
    if len(records) > 1 and any(record["flip"] is not None for record in records.values()):  # too wide for 80 columns
        tables = [f"{name}:\n{per_class_table({name: record}, data)}" for name, record in records.items()]
        return "\n\n".join(tables)
    columns: dict[str, Any] = {"class": [short_name(name) for name in data.class_names], "images": data.class_counts}
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
