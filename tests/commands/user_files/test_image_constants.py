"""`--mean`, `--std` and `--mirror`: what a run trains under, its record, and what other commands make of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runs.dependencies import key_of
from runs.records import config_faults
from runs.run_record import dependencies
from settings.command_line import parse_command
from settings.declare import EVALUATE
from stages.session import load_model, settle_execution
from stages.start import find_reported
from tests.helpers import contents, folder_of, read, refused, run, stage1, stage2, succeed, weights
from tools import release

PIXELS = 16
TINY = ("--stem", "cifar", "--network", "resnet8", "--width", 4, "--image_size", PIXELS, "--resize", PIXELS)
FAST = ("--batch_size", 16, "--wd", 5e-4, "--workers", 0, "--augment", "crop", "--lr", 0.05)
SHORT = ("--epochs", 1, "--width", 4)
CLASSES = {"darker_left": 1, "darker_right": -1}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that grow brighter to the right or to the left: each is the mirror image of one of the other class."""
    folder = tmp_path_factory.mktemp("sides")
    ramp = np.linspace(40, 200, PIXELS)
    for part, count in (("train", 32), ("test", 12)):
        for label, (name, step) in enumerate(CLASSES.items()):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng(number + 100 * label + 1000 * (part == "test"))
                pixels = ramp[None, ::step, None] + noise.normal(0, 15, (PIXELS, PIXELS, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def runs(sides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stage 1 and stage 2 on them: with mirroring, which data on disk have by default, and without."""
    out = tmp_path_factory.mktemp("runs")
    data = ("--dataset", "folder", "--data_dir", sides, "--out", out)
    for mirror in ((), ("--mirror", "off")):
        succeed("main_stage1", *data, *TINY, *FAST, "--epochs", 6, *mirror)
        found = succeed(
            "main_stage2", *data, "--finetune_epoch", 2, "--workers", 0, "--image_size", PIXELS, *TINY, *mirror
        )
        assert found.out.count("never mirrored") == (1 if mirror else 0)
    paths = [path.parent for path in out.rglob("metrics.json")]
    names = {"on": "stage1_", "on 2": "stage2_", "off": "stage1_", "off 2": "stage2_"}
    return {
        key: next(p for p in paths if p.name.startswith(start) and ("mirroroff" in p.name) == key.startswith("off"))
        for key, start in names.items()
    }


def joined(text: str) -> str:
    """Return lines as one, as nothing says where they are broken."""
    return " ".join(text.split())


def test_without_mirroring_left_and_right_are_learned(runs: dict[str, Path]) -> None:
    """Mirrored at random, the images of both classes are the same."""
    accuracy = {key: read(path / "metrics.json")["last"]["plain"]["all"] for key, path in runs.items()}
    assert accuracy["off"] > 90 and accuracy["off 2"] > 90, accuracy
    assert accuracy["on"] < 80, accuracy


def test_the_switch_is_recorded_and_no_image_is_mirrored(runs: dict[str, Path], tmp_path: Path) -> None:
    for key in ("off", "off 2"):
        metrics, config = read(runs[key] / "metrics.json"), read(runs[key] / "config.json")
        assert metrics["last"]["flip"] is None and metrics["best"]["flip"] is None
        assert config["settings"]["mirror"] == "off" and config["images"]["mirror"] is False
        report = succeed("evaluate", "--pretrained_pth", runs[key], "--workers", 0)
        assert "never mirrored; --mirror" in joined(report.out) and "flip" not in report.out and report.err == ""
    assert read(runs["on"] / "metrics.json")["last"]["flip"] is not None
    image = next(Path(read(runs["off"] / "config.json")["settings"]["data_dir"]).rglob("*.png"))
    command = ("predict", "--pretrained_pth", runs["off"], "--images", image, "--flip", "--csv", tmp_path / "a.csv")
    assert "mirrored image shows something else" in run(*command).err


def test_a_flag_beside_a_checkpoint_is_obeyed_and_said(runs: dict[str, Path]) -> None:
    report = succeed("evaluate", "--pretrained_pth", runs["off"], "--workers", 0, "--mirror", "on")
    assert "last, flip" in report.out
    assert report.err.startswith("note: ") and "never mirrored; here they are of" in report.err
    same = succeed("evaluate", "--pretrained_pth", runs["off"], "--workers", 0, "--mean", "imagenet")
    assert same.err == "" and "(imagenet), never mirrored; --mean --mirror" in joined(same.out)


# Constants


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the digits: stage 1 under its own constants and under ImageNet's, stage 2 on the latter."""
    out = tmp_path_factory.mktemp("digits")
    stage1(out, *SHORT)
    stage1(out, *SHORT, "--mean", "imagenet")
    stage2(out, "--width", 4, "--finetune_epoch", 1, "--mean", "imagenet")
    return out


def all_of(folder: Path, *flags: object) -> tuple[float, str, str]:
    """Return the accuracy of a run as `evaluate.py` reports it, and what it says."""
    report = folder / "report.json"
    outcome = succeed("evaluate", "--pretrained_pth", folder, "--json", report, *flags)
    found = read(report)["checkpoints"]["last"]["plain"]
    report.unlink()
    return found["nll"], joined(outcome.out), outcome.err


def test_existing_commands_name_their_folders_as_before(digits: Path) -> None:
    assert folder_of(digits, "stage1_epochs1_width4").is_dir()
    assert folder_of(digits, "stage1_epochs1_width4_meanimagenet").is_dir()
    assert folder_of(digits, "stage2_los_epochs1_width4_meanimagenet_finetune_epoch1").is_dir()


def test_constants_are_recorded_and_the_runs_own_are_used(digits: Path) -> None:
    for name in ("stage1_epochs1_width4_meanimagenet", "stage2_los_epochs1_width4_meanimagenet_finetune_epoch1"):
        folder = folder_of(digits, name)
        config, metrics = read(folder / "config.json"), read(folder / "metrics.json")
        assert config["images"]["mean"] == [0.485, 0.456, 0.406] and config["settings"]["mean"] == "imagenet"
        nll, out, err = all_of(folder)
        assert nll == pytest.approx(metrics["last"]["plain"]["nll"], rel=1e-5) and err == ""
        assert "pixels: mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (imagenet), never mirrored; --mean" in out
    nll, out, err = all_of(folder_of(digits, "stage1_epochs1_width4"))
    assert "std 0.354 0.354 0.354, never mirrored; those of the data set" in out and err == ""


def test_other_constants_than_the_checkpoints_are_obeyed_and_said(digits: Path) -> None:
    folder = folder_of(digits, "stage1_epochs1_width4_meanimagenet")
    own, _, _ = all_of(folder)
    nll, out, err = all_of(folder, "--mean", 0.3, "--std", 0.4)
    assert abs(nll - own) > 1e-3
    assert "mean 0.3 0.3 0.3, std 0.4 0.4 0.4, never mirrored; --mean --std" in out
    assert err.startswith(f"note: {folder / 'last.pth'} learned from images of mean 0.485 0.456 0.406")
    again, _, err = all_of(folder, "--mean", "0.485,0.456,0.406", "--std", "0.229", "0.224", "0.225")
    assert again == own and err == ""  # the same numbers in other words


def test_a_strangers_weights_are_read_under_the_constants_that_are_named(digits: Path, tmp_path: Path) -> None:
    folder = folder_of(digits, "stage1_epochs1_width4_meanimagenet")
    torch.save(weights(folder / "last.pth"), tmp_path / "plain.pth")
    flags = ("evaluate", "--pretrained_pth", tmp_path / "plain.pth", "--dataset", "digits", "--width", 4)
    found = {}
    for name, own in (("named", ("--mean", "imagenet")), ("unnamed", ())):
        outcome = succeed(*flags, *own, "--json", tmp_path / f"{name}.json")
        assert "plain.pth does not say what it was trained with: --mean and --std do" in outcome.out
        found[name] = read(tmp_path / f"{name}.json")["checkpoints"]["plain"]["plain"]
    metrics = read(folder / "metrics.json")["last"]["plain"]
    assert found["named"]["per_class_accuracy"] == metrics["per_class_accuracy"]
    assert found["named"]["nll"] == pytest.approx(metrics["nll"], rel=1e-5)
    assert abs(found["unnamed"]["nll"] - metrics["nll"]) > 1e-3


def test_weights_that_learned_under_other_constants_are_said(digits: Path, tmp_path: Path) -> None:
    file = folder_of(digits, "stage1_epochs1_width4_meanimagenet") / "last.pth"
    flags = (*SHORT, "--weights", file)
    assert f"note: --weights {file} learned from images of mean 0.485" in stage1(tmp_path / "a", *flags).err
    assert "note" not in stage1(tmp_path / "b", *flags, "--mean", "imagenet").err


def test_keys_depend_on_the_constants(digits: Path) -> None:
    def key(*flags: str) -> str:
        command = parse_command(EVALUATE, "", ["--pretrained_pth", str(folder), "--device", "cpu", *flags])
        command, checkpoints = find_reported(command)
        loaded = load_model(command, settle_execution(command), lambda c: (c, checkpoints["last"]))
        return key_of(dependencies(loaded))

    folder = folder_of(digits, "stage1_epochs1_width4")
    assert key() == key() != key("--mean", "cifar") != key("--mean", "imagenet")
    assert key() != key("--mirror", "on")


def test_the_card_of_a_release_has_them(digits: Path, tmp_path: Path) -> None:
    folder, file = folder_of(digits, "stage1_epochs1_width4_meanimagenet"), tmp_path / "a.safetensors"
    release.main([str(folder), str(file)])
    card: dict[str, Any] = read(file.with_suffix(".json"))
    assert card["images"]["std"] == [0.229, 0.224, 0.225] and card["images"]["mirror"] is False
    succeed("evaluate", "--pretrained_pth", file)


def test_a_run_goes_on_under_its_own_constants_alone(digits: Path) -> None:
    before = contents(digits)
    flags = ("--dataset", "digits", "--out", digits, *SHORT)
    assert "no stage1 run" in refused("main_stage2", *flags[:4], "--width", 4, "--mean", "cifar")
    assert "go together" in refused("main_stage1", *flags, "--mean", 0.5)
    assert "divide numbers of 0 to 255 by 255" in refused("main_stage1", *flags, "--mean", 123, "--std", 58)
    assert "--mean: 'grey' is neither" in refused("main_stage1", *flags, "--mean", "grey")
    assert "unknown --mirror 'no'" in refused("main_stage1", *flags, "--mirror", "no")
    assert contents(digits) == before


@pytest.mark.parametrize("value", ["abc", "0.5", "1,2", 0.5, ["0.5"], "nan,0,0", "0.5,0.5,0.5 "])
def test_a_record_whose_constants_no_command_line_can_have_made_is_damaged(value: object) -> None:
    assert config_faults({"settings": {"mean": "0.5,0.5,0.5", "std": None, "mirror": "off"}}) == []
    assert config_faults({"settings": {"mean": value}}) == ["mean"]
