"""The epoch loop that both stages share: train, evaluate, log, save, resume."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.averaging import AveragedSGD
from engine.epoch import EpochResult
from engine.log import (
    LOG_COLUMNS,
    Pace,
    close_events,
    log_accuracies,
    log_row,
    open_events,
    print_epoch,
    write_events,
    write_log,
)
from engine.saving import Saver
from engine.steps import seed_generators
from evaluation.measure import (
    UNKNOWN,
    SplitFeatures,
    SplitLogits,
    Temperature,
    evaluate_test,
    find_temperature,
    selection_score,
)
from evaluation.prediction_sets.held_out import find_held_out
from evaluation.prediction_sets.record import KEY, pack_held_out
from methods.optimizers import SGD
from runs.checkpoint import Checkpoint, load_checkpoint, load_weights
from runs.held_out import assumed_of
from runs.run_folder import Run, other_part
from runs.session import Session
from utils.background import Background
from utils.distributed import from_main, is_main
from utils.errors import DivergedError, UserError
from utils.files import write_json
from utils.hashing import mix64
from utils.text import tell


@dataclass
class History:
    """What a run has measured so far; plain Python values, so that it travels in the checkpoint."""

    log: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    train_seconds: float = 0.0
    images: int = 0


def make_sgd(
    module: nn.Module,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    average: float | None = None,
    unit: float = 1.0,
) -> Optimizer:
    """Return SGD with weight decay on every parameter that is trained, batch norm and biases included, as released.

    With the decay `average` it averages the weights over the steps too (`engine.averaging`). Steps are those of
    features divided by `unit` (`engine.feature_scale`).
    """
    groups = rate_groups(module, unit) or [{"params": []}]  # of a classifier that has nothing to train: it was computed
    on_cuda = any(parameter.is_cuda for group in groups for parameter in group["params"])
    fused = True if on_cuda else None  # one kernel for all; None is PyTorch's own choice
    numbers: dict[str, Any] = {
        "lr": 0.0,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "fused": fused,
    }
    for group in groups:
        if "decay_factor" in group:
            group["weight_decay"] = weight_decay * group["decay_factor"]
    return SGD(groups, **numbers) if average is None else AveragedSGD(groups, average, **numbers)


def rate_groups(module: nn.Module, unit: float = 1.0) -> list[dict[str, Any]]:
    """Return what an optimiser takes: the trained parameters of a module, those of one `rate_factor` together.

    A head names its own in `rate_factors`; that of the others is 1. With a `unit` of the features that is not 1 the
    factors make the steps those of features divided by it: a parameter that grows with the power p of a feature's
    length (`feature_powers` of a head) is trained at unit^(2p) times the rate, and decays unit^(-2p) times as fast
    (`decay_factor`), which is what its value in the other unit, times unit^p, undergoes.
    """
    factors: dict[str, float] = getattr(module, "rate_factors", {})
    powers: dict[str, int] = getattr(module, "feature_powers", {}) if unit != 1 else {}
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((factors.get(name, 1.0), powers.get(name, 0)), []).append(parameter)
    found: list[dict[str, Any]] = []
    for (factor, power), parameters in groups.items():
        of_unit = {"decay_factor": unit ** (-2 * power)} if power else {}
        found.append({"params": parameters, "rate_factor": factor * unit ** (2 * power), **of_unit})
    return found


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over a saved state but for `fused`, which belongs to the device and not to the run.

    CUDA's fused step refuses a momentum that lies in memory in another order than its weights, channels last or not.
    """
    fused = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, fused, strict=True):
        group["fused"] = own
    for parameter, buffers in optimizer.state.items():
        for name, buffer in buffers.items():
            if isinstance(buffer, Tensor) and buffer.shape == parameter.shape and buffer.stride() != parameter.stride():
                buffers[name] = torch.empty_like(parameter, dtype=buffer.dtype).copy_(buffer)


