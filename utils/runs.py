"""A run's folder: its name, the rules for opening it, its configuration, and how the next stage finds it."""

import platform
import re
import shlex
import subprocess
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from datasets.features import holds_features
from datasets.listed import path_identity
from datasets.lists import ListedSplit
from datasets.long_tail import LongTailedData
from losses.los import Target
from utils.checkpoint import Checkpoint
from utils.config import FIELDS, PROTOCOL_SWITCHES, PROTOCOLS, STAGE1, STAGE2, TRAINING, Command, Settings
from utils.distributed import from_main, is_main, process_count
from utils.errors import UserError
from utils.execution import Execution, device_name
from utils.files import FolderLock, lock_folder, read_json, remove_leftovers, write_json
from utils.plots import PLOTS

# Settings by which a default lookup tells runs of one data set, imbalance, network and seed apart.
IDENTITY = ("subset", "subset_seed", "holdout", "stem", "image_size", "resize", "weights", "width")


def seed_folder(settings: Settings, seed: int) -> Path:
    """Return `<out>/<dataset>_<imb_type>IF<r>_<network>/seed<k>`, `<dataset>_natural_<network>` for data that are
    long-tailed of themselves."""
    return Path(settings.out) / f"{data_name(settings)}_{settings.network}" / f"seed{seed}"


def experiment_name(settings: Settings) -> str:
    """Return the name of data and network in the files of a table."""
    width = "" if settings.width is None else f"w{settings.width}"
    return f"{data_name(settings)}_{settings.network}{width}"


def data_name(settings: Settings) -> str:
    """Return the data set and its imbalance; anyone's own data are told apart by the name of their folder or list."""
    dataset = settings.dataset
    if dataset == "folder" or (dataset == "list" and settings.train_list is None):
        dataset += f"-{plain_name(Path(settings.data_dir).resolve().name)}"
    elif dataset == "list":
        dataset += f"-{plain_name(Path(str(settings.train_list)).stem)}"
    ratio = "" if settings.imb_ratio is None else f"IF{settings.imb_ratio:g}"
    return f"{dataset}_{settings.imb_type}{ratio}"


def plain_name(text: str) -> str:
    """Return text as it can stand in a file's name anywhere."""
    return re.sub(r"[^0-9A-Za-z.-]+", "-", text).strip("-.") or "root"


def tag(name: str, value: Any) -> str:
    """Return a setting as it stands in a folder's name; of a file its name alone."""
    if name == "weights":
        value = f"-{plain_name(Path(value).stem)}"
    return name if value is True else f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"


def stage1_tags(command: Command) -> list[str]:
    """Return the settings of a stage-1 run that differ from the preset, in the order of `Settings`."""
    return _differing(command, [name for name, field in FIELDS.items() if STAGE1 in field.metadata["folder"]])


def inherited_tags(stage1: Checkpoint) -> list[str]:
    """Return what a stage-2 run's name says of its stage 1.

    Settings that both stages have (such as the batch size) are marked as stage 1's. A file that is neither last.pth nor
    best.pth of a run is told by its sha256.
    """
    shared = tuple(
        name for name, field in FIELDS.items() if field.metadata["folder"] == TRAINING and name not in IDENTITY
    )
    tags = [f"stage1_{name}" if name.startswith(shared) else name for name in stage1.config.get("tags", [])]
    if stage1.content is None or stage1.path.name not in ("last.pth", "best.pth"):
        tags.append(f"from{stage1.sha256[:8]}")
    return tags


def stage2_tags(command: Command, stage1: Checkpoint) -> list[str]:
    """Return what tells a stage-2 run from others: its stage 1, and what differs from recipe and protocol."""
    settings = command.settings
    tags = inherited_tags(stage1) + _stage1_seed_tag(settings)
    own = [name for name, field in FIELDS.items() if STAGE2 in field.metadata["folder"]]
    tags += [name for name in _differing(command, own) if name not in tags]
    if settings.protocol != "honest":
        tags.append(settings.protocol)
    usual = {name: getattr(command.defaults, name) for name in PROTOCOL_SWITCHES} | PROTOCOLS[settings.protocol]
    values = {name: getattr(settings, name) for name in PROTOCOL_SWITCHES}
    return tags + [tag(name, value) for name, value in values.items() if value != usual[name]]


