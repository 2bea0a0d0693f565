"""The figures of the unified table: accuracy by method, and what the logits of each class look like."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.plots import COLOURS, note_if_empty, whole_numbers
from evaluation.run_rows import GROUPS
from tables.rows import Measured

Box = tuple[float, float, float, float]

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


PLACES = [(6, 4), (6, -10), (-6, 4), (-6, -10), (0, 10), (0, -16), (14, 14), (-14, 14), (14, -22), (-14, -22)]


def draw_evenness(numbers: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw the harmonic mean of the class accuracies over the accuracy, with 95 % intervals, a point a method and a
    panel a budget.

    `numbers` are those of `<table>_intervals.csv`. A harmonic mean that has no interval, since the method has a class
    of which no image is right, is a hollow point. A method whose accuracy is far below all others' would take the room
    of the rest: its accuracy stands in words.
    """
    own = numbers[numbers["reference"].isna()]
    budgets = [budget for budget in titles if budget in set(own["budget"])]
    lowest = far_below(own.loc[own["measure"] == "all", "value"].to_numpy())
    height = 5.2 + 0.06 * max(own["method"].nunique() - 12, 0)
    figure = Figure(figsize=(6.4 * len(budgets), height), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(budgets), sharex=True, sharey=True))
    for axes, budget in zip(panels, budgets, strict=True):
        rows = own[own["budget"] == budget].set_index(["measure", "method"])
        points = rows.loc["all"].add_suffix("_x").join(rows.loc["harmonic"].add_suffix("_y"))
        left = points[points["value_x"] < lowest]["value_x"]
        if len(left):
            words = ", ".join(f"{method} {value:.1f}" for method, value in left.items())
            axes.text(0.01, 0.01, f"further left: {words}", transform=axes.transAxes, fontsize=7, color="dimgrey")
        points = points[points["value_x"] >= lowest]
        for method, row in points.iterrows():
            colour, known = HIGHLIGHTED.get(str(method), "grey"), pd.notna(row["low_y"])
            y = [[row["value_y"] - row["low_y"]], [row["high_y"] - row["value_y"]]] if known else None
            axes.errorbar(
                [row["value_x"]],
                [row["value_y"]],
                xerr=[[row["value_x"] - row["low_x"]], [row["high_x"] - row["value_x"]]],
                yerr=y,
                fmt="o",
                color=colour,
                markersize=5,
                markerfacecolor=colour if known else "white",
                elinewidth=0.8,
                alpha=1.0 if str(method) in HIGHLIGHTED else 0.7,
            )
        axes.set(xlabel="test accuracy (%), last epoch, plain", title=titles[budget])
        axes.margins(0.08)
    panels[0].set_ylabel("harmonic mean of the class accuracies (%)")
    figure.draw_without_rendering()  # the scale is known now, and with it which names would lie on one another
    for axes, budget in zip(panels, budgets, strict=True):
        rows = own[own["budget"] == budget].pivot(index="method", columns="measure", values="value")
        rows = rows[rows["all"] >= lowest]
        name_points(axes, rows["all"].to_numpy(), rows["harmonic"].to_numpy(), [str(name) for name in rows.index])
    return figure


def far_below(values: np.ndarray) -> float:
    """Return below which of the accuracies (N,), in percent, one is far out: three times the middle half's range below
    it (Tukey, 1977), and ten points at least."""
    low, high = np.nanpercentile(values, [25, 75])
    return float(low - max(3 * (high - low), 10))


def name_points(axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Write the names of points (N,) beside them: each at the one of `PLACES` where it covers least of the points and
    of the names before it."""
    scale = 72 / axes.figure.dpi
    spots = axes.transData.transform(np.column_stack([x, y])) * scale  # in points, as font sizes are
    taken = [(px - 3, py - 3, px + 3, py + 3) for px, py in spots]
    for (px, py), name in sorted(zip(spots.tolist(), names, strict=True)):
        width = 4.3 * len(name)  # of signs of 7 points
        boxes = []
        for dx, dy in PLACES:
            left = px + dx - (width if dx < 0 else width / 2 if dx == 0 else 0)
            boxes.append((left, py + dy, left + width, py + dy + 9))
        costs = [sum(overlap(box, other) for other in taken) for box in boxes]
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        point = axes.transData.inverted().transform((px / scale, py / scale))
        place = PLACES[best]
        side = "right" if place[0] < 0 else "center" if place[0] == 0 else "left"
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "grey"} if best >= 4 else None
        axes.annotate(
            name,
            (float(point[0]), float(point[1])),
            place,
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=7,
            color=HIGHLIGHTED.get(name, "dimgrey"),
            arrowprops=line,
        )


def overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes (left, bottom, right, top) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


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
