"""Signals that ask a process to end, locks of folders, and what killed writers leave."""

import errno
import gc
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import main_stage1
import utils.files
from tests.forks import Child
from tests.helpers import ROOT, contents, folder_of, run, stage1
from utils.background import Background
from utils.command import run_command, signals_as_interrupts
from utils.errors import UserError
from utils.files import LOCK, lock_folder, remove_leftovers, write_text

DIGITS = ("--dataset", "digits", "--width", "4")


def rest() -> None:
    """Wait to be ended; in one long sleep a signal that came right before it would be noticed at its end."""
    for _ in range(400):
        time.sleep(0.05)


def sleeper() -> None:
    """Say that the work has begun, and wait to be ended."""
    Child.here.tell()
    rest()


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGINT, 130, "interrupted: all is well\n"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM: all is well\n"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP: all is well\n"),
    ],
)
def test_a_signal_ends_in_one_line_and_the_usual_status(number: int, status: int, words: str) -> None:
    child = Child(lambda: run_command(sleeper, ": all is well"))
    child.wait_until_ready()
    os.kill(child.pid, number)
    assert child.end() == (status, words)


def test_later_signals_wait_for_the_checkpoint(tmp_path: Path) -> None:
    """What is being written when the first signal comes is written, however many follow."""

    def slow() -> None:
        Child.here.tell()
        time.sleep(0.6)
        write_text(tmp_path / "last.pth", "whole")

    def work() -> None:
        with Background() as background:
            background.start(slow)
            rest()

    child = Child(lambda: run_command(work, ": saved"))
    child.wait_until_ready()
    for _ in range(4):
        os.kill(child.pid, signal.SIGTERM)
        time.sleep(0.05)
    status, said = child.end()
    assert (status, said) == (143, "interrupted by SIGTERM: saved\n")
    assert contents(tmp_path) == {"last.pth": b"whole"}


def test_a_full_disk_is_told_though_a_signal_came() -> None:
    def full() -> None:
        Child.here.tell()
        time.sleep(0.3)
        raise UserError("cannot write last.pth: No space left on device")

    def work() -> None:
        with Background() as background:
            background.start(full)
            rest()

    child = Child(lambda: run_command(work, ": saved"))
    child.wait_until_ready()
    os.kill(child.pid, signal.SIGTERM)
    assert child.end() == (2, "error: cannot write last.pth: No space left on device\n")


def test_nohup_is_respected() -> None:
    def work() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run_command(lambda: (Child.here.tell(), time.sleep(0.3)))

    child = Child(work)
    child.wait_until_ready()
    os.kill(child.pid, signal.SIGHUP)
    assert child.end() == (0, "")


def test_a_worker_that_the_signal_ended_first_is_not_the_reason() -> None:
    """A signal to a whole group can reach the workers that read images before it reaches the process they work for."""

    def work() -> None:
        Child.here.tell()
        cause = RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")
        raise UserError("a worker process was killed") from cause

    child = Child(lambda: run_command(work))
    child.wait_until_ready()
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGTERM)
    assert child.end() == (143, "interrupted by SIGTERM\n")
    assert Child(lambda: run_command(work)).end() == (2, "error: a worker process was killed\n")


@pytest.mark.parametrize(("rank", "said"), [("0", "interrupted by SIGTERM\n"), ("1", "")])
def test_of_many_processes_the_first_speaks(rank: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process was ended first, what this one was doing with it fails."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def work() -> None:
        Child.here.tell()
        raise RuntimeError("Connection closed by peer")

    child = Child(lambda: run_command(work))
    child.wait_until_ready()
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGTERM)
    assert child.end() == (143, said)


def test_handlers_are_put_back_and_somebodys_own_stay() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    own: Any = lambda number, frame: None  # noqa: E731
    try:
        signal.signal(signal.SIGHUP, own)
        arrived: list[int] = []
        with signals_as_interrupts(arrived):
            assert signal.getsignal(signal.SIGHUP) is own
            assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM] and not arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


EVERY = ("--epochs", "5000", "--eval_every", "1")


def test_a_terminal_that_goes_away(tmp_path: Path) -> None:
    """Closing a terminal's window: SIGHUP, and no place left to say anything."""
    master, slave = pty.openpty()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RANK", None)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main_stage1.py"), *DIGITS, *EVERY, "--out", str(tmp_path)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    try:
        seen = b""
        while b"epoch   2/" not in seen:
            seen += os.read(master, 1000)
        folder = folder_of(tmp_path, "stage1_epochs5000_width4")
        assert (folder / LOCK).exists()
        second = run("main_stage1", *DIGITS, "--epochs", 5000, "--out", tmp_path, "--resume")
        assert second.status == 2 and second.err.count("\n") == 1
        assert f"process {process.pid} on " in second.err and f"is writing to {folder}" in second.err
        os.close(master)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 129
    finally:
        process.kill()
        process.wait()
    assert torch.load(folder / "last.pth", weights_only=True)["epoch"] >= 2
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.csv", "last.pth", "best.pth"}


