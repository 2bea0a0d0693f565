"""What the three scripts do alike before their work begins: choose a device, load the data, say what will run."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from datasets import ON_DISK, load_dataset
from datasets.decode import decoder_reason
from datasets.device import DeviceImages
from datasets.features import DeviceFeatures, features_data, holds_features
from datasets.listed import ListFiles, with_splits, without_rows
from datasets.lists import ListedSplit, shown
from datasets.long_tail import LongTailedData, Profile
from datasets.streamed import StreamedImages, find_unreadable
from models import build_model
from models.identity import GivenFeatures
from models.network import Network
from models.torchvision_networks import check_image_size
from utils.checkpoint import Checkpoint, load_checkpoint, with_backbone
from utils.config import FIELDS, Command, Settings, report_unused
from utils.distributed import connect, from_main, is_main, launch_of, process_count
from utils.engine import predict
from utils.errors import UserError
from utils.evaluation import Images
from utils.execution import Execution, choose_execution
from utils.metrics import shot_groups
from utils.retraining import attach_head
from utils.runs import find_run, image_sizes

DATA_FLAGS = ("imb_ratio", "imb_type", "subset", "subset_seed", "holdout")
# What a checkpoint of ours settles, where the command line does not say it.
FROM_CHECKPOINT = ("dataset", *DATA_FLAGS, "network", "width")
# The same, with what they were before they became settings.
SINCE_THEN = {"stem": "cifar", "image_size": None, "resize": None}
# Where images on disk are.
PLACES = ("data_dir", "train_list", "val_list", "test_list", "image_root")
# What stage 2 can do with the features of images as they are, and nothing else.
ON_FEATURES = {"protocol": "honest", "bn_mode": "eval", "views": "plain"}


def settle_execution(command: Command) -> Execution:
    """Choose device, precision and compilation, and join the other processes, where torchrun started many.

    Says which of the flags given have no effect there. Raises UserError for more processes than GPUs.
    """
    settings = command.settings
    launch = launch_of()
    if launch.count > 1 and command.given.get("seed", 0) is None:
        raise UserError("--seed None draws a seed in each of the processes: give them a number")
    # Only stage 1 runs a network often enough to repay compiling it.
    compile_mode = settings.compile if command.script in FIELDS["compile"].metadata["used_by"] else "off"
    if launch.count > 1 and compile_mode == "auto":
        compile_mode = "off"  # the collectives of synchronised batch norm would break the graph at every layer
    on_disk = settings.dataset in ON_DISK and settings.features is None
    threads = None if on_disk else settings.workers
    gpu = settings.gpu if launch.count == 1 else launch.local_rank
    execution = choose_execution(
        settings.device, gpu, settings.amp, compile_mode, threads, launch.local_count,
        deterministic=settings.deterministic,
    )  # fmt: skip
    on_cuda = execution.device.type == "cuda"
    idle = {"workers": on_cuda and not on_disk, "gpu": not on_cuda or launch.count > 1}
    for name, has_none in idle.items():
        report_unused(
            command.script, [f"--{name}"] if has_none and name in command.given else [], f" on {execution.device.type}"
        )
    connect(launch, execution.device)
    return execution


def loader_processes(settings: Settings, execution: Execution) -> int:
    """Return how many processes read images from disk: the cores of this process's share of the machine, at most 16; on
    a CPU, where the network needs the cores, 2."""
    if settings.workers is not None:
        return settings.workers
    cores = len(os.sched_getaffinity(0)) // launch_of().local_count
    return min(max(cores, 1), 2 if execution.device.type == "cpu" else 16)


def stage1_seed(settings: Settings) -> int:
    """Return the seed of the stage-1 run that stage 2 uses."""
    return settings.seed if settings.stage1_seed is None else settings.stage1_seed


def load_data(settings: Settings, holdout_seed: int, checkpoint: Checkpoint | None = None) -> LongTailedData:
    """Load the data set that the settings describe; `holdout_seed` is the seed of stage 1.

    Where a `checkpoint` holds the features of its images these are the data set. Raises UserError where `--num_class`
    does not fit it.
    """
    if checkpoint is not None and checkpoint.features is not None:
        data = load_features(checkpoint)
    else:
        profile = Profile(**{name: getattr(settings, name) for name in DATA_FLAGS}, holdout_seed=holdout_seed)
        files = ListFiles(settings.train_list, settings.val_list, settings.test_list, settings.image_root)
        data = load_dataset(settings.dataset, profile, settings.data_dir, files)
        if settings.skip_bad > 0:
            data = from_main(without_bad(data, settings) if is_main() else data)
    if settings.num_class is not None and settings.num_class != data.num_classes:
        raise UserError(
            f"--num_class {settings.num_class} does not fit {data.name}, which has {data.num_classes} classes; "
            "leave it out"
        )
    return data


def without_bad(data: LongTailedData, settings: Settings) -> LongTailedData:
    """Return a data set without the images that cannot be read, and list these.

    Raises UserError where they are more than `--skip_bad`, and where a class loses its last image.
    """
    workers = len(os.sched_getaffinity(0)) if settings.workers is None else settings.workers
    kept, left = [], settings.skip_bad
    for name, split in (("training", data.train), ("held-out", data.holdout), ("test", data.test)):
        assert isinstance(split, ListedSplit)
        bad = find_unreadable(split, workers, left)
        for _, reason in bad:
            print(f"skipped, of the {name} images: {shown(reason)}")
        left -= len(bad)
        if left < 0:
            raise UserError(
                f"more than --skip_bad {settings.skip_bad} images cannot be read, the last one: {bad[-1][1]}"
            )
        kept.append(without_rows(split, [row for row, _ in bad]))
    print(f"{settings.skip_bad - left} images skipped", flush=True)
    return data if left == settings.skip_bad else with_splits(data, *kept)


def load_features(checkpoint: Checkpoint) -> LongTailedData:
    """Return the features that a checkpoint holds as a data set; a UserError says what is wrong with them."""
    assert checkpoint.content is not None and checkpoint.features is not None
    names, mirror = checkpoint.content["class_names"], bool(checkpoint.content["augmentation"].get("mirror"))
    config = checkpoint.config
    try:
        data = features_data(config["settings"]["dataset"], checkpoint.features, names, mirror, config["subset"])
        if data.class_counts.tolist() != config["class_counts"]:
            raise UserError("'train_labels' are not as many of each class as its configuration says")
    except UserError as error:
        raise UserError(f"{checkpoint.path} ({checkpoint.kind}): {error}") from error
    return data


def refuse_other_images(checkpoint: Checkpoint, data: LongTailedData, *, warn: bool = False) -> None:
    """Raise UserError where a checkpoint of ours learned from other images than those of `data`, or `warn` of it.

    Stage 2 would re-train on images that stage 1 has not seen; a report on the test images is still right. With classes
    of other names, as of another folder, labels mean something else, and the report would be wrong: that is refused.
    """
    subset = checkpoint.config.get("subset", data.subset)
    if subset == data.subset:
        return
    refuse_other_classes(checkpoint, data)
    text = f"{checkpoint.path} learned from other training images than the ones here: their sha256 differ"
    if checkpoint.settings().get("skip_bad"):
        text += f" (it was trained with --skip_bad {checkpoint.settings()['skip_bad']})"
    if not warn:
        raise UserError(f"{text}; train stage 1 on these, or use the copy of the data that it was trained on")
    print(f"warning: {text}; only the numbers on training images are affected", file=sys.stderr)


def refuse_other_classes(checkpoint: Checkpoint, data: LongTailedData) -> None:
    """Raise UserError where a checkpoint of ours has as many classes as `data` by other names; numbers are no names."""
    learned, unnamed = checkpoint.config.get("class_names"), [str(label) for label in range(data.num_classes)]
    if learned is None or len(learned) != data.num_classes or unnamed in (learned, data.class_names):
        return
    for label, (there, here) in enumerate(zip(learned, data.class_names, strict=True)):
        if there != here:
            raise UserError(
                f"{checkpoint.path} learned other classes than the ones here: class {label} is '{shown(there)}' there "
                f"and '{shown(here)}' here; name the data that it was trained on"
            )


def adopt_checkpoint(command: Command, checkpoint: Checkpoint) -> Command:
    """Take data set and network from a checkpoint of ours; a flag given that says otherwise is refused."""
    if checkpoint.content is None:
        return command
    trained = {**SINCE_THEN, **checkpoint.settings()}
    known = (*FROM_CHECKPOINT, *SINCE_THEN, "stage1_seed")
    lacking = [name for name in (*known, "seed", "epochs") if name not in trained]
    if lacking:
        raise UserError(f"{checkpoint.path} does not say its {', '.join(lacking)}: another version wrote it")
    if trained["stage1_seed"] is None:
        trained = {**trained, "stage1_seed": trained["seed"]}
    if trained["dataset"] != command.settings.dataset and "dataset" not in command.given:
        command = command.for_dataset(trained["dataset"])
        if trained["dataset"] in ON_DISK:  # anyone's own files: where they were, unless the command says otherwise
            where = {name: trained.get(name) for name in PLACES if name not in command.given and name in trained}
            command = command.replace(**where)
    for name in known:
        asked = getattr(command.settings, name)
        if name in command.given and asked != trained[name]:
            raise UserError(
                f"{checkpoint.path} was trained with --{name} {trained[name]}, not {asked}; leave the flag out "
                "or name another checkpoint"
            )
    return command.replace(**{name: trained[name] for name in known})


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
    checkpoint = load_checkpoint(path, settings.trust_pickle)
    stage = checkpoint.config.get("stage", "stage1")
    if stage != "stage1":
        raise UserError(f"{path} is a {stage} checkpoint; stage 2 starts from one of stage 1")
    checkpoint = with_backbone(checkpoint)
    if not checkpoint.state:
        raise UserError(f"{path} holds features and no classifier; with --features {path} one is trained first")
    command = adopt_checkpoint(command, checkpoint)
    if path.stem in ("last", "best"):
        command = command.replace(start=path.stem)
    if checkpoint.features is not None:
        command = settle_features(command, checkpoint)
    epochs = checkpoint.settings().get("epochs")
    if checkpoint.epoch != epochs and not (path.parent / "metrics.json").exists():
        print(f"warning: {path} is of epoch {checkpoint.epoch} of {epochs}: stage 1 is not finished", file=sys.stderr)
    return command, checkpoint


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
        looked_up = ("cur_stage", "method", "label_smooth", "seed", "stage1_seed", "out")
        report_unused(
            command.script, [f"--{name}" for name in looked_up if name in command.given], " with --pretrained_pth"
        )
    paths = checkpoint_files(path)
    checkpoints = {name: with_backbone(load_checkpoint(file, settings.trust_pickle)) for name, file in paths.items()}
    first = next(iter(checkpoints.values()))
    report_idle_folder(command, first)
    return adopt_report(command, first), checkpoints


def checkpoint_files(path: Path) -> dict[str, Path]:
    """Return, by name, last and best of a run folder, or the one file."""
    if not path.is_dir():
        return {path.stem: path}
    in_folder = {name: path / f"{name}.pth" for name in ("last", "best")}
    return {name: file for name, file in in_folder.items() if name == "last" or file.exists()}


def adopt_report(command: Command, checkpoint: Checkpoint) -> Command:
    """Take data set, network and, unless it was given, the protocol from the checkpoint that is reported on."""
    command = adopt_checkpoint(command, checkpoint)
    if "protocol" not in command.given:
        command = command.replace(protocol=checkpoint.settings().get("protocol", command.settings.protocol))
    return command


def device_images(data: LongTailedData, execution: Execution, settings: Settings, augment: str = "crop") -> Images:
    """Put the three splits on the device, or make ready to stream them to it.

    `augment` is what a training image undergoes (`datasets.autoaugment`).
    """
    splits = {"train": data.train, "holdout": data.holdout, "test": data.test}
    if holds_features(data):
        return {name: DeviceFeatures(split, execution.device) for name, split in splits.items()}
    kinds = {"train": augment}
    if isinstance(data.train, ListedSplit):
        size, resize = image_sizes(settings, data)
        workers = loader_processes(settings, execution)
        return {
            name: StreamedImages(
                split, data.augmentation, execution.device, size=size, resize=resize,
                augment=kinds.get(name, "crop"), workers=workers,
            )
            for name, split in splits.items()
            if isinstance(split, ListedSplit)
        }  # fmt: skip
    return {
        name: DeviceImages(split, data.augmentation, execution.device, kinds.get(name, "crop"))
        for name, split in splits.items()
    }


def build_network(settings: Settings, data: LongTailedData) -> Network:
    """Build the network of a run, without its backbone where the data are features."""
    if holds_features(data):
        return GivenFeatures(data.train.images.shape[2], data.num_classes)
    model = build_model(settings.network, data.num_classes, settings.stem, settings.width)
    if isinstance(data.train, ListedSplit):
        check_image_size(model, image_sizes(settings, data)[0])
    return model


@dataclass(frozen=True)
class Subject:
    """A network to be looked at and the images to show it, both on the device."""

    model: Network
    images: Images
    execution: Execution

    def features_of(self, split: str, mirrored: bool) -> Tensor:
        """Return the features (N, d) of a split's images as they are, or mirrored."""
        return predict(self.model.eval().features, self.images[split], self.execution, mirrored=mirrored)


