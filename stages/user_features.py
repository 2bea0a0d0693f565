"""`--features FILE`: the two stages and their report on features that any model made, without images and network.

A file with a classifier is a finished stage 1. For one without, stage 1 is a linear classifier trained on the features
with cross-entropy (`methods.linear_probe`), and leaves a run folder like any other; stage 2 makes it where it is
missing.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from engine.epoch import predict
from losses.los import ONE_HOT
from runs.checkpoint import Checkpoint, joined, load_checkpoint
from runs.feature_files import OWN_FEATURES, read_features
from runs.run_folder import open_run, read_metrics
from runs.run_names import find_run, seed_folder, stage1_folder, stage1_tags
from runs.run_record import describe
from settings.command_line import parse_command
from settings.fields import FLAGS, STAGE1, TRAINING
from settings.resolve import Command
from stages.checkpoints import (
    FROM_FEATURES,
    adopt_checkpoint,
    adopt_report,
    checkpoint_files,
    find_checkpoints,
    find_stage1,
    name_backbone,
    settle_features,
)
from stages.data import device_images, load_data, stage1_seed
from stages.linear_probe_start import fit_classifier, train_on_weights
from stages.session import announce, build_network, settle_execution
from utils.distributed import from_main, is_main, wait_for_all
from utils.errors import UserError
from utils.files import read_json, sha256_file


def open_features(command: Command) -> tuple[Command, Checkpoint]:
    """Read the file that `--features` names; return the command with what the file settles, and the file."""
    path = Path(str(command.settings.features))
    digest, content = read_features(path)
    own = Checkpoint(path, digest, OWN_FEATURES, content["model"], content)
    known = own.settings()
    return command.replace(**{name: known[name] for name in FROM_FEATURES}), own


def find_start(command: Command) -> tuple[Command, Checkpoint]:
    """Read the stage 1 that stage 2 starts from; with `--features` that of the file, trained first if it is missing.

    With `--weights` it is the stage 1 that was trained from them or, where there is none, the one of no epochs.
    """
    if command.settings.weights is not None:
        return find_on_weights(command)
    if command.settings.features is None:
        return find_stage1(command)
    command, own = open_features(command)
    command = settle_features(command, own)
    checkpoint = own if own.state else find_classifier(command, own)
    return adopt_checkpoint(command, checkpoint), checkpoint


def find_on_weights(command: Command) -> tuple[Command, Checkpoint]:
    """Read the stage 1 on the `--weights` of a stage 2: one that was trained or, after running it, the probe.

    Raises UserError where several fit, and where the one that was trained started from another file of that name.
    """
    if "pretrained_pth" in command.given:
        raise UserError("--weights and --pretrained_pth both name what stage 2 starts from; leave one out")
    probe = probe_command(command)
    if not is_trained(probe):
        train_on_weights(probe)
        wait_for_all()  # of many processes the first writes the run that all read next
        print()
        return find_stage1(command.replace(pretrained_pth=str(stage1_folder(probe))))
    command, checkpoint = find_stage1(command)
    file, started = Path(str(command.settings.weights)), (checkpoint.config.get("weights") or {}).get("sha256")
    if file.is_file() and sha256_file(file) != started:
        raise UserError(
            f"{checkpoint.path.parent} started from another file than --weights {file} is now; name the run with "
            "--pretrained_pth, or another --out"
        )
    return command, checkpoint


def probe_command(command: Command) -> Command:
    """Return the command of the stage 1 of no epochs on the `--weights` of a stage 2."""
    # Of what both stages read, and a report does not, the flags given are stage 2's.
    of_stage2 = ("seed", "label_smooth", *(name for name, flag in FLAGS.items() if flag.read_by == TRAINING))
    flags = flags_of(command, STAGE1, without=of_stage2)
    seed = stage1_seed(command.settings)
    return parse_command(STAGE1, "", [*flags, "--epochs", "0", "--seed", str(seed), "--reuse"])


def is_trained(probe: Command) -> bool:
    """Tell whether there is a stage-1 run of some epochs that is otherwise described as a probe is."""
    wanted = set(stage1_tags(probe)) - {"epochs0"}
    configs = map(read_json, seed_folder(probe.settings, probe.settings.seed).glob("stage1*/config.json"))
    return any(config["settings"]["epochs"] > 0 and wanted <= set(config["tags"]) for config in configs)


def flags_of(command: Command, script: str, without: tuple[str, ...] = ()) -> list[str]:
    """Return the flags given to a command that another script reads too."""
    words = []
    for name, value in command.given.items():
        if script in FLAGS[name].read_by and name not in (*without, "cur_stage"):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


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
    runs = seed_folder(command.settings, seed).glob("stage1*/config.json")
    if not from_main(any(runs) if is_main() else False):  # a slower process would see what the first has begun
        names = ("features", "out", "device", "gpu", "workers")
        flags = [word for name in names if name in command.given for word in (f"--{name}", str(command.given[name]))]
        print(f"{own.path} has no classifier: training one on it first (main_stage1.py --features)", flush=True)
        train_classifier(parse_command(STAGE1, "", [*flags, "--seed", str(seed)]), own)
        wait_for_all()  # of many processes the first writes the run that all read next
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
    known = {**{name: own.settings()[name] for name in FROM_FEATURES}, "epochs": 0}
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

    images = device_images(data, execution, settings)
    model = build_network(settings, data)
    execution.place(model)

    def features_of(split: str, mirrored: bool) -> Tensor:
        return predict(model.eval().features, images[split], execution, mirrored=mirrored)

    return fit_classifier(run, model, features_of, images, data)
