"""The pictures of a run: training curves, accuracy over class size, LoMa and weight norm per class."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.long_tail import ShotBounds
from evaluation.metrics import SHOTS, recorded_bounds
from evaluation.places import format_of
from utils.errors import UserError
from utils.files import write_atomically
from utils.text import counted, tell

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"all": "black", "many": "tab:blue", "medium": "tab:orange", "few": "tab:red"}
MOST_JOINED = 200  # classes whose points a line joins; of more, the points are faint and the line is a running median
NO_GLYPH = r"Glyph \d+ .*missing from"  # how matplotlib says that a font lacks a sign
PLOTS = ("training_curves.png", "accuracy_per_class.png", "logits_per_class.png")


def draw_plots(folder: Path, metrics: dict[str, Any], log: list[dict[str, Any]]) -> None:
    """Write the three pictures of a run into `folder`."""
    import pandas as pd

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror or error}") from error
    figures = (training_curves(pd.DataFrame(log)), accuracy_per_class(metrics), logits_per_class(metrics))
    for name, figure in zip(PLOTS, figures, strict=True):
        save_figure(folder / name, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure atomically, as PNG, PDF or SVG by the end of its name, and say where no font here has the signs of
    a text. Raises UserError for another end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written = format_of(path)
    FigureCanvasAgg(figure)  # no display and no global pyplot state
    with warnings.catch_warnings(record=True) as found:
        warnings.filterwarnings("always", message=NO_GLYPH)
        write_atomically(path, lambda file: figure.savefig(file, format=written, dpi=110))
    missing = {str(one.message) for one in found if re.match(NO_GLYPH, str(one.message))}
    for one in found:
        if str(one.message) not in missing:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if missing:
        tell(
            f"note: {path}: no font here has {counted(len(missing), 'sign')} of its texts, drawn as boxes; matplotlib "
            "draws with DejaVu Sans, its setting font.family names others",
            file=sys.stderr,
        )


def training_curves(log: pd.DataFrame) -> Figure:
    """Draw loss and learning rate, and the accuracies on training and test images, over the epochs."""
    import pandas as pd
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(log["epoch"], log["loss"], color="black", marker=".", markersize=3)
    left.set(xlabel="epoch", ylabel="training loss (nats)")
    rate = left.twinx()
    rate.plot(log["epoch"], log["lr"], color="tab:green", linestyle=":", marker=".", markersize=3)
    rate.set_ylabel("learning rate", color="tab:green")
    right.plot(log["epoch"], log["train_accuracy"], color="grey", label="training images", marker=".", markersize=3)
    for name in ("all", *SHOTS):
        values = pd.to_numeric(log[f"plain_{name}"]).dropna()
        if len(values):
            right.plot(
                log["epoch"][values.index], values, color=COLOURS[name], label=f"test, {name}", marker=".", markersize=3
            )
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 102))
    right.legend(fontsize=8)
    note_if_empty(left, [log["loss"]], "no epoch was trained: the classifier is computed")
    note_if_empty(rate, [log["lr"]], "")
    for axes in (left, right):
        whole_numbers(axes)
    return figure


def accuracy_per_class(metrics: dict[str, Any]) -> Figure:
    """Draw each class's test accuracy (last epoch, plain) over its number of training images.

    `shot_bounds` of the metrics are the field's where they are not there."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    bounds = recorded_bounds(metrics)
    counts = np.array(metrics["class_counts"])
    accuracy = np.array(metrics["last"]["plain"]["per_class_accuracy"], dtype=float)
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    many = len(counts) > MOST_JOINED
    axes.scatter(counts, accuracy, s=5 if many else 14, alpha=0.2 if many else 1, color="tab:blue", linewidths=0)
    axes.set_xscale("log")
    # Sizes within one decade have no power of ten among them: the ticks between are named then, and only then.
    plain = FuncFormatter(lambda size, _: f"{size:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(plain if counts.max() < 10 * counts.min() else NullFormatter())
    shade_groups(axes, counts.min() * 0.8, counts.max() * 1.25, bounds)
    for name, low, high in (
        ("few", 0, bounds.few_below - 1),
        ("medium", bounds.few_below, bounds.many_above),
        ("many", bounds.many_above + 1, np.inf),
    ):
        members = counts[(counts >= low) & (counts <= high)]
        mean = metrics["last"]["plain"][name]
        if mean is not None:
            axes.hlines(
                mean, members.min(), members.max(), color=COLOURS[name], linewidth=2, label=f"{name}: mean {mean:.1f}"
            )
    axes.set(xlabel="training images of the class", ylabel="test accuracy (%)", ylim=(-2, 102))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)  # above: points may lie anywhere
    return figure


