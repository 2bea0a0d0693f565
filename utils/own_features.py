"""`--features FILE`: the two stages and their report on features that any model made, without images and network.

A file with a classifier is a finished stage 1. For one without, stage 1 is a linear classifier trained on the features
with cross-entropy (`utils.linear_probe`), and leaves a run folder like any other; stage 2 makes it where it is missing.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losses.los import ONE_HOT
from utils.checkpoint import Checkpoint, joined, load_checkpoint
from utils.config import STAGE1, Command, parse_command
from utils.engine import EpochResult, predict
from utils.errors import UserError
from utils.feature_files import OWN_FEATURES, read_features
from utils.linear_probe import fit_probe
from utils.report import finish_run
from utils.runs import describe, find_run, open_run, read_metrics, seed_folder, stage1_folder, stage1_tags
from utils.setup import (
    FROM_CHECKPOINT,
    adopt_checkpoint,
    adopt_report,
    announce,
    build_network,
    checkpoint_files,
    device_images,
    find_checkpoints,
    find_stage1,
    load_data,
    name_backbone,
    settle_execution,
    settle_features,
    stage1_seed,
)
from utils.training import fit, make_sgd


def open_features(command: Command) -> tuple[Command, Checkpoint]:
    """Read the file that `--features` names; return the command with what the file settles, and the file."""
    path = Path(str(command.settings.features))
    digest, content = read_features(path)
    own = Checkpoint(path, digest, OWN_FEATURES, content["model"], content)
    known = own.settings()
    return command.replace(**{name: known[name] for name in FROM_CHECKPOINT}), own


def find_start(command: Command) -> tuple[Command, Checkpoint]:
    """Read the stage 1 that stage 2 starts from; with `--features` that of the file, trained first if it is missing."""
    if command.settings.features is None:
        return find_stage1(command)
    command, own = open_features(command)
    command = settle_features(command, own)
    checkpoint = own if own.state else find_classifier(command, own)
    return adopt_checkpoint(command, checkpoint), checkpoint


def find_subjects(command: Command) -> tuple[Command, dict[str, Checkpoint]]:
    """Read what `evaluate.py` reports on: with `--features` the classifier of the file itself, or runs on it."""
    if command.settings.features is None:
        return find_checkpoints(command)
    command, own = open_features(command)
    stage = command.settings.cur_stage or "stage1"
    if stage == "stage1" and own.state:
        return adopt_report(command, own), {own.path.stem: own}
    files = checkpoint_files(find_run(command, stage, command.settings.seed))
    checkpoints = {name: with_features(load_checkpoint(file), own) for name, file in files.items()}
    return adopt_report(command, checkpoints["last"]), checkpoints


def find_classifier(command: Command, own: Checkpoint) -> Checkpoint:
    """Return the stage-1 run on a file of features that has no classifier, after training it where there is none."""
    seed = stage1_seed(command.settings)
    if not list(seed_folder(command.settings, seed).glob("stage1*/config.json")):
        names = ("features", "out", "device", "gpu", "workers")
        flags = [word for name in names if name in command.given for word in (f"--{name}", str(command.given[name]))]
        print(f"{own.path} has no classifier: training one on it first (main_stage1.py --features)", flush=True)
        train_classifier(parse_command(STAGE1, "", [*flags, "--seed", str(seed)]), own)
        print()
    return with_features(load_checkpoint(find_run(command, "stage1", seed) / "last.pth"), own)


def with_features(checkpoint: Checkpoint, own: Checkpoint) -> Checkpoint:
    """Return a run's checkpoint with the features that it was trained on; a UserError refuses it with any other."""
    named = (checkpoint.config.get("backbone") or {}).get("sha256")
    if named != own.sha256:
        raise UserError(
            f"{checkpoint.path.parent} was trained on another file than {own.path} is now: sha256 {str(named)[:16]} "
            f"there, {own.sha256[:16]} here; --out names another place, --overwrite (of main_stage1.py first) replaces "
            "the run"
        )
    return joined(checkpoint, own)


def train_classifier(command: Command, own: Checkpoint | None = None) -> dict[str, Any]:
    """Run stage 1 on a file of features, `own` where it has been read, and return what metrics.json holds."""
    execution = settle_execution(command)
    if own is None:
        command, own = open_features(command)
    if own.state:
        raise UserError(f"{own.path} has a classifier already: main_stage2.py --features {own.path} starts from it")
    # No epoch of steps: the classifier is computed, as those of `tau_norm` and its like are.
    known = {**{name: own.settings()[name] for name in FROM_CHECKPOINT}, "epochs": 0}
    command = command.settled(**known)
    settings = command.settings
    data = load_data(settings, settings.seed, own)
    folder = stage1_folder(command)
    config = describe(command, "stage1", stage1_tags(command), data, execution, ONE_HOT, stage1=None)
    config["backbone"] = name_backbone(own, folder)
    run = open_run(folder, config, resume=settings.resume, overwrite=settings.overwrite, reuse=settings.reuse)
    if run.finished:
        return read_metrics(run)
    announce(command, data, execution, folder)

    images = device_images(data, execution)
    model = build_network(settings, data)
    execution.place(model)
    train = images["train"]
    probe = fit_probe(train.images[:, 0], train.labels, data.num_classes, settings.wd)
    with torch.no_grad():
        model.fc.weight.copy_(probe.weight)
        model.fc.bias.copy_(probe.bias)
    print(
        f"classifier: cross-entropy with weight decay {settings.wd:g} (of features of unit spread), L-BFGS, "
        f"{probe.evaluations} evaluations, loss {probe.loss:.5f}, {probe.seconds:.1f} s"
    )

    def no_epoch(epoch: int) -> EpochResult:
        raise AssertionError("a computed classifier has no epochs")

    def features_of(split: str, mirrored: bool) -> Tensor:
        return predict(model.eval().features, images[split], execution, mirrored=mirrored)

    history, logits_of = fit(
        run, model, make_sgd(model.fc, 0.0, 0.0, False), no_epoch, features_of, images, data,
        loss_function=nn.CrossEntropyLoss(), lr_of_epoch=lambda epoch: 0.0, epochs=0, eval_every=1,
    )  # fmt: skip
    history.train_seconds += probe.seconds
    return finish_run(run, history, logits_of, images, data)
