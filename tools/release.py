"""Make a small file to publish from a finished run: safetensors, and a card that says what it is.

    python -m tools.release RUN_FOLDER FILE.safetensors
    python -m tools.release STAGE2_RUN_FOLDER CLASSIFIER.safetensors --backbone FILE.safetensors

Of a stage 1 the file holds the last epoch's weights in half precision; of a stage 2 the classifier alone, in full
precision, and the name of the released stage-1 file in the same folder that has its backbone. Both hold the run's
configuration, so that `evaluate.py --pretrained_pth FILE` and `main_stage2.py --pretrained_pth FILE` need no other
flag. A file of more than `--part_mib` MiB is written in parts and still named as one (`runs.shards`). The card, FILE
with the ending .json, has the command, the data, the accuracy of the run, the accuracy `measured` with what is
published, and the sha256 of every part.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from datasets.long_tail import LongTailedData
from evaluation.measure import LogitsOf, evaluate_test
from evaluation.run_rows import read_run
from runs.checkpoint import CLASSIFIER, FORMAT, Checkpoint, load_checkpoint, load_weights, with_backbone
from runs.shards import PART_MIB, card_of, describe_files, refuse_present, write_safetensors
from settings.command_line import parse_command
from settings.fields import EVALUATE
from stages.checkpoints import adopt_checkpoint
from stages.data import load_data, refuse_other_images, stage1_seed
from stages.session import Subject, open_subject, settle_execution
from utils.command import run_command
from utils.errors import UserError
from utils.files import read_json, write_json

Metrics = dict[str, Any]
Config = dict[str, Any]


def release_stage1(run: Path, file: Path, part_mib: float = PART_MIB) -> list[Path]:
    """Write the weights of a finished stage 1 in half precision, and their card; return what was written."""
    refuse_present(file)
    metrics, config = read_run(run)
    checkpoint = load_checkpoint(run / "last.pth")
    state = {key: value.half() if value.is_floating_point() else value for key, value in checkpoint.state.items()}
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{key} of {run} has numbers that half precision cannot hold")
    header = header_of(checkpoint, metrics)
    measured = accuracy_of(*look_at(Checkpoint(file, "", checkpoint.kind, state, {**header, "model": state})))
    written = write_safetensors(file, state, header, part_mib)
    card = {
        **describe_files(file),
        "precision": "float16",
        "measured": measured,
        **describe_run(checkpoint, metrics, config),
    }
    write_json(card_of(file), card)
    return [*written, card_of(file)]


def release_classifier(run: Path, file: Path, backbone: Path, part_mib: float = PART_MIB) -> list[Path]:
    """Write the classifier of a finished stage 2, and its card; return what was written.

    `backbone` is the released stage 1, or the features, that it belongs to: see `refuse_other_backbone`.
    """
    refuse_present(file)
    metrics, config = read_run(run)
    checkpoint = load_checkpoint(run / "last.pth")
    base = load_checkpoint(backbone)
    refuse_other_backbone(run, config, file, base)
    state = {key: value.float() for key, value in checkpoint.state.items() if key.startswith(CLASSIFIER)}
    named = {"file": base.path.name, "sha256": base.sha256}
    header = header_of(checkpoint, metrics)
    header["config"] = {**checkpoint.config, "backbone": named}
    # What will be read back is measured before anything is written: the data may not be there.
    classifier = with_backbone(Checkpoint(file, "", checkpoint.kind, state, {**header, "model": state}))
    measured = accuracy_of(*look_at(classifier))
    written = write_safetensors(file, state, header, part_mib)
    card = {
        **describe_files(file),
        "precision": "float32",
        "backbone": named,
        "measured": measured,
        **describe_run(checkpoint, metrics, config),
    }
    write_json(card_of(file), card)
    return [*written, card_of(file)]


def refuse_other_backbone(run: Path, config: Config, file: Path, base: Checkpoint) -> None:
    """Raise UserError unless `base` is the released stage 1 whose frozen backbone a stage-2 run used."""
    if config["settings"]["bn_mode"] != "eval":
        raise UserError(f"{run} moved the batch statistics of its backbone (--bn_mode train): it has no shared one")
    if base.path.parent.resolve() != file.parent.resolve():
        raise UserError(f"{base.path} must lie in the folder of {file}, where it will be looked for")
    if base.config.get("stage") != "stage1":
        raise UserError(f"{base.path} is no stage 1 that was written by this project")
    there, here = base.settings(), config["settings"]
    differing = [f"--{name}" for name in ("dataset", "network", "width") if there.get(name) != here.get(name)]
    if base.config.get("subset") != config["subset"]:
        differing.append("training subset")
    if differing:
        raise UserError(f"{base.path} is not the stage 1 of {run}: they differ in {', '.join(differing)}")
    # The run may have started from this file, from the run that the file was made from, from features of that run, or
    # from a classifier that was trained on this file of features.
    named = config.get("backbone", {})
    started = {config["stage1"]["sha256"], named.get("run_sha256"), named.get("sha256")}
    if not started & ({base.sha256, made_from(base)} - {None}):
        raise UserError(
            f"{base.path} is not the stage 1 of {run}: that one's sha256 is {config['stage1']['sha256'][:16]}..."
        )


def made_from(base: Checkpoint) -> str | None:
    """Return the sha256 of the run's checkpoint that a released file was made from, as its header or its card says."""
    assert base.content is not None
    if "run_sha256" in base.content:
        return base.content["run_sha256"]
    card = card_of(base.path)
    return read_json(card).get("run_sha256") if card.is_file() else None


