"""What every benchmark writes beside its numbers, and how."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision

from evaluation.csv_files import csv_text
from evaluation.run_rows import to_markdown
from runs.run_record import git_revision
from settings.fields import Settings
from utils.device import device_name
from utils.files import make_folder, write_text


def provenance(benchmark: str, argv: Sequence[str] | None, device: torch.device) -> dict[str, Any]:
    """Return the columns that say how a row came about: command, hardware, versions, revision.

    `argv` are the benchmark's arguments, None for those of the process.
    """
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *arguments]),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "git_revision": git_revision(),
    }


def write_record(
    results: Path,
    name: str,
    rows: pd.DataFrame,
    shown: pd.DataFrame,
    notes: str,
    more: dict[str, pd.DataFrame] | None = None,
    *,
    printed: bool = True,
) -> None:
    """Write `<results>/<name>.csv` with all rows and `<name>.md` with the table that people read; print the table.

    `more` are further tables of the Markdown file, by their titles. What is not the last is not to be `printed`.
    """
    make_folder(results)
    write_text(results / f"{name}.csv", csv_text(rows, "%.6g"))
    further = [f"{title}:\n\n{to_markdown(table)}" for title, table in (more or {}).items()]
    write_text(results / f"{name}.md", "\n".join([f"{notes}\n\n{to_markdown(shown)}", *further]))
    if printed:
        cells = shown.astype(object).fillna("-")
        print(f"\n{cells.to_string(index=False)}\n\n{notes}\nwritten to {results / name}.csv and .md")


def network_name(settings: Settings, short: bool = False) -> str:
    """Return a network with its width, in words or, `short`, as it stands in a file's name."""
    if settings.width is None:
        return settings.network
    return f"{settings.network}w{settings.width}" if short else f"{settings.network} at width {settings.width}"