def open_subject(settings: Settings, checkpoint: Checkpoint, data: LongTailedData, execution: Execution) -> Subject:
    """Build the network that a checkpoint's weights are for, with its kind of classifier, and place it and the data."""
    images = device_images(data, execution, settings)
    model = build_network(settings, data)
    if checkpoint.config.get("method"):
        attach_head(model, checkpoint.config["method"])
    execution.place(model)
    return Subject(model, images, execution)


def announce(command: Command, data: LongTailedData, execution: Execution, folder: object) -> None:
    """Print what is about to run: the data with its shots and identity, the arithmetic, the folder."""
    settings = command.settings
    groups = ", ".join(f"{int(members.sum())} {name}" for name, members in shot_groups(data.class_counts).items())
    held_out = f", {len(data.holdout)} held out" if len(data.holdout) else ""
    profile = f"{settings.imb_type} profile, imbalance factor {settings.imb_ratio or data.imbalance_factor:g}"
    print(f"data: {data.name}, {profile}: {len(data.train)} training images{held_out}")
    print(
        f"      {data.num_classes} classes of {data.class_counts.max()} to {data.class_counts.min()} images ({groups})"
    )
    whole = "all images" if settings.imb_ratio is None else f"subset {settings.subset}"
    print(
        f"      {whole}, index sha256 {data.subset['index_sha256'][:16]}, content sha256 "
        f"{data.subset['content_sha256'][:16]}"
    )
    print("\n".join(execution.reasons))
    if isinstance(data.train, ListedSplit):
        size, resize = image_sizes(settings, data)
        print(
            f"images: read from {shown(str(data.train.root))} by {loader_processes(settings, execution)} processes, "
            f"crops of {size} pixels (evaluation: shorter side {resize}), {decoder_reason()}"
        )
    if process_count() > 1:
        print(f"processes: {process_count()}, which share every batch of {settings.batch_size}")
    print(
        f"protocol: {settings.protocol}; network: {settings.network}; seed: {settings.seed}; run folder: {folder}",
        flush=True,
    )
