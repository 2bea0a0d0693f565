"""Several seeds in one command: each is as if alone, one after another as well as all at once."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import engine.fit
import stages.commands.several_runs
import stages.session
from settings.command_line import parse_command
from settings.fields import STAGE1, STAGE2
from settings.seeds import parse_commands
from tests.helpers import ROOT, assert_same_run, is_refusal, read, run, stage1, stage2
from tests.pretended_cuda import pretended_cuda

SMALL = ("--dataset", "digits", "--width", 4, "--epochs", 3, "--eval_every", 1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, each by its own command."""
    out = tmp_path_factory.mktemp("alone")
    for seed in (0, 1):
        stage1(out, *SMALL[2:], "--seed", seed)
    return out


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let seeds train in threads on a CPU."""
    monkeypatch.setattr(stages.commands.several_runs, "reason_against_threads", lambda command: None)
    monkeypatch.setattr(stages.commands.several_runs, "UNCHECKED", None)


def runs_in(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.rglob("config.json"))


def both(out: Path, *arguments: object) -> Any:
    return run("main_stage1", *SMALL, "--out", out, "--seeds", 0, 1, *arguments)


def test_one_after_another(tmp_path: Path, alone: Path) -> None:
    """On a CPU seeds follow one another; every line says whose it is."""
    outcome = both(tmp_path)
    assert outcome.status == 0, outcome.err
    first, *others = [line for line in outcome.out.splitlines() if line]
    assert first == "seeds: one after another (a CPU has no room beside one)"
    assert [line[:8] for line in others] == sorted(line[:8] for line in others)
    assert {line[:8] for line in others} == {"seed 0: ", "seed 1: "}
    for mine, its in zip(runs_in(tmp_path), runs_in(alone), strict=True):
        assert_same_run(mine, its)


def test_all_at_once(tmp_path: Path, alone: Path, at_once: None) -> None:
    """In threads too each has the files and the numbers that it has alone, bit for bit."""
    outcome = both(tmp_path)
    assert outcome.status == 0, outcome.err
    assert "seeds: 2 at once" in outcome.out
    for mine, its in zip(runs_in(tmp_path), runs_in(alone), strict=True):
        assert_same_run(mine, its)
        assert {path.name for path in mine.iterdir()} == {path.name for path in its.iterdir()}
        left, right = (read(folder / "config.json") for folder in (mine, its))
        assert {**left["settings"], "out": ""} == {**right["settings"], "out": ""}
        assert "--seeds" not in left["command"] and f"--seed {left['settings']['seed']}" in left["command"]


def test_runs_that_differ_in_switches_of_the_process_follow_one_another() -> None:
    flags = ["--dataset", "digits", "--device", "cuda"]
    commands = [parse_command(STAGE1, "", [*flags, *more]) for more in (["--deterministic"], ["--seed", "1"])]
    runs = [stages.commands.several_runs.RunBeside(command, str(i)) for i, command in enumerate(commands)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.commands.several_runs, "reason_against_threads", lambda command: None)
        patch.setattr(stages.commands.several_runs, "run_at_once", lambda *_: pytest.fail("trained at once"))
        in_turn: list[str] = []
        patch.setattr(
            stages.commands.several_runs, "run_in_turn", lambda runs: in_turn.extend(run.label for run in runs)
        )
        stages.commands.several_runs.run_all(runs, "run")
    assert in_turn == ["0", "1"]


def test_gradients_are_computed_in_the_thread_of_each(
    tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own thread for gradients would have all runs share handles, and the memory that cuBLAS works in."""
    train_one, seen = engine.fit.train_one, []

    def noted(*arguments: Any) -> Any:
        seen.append((threading.current_thread().name, torch._C._is_multithreading_enabled()))
        return train_one(*arguments)

    monkeypatch.setattr(engine.fit, "train_one", noted)
    assert both(tmp_path).status == 0
    assert set(seen) == {("seed 0", False), ("seed 1", False)} and torch._C._is_multithreading_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile_mode", ["off", "graph"])
