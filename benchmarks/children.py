"""Measurements in a fresh Python process, which leaves its answer in a file."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT
from utils.errors import UserError
from utils.files import read_json


def answer_of(words: Sequence[str], answer: Path, what: str) -> dict[str, Any]:
    """Run `python WORDS` in the repository's folder and return what it wrote as JSON to `answer`.

    Raises UserError with the last line that it printed where the measurement of `what` failed.
    """
    process = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise UserError(f"the measurement of {what} failed: {lines[-1].removeprefix('error: ')}")
    return read_json(answer)
