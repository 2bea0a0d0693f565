"""The pictures of a run: training curves, accuracy over class size, LoMa and weight norm per class."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from utils.errors import UserError
from utils.files import write_atomically
from utils.metrics import FEW_BELOW, MANY_ABOVE, SHOTS

COLOURS = {"all": "black", "many": "tab:blue", "medium": "tab:orange", "few": "tab:red"}


PLOTS = ("training_curves.png", "accuracy_per_class.png", "logits_per_class.png")


def draw_plots(folder: Path, metrics: dict[str, Any], log: list[dict[str, Any]]) -> None:
    """Write the three pictures of a run into `folder`."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror or error}") from error
    figures = (training_curves(pd.DataFrame(log)), accuracy_per_class(metrics), logits_per_class(metrics))
    for name, figure in zip(PLOTS, figures, strict=True):
        save_figure(folder / name, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    FigureCanvasAgg(figure)  # no display and no global pyplot state
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def training_curves(log: pd.DataFrame) -> Figure:
    """Draw loss and learning rate, and the accuracies on training and test images, over the epochs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(log["epoch"], log["loss"], color="black")
    left.set(xlabel="epoch", ylabel="training loss (nats)")
    rate = left.twinx()
    rate.plot(log["epoch"], log["lr"], color="tab:green", linestyle=":")
    rate.set_ylabel("learning rate", color="tab:green")
    right.plot(log["epoch"], log["train_accuracy"], color="grey", label="training images")
    for name in ("all", *SHOTS):
        values = pd.to_numeric(log[f"plain_{name}"]).dropna()
        if len(values):
            right.plot(
                log["epoch"][values.index], values, color=COLOURS[name], label=f"test, {name}", marker=".", markersize=3
            )
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 102))
    right.legend(fontsize=8)
    return figure


def accuracy_per_class(metrics: dict[str, Any]) -> Figure:
    """Draw each class's test accuracy (last epoch, plain) over its number of training images."""
    counts = np.array(metrics["class_counts"])
    accuracy = np.array(metrics["last"]["plain"]["per_class_accuracy"], dtype=float)
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(counts, accuracy, s=14, color="tab:blue")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    shade_groups(axes, counts.min() * 0.8, counts.max() * 1.25)
    for name, low, high in (
        ("few", 0, FEW_BELOW - 1),
        ("medium", FEW_BELOW, MANY_ABOVE),
        ("many", MANY_ABOVE + 1, np.inf),
    ):
        members = counts[(counts >= low) & (counts <= high)]
        mean = metrics["last"]["plain"][name]
        if mean is not None:
            axes.hlines(
                mean, members.min(), members.max(), color=COLOURS[name], linewidth=2, label=f"{name}: mean {mean:.1f}"
            )
    axes.set(xlabel="training images of the class", ylabel="test accuracy (%)", ylim=(-2, 102))
    axes.legend(loc="upper left", fontsize=8)
    return figure


def shade_groups(axes: Axes, low: float, high: float) -> None:
    """Mark the borders of the shot groups on a logarithmic axis of class sizes."""
    axes.set_xlim(low, high)
    for border in (FEW_BELOW - 0.5, MANY_ABOVE + 0.5):
        if low < border < high:
            axes.axvline(border, color="lightgrey", linewidth=1, zorder=0)


def logits_per_class(metrics: dict[str, Any]) -> Figure:
    """Draw LoMa (column reading, training and test images) and the classifier's weight norm, classes sorted by size."""
    order = np.argsort(-np.array(metrics["class_counts"]), kind="stable")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for split, colour in (("train", "grey"), ("test", "tab:blue")):
        loma = np.array(metrics["logits"][split]["column"]["loma"], dtype=float)
        left.plot(loma[order], color=colour, marker=".", markersize=3, linewidth=1, label=f"{split} images")
    left.axhline(0, color="lightgrey", linewidth=1, zorder=0)
    left.set(xlabel="class, largest first", ylabel="Logits Magnitude (LoMa)")
    left.legend(fontsize=8)
    norms = np.array(metrics["weight_norm"], dtype=float)
    right.plot(norms[order], color="tab:blue", marker=".", markersize=3, linewidth=1)
    right.set(xlabel="class, largest first", ylabel="weight norm of the classifier")
    largest = np.nanmax(norms, initial=0)
    right.set_ylim(bottom=0, top=1.1 * largest if largest > 0 else None)
    return figure
