"""What the three scripts do alike before their work begins: choose a device, load the data, say what will run."""

from dataclasses import dataclass

from torch import Tensor

from datasets import ON_DISK
from datasets.decode import decoder_reason
from datasets.features import holds_features
from datasets.lists import ListedSplit
from datasets.long_tail import LongTailedData
from engine.epoch import predict
from evaluation.measure import Images
from evaluation.metrics import shot_groups
from methods.plan import attach_head
from models import build_model
from models.given_features import GivenFeatures
from models.network import Network
from models.torchvision_networks import check_image_size
from runs.checkpoint import Checkpoint
from runs.run_record import image_sizes
from settings.fields import FLAGS, Settings
from settings.resolve import Command, report_unused
from stages.data import device_images, loader_processes
from utils.device import Execution, choose_execution
from utils.distributed import connect, launch_of, process_count
from utils.errors import UserError
from utils.text import shown


def settle_execution(command: Command) -> Execution:
    """Choose device, precision and compilation, and join the other processes, where torchrun started many.

    Says which of the flags given have no effect there. Raises UserError for more processes than GPUs.
    """
    settings = command.settings
    launch = launch_of()
    if launch.count > 1 and command.given.get("seed", 0) is None:
        raise UserError("--seed None draws a seed in each of the processes: give them a number")
    # Only stage 1 runs a network often enough to repay compiling it.
    compile_mode = settings.compile if command.script in FLAGS["compile"].read_by else "off"
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
