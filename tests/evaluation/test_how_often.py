"""How often stage 1 is evaluated: the rule by numbers, who it is for, and that a run keeps to what it began with."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from datasets.long_tail import Augmentation
from evaluation.how_often import epochs_between
from settings.command_line import parse_command
from settings.fields import STAGE1, Settings
from settings.resolve import Command
from stages.session import with_evaluations
from tests.helpers import read, run, same, succeed, weights
from utils.device import Execution

TINY = ("--dataset", "digits", "--width", 4, "--device", "cpu")


@pytest.mark.parametrize(
    ("trained", "tested", "epochs", "every"),
    [
        (10847, 20000, 200, 7),  # CIFAR-100 at imbalance factor 100, test images and their mirror images
        (50000, 20000, 200, 2),
        (1000, 300, 200, 1),  # exactly a tenth
        (1000, 301, 200, 2),
        (1000, 0, 200, 1),
        (10, 10000, 20, 20),  # once, at the end
        (10, 10000, 0, 1),
    ],
)
def test_evaluations_take_a_tenth_of_the_training(trained: int, tested: int, epochs: int, every: int) -> None:
    assert epochs_between(trained, tested, epochs) == every


@pytest.mark.parametrize("trained", [7, 100, 396, 10847])
@pytest.mark.parametrize("tested", [1, 50, 597, 20000])
def test_it_is_the_least_number_that_does(trained: int, tested: int) -> None:
    every = epochs_between(trained, tested, 10**6)
    assert 10 * tested <= every * 3 * trained
    assert every == 1 or 10 * tested > (every - 1) * 3 * trained


@dataclass(frozen=True)
class Loaded:
    """A loaded model as far as the rule asks."""

    command: Command
    data: Any
    execution: Execution

    @property
    def settings(self) -> Settings:
        return self.command.settings


@pytest.mark.parametrize(
    ("flags", "device", "mirror", "every"),
    [
        ((), "cpu", True, 7),
        ((), "cpu", False, 4),
        ((), "cuda", True, 1),
        (("--protocol", "released"), "cpu", True, 1),
        (("--eval_every", "3"), "cpu", True, 3),
        (("--eval_every", "1"), "cpu", True, 1),
        (("--epochs", "5"), "cpu", True, 5),
        (("--dataset", "imagenet_lt"), "cpu", True, 5),  # its preset
    ],
)
def test_who_the_rule_is_for(flags: tuple[str, ...], device: str, mirror: bool, every: int) -> None:
    augmentation = Augmentation(padding=4, mirror=mirror, mean=(0.5,) * 3, std=(0.5,) * 3)
    data = SimpleNamespace(train=np.zeros(10847), test=np.zeros(10000), augmentation=augmentation)
    execution = Execution(torch.device(device), False, False, ())
    command = parse_command(STAGE1, "", list(flags))
    loaded: Any = Loaded(command, data, execution)
    assert with_evaluations(loaded).command.settings.eval_every == every


def evaluated(out: Path) -> list[int]:
    """The epochs of the only stage 1 that were evaluated."""
    (file,) = out.rglob("stage1*/log.csv")
    log = pd.read_csv(file)
    return log["epoch"][log["plain_all"].notna()].tolist()


def test_a_run_says_and_records_how_often_and_last_is_the_same(tmp_path: Path) -> None:
    said = {}
    for name, flags in {"rule": (), "all": ("--eval_every", 1), "released": ("--protocol", "released")}.items():
        said[name] = succeed("main_stage1", *TINY, "--epochs", 6, "--out", tmp_path / name, *flags).out
    assert said["rule"].count("evaluated every 5 epochs and after the last") == 1  # 500 images against 3 x 396
    assert "evaluated every" not in said["all"] + said["released"]
    assert [evaluated(tmp_path / name) for name in said] == [[5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]
    (rule,), (every,) = (list((tmp_path / name).rglob("metrics.json")) for name in ("rule", "all"))
    assert read(rule)["last"] == read(every)["last"] and read(rule)["logits"] == read(every)["logits"]
    assert same(weights(rule.parent / "last.pth"), weights(every.parent / "last.pth"))
    assert read(rule.parent / "config.json")["settings"]["eval_every"] == 5


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    """Begun elsewhere, or by an earlier version, it is evaluated as often as it was there."""
    line = ("main_stage1", *TINY, "--epochs", 6, "--out", tmp_path)
    succeed(*line, "--eval_every", 1)
    (metrics,) = tmp_path.rglob("metrics.json")
    metrics.unlink()
    outcome = succeed(*line, "--resume")
    assert "evaluated every" not in outcome.out and evaluated(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert "using the finished run" in succeed(*line, "--reuse").out
    refused = run(*line, "--resume", "--eval_every", 5)
    assert refused.status == 2 and "--eval_every 1 there, 5 now" in refused.err and refused.err.count("\n") == 1
