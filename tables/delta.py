"""LOS over its smoothing: accuracy, and the measured Logits Magnitude beside the gap that the target asks for."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.plots import COLOURS
from evaluation.run_rows import GROUPS, csv_row, mean_cell, refuse_mixed
from evaluation.shown_tables import Line, logits_cells, report_tables
from losses.los import optimal_gap, torch_target
from tables.claims import claims_of, with_ends
from tables.request import Request, write_results
from tables.rows import Measured, Row, file_name, measure_seeds
from utils.errors import UserError

SMOOTHINGS = (0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
PUBLISHED = 0.98  # LOS's own, which the others are compared with


def make_table(request: Request) -> None:
    """Write `results/delta_<experiment>.*`."""
    rows = [Row({"smoothing": s}, ("--method", "los", "--label_smooth", f"{s:g}")) for s in SMOOTHINGS]
    for ratio in request.ratios():
        context, measured = measure_seeds(request, ratio, __doc__ or "", lambda _: rows)
        failed = [
            f"s = {row['label']['smoothing']:g}, seed {row['config']['settings']['seed']}: {row['failure']}."
            for row in measured
            if row["failure"]
        ]
        if len(failed) == len(measured):
            raise UserError(f"no row of the table has a number: {' '.join(failed)}")
        found = [row for row in measured if row["metrics"] is not None]
        table = pd.DataFrame([delta_row(row) for row in found])
        refuse_mixed(table)
        table = with_ends(table, [row["metrics"] for row in found])
        groups = list(table.groupby("smoothing", sort=True))
        lines = [line(s, runs) for s, runs in groups]
        runs = [[(found[place]["metrics"], found[place]["config"]) for place in own.index] for _, own in groups]
        names = ["los" if s == PUBLISHED else "" for s, _ in groups]
        claims = claims_of(lines, runs, "", names, f"s = {PUBLISHED:g}")
        shown = report_tables(lines)
        write_results(
            request,
            file_name("delta", context, request.seeds),
            table,
            shown,
            {"": draw(table)},
            "\n".join(failed),
            claims,
        )


def delta_row(row: Measured) -> dict[str, object]:
    """Return a CSV line: the run's numbers and the gap at which its loss is smallest, ln(1 + K (1 - s) / s)."""
    smoothing = row["label"]["smoothing"]
    gap = optimal_gap(torch_target(smoothing, row["metrics"]["num_class"]))
    return {"smoothing": smoothing, "optimal_gap": gap, **csv_row(row["metrics"], row["config"])}


def line(smoothing: float, runs: pd.DataFrame) -> Line:
    """Return the line of a smoothing in the tables that people read."""
    about = {
        "seeds": ", ".join(str(seed) for seed in runs["seed"]),
        "optimal gap": f"{runs['optimal_gap'].iloc[0]:.2f}",
    }
    about["LoMa, training images"] = mean_cell(runs["train_loma_mean"], 2)
    about["LoMa, test images"] = mean_cell(runs["loma_mean"], 2)
    return Line({"s": f"{smoothing:g}"}, runs, more={"The gap of the logits": about, **logits_cells(runs)})


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy and LoMa over the smoothing; the axis has one place a value, since they crowd at 1."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = table.groupby("smoothing").mean(numeric_only=True)
    places = np.arange(len(means))
    for group in [group for group in GROUPS if f"last_plain_{group}" in means]:  # no column of an empty group
        left.plot(places, means[f"last_plain_{group}"], marker="o", markersize=4, color=COLOURS[group], label=group)
    left.set(ylabel="test accuracy (%), last epoch, plain")
    left.legend(fontsize=8)
    right.plot(places, means["optimal_gap"].replace(np.inf, np.nan), "k--", label="optimum ln(1 + K (1 - s) / s)")
    right.plot(
        places, means["train_loma_mean"], marker="o", markersize=4, color="grey", label="measured, training images"
    )
    right.plot(places, means["loma_mean"], marker="o", markersize=4, color="tab:blue", label="measured, test images")
    right.set(ylabel="mean Logits Magnitude (column)", ylim=(0, None))
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xticks(places, [f"{s:g}" for s in means.index])
        axes.set_xlabel("smoothing s")
    return figure
