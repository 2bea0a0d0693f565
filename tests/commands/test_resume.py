"""Interrupted runs: what is saved, what resuming gives, what it refuses; and what --overwrite may touch."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import engine.fit
import engine.saving
import main_stage2
from tests.forks import Child, run_script, wait_for
from tests.helpers import Outcome, assert_same_run, contents, folder_of, read, run, stage1, succeed, weights

EPOCHS = 3
VARIANTS: dict[str, tuple[str, tuple[object, ...], str]] = {
    "stage 1": ("main_stage1", ("--epochs", EPOCHS, "--eval_every", 1), "stage1_epochs3_width4"),
    "mixup": ("main_stage1", ("--epochs", EPOCHS, "--mixup", 0.4), "stage1_epochs3_width4_mixup0.4"),
    "holdout": (
        "main_stage1",
        ("--epochs", EPOCHS, "--holdout", 0.2, "--eval_every", 2),
        "stage1_epochs3_holdout0.2_width4",
    ),
    "honest": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--views", 2),
        "stage2_los_epochs2_width4_finetune_epoch3_views2",
    ),
    "new classifier": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--reinit_classifier", "--views", "fresh"),
        "stage2_los_epochs2_width4_finetune_epoch3_reinit_classifier_viewsfresh",
    ),
    "released": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--protocol", "released"),
        "stage2_los_epochs2_width4_finetune_epoch3_released",
    ),
    "gala stage 1": (
        "main_stage1",
        ("--epochs", EPOCHS, "--loss", "gala", "--gala_accumulation", "double"),
        "stage1_epochs3_width4_lossgala_gala_accumulationdouble",
    ),
    "gala": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--method", "gala", "--views", 2),
        "stage2_gala_epochs2_width4_finetune_epoch3_views2",
    ),
    "gcl": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--method", "gcl", "--views", 2),
        "stage2_gcl_epochs2_width4_finetune_epoch3_views2",
    ),
    "class_balanced": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--sampler", "class_balanced", "--views", 2),
        "stage2_los_epochs2_width4_finetune_epoch3_samplerclass_balanced_views2",
    ),
    "progressive": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--sampler", "progressive", "--views", 2),
        "stage2_los_epochs2_width4_finetune_epoch3_samplerprogressive_views2",
    ),
    "wb": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--method", "wb", "--views", 2),
        "stage2_wb_epochs2_width4_finetune_epoch3_views2",
    ),
    "late loss": (
        "main_stage2",
        ("--finetune_epoch", EPOCHS, "--method", "ldam_drw", "--max_margin", 0.3, "--views", 2),
        "stage2_ldam_drw_epochs2_width4_finetune_epoch3_max_margin0.3_views2",
    ),
}


def command(variant: str, start: Path, out: Path) -> tuple[str, list[object]]:
    """The command line of a variant, small enough to be run many times."""
    script, flags, _ = VARIANTS[variant]
    given = ["--dataset", "digits", "--width", 4, "--out", out, *flags]
    return script, given + (["--pretrained_pth", start] if script == "main_stage2" else [])


def interrupt(script: str, arguments: list[object], epoch: int, place: str) -> Outcome:
    """Run a command line and press Ctrl-C at one place of an epoch (from 1).

    "before best.pth" and "before last.pth" are the moments when that file is due, "log.csv" is when the epoch is
    complete.
    """
    save, report = engine.saving.save_checkpoint, engine.log.print_epoch

    def stop_before_saving(path: Path, content: dict[str, Any]) -> None:
        if content["epoch"] == epoch and place == f"before {path.name}":
            raise KeyboardInterrupt
        save(path, content)

    def stop_after_logging(row: dict[str, Any], *rest: Any) -> None:
        report(row, *rest)
        if row["epoch"] == epoch and place == "log.csv":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.saving, "save_checkpoint", stop_before_saving)
        patch.setattr(engine.fit, "print_epoch", stop_after_logging)
        every_epoch = ["--save_every", 0] if place.startswith("before") else []
        return run(script, *arguments, *every_epoch)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage 1 for stage 2 to start from."""
    out = tmp_path_factory.mktemp("start")
    stage1(out, "--width", 4)
    return folder_of(out, "stage1_epochs2_width4")


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each variant's run without an interruption."""
    folders = {}
    for variant, (_, _, name) in VARIANTS.items():
        out = tmp_path_factory.mktemp("whole")
        script, arguments = command(variant, start, out)
        succeed(script, *arguments)
        folders[variant] = folder_of(out, name)
        assert folders[variant].is_dir(), list(out.rglob("config.json"))
    return folders


