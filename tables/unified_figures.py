"""The figures of the unified table: accuracy by method, and what the logits of each class look like."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.plots import COLOURS, note_if_empty, whole_numbers
from evaluation.run_rows import GROUPS
from tables.rows import Measured

# Drawn in colour, the others in grey.
HIGHLIGHTED = {
    "ce": "black",
    "los": "tab:red",
    "balanced_softmax": "tab:blue",
    "tau_norm": "tab:green",
    "wb": "tab:purple",
}


def draw_bars(rows: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw each method's accuracy, the best on top: bars for all images, marks for the shots, a panel a budget."""
    budgets = [budget for budget in titles if budget in set(rows["budget"])]
    figure = Figure(figsize=(6.5 * len(budgets), 0.27 * rows["method"].nunique() + 1.8), layout="constrained")
    for axes, budget in zip(np.atleast_1d(figure.subplots(1, len(budgets))), budgets, strict=True):
        columns = {group: f"last_plain_{group}" for group in GROUPS}
        of_budget = rows[rows["budget"] == budget].groupby("method")[list(columns.values())].mean()
        means = of_budget.sort_values(columns["all"], na_position="first")
        bars = axes.barh(means.index, means[columns["all"]].fillna(0), color="lightgrey", label="all")
        labels = [f" {value:.1f}" if value > 0 else " failed" for value in means[columns["all"]]]
        for bar, label in zip(bars, labels, strict=True):
            axes.text(0, bar.get_y() + bar.get_height() / 2, label, va="center", fontsize=7)
        for group, column in columns.items():
            if group != "all" and means[column].notna().any():
                axes.plot(means[column], means.index, "o", color=COLOURS[group], markersize=4, label=group)
        axes.tick_params(labelsize=8)
        axes.margins(y=0.01)
        axes.set(xlabel="test accuracy (%), last epoch, plain", title=titles[budget])
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def over_mean(values: np.ndarray) -> np.ndarray:
    """Return values over their mean; NaN where there is none above 0, which no ratio makes sense of."""
    known = values[~np.isnan(values)]
    return values / known.mean() if len(known) and known.mean() > 0 else np.full_like(values, np.nan)


def draw_per_class(measured: Sequence[Measured], titles: Mapping[str, str]) -> Figure:
    """Draw LoMa, RSD and weight norm of every class, largest first, a line a method (the first seed of each).

    LoMa and weight norm are divided by their means over the classes: how large they are is a matter of scale (a cosine
    classifier has its own), how they lean towards large classes is not.
    """
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for row in measured:
        if row["metrics"] is not None:
            seen.setdefault((row["label"]["budget"], row["label"]["method"]), row["metrics"])
    budgets = [budget for budget in titles if any(own == budget for own, _ in seen)]
    figure = Figure(figsize=(15, 4.2 * max(len(budgets), 1)), layout="constrained")
    names = ("LoMa / its mean (column, test images)", "RSD of true samples", "weight norm / its mean")
    notes = ("no class has a LoMa", "no class has an RSD", "no classifier has row norms")
    for line, budget in zip(figure.subplots(len(budgets), 3, squeeze=False), budgets, strict=True):
        drawn: list[list[np.ndarray]] = [[], [], []]
        for method in sorted((method for own, method in seen if own == budget), key=list(HIGHLIGHTED).__contains__):
            metrics = seen[budget, method]
            order = np.argsort(-np.array(metrics["class_counts"]), kind="stable")
            column = metrics["logits"]["test"]["column"]
            curves = [
                np.array(values, dtype=float)[order]
                for values in (column["loma"], column["rsd_true"], metrics["weight_norm"])
            ]
            shown = (over_mean(curves[0]), curves[1], over_mean(curves[2]))
            known = method in HIGHLIGHTED
            for axes, values, panel in zip(line, shown, drawn, strict=True):
                panel.append(values)
                axes.plot(
                    values,
                    color=HIGHLIGHTED.get(method, "lightgrey"),
                    linewidth=1.5 if known else 0.7,
                    marker=".",
                    markersize=2 if len(values) < 200 else 0,
                    label=method if known else None,
                )
        for axes, name in zip(line, names, strict=True):
            axes.set(xlabel="class, largest first", ylabel=name, title=titles[budget], ylim=(0, 3))
        line[1].set_ylim(0, 2)
        for axes, panel, note in zip(line, drawn, notes, strict=True):
            whole_numbers(axes)
            note_if_empty(axes, panel, note)
        if line[0].get_legend_handles_labels()[0]:
            line[0].legend(fontsize=8, title="other methods in grey", title_fontsize=8)
    return figure
