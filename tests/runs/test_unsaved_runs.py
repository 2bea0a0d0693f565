"""Runs that end before an epoch of them is saved: no folder stays, and the same command begins again."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.fit
import engine.frozen_features
from runs.run_folder import Run, open_run, saved_or_removed
from tests.forks import Child, run_script, wait_for
from tests.helpers import contents, folder_of, image_tree, run, succeed
from tests.image_runs import train_on_images
from utils.command import EPOCHS_ARE_SAVED, NO_EPOCH_IS_SAVED
from utils.files import LOCK, lock_folder

LINE = ("--dataset", "digits", "--width", 4, "--epochs", 2, "--eval_every", 1)
NAME = "stage1_epochs2_width4"


def folders(out: Path) -> list[Path]:
    """Run folders with anything in them."""
    return [path for path in out.rglob("*") if path.is_dir() and path.name.startswith(("stage1", "stage2"))]


def stop(*arguments: Any, **named: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images of three classes."""
    return image_tree(tmp_path / "images", 3, 6)


@pytest.mark.parametrize("form", ["folder", "list"])
def test_an_image_that_cannot_be_read_leaves_no_run(form: str, tree: Path, tmp_path: Path) -> None:
    image = next(iter(sorted(tree.glob("train/*/*"))))
    content = image.read_bytes()
    given: tuple[object, ...] = ()
    if form == "list":
        for part in ("train", "test"):
            rows = [f"{path.relative_to(tree)},{path.parent.name}" for path in sorted(tree.glob(f"{part}/*/*"))]
            (tmp_path / f"{part}.csv").write_text("\n".join(["path,label", *rows]))
        lists = ("--train_list", tmp_path / "train.csv", "--test_list", tmp_path / "test.csv")
        given = (*lists, "--image_root", tree)
    out = tmp_path / "out"
    if form == "list":
        image.unlink()
    else:
        image.write_bytes(content[:20])
    refused = train_on_images(tree, out, *given, form=form)
    assert refused.status == 2 and refused.err.count("\n") == 1
    assert f"cannot read the image {image}: " in refused.err
    assert refused.err.endswith("; --skip_bad N leaves out up to N such images\n")
    assert not folders(out)
    image.write_bytes(content)
    assert train_on_images(tree, out, *given, form=form).status == 0


@pytest.mark.parametrize("flag", [(), ("--resume",), ("--reuse",), ("--overwrite",)])
def test_what_a_kill_left_before_an_epoch_was_saved_is_no_run(flag: tuple[str, ...], tmp_path: Path) -> None:
    succeed("main_stage1", *LINE, "--out", tmp_path / "runs")
    folder = folder_of(tmp_path / "runs", NAME)
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    assert list(contents(folder)) == ["config.json"]
    succeed("main_stage1", *LINE, "--out", tmp_path / "runs", *flag)
    assert {"last.pth", "metrics.json"} <= {path.name for path in folder.iterdir()}


def test_a_record_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, NAME)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    outcome = run("main_stage1", *LINE, "--out", tmp_path)
    assert outcome.status == 2 and "is of no run of this project" in outcome.err
    assert (folder / "config.json").read_text() == '{"model_type": "resnet"}'


@pytest.mark.parametrize("place", ["load", "epoch", "report"])
def test_an_interruption_says_what_is_saved(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        if place == "load":
            patch.setattr("stages.data.load_dataset", stop)
        elif place == "epoch":
            patch.setattr(engine.fit, "train_one", stop)
        else:
            patch.setattr("stages.commands.stage1.finish_run", stop)
        outcome = run("main_stage1", *LINE, "--out", tmp_path)
    saved = place == "report"
    assert outcome.status == 130
    assert outcome.err == f"interrupted{EPOCHS_ARE_SAVED if saved else NO_EPOCH_IS_SAVED}\n"
    assert bool(folders(tmp_path)) == saved
    if saved:
        monkeypatch.setattr("stages.data.load_dataset", stop)
        again = run("main_stage1", *LINE, "--out", tmp_path, "--resume")
        assert again.err == f"interrupted{NO_EPOCH_IS_SAVED}\n"  # since then
        monkeypatch.undo()
        succeed("main_stage1", *LINE, "--out", tmp_path, "--resume")
    else:
        succeed("main_stage1", *LINE, "--out", tmp_path)


def test_the_first_moment_of_a_process(tmp_path: Path) -> None:
    """SIGINT while the first epoch trains, to a process: it says that nothing is saved, and nothing is there."""
    arguments = (*LINE[:4], "--epochs", 3000, "--batch_size", 1, "--eval_every", 3000, "--out", tmp_path / "runs")
    child = Child(run_script("main_stage1", *arguments), out=tmp_path / "out")
    wait_for(tmp_path / "out", "stage1")
    os.kill(child.pid, signal.SIGINT)
    status, err = child.end()
    assert status == 130 and err in (f"interrupted{NO_EPOCH_IS_SAVED}\n", f"interrupted{EPOCHS_ARE_SAVED}\n")
    assert bool(folders(tmp_path / "runs")) == (EPOCHS_ARE_SAVED in err)


def test_stage_2_and_the_probe_leave_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 4)
    arrays = {
        f"{split}_{kind}": values
        for split in ("train", "test")
        for kind, values in (("features", draw.standard_normal((12, 5))), ("labels", labels))
    }
    np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
    line = ("main_stage2", "--features", tmp_path / "mine.npz", "--out", tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr("stages.linear_probe_start.fit_probe", stop)
        assert run(*line).err.endswith(NO_EPOCH_IS_SAVED + "\n") and not folders(tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(engine.fit, "train_one", stop)
        assert run(*line).err.endswith(NO_EPOCH_IS_SAVED + "\n")
    (probe,) = folders(tmp_path / "runs")
    assert probe.name == "stage1"
    for path in probe.iterdir():  # as a kill leaves it
        if path.name != "config.json":
            path.unlink()
    succeed(*line)


def opened(folder: Path) -> Run:
    return open_run(folder, {"settings": {"resume": False}, "stage": "stage1"}, resume=False, overwrite=False)


def test_what_is_not_a_runs_own_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run_of = opened(tmp_path / "run")
    with pytest.raises(ValueError), saved_or_removed(run_of):
        raise ValueError
    assert contents(tmp_path) == {"run/notes.txt": b"mine"}


def test_a_folder_that_another_has_locked_since_stays(tmp_path: Path) -> None:
    run_of = opened(tmp_path / "run")
    assert run_of.lock is not None
    run_of.lock.release()
    lock = lock_folder(tmp_path / "run")
    with pytest.raises(ValueError), saved_or_removed(run_of):
        raise ValueError
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", LOCK} and lock is not None
