"""The tests on the oldest versions that requirements.txt allows and on the newest there are.

    python -m benchmarks.robustness.versions                        # `make versions`
    python -m benchmarks.robustness.versions --folder .versions --python python3.12
    python -m benchmarks.robustness.versions --quick                # the tests of the losses alone

Makes an environment for each below FOLDER (two downloads of PyTorch; one that is there is brought up to date), runs the
tests in it and writes `results/versions.csv` and `.md`. Exit status 1 where a test fails. A lower bound such as
`torch>=2.11` stands for the newest patch of that release.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import torch

from benchmarks.command import ROOT, make_own_parser
from benchmarks.record import provenance, write_record
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder, write_text

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "safetensors", "pillow", "matplotlib")
BOUND = re.compile(r"^([A-Za-z0-9_.-]+)>=(\d+(?:\.\d+)?)")
ASK = "import sys, json, importlib.metadata as m; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"


def oldest(requirements: str) -> list[str]:
    """Return constraints for the lowest release that each line `name>=X.Y` of requirements allows, its newest patch."""
    found = (BOUND.match(line.strip()) for line in requirements.splitlines())
    return [f"{match[1]}=={match[2]}.*" for match in found if match]


def install(folder: Path, python: str, constraints: Sequence[str]) -> Path:
    """Make an environment, or bring it up to date, and return its interpreter; a UserError has pip's last line."""
    interpreter = folder / "bin" / "python"
    make_folder(folder)
    listed = folder / "constraints.txt"
    write_text(listed, "\n".join([*constraints, ""]))
    commands = [] if interpreter.exists() else [[python, "-m", "venv", str(folder)]]
    requirements = ["--requirement", "requirements-dev.txt", "--constraint", str(listed)]
    commands.append([str(interpreter), "-m", "pip", "install", "--quiet", "--upgrade", *requirements])
    for command in commands:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-300:]]
            raise UserError(f"{folder}: {' '.join(command[1:4])} failed: {lines[0]}")
    return interpreter


def run_tests(interpreter: Path, report: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run the tests with an interpreter; return how many passed, failed and were skipped, and which failed."""
    started = time.perf_counter()
    command = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    command += ["-n", "auto", "--dist", "loadfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if not report.exists():
        raise UserError(f"the tests did not start: {(done.stdout + done.stderr)[-300:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = "; ".join(f"{case.get('classname')}::{case.get('name')}" for case in failed)
    counts = {"passed": len(cases) - len(failed) - skipped, "failed": len(failed), "skipped": skipped}
    return {**counts, "failures": names, "seconds": time.perf_counter() - started}


def versions_of(interpreter: Path) -> dict[str, str]:
    """Return the versions of the packages in an environment, Python's first."""
    stated = subprocess.run([str(interpreter), "--version"], capture_output=True, text=True, check=True).stdout
    found = subprocess.run([str(interpreter), "-c", ASK, *PACKAGES], capture_output=True, text=True, check=True)
    return {"python": stated.split()[1], **json.loads(found.stdout)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_own_parser("robustness.versions", __doc__, quick="the tests of the losses alone")
    parser.add_argument("--folder", type=Path, default=Path(".versions"), help="environments [.versions]")
    parser.add_argument("--python", default=sys.executable, help="interpreter that makes them [this one]")
    own = parser.parse_args(argv)
    constraints = {"oldest": oldest((ROOT / "requirements.txt").read_text(encoding="utf-8")), "newest": []}
    rows = []
    for name, of_name in constraints.items():
        folder = (ROOT / own.folder / name).absolute()
        interpreter = install(folder, own.python, of_name)
        report = folder / "report.xml"
        report.unlink(missing_ok=True)
        counts = run_tests(interpreter, report, ["tests/losses/test_losses.py"] if own.quick else [])
        rows.append({"versions": name, **versions_of(interpreter), **counts})
        print(f"{name}: {counts['passed']} passed, {counts['failed']} failed {counts['failures']}", flush=True)
    table = pd.DataFrame(rows)
    made = provenance("robustness.versions", argv, torch.device("cpu"))
    for column in ("command", "device", "git_revision"):
        table[column] = made[column]
    shown = table[["versions", "python", *PACKAGES[:5], "passed", "failed", "skipped"]]
    write_record(own.results, "versions", table, shown, f"Tests by versions; made by `{made['command']}`.")
    if table["failed"].any():
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
