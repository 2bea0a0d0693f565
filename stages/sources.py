"""What can be published: whatever `evaluate.py --pretrained_pth` reads, with the data that show what it is worth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.frozen_features import network_features
from evaluation.measure import SplitLogits, evaluate_test
from evaluation.prediction_sets.record import KEY
from evaluation.run_rows import read_run
from losses.los import ONE_HOT
from runs.checkpoint import FORMAT, Checkpoint, load_checkpoint, with_backbone
from runs.run_record import describe
from runs.session import LoadedModel
from runs.shards import SHARD_MIB
from settings.command_line import parse_command
from settings.fields import EVALUATE, STAGE1
from settings.resolve import Command
from stages.checkpoints import adopt_checkpoint, refuse_without_classifier, report_unfinished
from stages.data import refuse_other_images
from stages.session import load_model, settle_execution
from utils.arguments import CommandParser


@dataclass(frozen=True)
class Source:
    """A checkpoint to publish: read from `path`, a run folder or a file; with the metrics of a finished run.

    `checkpoint` is one of this project's. One of another code base has been given a configuration: that of a stage 1 of
    no epochs, whose data and network are those that the command line named.
    """

    path: Path
    checkpoint: Checkpoint
    metrics: dict[str, Any] | None

    @property
    def stage(self) -> str:
        """The stage that the checkpoint is of."""
        return self.checkpoint.config["stage"]


def make_parser(name: str, description: str | None, flags: str = "") -> CommandParser:
    """Make the parser of the tool `name`: what to publish, where to write it, in shards of which size.

    `flags` are those of the tool's own, as they stand in the usage line. A wrong command line is a UserError.
    """
    command = f"python -m tools.{name}"
    usage = f"{command} RUN_OR_CHECKPOINT FILE.safetensors {flags}[--part_mib X] [flags of evaluate.py]"
    parser = CommandParser(command, description, f"usage: {usage}", usage=usage)
    parser.add_argument("source", type=Path, help="folder of a finished run, or a checkpoint file")
    parser.add_argument("file", type=Path, help="where to write, ending in .safetensors")
    help_text = f"MiB a file holds at most [{SHARD_MIB:g}]"
    parser.add_argument("--part_mib", type=float, default=SHARD_MIB, metavar="X", help=help_text)
    return parser


def open_source(path: Path, flags: Sequence[str]) -> Source:
    """Read a run folder, which must be finished, or a checkpoint file of any kind that `evaluate.py` reads.

    `flags` are those of `evaluate.py`: data set and network of a checkpoint that does not name them. Raises UserError
    for a run that is not finished, and for a file that cannot be read or does not fit.
    """
    metrics = read_run(path)[0] if path.is_dir() else None
    file = path / "last.pth" if path.is_dir() else path
    command = parse_command(EVALUATE, "", [*flags, "--pretrained_pth", str(file)])
    checkpoint = load_checkpoint(file, command.settings.trust_pickle, command.settings.ema)
    refuse_without_classifier(checkpoint)
    if checkpoint.content is None:
        checkpoint = with_configuration(checkpoint, command)
    report_unfinished(checkpoint)
    return Source(path, checkpoint, metrics)


def with_configuration(checkpoint: Checkpoint, command: Command) -> Checkpoint:
    """Return a checkpoint of another code base as one of this project's, on the data and network of a command."""
    loaded = load_full_precision(checkpoint, command)
    untrained = replace(command, script=STAGE1).settled(epochs=0, cur_stage="stage1")
    config = describe(replace(loaded, command=untrained, checkpoint=None), ONE_HOT)
    config["source"] = {"file": checkpoint.path.name, "sha256": checkpoint.sha256, "kind": checkpoint.kind}
    state = {key: value.detach().cpu() for key, value in loaded.model.state_dict().items()}
    content = {"format": FORMAT, "stage": "stage1", "epoch": 0, "model": state, "config": config}
    return replace(checkpoint, state=state, content=content)


def load_full_precision(checkpoint: Checkpoint, command: Command) -> LoadedModel:
    """Load the network of a checkpoint, on the device, with the data that it learned from, to compute in fp32.

    Raises UserError where the data are not there or are others.
    """
    command = command.replace(amp="off")
    complete = with_backbone(checkpoint)
    loaded = load_model(command, settle_execution(command), lambda c: (adopt_checkpoint(c, complete), complete))
    refuse_other_images(complete, loaded.data)
    loaded.execution.place(loaded.model)
    return loaded


def look_at(checkpoint: Checkpoint, flags: Sequence[str]) -> LoadedModel:
    """Load a checkpoint of this project as `evaluate.py` with these flags does; its data are where its run had them."""
    where = ["--data_dir", str(checkpoint.settings()["data_dir"])] if "--data_dir" not in flags else []
    return load_full_precision(checkpoint, parse_command(EVALUATE, "", [*flags, *where]))


def accuracy_of(loaded: LoadedModel) -> dict[str, float | None]:
    """Return the accuracy over all classes plain and flip-averaged, None where there is no flip."""
    logits_of = SplitLogits(network_features(loaded), loaded.model.fc)
    return accuracies(evaluate_test(logits_of, loaded.images, loaded.data))


def accuracies(record: dict[str, Any]) -> dict[str, float | None]:
    """Return the accuracy over all classes of each way of testing, None where there is no flip."""
    return {way: record[way] and record[way]["all"] for way in ("plain", "flip")}


def header_of(source: Source) -> dict[str, Any]:
    """Return what a released file says of itself: a checkpoint of this project but for its tensors."""
    checkpoint, metrics = source.checkpoint, source.metrics
    assert checkpoint.content is not None
    kept = ("temperature", "temperature_source", KEY, "last")  # the report's calibration and accuracy
    header = {
        "format": FORMAT,
        "stage": source.stage,
        "epoch": checkpoint.epoch,
        "config": checkpoint.config,
        "run_sha256": checkpoint.sha256,
        **{key: checkpoint.content[key] for key in kept if checkpoint.content.get(key) is not None},
    }
    return header if metrics is None else {**header, "last": accuracies(metrics["last"])}


def describe_source(source: Source) -> dict[str, Any]:
    """Return what a card says of the run or the file that something was made from."""
    config, metrics = source.checkpoint.config, source.metrics
    settings = config["settings"]
    card: dict[str, Any] = {"run_sha256": source.checkpoint.sha256}
    if metrics is not None:
        known = ("dataset", "imb_type", "imb_ratio", "subset", "network", "width", "stage")
        card |= {key: metrics[key] for key in (*known, "method", "seed", "stage1", "train")}
        card["last"] = accuracies(metrics["last"])
    else:
        card |= {key: settings[key] for key in ("dataset", "imb_type", "imb_ratio", "network", "width")}
        card |= {"subset": config["subset"], "stage": source.stage, "method": config["method"]}
        card |= {"seed": settings["seed"], "stage1": config["stage1"], "source": config.get("source")}
    return {
        **card,
        "images": config.get("images"),
        "command": config["command"],
        "environment": config["environment"],
        "license": "MIT",
    }
