"""What `tools.compare` says of runs, and the files that it writes."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.csv_files import csv_text
from evaluation.intervals.comparison import MEASURES, Sample
from evaluation.intervals.findings import Findings, Group, compare_groups, missing_note, sample_of
from evaluation.metrics import recorded_bounds
from evaluation.plots import COLOURS, save_figure
from evaluation.run_rows import GROUPS, SETTINGS, csv_row, read_run, run_name
from evaluation.shown_tables import compared_tables, repeats, tables_markdown, tables_text
from evaluation.text_tables import balance_notes, headline
from utils.errors import UserError
from utils.files import write_text
from utils.text import tell

SMOOTHING_WINDOW = 9  # classes whose accuracies the figure's curve averages
ENDS = {"": "value", "_low": "low", "_high": "high"}


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


def bounds_notes(runs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Return what is said of runs that group their classes by different bounds."""
    of_run = [recorded_bounds(metrics) for metrics, _ in runs]
    if len(set(of_run)) < 2:
        return []
    lines = {
        f"many > {many}, few < {few} in {', '.join(dict.fromkeys(names))}": None
        for many, few in dict.fromkeys(of_run)
        for names in [[run_name(*run) for run, own in zip(runs, of_run, strict=True) if own == (many, few)]]
    }
    return [f"classes are grouped in different ways, so compare many, medium and few with care: {'; '.join(lines)}"]


def place_of(reference: Path | None, runs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> int:
    """Return the number of the run that the others are compared with, the first if none is named; a UserError refuses
    one that is not among them."""
    if reference is None:
        return 0
    run = read_run(reference)
    if run not in runs:
        raise UserError(f"--reference {reference} is none of the runs that are compared; name it among them too")
    return list(runs).index(run)


def samples_of(
    rows: pd.DataFrame, runs: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> tuple[dict[int, Sample], list[dict[str, str]]]:
    """Return what the headlines of the lines get right, by the number of each of a line's runs, and the labels of the
    lines that do not say so."""
    found: dict[int, Sample] = {}
    missing = []
    names: list[str] = []
    for line in repeats(rows):
        name = line.label["run"]
        label = {"run": f"{name}, line {len(names) + 1}" if name in names else name}
        names.append(name)
        places = [int(place) for place in line.runs.index]
        one = sample_of(label, [runs[place] for place in places], headline)
        missing += [label] if one is None else []
        found |= {} if one is None else dict.fromkeys(places, one)
    return found, missing


def find_differences(samples: dict[int, Sample], reference: int, *, asked: bool) -> Findings | None:
    """Return intervals of all lines, and paired differences to the line of the run number `reference`.

    Raises UserError where they are `asked` for and cannot be made: other test images, or none recorded.
    """
    if reference not in samples:
        if asked:
            raise UserError(
                "--reference does not record which test images are right: it was measured by an earlier version; "
                "evaluate it again, or name another"
            )
        reference = next(iter(samples), -1)
    if not samples:
        return None
    tests: dict[str, list[Sample]] = {}
    for one in {one.key: one for one in samples.values()}.values():
        tests.setdefault(one.test, []).append(one)
    chosen = samples[reference]
    others = [one.name for test, of_test in tests.items() if test != chosen.test for one in of_test]
    if others and asked:
        raise UserError(
            f"no paired test: {'; '.join(others)} was measured on other test images than {chosen.name}; leave it out"
        )
    if others:
        say(f"no paired test of {'; '.join(others)}: measured on other test images than {chosen.name}")
    groups = [Group("", of_test, chosen if test == chosen.test else None) for test, of_test in tests.items()]
    return compare_groups(groups, "headline")


def claim_columns(samples: dict[int, Sample], findings: Findings, count: int) -> pd.DataFrame:
    """Return what is found of the line of each of the runs, `count` in all, for a CSV."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for place, one in samples.items():
        for _, found in findings.long[findings.long["run"] == one.name].iterrows():
            of = "headline" if pd.isna(found["reference"]) else "difference"
            own = {f"{of}_{found['measure']}{end}": found[name] for end, name in ENDS.items()}
            if of == "difference":
                if found["reference"] != findings.reference:
                    continue
                own |= {f"{of}_{found['measure']}_{name}": found[name] for name in ("p", "p_holm")}
                own["reference"] = found["reference"]
            rows[place] |= own
    return pd.DataFrame(rows, columns=None if any(rows) else [f"headline_{measure}" for measure in MEASURES])


def compare_runs(arguments: argparse.Namespace) -> None:
    """Put the runs of a parsed command line side by side."""
    runs = read_once(arguments.runs)
    rows = pd.DataFrame([csv_row(*run) for run in runs])
    samples, missing = samples_of(rows, runs)
    findings = find_differences(samples, place_of(arguments.reference, runs), asked=arguments.reference is not None)
    tables = compared_tables(rows) | ({} if findings is None else findings.tables)
    if (rows.groupby(SETTINGS, dropna=False)["data_sha256"].nunique() > 1).any():
        say("runs of one name are of different data: they are told apart by its sha256, and not averaged")
    for line in dict.fromkeys(
        note for metrics, _ in runs for note in balance_notes(headline(metrics).get("test_images"))
    ):
        say(line)
    for line in [*missing_note(missing), *bounds_notes(runs)]:
        say(line)
    tell(tables_text(tables))
    if findings is not None:
        tell("\n" + "\n".join(findings.notes))
        rows = rows.join(claim_columns(samples, findings, len(rows)))
    if arguments.csv:
        write_text(arguments.csv, csv_text(rows))
    if arguments.markdown:
        write_text(arguments.markdown, tables_markdown(tables))
    if arguments.figure:
        save_figure(arguments.figure, draw_comparison(runs))
