"""What config.json says of a run's starts, and how long the epochs to come are said to take."""

import copy
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import engine.fit
import engine.frozen_features
import engine.log
from engine.log import LAST_EPOCHS, Pace
from runs.run_folder import other_part, parts_of
from tests.helpers import folder_of, read, run, stage1, succeed
from utils.command import EPOCHS_ARE_SAVED
from utils.files import write_json

LINE = ("--dataset", "digits", "--width", 4, "--epochs", 3)
NAME = "stage1_epochs3_width4"


def stopped(out: Path, epochs: int) -> Path:
    """A run that was stopped after some epochs."""
    train = engine.fit.train_one

    def interrupting(session: Any, training: Any, history: Any, epoch: int) -> Any:
        if epoch == epochs:
            raise KeyboardInterrupt
        return train(session, training, history, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.fit, "train_one", interrupting)
        outcome = run("main_stage1", *LINE, "--out", out)
    assert outcome.status == 130 and EPOCHS_ARE_SAVED in outcome.err
    return folder_of(out, NAME)


def test_every_start_of_a_run_is_a_part(tmp_path: Path) -> None:
    """With what moves its numbers: processes, threads, precision, the version of PyTorch."""
    folder = stopped(tmp_path, 1)
    [first] = read(folder / "config.json")["parts"]
    assert (first["epochs_done"], first["processes"], first["precision"]) == (0, 1, "fp32")
    assert first["torch"] == torch.__version__ and first["environment"] == read(folder / "config.json")["environment"]
    resumed = succeed("main_stage1", *LINE, "--out", tmp_path, "--resume", "--workers", 1 + first["threads"])
    config = read(folder / "config.json")
    assert config["parts"][0] == first and len(config["parts"]) == 2
    second = config["parts"][1]
    assert second["epochs_done"] == 1 and second["threads"] == 1 + first["threads"]
    assert "--resume" in second["command"] and "--resume" not in first["command"]
    assert config["resumed"] == [second["environment"]]
    said = f"threads {first['threads']} before, {second['threads']} now"
    assert f"this part differs from the one before it: {said}" in resumed.out
    assert torch.load(folder / "last.pth", weights_only=True)["config"] == config


def test_a_run_that_did_not_record_its_parts_goes_on(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 2)
    before = read(folder / "config.json")
    old = copy.deepcopy(before)
    del old["parts"]
    old["resumed"] = [{**old["environment"], "torch": "2.0"}]
    write_json(folder / "config.json", old)
    parts = parts_of(old)
    assert [part["torch"] for part in parts] == [torch.__version__, "2.0"]
    assert [part["epochs_done"] for part in parts] == [0, None]
    assert [part["threads"] for part in parts] == [None, None]
    resumed = succeed("main_stage1", *LINE, "--out", tmp_path, "--resume")
    assert f"torch 2.0 before, {torch.__version__} now" in resumed.out
    config = read(folder / "config.json")
    assert config["parts"][:2] == parts and config["parts"][2]["epochs_done"] == 2
    assert len(config["resumed"]) == 2


def test_a_start_before_the_first_epoch_is_a_part_too(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 1)
    for name in ("last.pth", "log.csv"):  # as a kill in the first epoch leaves it
        (folder / name).unlink()
    succeed("main_stage1", *LINE, "--out", tmp_path, "--resume")
    assert [part["epochs_done"] for part in read(folder / "config.json")["parts"]] == [0, 0]


def test_what_is_not_known_does_not_differ() -> None:
    now = {"processes": 2, "threads": 1, "precision": "fp32", "torch": "2.11"}
    assert other_part({"parts": [dict.fromkeys(now), now]}) == other_part({"parts": [now, now]}) == ""
    assert other_part({"parts": [{**now, "processes": 1}, now]}) == "processes 1 before, 2 now"


# The time to go


class Clock:
    """A clock that a test moves, and features that take their time from it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spent = 0.0
        self.ahead = 0.0


def test_what_is_computed_once_is_not_expected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 epochs of a second each the first took 16 minutes longer, for features: 99 seconds are left."""
    clock = Clock()
    monkeypatch.setattr(engine.log, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    pace = Pace(1, lambda: (clock.spent, clock.ahead))
    clock.now, clock.spent = 961.0, 960.0
    assert pace.left(99) == pytest.approx(99)
    clock.now, clock.ahead = 962.0, 50.0  # another view is to come
    assert pace.left(98) == pytest.approx(98 + 50)
    clock.now += 1
    assert pace.left(0) == 0


def test_the_last_epochs_say_how_long_the_next_ones_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(engine.log, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    pace = Pace(1)
    clock.now = 600.0  # compiling
    assert pace.left(10) == 6000
    for _ in range(LAST_EPOCHS):
        clock.now += 2
        left = pace.left(10)
    assert left == pytest.approx(20)


def test_stage_2_counts_its_features_once(tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 1, "--width", 4)
    line = ("--dataset", "digits", "--width", 4, "--out", tmp_path, "--finetune_epoch", 40, "--views", 2)
    slow = "engine.frozen_features.FrozenFeatures._features"
    original = engine.frozen_features.FrozenFeatures._features

    def slowly(*arguments: Any, **more: Any) -> torch.Tensor:
        time.sleep(0.3)
        return original(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow, slowly)
        lines = [text for text in succeed("main_stage2", *line).out.splitlines() if text.startswith("epoch")]
    left = [text.split(") ")[1] for text in lines]
    # A view and 39 epochs of some milliseconds; it was 48 s when all counted.
    assert re.fullmatch(r"1?\d s to go", left[0]) and left[-1] == "0 s to go"
