"""A finished run as one CSV row, and rows as the tables that people read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.identity.content import CONTENT
from evaluation.class_accuracies import MEASURES as CLASS_MEASURES
from evaluation.intervals.correct import unpack_correct
from evaluation.logits_magnitude import summarise
from evaluation.measure import logits_summary
from evaluation.metrics import SHOTS, recorded_bounds
from evaluation.places import refuse_unfinished
from evaluation.probabilities import SCORES
from evaluation.text_tables import headline
from utils.errors import UserError
from utils.files import read_json
from utils.text import printable, shown

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("all", *SHOTS)
# What a report holds beside `GROUPS`, macro F1 and ECE; those of earlier versions lack it, and rows have None there.
FURTHER = (*CLASS_MEASURES, "top_5", *(name for name in SCORES if name != "ece"))
WAYS = [(checkpoint, way) for checkpoint in ("last", "best") for way in ("plain", "flip")]

# The columns that hold text, where the others hold numbers.
SETTING_TEXTS = {"name", "dataset", "imb_type", "network", "stage", "method", "settings", "protocol"}
ORIGIN_TEXTS = {
    "subset_content_sha256",
    "data_sha256",
    "stage1_sha256",
    "command",
    "device",
    "execution",
    "torch",
    "git_revision",
}
TEXTS = SETTING_TEXTS | ORIGIN_TEXTS

# What two runs must share to be repeats of one another.
SETTINGS = ["dataset", "imb_type", "imb_ratio", "network", "name", "settings", "protocol"]


def run_name(metrics: dict[str, Any], config: dict[str, Any]) -> str:
    """Return a run's name in a table: its method, and what differs from the recipe and the protocol."""
    return "stage 1" if metrics["stage"] == "stage1" else " ".join([metrics["method"], *distinguishing_tags(config)])


def distinguishing_tags(config: dict[str, Any]) -> list[str]:
    """Return the tags of a stage-2 run that come neither from its stage 1 nor from a seed or a protocol."""
    inherited = [*(config["stage1"] or {}).get("tags", []), config["settings"]["protocol"]]
    return [tag for tag in config["tags"] if tag not in inherited and not tag.startswith("stage1_seed")]


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (metrics, config) of a finished run; a UserError says what is missing."""
    refuse_unfinished(folder)
    metrics, config = read_json(folder / "metrics.json"), read_json(folder / "config.json")
    refuse_damaged_run(folder, metrics, config)
    return metrics, config


def refuse_damaged_run(folder: Path, metrics: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise UserError where what is to be compared of a run is missing or of another kind."""
    lacking = ""
    try:
        row = csv_row(metrics, config)
        recorded_bounds(metrics)
        accuracies = headline(metrics)["per_class_accuracy"]
        sound = np.array(accuracies, dtype=float).shape == np.array(metrics["class_counts"], dtype=float).shape
        for checkpoint, way in WAYS:
            report = metrics[checkpoint][way]
            sound &= report is None or all(group in report for group in (*GROUPS, "macro_f1", "ece"))
            if report is not None and "correct" in report:
                unpack_correct(report["correct"], report["class_images"])
        for name, value in row.items():
            kind = str if name in TEXTS else int | float
            sound &= value is None or (isinstance(value, kind) and not isinstance(value, bool))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, UserError) as error:
        sound, lacking = False, f" ({type(error).__name__}: {shown(str(error))})"
    if not sound:
        raise UserError(f"{folder} is damaged: its metrics.json or config.json is not what a run writes{lacking}")


