"""The epoch loop that both stages share: train, evaluate, log, save, resume."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from datasets.long_tail import LongTailedData
from engine.epoch import EpochResult
from engine.log import LOG_COLUMNS, log_accuracies, log_row, open_events, print_epoch, write_events, write_log
from evaluation.measure import Images, SplitFeatures, SplitLogits, evaluate_test, held_out_temperature, selection_score
from models.network import Network
from runs.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from runs.run_folder import Run
from utils.background import Background, snapshot
from utils.distributed import from_main, is_main
from utils.errors import DivergedError, UserError
from utils.files import write_json
from utils.hashing import mix64

INTERRUPTED = ": finished epochs are saved; the same command with --resume (and the same --seed) goes on from there"


@dataclass
class History:
    """What a run has measured so far; plain Python values, so that it travels in the checkpoint."""

    log: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    train_seconds: float = 0.0
    images: int = 0


def make_sgd(module: nn.Module, momentum: float, weight_decay: float, nesterov: bool) -> Optimizer:
    """Return SGD with weight decay on every parameter that is trained, batch norm and biases included, as released."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = True if trained[0].is_cuda else None  # one kernel for all parameters; None is PyTorch's own choice
    return SGD(trained, lr=0.0, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused)


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over a saved state but for `fused`, which belongs to the device and not to the run."""
    fused = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, fused, strict=True):
        group["fused"] = own


def fit(
    run: Run,
    model: Network,
    optimizer: Optimizer,
    train_one_epoch: Callable[[int], EpochResult],
    features_of: SplitFeatures,
    images: Images,
    data: LongTailedData,
    *,
    loss_function: nn.Module,
    lr_of_epoch: Callable[[int], float],
    epochs: int,
    eval_every: int,
    tensorboard: bool = False,
) -> tuple[History, SplitLogits]:
    """Train for `epochs` epochs and leave log.csv, last.pth and best.pth in the run's folder.

    Goes on from last.pth where the folder has one: everything random is a function of (seed, epoch, image), so weights,
    optimiser, what the loss has accumulated, and history are the whole state. The last epoch is always evaluated; with
    no epoch at all (a classifier that is computed) the model is evaluated and saved as it is. `best` is chosen on the
    test set, the latest epoch winning ties. A loss that is not finite ends the run with a UserError; last.pth is then
    of the epoch before. The last checkpoint holds the temperature that the held-out images ask for.

    Of many processes all measure the same, together; the first reads and writes.

    Returns what was measured, and the logits of the trained model, as far as they were computed.
    """
    history, done = History(), 0
    checkpoint = from_main(read_last(run) if is_main() else None)
    if checkpoint is not None:
        assert checkpoint.content is not None
        load_weights(model, checkpoint)
        restore_optimizer(optimizer, checkpoint.content["optimizer"])
        loss_function.load_state_dict(checkpoint.content.get("loss", {}))
        history, done = History(**checkpoint.content["history"]), checkpoint.content["epoch"]
        if is_main():
            write_json(run.folder / "config.json", run.config)
        print(f"resuming {run.folder} after epoch {done} of {epochs}")
    events = open_events(run, done) if tensorboard and is_main() else None

    def keep(background: Background, epoch: int, row: dict[str, Any], evaluated: bool) -> SplitLogits:
        """Evaluate the model after `epoch` epochs, if it is due, and save what there is, behind the next epoch."""
        logits_of = SplitLogits(features_of, model.fc)
        evaluation_started = time.perf_counter()
        record = {"epoch": epoch, **evaluate_test(logits_of, images, data)} if evaluated else None
        seconds = time.perf_counter() - evaluation_started if evaluated else None
        history.log.append({**row, "evaluation_seconds": seconds, **log_accuracies(record)})
        is_best = False
        if record is not None:
            history.last = record
            is_best = history.best is None or selection_score(record) >= selection_score(history.best)
            history.best = record if is_best else history.best
        temperature, source = run.config["settings"].get("temperature"), "given"
        if epoch == epochs and temperature is None:
            temperature, source = held_out_temperature(logits_of, images), "held-out images"
        if not is_main():  # from here on no process computes anything with the others
            return logits_of
        if events is not None:
            write_events(events, history.log[-1])
        common = {"stage": run.config["stage"], "epoch": epoch, "model": snapshot(model.state_dict())}
        common["config"] = run.config
        state = {"optimizer": snapshot(optimizer.state_dict()), "loss": snapshot(loss_function.state_dict())}
        state["history"] = asdict(history)
        calibration = {"temperature": temperature, "temperature_source": source}

        def save() -> None:
            if is_best:
                save_checkpoint(run.best, common)
            save_checkpoint(run.last, {**common, **state, **calibration})
            write_log(run, state["history"]["log"])

        background.start(save)
        return logits_of

    started = time.perf_counter()
    logits_of = SplitLogits(features_of, model.fc)
    with Background() as background:
        for epoch in range(done, epochs):
            logits_of = SplitLogits(features_of, model.fc)  # lets go of the predictions of the epoch before
            lr = lr_of_epoch(epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(mix64(run.config["settings"]["seed"]) ^ epoch)  # for losses that draw
            epoch_started = time.perf_counter()
            result = train_one_epoch(epoch)  # reads counters from the device at its end: the clock sees all its work
            seconds = time.perf_counter() - epoch_started
            if result.diverged_at:
                kept = f"{run.last} keeps epoch {epoch}" if epoch > 0 else "no epoch was finished"
                raise DivergedError(
                    f"the loss is not finite from step {result.diverged_at} of epoch {epoch + 1} on; {kept}; try a "
                    "lower learning rate"
                )
            history.train_seconds += seconds
            history.images += result.images
            row = log_row(epoch, lr, seconds, result)
            logits_of = keep(background, epoch + 1, row, epoch + 1 == epochs or (epoch + 1) % eval_every == 0)
            print_epoch(history.log[-1], epochs, (time.perf_counter() - started) / (epoch + 1 - done))
        if epochs == 0 and history.last is None:
            logits_of = keep(background, 0, {"epoch": 0, **dict.fromkeys(LOG_COLUMNS)}, True)
    if events is not None:
        events.close()
    if is_main():
        write_log(run, history.log)
    return history, logits_of


def read_last(run: Run) -> Checkpoint | None:
    """Return the checkpoint that a run goes on from, None where it begins; UserError where it is of something else."""
    if not run.last.exists():
        return None
    checkpoint = load_checkpoint(run.last)
    content = checkpoint.content
    if content is None or content["stage"] != run.config["stage"] or "history" not in content:
        raise UserError(f"{run.last} is not the last checkpoint of this run; use --overwrite to start anew")
    return checkpoint
