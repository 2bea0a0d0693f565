"""Intervals and paired differences as tables that people read, as the long form of a CSV, and in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.intervals.bootstrap import DRAWS
from evaluation.intervals.comparison import (
    MEASURES,
    UNKNOWN,
    Resampled,
    Sample,
    differences,
    intervals,
    lost_classes,
    sample,
)
from evaluation.metrics import Report
from evaluation.run_rows import sha256_of_test
from utils.text import counted

if TYPE_CHECKING:
    import pandas as pd

ENDS = ("low", "high")
DRAWN_AT_ONCE = 64  # reports: the draws of more take memory, 0.5 MB each, and are made no faster
SHORT = {"all": "all", "harmonic": "harmonic mean"}
TITLES = {"all": "Accuracy", "harmonic": "Harmonic mean of the class accuracies"}
HOW = (
    f"Intervals of 95 %: bootstrap over the test images of each class, {DRAWS} draws, the same for all lines, and over "
    "seeds where there are several. With one seed they say nothing of training again. A harmonic mean with a class of "
    "which no image is right has none. Ahead and behind: p below 0.05 after Holm's correction."
)


@dataclass(frozen=True)
class Group:
    """Lines that are compared with one another, and the one that each is compared with, in the group or not; None where
    there are only intervals.

    All have the same test images. `name` says which lines they are, "" where there is one group.
    """

    name: str
    samples: Sequence[Sample]
    reference: Sample | None


@dataclass(frozen=True)
class Findings:
    """Tables by title, the long form with a row a number, notes of a line each, and how the reference is called."""

    tables: dict[str, pd.DataFrame]
    long: pd.DataFrame
    notes: list[str]
    reference: str


def compare_groups(groups: Sequence[Group], what: str, reference: str = "") -> Findings:
    """Return what the lines of the groups may claim.

    `what` says how the numbers are, in titles ("last epoch, plain"), and `reference` how the lines that they are
    compared with are called together; where it is empty, by the label of the only one.
    """
    import pandas as pd

    labels = list(groups[0].samples[0].label)
    own, to_reference, long, notes = [], [pd.DataFrame()], [], []
    for group in groups:
        known = {one.key for one in group.samples}
        also = [] if group.reference is None or group.reference.key in known else [group.reference]
        resampled = Resampled([*group.samples, *also])
        numbers = intervals(resampled, group.samples).assign(bold=False)
        own.append(numbers)
        if group.reference is None or len(group.samples) + len(also) == 1:
            continue
        found = differences(resampled, group.samples, group.reference)
        to_reference.append(found)
        best = max(group.samples, key=lambda one: resampled.values[one.key]["all"])
        to_best = found
        if best.key != group.reference.key and len(group.samples) > 1:
            to_best = differences(resampled, group.samples, best)
            long.append(to_best)
        if len(group.samples) > 1:
            near = not_apart(to_best, labels)
            numbers["bold"] = (numbers[labels] == list(best.key)).all(axis=1) & (not near)
            notes.append(best_note(group, best, near))
    long = [*(table.drop(columns="bold") for table in own), *to_reference, *long]
    called = reference or next((group.reference.name for group in groups if group.reference is not None), "")
    return Findings(
        {
            **interval_tables(pd.concat(own), labels, what),
            **difference_tables(pd.concat(to_reference), labels, f"to {called} in points, {what}"),
        },
        pd.concat(long, ignore_index=True),
        [*notes, HOW],
        called,
    )


def not_apart(to_best: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Return the lines whose accuracy cannot be told from the best one's."""
    if to_best.empty:
        return []
    rows = to_best[(to_best["measure"] == "all") & (to_best["verdict"] == UNKNOWN)]
    return [", ".join(row) for row in rows[list(labels)].to_numpy().tolist()]


def inside(group: Group, line: str) -> str:
    """Return the name of a line without what the whole group is called, or has in common, as `IF 100` has `100`."""
    return line.removeprefix(f"{group.name}, ").removeprefix(f"{group.name.rpartition(' ')[2]}, ")


def best_note(group: Group, best: Sample, near: Sequence[str]) -> str:
    """Return in a sentence which line of a group is the best, and whether that can be told."""
    where = f"{group.name}: " if group.name else ""
    name, others = inside(group, best.name), "; ".join(inside(group, line) for line in near)
    if not near:
        return f"{where}{name} is ahead of all others in accuracy."
    return f"{where}{name} has the highest accuracy, and cannot be told apart from {others}."


