"""How many lines of each room the tests run.

    python -m benchmarks.robustness.coverage
    python -m benchmarks.robustness.coverage --quick    # the tests of the losses alone, whatever they cover

Runs all tests under coverage.py, on all cores, the processes that they start included, and writes
`results/coverage.csv` (a row a file) and `.md` (a row a room). Exit status 1 where a test fails or a room has less than
90 percent.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.command import ROOT, make_own_parser
from benchmarks.record import provenance, write_record
from utils.command import run_command
from utils.errors import UserError
from utils.files import read_json

ROOMS = (
    *("utils", "models", "datasets", "losses", "methods", "evaluation", "settings"),
    *("runs", "engine", "stages", "tables", "tools"),
)
TARGET_PERCENT = 90.0
CONFIG = f"[run]\nsource = {','.join(ROOMS)}\nparallel = true\npatch = subprocess\n"


def measure_coverage(folder: Path, arguments: Sequence[str]) -> tuple[bool, dict[str, dict[str, int]]]:
    """Run the tests with what coverage.py writes in `folder`; tell whether all passed, and each file's lines.

    A file has `statements` and, of these, `missed` ones.
    """
    config, report = folder / "coverage.ini", folder / "report.json"
    config.write_text(CONFIG, encoding="utf-8")
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    tool = [sys.executable, "-m", "coverage"]
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", "--dist", "loadfile", *arguments]
    done = subprocess.run([*tool, "run", f"--rcfile={config}", *tests], cwd=ROOT, env=environment)
    for step in (["combine", "--quiet"], ["json", "--quiet", "--ignore-errors", "-o", str(report)]):
        outcome = subprocess.run([*tool, *step], cwd=ROOT, env=environment, capture_output=True, text=True)
        if outcome.returncode:
            raise UserError(f"coverage {step[0]} failed: {(outcome.stdout + outcome.stderr).strip()[-200:]}")
    files = read_json(report)["files"]
    return done.returncode == 0, {
        name: {"statements": found["summary"]["num_statements"], "missed": found["summary"]["missing_lines"]}
        for name, found in files.items()
    }


def by_room(files: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of each room and of all rooms, with the percentage that was run."""
    files = files.assign(room=files["file"].str.split("/").str[0])
    rooms = files.groupby("room")[["statements", "missed"]].sum().reindex(list(ROOMS)).fillna(0).astype(int)
    rooms.loc["all"] = rooms.sum()
    rooms["percent"] = 100 * (1 - rooms["missed"] / rooms["statements"].clip(lower=1))
    return rooms.reset_index()


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_own_parser("robustness.coverage", __doc__, quick="the tests of the losses alone")
    own = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        passed, lines = measure_coverage(Path(folder), ["tests/losses/test_losses.py"] if own.quick else [])
    files = pd.DataFrame([{"file": name, **counts} for name, counts in sorted(lines.items())])
    rooms = by_room(files)
    made = provenance("robustness.coverage", argv, torch.device("cpu"))
    for name in ("command", "git_revision", "torch"):
        files[name] = made[name]
    shown = rooms.assign(percent=rooms["percent"].map("{:.1f}".format))
    write_record(own.results, "coverage", files, shown, f"Lines that the tests run; made by `{made['command']}`.")
    if not passed or (not own.quick and (rooms["percent"] < TARGET_PERCENT).any()):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
