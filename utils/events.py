"""What log.csv has, as events for TensorBoard, which is installed only by those who want it."""

from typing import Any

from utils.errors import UserError
from utils.runs import Run

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
    return SummaryWriter(run.folder / FOLDER, purge_step=epochs_done + 1)


def write_events(writer: Any, row: dict[str, Any]) -> None:
    """Write a row of log.csv: the numbers of training as `train/...`, accuracies as `test/...`."""
    for name, value in row.items():
        if name != "epoch" and value is not None:
            group = "test" if name.startswith(("plain_", "flip_")) else "train"
            writer.add_scalar(f"{group}/{name}", value, row["epoch"])
    writer.flush()
