"""Open what a command works on: its device, its data, its network and, where it trains, its run folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from datasets import ON_DISK
from datasets.features import FileSplit, holds_features
from datasets.image_source import batch_sizes
from datasets.long_tail import LongTailedData
from datasets.on_disk.listed_split import ListedSplit
from engine.data_parallel import with_batch_norm
from evaluation.how_often import epochs_between
from losses import build_loss, loss_parameters
from losses.los import Target, torch_target
from methods.offsets import check_held_out
from methods.plan import Plan, attach_head, build_losses
from models import build_model
from models.given_features import GivenFeatures
from models.network import Network
from models.torchvision_networks import check_image_size, check_single_image
from runs.checkpoint import Checkpoint, load_checkpoint, load_weights, with_backbone
from runs.pretrained_weights import load_pretrained
from runs.run_folder import CONTROL, open_run, saved_or_removed
from runs.run_names import run_path
from runs.run_record import describe
from runs.session import LoadedModel, Session, WeightsFile
from settings.fields import EVALUATE, FLAGS, STAGE1, STAGE2, Settings
from settings.image_sizes import image_sizes
from settings.resolve import Command, report_unused
from settings.stage2_plan import plan_of
from stages.announcement import announce
from stages.checkpoints import as_begun, name_backbone, report_unfinished
from stages.data import (
    device_images,
    grouped_as_asked,
    in_order_of,
    load_data,
    refuse_other_images,
    report_other_constants,
    report_overlaps,
    stage1_seed,
)
from utils.device import Execution, choose_execution
from utils.distributed import connect, launch_of, process_count
from utils.errors import UserError
from utils.text import tell

# How the checkpoint that a command starts from is found; it settles some of the command's settings.
Find = Callable[[Command], tuple[Command, Checkpoint | None]]


def start_anew(command: Command) -> tuple[Command, None]:
    """Start from no checkpoint, with the pixels of the run that the command goes on with, if there is one."""
    return as_begun(command), None


def open_session(command: Command, find: Find = start_anew) -> Session:
    """Open the run that a command describes, from the checkpoint that `find` finds, and say what is about to run.

    Of a run that is finished, and is to be used as it is, nothing is said (`session.run.finished`). Raises UserError
    for whatever does not fit together, before a folder is made, and for a folder that cannot be used.
    """
    asked = load_model(command, settle_execution(command), find)
    loaded = with_evaluations(asked)
    settings, checkpoint = loaded.settings, loaded.checkpoint
    refuse_small_batches(loaded)
    plan = plan_of(settings, loaded.data.num_classes) if loaded.command.script == STAGE2 else None
    if plan is not None and plan.needs_held_out:
        check_held_out(plan.method, loaded.images["holdout"].labels, loaded.data.num_classes)
    if plan is not None and plan.recipe.compares:
        check_comparable(loaded)
    target, loss = objective(loaded, plan)
    start = checkpoint if loaded.command.script == STAGE2 else None
    folder = run_path(loaded.command, start)
    config = describe(loaded, target)
    if checkpoint is not None and checkpoint.features is not None:
        config["backbone"] = name_backbone(checkpoint, folder)
    how = {name: getattr(settings, name) for name in CONTROL}
    run = open_run(folder, config, **how, given=loaded.command.given)
    session = Session(**vars(loaded), target=target, loss=loss, run=run, plan=plan)
    if not run.finished:
        with saved_or_removed(run):
            begin(session, by_rule=asked.settings.eval_every is None)
    return session


def begin(session: Session, *, by_rule: bool) -> None:
    """Say what a session is about to run, how often it is evaluated where that is `by_rule`, and put its network and
    loss on the device."""
    settings = session.settings
    announce(session, session.run.folder)
    if by_rule and settings.eval_every != 1:
        tell(
            f"evaluated every {settings.eval_every} epochs and after the last, which takes a tenth of the training "
            "(the rule on a CPU); --eval_every 1: every epoch"
        )
    if session.plan is None and settings.epochs > 0:
        with_batch_norm(session.model, session.execution, settings.sync_bn == "on")
    session.execution.place(session.model)
    session.loss.to(session.execution.device)


def with_evaluations(loaded: LoadedModel) -> LoadedModel:
    """Return a loaded model with the epochs between the evaluations of its training, where the command left them open:
    by the rule of `evaluation.how_often` on a CPU in the honest protocol, else one."""
    settings, data, every = loaded.settings, loaded.data, 1
    if settings.eval_every is not None:
        return loaded
    if loaded.execution.device.type == "cpu" and settings.protocol == "honest":
        tested = len(data.test) * (2 if data.augmentation.mirror else 1)
        every = epochs_between(len(data.train), tested, settings.epochs)
    return replace(loaded, command=loaded.command.settled(eval_every=every))


def check_comparable(loaded: LoadedModel) -> None:
    """Raise UserError where methods would be compared on images that the network has learned from."""
    settings = loaded.settings
    made_elsewhere = settings.features is not None or loaded.checkpoint_epochs == 0
    if len(loaded.data.holdout) == 0 and not made_elsewhere:
        raise UserError(
            f"--method {settings.method} compares on held-out images, and the network has learned from all of these; "
            "train stage 1 with --holdout 0.2"
        )


def open_model(command: Command, execution: Execution, checkpoint: Checkpoint, folder: Path) -> LoadedModel:
    """Open the network of a checkpoint, with its kind of classifier, on the images that a command names, and say so.

    `folder` is where the checkpoint belongs. Raises UserError for whatever does not fit together.
    """
    loaded = load_model(command, execution, lambda command: (command, checkpoint))
    announce(loaded, folder)
    execution.place(loaded.model)
    return loaded


def load_model(command: Command, execution: Execution, find: Find) -> LoadedModel:
    """Load the checkpoint that `find` finds, the data, and the network with the weights that it starts from.

    The images lie on the device, the network does not yet.
    """
    command, checkpoint = find(command)
    settings = command.settings
    seed = settings.seed if command.script == STAGE1 else stage1_seed(settings)
    data = load_data(settings, seed, checkpoint, report=command.script == EVALUATE)
    if checkpoint is not None:
        data = in_order_of(checkpoint, data, settings)
        refuse_other_images(checkpoint, data, warn=command.script == EVALUATE)
        report_other_constants(checkpoint, data, str(checkpoint.path))
    if holds_features(data):
        execution = execution.without_network()
    if command.script != EVALUATE:
        report_overlaps(data)
    if "mmap" in command.given and not holds_features(data):
        report_unused(command.script, ["--mmap"], " without features in a file")
    elif settings.mmap == "on" and not isinstance(data.train, FileSplit):
        report_unused(command.script, ["--mmap"], " on features in a checkpoint: name the file with --features")
    data = grouped_as_asked(data, settings.shots)
    augment = settings.augment if command.script == STAGE1 else "crop"
    images = device_images(data, execution, settings, augment)
    torch.manual_seed(settings.seed)
    model = build_network(settings, data)
    weights = None
    if checkpoint is None:
        weights = load_weights_file(model, settings)
        if weights is not None:
            report_other_constants(weights.checkpoint, data, f"--weights {settings.weights}")
    elif checkpoint.state:
        if checkpoint.config.get("method"):
            attach_head(model, checkpoint.config["method"], checkpoint.state)
        load_start(model, checkpoint, linear=command.script == STAGE2)
    return LoadedModel(command, execution, data, images, model, checkpoint, weights)


def settle_execution(command: Command) -> Execution:
    """Choose device, precision and compilation, and join the other processes, where torchrun started many.

    Says which of the flags given have no effect there. Raises UserError for more processes than GPUs.
    """
    settings = command.settings
    launch = launch_of()
    if launch.count > 1 and command.given.get("seed", 0) is None:
        raise UserError("--seed None draws a seed in each of the processes: give them a number")
    # Only stage 1 runs a network often enough to repay compiling it, and on given features there is none.
    trains = command.script in FLAGS["compile"].read_by and settings.features is None
    compile_mode = settings.compile if trains else "off"
    if launch.count > 1 and compile_mode in ("auto", "graph"):
        if compile_mode == "graph":
            raise UserError("--compile graph is for one process; use --compile auto or off with torchrun")
        compile_mode = "off"  # the collectives of synchronised batch norm would break the graph at every layer
    on_disk = settings.dataset in ON_DISK and settings.features is None
    threads = None if on_disk else settings.workers
    amp = "off" if settings.features is not None else settings.amp  # no network runs
    gpu = settings.gpu if launch.count == 1 else launch.local_rank
    deterministic = settings.deterministic
    execution = choose_execution(
        settings.device, gpu, amp, compile_mode, threads, launch.local_count, deterministic=deterministic
    )
    on_cuda = execution.device.type == "cuda"
    idle = {"workers": on_cuda and not on_disk, "gpu": not on_cuda or launch.count > 1}
    for name, has_none in idle.items():
        flags = [f"--{name}"] if has_none and name in command.given else []
        report_unused(command.script, flags, f" on {execution.device.type}")
    if settings.features is not None and "amp" in command.given:
        report_unused(command.script, ["--amp"], " with features: classifiers are computed in fp32")
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


def load_weights_file(model: Network, settings: Settings) -> WeightsFile | None:
    """Copy the file of `--weights`, where one was named, into a network.

    Raises UserError for a file that cannot be read, does not hold the network's backbone, or has NaN or infinity in it.
    """
    if settings.weights is None:
        return None
    try:
        path = Path(settings.weights)
        path = path / "last.pth" if path.is_dir() else path
        checkpoint = with_backbone(load_checkpoint(path, settings.trust_pickle, settings.ema))
        report = load_pretrained(model, checkpoint.state)
        refuse_non_finite(model)
    except UserError as error:
        raise UserError(f"--weights {settings.weights}: {error}") from error
    tell(f"weights: {checkpoint.path} ({checkpoint.kind}): {report.summary()}")
    report_unfinished(checkpoint)
    record = {"file": str(checkpoint.path), "sha256": checkpoint.sha256, "loaded": report.summary()}
    return WeightsFile(checkpoint, record)


def load_start(model: Network, checkpoint: Checkpoint, linear: bool) -> None:
    """Copy a checkpoint into a network and say what was done with one of another code base.

    Raises UserError where it does not fit, and for NaN or infinity in one of another code base.
    """
    report = load_weights(model, checkpoint, linear)
    if report is not None:
        try:
            refuse_non_finite(model)
        except UserError as error:
            raise UserError(f"{checkpoint.path}: {error}") from error
        tell(f"checkpoint: {checkpoint.path} ({checkpoint.kind}): {report.summary()}")


def refuse_non_finite(model: Network) -> None:
    """Raise UserError where a tensor of a network has NaN or infinity, which training would blame on its own steps."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} is not finite: the file is of a training that failed, or damaged")