def csv_row(metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return everything that RESULTS.md may quote of a run, and what made it: accuracies in percent, times in seconds.

    A number that does not exist is None.
    """
    row = {
        **setting_columns(metrics, config),
        **accuracy_columns(metrics),
        **logits_columns(metrics),
        **correction_columns(metrics),
        **origin_columns(metrics, config),
    }
    return {name: printable(value) if isinstance(value, str) else value for name, value in row.items()}


def setting_columns(metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return what a run was of: its name, data, network, method and seed."""
    row: dict[str, Any] = {"name": run_name(metrics, config)}
    row |= {key: metrics[key] for key in ("dataset", "imb_type", "imb_ratio", "network", "width", "stage", "method")}
    row["settings"] = " ".join(tag for tag in config["tags"] if not tag.startswith("stage1_seed"))
    return {**row, "protocol": metrics["protocol"], "seed": metrics["seed"]}


def accuracy_columns(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the reports on the test set, of each checkpoint and way of testing, and the held-out images' accuracy."""
    row: dict[str, Any] = {}
    for checkpoint, way in WAYS:
        report = metrics[checkpoint][way] or {}
        row |= {f"{checkpoint}_{way}_{name}": report.get(name) for name in (*GROUPS, "macro_f1", "ece", *FURTHER)}
        row[f"{checkpoint}_epoch"] = metrics[checkpoint]["epoch"]
    return {**row, "holdout_class_balanced": (metrics["holdout"] or {}).get("class_balanced_accuracy")}


def logits_columns(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the fit to the training images, LoMa and RSD over the classes, and how the classifier's norms vary."""
    summary = logits_summary(metrics["logits"])
    column, row_reading = (summary["test"][reading] for reading in ("column", "row"))
    return {
        "train_accuracy": metrics["train"]["accuracy"],
        "feature_variance_ratio": metrics["train"]["feature_variance_ratio"],
        "loma_mean": column["loma"]["mean"],
        "loma_deviation": column["loma"]["deviation"],
        "loma_variation": column["loma"]["variation"],
        "rsd_true_median": column["rsd_true"]["median"],
        "rsd_other_median": column["rsd_other"]["median"],
        "rsd_classes": column["rsd_true"]["count"],
        "row_loma_mean": row_reading["loma"]["mean"],
        "train_loma_mean": summary["train"]["column"]["loma"]["mean"],
        "weight_norm_variation": summarise(metrics["weight_norm"])["variation"],
    }


def correction_columns(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what a temperature makes of the calibration error, and re-balancing of the predictions."""
    calibration = metrics.get("calibration") or {"temperature": None, "plain": {}}
    rebalanced = metrics.get("rebalanced") or {"tau": None, "transductive": {"plain": None, "flip": None}}
    row: dict[str, Any] = {
        "temperature": calibration["temperature"],
        **{f"last_plain_{name}_after": calibration["plain"].get(f"{name}_after") for name in SCORES},
        "rebalance_tau": rebalanced["tau"],
    }
    for way in ("plain", "flip"):
        report = rebalanced["transductive"][way] or {}
        row |= {f"rebalanced_{way}_{group}": report.get(group) for group in (*GROUPS, *CLASS_MEASURES)}
    return row


def origin_columns(metrics: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return what made a run: its time, images, stage 1, command, machine and versions."""
    environment = config["environment"]
    return {
        "train_seconds": metrics["train_seconds"],
        "images_per_second": metrics["images_per_second"],
        "subset_content_sha256": metrics["subset"]["content_sha256"],
        "data_sha256": data_sha256(config),
        "stage1_sha256": (metrics["stage1"] or {}).get("sha256"),
        "command": config["command"],
        "device": environment["device"],
        "execution": "; ".join(environment["execution"][1:]),
        "torch": environment["torch"],
        "git_revision": environment["git_revision"],
    }


BY_NAMES = "names-"  # how the identity of data begins of which names and labels alone are known


def data_sha256(config: dict[str, Any]) -> str:
    """Return what tells the data of a run from other data of that name: a sha256 over what config.json says of them.

    That is the identity of training and test images, the classes, and the file of `--weights`. With `--holdout` the
    seed of a run chooses its training images, so that repeats differ in these: their number by class counts then. Of
    images on disk whose content was not recorded names and labels are all that is known, and the text says so.
    """
    held_out = (config.get("settings") or {}).get("holdout")
    subset = config.get("subset")
    parts = {name: config.get(name) for name in ("test", "class_names", "class_counts")}
    parts["subset"] = None if held_out else subset
    parts["weights"] = (config.get("weights") or {}).get("sha256")
    beginning = ""
    if isinstance(subset, dict) and "content" in subset:  # of images on disk: labels and relative paths
        identity = config.get("identity") or {}
        if identity.get("how") == CONTENT:
            compared = ("test",) if held_out else ("train", "holdout", "test")
            parts["content"] = [identity[part]["content_sha256"] for part in compared]
        else:
            beginning = BY_NAMES
    return beginning + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sha256_of_test(config: dict[str, Any]) -> str:
    """Return what tells the test images of a run, their labels and their order from others, whatever it trained on.

    Runs from before it was recorded have their `data_sha256` for it.
    """
    identity = config.get("identity")
    test = identity.get("test") if isinstance(identity, dict) else None
    if not isinstance(identity, dict) or not isinstance(test, dict) or not isinstance(test.get("order_sha256"), str):
        return data_sha256(config)
    parts = [identity.get("how"), identity.get("of"), test["order_sha256"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def refuse_mixed(rows: pd.DataFrame) -> None:
    """Raise UserError for rows, to be averaged, of different data: their mean would be of nothing.

    What a row does not say of its data is not known, and is no reason.
    """
    known = {str(value) for value in rows["data_sha256"].dropna()} if "data_sha256" in rows else set()
    named = {value for value in known if value.startswith(BY_NAMES)}
    if len(named) > 1 or len(known - named) > 1:
        name = rows["name"].iloc[0] if "name" in rows else "a row"
        sums = ", ".join(sorted(value.removeprefix(BY_NAMES)[:8] for value in known))
        raise UserError(f"{name}: its repeats are of different data (sha256 {sums}), so they have no mean")


def best_column(rows: pd.DataFrame) -> tuple[str, str]:
    """Return which `best` is shown: flip-averaged, plain for a data set whose images are not mirrored."""
    return "best", "flip" if rows["best_flip_all"].notna().any() else "plain"


def mean_cell(values: pd.Series, digits: int) -> str:
    """Return the mean of a column, with its deviation where there are several rows; "-" where it is empty."""
    import pandas as pd

    numbers = pd.to_numeric(values)
    if numbers.isna().any():
        return "-"
    deviation = f" ± {numbers.std():.{digits}f}" if len(numbers) > 1 else ""
    return f"{numbers.mean():.{digits}f}{deviation}"


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    cells = table.astype(object).fillna("-").astype(str)  # a "-" has no place in a column of numbers
    lines = [list(table.columns), ["---"] * len(table.columns), *cells.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
