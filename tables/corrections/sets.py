"""Methods by their prediction sets: how often they cover the true class, by shot, and how large they are.

Temperature and thresholds are fitted on held-out images and the sets are counted on all test images. Where no image was
held out, a random half of the test images of every class takes their place, and the sets are counted on the other half:
the mean over `SPLITS` splits. Only the thresholds and the temperature see that half; a number of sets is no accuracy.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from evaluation.metrics import SHOTS, fit_temperature
from evaluation.prediction_sets.kinds import KINDS
from evaluation.prediction_sets.record import measure_held_out
from evaluation.prediction_sets.report import sets_report
from evaluation.run_rows import mean_cell
from evaluation.shown_tables import Tables
from tables.corrections.retrained import Retrained, Shown, make_corrected
from tables.request import Request
from utils.text import counted

COVERAGE = 0.9
SPLITS = 10
GROUPS = ("all", *SHOTS)


def make_table(request: Request) -> None:
    """Write `results/sets_<experiment>.*`."""
    make_corrected(request, __doc__ or "", measure, read)


def read(table: pd.DataFrame) -> Shown:
    """Return what people read of the rows."""
    asked = f"Coverage {COVERAGE:g} asked. Thresholds: {table['thresholds'].iloc[0]}."
    return Shown(shown_tables(table), draw(table), [asked])


def measure(classifier: Retrained) -> list[dict[str, Any]]:
    """Return a CSV row of a classifier for each kind of threshold."""
    context, logits_of = classifier.context, classifier.logits_of()
    logits, labels = logits_of("test"), context.images["test"].labels
    counts = context.data.class_counts
    if len(context.images["holdout"]):
        found = [report(logits_of("holdout"), context.images["holdout"].labels, logits, labels, counts)]
        how = counted(len(context.images["holdout"]), "held-out image")
    else:
        halves = [half_of_classes(labels, number) for number in range(SPLITS)]
        found = [report(logits[own], labels[own], logits[~own], labels[~own], counts) for own in halves]
        how = f"half of the test images of every class, mean over {SPLITS} splits"
    rows = []
    for kind in KINDS:
        values: dict[str, float | None] = {"temperature": float(np.mean([each["temperature"] for each in found]))}
        for measured in ("coverage", "size"):
            for group in GROUPS:
                numbers = [each[kind][measured][group] for each in found]
                values[f"{measured}_{group}"] = None if None in numbers else float(np.mean(numbers))
        values["empty"] = float(np.mean([each[kind]["empty"] for each in found]))
        rows.append({**classifier.about(), "sets": kind, "thresholds": how, **values, **classifier.origin()})
    return rows


def half_of_classes(labels: Tensor, seed: int) -> Tensor:
    """Return a mask (N,) of half of the images of every class, rounded down, by their labels (N,)."""
    generator, known = np.random.default_rng(seed), labels.cpu().numpy()
    mask = np.zeros(len(known), dtype=bool)
    for label in np.unique(known):
        rows = generator.permutation(np.flatnonzero(known == label))
        mask[rows[: len(rows) // 2]] = True
    return torch.from_numpy(mask).to(labels.device)


def report(
    fitted: Tensor, fitted_labels: Tensor, logits: Tensor, labels: Tensor, class_counts: np.ndarray
) -> dict[str, Any]:
    """Return the `sets_report` on logits (N, K) with labels (N,), temperature and thresholds being those of others."""
    temperature = fit_temperature(fitted, fitted_labels) or 1.0
    shares = [1 / len(class_counts)] * len(class_counts)  # no prior is corrected here
    held_out = measure_held_out(fitted, fitted_labels, temperature, shares)
    return sets_report(logits, labels, class_counts, held_out, COVERAGE)


def shown_tables(table: pd.DataFrame) -> Tables:
    """Return the tables that people read: coverage and size, a pair a kind of threshold."""
    found: Tables = {}
    for kind in KINDS:
        own = table[table["sets"] == kind]
        for measured, words in (("coverage", "Covered, in percent"), ("size", "Classes in a set")):
            lines = [
                {"method": name, **{group: mean_cell(runs[f"{measured}_{group}"], 1) for group in GROUPS}}
                for name, runs in own.groupby("row", sort=False)
            ]
            found[f"{words}, {kind} sets, last epoch, plain"] = pd.DataFrame(lines)
    return found


def draw(table: pd.DataFrame) -> Figure:
    """Draw few-shot coverage over the mean size of the sets, a point a method, a panel a kind of threshold."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(KINDS), sharex=True, sharey=True), KINDS, strict=True):
        for name, runs in table[table["sets"] == kind].groupby("row", sort=False):
            few = pd.to_numeric(runs["coverage_few"]).mean()
            axes.plot([runs["size_all"].mean()], [few], "o", label=name)
        axes.axhline(100 * COVERAGE, color="grey", linestyle=":")
        axes.set(title=kind, xlabel="classes in a set, mean")
    figure.axes[0].set(ylabel="few-shot classes covered (%)")
    figure.axes[0].legend(fontsize=8)
    return figure
