"""What log.csv has, as events for TensorBoard, which is installed only by those who want it."""

from typing import Any

import pandas as pd

from engine.epoch import EpochResult
from evaluation.csv_files import csv_text
from evaluation.metrics import SHOTS
from runs.run_folder import Run
from utils.errors import UserError
from utils.files import write_text
from utils.outside import within
from utils.text import tell

FOLDER = "tensorboard"


def open_events(run: Run, epochs_done: int) -> Any:
    """Return a writer into the run's folder; of an earlier part of the run it hides what is done again.

    Raises UserError where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboard: pip install tensorboard, or leave it out"
        ) from error
    return SummaryWriter(within(run.folder, run.folder / FOLDER), purge_step=epochs_done + 1)


def write_events(writer: Any, row: dict[str, Any]) -> None:
    """Write a row of log.csv: the numbers of training as `train/...`, accuracies as `test/...`."""
    for name, value in row.items():
        if name != "epoch" and value is not None:
            group = "test" if name.startswith(("plain_", "flip_")) else "train"
            writer.add_scalar(f"{group}/{name}", value, row["epoch"])
    writer.flush()


LOG_COLUMNS = ("loss", "train_accuracy", "lr", "seconds", "images_per_second")


def log_row(epoch: int, lr: float, seconds: float, result: EpochResult) -> dict[str, Any]:
    """Return what a row of log.csv says of the training in one epoch."""
    values = (float(result.loss), float(result.accuracy), lr, seconds, result.images / seconds)
    return {"epoch": epoch + 1, **dict(zip(LOG_COLUMNS, values, strict=True))}


def log_accuracies(record: dict[str, Any] | None) -> dict[str, Any]:
    """Return the accuracies in a row of log.csv, None where the epoch was not evaluated."""
    reports = {way: (record or {}).get(way) or {} for way in ("plain", "flip")}
    return {f"{way}_{group}": report.get(group) for way, report in reports.items() for group in ("all", *SHOTS)}


def write_log(run: Run, log: list[dict[str, Any]]) -> None:
    """Write log.csv anew from the history, so that it never disagrees with the checkpoint."""
    write_text(run.folder / "log.csv", csv_text(pd.DataFrame(log)))


def print_epoch(row: dict[str, Any], epochs: int, seconds_per_epoch: float) -> None:
    """Print one line an epoch, with the time to go."""
    text = f"epoch {row['epoch']:>3}/{epochs}  loss {row['loss']:.4f}  train {row['train_accuracy']:5.2f}"
    if row["plain_all"] is not None:
        parts = [f"{name} {row[f'plain_{name}']:5.2f}" for name in ("all", *SHOTS) if row[f"plain_{name}"] is not None]
        text += "  test " + "  ".join(parts)
    to_go = (epochs - row["epoch"]) * seconds_per_epoch
    tell(f"{text}  {row['images_per_second']:.0f} images/s  {to_go / 60:.1f} min to go", flush=True)
