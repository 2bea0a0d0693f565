"""The table of `--method auto` beside its run, and on the screen."""

from pathlib import Path

import pandas as pd

from engine.choice.comparison import Comparison
from evaluation.csv_files import csv_text
from runs.run_folder import Run
from utils.distributed import is_main
from utils.files import write_json, write_text
from utils.text import tell

NAME = "auto.csv"


def record_choice(run: Run, comparison: Comparison) -> None:
    """Write into config.json, and so into the checkpoints that follow, which candidate was chosen."""
    run.config["chosen"] = comparison.names[comparison.winner]
    if is_main():
        write_json(run.folder / "config.json", run.config)


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write a line a candidate into `auto.csv` of a run's folder, the best ones on the screen."""
    if is_main():
        write_text(folder / NAME, csv_text(pd.DataFrame(comparison.rows), "%.6g"))
    tell(f"\n{comparison.text()}\nall candidates are in {folder / NAME}")