def refuse_small_batches(loaded: LoadedModel) -> None:
    """Raise UserError where batch norm in train mode would see a batch that it cannot normalise as released."""
    settings = loaded.settings
    stage1 = loaded.command.script == STAGE1
    if not stage1 and settings.bn_mode == "train" and process_count() > 1:
        raise UserError("--bn_mode train (of --protocol released) needs one process: start without torchrun")
    trained = settings.epochs > 0 if stage1 else settings.bn_mode == "train"
    if trained and 1 in batch_sizes(len(loaded.data.train), settings.batch_size, stage1 and settings.drop_last):
        check_single_image(loaded.model, image_sizes(settings, loaded.data)[0])


def objective(loaded: LoadedModel, plan: Plan | None) -> tuple[Target, nn.Module]:
    """Return the target of a run and its loss: of stage 2, which has a `plan`, for the first epochs and the last."""
    settings, num_classes = loaded.settings, loaded.data.num_classes
    class_counts = loaded.data.class_counts.tolist()
    if plan is not None:
        return plan.target(num_classes), nn.ModuleList(build_losses(plan, class_counts))
    target = torch_target(settings.label_smooth or 0.0, num_classes)
    own = {name: getattr(settings, name) for name in loss_parameters(settings.loss)}
    return target, build_loss(settings.loss, class_counts, target, **own)
