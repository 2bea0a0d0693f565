"""Other people's checkpoints through the commands: evaluate.py, both stages, release, predict.py."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models import build_model
from tests.helpers import read, refused, succeed

DIGITS = ("--dataset", "digits", "--width", 4)
WIDTH, CLASSES = 4, 10
State = dict[str, Any]


def network(seed: int) -> State:
    torch.manual_seed(seed)
    return build_model("resnet8", CLASSES, width=WIDTH).state_dict()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network alone, others beside their averages, and one with a cosine classifier."""
    monkeypatch.chdir(tmp_path)
    plain, average = network(0), network(1)
    torch.save(plain, "plain.pth")
    torch.save(average, "average.pth")
    averaged = {f"module.{key}": value for key, value in average.items()} | {"n_averaged": torch.tensor(3)}
    content = {"model": plain, "model_ema": averaged, "args": argparse.Namespace(lr=0.1), "acc": np.float64(1)}
    torch.save(content, "both.pth")
    cosine = {key: value for key, value in plain.items() if key != "fc.bias"}
    cosine["linear.weight"] = cosine.pop("fc.weight").T.contiguous()
    torch.save({"state_dict": cosine, "best_acc1": np.float64(1)}, "cosine.pth.tar")
    return tmp_path


def accuracy(file: str, *flags: object) -> tuple[Any, str]:
    """What a report says of a file, and what it prints."""
    out = succeed("evaluate", *DIGITS, "--pretrained_pth", file, "--json", "report.json", *flags).out
    (record,) = read(Path("report.json"))["checkpoints"].values()
    return record["plain"], out


def test_reports_on_plain_and_averaged_weights(files: Path) -> None:
    plain, said = accuracy("both.pth")
    assert plain == accuracy("plain.pth")[0] and "under 'model_ema': --ema takes them" in said
    average, said = accuracy("both.pth", "--ema")
    assert average == accuracy("average.pth")[0] != plain and "'model_ema' (EMA weights)" in said
    assert "no averaged weights are in it" in refused("evaluate", *DIGITS, "--pretrained_pth", "plain.pth", "--ema")
    assert "name it with --weights or --pretrained_pth" in refused("main_stage1", *DIGITS, "--ema")


def test_training_from_plain_and_averaged_weights(files: Path) -> None:
    flags = (*DIGITS, "--out", "runs", "--epochs", 1)
    folders: dict[bool, Path] = {}
    for more in ((), ("--ema",)):
        said = succeed("main_stage1", *flags, "--weights", "both.pth", *more).out
        assert ("(EMA weights)" in said) == bool(more)
        for config in (files / "runs").rglob("config.json"):
            folders[read(config)["settings"]["ema"]] = config.parent
    folder = folders[True]
    assert len(folders) == 2 and folder.name == f"{folders[False].name}_ema"
    found = succeed("main_stage2", *DIGITS, "--out", "runs", "--weights", "both.pth", "--ema", "--finetune_epoch", 1)
    assert str(folder.relative_to(files)) in found.out
    for more in ((), ("--ema",)):
        made = ("main_stage2", *DIGITS, "--out", "new", "--pretrained_pth", "both.pth", "--finetune_epoch", 1, *more)
        succeed(*made)
    assert len(list((files / "new").rglob("config.json"))) == 2
    assert "no averaged weights are in a file of this project" in refused(
        "main_stage2", *DIGITS, "--pretrained_pth", folder, "--ema", "--out", "new"
    )


def test_the_folder_of_a_run_is_a_file_of_weights_too(files: Path) -> None:
    succeed("main_stage1", *DIGITS, "--out", "runs", "--epochs", 1)
    folder = next((files / "runs").rglob("config.json")).parent
    said = succeed("main_stage1", *DIGITS, "--out", "more", "--epochs", 1, "--weights", folder).out
    assert f"weights: {folder / 'last.pth'} (stage1 checkpoint, epoch 1)" in said


def test_a_cosine_classifier_from_report_to_prediction(files: Path) -> None:
    report, said = accuracy("cosine.pth.tar")
    assert "its cosine classifier, transposed, with scale 30" in said
    made = succeed("main_stage2", *DIGITS, "--out", "runs", "--pretrained_pth", "cosine.pth.tar", "--finetune_epoch", 1)
    assert "as linear rows of length 1" in made.out
    (files / "digit.png").touch()
    message = refused("predict", "--pretrained_pth", "cosine.pth.tar", "--images", "digit.png")
    assert "python -m tools.release cosine.pth.tar" in message
    from tools.release import main

    main(["cosine.pth.tar", "released.safetensors", *map(str, DIGITS)])
    again = accuracy("released.safetensors")[0]
    assert again["all"] == pytest.approx(report["all"], abs=0.02)  # in half precision
    succeed("main_stage2", "--out", "more", "--pretrained_pth", "released.safetensors", "--finetune_epoch", 1)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("digit.png")
    succeed("predict", "--pretrained_pth", "released.safetensors", "--images", "digit.png", "--csv", "rows.csv")
    assert Path("rows.csv").read_text().count("\n") == 2


def test_another_network_is_named_first(files: Path) -> None:
    for script, flag in (
        ("main_stage1", "--weights"),
        ("main_stage2", "--pretrained_pth"),
        ("evaluate", "--pretrained_pth"),
    ):
        message = refused(script, *DIGITS, "--network", "resnet20", flag, "plain.pth")
        assert "wrong --network: the file is of --network resnet8 --stem cifar --width 4; " in message
        assert "\n" not in message.strip()
