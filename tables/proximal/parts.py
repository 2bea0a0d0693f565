"""What in proximal LOS helps: its anchor with other targets, losses, starts, distances and rows, each over lambda, and
the same losses without an anchor, averages of the path, and centring.

The lambda of a line in the tables is that with the highest test accuracy: an upper bound of what a choice can reach,
the same for all lines. The view `choice` has what remains of it without test images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.run_rows import mean_cell
from evaluation.shown_tables import Line
from tables.proximal.grid import compared, rows_found
from tables.proximal.shared import PROXIMAL
from tables.request import Request, write_results
from tables.rows import Row, TableContext, file_name, measure_seeds
from tables.selection import Flags

USUAL = tuple(float(f"{value:.2g}") for value in np.logspace(-3.5, -1, 6))
SMALL = tuple(float(f"{value:.2g}") for value in np.logspace(-6, -2, 5))  # one-hot targets leave little gradient
LOGITS = tuple(float(f"{value:.2g}") for value in np.logspace(-2, 1, 7))  # these distances weigh most directions little
FISHER = tuple(float(f"{value:.2g}") for value in np.logspace(1.5, 4, 6))
REFERENCE = "LOS, s 0.98"

# What each line changes of proximal LOS, and the lambdas that are tried.
ANCHORED: dict[str, tuple[Flags, Sequence[float]]] = {
    REFERENCE: ((), USUAL),
    "LOS, s 0.8": (("--label_smooth", "0.8"), USUAL),
    "cross-entropy": (("--label_smooth", "0"), SMALL),
    "balanced softmax": (("--label_smooth", "0", "--tau", "1"), SMALL),
    "LOS on logit adjustment": (("--tau", "1"), USUAL),
    "LOS, class-weighted": (("--rho", "1"), USUAL),
    "LOS, start half adjusted": (("--start_tau", "0.5"), USUAL),
    "LOS, distance of the logits": (("--distance", "logits"), LOGITS),
    "LOS, Fisher distance": (("--distance", "fisher"), FISHER),
    "LOS on augmented views": (("--fit_on", "views"), USUAL),
}
# Without an anchor: what remains of a line as lambda grows, the published paths, their averages, centring.
OTHERS: dict[str, Flags] = {
    "stage 1": ("--method", "logit_adjust_posthoc", "--tau", "0"),
    "stage 1, half adjusted": ("--method", "logit_adjust_posthoc", "--tau", "0.5"),
    "stage 1, adjusted": ("--method", "logit_adjust_posthoc", "--tau", "1"),
    "LOS, path": ("--method", "los"),
    "LOS, path, s 0.8": ("--method", "los", "--label_smooth", "0.8"),
    "cross-entropy, path": ("--method", "ce"),
    "balanced softmax, path": ("--method", "balanced_softmax"),
    "LOS on logit adjustment, path": ("--method", "logit_adjust_los"),
    "LOS, path, average 0.99": ("--method", "los", "--finetune_ema", "0.99"),
    "LOS, path, average 0.999": ("--method", "los", "--finetune_ema", "0.999"),
    **{
        f"{words}, tau {tau:g}": ("--method", method, "--tau", f"{tau:g}")
        for words, method in (("tau-norm", "tau_norm"), ("tau-norm, centred", "tau_norm_centred"))
        for tau in (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)
    },
}
ANCHOR, PATH = "anchored", "without an anchor"
BOUND = "The lambda of each line is the best of its grid on the test images: an upper bound."


def make_table(request: Request) -> None:
    """Write `results/proximal_parts_<experiment>.*`."""
    for ratio in request.ratios():
        context, measured = measure_seeds(request, ratio, __doc__ or "", rows_of)
        table, found, failed = rows_found(measured)
        best = best_lines(table)
        with_anchor = [line for line in best if line.runs["group"].iloc[0] == ANCHOR]
        shown = {
            "With the anchor, at the lambda that is best on the test images": short(with_anchor),
            "Without it": short(best[len(with_anchor) :]),
        }
        notes = "\n".join([*failed, BOUND])
        claims = compared(best, found, REFERENCE)
        write_results(
            request, file_name("proximal_parts", context, request.seeds), table, shown, {"": draw(table)}, notes, claims
        )


def rows_of(context: TableContext) -> list[Row]:
    """Return the rows: each line over its lambdas, then those without an anchor. Views are left out where features of
    one kind are all that there is."""
    rows = []
    for words, (own, anchors) in ANCHORED.items():
        if "views" in own and not context.command.settings.views.isdecimal():
            continue
        for anchor in anchors:
            label = {"kind": words, "group": ANCHOR, "anchor": anchor}
            rows.append(Row(label, (*PROXIMAL, *own, "--anchor", f"{anchor:g}")))
    rows += [Row({"kind": words, "group": PATH, "anchor": np.nan}, own) for words, own in OTHERS.items()]
    return rows


def best_lines(table: pd.DataFrame) -> list[Line]:
    """Return a line for each kind of row: its runs at the lambda with the highest mean accuracy."""
    lines = []
    for kind, rows in table.groupby("kind", sort=False):
        means = rows.groupby("anchor", dropna=False)["last_plain_all"].mean()
        best = means.idxmax()
        runs = rows[rows["anchor"].isna() if pd.isna(best) else rows["anchor"] == best]
        lines.append(Line({"method": str(kind)}, runs))
    return lines


def short(lines: Sequence[Line]) -> pd.DataFrame:
    """Return a table that people read: lambda, accuracies, harmonic mean."""
    made = []
    for line in lines:
        row: dict[str, Any] = dict(line.label)
        anchor = line.runs["anchor"].iloc[0]
        row |= {} if pd.isna(anchor) else {"lambda": f"{anchor:g}"}
        names = ("all", "many", "few", "harmonic")
        made.append({**row, **{name: mean_cell(line.runs[f"last_plain_{name}"], 1) for name in names}})
    return pd.DataFrame(made)


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy over lambda, a line a kind, and few-shot accuracy beside it."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, measure in zip(panels, ("all", "few"), strict=True):
        for kind, rows in table[table["group"] == ANCHOR].groupby("kind", sort=False):
            path = rows.groupby("anchor")[f"last_plain_{measure}"].mean()
            axes.plot(path.index, path, marker="o", markersize=3, label=kind)
        axes.set(xscale="log", xlabel="lambda", ylabel=f"test accuracy, {measure} (%)")
    panels[0].legend(fontsize=7)
    return figure
