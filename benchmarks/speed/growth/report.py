"""The tables and the figure of `benchmarks.speed.scaling`."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datasets.names import SAMPLERS

MIN_MEMORY_MB = 32.0  # MB: below it the allocator's own habits hide how memory grows


def spread(values: pd.Series, digits: str) -> str:
    """Return one number, or the smallest and the largest of several; empty where none is known."""
    known = values.dropna()
    texts = [format(value, digits) for value in (known.min(), known.max())] if len(known) else ["-"]
    return " to ".join(dict.fromkeys(texts))


def short_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line a group, at its largest size."""
    lines = []
    for (sweep, group), part in rows.groupby(["sweep", "group"], sort=False):
        largest = part[part["size"] == part["size"].max()]
        name = group if len(largest) == 1 else f"{group} ({len(largest)})"
        steepest = str(largest["item"].iloc[largest["time_exponent"].fillna(0).argmax()]).split()[-1]
        note = f" ({steepest})" if len(largest) > 1 else ""
        lines.append({"grows with": sweep, "work": name, **cells(largest, note)})
    return pd.DataFrame(lines)


def cells(largest: pd.DataFrame, note: str = "") -> dict[str, str]:
    """Return what the tables say of items at their largest size; `note` names the steepest."""
    return {
        "up to": f"{largest['size'].iloc[0]:,}",
        "ms there": spread(largest["milliseconds"], ".3g"),
        "exponent of the work": spread(largest["expected_exponent"], "g"),
        "exponent measured": spread(largest["time_exponent"], ".2f") + note,
        "memory added there, MB": spread(largest["extra_mb"].where(largest["extra_mb"] >= MIN_MEMORY_MB), ".0f"),
        "its exponent": spread(largest["memory_exponent"], ".2f"),
    }


def long_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line an item, at its largest size."""
    parts = rows.groupby("item", sort=False)
    largest = ((item, part[part["size"] == part["size"].max()]) for item, part in parts)
    return pd.DataFrame([{"item": item, **cells(part)} for item, part in largest])


def describe(rows: pd.DataFrame, fixed: str) -> str:
    """Return the lines above the table: the machine, what was `fixed` and how it was timed, the memory of stage 2."""
    stage2 = rows[rows["sweep"] == "images"]
    peak = stage2[stage2["size"] == stage2["size"].max()]["peak_mb"].max()
    return (
        f"{rows['device'].iloc[0]}, torch {rows['torch'].iloc[0]}; {rows['execution'].iloc[0]}. {fixed} The peak of "
        f"the process at the most rows is {peak:.0f} MB. Exponents: the larger half of the sizes. Memory below "
        f"{MIN_MEMORY_MB:g} MB is left out. Several items in a line: smallest to largest (the steepest in time). "
        f"Made by `{rows['command'].iloc[0]}`."
    )


GROUP_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")


def draw(rows: pd.DataFrame) -> Figure:
    """Draw one panel a sweep."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplot_mosaic([["batch", "classes"], ["images", "classes"]], width_ratios=[1, 1.5])
    of_sweep = {sweep: part for sweep, part in rows.groupby("sweep", sort=False)}
    draw_batches(panels["batch"], of_sweep["batch"])
    draw_classes(panels["classes"], of_sweep["classes"])
    draw_images(panels["images"], of_sweep["images"])
    for axes in panels.values():
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{rows['device'].iloc[0]}, torch {rows['torch'].iloc[0]}. In the legends: fitted exponents, 1 is linear",
        fontsize=10,
    )
    return figure


def label_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    """Put the x axis on a log scale with a tick at each measured size."""
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(sizes)), [f"{size:,}" for size in sorted(set(sizes))])
    axes.minorticks_off()


def draw_batches(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw images a second of stage 1 over the batch size."""
    axes.plot(rows["size"], rows["images_per_second"], marker="o", color="tab:blue")
    label_sizes(axes, rows["size"].tolist())
    axes.set(xlabel="batch size", ylabel="training images a second", title=rows["group"].iloc[0].replace(", step", ""))
    axes.set_ylim(0, 1.15 * rows["images_per_second"].max())
    step = f"time a step: exponent {rows['time_exponent'].iloc[0]:.2f}"
    axes.text(0.97, 0.04, step, transform=axes.transAxes, ha="right", fontsize=9)


def draw_classes(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw milliseconds over the number of classes, a colour a group, with a line of slope 1 and one of slope 2."""
    for i, (group, part) in enumerate(rows.groupby("group", sort=False)):
        colour, style = GROUP_COLOURS[i % len(GROUP_COLOURS)], "-" if i < len(GROUP_COLOURS) else "--"
        found = spread(part.drop_duplicates("item")["time_exponent"], ".2f")
        for j, (_, item) in enumerate(part.groupby("item", sort=False)):
            label = f"{group}: {found}" if j == 0 else None
            axes.plot(item["size"], item["milliseconds"], style, marker=".", linewidth=1, label=label, color=colour)
    smallest = rows["size"].min()
    start = 3 * rows["milliseconds"][rows["size"] == smallest].max()  # above all lines: there is room
    for slope in (1, 2):
        end = (6.0 * smallest, start * 6.0**slope)
        axes.plot([smallest, end[0]], [start, end[1]], color="grey", linestyle=":", linewidth=1)
        axes.annotate(f" slope {slope}", end, color="grey", fontsize=8, va="center")
    axes.set_yscale("log")
    label_sizes(axes, rows["size"].tolist())
    axes.set(xlabel="classes", ylabel="milliseconds a step or call", title="Work over the number of classes")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)


def draw_images(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw microseconds an image of an epoch of stage 2 and of drawing its order, and the peak of memory."""
    samplers = {name: colour for name, colour in zip(SAMPLERS, GROUP_COLOURS, strict=False)}
    for item, part in rows.groupby("item", sort=False):
        what, sampler = str(item).split(", ")
        label = f"{item}: {part['time_exponent'].iloc[0]:.2f}"
        style = "-" if what == "epoch" else ":"
        axes.plot(
            part["size"],
            part["microseconds_per_image"],
            marker="o",
            markersize=4,
            linestyle=style,
            color=samplers[sampler],
            label=label,
        )
    axes.set_yscale("log")
    label_sizes(axes, rows["size"].tolist())
    high = rows["microseconds_per_image"].max()
    axes.set_ylim(top=high * 4)
    for size, peak in rows.groupby("size")["peak_mb"].max().items():
        axes.annotate(f"{peak:,.0f} MB", (size, high * 1.8), fontsize=8, ha="center")
    axes.set(
        xlabel="cached feature rows",
        ylabel="microseconds an image",
        title="Stage 2, an epoch of LOS (above: peak memory)",
    )
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    axes.margins(x=0.12)
