"""What config.json says of a run."""

import importlib.metadata
import platform
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.decoding.options import DecodeOptions, recorded_options
from datasets.features import holds_features
from datasets.long_tail import LongTailedData
from datasets.on_disk.listed_split import ListedSplit, path_identity
from losses.los import Target
from runs.checkpoint import Checkpoint
from runs.dependencies import describe_data
from runs.run_names import inherited_tags, run_tags
from runs.session import LoadedModel
from settings.fields import FLAGS, Settings
from settings.image_sizes import image_sizes
from utils.device import Execution, device_name
from utils.distributed import process_count


def describe(loaded: LoadedModel, target: Target) -> dict[str, Any]:
    """Return the content of config.json: settings, what they came to, and what they ran on.

    `target` is what the true class and each other class should get.
    """
    command, data = loaded.command, loaded.data
    stage = command.script.removeprefix("main_")
    start = loaded.checkpoint if stage == "stage2" else None
    part = describe_part(loaded)
    return {
        "schema": 1,
        "stage": stage,
        "method": command.settings.method if stage == "stage2" else None,
        "tags": run_tags(command, start),
        "command": part["command"],
        "settings": asdict(command.settings),
        "target": {"true": target[0], "other": target[1], "torch_smoothing": target[1] * data.num_classes},
        "num_class": data.num_classes,
        "class_counts": data.class_counts.tolist(),
        "class_names": data.class_names,
        "lists": data.lists,
        "images": describe_images(command.settings, data),
        "subset": data.subset,
        "test": path_identity(data.test) if isinstance(data.test, ListedSplit) else None,
        "identity": describe_data(data)["identity"],
        "weights": loaded.weights and loaded.weights.record,
        "stage1": start and describe_stage1(start),
        "precision": part["precision"],
        "processes": part["processes"],
        "environment": part["environment"],
        "parts": [part],
    }


def describe_part(loaded: LoadedModel) -> dict[str, Any]:
    """Return what a start of a run, the first or one that resumes it, computes with.

    `epochs_done` are those before it, None until that is known (`engine.fit.resume`).
    """
    command, environment = loaded.command, describe_environment(loaded.execution)
    return {
        "epochs_done": 0,
        "command": shlex.join(["python", f"{command.script}.py", *command.arguments]),
        "processes": process_count(),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if loaded.execution.bf16 else "fp32",
        "torch": environment["torch"],
        "environment": environment,
    }


def dependencies(loaded: LoadedModel, **more: Any) -> dict[str, Any]:
    """Return everything that numbers on a loaded model depend on, and `more`: the settings that make them.

    `runs.dependencies.key_of` makes a key of it, and `differences` says in words how two of them differ.
    """
    source, data, execution = loaded.source, loaded.data, loaded.execution
    assert source is not None, "numbers depend on weights"
    return {
        "checkpoint": source.identity,
        "images": {"prepared": describe_images(loaded.settings, data), "augmentation": str(data.augmentation)},
        "arithmetic": f"{execution.device.type} {'bf16' if execution.bf16 else 'fp32'}",
        **describe_data(data),
        **more,
    }


def describe_environment(execution: Execution) -> dict[str, Any]:
    """Return the revision, the versions and the device of a run."""
    return {
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str otherwise, which a checkpoint may not hold
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": str(np.__version__),
        "cuda": torch.version.cuda if execution.device.type == "cuda" else None,
        "device": device_name(execution.device),
        "execution": list(execution.reasons),
    }


def describe_images(settings: Settings, data: LongTailedData) -> dict[str, Any] | None:
    """Return what turns an image file into what the network sees; None where it sees features."""
    if holds_features(data):
        return None
    augmentation = data.augmentation
    size, resize = image_sizes(settings, data)
    constants = {"mean": list(augmentation.mean), "std": list(augmentation.std), "mirror": augmentation.mirror}
    own: dict[str, Any] = recorded_options(decode_options(settings)) if isinstance(data.train, ListedSplit) else {}
    if settings.crop_area != FLAGS["crop_area"].default:  # not in the records of before there was a choice
        own["crop_area"] = settings.crop_area
    return {"size": size, "resize": resize, **constants, **own}


def decode_options(settings: Settings) -> DecodeOptions:
    """Return how a run makes pixels of image files."""
    return DecodeOptions(settings.orientation, settings.bits, settings.max_pixels)


def describe_stage1(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a stage-2 run records of the checkpoint that it started from."""
    return {
        "sha256": checkpoint.sha256,
        "kind": checkpoint.kind,
        "seed": checkpoint.settings().get("seed"),
        "loss": checkpoint.settings().get("loss"),
        "tags": inherited_tags(checkpoint),
    }


def git_revision() -> str | None:
    """Return the commit of this checkout, marked `+` where files differ from it; None without git, and where this is
    installed in a folder of another checkout."""
    here = Path(__file__).resolve().parent
    where = ["git", "rev-parse", "HEAD", "--show-toplevel"]
    try:
        commit, top = subprocess.run(where, cwd=here, capture_output=True, text=True, check=True).stdout.splitlines()
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    if Path(top).resolve() != here.parent:
        return None
    return commit + ("+" if status.stdout.strip() else "")
