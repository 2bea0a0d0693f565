"""What every fuzzed case has in common: its kind, a command run in this process, and the check of its refusal.

A `Kind` draws cases from files and command lines that are right and then damaged, so that they come far before they are
noticed. Its `attempt` hands a case to the code in a folder of its own and returns "accepted", where something stated
holds of the result, or "refused", where the user got one printable line that names the file. It raises AssertionError
where neither is so; every other exception is a traceback that a user would have seen.
"""

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy

from settings.resolve import Command
from utils.command import run_command
from utils.errors import UserError

TIME_LIMIT_SECONDS = 20  # after which a case counts as hanging
MAX_MESSAGE_CHARACTERS = 2100
ACCEPTED, REFUSED = "accepted", "refused"


class Hang(BaseException):
    """A case took too long; no `except Exception` swallows it."""


class ReachedError(BaseException):
    """A command line was taken so far that its work would begin; it holds the command, where there is one."""

    def __init__(self, command: Command | None = None) -> None:
        super().__init__()
        self.command = command


@dataclass(frozen=True)
class Material:
    """Right files to start from: `home` is a folder with runs, images, lists, features and released weights."""

    home: Path
    texts: dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """One kind of input: what is drawn, and what is done with it in a fresh folder."""

    name: str
    cases: Callable[[Material], SearchStrategy[Any]]
    attempt: Callable[[Material, Path, Any], str]


@contextlib.contextmanager
def time_limit(seconds: float = TIME_LIMIT_SECONDS) -> Iterator[None]:
    """Raise `Hang` where the block takes longer."""

    def stop(*_: object) -> None:
        raise Hang(f"still running after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def file_states(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file below a folder."""
    return {
        str(path.relative_to(folder)): (status.st_size, status.st_mtime_ns)
        for path in folder.rglob("*")
        if (status := path.lstat()) and not path.is_dir()
    }


@dataclass(frozen=True)
class Ending:
    """How a command ended: `status` 0 to 2, None where it was stopped at its work; `err` is what stderr shows."""

    status: int | None
    out: str
    err: str
    command: Command | None = None


def shell(main: Callable[[list[str]], object], argv: Sequence[str]) -> Ending:
    """Run a command as `python -m` does, on streams that encode as those of a terminal in UTF-8 do."""
    raw_out, raw_err = io.BytesIO(), io.BytesIO()
    out = io.TextIOWrapper(raw_out, encoding="utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(raw_err, encoding="utf-8", errors="backslashreplace", write_through=True)
    status: int | None = 0
    command = None
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        with time_limit(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(lambda: main(list(argv)))
    except ReachedError as reached:
        status, command = None, reached.command
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
    return Ending(status, raw_out.getvalue().decode(), raw_err.getvalue().decode(), command)


def check_line(message: str, named: str = "") -> None:
    """Assert that a message is one printable line of bounded length that has `named` in it."""
    assert message.isprintable(), f"not printable: {message!r}"
    assert 0 < len(message) <= MAX_MESSAGE_CHARACTERS, f"{len(message)} characters: {message[:300]!r}"
    assert named in message, f"{named} is not named: {message!r}"


def check_ending(ending: Ending, named: str = "") -> str:
    """Assert that a command was refused in one line, or not at all; return which of the two."""
    if ending.status in (0, 1, None):
        assert "Traceback" not in ending.err
        return ACCEPTED
    assert ending.status == 2, ending
    *notes, last = ending.err.removesuffix("\n").split("\n")
    assert last.startswith("error: "), ending.err
    assert all(note.startswith(("not used ", "warning: ")) for note in notes), ending.err
    check_line(last, named)
    return REFUSED


def refusal(read: Callable[[], Any], named: str) -> tuple[str, Any]:
    """Call a reader; return "accepted" and its result, or "refused" after checking the one line."""
    noise = io.StringIO()
    try:
        with time_limit(), contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
            result = read()
    except UserError as error:
        check_line(" ".join(str(error).split()), named)
        return REFUSED, None
    for line in noise.getvalue().splitlines():
        check_line(line)
    return ACCEPTED, result
