"""Finished runs side by side: a table on the screen, one CSV row a run, a Markdown table, a figure.

    python -m tools.compare RUN_FOLDER [RUN_FOLDER ...] [--csv FILE] [--markdown FILE] [--figure FILE]

Every number comes from the runs' own metrics.json and config.json. RESULTS.md is made of such tables.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.csv_files import csv_text
from evaluation.plots import COLOURS, save_figure
from evaluation.run_rows import GROUPS, SETTINGS, csv_row, read_run, run_name
from evaluation.shown_tables import compared_tables, tables_markdown, tables_text
from evaluation.text_tables import balance_notes, headline
from utils.arguments import CommandParser
from utils.command import run_command
from utils.files import write_text
from utils.text import tell

SMOOTHING_WINDOW = 9  # classes whose accuracies the figure's curve averages


def draw_comparison(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Figure:
    """Draw the headline of each run: bars by shot, and accuracy over the class's rank, smoothed over its neighbours."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    width = 0.8 / len(GROUPS)
    for i, group in enumerate(GROUPS):
        values = [np.nan if headline(metrics)[group] is None else headline(metrics)[group] for metrics, _ in runs]
        bars = left.bar(np.arange(len(runs)) + (i - 1.5) * width, values, width, color=COLOURS[group], label=group)
        left.bar_label(bars, fmt="%.0f", fontsize=7)
    left.set_xticks(range(len(runs)), [run_name(*run) for run in runs], fontsize=8)
    left.set(ylabel="test accuracy (%)", ylim=(0, 1.15 * left.get_ylim()[1]))
    left.legend(fontsize=8, ncols=4, loc="upper center")
    window = min(SMOOTHING_WINDOW, max(1, len(runs[0][0]["class_counts"]) // 10))
    for metrics, config in runs:
        order = np.argsort(-np.array(metrics["class_counts"]), kind="stable")
        accuracy = np.array(headline(metrics)["per_class_accuracy"], dtype=float)[order]
        smooth = pd.Series(accuracy).rolling(window, center=True, min_periods=1).mean()
        right.plot(np.arange(1, len(order) + 1), smooth, label=run_name(metrics, config), linewidth=1.5)
    smoothed = f", mean of {window} neighbours" if window > 1 else ""
    right.set(xlabel="class, largest first", ylabel=f"test accuracy (%){smoothed}", ylim=(0, 102))
    right.legend(fontsize=8)
    return figure


def say(line: str) -> None:
    """Print a note beside the table."""
    tell(f"note: {line}", file=sys.stderr)


def read_once(folders: Sequence[Path]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (metrics, config) of each run, once where it is named more than once or is a copy of another."""
    runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    seen: list[Path] = []
    for folder in folders:
        run = read_run(folder)
        if run in runs:
            first = seen[runs.index(run)]
            what = "is named twice" if os.path.samefile(first, folder) else f"is a copy of {first}"
            say(f"{folder} {what}: it counts once")
            continue
        runs.append(run)
        seen.append(folder)
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    """Put the runs that a command line names side by side."""
    usage = "python -m tools.compare RUN_FOLDER ... [--csv F] [--markdown F] [--figure F]"
    parser = CommandParser("python -m tools.compare", __doc__, f"usage: {usage}", usage=usage)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folders of finished runs")
    for flag, what in (("csv", "a row a run"), ("markdown", "the table"), ("figure", "a picture")):
        parser.add_argument(f"--{flag}", type=Path, metavar="FILE", help=f"write {what} to this file")
    arguments = parser.parse_args(argv)
    runs = read_once(arguments.runs)
    rows = pd.DataFrame([csv_row(*run) for run in runs])
    tables = compared_tables(rows)
    if (rows.groupby(SETTINGS, dropna=False)["data_sha256"].nunique() > 1).any():
        say("runs of one name are of different data: they are told apart by its sha256, and not averaged")
    for line in dict.fromkeys(
        note for metrics, _ in runs for note in balance_notes(headline(metrics).get("test_images"))
    ):
        say(line)
    tell(tables_text(tables))
    if arguments.csv:
        write_text(arguments.csv, csv_text(rows))
    if arguments.markdown:
        write_text(arguments.markdown, tables_markdown(tables))
    if arguments.figure:
        save_figure(arguments.figure, draw_comparison(runs))


if __name__ == "__main__":
    run_command(main)
