"""The table of `--method auto` beside its run, and on the screen."""

from pathlib import Path

import pandas as pd

from engine.choice.comparison import Comparison
from evaluation.csv_files import csv_text
from utils.distributed import is_main
from utils.files import write_text
from utils.text import tell

NAME = "auto.csv"


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write a line a candidate into `auto.csv` of a run's folder, the best ones on the screen."""
    if is_main():
        write_text(folder / NAME, csv_text(pd.DataFrame(comparison.rows), "%.6g"))
    tell(f"\n{comparison.text()}\nall candidates are in {folder / NAME}")
