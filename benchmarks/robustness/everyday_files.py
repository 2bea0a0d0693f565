"""Files as everybody has them: what an earlier revision did with each, and what the commands here do.

    python -m benchmarks.robustness.everyday_files --before 150c1ff
    python -m benchmarks.robustness.everyday_files --only "tables as lists" --before ""

Small inputs of every kind are written, and commands are run on them one after the other: those of the revision, whose
files are exported from git, and those that are here. The revision gets the same command lines, without the flags that
it does not have. What came out is compared with what is right: class sizes, names, accuracies, predictions. A case is
right, refused (with or without a way out), wrong, or a traceback; for some a refusal with a way out is what is right.
Where git does not have the revision that half stays empty. Writes `results/everyday_files.csv` and `.md`; exit status 1
where a case does not come out as it should here.
"""

import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.command import ROOT, make_own_parser
from benchmarks.record import provenance, write_record
from benchmarks.robustness.everyday_inputs import checkpoints, features, folders, lists, losses, photos
from benchmarks.robustness.everyday_inputs.case import NOT_RUN, Case, judge, run_steps
from benchmarks.robustness.everyday_inputs.checkout import Checkout, export
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder
from utils.text import tell

# In the order in which they are shown.
KINDS = (
    "photos stored turned",
    "images that vanish",
    "names of splits",
    "labels of losses",
    "no finite temperature",
    "12-bit images",
    "tables as lists",
    "paths in lists",
    "classes without images",
    "long-tailed test set",
    "large and bad photos",
    "forms of features",
    "checkpoints of scripts",
    "normalisation",
    "mirroring",
    "plain files",  # the control: right then and now
)
ALL = (*photos.CASES, *folders.CASES, *losses.CASES, *features.CASES, *lists.CASES, *checkpoints.CASES)
CASES = tuple(sorted(ALL, key=lambda case: KINDS.index(case.kind)))  # stable: of a kind in their files' order
LONGEST_WORDS = 300  # characters of what was said that are kept


def revision_checkout(revision: str, folder: Path) -> tuple[Checkout | None, str]:
    """Return the commands of a revision, exported below `folder`, or None and the reason why there are none."""
    if not revision:
        return None, "no revision was named"
    try:
        make_folder(folder / "revision")
        export(revision, folder / "revision")
    except UserError as error:
        return None, str(error)
    return Checkout(folder / "revision", folder / "streams_before"), ""


def measure(case: Case, checkout: Checkout, folder: Path, when: str) -> dict[str, Any]:
    """Run a case by the commands of a checkout; return the columns of its half."""
    data = folder / re.sub(r"\W+", "_", f"{case.kind} {case.name}")
    make_folder(data)
    if case.make is not None and not any(data.iterdir()):
        case.make(data)
    ended = run_steps(case, checkout, data, data.parent / f"{data.name}_{when}")
    outcome, words = judge(case, ended)
    said = words.replace(str(folder), "").replace(str(checkout.root), "")[:LONGEST_WORDS]
    right = "yes" if case.is_right(outcome) else "no"
    return {when: outcome, f"{when}_right": right, f"{when}_words": said, f"{when}_seconds": ended.seconds}


def left_out(when: str, reason: str) -> dict[str, Any]:
    """Return the columns of a half that is not run."""
    return {when: NOT_RUN, f"{when}_right": None, f"{when}_words": reason, f"{when}_seconds": None}


def measure_all(cases: Sequence[Case], revision: str, folder: Path) -> pd.DataFrame:
    """Return a row for each case, measured one after the other below `folder`."""
    with ExitStack() as stack:
        now = stack.enter_context(Checkout(ROOT, folder / "streams_after"))
        before, reason = revision_checkout(revision, folder)
        if before is not None:
            stack.enter_context(before)
        elif revision:
            tell(f"note: {reason}")
        rows = []
        for case in cases:
            if case in checkpoints.CASES:
                checkpoints.prepare(now.run, folder)
            missing = [f"{name} is not installed" for name in case.missing()]
            row: dict[str, Any] = {"kind": case.kind, "case": case.name, "right": case.right}
            for when, checkout, why in (("before", before, reason), ("after", now, "")):
                if checkout is None or missing:
                    row |= left_out(when, missing[0] if missing else why)
                else:
                    row |= measure(case, checkout, folder, when)
            tell(f"{case.kind}, {case.name}: {row['before']}, then {row['after']}")
            rows.append(row)
    return pd.DataFrame(rows)


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """Return for each kind how many cases came out as they should."""
    rows = []
    for kind, part in [*table.groupby("kind", sort=False), ("all", table)]:
        run = part[part["after_right"].notna()]
        row: dict[str, Any] = {"kind": kind, "cases": len(run)}
        for when in ("before", "after"):
            known = run[f"{when}_right"].notna().any()
            row[f"right {when}"] = int((run[f"{when}_right"] == "yes").sum()) if known else None
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)  # whole numbers beside what is not known


def make_notes(table: pd.DataFrame, revision: str, command: str) -> str:
    """Return what stands above the tables."""
    absent = sorted(set(table.loc[table["after"] == NOT_RUN, "after_words"]))
    seconds = {when: float(table[f"{when}_seconds"].sum()) for when in ("before", "after")}
    lines = [
        f"Small inputs as people have them: what the commands of {revision or 'no revision'} did with each, and what "
        f"those here do. Right is an answer that is right or, where it says so, a refusal with a way out. "
        f"Commands took {seconds['before']:.0f} and {seconds['after']:.0f} s, without the start of Python.",
        *(f"Not run: {reason}." for reason in absent),
        f"Made by `{command}`.",
    ]
    return " ".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_own_parser("robustness.everyday_files", __doc__)
    parser.add_argument("--before", default="150c1ff", metavar="REVISION", help="the earlier commit; '' for none")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help="kinds to run [all]")
    own = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        table = measure_all([case for case in CASES if case.kind in own.only], own.before, Path(folder).resolve())
    made = provenance("robustness.everyday_files", argv, torch.device("cpu"))
    for name in ("command", "git_revision", "torch"):
        table[f"made_by_{name}" if name == "command" else name] = made[name]
    shown = table[["kind", "case", "right", "before", "after"]]
    kinds = {"Cases of each kind": by_kind(table)}
    write_record(own.results, "everyday_files", table, shown, make_notes(table, own.before, made["command"]), kinds)
    if (table["after_right"] == "no").any():
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
