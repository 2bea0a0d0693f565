"""What is said of an epoch: its row of log.csv, its line on the screen, its events for TensorBoard.

TensorBoard is installed only by those who want it.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.epoch import EpochResult
from evaluation.csv_files import csv_text
from evaluation.metrics import SHOTS
from runs.run_folder import Run
from utils.errors import UserError
from utils.files import write_text
from utils.outside import within
from utils.text import tell

FOLDER = "tensorboard"
LAST_EPOCHS = (
    5  # whose time says how long the next ones take: what is slow once, such as compiling, soon counts no more
)


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
    with one_line_on_failure(run.folder / FOLDER):
        return SummaryWriter(within(run.folder, run.folder / FOLDER), purge_step=epochs_done + 1)


@contextlib.contextmanager
def one_line_on_failure(folder: Path | str) -> Iterator[None]:
    """Raise UserError where TensorBoard cannot write to its folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; leave out --tensorboard") from error


def write_events(writer: Any, row: dict[str, Any]) -> None:
    """Write a row of log.csv: the numbers of training as `train/...`, accuracies as `test/...`."""
    with one_line_on_failure(writer.log_dir):
        for name, value in row.items():
            if name != "epoch" and value is not None:
                group = "test" if name.startswith(("plain_", "flip_")) else "train"
                writer.add_scalar(f"{group}/{name}", value, row["epoch"])
        writer.flush()


def close_events(writer: Any) -> None:
    """Write what is left, and close."""
    with one_line_on_failure(writer.log_dir):
        writer.close()


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
    import pandas as pd

    write_text(run.folder / "log.csv", csv_text(pd.DataFrame(log)))


class Pace:
    """How long it takes to the end: as long an epoch as the last ones took, without what is computed only once.

    `once()` is the time in seconds that such things took so far, and that those will take which are still to come: the
    features of a frozen backbone, say. `window` is the number of epochs that count, those between evaluations at least.
    """

    def __init__(self, window: int, once: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)) -> None:
        self.once = once
        self.seconds: deque[float] = deque(maxlen=max(window, LAST_EPOCHS))
        self.start()

    def start(self) -> None:
        """Begin an epoch."""
        self.began, self.before = time.perf_counter(), self.once()[0]

    def left(self, epochs: int) -> float:
        """End an epoch, and return the seconds that `epochs` more will take; the next one begins."""
        spent, ahead = self.once()
        self.seconds.append(time.perf_counter() - self.began - (spent - self.before))
        self.start()
        return epochs * sum(self.seconds) / len(self.seconds) + (ahead if epochs else 0.0)


def print_epoch(row: dict[str, Any], epochs: int, to_go: float) -> None:
    """Print one line an epoch, of at most 80 columns, with the time to go, which is given in seconds.

    Behind the test accuracy stand those of the many-, medium- and few-shot classes; log.csv has every digit.
    """
    text = f"epoch {row['epoch']:>3}/{epochs} loss {row['loss']:#.4g} train {row['train_accuracy']:.1f}"
    if row["plain_all"] is not None:
        shots = "/".join("-" if row[f"plain_{name}"] is None else f"{row[f'plain_{name}']:.1f}" for name in SHOTS)
        text += f" test {row['plain_all']:.1f} ({shots})"
    tell(f"{text} {time_left(to_go)} to go", flush=True)


def time_left(seconds: float) -> str:
    """Return a time in at most 7 characters."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
