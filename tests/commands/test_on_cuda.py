"""The commands on the pretended CUDA device: nothing mixes devices, no step waits, and little goes to and fro."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine.fit
from settings.command_line import parse_command
from settings.fields import STAGE1
from stages.session import settle_execution
from tests.device_events import EPOCH, LAUNCH, QUEUED, READ, STEP, UPLOAD, DeviceEvents
from tests.helpers import image_tree, run, stage1, use_small_cifar, weights, write_cifar
from tests.image_runs import PIXELS, RESNET, SIZES
from tests.pretended_cuda import pretended_cuda

EAGER = ("--compile", "off")  # each operation by itself
SMALL = ("--dataset", "digits", "--epochs", 1, "--width", 4, *EAGER)
KEPT = 4  # files of features beside the views: of held-out, training, test and mirrored test images


def on_cuda(script: str, *arguments: object) -> DeviceEvents:
    """Run a command line on the pretended device, which must end with status 0, and return what it asked for."""
    with pretended_cuda() as device:
        outcome = run(script, *arguments, gpus=1)
    assert outcome.status == 0, outcome.err
    return device


def assert_quiet(device: DeviceEvents, sent: int = 1) -> None:
    """Check that no step waits, and that an epoch reads three numbers at most and is sent `sent` tensors, the order of
    its images among them. Features that are kept in files are read once a run."""
    assert device.epochs > 0 and device.steps > 0
    assert device.count(READ, UPLOAD, section=STEP) == 0, device.lines(READ, UPLOAD, section=STEP)
    reads = device.found(READ, section=EPOCH)
    kept = [event for event in reads if "engine/cache/store.py" in event.line]
    assert len(kept) <= KEPT and len(reads) - len(kept) <= 3 * device.epochs, device.lines(READ, section=EPOCH)
    assert device.count(UPLOAD, section=EPOCH) <= sent * device.epochs, device.lines(UPLOAD, section=EPOCH)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeviceEvents]:
    """A stage 1 of two epochs on the digits with held-out images, and what it asked of the device."""
    out = tmp_path_factory.mktemp("trained")
    device = on_cuda("main_stage1", *SMALL, "--epochs", 2, "--holdout", 0.2, "--out", out)
    return next(out.glob("*/seed0/stage1*")), device


def test_stage1(trained: tuple[Path, DeviceEvents]) -> None:
    """A step of ResNet-8 launches 130 operations at most: more would be slower, and must be worth it."""
    device = trained[1]
    assert_quiet(device)
    assert (device.epochs, device.steps) == (2, 20)
    assert device.count(LAUNCH, section=STEP) <= 130 * device.steps


def test_stage1_is_that_of_the_cpu(tmp_path: Path) -> None:
    """In full precision the weights agree with those of a run on the CPU."""
    on_cuda("main_stage1", *SMALL, "--amp", "off", "--out", tmp_path / "cuda")
    stage1(tmp_path / "cpu", "--epochs", 1, "--width", 4)
    ours, right = (weights(next((tmp_path / name).rglob("last.pth"))) for name in ("cuda", "cpu"))
    for name, value in right.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("save_every", [0, 100])
def test_a_resumed_run_goes_on(save_every: int, tmp_path: Path) -> None:
    """The momentum comes back in the order in memory that CUDA's step wants, and the run ends as one in one piece."""
    arguments = (*SMALL, "--epochs", 3, "--save_every", save_every)
    on_cuda("main_stage1", *arguments, "--out", tmp_path / "whole")
    with pretended_cuda(), pytest.MonkeyPatch.context() as patch:
        train_one = engine.fit.train_one

        def until_epoch_2(session: Any, training: Any, history: Any, epoch: int) -> Any:
            if epoch == 2:
                raise KeyboardInterrupt
            return train_one(session, training, history, epoch)

        patch.setattr(engine.fit, "train_one", until_epoch_2)
        assert run("main_stage1", *arguments, "--out", tmp_path / "parts", gpus=1).status == 130
    on_cuda("main_stage1", *arguments, "--out", tmp_path / "parts", "--resume")
    whole, parts = (weights(next((tmp_path / name).rglob("last.pth"))) for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["--mixup", 0.2], 2),  # and the shares
        (["--augment", "jitter", "--loss", "gala", "--clip_grad", 1.0, "--drop_last"], 1),
    ],
)
def test_forms_of_stage1(tmp_path: Path, arguments: list[object], sent: int) -> None:
    """Mixing, jitter, gathered gradients and clipped ones wait for nothing either."""
    assert_quiet(on_cuda("main_stage1", *SMALL, "--out", tmp_path, *arguments), sent)


