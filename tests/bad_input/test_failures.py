"""Places that cannot be written, full disks, losses that are not finite: one line, and nothing lost."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import engine.fit
import engine.saving
import stages.session
from tests.helpers import (
    contents,
    folder_of,
    read,
    refused,
    run,
    same,
    stage1,
    succeed,
    weights,
)
from utils.errors import UserError, is_out_of_memory
from utils.files import write_atomically

NOISE = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
WRITERS: dict[str, Callable[[Any], object]] = {
    "bytes": lambda file: file.write(NOISE.tobytes()),
    "numpy": lambda file: np.save(file, NOISE),
    "numpy, several": lambda file: np.savez(file, noise=NOISE),
    "PyTorch": lambda file: torch.save(torch.from_numpy(NOISE), file),
    "PIL": lambda file: Image.fromarray(NOISE).save(file, "PNG"),
    "pandas": lambda file: pd.DataFrame(NOISE.reshape(-1, 3)).to_csv(file, chunksize=100),
}

# Places


DIGITS = ("--dataset", "digits")


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_file_in_the_place_of_the_output_folder(level: int, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "runs", "stage1_epochs1")
    while len(path.relative_to(tmp_path).parts) > level + 1:
        path = path.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    message = refused("main_stage1", *DIGITS, "--out", tmp_path / "runs", "--epochs", 1)
    assert str(tmp_path / "runs") in message
    assert path.read_text() == "mine"


def test_an_output_folder_that_is_a_file_before_stage_2_and_evaluation(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    for script in ("main_stage2", "evaluate"):
        assert str(tmp_path / "runs") in refused(script, *DIGITS, "--out", tmp_path / "runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    assert str(tmp_path / "runs") in refused("main_stage1", *DIGITS, "--out", tmp_path / "runs", "--epochs", 1)


def test_an_output_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", deny)
    message = refused("main_stage1", *DIGITS, "--out", tmp_path / "runs", "--epochs", 1)
    assert str(tmp_path / "runs") in message and "Permission denied" in message


@pytest.mark.parametrize("place", ["nosuch/report.json", "folder", "file/report.json"])
def test_a_report_that_cannot_be_written(place: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    message = refused("evaluate", *DIGITS, "--out", trained, "--json", tmp_path / place)
    assert str(tmp_path / place) in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


# A full disk


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses files above a size, as it does on a full disk, after the first epoch is saved."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = engine.saving.save_checkpoint

    def fill(path: Path, content: dict[str, Any]) -> None:
        if content["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        save(path, content)

    arguments = (*DIGITS, "--out", tmp_path, "--epochs", 3, "--eval_every", 1)
    monkeypatch.setattr(engine.saving, "save_checkpoint", fill)
    try:
        message = refused("main_stage1", *arguments, "--save_every", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = folder_of(tmp_path, "stage1_epochs3")
    assert str(folder) in message and ".pth" in message
    for name in ("last.pth", "best.pth"):
        assert torch.load(folder / name, weights_only=True)["epoch"] == 1
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.csv", "last.pth", "best.pth"}
    monkeypatch.undo()
    succeed("main_stage1", *arguments, "--resume")
    stage1(tmp_path / "uninterrupted", "--epochs", 3)
    assert same(
        *(weights(folder_of(out, "stage1_epochs3") / "last.pth") for out in (tmp_path, tmp_path / "uninterrupted"))
    )


@pytest.mark.parametrize(
    "name", ["config.json", "log.csv", "best.pth", "last.pth", "metrics.json", "training_curves.png"]
)
def test_a_disk_that_is_full_when_a_file_is_due(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    outcome = run("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 1, plots=name.endswith(".png"))
    assert outcome.status == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert name in outcome.err and "No space left" in outcome.err
    folder = folder_of(tmp_path, "stage1_epochs1")
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob(".*"))
    assert not (folder / "metrics.json").exists()
    monkeypatch.undo()
    succeed("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 1, "--resume")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_whatever_writes(writer: str, tmp_path: Path) -> None:
    """Libraries have words of their own for it, such as "5072 requested and 4064 written"."""
    path = tmp_path / "file"
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError) as caught:
            write_atomically(path, WRITERS[writer])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    unchanged = "; the file that was there before is unchanged"
    assert str(caught.value) == f"cannot write {path}: {os.strerror(errno.EFBIG)}{unchanged}"
    assert contents(tmp_path) == {"file": b"before"}


def test_a_full_disk_under_tensorboard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        log_dir = str(tmp_path / "tensorboard")

        def add_scalar(self, *arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine.fit, "open_events", lambda *_: Full())
    message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 2, "--tensorboard")
    assert message == f"error: cannot write {Full.log_dir}: No space left on device; leave out --tensorboard\n"
    assert torch.load(folder_of(tmp_path, "stage1_epochs2") / "last.pth", weights_only=True)["epoch"] == 1


# Memory


def no_memory_errors() -> dict[str, BaseException]:
    """What libraries raise where memory is not enough; some of it as they themselves raise it here."""
    found: dict[str, BaseException] = {
        "Python": MemoryError(),
        "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        "C++": RuntimeError("std::bad_alloc"),
        "the system": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    }
    for name, ask in {"numpy": lambda: np.empty(1 << 58, np.uint8), "PyTorch": lambda: torch.empty(1 << 58)}.items():
        try:
            ask()
        except Exception as error:
            found[name] = error
    return found


NO_MEMORY = no_memory_errors()


class Exhausting(nn.Module):
    """Cross-entropy that raises an error at its n-th call."""

    def __init__(self, call: int, error: BaseException) -> None:
        super().__init__()
        self.left = call
        self.error = error

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return nn.functional.cross_entropy(logits, labels)


def test_libraries_say_that_memory_is_not_enough_in_many_ways() -> None:
    assert {"numpy", "PyTorch"} <= set(NO_MEMORY)
    assert all(is_out_of_memory(error) for error in NO_MEMORY.values())
    others = (RuntimeError("the size of tensor a must match"), UserError("out of memory"), OSError(errno.ENOSPC, ""))
    assert not any(map(is_out_of_memory, (*others, None)))


@pytest.mark.parametrize("library", NO_MEMORY)
def test_a_training_step_without_memory_keeps_the_last_epoch(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 13  # 396 images in batches of 32
    monkeypatch.setattr("stages.session.build_loss", lambda *_: Exhausting(2 * steps + 5, NO_MEMORY[library]))
    message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 4)
    held = "out of memory, with a training step on 32 x 3 x 8 x 8 inputs; lower --batch_size or --width"
    assert message == f"error: {held}\n"
    assert torch.load(folder_of(tmp_path, "stage1_epochs4") / "last.pth", weights_only=True)["epoch"] == 2
    monkeypatch.undo()
    succeed("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 4, "--resume")


def test_what_was_held_when_memory_ran_out(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features, logits and checkpoints say so; whatever else there is ends in one line too."""

    def exhausted(*arguments: Any, **more: Any) -> Any:
        raise MemoryError

    line = ("main_stage2", *DIGITS, "--out", runs, "--finetune_epoch", 2, "--overwrite")
    for place, words in {
        "models.resnet.ResNet.features": "features of ",
        "evaluation.measure.SplitLogits.blocks": "logits of t",
        "runs.weights.reading.sha256_of": "the checkpoint ",
        "stages.session.build_model": "MemoryError",
    }.items():
        shutil.rmtree(runs / "features", ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, exhausted)
            message = refused(*line)
        assert message.startswith("error: out of memory, with ") and words in message and "; lower " in message