def _stage1_seed_tag(settings: Settings) -> list[str]:
    differs = settings.stage1_seed is not None and settings.stage1_seed != settings.seed
    return [tag("stage1_seed", settings.stage1_seed)] if differs else []


def stage2_folder(settings: Settings, tags: list[str]) -> Path:
    """Return the folder of a stage-2 run."""
    return seed_folder(settings, settings.seed) / "_".join([f"stage2_{settings.method}", *tags])


def stage1_folder(command: Command) -> Path:
    """Return the folder of the stage-1 run that a command line describes."""
    return seed_folder(command.settings, command.settings.seed) / "_".join(["stage1", *stage1_tags(command)])


def _differing(command: Command, names: list[str]) -> list[str]:
    values = {name: getattr(command.settings, name) for name in names}
    return [
        tag(name, value)
        for name, value in values.items()
        if value is not None and value != getattr(command.defaults, name)
    ]


def find_run(command: Command, stage: str, seed: int) -> Path:
    """Find the run of `stage` that the command line describes: the exact match, else the only candidate.

    Raises UserError where there is none (it names the command that makes one) or several (it lists them).
    """
    settings = command.settings
    parent = seed_folder(settings, seed)
    wanted = _differing(command, list(IDENTITY))
    if stage == settings.cur_stage:  # stage 2's smoothing says nothing of the stage 1 that it looks for
        wanted += _differing(command, ["label_smooth"])
    prefix = "stage1"
    if stage == "stage2":
        prefix = f"stage2_{settings.method}"
        wanted += _stage1_seed_tag(settings) + ([settings.protocol] if settings.protocol != "honest" else [])
    exact, candidates = None, []
    for path in sorted(parent.glob("*/config.json")):
        config = read_json(path)
        same = config.get("stage") == stage and (stage == "stage1" or config.get("method") == settings.method)
        tags = set(map(str, config.get("tags") or [])) if isinstance(config.get("tags") or [], list) else set()
        if same and tags == set(wanted):
            exact = path.parent
        elif same and tags > set(wanted):
            candidates.append(path.parent)
    advice = _command_for(command, stage, seed)
    if exact is None and not candidates:
        raise UserError(f"no {stage} run in {parent / '_'.join([prefix, *wanted])}; make it first: {advice}")
    if exact is None and len(candidates) > 1:
        listed = ", ".join(str(path) for path in candidates)
        raise UserError(f"several {stage} runs fit: {listed}; name one with --pretrained_pth")
    found = candidates[0] if exact is None else exact
    if not (found / "last.pth").is_file():
        raise UserError(f"{found} has no finished epoch; go on with it first: {advice} --resume")
    if exact is None:
        print(f"using {found}, the only {stage} run that fits")
    return found


def _command_for(command: Command, stage: str, seed: int) -> str:
    names = ["features", "data_dir", "dataset", "train_list", "val_list", "test_list", "image_root", "imb_ratio"]
    names += ["imb_type", "network", "out", *IDENTITY]
    names += ["method", "protocol"] if stage == "stage2" else []
    names += ["label_smooth"] if stage == command.settings.cur_stage else []
    flags = [f"--{name} {shlex.quote(str(getattr(command.settings, name)))}" for name in names if name in command.given]
    if seed != command.defaults.seed:
        flags.append(f"--seed {seed}")
    return " ".join(["python", f"main_{stage}.py", *flags])


@dataclass(frozen=True)
class Run:
    """An opened run folder and its configuration; `finished` where it is there already, to be used as it is.

    No other process can open the folder as long as this object lives.
    """

    folder: Path
    config: dict[str, Any]
    finished: bool = False
    lock: FolderLock | None = field(default=None, compare=False, repr=False)

    @property
    def last(self) -> Path:
        return self.folder / "last.pth"

    @property
    def best(self) -> Path:
        return self.folder / "best.pth"


