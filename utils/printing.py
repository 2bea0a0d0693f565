"""The tables on the screen: what `utils.evaluation` measured, for people."""

from typing import Any

import pandas as pd

from datasets.long_tail import LongTailedData
from utils.metrics import SHOTS

HEADLINE = {"honest": ("last", "plain"), "released": ("best", "flip")}


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


def rebalanced_table(report: dict[str, Any]) -> str:
    """Return the table of `rebalanced_report`, with what each of its forms supposes."""
    notes = {
        "transductive": "over the test images themselves, supposed balanced: not one image at a time",
        "inductive": "over held-out images: one image at a time",
    }
    rows = [
        {"re-balanced": form, "test": way, **{key: report[form][way][key] for key in ("all", *SHOTS, "macro_f1")},
         "": notes[form]}
        for form in notes if report[form] for way in ("plain", "flip") if report[form][way]
    ]  # fmt: skip
    formatted = pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-")
    return f"{formatted}\n(probabilities divided by their mean over images to the power tau = {report['tau']:g})"


def logits_table(summary: dict[str, Any]) -> str:
    """Return the table of `logits_summary`: LoMa and RSD over the classes, a row a split and reading."""
    rows = []
    for split, readings in summary.items():
        for reading, values in readings.items():
            row = {"logits": split, "reading": reading}
            for name, label in (("loma", "LoMa"), ("rsd_true", "RSD true"), ("rsd_other", "RSD other")):
                row |= {label: values[name]["mean"], f"{label} +-": values[name]["deviation"]}
            rows.append({**row, "LoMa +-/mean": values["loma"]["variation"]})
    return pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-")


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


def details(record: dict[str, Any]) -> str:
    """Return what is printed below the accuracies: re-balanced predictions, logits, calibration."""
    return "\n".join(
        (
            rebalanced_table(record["rebalanced"]), "", logits_table(record["logits_summary"]),
            calibration_line(record["calibration"]),
        )
    )  # fmt: skip


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
