"""Proximal LOS over its weight lambda and the smoothing, beside published LOS.

Where stage 1 held images out, the lambda that does best on them is named: no test image has a part in it.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.intervals.findings import Findings, Group, compare_groups, sample_of
from evaluation.plots import COLOURS
from evaluation.run_rows import GROUPS, csv_row, refuse_mixed
from evaluation.shown_tables import Line, report_tables
from tables.claims import last_plain, with_ends
from tables.request import Request, write_results
from tables.rows import Measured, Row, file_name, measure_seeds
from utils.errors import UserError

ANCHORS = tuple(float(f"{value:.2g}") for value in np.logspace(-4.5, 1, 12))
SMOOTHINGS = (0.98, 0.8)
LABEL = ["kind", "smoothing", "anchor"]
REFERENCE = "published LOS, s 0.98"


def make_table(request: Request) -> None:
    """Write `results/proximal_<experiment>.*`."""
    rows = [Row(dict(zip(LABEL, label, strict=True)), flags) for label, flags in grid()]
    for ratio in request.ratios():
        context, measured = measure_seeds(request, ratio, __doc__ or "", lambda _: rows)
        table, found, failed = rows_found(measured)
        table = with_ends(table, [row["metrics"] for row in found])
        by_row = table.groupby(LABEL, sort=False, dropna=False)
        lines = [Line({"method": words(dict(runs.iloc[0]))}, runs) for _, runs in by_row]
        shown = report_tables(lines, [("last", "plain")])
        notes = "\n".join([*failed, *chosen(table)])
        name = file_name("proximal", context, request.seeds)
        claims = compared(lines, found, REFERENCE)
        write_results(request, name, table, shown, {"": draw(table)}, notes, claims)


def rows_found(measured: list[Measured]) -> tuple[pd.DataFrame, list[Measured], list[str]]:
    """Return the rows that have numbers as CSV rows, the same as they were measured, and a line for each that has none.
    UserError where none has any."""
    failed = [f"{words(row['label'])}: {row['failure']}." for row in measured if row["failure"]]
    if len(failed) == len(measured):
        raise UserError(f"no row of the table has a number: {' '.join(failed)}")
    found = [row for row in measured if row["metrics"] is not None]
    table = pd.DataFrame([{**row["label"], **csv_row(row["metrics"], row["config"])} for row in found])
    refuse_mixed(table)
    return table, found, failed


def compared(lines: list[Line], found: list[Measured], reference: str) -> Findings | None:
    """Return each line with its interval and its paired difference to the line called `reference`; None where it is not
    recorded which test images are right. The runs of a line are rows of `found` by their index."""
    samples = []
    for line in lines:
        runs = [(found[place]["metrics"], found[place]["config"]) for place in line.runs.index]
        one = sample_of(line.label, runs, last_plain)
        if one is None:
            return None
        samples.append(one)
    to = next((one for one in samples if one.name == reference), samples[0])
    return compare_groups([Group("", samples, to)], "last epoch, plain", to.name)


def grid() -> list[tuple[tuple[str, float, float], tuple[str, ...]]]:
    """Return ((kind, smoothing, lambda), flags) of each row: stage 1's loss and published LOS first."""
    found: list[tuple[tuple[str, float, float], tuple[str, ...]]] = []
    found.append((("cross-entropy", 0.0, np.nan), ("--method", "ce")))
    for smoothing in SMOOTHINGS:
        flags: tuple[str, ...] = ("--method", "los", "--label_smooth", f"{smoothing:g}")
        found.append((("published LOS", smoothing, np.nan), flags))
    for smoothing in SMOOTHINGS:
        for anchor in ANCHORS:
            flags = ("--method", "proximal_los", "--label_smooth", f"{smoothing:g}", "--anchor", f"{anchor:g}")
            found.append((("proximal LOS", smoothing, anchor), flags))
    return found


def words(label: dict[str, Any]) -> str:
    """Return what a row is of."""
    smoothing = f", s {label['smoothing']:g}" if label.get("smoothing") else ""
    anchor = "" if pd.isna(label["anchor"]) else f", lambda {label['anchor']:g}"
    return f"{label['kind']}{smoothing}{anchor}"


def chosen(table: pd.DataFrame) -> list[str]:
    """Return the lambda of each smoothing that does best on held-out images, where stage 1 held some out."""
    lines = []
    for smoothing, rows in table[table["kind"] == "proximal LOS"].groupby("smoothing", sort=False):
        scores = rows.groupby("anchor")["holdout_class_balanced"].mean()
        if scores.notna().all():
            best = scores.idxmax()
            test = rows[rows["anchor"] == best]["last_plain_all"].mean()
            highest = rows.groupby("anchor")["last_plain_all"].mean().max()
            lines.append(
                f"s {smoothing:g}: lambda {best:g} is best on held-out images ({scores[best]:.1f} %, class-balanced). "
                f"It reaches {test:.1f} % of the test images; the most of the grid is {highest:.1f} %."
            )
    return lines


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy by shot over lambda, a panel a smoothing, with published LOS as dotted lines."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, smoothing in zip(figure.subplots(1, len(SMOOTHINGS), sharey=True), SMOOTHINGS, strict=True):
        rows = table[table["smoothing"] == smoothing]
        path = rows[rows["kind"] == "proximal LOS"].groupby("anchor").mean(numeric_only=True)
        published = rows[rows["kind"] == "published LOS"].mean(numeric_only=True)
        for group in [group for group in GROUPS if f"last_plain_{group}" in path]:
            axes.plot(
                path.index, path[f"last_plain_{group}"], marker="o", markersize=4, color=COLOURS[group], label=group
            )
            if f"last_plain_{group}" in published:
                axes.axhline(published[f"last_plain_{group}"], color=COLOURS[group], linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set(xlabel="lambda", title=f"s = {smoothing:g} (dotted: published LOS)")
    figure.axes[0].set_ylabel("test accuracy (%)")
    figure.axes[0].legend(fontsize=8)
    return figure
