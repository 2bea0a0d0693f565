"""What several test files share: commands run in this process, small data, and how to read what they leave."""

import contextlib
import dataclasses
import io
import json
import pickle
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets import IN_MEMORY
from datasets.cifar import CIFAR100, Layout, load_cifar
from settings.presets import PRESETS

ROOT = Path(__file__).parent.parent


SCRIPTS = ["main_stage1", "main_stage2", "evaluate"]


EXPERIMENT = "digits_expIF25_resnet8"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command line left behind: its exit status and both of its streams."""

    status: int
    out: str
    err: str


def run(script: str, *arguments: object, plots: bool = False, gpus: int = 0) -> Outcome:
    """Run a command line in this process; plots, which take longer than the rest, only on request.

    PyTorch is made to see `gpus` CUDA devices, none unless the test says otherwise. The script runs from its first line
    to its last, so what a test replaces must be replaced where the script imports it from. An exception that escapes
    would be a traceback at the shell, and fails the test that called this.
    """
    out, err = io.StringIO(), io.StringIO()
    status, threads = 0, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        patch.setattr(torch.cuda, "device_count", lambda: gpus)
        if not plots:
            patch.setattr("engine.finish.draw_plots", lambda *_: None)
        try:
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            torch.set_num_threads(threads)
    return Outcome(status, out.getvalue(), err.getvalue())


def succeed(script: str, *arguments: object, plots: bool = False) -> Outcome:
    """Run a command line that must end with status 0."""
    outcome = run(script, *arguments, plots=plots)
    assert outcome.status == 0, outcome.err
    return outcome


def stage1(out: Path, *arguments: object, plots: bool = False) -> Outcome:
    """Train the smallest stage 1 there is: two epochs on the digits, each evaluated, unless the arguments say
    otherwise."""
    epochs = () if "--epochs" in arguments else ("--epochs", 2)
    often = () if {"--eval_every", "--resume", "--reuse"} & set(arguments) else ("--eval_every", 1)
    return succeed("main_stage1", "--dataset", "digits", "--out", out, *epochs, *often, *arguments, plots=plots)


def stage2(out: Path, *arguments: object, plots: bool = False) -> Outcome:
    """Run two epochs of stage 2 on the digits unless the arguments say otherwise."""
    epochs = () if "--finetune_epoch" in arguments else ("--finetune_epoch", 2)
    return succeed("main_stage2", "--dataset", "digits", "--out", out, *epochs, *arguments, plots=plots)


def folder_of(out: Path, name: str, seed: int = 0) -> Path:
    """The folder of a run on the digits at their usual imbalance and network."""
    return out / EXPERIMENT / f"seed{seed}" / name


def read(path: Path) -> Any:
    """Read a JSON file that holds nothing but JSON: NaN and Infinity are refused."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, read without running anything."""
    return torch.load(path, weights_only=True)["model"]


def same(left: dict[str, Tensor], right: dict[str, Tensor], *, head: bool = True) -> bool:
    """Tell whether two state dicts are equal bit for bit, with or without the classifier."""
    assert list(left) == list(right)
    return all(torch.equal(left[key], right[key]) for key in left if head or not key.startswith("fc."))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def numbers(value: object) -> Iterator[float]:
    """Every number inside nested dictionaries and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


SMALL_CIFAR = dataclasses.replace(CIFAR100, num_classes=5, train_per_class=120, test_per_class=4)


def write_cifar(root: Path, layout: Layout = SMALL_CIFAR) -> Path:
    """Write random images in the files of `layout` below `root`, as torchvision extracts them; return their folder."""
    folder = root / layout.folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, per_class in ((layout.train_files[0], layout.train_per_class), (layout.test_file, layout.test_per_class)):
        labels = list(range(layout.num_classes)) * per_class
        pixels = generator.integers(0, 180, (len(labels), 3072)) + 15 * np.array(labels)[:, None]
        (folder / name).write_bytes(pickle.dumps({"data": pixels.astype(np.uint8), layout.label_key: labels}))
    names = {layout.names_key: [f"class {label}" for label in range(layout.num_classes)]}
    (folder / layout.meta_file).write_bytes(pickle.dumps(names))
    return folder


def use_small_cifar(patch: pytest.MonkeyPatch) -> None:
    """Let `cifar100` stand for five classes and a network to match, so that its command lines take a second."""
    patch.setitem(IN_MEMORY, "cifar100", partial(load_cifar, SMALL_CIFAR, "cifar100"))
    patch.setitem(PRESETS, "cifar100", {"network": "resnet8", "width": 4, "epochs": 2, "workers": 1})


def not_used(err: str, script: str) -> set[str]:
    """The flags that a command said it does not read, whatever the device."""
    prefix = f"not used by {script}: "
    found = [line.removeprefix(prefix) for line in err.splitlines() if line.startswith(prefix)]
    assert len(found) <= 1
    return set(found[0].split()) if found else set()


def is_refusal(outcome: Outcome, *words: str, alone: bool = True) -> bool:
    """Check that a command ended with status 2 and an error in one line that has all the words.

    It is all that stands on standard error, or, where it may not stand `alone`, the last line.
    """
    lines = outcome.err.splitlines() or [""]
    assert outcome.status == 2, (outcome.out, outcome.err)
    assert lines[-1].startswith("error: ") and outcome.err.endswith("\n"), outcome.err
    assert len(lines) == 1 or not alone, outcome.err
    return all(word in lines[-1] for word in words)


def refused(script: str, *arguments: object, gpus: int = 0) -> str:
    """Run a command line that must be refused, and return the one line it prints on standard error."""
    outcome = run(script, *arguments, gpus=gpus)
    assert is_refusal(outcome)
    return outcome.err


def without_clocks(value: Any) -> Any:
    """Leave out of nested dictionaries what depends on the clock."""
    if isinstance(value, dict):
        clocks = ("seconds", "evaluation_seconds", "train_seconds", "images_per_second")
        return {key: without_clocks(item) for key, item in value.items() if key not in clocks}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def assert_same_run(left: Path, right: Path) -> None:
    """Check that two run folders hold the same weights, logs and metrics, bit for bit, clocks aside."""
    for name in ("last.pth", "best.pth"):
        mine, its = (torch.load(folder / name, weights_only=True) for folder in (left, right))
        assert mine["epoch"] == its["epoch"]
        assert same(mine["model"], its["model"])
        if name == "last.pth":
            assert same(mine["loss"], its["loss"])  # what GALA has gathered
            assert mine["temperature"] == its["temperature"]
    clocks = ["seconds", "evaluation_seconds", "images_per_second"]
    logs = [pd.read_csv(folder / "log.csv").drop(columns=clocks) for folder in (left, right)]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    mine, its = (without_clocks(read(folder / "metrics.json")) for folder in (left, right))
    for key in its:
        if key != "stage1":
            assert mine[key] == its[key], key


def image_tree(folder: Path, classes: int, train: int, test: int = 2, size: int = 12) -> Path:
    """Write a tree `{train,test}/<class>/*.png` of noisy images whose brightness tells the class, and return it.

    Class c has `train` - c training images, one at least.
    """
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label in range(classes):
            holder = folder / part / f"class{label}"
            holder.mkdir(parents=True)
            for number in range(max(count - label, 1) if part == "train" else count):
                noise = generator.normal(255 * (label + 0.5) / classes, 20, (size, size, 3))
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(holder / f"{number}.png")
    return folder
