"""What the rows of a table may claim: intervals of each, and paired differences of the lines to LOS."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from evaluation.intervals.comparison import Sample
from evaluation.intervals.findings import (
    Findings,
    Group,
    Runs,
    compare_groups,
    interval_columns,
    missing_note,
    sample_of,
)
from evaluation.metrics import Report
from evaluation.run_rows import best_column
from evaluation.shown_tables import Line
from utils.text import tell

Metrics = Mapping[str, Any]


def last_plain(metrics: Metrics) -> Report | None:
    """Return the report of the last epoch on plain images, which the tables quote."""
    return metrics["last"]["plain"]


def with_ends(rows: pd.DataFrame, metrics: Sequence[Metrics | None]) -> pd.DataFrame:
    """Return the rows of a table with the ends of the intervals of each, of the two ways of testing that are shown;
    `metrics` are those of each row, None where it failed."""
    ways = (("last", "plain"), best_column(rows))
    reports = [None if own is None else own[checkpoint][way] for checkpoint, way in ways for own in metrics]
    counts = [[] if own is None else own["class_counts"] for own in metrics] * len(ways)
    ends = interval_columns(reports, counts)
    found = [rows]
    for place, (checkpoint, way) in enumerate(ways):
        own_rows = ends.iloc[place * len(rows) : (place + 1) * len(rows)]
        found.append(own_rows.set_axis(rows.index).add_prefix(f"{checkpoint}_{way}_"))
    return pd.concat(found, axis=1)


def claims_of(
    lines: Sequence[Line], runs: Sequence[Runs], group_by: str, method_of: Sequence[str], los: str = "LOS"
) -> Findings | None:
    """Return what the lines of a table may claim, None where none of them records which test images are right.

    `runs` are (metrics, config) of each line's runs, none where it failed. Lines of one value of the label `group_by`
    are compared with one another and with LOS: the line of the group whose name in `method_of` is `los`, that of an
    earlier group where it has none, or else the group's first line. All lines are one group where `group_by` is "".
    `los` is what LOS is called in titles.
    """
    groups: dict[str, list[tuple[str, Sample]]] = {}
    missing = []
    for line, own, method in zip(lines, runs, method_of, strict=True):
        one = sample_of(line.label, own, last_plain) if own else None
        if one is not None:
            groups.setdefault(line.label.get(group_by, ""), []).append((method, one))
        elif not line.failed:
            missing.append(line.label)
    for note in missing_note(missing):
        tell(f"note: {note}")
    made: list[Group] = []
    for name, members in groups.items():
        known = members + [(method, one) for other in groups.values() for method, one in other]
        tests = {one.test for _, one in members}
        reference = next((one for method, one in known if method == "los" and one.test in tests), members[0][1])
        if len(tests) > 1:  # as with a test set of its own for each row: intervals alone
            made += [Group("", [one], None) for _, one in members]
        else:
            made.append(Group(f"{group_by} {name}".strip(), [one for _, one in members], reference))
    called = los if any(method == "los" for members in groups.values() for method, _ in members) else "the first line"
    return compare_groups(made, "last epoch, plain", called) if made else None
