"""The epoch loop that both stages share: train, evaluate, log, save, resume."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
from torch import nn
from torch.optim import SGD, Optimizer

from datasets.long_tail import LongTailedData
from models.resnet import ResNet
from utils.checkpoint import load_checkpoint, load_weights, save_checkpoint
from utils.engine import EpochResult
from utils.errors import UserError
from utils.evaluation import FeaturesOf, Images, LogitsOf, evaluate_test, selection_score
from utils.files import write_json, write_text
from utils.metrics import SHOTS
from utils.runs import Run

INTERRUPTED = ": finished epochs are saved; the same command with --resume (and the same --seed) goes on from there"


@dataclass
class History:
    """What a run has measured so far; plain Python values, so that it travels in the checkpoint."""

    log: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    train_seconds: float = 0.0
    images: int = 0


def cosine_lr(base: float, epoch: int, epochs: int) -> float:
    """Return the learning rate of `epoch` (from 0): half a cosine from `base` towards 0, constant within an epoch."""
    return base * (1 + math.cos(math.pi * epoch / epochs)) / 2


def make_sgd(module: nn.Module, momentum: float, weight_decay: float, nesterov: bool) -> Optimizer:
    """Return SGD with weight decay on every parameter, batch norm and biases included, as released."""
    return SGD(module.parameters(), lr=0.0, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def fit(
    run: Run,
    model: ResNet,
    optimizer: Optimizer,
    train_one_epoch: Callable[[int], EpochResult],
    features_of: FeaturesOf,
    images: Images,
    data: LongTailedData,
    *,
    base_lr: float,
    epochs: int,
    eval_every: int,
) -> History:
    """Train for `epochs` epochs and leave log.csv, last.pth and best.pth in the run's folder.

    Goes on from last.pth where the folder has one: everything random is a function of (seed, epoch, image), so weights,
    optimiser and history are the whole state. The last epoch is always evaluated. `best` is chosen on the test set, the
    latest epoch winning ties. A loss that is not finite ends the run with a UserError; last.pth is then of the epoch
    before.
    """
    history, done = History(), 0
    if run.last.exists():
        checkpoint = load_checkpoint(run.last)
        content = checkpoint.content
        resumable = content is not None and content["stage"] == run.config["stage"] and "history" in content
        if content is None or not resumable:
            raise UserError(f"{run.last} is not the last checkpoint of this run; use --overwrite to start anew")
        load_weights(model, checkpoint)
        optimizer.load_state_dict(content["optimizer"])
        history, done = History(**content["history"]), content["epoch"]
        write_json(run.folder / "config.json", run.config)
        print(f"resuming {run.folder} after epoch {done} of {epochs}")
    started = time.perf_counter()
    for epoch in range(done, epochs):
        lr = cosine_lr(base_lr, epoch, epochs)
        for group in optimizer.param_groups:
            group["lr"] = lr
        epoch_started = time.perf_counter()
        result = train_one_epoch(epoch)  # reads counters from the device at its end, so the clock sees all of its work
        seconds = time.perf_counter() - epoch_started
        if result.diverged_at is not None:
            kept = f"{run.last} keeps epoch {epoch}" if epoch > 0 else "no epoch was finished"
            raise UserError(
                f"the loss is not finite from step {result.diverged_at} of epoch {epoch + 1} on; {kept}; try a "
                "lower learning rate"
            )
        evaluated = epoch + 1 == epochs or (epoch + 1) % eval_every == 0
        logits_of = LogitsOf(features_of, model.fc)
        record = {"epoch": epoch + 1, **evaluate_test(logits_of, images, data)} if evaluated else None
        history.train_seconds += seconds
        history.images += result.images
        history.log.append(log_row(epoch, lr, seconds, result, record))
        is_best = record is not None and (
            history.best is None or selection_score(record) >= selection_score(history.best)
        )
        if record is not None:
            history.last = record
        common = {"stage": run.config["stage"], "epoch": epoch + 1, "model": model.state_dict(), "config": run.config}
        if is_best:
            history.best = record
            save_checkpoint(run.best, common)
        save_checkpoint(run.last, {**common, "optimizer": optimizer.state_dict(), "history": asdict(history)})
        write_log(run, history)
        print_epoch(history.log[-1], epochs, (time.perf_counter() - started) / (epoch + 1 - done))
    write_log(run, history)
    return history


def log_row(
    epoch: int, lr: float, seconds: float, result: EpochResult, record: dict[str, Any] | None
) -> dict[str, Any]:
    """Return one row of log.csv; accuracies are None where the epoch was not evaluated."""
    row: dict[str, Any] = {
        "epoch": epoch + 1,
        "loss": result.loss,
        "train_accuracy": result.accuracy,
        "lr": lr,
        "seconds": seconds,
        "images_per_second": result.images / seconds,
    }
    for way in ("plain", "flip"):
        report = (record or {}).get(way) or {}
        row.update({f"{way}_{group}": report.get(group) for group in ("all", *SHOTS)})
    return row


def write_log(run: Run, history: History) -> None:
    """Write log.csv anew from the history, so that it never disagrees with the checkpoint."""
    write_text(run.folder / "log.csv", pd.DataFrame(history.log).to_csv(index=False))


def print_epoch(row: dict[str, Any], epochs: int, seconds_per_epoch: float) -> None:
    """Print one line an epoch, with the time to go."""
    text = f"epoch {row['epoch']:>3}/{epochs}  loss {row['loss']:.4f}  train {row['train_accuracy']:5.2f}"
    if row["plain_all"] is not None:
        parts = [f"{name} {row[f'plain_{name}']:5.2f}" for name in ("all", *SHOTS) if row[f"plain_{name}"] is not None]
        text += "  test " + "  ".join(parts)
    to_go = (epochs - row["epoch"]) * seconds_per_epoch
    print(f"{text}  {row['images_per_second']:.0f} images/s  {to_go / 60:.1f} min to go", flush=True)