# A loss that is not finite


class Poisoned(nn.Module):
    """Cross-entropy that turns NaN at its n-th call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.left -= 1
        return nn.functional.cross_entropy(logits, labels) * (torch.nan if self.left == 0 else 1)


def test_a_loss_that_turns_nan_keeps_the_last_good_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 13  # 396 images in batches of 32
    monkeypatch.setattr("stages.session.build_loss", lambda *_: Poisoned(2 * steps + 5))
    message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 4)
    assert "step 5 of epoch 3" in message
    folder = folder_of(tmp_path, "stage1_epochs4")
    assert str(folder / "last.pth") in message
    content = torch.load(folder / "last.pth", weights_only=True)
    assert content["epoch"] == 2
    assert all(tensor.isfinite().all() for tensor in content["model"].values())
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + 2
    assert not (folder / "metrics.json").exists()


def test_a_huge_learning_rate_stops_at_the_first_epoch(tmp_path: Path) -> None:
    message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 3, "--lr", 1e6, "--momentum", 1)
    assert "of epoch 1" in message and "lower learning rate" in message
    assert not list(tmp_path.rglob("*.pth"))


def test_a_huge_learning_rate_of_stage_2(runs: Path) -> None:
    flags = ("--finetune_lr", 1e6, "--momentum", 1, "--finetune_wd", 1e6)
    message = refused("main_stage2", *DIGITS, "--out", runs, "--finetune_epoch", 3, *flags)
    assert "not finite" in message


@pytest.mark.parametrize(
    "flags",
    [
        "--lr 1",
        "--lr 30",
        "--lr 1e3",
        "--lr 1e5",
        "--wd 10 --epochs 3",
        "--wd 39",
        "--lr 0",
        "--width 1",
        "--lr 3 --width 1",
    ],
)
def test_a_poor_choice_is_measured_or_refused(flags: str, tmp_path: Path) -> None:
    """Weights may grow until logits overflow, features may collapse: a number, null or a refusal, no traceback."""
    outcome = run(
        "main_stage1", *DIGITS, "--out", tmp_path, *(flags if "--epochs" in flags else f"{flags} --epochs 2").split()
    )
    assert outcome.status in (0, 2)
    if outcome.status == 2:
        assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    else:
        read(next(tmp_path.rglob("metrics.json")))


def test_features_that_collapsed_are_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose last ReLU is dead gives one feature for every image: a ratio of variances does not exist."""
    original = stages.session.build_model

    def dead(*arguments: Any, **options: Any) -> nn.Module:
        model = original(*arguments, **options)
        block = model.layer3[-1]
        block.bn2.register_forward_hook(lambda module, inputs, output: output * 0 - 1e3)
        return model

    monkeypatch.setattr(stages.session, "build_model", dead)
    stage1(tmp_path, "--epochs", 1)
    metrics = read(next(tmp_path.rglob("metrics.json")))
    assert metrics["train"]["feature_variance_ratio"] is None
    assert set(metrics["logits"]["test"]["column"]["rsd_true"]) == {None}
