"""The checkpoint that a command starts from: found, read, and what it settles."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import ON_DISK
from datasets.decoding.options import BEFORE_OPTIONS, IGNORE
from datasets.identity.content import HOW
from runs.checkpoint import Checkpoint, load_checkpoint, with_backbone
from runs.dependencies import known_identity
from runs.feature_files import USER_FEATURES, read_features
from runs.feature_files.held_out import hold_out
from runs.records import read_config
from runs.run_names import find_run, run_path
from settings.declare import Facet
from settings.fields import FLAGS, with_facet
from settings.resolve import Command, report_unused
from stages.data import stage1_seed
from utils.distributed import is_main
from utils.errors import UserError
from utils.text import tell

# What a file of features settles, and of a checkpoint of ours is always recorded.
FROM_FEATURES = with_facet(Facet.FROM_FEATURES)
# What images undergo: a flag is obeyed beside a checkpoint that says otherwise.
CONSTANTS = with_facet(Facet.CONSTANTS)
# What a checkpoint of ours settles beside, with what it was before it became a setting.
SINCE_THEN = {
    name: FLAGS[name].default
    for name in (
        "stem",
        "image_size",
        "resize",
        "crop_area",
        "test_share",
        "test_seed",
        *CONSTANTS,
        *vars(BEFORE_OPTIONS),
    )
}
# Where images on disk are.
PLACES = with_facet(Facet.PLACE)
# What stage 2 can do with the features of images as they are, and nothing else.
ON_FEATURES = {"protocol": "honest", "bn_mode": "eval", "views": "plain"}


def adopt_checkpoint(command: Command, checkpoint: Checkpoint) -> Command:
    """Take data set and network from a checkpoint of ours; a flag given that says otherwise is refused."""
    if checkpoint.content is None:
        return without_idle_flags(command, command.settings.dataset)
    trained = {**SINCE_THEN, **checkpoint.settings()}
    if trained.get("dataset") in ON_DISK:
        trained = {**trained, **vars(BEFORE_OPTIONS), **checkpoint.settings()}
    command = without_idle_flags(command, trained.get("dataset"))
    given = given_constants(command, checkpoint)
    known = [name for name in with_facet(Facet.FROM_CHECKPOINT) if name not in given]
    lacking = [name for name in (*known, "seed", "epochs") if name not in trained]
    if lacking:
        raise UserError(f"{checkpoint.path} does not say its {', '.join(lacking)}: another version wrote it")
    if trained["stage1_seed"] is None:
        trained = {**trained, "stage1_seed": trained["seed"]}
    if trained["dataset"] != command.settings.dataset and "dataset" not in command.given:
        sizes = {name: trained[name] for name in known if name in with_facet(Facet.ON_DISK)}
        command = command.for_dataset(trained["dataset"], sizes)
        if trained["dataset"] in ON_DISK:  # anyone's own files: where they were, unless the command says otherwise
            where = {name: trained.get(name) for name in PLACES if name not in command.given and name in trained}
            command = command.replace(**where)
    for name in known:
        asked = getattr(command.settings, name)
        if name in command.given and asked != trained[name]:
            had = f"with --{name} {trained[name]}, not {asked}; leave the flag out"
            if trained[name] is None:
                had = f"without --{name}; leave --{name} {asked} out"
            raise UserError(f"{checkpoint.path} was trained {had} or name another checkpoint")
    recorded = known_identity(checkpoint.config)
    if recorded is not None and recorded["how"] in HOW and "identity" not in command.given:
        command = command.replace(identity=recorded["how"])  # what was not worth hashing then is not now
    if trained.get("drop_empty_classes") is True:  # one more class than then may be empty now
        command = command.replace(drop_empty_classes=True)
    command = as_before_options(command, checkpoint.settings(), str(checkpoint.path))
    return command.replace(**{name: trained[name] for name in known})


def without_idle_flags(command: Command, dataset: object) -> Command:
    """Return the command without flags of images on disk where the checkpoint says that its images are in memory."""
    idle = [name for name in with_facet(Facet.ON_DISK) if name in command.given]
    if not idle or dataset in ON_DISK or "dataset" in command.given:
        return command
    report_unused(command.script, [f"--{name}" for name in idle], f" on {dataset}")
    given = {name: value for name, value in command.given.items() if name not in idle}
    usual = {name: getattr(command.defaults, name) for name in idle}
    return replace(command.replace(**usual), given=given)


def as_before_options(command: Command, trained: Mapping[str, Any], name: str) -> Command:
    """Return the command that makes the pixels which a run saw that was begun before there was a choice, and say so.

    `trained` are its settings. What was not recorded is what is meant by default here, so no folder's name has it.
    """
    options = {option: value for option, value in vars(BEFORE_OPTIONS).items() if option not in trained}
    if not options or command.settings.dataset not in ON_DISK:
        return command
    for option, value in options.items():
        if command.given.get(option, value) != value:
            raise UserError(
                f"{name} was begun before there was --{option}: its images were those of --{option} {value}, and are; "
                "leave the flag out, or train anew"
            )
    if command.settings.orientation != IGNORE:
        tell(f"images: photos that are stored turned stay so (--orientation {IGNORE}), as {name} saw them")
    return command.settled(**options)


def as_begun(command: Command) -> Command:
    """Return a command that goes on with a run, or uses it, with the pixels that the run saw, evaluated as often."""
    settings = command.settings
    file = run_path(command) / "config.json"
    if not (settings.resume or settings.reuse) or not file.is_file():
        return command
    began = read_config(file).get("settings", {})
    if settings.eval_every is None and began.get("eval_every") is not None:  # on another device it would be another
        command = command.settled(eval_every=began["eval_every"])
    return as_before_options(command, began, str(file.parent))


def given_constants(command: Command, checkpoint: Checkpoint) -> set[str]:
    """Return which of the constants of images a command line settles, whatever the checkpoint says: what was given, and
    a mean with its deviation. None has a use where the checkpoint holds features."""
    given = set(CONSTANTS) & set(command.given)
    if checkpoint.features is not None:
        report_unused(command.script, [f"--{name}" for name in sorted(given)], " with a file of features")
        return set()
    return given | ({"mean", "std"} if given & {"mean", "std"} else set())


def open_features(command: Command) -> tuple[Command, Checkpoint]:
    """Read the file that `--features` names; return the command with what the file settles, and the file.

    With `--holdout` a share of its training rows are held-out ones.
    """
    path = Path(str(command.settings.features))
    digest, content = read_features(path, mmap=command.settings.mmap)
    if command.settings.holdout:
        try:
            content = hold_out(content, command.settings.holdout, stage1_seed(command.settings))
        except UserError as error:
            raise UserError(f"--features {path}: {error}") from error
    given = Checkpoint(path, digest, USER_FEATURES, content["model"], content)
    known = given.settings()
    return command.replace(**{name: known[name] for name in FROM_FEATURES}), given


def find_stage1(command: Command) -> tuple[Command, Checkpoint]:
    """Read the stage-1 checkpoint that stage 2 starts from; return the command with what the checkpoint settles."""
    settings = command.settings
    if settings.pretrained_pth is None:
        path = find_run(command, "stage1", stage1_seed(settings))
    else:
        path = Path(settings.pretrained_pth)
    if path.is_dir():
        path = path / f"{settings.start}.pth"
    elif "start" in command.given:
        report_unused(command.script, ["--start"], " with a file")
    own = settings.weights is None  # else --ema is of the file that stage 1 starts from
    checkpoint = load_checkpoint(path, settings.trust_pickle, settings.ema and own)
    stage = checkpoint.config.get("stage", "stage1")
    if stage != "stage1":
        raise UserError(f"{path} is a {stage} checkpoint; stage 2 starts from one of stage 1")
    checkpoint = with_backbone(checkpoint, settings.mmap)
    refuse_without_classifier(checkpoint)
    command = adopt_checkpoint(command, checkpoint)
    if path.stem in ("last", "best"):
        command = command.replace(start=path.stem)
    if checkpoint.features is not None:
        command = settle_features(command, checkpoint)
    report_unfinished(checkpoint)
    return command, checkpoint


def refuse_without_classifier(checkpoint: Checkpoint) -> None:
    """Raise UserError for a file that holds features and nothing that was trained on them, with what trains it."""
    if not checkpoint.state:
        path = checkpoint.path
        raise UserError(
            f"{path} holds features and no classifier: main_stage2.py --features {path} trains one, and evaluate.py "
            f"--features {path} --cur_stage stage2 reports on it"
        )


def report_unfinished(checkpoint: Checkpoint) -> None:
    """Warn of a checkpoint whose run is not finished; of many processes the first one does."""
    if (words := checkpoint.unfinished) and is_main():
        tell(f"warning: {words}", file=sys.stderr)


def settle_features(command: Command, checkpoint: Checkpoint) -> Command:
    """Return the command of a stage 2 on features: they are of images as they are, and of the last epoch.

    Raises UserError where a flag asks for more.
    """
    asked = {name: getattr(command.settings, name) for name in ON_FEATURES if name in command.given}
    refused = [f"--{name} {value}" for name, value in asked.items() if value != ON_FEATURES[name]]
    if refused:
        raise UserError(
            f"{checkpoint.path} holds features of un-augmented images, from which {', '.join(refused)} cannot be had; "
            "leave it out, or name the run that they are of, or its weights"
        )
    report_idle_folder(command, checkpoint)
    return command.replace(start="last", **ON_FEATURES)


def report_idle_folder(command: Command, checkpoint: Checkpoint) -> None:
    """Say that `--data_dir` has no effect where no image is read."""
    if checkpoint.features is not None and "data_dir" in command.given:
        report_unused(command.script, ["--data_dir"], " with a file of features")


def name_backbone(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Return what a run in `folder` that holds no backbone records of the file that it was trained from.

    `file` is relative to the folder, so that both can be moved together. `run_sha256` is that of the run's checkpoint
    that the file was made from. Where that checkpoint is itself a classifier alone, the file is what it was trained on.
    """
    assert checkpoint.content is not None
    path, sha256 = checkpoint.path, checkpoint.sha256
    named = checkpoint.config.get("backbone")
    if named is not None:
        path, sha256 = path.parent / named["file"], named["sha256"]
    file = os.path.relpath(path.resolve(), folder.resolve())
    return {"file": file, "sha256": sha256, "run_sha256": checkpoint.content.get("run_sha256")}


