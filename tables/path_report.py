"""What people read of a path: its tables, the intervals of its points, its figure."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.intervals.comparison import Resampled, Sample, intervals
from evaluation.intervals.correct import unpack_correct
from evaluation.intervals.findings import Findings, Group, compare_groups
from evaluation.plots import COLOURS
from evaluation.run_rows import GROUPS, mean_cell
from evaluation.shown_tables import Tables

SHOWN_EPOCHS = (5, 20)  # and the last one


def epochs_of(table: pd.DataFrame) -> pd.Series:
    """Return after how many epochs each row of a path is measured, NaN for an end point."""
    return table["steps"] / table["steps_per_epoch"]


def places(table: pd.DataFrame) -> pd.Series:
    """Return in words where on its method's path each row is."""
    return pd.Series(
        [
            f"L-BFGS, {row.end}" if pd.isna(row.steps) else f"lr {row.learning_rate:g}, {row.steps:.0f} steps"
            for row in table.itertuples()
        ],
        index=table.index,
    )


def shown_rows(table: pd.DataFrame) -> pd.Series:
    """Return which rows people read: the start once, a few step counts of every path, and its end points."""
    epochs, rate = epochs_of(table), table["learning_rate"]
    start = (epochs == 0) & (rate == rate.min())
    return start | epochs.isin([*SHOWN_EPOCHS, epochs.max()]) | epochs.isna()


def short_tables(table: pd.DataFrame) -> Tables:
    """Return the tables that people read."""
    accuracy, fit = [], []
    for (place, own), words in zip(table[shown_rows(table)].iterrows(), places(table)[shown_rows(table)], strict=True):
        label = {"method": own["method"], "at": words}
        accuracy.append({**label, **{group: mean_cell(table.loc[[place], f"plain_{group}"], 1) for group in GROUPS}})
        fit.append(
            {
                **label,
                "objective": f"{own['objective']:.5f}",
                "training accuracy": f"{own['training_accuracy']:.1f}",
                "LoMa, training": f"{own['train_loma']:.2f}",
                "LoMa, test": f"{own['test_loma']:.2f}",
            }
        )
    return {
        "The path: accuracy in percent, plain": pd.DataFrame(accuracy),
        "The path: fit and Logits Magnitude": pd.DataFrame(fit),
    }


def samples_of(
    table: pd.DataFrame, correct: Sequence[str], images: np.ndarray, class_counts: np.ndarray
) -> list[Sample]:
    """Return the sample of each row of a path: which test images are right (`pack_correct`), for the test images (K,)
    and training images (K,) of each class."""
    return [
        Sample(
            {"method": method, "at": words}, unpack_correct(text, images.tolist())[None], images, class_counts, "one"
        )
        for method, words, text in zip(table["method"], places(table), correct, strict=True)
    ]


def interval_ends(samples: Sequence[Sample]) -> pd.DataFrame:
    """Return the ends of the 95 % intervals, a row a sample: `plain_all_low` and the like."""
    found = intervals(Resampled(samples), samples)
    ends: dict[str, list[float]] = {}
    for measure, rows in found.groupby("measure", sort=False):
        ends |= {f"plain_{measure}_{end}": rows[end].tolist() for end in ("low", "high")}
    return pd.DataFrame(ends)


def claims_of_path(table: pd.DataFrame, samples: Sequence[Sample]) -> Findings:
    """Return what the rows that people read may claim: intervals, and differences to the first, which is the start."""
    chosen = [one for one, is_shown in zip(samples, shown_rows(table), strict=True) if is_shown]
    return compare_groups([Group("", chosen, chosen[0])], "plain", "the classifier of stage 1")


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy by shot, LoMa and the objective over steps x learning rate, a column a method; the end point at the
    right border."""
    methods = list(dict.fromkeys(table["method"]))
    figure = Figure(figsize=(4.6 * len(methods), 10.5), layout="constrained")
    upper, lower, bottom = figure.subplots(3, len(methods), squeeze=False)
    rates = sorted(table["learning_rate"].dropna().unique())
    styles = dict(zip(rates, ("-", "--", ":"), strict=False))
    for axes, below, last, method in zip(upper, lower, bottom, methods, strict=True):
        own = table[table["method"] == method]
        end = own[own["steps"].isna()].iloc[0]  # on the features; the row after it is on class means
        for rate, style in styles.items():
            walked = own[(own["learning_rate"] == rate) & (own["steps"] > 0)]
            distance = walked["steps"] * rate
            for group in GROUPS:
                label = group if rate == rates[0] else None
                axes.plot(distance, walked[f"plain_{group}"], style, color=COLOURS[group], label=label)
            below.plot(distance, walked["train_loma"], style, color="grey", label=f"learning rate {rate:g}")
            below.plot(distance, walked["test_loma"], style, color="tab:blue")
            last.plot(distance, walked["objective"], style, color="black")
        right = 2 * own["steps"].max() * rates[-1]
        for group in GROUPS:
            axes.plot([right], [end[f"plain_{group}"]], "*", color=COLOURS[group], markersize=9)
        below.plot([right], [end["train_loma"]], "*", color="grey", markersize=9)
        below.plot([right], [end["test_loma"]], "*", color="tab:blue", markersize=9)
        last.plot([right], [end["objective"]], "*", color="black", markersize=9)
        axes.set(xscale="log", title=method, ylim=(0, 102), ylabel="test accuracy (%), plain")
        below.set(xscale="log", ylabel="LoMa: training (grey), test (blue)")
        last.set(xscale="log", xlabel="steps x learning rate (star: L-BFGS)", ylabel="objective (nats)")
    upper[0].legend(fontsize=8)
    lower[0].legend(fontsize=8)
    return figure