# A folder in use


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a finished run is, not to be changed."""
    out = tmp_path_factory.mktemp("finished")
    stage1(out, "--width", 4)
    return out


@pytest.fixture
def in_use(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of an interrupted run on which another process is at work."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    folder = folder_of(tmp_path, "stage1_epochs2_width4")
    (folder / "metrics.json").unlink()

    def hold() -> None:
        lock = lock_folder(folder)
        Child.here.tell()
        rest()
        assert lock is not None

    child = Child(hold)
    child.wait_until_ready()
    yield folder
    os.kill(child.pid, signal.SIGKILL)
    child.end()


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", "--reuse", None])
def test_a_second_run_is_refused_before_it_changes_anything(flag: str | None, in_use: Path) -> None:
    before = contents(in_use)
    arguments = (*DIGITS, "--epochs", 2, "--out", in_use.parents[2], *([flag] if flag else []))
    outcome = run("main_stage1", *arguments)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert f"is writing to {in_use}" in outcome.err and "--out" in outcome.err
    assert contents(in_use) == before


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    def hold() -> None:
        lock = lock_folder(tmp_path)
        if os.fork() == 0:  # as a worker that reads images, which lives a little longer
            time.sleep(1.5)
            os._exit(0)
        Child.here.tell()
        rest()
        assert lock is not None

    child = Child(hold)
    child.wait_until_ready()
    with pytest.raises(UserError, match=f"process {child.pid} on .* is writing to"):
        lock_folder(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    assert (tmp_path / LOCK).exists()
    lock = lock_folder(tmp_path)
    assert lock is not None
    lock.release()
    assert not list(tmp_path.iterdir())


def is_free(folder: Path) -> bool:
    """Tell whether another process could lock a folder."""

    def take() -> None:
        try:
            lock_folder(folder)
        except UserError:
            sys.exit(2)

    return Child(take).end()[0] == 0


def test_a_process_may_lock_again_what_it_still_holds(tmp_path: Path) -> None:
    """A run that failed can live on in a traceback; its end takes nothing from the run after it."""
    first = lock_folder(tmp_path)
    second = lock_folder(tmp_path)
    assert first is not None and second is not None and not is_free(tmp_path)
    first.release()
    assert not is_free(tmp_path)
    del second
    gc.collect()
    assert is_free(tmp_path)


def test_a_run_holds_its_folder_until_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "stage1_epochs1_width4")
    free = []
    monkeypatch.setattr("engine.finish.draw_plots", lambda *_: free.append(is_free(folder)))
    arguments = [*DIGITS, "--epochs", "1", "--out", str(tmp_path)]
    main_stage1.main(arguments)
    assert free == [False] and is_free(folder) and not (folder / LOCK).exists()
    with pytest.raises(UserError, match="holds a finished run"):
        main_stage1.main(arguments)
    assert is_free(folder) and not (folder / LOCK).exists()


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_without_locks_a_run_goes_on(
    reason: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason is None:
        monkeypatch.setattr(utils.files, "fcntl", None)
    else:

        def unsupported(*arguments: object) -> None:
            raise OSError(reason, os.strerror(reason))

        monkeypatch.setattr(utils.files.fcntl, "lockf", unsupported)
    assert lock_folder(tmp_path) is None
    assert capsys.readouterr().err == f"warning: {tmp_path} cannot be locked here: see that nothing else writes there\n"
    write_text(tmp_path / "file", "text")
    assert contents(tmp_path) == {"file": b"text"}


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(utils.files, "open_locked", read_only)
    assert lock_folder(tmp_path) is None
    with pytest.raises(UserError, match=r"cannot write .*file: Read-only file system"):
        write_text(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EMFILE])
def test_a_lock_that_cannot_be_opened_is_refused(reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be that of another user, whose run goes on: --overwrite does not enter it."""
    stage1(tmp_path, "--epochs", 1)
    folder = folder_of(tmp_path, "stage1_epochs1")
    (folder / LOCK).write_text("process 1 on another machine\n")
    before = contents(tmp_path)

    def deny(*arguments: Any, **more: Any) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(utils.files, "open_locked", deny)
    for flag in ("--overwrite", "--resume"):
        said = run("main_stage1", "--dataset", "digits", "--epochs", 1, "--out", tmp_path, flag)
        assert said.status == 2 and said.err.startswith(
            f"error: cannot lock {folder}: {os.strerror(reason)}; .lock is "
        )
    assert contents(tmp_path) == before


# What killed writers leave


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path: Path) -> None:
    left = [".last.pth.17.tmp", ".last.pth.17-0a1b2c3d.tmp"]
    stay = [".log.csv.17.tmp", "last.pth.17.tmp", ".last.pth.tmp", ".last.pth.x.tmp", "last.pth"]
    for name in (*left, *stay):
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path, ["last.pth"])
    assert sorted(contents(tmp_path)) == sorted(stay)
    write_text(tmp_path / "log.csv", "whole")
    assert sorted(contents(tmp_path)) == sorted([*stay[1:], "log.csv"])


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    def write() -> None:
        def slowly(file: Any) -> None:
            file.write(b"who")
            file.flush()
            Child.here.tell()
            time.sleep(0.5)
            file.write(b"le")

        utils.files.write_atomically(tmp_path / "features.npy", slowly)

    child = Child(write)
    child.wait_until_ready()
    remove_leftovers(tmp_path, ["features.npy"])
    write_text(tmp_path / "features.npy", "mine")
    assert len(list(tmp_path.iterdir())) == 2
    assert child.end() == (0, "")
    assert contents(tmp_path) == {"features.npy": b"whole"}


def test_opening_a_run_removes_its_leftovers(tmp_path: Path) -> None:
    stage1(tmp_path, "--width", 4)
    folder = folder_of(tmp_path, "stage1_epochs2_width4")
    (folder / "plots").mkdir(exist_ok=True)
    for name in (".last.pth.17.tmp", ".best.pth.17-00ff.tmp", "plots/.training_curves.png.17.tmp", ".mine.17.tmp"):
        (folder / name).write_text("half")
    stage1(tmp_path, "--width", 4, "--resume")
    assert [path.name for path in folder.rglob(".*")] == [".mine.17.tmp"]