@dataclass(frozen=True)
class Training:
    """What `fit` repeats: `train_epoch` trains epoch e (from 0) of `epochs` with the learning rate `lr_of_epoch(e)`.

    With no epoch at all the classifier was computed, and is evaluated and saved as it is. `once` is what `Pace` asks.
    """

    train_epoch: Callable[[int], EpochResult]
    optimizer: Optimizer
    lr_of_epoch: Callable[[int], float]
    epochs: int
    once: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)


def no_training(module: nn.Module) -> Training:
    """Return the training of a module that was computed: none."""

    def no_epoch(epoch: int) -> EpochResult:
        raise AssertionError("a computed classifier has no epochs")

    return Training(no_epoch, make_sgd(module, 0.0, 0.0, False), lambda epoch: 0.0, epochs=0)


def fit(session: Session, training: Training, features_of: SplitFeatures) -> tuple[History, SplitLogits]:
    """Train a session's model and leave log.csv, last.pth and best.pth in the run's folder.

    Goes on from last.pth where the folder has one: everything random is a function of (seed, epoch, image), so weights,
    optimiser, what the loss has accumulated, and history are the whole state. The last epoch is always evaluated.
    `best` is chosen on the test set, the latest epoch winning ties. Both files are written every `--save_every`
    seconds, at the end, and where anything but a kill ends the run (`engine.saving`). A loss that is not finite ends it
    with a UserError. The last checkpoint holds the temperature that the held-out images ask for.

    Of many processes all measure the same, together; the first reads and writes.

    Returns what was measured, and the logits of the trained model, as far as they were computed.
    """
    settings, epochs, every = session.settings, training.epochs, session.settings.eval_every
    assert every is not None, "a session has settled it"
    history, done = resume(session, training)
    events = open_events(session.run, done) if settings.tensorboard and is_main() else None
    pace = Pace(every, training.once)
    logits_of = SplitLogits(features_of, session.model.fc)
    with saving(session, done) as saver:
        for epoch in range(done, epochs):
            logits_of = SplitLogits(features_of, session.model.fc)  # lets go of the predictions of the epoch before
            row = train_one(session, training, history, epoch)
            due = (epoch + 1) % every == 0 or epoch + 1 == epochs
            logits_of = SplitLogits(features_of, session.model.fc)
            is_best = evaluate_epoch(session, history, logits_of, row, due)
            save_epoch(session, training, history, logits_of, is_best, saver)
            if events is not None:
                write_events(events, history.log[-1])
            print_epoch(history.log[-1], epochs, pace.left(epochs - epoch - 1))
        if epochs == 0 and history.last is None:
            is_best = evaluate_epoch(session, history, logits_of, {"epoch": 0, **dict.fromkeys(LOG_COLUMNS)}, True)
            save_epoch(session, training, history, logits_of, is_best, saver)
        elif done == epochs and session.run.config["settings"].get("temperature") is not None:
            save_epoch(session, training, history, logits_of, False, saver)  # it may be given only now
    if events is not None:
        close_events(events)
    if is_main():
        write_log(session.run, history.log)
    return history, logits_of


def resume(session: Session, training: Training) -> tuple[History, int]:
    """Return what a run has measured so far and how many epochs are done, with its state taken over from last.pth."""
    checkpoint = from_main(read_last(session.run) if is_main() else None)
    if checkpoint is None:
        record_part(session.run, 0)
        return History(), 0
    assert checkpoint.content is not None
    load_weights(session.model, checkpoint)
    restore_optimizer(training.optimizer, checkpoint.content["optimizer"])
    session.loss.load_state_dict(checkpoint.content.get("loss", {}))
    done = checkpoint.content["epoch"]
    record_part(session.run, done)
    tell(f"resuming {session.run.folder} after epoch {done} of {training.epochs}")
    return History(**checkpoint.content["history"]), done


def record_part(run: Run, epochs_done: int) -> None:
    """Add to config.json with what a run goes on, now that it does, and say how that differs from the part before."""
    parts = run.config["parts"]
    parts[-1]["epochs_done"] = epochs_done
    if is_main() and len(parts) > 1:
        write_json(run.folder / "config.json", run.config)
        if differs := other_part(run.config):
            tell(f"this part differs from the one before it: {differs}")