def interval_tables(rows: pd.DataFrame, labels: Sequence[str], what: str) -> dict[str, pd.DataFrame]:
    """Return a table a measure: each number and the ends of its interval, one that is ahead of all others in bold."""
    import pandas as pd

    tables = {}
    for measure in MEASURES:
        lines = []
        for _, row in rows[rows["measure"] == measure].iterrows():
            stars = "**" if row["bold"] and measure == "all" else ""
            cells = {SHORT[measure]: f"{stars}{row['value']:.1f}{stars}"}
            cells |= {end: number(row[end], ".1f") for end in ("low", "high")}
            lines.append({**{name: row[name] for name in labels}, **cells})
        tables[f"{TITLES[measure]} in percent with its 95 % interval, {what}"] = pd.DataFrame(lines)
    return tables


def number(value: float, form: str) -> str:
    """Return a number as text, "-" for what does not exist."""
    return "-" if math.isnan(value) else f"{value:{form}}"


def p_text(p: float) -> str:
    """Return a p-value as text: none is 0."""
    return "< 0.001" if p < 0.001 else number(p, ".3f")


def difference_tables(rows: pd.DataFrame, labels: Sequence[str], what: str) -> dict[str, pd.DataFrame]:
    """Return a table a measure: each difference, the ends of its interval, and what it comes to."""
    import pandas as pd

    tables = {}
    for measure in MEASURES if not rows.empty else ():
        lines = []
        for _, row in rows[rows["measure"] == measure].iterrows():
            ends = {"difference": "value", "low": "low", "high": "high"}
            cells = {title: number(row[name], "+.2f") for title, name in ends.items()}
            cells |= {"p, Holm": p_text(row["p_holm"])} if len(labels) == 1 else {}
            lines.append({**{name: row[name] for name in labels}, **cells, "verdict": row["verdict"]})
        tables[f"{TITLES[measure]}, difference {what}"] = pd.DataFrame(lines)
    return tables


Runs = Sequence[tuple[Mapping[str, Any], dict[str, Any]]]


def sample_of(label: Mapping[str, str], runs: Runs, report_of: Callable[[Any], Report | None]) -> Sample | None:
    """Return the sample of a line from (metrics, config) of its runs; `report_of` takes the report from the metrics.

    None where it cannot be had (`comparison.sample`).
    """
    reports = [report_of(metrics) for metrics, _ in runs]
    tests = [sha256_of_test(config) for _, config in runs]
    return sample(label, reports, runs[0][0]["class_counts"], tests) if runs else None


def missing_note(labels: Sequence[Mapping[str, str]]) -> list[str]:
    """Return what is said once of the lines that have no interval."""
    names = "; ".join(", ".join(label.values()) for label in labels)
    words = "no interval, being measured before it was recorded which test images are right"
    return [f"{names}: {words}."] if names else []


def interval_columns(reports: Sequence[Report | None], class_counts: Sequence[Sequence[int]]) -> pd.DataFrame:
    """Return, a row a report, the ends of its 95 % intervals, in columns `<measure>_low` and `<measure>_high`; empty
    where a report does not record its images. `class_counts` are the training images (K,) of each.

    Reports with as many test images of each class have the same draws, which are made for many of them at once.
    """
    import pandas as pd

    groups: dict[tuple[int, ...], list[Sample]] = {}
    for place, (report, counts) in enumerate(zip(reports, class_counts, strict=True)):
        one = sample({"row": str(place)}, [report], counts, [""])
        if one is not None:
            groups.setdefault(tuple(one.images.tolist()), []).append(one)
    rows: list[dict[str, Any]] = [{f"{m}_{end}": None for m in MEASURES for end in ENDS} for _ in reports]
    for members in groups.values():
        for start in range(0, len(members), DRAWN_AT_ONCE):
            some = members[start : start + DRAWN_AT_ONCE]
            for found in intervals(Resampled(some), some).to_dict("records"):
                rows[int(found["row"])].update({f"{found['measure']}_{end}": found[end] for end in ENDS})
    return pd.DataFrame(rows)


def headline_text(report: Report, class_counts: np.ndarray) -> str:
    """Return a report's accuracy and harmonic mean with their intervals, in a line."""
    one = sample({"": ""}, [report], class_counts.tolist(), [""])
    if one is None:
        return ""
    cells = []
    for _, row in intervals(Resampled([one]), [one]).iterrows():
        ends = f"[{row['low']:.2f}, {row['high']:.2f}]"
        if math.isnan(row["low"]):
            ends = f"(no interval: of {counted(lost_classes(one), 'class', 'classes')} no image is right)"
        cells.append(f"{SHORT[row['measure']]} {row['value']:.2f} {ends}")
    return "95 % intervals, by the bootstrap over the test images of each class:\n" + "\n".join(cells)
