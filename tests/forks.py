"""Processes without the seconds that a fresh interpreter takes to import everything: forks of the one that tests."""

import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.helpers import ROOT


class Child:
    """A fork of this process that runs `work` with streams of its own and the handlers of signals that a shell gives.

    What it prints goes to the file `out`, nowhere without one. With a session of its own, a signal can go to all of
    its group, as a terminal sends it.
    """

    def __init__(self, work: Callable[[], object], out: Path | None = None, own_session: bool = False) -> None:
        self.reader, writer = os.pipe()
        self.ready, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                if own_session:
                    os.setsid()
                os.dup2(writer, 2)
                os.dup2(os.open(out or os.devnull, os.O_WRONLY | os.O_CREAT), 1)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                torch.set_num_threads(1)  # the threads of this process are not in the fork
                self.tell = lambda: os.write(ready, b"x")
                Child.here = self
                work()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
                if isinstance(stop.code, str):
                    print(stop.code, file=sys.stderr)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                os._exit(code)
        os.close(writer)
        os.close(ready)

    here: "Child"

    def wait_until_ready(self) -> None:
        assert os.read(self.ready, 1) == b"x"

    def end(self) -> tuple[int, str]:
        """Return the status and what was said on standard error."""
        with open(self.reader, "rb") as reader:
            said = reader.read().decode()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), said


def run_script(name: str, *arguments: object) -> Callable[[], None]:
    """The work of a script with arguments, as the shell starts it, on a machine without a GPU."""

    def work() -> None:
        sys.argv = [f"{name}.py", *map(str, arguments)]
        torch.cuda.is_available = lambda: False
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")

    return work


def start_two(work: Callable[[int], object], folder: Path) -> list[Child]:
    """Start `work(rank)` twice, as torchrun starts two processes; what they print goes to `<folder>/out<rank>.txt`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}

    def as_one(rank: int) -> None:
        counts = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ.update(place | counts)
        work(rank)

    return [Child(partial(as_one, rank), out=folder / f"out{rank}.txt") for rank in range(2)]


def wait_for(path: Path, words: str, seconds: float = 60) -> str:
    """Wait until a file holds some words, and return all that it holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = path.read_text() if path.exists() else ""
        if words in text:
            return text
        time.sleep(0.01)
    raise AssertionError(f"{path} never held {words!r}")