# What a run writes; --overwrite removes these and nothing else.
OWN_FILES = ["metrics.json", "config.json", "log.csv", "last.pth", "best.pth", *(f"plots/{name}" for name in PLOTS)]


def read_metrics(run: Run) -> dict[str, Any]:
    """Return the metrics of a finished run, and say that it was there."""
    print(f"using the finished run {run.folder}")
    return read_json(run.folder / "metrics.json")


def open_run(folder: Path, config: dict[str, Any], *, resume: bool, overwrite: bool, reuse: bool = False) -> Run:
    """Make a run's folder and write its config.json, or reopen one; with `reuse`, whatever is there. Of many processes
    the first does it for all.

    Raises UserError where another process is at work in it, where a run is there and neither `--resume` nor
    `--overwrite` was said, where it was made with other settings than the resuming command's, and where the folder
    cannot be written.
    """
    opened = _open_run(folder, config, resume, overwrite, reuse) if is_main() else Run(folder, config)
    return replace(from_main(replace(opened, lock=None)), lock=opened.lock)


def _open_run(folder: Path, config: dict[str, Any], resume: bool, overwrite: bool, reuse: bool) -> Run:
    """Open a run in the process that writes."""
    if reuse and (folder / "metrics.json").exists() and (folder / "config.json").exists():
        before = read_json(folder / "config.json")
        _refuse_other_settings(folder, before, config)
        return Run(folder, before, finished=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    lock = lock_folder(folder)
    try:
        return _begin_or_resume(Run(folder, config, lock=lock), resume or reuse, overwrite)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def made_of_other_things(folder: Path, config: dict[str, Any]) -> str:
    """Return how what a run in a folder was made of differs from what a command names; "" where nothing is known to."""
    if not (folder / "config.json").is_file():
        return ""
    before = read_json(folder / "config.json")
    if before.get("subset") != config["subset"]:
        return " on other training images"
    if (before.get("stage1") or {}).get("sha256") != (config["stage1"] or {}).get("sha256"):
        return " of another stage 1, or of an earlier state of this one"
    return ""


def _begin_or_resume(run: Run, resume: bool, overwrite: bool) -> Run:
    """Return a run in its folder, which this process has locked, as it is to go on."""
    folder, config = run.folder, run.config
    present = [name for name in OWN_FILES if (folder / name).exists()]
    if present and not (resume or overwrite):
        state = "a finished run" if "metrics.json" in present else "an interrupted run; --resume goes on with it"
        state += made_of_other_things(folder, config)
        raise UserError(f"{folder} holds {state}; --overwrite replaces it, --out names another place")
    if config["settings"]["resume"] and not present:
        print(f"nothing to resume in {folder}: beginning anew")
    if resume and "last.pth" in present and "config.json" not in present:
        raise UserError(f"{folder} has lost its config.json, so what it was is unknown; --overwrite replaces it")
    if overwrite:
        try:
            for name in present:
                (folder / name).unlink()
        except OSError as error:
            raise _unusable(folder, error) from error
    opened = run
    if resume and "config.json" in present:
        before = read_json(folder / "config.json")
        _refuse_other_settings(folder, before, config)
        # The run keeps its own record, and adds where it went on once it really does (`fit`).
        opened = replace(run, config={**before, "resumed": [*before.get("resumed", []), config["environment"]]})
    for place in {(folder / name).parent for name in OWN_FILES}:
        remove_leftovers(place, [Path(name).name for name in OWN_FILES])
    if opened is run:
        write_json(folder / "config.json", config)
    return opened


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot use {folder}: {error.strerror or error}; name another place with --out")


def _refuse_other_settings(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError where resuming would mix two configurations in one run."""
    if not all(isinstance(before.get(name) or {}, dict) for name in ("settings", "weights", "backbone", "environment")):
        raise UserError(f"{folder / 'config.json'} is damaged, so what the run was is unknown; --overwrite replaces it")
    script = f"main_{now['stage']}"
    weighty = [name for name, field in FIELDS.items() if field.metadata["folder"]] + ["eval_every", *PROTOCOL_SWITCHES]
    # A file of weights may be named by another path: its sha256 decides.
    keys = [name for name in weighty if name != "weights" and script in FIELDS[name].metadata["used_by"]]
    old, new = before.get("settings", {}), now["settings"]
    # A setting that did not exist yet when the run was begun had its default, as it has in the folder's name.
    differing = [f"--{key} {old[key]} there, {new[key]} now" for key in keys if key in old and old[key] != new[key]]
    if (before.get("weights") or {}).get("sha256") != (now.get("weights") or {}).get("sha256"):
        differing.append("another file of --weights")
    if before.get("test") is not None and before["test"] != now["test"]:  # runs made before it was recorded have none
        differing.append("other test images")
    if "precision" in before and before["precision"] != now["precision"]:  # the first runs did not record it
        differing.append("another --amp")
    for name, words in (("subset", "training subset"), ("stage1", "stage-1 checkpoint")):
        if before.get(name) != now[name]:
            differing.append(f"another {words}")
    if (before.get("backbone") or {}).get("sha256") != (now.get("backbone") or {}).get("sha256"):
        differing.append("another file of features")
    if differing:
        raise UserError(
            f"{folder} was begun with other settings ({'; '.join(differing)}); repeat its command, or use --overwrite"
        )


def describe(
    command: Command,
    stage: str,
    tags: list[str],
    data: LongTailedData,
    execution: Execution,
    target: Target,
    stage1: Checkpoint | None,
    weights: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of config.json: settings, what they came to, and what they ran on."""
    return {
        "schema": 1,
        "stage": stage,
        "method": command.settings.method if stage == "stage2" else None,
        "tags": tags,
        "command": shlex.join(["python", f"{command.script}.py", *command.arguments]),
        "settings": asdict(command.settings),
        "target": {"true": target[0], "other": target[1], "torch_smoothing": target[1] * data.num_classes},
        "num_class": data.num_classes,
        "class_counts": data.class_counts.tolist(),
        "class_names": data.class_names,
        "images": describe_images(command.settings, data),
        "subset": data.subset,
        "test": path_identity(data.test) if isinstance(data.test, ListedSplit) else None,
        "weights": weights,
        "stage1": stage1 and describe_stage1(stage1),
        "precision": "bf16" if execution.bf16 else "fp32",
        "processes": process_count(),
        "environment": {
            "git_revision": git_revision(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # a subclass of str otherwise, which a checkpoint may not hold
            "torchvision": str(torchvision.__version__),
            "numpy": str(np.__version__),
            "cuda": torch.version.cuda if execution.device.type == "cuda" else None,
            "device": device_name(execution.device),
            "execution": list(execution.reasons),
        },
    }


def describe_images(settings: Settings, data: LongTailedData) -> dict[str, Any] | None:
    """Return what turns an image file into what the network sees; None where it sees features."""
    if holds_features(data):
        return None
    augmentation = data.augmentation
    size, resize = image_sizes(settings, data)
    constants = {"mean": list(augmentation.mean), "std": list(augmentation.std), "mirror": augmentation.mirror}
    return {"size": size, "resize": resize, **constants}


def image_sizes(settings: Settings, data: LongTailedData) -> tuple[int, int]:
    """Return the side of what the network sees, and the shorter side that an image is resized to before its crop."""
    if not isinstance(data.train, ListedSplit):
        return data.train.images.shape[1], data.train.images.shape[1]
    size = settings.image_size or 224
    return size, settings.resize or round(size * 256 / 224)


def describe_stage1(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a stage-2 run records of the checkpoint that it started from."""
    return {
        "sha256": checkpoint.sha256,
        "kind": checkpoint.kind,
        "seed": checkpoint.settings().get("seed"),
        "tags": inherited_tags(checkpoint),
    }


def git_revision() -> str | None:
    """Return the commit of this checkout, marked `+` where files differ from it; None without git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