def test_autoaugment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy's operations wait, in torchvision and for their groups: for thousands of images at once, and alone."""
    use_small_cifar(monkeypatch)
    write_cifar(tmp_path / "cifar100")
    used = ("--dataset", "cifar100", "--data_dir", tmp_path, "--augment", "autoaugment", "--epochs", 1)
    device = on_cuda("main_stage1", *used, "--out", tmp_path / "runs", *EAGER)
    waits = device.found(READ, UPLOAD, section=STEP) + device.found(READ, UPLOAD, section=EPOCH)
    elsewhere = [event for event in waits if "datasets/augment/autoaugment.py" not in event.line]
    draws = [event for event in elsewhere if re.match(r"datasets/device_images\.py:\d+, called at", event.line)]
    assert len(draws) == 1, device.lines(READ, UPLOAD)  # the policy of a group of images, which the host forms
    assert len(elsewhere) - len(draws) == 4, device.lines(READ, UPLOAD)  # three numbers, and the order


@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        ([], 42),
        (["--sampler", "progressive", "--views", "plain", "--finetune_ema", 0.9], 45),
        (["--bn_mode", "train"], 82),
        (["--method", "wb", "--views", "fresh"], 61),
    ],
)
def test_stage2(trained: tuple[Path, DeviceEvents], tmp_path: Path, arguments: list[object], most: int) -> None:
    """Labels stay where they are: an epoch is sent the order of its images alone; a step launches few operations."""
    used = ("--dataset", "digits", "--out", tmp_path, "--pretrained_pth", trained[0], "--finetune_epoch", 2)
    device = on_cuda("main_stage2", *used, *arguments)
    assert_quiet(device)
    assert device.count(LAUNCH, section=STEP) <= most * device.steps


def test_reports(trained: tuple[Path, DeviceEvents], tmp_path: Path) -> None:
    """Evaluation with all that can be asked for, prediction of files, export and release mix nothing."""
    folder = trained[0]
    asked = ("--coverage", 0.9, "--test_prior", "train")
    on_cuda("evaluate", "--dataset", "digits", "--pretrained_pth", folder, *asked)
    photos = image_tree(tmp_path / "photos", 2, 2)
    device = on_cuda("predict", "--pretrained_pth", folder, "--images", photos, "--csv", tmp_path / "predictions.csv")
    assert device.count(QUEUED) == 1  # the photos
    on_cuda("tools/export_features", folder, tmp_path / "features.safetensors")
    on_cuda("tools/release", folder, tmp_path / "released.safetensors")


def test_images_on_disk(tmp_path: Path) -> None:
    """Their pixels wait in pinned memory, the features that stage 2 reads from a file too; no position is read back."""
    tree = image_tree(tmp_path / "tree", 3, 12, size=PIXELS)
    used = ("--dataset", "folder", "--data_dir", tree, *RESNET, *SIZES, "--workers", 0, "--out", tmp_path / "runs")
    used += ("--batch_size", 8)
    device = on_cuda("main_stage1", *used, "--epochs", 1, "--augment", "jitter", *EAGER)
    assert_quiet(device, sent=2)  # an order for pixels and for labels
    assert device.count(QUEUED, section=STEP) + device.count(QUEUED, section=EPOCH) == device.steps
    device = on_cuda("main_stage2", *used, "--finetune_epoch", 2, "--views", "plain")
    assert_quiet(device)
    assert device.count(QUEUED, section=STEP) + device.count(QUEUED, section=EPOCH) > 0


def write_features(path: Path) -> Path:
    """Write features of four classes with held-out ones, as any model might have made them."""
    generator, made = np.random.default_rng(0), {}
    for split, counts in (("train", (40, 20, 10, 8)), ("test", (5, 5, 5, 5)), ("holdout", (3, 3, 3, 3))):
        labels = np.repeat(np.arange(4), counts)
        made[f"{split}_labels"] = labels
        made[f"{split}_features"] = (generator.normal(size=(len(labels), 6)) + 2 * np.eye(4, 6)[labels]).astype("f4")
    np.savez(path, **made)
    return path


def test_given_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages and a table on features alone; nothing is compiled for them, whatever the GPU can do."""
    monkeypatch.setattr("tables.request.save_figure", lambda *_: None)
    monkeypatch.setattr("methods.linear_probe.STEPS", 5)
    file = write_features(tmp_path / "given.npz")
    used = ("--features", file, "--out", tmp_path / "runs")
    on_cuda("main_stage1", *used)
    assert_quiet(on_cuda("main_stage2", *used, "--finetune_epoch", 1))
    on_cuda("evaluate", *used, "--cur_stage", "stage2")
    device = on_cuda("reproduce", "delta", *used, "--results", tmp_path / "results")
    assert device.count(READ, UPLOAD, section=STEP) == 0, device.lines(READ, UPLOAD, section=STEP)
    with pretended_cuda():
        monkeypatch.setattr("utils.device.compiler_lacks", lambda: None)
        found = settle_execution(parse_command(STAGE1, "", ["--features", str(file)]))
        assert not found.compile and not found.graph
        assert settle_execution(parse_command(STAGE1, "", ["--dataset", "digits"])).graph
        assert settle_execution(parse_command(STAGE1, "", ["--dataset", "digits", "--compile", "on"])).compile