def shade_groups(axes: Axes, low: float, high: float, bounds: ShotBounds) -> None:
    """Mark the borders of the shot groups on a logarithmic axis of class sizes."""
    axes.set_xlim(low, high)
    for border in (bounds.few_below - 0.5, bounds.many_above + 0.5):
        if low < border < high:
            axes.axvline(border, color="lightgrey", linewidth=1, zorder=0)


def logits_per_class(metrics: dict[str, Any]) -> Figure:
    """Draw LoMa (column reading, training and test images) and the classifier's weight norm, classes sorted by size."""
    from matplotlib.figure import Figure

    order = np.argsort(-np.array(metrics["class_counts"]), kind="stable")
    loma: dict[str, np.ndarray] = {}
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for split, colour in (("train", "grey"), ("test", "tab:blue")):
        loma[split] = np.array(metrics["logits"][split]["column"]["loma"], dtype=float)
        over_classes(left, loma[split][order], colour, f"{split} images")
    left.axhline(0, color="lightgrey", linewidth=1, zorder=0)
    left.set(xlabel="class, largest first", ylabel="Logits Magnitude (LoMa)")
    left.legend(fontsize=8)
    norms = np.array(metrics["weight_norm"], dtype=float)
    over_classes(right, norms[order], "tab:blue")
    right.set(xlabel="class, largest first", ylabel="weight norm of the classifier")
    largest = np.nanmax(norms, initial=0)
    right.set_ylim(bottom=0, top=1.1 * largest if largest > 0 else None)
    note_if_empty(left, loma.values(), "no class has a LoMa")
    note_if_empty(right, [norms], "this classifier has no row norms")
    for axes in (left, right):
        whole_numbers(axes)
        axes.set_xlim(-0.05 * len(order) - 0.2, 1.05 * len(order) - 0.8)
    return figure


def over_classes(axes: Axes, values: np.ndarray, colour: str, label: str | None = None) -> None:
    """Draw a value (K,) a class, the classes in the order given: joined points; of more than `MOST_JOINED` classes
    faint points, and the median of a fiftieth of the classes around each place."""
    import pandas as pd

    if len(values) <= MOST_JOINED:
        axes.plot(values, color=colour, marker=".", markersize=3, linewidth=1, label=label)
        return
    axes.plot(values, ".", color=colour, markersize=2, markeredgewidth=0, alpha=0.35)
    middle = pd.Series(values).rolling(max(len(values) // 50, 5), center=True, min_periods=1).median()
    axes.plot(middle, color=colour, linewidth=1.5, label=label)


def whole_numbers(axes: Axes) -> None:
    """Let the ticks below a picture be whole numbers: there is no class 0.5."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))


def note_if_empty(axes: Axes, drawn: Iterable[np.ndarray | pd.Series], note: str) -> None:
    """Write `note` into a panel in which none of the numbers that were drawn exists, and take its scale away."""
    if not any(np.isfinite(np.asarray(values, dtype=float)).any() for values in drawn):
        axes.set_yticks([])
        axes.text(
            0.5, 0.5, note, transform=axes.transAxes, ha="center", va="center", color="grey", backgroundcolor="white"
        )