@contextlib.contextmanager
def saving(session: Session, epochs_done: int) -> Iterator[Saver]:
    """Give what saves a run; what it keeps is written whatever ends the block."""
    with Background() as background:
        saver = Saver(session.run, background, session.settings.save_every, epochs_done)
        try:
            yield saver
        except DivergedError as error:
            kept = f"{session.run.last} keeps epoch {saver.kept}" if saver.kept > 0 else "no epoch was finished"
            raise DivergedError(f"{error}; {kept}; try a lower learning rate") from error
        finally:
            if not background.broken:  # another writing would fail as the one before did
                saver.write()


def train_one(session: Session, training: Training, history: History, epoch: int) -> dict[str, Any]:
    """Train an epoch (from 0) and return its row of log.csv; a loss that is not finite raises DivergedError."""
    lr = training.lr_of_epoch(epoch)
    for group in training.optimizer.param_groups:
        group["lr"] = lr * group.get("rate_factor", 1.0)  # which earlier optimisers did not save
    seed_generators(mix64(session.run.config["settings"]["seed"]) ^ epoch)  # for losses that draw
    started = time.perf_counter()
    result = training.train_epoch(epoch)  # reads counters from the device at its end: the clock sees all its work
    seconds = time.perf_counter() - started
    if result.diverged_at:
        raise DivergedError(f"the loss is not finite from step {result.diverged_at} of epoch {epoch + 1} on")
    history.train_seconds += seconds
    history.images += result.images
    return log_row(epoch, lr, seconds, result)


def evaluate_epoch(session: Session, history: History, logits_of: SplitLogits, row: dict[str, Any], due: bool) -> bool:
    """Evaluate the model, if it is due, and add the epoch's row to the history; tell whether it is the best so far."""
    started = time.perf_counter()
    record = {"epoch": row["epoch"], **evaluate_test(logits_of, session.images, session.data)} if due else None
    seconds = time.perf_counter() - started if due else None
    history.log.append({**row, "evaluation_seconds": seconds, **log_accuracies(record)})
    if record is None:
        return False
    history.last = record
    is_best = history.best is None or selection_score(record) >= selection_score(history.best)
    history.best = record if is_best else history.best
    return is_best


def save_epoch(
    session: Session,
    training: Training,
    history: History,
    logits_of: SplitLogits,
    is_best: bool,
    saver: Saver,
) -> None:
    """Hand the state after the last epoch of the history to the saver."""
    run, epoch = session.run, history.log[-1]["epoch"]
    temperature = Temperature(run.config["settings"].get("temperature"), "given")
    if temperature.value is None:
        last = epoch == training.epochs
        temperature = find_temperature(logits_of, session.images) if last else UNKNOWN
    held_out = keep_held_out(session, logits_of, temperature.value) if epoch == training.epochs else None
    if not is_main():  # from here on no process computes anything with the others
        return
    common = {"stage": run.config["stage"], "epoch": epoch, "model": session.model.state_dict(), "config": run.config}
    state = {"optimizer": training.optimizer.state_dict(), "loss": session.loss.state_dict()}
    calibration = {"temperature": temperature.value, "temperature_source": temperature.source, KEY: held_out}
    last = {**common, **state, "history": asdict(history), **calibration}
    saver.keep(common if is_best else None, last, final=epoch >= training.epochs)


def keep_held_out(session: Session, logits_of: SplitLogits, temperature: float | None) -> dict[str, Any] | None:
    """Return what the last checkpoint keeps of the held-out images for prediction sets and priors, None without any."""
    assumed = assumed_of(session.run.config, session.data.class_counts.tolist())
    found = find_held_out(logits_of, session.images, assumed, temperature)
    return None if found is None else pack_held_out(found)


def read_last(run: Run) -> Checkpoint | None:
    """Return the checkpoint that a run goes on from, None where it begins; UserError where it is of something else."""
    if not run.last.exists():
        return None
    checkpoint = load_checkpoint(run.last)
    content = checkpoint.content
    if content is None or content["stage"] != run.config["stage"] or "history" not in content:
        raise UserError(f"{run.last} is not the last checkpoint of this run; use --overwrite to start anew")
    return checkpoint