def header_of(checkpoint: Checkpoint, metrics: Metrics) -> dict[str, Any]:
    """Return what a released file says of itself: a checkpoint of ours but for its tensors."""
    assert checkpoint.content is not None
    kept = ("temperature", "temperature_source")  # the report's calibration
    return {
        "format": FORMAT,
        "stage": checkpoint.config["stage"],
        "epoch": checkpoint.epoch,
        "config": checkpoint.config,
        "run_sha256": checkpoint.sha256,
        "last": accuracies(metrics["last"]),
        **{key: checkpoint.content[key] for key in kept if checkpoint.content.get(key) is not None},
    }


def describe_run(checkpoint: Checkpoint, metrics: Metrics, config: Config) -> dict[str, Any]:
    """Return what a card says of the run that a file was made from."""
    return {
        "run_sha256": checkpoint.sha256,
        **{key: metrics[key] for key in ("dataset", "imb_type", "imb_ratio", "subset", "network", "width", "stage")},
        **{key: metrics[key] for key in ("method", "seed", "stage1", "train")},
        "last": accuracies(metrics["last"]),
        "command": config["command"],
        "environment": config["environment"],
        "license": "MIT",
    }


def accuracies(record: dict[str, Any]) -> dict[str, float | None]:
    """Return the accuracy over all classes of each way of testing, None where there is no flip."""
    return {way: record[way] and record[way]["all"] for way in ("plain", "flip")}


def look_at(checkpoint: Checkpoint, device: str = "auto") -> tuple[Subject, LongTailedData]:
    """Load a checkpoint of ours with the data that it learned from, to compute in full precision.

    The data folder is that of its run. Raises UserError where the data are not there or are others.
    """
    flags = ["--data_dir", str(checkpoint.settings()["data_dir"]), "--device", device, "--amp", "off"]
    command = parse_command(EVALUATE, "", flags)
    execution = settle_execution(command)
    settings = adopt_checkpoint(command, checkpoint).settings
    data = load_data(settings, stage1_seed(settings), checkpoint)
    refuse_other_images(checkpoint, data)
    subject = open_subject(settings, checkpoint, data, execution)
    load_weights(subject.model, checkpoint)
    return subject, data


def accuracy_of(subject: Subject, data: LongTailedData) -> dict[str, float | None]:
    """Return the accuracy over all classes plain and flip-averaged, None where there is no flip."""
    return accuracies(evaluate_test(LogitsOf(subject.features_of, subject.model.fc), subject.images, data))


def refuse(message: str) -> NoReturn:
    raise UserError(
        f"{message}; usage: python -m tools.release RUN_FOLDER FILE.safetensors [--backbone FILE.safetensors]"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.release",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("file", type=Path, help="where to write, ending in .safetensors")
    parser.add_argument("--backbone", type=Path, help="of a stage-2 run: the released file of its stage 1")
    parser.add_argument("--part_mib", type=float, default=PART_MIB, help=f"MiB a file holds at most [{PART_MIB:g}]")
    arguments = parser.parse_args(argv)
    stage = read_run(arguments.run)[1]["stage"]
    if stage == "stage1" and arguments.backbone is not None:
        refuse("--backbone is for a stage-2 run: a stage 1 has its own")
    if stage == "stage2" and arguments.backbone is None:
        refuse(f"{arguments.run} is a stage-2 run, of which the classifier is released: name the file that has its "
               "stage 1 with --backbone")  # fmt: skip
    if stage == "stage1":
        written = release_stage1(arguments.run, arguments.file, arguments.part_mib)
    else:
        written = release_classifier(arguments.run, arguments.file, arguments.backbone, arguments.part_mib)
    print(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    run_command(main)
