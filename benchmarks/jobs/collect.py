"""What a call of `benchmarks.jobs.paper_runs` writes to the folder given as --collect, within the limits of that call.

`paper_runs.csv` has a row of every finished run, as in the tables of `results/`, and `paper_runs_log.csv` the epochs of
each. Both are written anew whenever a run is finished, behind the rows that they have of runs made elsewhere. Exported
features are moved: a part that was collected is kept nowhere else, and a folder of features that was emptied stays, as
the sign that they need not be exported again.
"""

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.csv_files import csv_text, read_csv
from evaluation.run_rows import csv_row, read_run
from utils.files import write_atomically, write_text

ROWS, LOGS = "paper_runs.csv", "paper_runs_log.csv"
KEY = ["item", "run"]
MIB = 2**20


@dataclass
class Collection:
    """A folder, and how many files and bytes a call may write there; `written` are those that it has: {name: bytes}."""

    folder: Path
    files: int
    size: float
    written: dict[str, int] = field(default_factory=dict)

    def has_room(self, name: str, size: int) -> bool:
        after = {**self.written, name: size}
        return len(after) <= self.files and sum(after.values()) <= self.size


def collect_runs(runs: Mapping[tuple[str, str], Path], features: Sequence[Path], collection: Collection) -> list[str]:
    """Write the tables of finished runs and move the files in the folders of features; return what had no room.

    `runs` are the folders of the runs by (item, run).
    """
    rows, logs = [], []
    for pair, folder in runs.items():
        label = dict(zip(KEY, pair, strict=True))
        rows.append({**label, **csv_row(*read_run(folder))})
        logs += [{**label, **epoch} for epoch in read_csv(folder / "log.csv").to_dict("records")]
    left = [
        name for name, table in ((ROWS, rows), (LOGS, logs)) if table and not collect_table(name, table, collection)
    ]
    for folder in features:
        for part in sorted(folder.glob("*")):
            size = part.stat().st_size
            if not collection.has_room(part.name, size):
                left.append(f"{part.name} ({size / MIB:.1f} MiB)")
                continue
            with open(part, "rb") as source:
                write_atomically(collection.folder / part.name, partial(shutil.copyfileobj, source))
            collection.written[part.name] = size
            part.unlink()
    return left


def collect_table(name: str, table: list[dict[str, Any]], collection: Collection) -> bool:
    """Write a table, behind the rows that the file has of other runs, if there is room; tell whether there was."""
    path = collection.folder / name
    text = csv_text(pd.DataFrame(table), "%.6g")
    if path.is_file():
        old, new = (pd.read_csv(file, dtype=str, keep_default_na=False) for file in (path, io.StringIO(text)))
        others = old[~old.set_index(KEY).index.isin(new.set_index(KEY).index)]
        text = pd.concat([others, new]).to_csv(index=False)
    size = len(text.encode())
    if not collection.has_room(name, size):
        return False
    write_text(path, text)
    collection.written[name] = size
    return True