def test_on_cuda_seeds_at_once_are_what_they_are_alone(compile_mode: str, tmp_path: Path) -> None:
    """Bit for bit where kernels repeat: no run may see another. Many, and wide enough to share the GPU."""
    flags = ("--dataset", "digits", "--network", "resnet18", "--width", 16, "--epochs", 4, "--deterministic")
    flags = (*flags, "--device", "cuda", "--compile", compile_mode)
    seeds = range(6)
    words = [word for seed in seeds for word in ("+", *flags, "--out", tmp_path / "both", "--seed", seed)][1:]
    in_turn = ["main_stage1.py", *flags, "--out", tmp_path / "alone", "--seeds", *seeds]
    for command in (["-m", "benchmarks.jobs.at_once", *words], in_turn):
        outcome = subprocess.run(
            list(map(str, [sys.executable, *command])),
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ("one after another" in outcome.stdout) == (command is in_turn), outcome.stdout
    for mine, its in zip(runs_in(tmp_path / "both"), runs_in(tmp_path / "alone"), strict=True):
        assert_same_run(mine, its)


def test_a_network_that_draws_keeps_the_generator_to_itself(
    tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch has one generator for all threads: seeds of a network with dropout follow one another, as if alone."""
    build = stages.session.build_model

    def with_dropout(*arguments: Any) -> Any:
        model = build(*arguments)
        model.layer1.register_forward_hook(lambda layer, _, made: nn.functional.dropout(made, 0.1, layer.training))
        return model

    monkeypatch.setattr(stages.session, "build_model", with_dropout)
    outcome = both(tmp_path / "both")
    assert outcome.status == 0, outcome.err
    assert "seeds: one after another (the loss or the network draws" in outcome.out
    stage1(tmp_path / "alone", *SMALL[2:], "--seed", 1)
    assert_same_run(runs_in(tmp_path / "both")[1], runs_in(tmp_path / "alone")[0])


def test_a_seed_that_fails_stops_no_other(tmp_path: Path, alone: Path, at_once: None) -> None:
    """One whose folder is taken is named in the last line, and the others are finished."""
    stage1(tmp_path, *SMALL[2:], "--seed", 0)
    outcome = both(tmp_path)
    assert is_refusal(outcome, "1 of 2 seeds failed; seed 0: ", "--overwrite"), outcome.err
    assert_same_run(runs_in(tmp_path)[1], runs_in(alone)[1])


def failing_once(real: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return what raises the error in the second epoch of seed 0, the first time."""
    errors = [error]

    def train_one(session: Any, training: Any, history: Any, epoch: int) -> Any:
        if session.settings.seed == 0 and epoch == 1 and errors:
            raise errors.pop()
        return real(session, training, history, epoch)

    return train_one


def test_without_memory_beside_the_others_a_seed_follows_alone(
    tmp_path: Path, alone: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on where it was, to the same end."""
    error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(engine.fit, "train_one", failing_once(engine.fit.train_one, error))
    outcome = both(tmp_path)
    assert outcome.status == 0, outcome.err
    assert "seed 0: no memory beside the others; now alone" in outcome.out
    assert "seed 0: resuming" in outcome.out
    for mine, its in zip(runs_in(tmp_path), runs_in(alone), strict=True):
        assert_same_run(mine, its)


def test_a_defect_is_not_hidden(tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised, with its traceback, when the others are finished."""
    monkeypatch.setattr(engine.fit, "train_one", failing_once(engine.fit.train_one, ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError):
        both(tmp_path)
    assert [(folder / "metrics.json").exists() for folder in runs_in(tmp_path)] == [False, True]


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Put back the handlers of signals, which a command that a signal has ended leaves as they are."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_saves_all_and_resume_goes_on(
    tmp_path: Path, alone: Path, at_once: None, own_handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM while both train: each keeps its finished epochs, and the same command with --resume ends as alone."""
    print_epoch, both_began = engine.fit.print_epoch, threading.Barrier(2)

    def signalling(row: dict[str, Any], *others: Any) -> None:
        print_epoch(row, *others)
        if row["epoch"] == 1:  # neither runs ahead before the other has an epoch to save, however busy the machine is
            both_began.wait(60)
        if row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(engine.fit, "print_epoch", signalling)
        outcome = both(tmp_path, "--save_every", 1e6)
    assert outcome.status == 143, outcome.err
    assert outcome.err.splitlines()[-1].startswith("interrupted by SIGTERM: finished epochs are saved")
    saved = [torch.load(folder / "last.pth", weights_only=True)["epoch"] for folder in runs_in(tmp_path)]
    assert max(saved) in (2, 3) and min(saved) >= 1
    assert both(tmp_path, "--resume").status == 0
    for mine, its in zip(runs_in(tmp_path), runs_in(alone), strict=True):
        assert_same_run(mine, its)


def test_on_the_pretended_device(tmp_path: Path) -> None:
    """On CUDA seeds follow one another, each as if alone."""
    with pretended_cuda():
        outcome = run("main_stage1", *SMALL, "--compile", "off", "--out", tmp_path / "both", "--seeds", 0, 1, gpus=1)
        assert outcome.status == 0, outcome.err
        assert "seeds: one after another (at once they are not yet shown" in outcome.out
        for seed in (0, 1):
            single = ("--compile", "off", "--out", tmp_path / "alone", "--seed", seed)
            assert run("main_stage1", *SMALL, *single, gpus=1).status == 0
    for mine, its in zip(runs_in(tmp_path / "both"), runs_in(tmp_path / "alone"), strict=True):
        assert_same_run(mine, its)


def test_stage2_starts_from_the_stage1_of_each_seed(tmp_path: Path) -> None:
    """By the other flags, or by a path with {seed} in it."""
    for seed in (0, 1):
        stage1(tmp_path, "--width", 4, "--seed", seed)
    found = run(
        "main_stage2", "--dataset", "digits", "--width", 4, "--finetune_epoch", 2, "--out", tmp_path, "--seeds", 0, 1
    )
    assert found.status == 0, found.err
    folder = runs_in(tmp_path)[0].parent.parent
    path = folder / "seed{seed}" / runs_in(tmp_path)[0].name
    for seed in (0, 1):
        starts = read(next((folder / f"seed{seed}").glob("stage2*/config.json")))["stage1"]
        assert starts["seed"] == seed
    named = ("--pretrained_pth", path, "--finetune_epoch", 1)
    stage2(tmp_path, *named, "--seeds", 0, 1)
    for seed in (0, 1):
        config = read(next((folder / f"seed{seed}").glob("stage2*_finetune_epoch1/config.json")))
        assert config["stage1"]["seed"] == seed and "{seed}" not in config["command"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0", "0"], "--seeds names 0 twice"),
        (["--seeds", "0", "1", "--seed", "2"], "leave --seed out"),
        (["--seeds", "0", "-1"], "--seed must be"),
        (["--seeds", "None"], "--seeds"),
        (["--seeds"], "--seeds"),
    ],
)
def test_seeds_that_cannot_be(tmp_path: Path, words: list[str], message: str) -> None:
    """Refused before anything is made."""
    outcome = run("main_stage1", *SMALL, "--out", tmp_path / "out", *words)
    assert is_refusal(outcome, message), outcome.err
    assert not (tmp_path / "out").exists()


def test_each_command_has_the_arguments_that_it_would_have_alone() -> None:
    """Wherever the flag stands, and however it is written."""
    for words in (["--seeds", "3", "4", "--width", "4"], ["--width", "4", "--seeds", "3", "4"]):
        found = [command.arguments for command in parse_commands(STAGE2, "", words)]
        assert found == [tuple(re.sub(r"--seeds 3 4", f"--seed {seed}", " ".join(words)).split()) for seed in (3, 4)]
    [one] = parse_commands(STAGE2, "", ["--seeds=5"])
    assert one.settings.seed == 5 and one.arguments == ("--seed", "5")