def find_checkpoints(command: Command) -> tuple[Command, dict[str, Checkpoint]]:
    """Read what `evaluate.py` reports on: last and best of a run folder, or one file, by name."""
    settings = command.settings
    if settings.pretrained_pth is None:
        path = find_run(command, settings.cur_stage or "stage1", settings.seed)
    else:
        path = Path(settings.pretrained_pth)
        looked_up = [f"--{name}" for name in with_facet(Facet.LOOKUP) if name in command.given]
        report_unused(command.script, looked_up, " with --pretrained_pth")
    paths = checkpoint_files(path)
    ema = settings.ema and settings.pretrained_pth is not None  # else it is part of what the run is found by
    read = {name: load_checkpoint(file, settings.trust_pickle, ema) for name, file in paths.items()}
    checkpoints = {name: with_backbone(checkpoint, settings.mmap) for name, checkpoint in read.items()}
    first = next(iter(checkpoints.values()))
    refuse_without_classifier(first)
    report_unfinished(first)
    report_idle_folder(command, first)
    return adopt_report(command, first), checkpoints


def checkpoint_files(path: Path) -> dict[str, Path]:
    """Return, by name, last and best of a run folder, or the one file."""
    if not path.is_dir():
        return {path.stem: path}
    in_folder = {name: path / f"{name}.pth" for name in ("last", "best")}
    return {name: file for name, file in in_folder.items() if name == "last" or file.exists()}


def adopt_report(command: Command, checkpoint: Checkpoint) -> Command:
    """Take data set, network and, unless they were given, protocol and bounds of the shot groups from the checkpoint
    that is reported on."""
    command, trained = adopt_checkpoint(command, checkpoint), checkpoint.settings()
    own = [name for name in ("protocol", "shots") if name not in command.given and name in trained]
    return command.replace(**{name: trained[name] for name in own})
