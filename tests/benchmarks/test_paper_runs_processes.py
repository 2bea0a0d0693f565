"""Children of the papers' runs as processes: time that is up, signals, calls that are killed."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.jobs import paper_runs
from benchmarks.jobs.paper_runs import Call, locked, run_child
from utils.errors import UserError


def program(text: str) -> tuple[str, ...]:
    return sys.executable, "-c", f"import os, signal, time; print(os.getpid(), 'up', flush=True); {text}"


ENDLESS, STUBBORN = "time.sleep(600)", "signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(600)"


def start(target: Callable[..., Any], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start a function in a process of its own, which has imported all that this one has."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def wait_for(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_up(log: Path) -> bool:
    return log.is_file() and "up\n" in log.read_text()


def is_free(folder: Path) -> bool:
    try:
        with locked(folder):
            return True
    except UserError:
        return False


@pytest.mark.parametrize(("text", "sign"), [(ENDLESS, "up\n"), (STUBBORN, "deaf\n")], ids=["endless", "stubborn"])
def test_a_child_ends_when_the_time_is_up(
    text: str, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still until the child has begun, however busy the machine is."""
    log, times = tmp_path / "log", iter((99.9,))

    def nearly_over() -> float:
        wait_for(lambda: sign in log.read_text())
        return next(times, 100.0)

    monkeypatch.setattr(paper_runs, "monotonic", nearly_over)
    with locked(tmp_path) as lock:
        assert run_child(program(text), log, Call(tmp_path, lock, 100.0, 0.5)) is None
    assert is_free(tmp_path)  # the child, which held the lock too, is gone
    assert ("KeyboardInterrupt" in log.read_text()) == (text is ENDLESS)


def test_a_child_that_ends_in_time_gives_its_status(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        call = Call(tmp_path, lock, time.monotonic() + 60, 1)
        assert [run_child(program(f"exit({status})"), tmp_path / "log", call) for status in (0, 3)] == [0, 3]


def work_without_end(folder: Path) -> None:
    with locked(folder) as lock:
        run_child(program(ENDLESS), folder / "log", Call(folder, lock, time.monotonic() + 600, 1))


@pytest.mark.parametrize("dies_too", [True, False])
def test_no_child_that_outlives_a_killed_call_is_worked_beside(
    dies_too: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dies_too and sys.platform != "linux":
        pytest.skip("only Linux ends a child with its parent")
    if not dies_too:
        monkeypatch.setattr(paper_runs, "ends_with_this_process", lambda: None)
    call = start(work_without_end, tmp_path)
    wait_for(lambda: is_up(tmp_path / "log"))
    with pytest.raises(UserError, match="another call is at work"), locked(tmp_path):
        pass
    call.kill()
    call.join(10)
    if not dies_too:
        assert not is_free(tmp_path)
        os.kill(int((tmp_path / "log").read_text().split()[-2]), signal.SIGKILL)
    wait_for(lambda: is_free(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_call_and_child(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    child = tmp_path / "python"  # in the place of the interpreter: a script that starts at once and does not end
    child.write_text(f"#!{sys.executable}\nimport time\nprint('up', flush=True)\ntime.sleep(600)\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setattr(sys, "argv", ["paper_runs", "--quick", "--out", str(tmp_path), "--device", "cpu"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a command in the background
    try:
        call = start(lambda: runpy.run_module("benchmarks.jobs.paper_runs", run_name="__main__", alter_sys=True))
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    wait_for(lambda: is_up(tmp_path / "paper_runs" / "quick_if100_seed0_stage1.log"))
    assert call.pid is not None
    os.kill(call.pid, number)
    call.join(20)
    assert call.exitcode == 128 + number and is_free(tmp_path / "paper_runs")
    assert ": finished epochs are saved; the same command goes on" in capfd.readouterr().err