STOPS = [
    *(("stage 1", epoch, place) for epoch in (1, 2, 3) for place in ("before last.pth", "log.csv")),
    *((variant, epoch, "log.csv") for variant in ("mixup", "honest", "released") for epoch in (1, 2)),
    *((variant, 2, "before last.pth") for variant in ("mixup", "honest", "released")),
    ("stage 1", 1, "before best.pth"),
    ("honest", 3, "log.csv"),
    ("released", 3, "log.csv"),
    ("holdout", 1, "log.csv"),
    ("holdout", 2, "log.csv"),
    ("new classifier", 1, "log.csv"),
    *((variant, epoch, "log.csv") for variant in ("gala stage 1", "gala", "gcl") for epoch in (1, 2)),
    ("gala stage 1", 3, "before last.pth"),
    ("gcl", 2, "before last.pth"),
    *((variant, 2, "log.csv") for variant in ("class_balanced", "progressive", "wb", "late loss")),
]


@pytest.mark.parametrize(("variant", "epoch", "place"), STOPS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    variant: str, epoch: int, place: str, start: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    script, arguments = command(variant, start, tmp_path)
    stopped = interrupt(script, arguments, epoch, place)
    assert stopped.status == 130
    folder = folder_of(tmp_path, VARIANTS[variant][2])
    finished = epoch if place == "log.csv" else epoch - 1
    assert stopped.err.count("\n") == 1 and ("--resume" in stopped.err) == (finished > 0)
    assert folder.exists() == (finished > 0 or place == "before last.pth")  # which best.pth precedes
    assert (folder / "last.pth").exists() == (finished > 0)
    assert not (folder / "metrics.json").exists()
    if finished:
        assert torch.load(folder / "last.pth", weights_only=True)["epoch"] == finished
        assert pd.read_csv(folder / "log.csv")["epoch"].tolist() == list(range(1, finished + 1))
    resumed = succeed(script, *arguments, "--resume")
    assert (f"after epoch {finished} of {EPOCHS}" in resumed.out) == (finished > 0)
    assert_same_run(folder, whole[variant])


@pytest.mark.parametrize("variant", ["gala stage 1", "gala"])
def test_what_gala_has_gathered_is_in_the_checkpoint(variant: str, whole: dict[str, Path]) -> None:
    gathered = torch.load(whole[variant] / "last.pth", weights_only=True)["loss"]
    theta = [value for name, value in gathered.items() if name.endswith("theta")]
    sums = [value for name, value in gathered.items() if name.endswith("theta_sum")]
    assert theta and all(bool((value > 0).all()) for value in theta)
    assert all(torch.equal(a, b) != (variant == "gala stage 1") for a, b in zip(theta, sums, strict=True))


def test_an_interrupted_gala_does_not_start_its_statistics_anew(start: Path, tmp_path: Path) -> None:
    script, arguments = command("gala", start, tmp_path)
    interrupt(script, arguments, 2, "log.csv")
    last = folder_of(tmp_path, VARIANTS["gala"][2]) / "last.pth"
    before = torch.load(last, weights_only=True)["loss"]
    succeed(script, *arguments, "--resume")
    after = torch.load(last, weights_only=True)["loss"]
    assert before and all(bool((after[name] > value).all()) for name, value in before.items())


# --reuse


@pytest.mark.parametrize("variant", ["stage 1", "honest"])
def test_reuse_takes_a_finished_run_as_it_is(variant: str, start: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    script, arguments = command(variant, start, tmp_path)
    folder = folder_of(tmp_path, VARIANTS[variant][2])
    shutil.copytree(whole[variant], folder)
    before = contents(tmp_path)
    outcome = succeed(script, *arguments, "--reuse")
    assert contents(tmp_path) == before
    assert f"using the finished run {folder}" in outcome.out and "epoch " not in outcome.out


def test_reuse_takes_a_run_of_before_the_loss_of_its_stage_1_was_recorded(
    start: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    """Its sha256 settles which stage 1 it was."""
    script, arguments = command("honest", start, tmp_path)
    folder = folder_of(tmp_path, VARIANTS["honest"][2])
    shutil.copytree(whole["honest"], folder)
    config = read(folder / "config.json")
    assert config["stage1"].pop("loss") == "ce"
    (folder / "config.json").write_text(json.dumps(config))
    assert f"using the finished run {folder}" in succeed(script, *arguments, "--reuse").out


def test_reuse_returns_the_metrics_of_the_finished_run(whole: dict[str, Path], start: Path) -> None:
    script, arguments = command("honest", start, whole["honest"].parents[2])
    found = main_stage2.main([*map(str, arguments), "--reuse"])
    assert script == "main_stage2" and found == read(whole["honest"] / "metrics.json")


@pytest.mark.parametrize("variant", ["stage 1", "honest", "gala"])
def test_reuse_goes_on_with_an_interrupted_run(
    variant: str, start: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    script, arguments = command(variant, start, tmp_path)
    interrupt(script, [*arguments, "--reuse"], 2, "log.csv")
    assert f"after epoch 2 of {EPOCHS}" in succeed(script, *arguments, "--reuse").out
    assert_same_run(folder_of(tmp_path, VARIANTS[variant][2]), whole[variant])


def test_reuse_begins_a_missing_run(start: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    script, arguments = command("honest", start, tmp_path)
    succeed(script, *arguments, "--reuse")
    assert_same_run(folder_of(tmp_path, VARIANTS["honest"][2]), whole["honest"])


@pytest.mark.parametrize("finished", [True, False])
def test_reuse_with_other_settings_is_refused(
    finished: bool, start: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    script, arguments = command("honest", start, tmp_path)
    if finished:
        shutil.copytree(whole["honest"], folder_of(tmp_path, VARIANTS["honest"][2]))
    else:
        interrupt(script, arguments, 1, "log.csv")
    before = contents(tmp_path)
    outcome = run(script, *arguments, "--eval_every", 3, "--reuse")
    assert outcome.status == 2 and "--eval_every 1 there, 3 now" in outcome.err and outcome.err.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("other", ["--resume", "--overwrite"])
@pytest.mark.parametrize("script", ["main_stage1", "main_stage2"])
def test_reuse_excludes_resume_and_overwrite(script: str, other: str, tmp_path: Path) -> None:
    outcome = run(script, "--dataset", "digits", "--out", tmp_path, "--reuse", other)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert all(flag in outcome.err for flag in ("--resume", "--overwrite", "--reuse"))
    assert not list(tmp_path.iterdir())


def test_a_run_may_be_interrupted_again_and_again(start: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    script, arguments = command("stage 1", start, tmp_path)
    for epoch in (1, 2, 3):
        assert interrupt(script, arguments + (["--resume"] if epoch > 1 else []), epoch, "log.csv").status == 130
    succeed(script, *arguments, "--resume")
    assert_same_run(folder_of(tmp_path, VARIANTS["stage 1"][2]), whole["stage 1"])


def test_resuming_a_finished_run_trains_no_further(whole: dict[str, Path], start: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    folder = folder_of(out, VARIANTS["stage 1"][2])
    shutil.copytree(whole["stage 1"], folder)
    script, arguments = command("stage 1", start, out)
    before = (folder / "last.pth").read_bytes()
    assert "epoch   1" not in succeed(script, *arguments, "--resume").out
    assert (folder / "last.pth").read_bytes() == before
    assert_same_run(folder, whole["stage 1"])


def test_an_interrupted_run_is_not_replaced_silently(start: Path, tmp_path: Path) -> None:
    script, arguments = command("stage 1", start, tmp_path)
    interrupt(script, arguments, 2, "log.csv")
    before = contents(tmp_path)
    outcome = run(script, *arguments)
    assert outcome.status == 2
    assert "--resume" in outcome.err and outcome.err.count("\n") == 1
    assert contents(tmp_path) == before


def test_stage_2_warns_of_a_stage_1_that_is_not_finished(start: Path, tmp_path: Path) -> None:
    interrupt(*command("stage 1", start, tmp_path), epoch=2, place="log.csv")
    source = folder_of(tmp_path, VARIANTS["stage 1"][2])
    outcome = succeed("main_stage2", "--dataset", "digits", "--out", tmp_path, "--pretrained_pth", source)
    assert "epoch 2 of 3" in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.parametrize(("variant", "stage"), [("stage 1", "stage 1"), ("honest", "stage 2")])
def test_a_report_on_a_run_that_is_not_finished_says_so(variant: str, stage: str, start: Path, tmp_path: Path) -> None:
    script, arguments = command(variant, start, tmp_path)
    interrupt(script, arguments, epoch=2, place="log.csv")
    folder = folder_of(tmp_path, VARIANTS[variant][2])
    line = f"warning: {folder / 'last.pth'} is of epoch 2 of 3: {stage} is not finished\n"
    assert succeed("evaluate", "--pretrained_pth", folder).err == line  # once, of last and best
    assert succeed("evaluate", "--pretrained_pth", folder / "last.pth").err == line
    shutil.copy(folder / "best.pth", tmp_path / "best.pth")  # of which epoch is best nobody knows
    epoch = torch.load(tmp_path / "best.pth", weights_only=True)["epoch"]
    told = succeed("evaluate", "--pretrained_pth", tmp_path / "best.pth").err
    assert told == f"warning: {tmp_path / 'best.pth'} is of epoch {epoch} of 3\n"
    succeed(script, *arguments, "--resume")
    assert succeed("evaluate", "--pretrained_pth", folder).err == ""
    assert succeed("evaluate", "--pretrained_pth", folder / "best.pth").err == ""


def test_weights_of_a_run_that_is_not_finished_are_said_to_be(start: Path, tmp_path: Path) -> None:
    script, arguments = command("stage 1", start, tmp_path)
    interrupt(script, arguments, epoch=1, place="log.csv")
    last = folder_of(tmp_path, VARIANTS["stage 1"][2]) / "last.pth"
    told = succeed(script, *arguments, "--weights", last).err
    assert f"warning: {last} is of epoch 1 of 3: stage 1 is not finished" in told


@pytest.mark.parametrize(
    ("variant", "flags", "named"),
    [("stage 1", ("--eval_every", 2), "--eval_every"), ("honest", ("--eval_every", 3), "--eval_every")],
)
def test_resuming_with_other_settings_is_refused(
    variant: str, flags: tuple[object, ...], named: str, start: Path, tmp_path: Path
) -> None:
    script, arguments = command(variant, start, tmp_path)
    interrupt(script, arguments, 1, "log.csv")
    before = contents(tmp_path)
    outcome = run(script, *arguments, *flags, "--resume")
    assert outcome.status == 2
    assert named in outcome.err and outcome.err.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("change", ["settings", "subset", "stage1"])
def test_resuming_a_run_that_was_begun_differently_is_refused(change: str, start: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(start, tmp_path / "source"))
    script, arguments = command("honest", source, tmp_path / "runs")
    interrupt(script, arguments, 1, "log.csv")
    folder = folder_of(tmp_path / "runs", VARIANTS["honest"][2])
    if change == "stage1":  # another checkpoint in the same place
        content = torch.load(source / "last.pth", weights_only=True)
        content["model"]["conv1.weight"] += 1
        torch.save(content, source / "last.pth")
    else:
        config = (folder / "config.json").read_text()
        found = read(folder / "config.json")["subset"]["index_sha256"]
        old, new = ('"finetune_lr": 0.', '"finetune_lr": 1.') if change == "settings" else (found, found[::-1])
        assert old in config
        (folder / "config.json").write_text(config.replace(old, new))
    before = contents(tmp_path / "runs")
    outcome = run(script, *arguments, "--resume")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert {"settings": "--finetune_lr", "subset": "subset", "stage1": "stage-1 checkpoint"}[change] in outcome.err
    assert contents(tmp_path / "runs") == before


@pytest.mark.parametrize("variant", ["stage 1", "honest"])
def test_overwrite_starts_anew_and_touches_its_own_files_only(
    variant: str, start: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    script, arguments = command(variant, start, tmp_path)
    folder = folder_of(tmp_path, VARIANTS[variant][2])
    shutil.copytree(whole[variant], folder)
    last = torch.load(folder / "last.pth", weights_only=True)
    torch.save(last | {"model": {key: value * 2 for key, value in last["model"].items()}}, folder / "last.pth")
    shutil.copytree(whole[variant], folder.parent / "neighbour")
    (folder / "plots").mkdir(exist_ok=True)
    mine = {folder / "notes.txt": "mine", folder / "plots" / "mine.png": "mine", folder / "sub" / "last.pth": "mine"}
    for path, text in mine.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    neighbour = contents(folder.parent / "neighbour")
    outcome = succeed(script, *arguments, "--overwrite")
    assert "resuming" not in outcome.out
    assert_same_run(folder, whole[variant])
    assert all(path.read_text() == text for path, text in mine.items())
    assert contents(folder.parent / "neighbour") == neighbour


def test_a_folder_with_other_files_only_is_not_a_run(start: Path, tmp_path: Path) -> None:
    script, arguments = command("stage 1", start, tmp_path)
    folder = folder_of(tmp_path, VARIANTS["stage 1"][2])
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    succeed(script, *arguments)
    assert (folder / "notes.txt").read_text() == "mine"


def test_the_device_decides_whether_the_optimiser_is_fused() -> None:
    """A run that goes on where CUDA is not keeps its momentum, not CUDA's way of updating."""
    layer = torch.nn.Linear(2, 2)
    there = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True)
    layer(torch.ones(1, 2)).sum().backward()
    there.step()
    here = engine.fit.make_sgd(layer, 0.9, 0.0, False)
    engine.fit.restore_optimizer(here, there.state_dict())
    assert here.param_groups[0]["fused"] is None and here.param_groups[0]["lr"] == 0.1
    for mine, its in zip(here.state.values(), there.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], its["momentum_buffer"])


def test_a_saved_momentum_is_laid_out_as_its_weights_are() -> None:
    """Channels last or not, whatever the file has: CUDA's fused step refuses another order in memory."""
    there, here = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    saved = engine.fit.make_sgd(there, 0.9, 0.0, False)
    there(torch.ones(1, 3, 5, 5)).sum().backward()
    saved.step()
    optimizer = engine.fit.make_sgd(here, 0.9, 0.0, False)
    engine.fit.restore_optimizer(optimizer, saved.state_dict())
    for mine, its in zip(here.parameters(), there.parameters(), strict=True):
        buffer = optimizer.state[mine]["momentum_buffer"]
        assert buffer.stride() == mine.stride()
        assert torch.equal(buffer, saved.state[its]["momentum_buffer"])


def test_interrupting_an_evaluation_promises_no_saved_epoch(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.commands.report.per_class_table", stop)
    outcome = run("evaluate", "--pretrained_pth", start)
    assert outcome.status == 130
    assert "--resume" not in outcome.err


def test_ctrl_c(start: Path, tmp_path: Path) -> None:
    """A process and a real signal: status 130, no traceback, and the last finished epoch can be gone on from."""
    arguments = ["--dataset", "digits", "--width", 4, "--epochs", 5000, "--eval_every", 1, "--out", tmp_path / "runs"]
    child = Child(run_script("main_stage1", *arguments), out=tmp_path / "out")
    wait_for(tmp_path / "out", "epoch   3/")
    os.kill(child.pid, signal.SIGINT)
    status, err = child.end()
    assert status == 130
    assert "Traceback" not in err and err.count("\n") == 1 and "--resume" in err
    folder = folder_of(tmp_path / "runs", "stage1_epochs5000_width4")
    done = torch.load(folder / "last.pth", weights_only=True)["epoch"]
    assert done >= 3
    assert len(pd.read_csv(folder / "log.csv")) in (done - 1, done)  # the signal may fall between the two
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.csv", "last.pth", "best.pth"}
    stopped = interrupt("main_stage1", [*arguments, "--resume"], done + 1, "log.csv")
    assert f"after epoch {done} of 5000" in stopped.out
    assert torch.load(folder / "last.pth", weights_only=True)["epoch"] == done + 1
    assert all(tensor.isfinite().all() for tensor in weights(folder / "last.pth").values())
