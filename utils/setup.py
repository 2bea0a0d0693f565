"""What the three scripts do alike before their work begins: choose a device, load the data, say what will run."""

from datasets import load_dataset
from datasets.device import DeviceImages
from datasets.long_tail import LongTailedData
from utils.checkpoint import Checkpoint
from utils.config import Command, Settings, report_unused
from utils.errors import UserError
from utils.evaluation import Images
from utils.execution import Execution, choose_execution
from utils.metrics import shot_groups

DATA_FLAGS = ("imb_ratio", "imb_type", "subset", "subset_seed", "holdout")
# What a checkpoint of ours settles, where the command line does not say it.
FROM_CHECKPOINT = ("dataset", *DATA_FLAGS, "network", "width")


def settle_execution(command: Command) -> Execution:
    """Choose device, precision and compilation; say which of the flags given have no effect there."""
    settings = command.settings
    execution = choose_execution(settings.device, settings.gpu, settings.amp, settings.compile, settings.workers)
    idle = "workers" if execution.device.type == "cuda" else "gpu"
    report_unused(command.script, [f"--{idle}"] if idle in command.given else [], f" on {execution.device.type}")
    return execution


def load_data(settings: Settings) -> LongTailedData:
    """Load the data set that the settings describe; the held-out images are those of the stage-1 seed."""
    seed = settings.seed if settings.stage1_seed is None else settings.stage1_seed
    profile = {name: getattr(settings, name) for name in DATA_FLAGS}
    data = load_dataset(settings.dataset, data_dir=settings.data_dir, holdout_seed=seed or 0, **profile)
    if settings.num_class is not None and settings.num_class != data.num_classes:
        raise UserError(
            f"--num_class {settings.num_class} does not fit {data.name}, which has {data.num_classes} classes; leave it out"
        )
    return data


def adopt_checkpoint(command: Command, checkpoint: Checkpoint) -> Command:
    """Take data set and network from a checkpoint of ours; a flag given that says otherwise is refused."""
    settings = checkpoint.settings()
    known = {name: settings[name] for name in FROM_CHECKPOINT if name in settings}
    for name, value in known.items():
        asked = getattr(command.settings, name)
        if name in command.given and asked != value:
            raise UserError(
                f"{checkpoint.path} was trained with --{name} {value}, not {asked}; leave the flag out or name another checkpoint"
            )
    if "seed" in settings:
        seed = settings["seed"] if settings.get("stage1_seed") is None else settings["stage1_seed"]
        known["stage1_seed"] = seed
    return command.replace(**known)


def device_images(data: LongTailedData, execution: Execution) -> Images:
    """Put the three splits on the device."""
    splits = {"train": data.train, "holdout": data.holdout, "test": data.test}
    return {name: DeviceImages(split, data.augmentation, execution.device) for name, split in splits.items()}


def announce(command: Command, data: LongTailedData, execution: Execution, folder: object) -> None:
    """Print what is about to run: the data with its shots and identity, the arithmetic, the folder."""
    settings = command.settings
    groups = ", ".join(f"{int(members.sum())} {name}" for name, members in shot_groups(data.class_counts).items())
    held_out = f", {len(data.holdout)} held out" if len(data.holdout) else ""
    print(
        f"data: {data.name}, {settings.imb_type} profile, imbalance factor {settings.imb_ratio:g}: {len(data.train)} training images{held_out}"
    )
    print(
        f"      {data.num_classes} classes of {data.class_counts.max()} to {data.class_counts.min()} images ({groups})"
    )
    print(
        f"      subset {settings.subset}, index sha256 {data.subset['index_sha256'][:16]}, content sha256 {data.subset['content_sha256'][:16]}"
    )
    print("\n".join(execution.reasons))
    print(
        f"protocol: {settings.protocol}; network: {settings.network}; seed: {settings.seed}; run folder: {folder}",
        flush=True,
    )
