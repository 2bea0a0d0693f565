"""How a command ends: its exit status, and one line where a user is to blame."""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO, cast

from utils.distributed import disconnect
from utils.errors import UserError, is_out_of_memory, no_memory
from utils.text import tell

# Seconds in which torchrun ends the other processes once one has failed: of all that fail alike only the first speaks.
SECONDS_FOR_TORCHRUN = 3
# Seconds in which a signal to a whole group of processes reaches each of them.
SECONDS_FOR_WORKERS = 0.5
# Seconds in which signals after the first are taken for the same request: terminals and torchrun send several.
SECONDS_OF_ONE_REQUEST = 10
ENDED_BY_SYSTEM = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT)  # errors that no code can help
# What a training that is interrupted says of what it leaves.
EPOCHS_ARE_SAVED = (
    ": finished epochs are saved; the same command with --resume (and the same --seed) goes on from there"
)
NO_EPOCH_IS_SAVED = ": no new epoch was saved"
ENDING_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def run_command(command: Callable[[], object], interrupted: str = "", otherwise: str | None = None) -> None:
    """Run a script's `main` and turn what a user can cause into an exit status.

    Status 2 with one line for a `UserError`. Ctrl-C, SIGTERM and SIGHUP end the command alike, as a `KeyboardInterrupt`
    that lets a checkpoint be completed: one line, where `interrupted` says what is left behind, and the status is by
    convention 128 and the signal's number, so 130, 143 and 129. A signal that is ignored, as `nohup` has it, stays so.
    With `otherwise`, `interrupted` is said only where it is a note on what ended the command, else `otherwise` is.
    Anything else is a defect of ours and keeps its traceback.
    """
    arrived: list[int] = []
    with streams_that_may_fail(), signals_as_interrupts(arrived):
        try:
            try:
                command()
                disconnect()
            except Exception as error:
                patience = patience_with(error)
                if patience and arrived:  # what the signal did to another process, while this one was ending
                    raise KeyboardInterrupt from error
                time.sleep(patience)  # ended by the signal, if there is one
                raise
        except Exception as error:
            line = line_for(error)
            if line is None:
                raise
            say(f"error: {line}")
            sys.exit(2)
        except KeyboardInterrupt as error:
            left = interrupted if otherwise is None or has_note(error, interrupted) else otherwise
            number = arrived[0] if arrived else signal.SIGINT
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            if of_many() <= 0:
                say(f"interrupted{by}{left}")
            sys.exit(128 + number)


def has_note(error: BaseException, note: str) -> bool:
    """Tell whether an error, or the one that it was raised for, has a note."""
    return any(note in getattr(one, "__notes__", ()) for one in (error, error.__cause__))


def line_for(error: Exception) -> str | None:
    """Return the line that a user is told of an error, None where it is a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return str(no_memory(f"{type(error).__name__}: {error}", "--batch_size, --workers, --views or --width"))
    if isinstance(error, OSError) and error.errno in ENDED_BY_SYSTEM:
        return str(UserError(f"{error.strerror}" + (f": {error.filename}" if error.filename else "")))
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    if found:
        return f"--deterministic: {operation} cannot be repeated on CUDA; leave the flag out, or take another network"
    return None


def standard_output() -> TextIO:
    """Return standard output as it is, which may fail: for results that nobody may take for whole.

    Raises UserError where it is closed.
    """
    if isinstance(sys.stdout, Unfailing):
        if sys.stdout.closed_from_the_start:
            raise UserError("standard output is closed: name a file to write to")
        return sys.stdout.stream
    return sys.stdout


class Unfailing:
    """A stream whose reader may go away, whose disk may fill up: from then on what is written to it goes nowhere.

    Everything else is the stream's own. A command that trains for a day does not end for want of a reader.
    """

    def __init__(self, stream: TextIO, name: str, *, closed_from_the_start: bool) -> None:
        self.stream = stream
        self.closed_from_the_start = closed_from_the_start
        self._name = name
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not self._failed:
            with self._given_up_on_failure():
                self.stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._failed:
            with self._given_up_on_failure():
                self.stream.flush()

    @contextlib.contextmanager
    def _given_up_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:  # full for the moment: what it has buffered comes later
            return
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self.stream.closed:
                raise
            self._failed = True
            with contextlib.suppress(OSError, ValueError):  # or Python tries once more when it ends, and fails
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if self._name == "output" and sys.stderr is not None:
                reason = error.strerror if isinstance(error, OSError) else "it is closed"
                tell(f"warning: standard output cannot be written ({reason}): going on without it", file=sys.stderr)


@contextlib.contextmanager
def streams_that_may_fail() -> Iterator[None]:
    """Let the command go on when a standard stream fails or is closed from the start (`>&-`).

    A closed one gets its number back: the next file that is opened would have it, and with it what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # names of files can be any bytes, and a terminal's coding any
            stream.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, err = (
            Unfailing(stream or nowhere, name, closed_from_the_start=stream is None)
            for stream, name in zip(before, ("output", "error"), strict=True)
        )
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def signals_as_interrupts(arrived: list[int]) -> Iterator[None]:
    """Raise KeyboardInterrupt for the signals that ask a process to end, and add their numbers to `arrived`.

    Signals whose handling somebody chose keep it. Once one has come, the rest of the program passes over its
    repetitions.
    """
    usual = {signal.SIG_DFL, signal.default_int_handler}
    numbers = [getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) in usual}
    owner = os.getpid()
    times: list[float] = []

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker, forked just now, that has no handler of its own yet
            os._exit(128 + number)
        if not times or time.monotonic() - times[-1] > SECONDS_OF_ONE_REQUEST:
            times.append(time.monotonic())
            arrived.append(number)
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # Python tells the main one alone
        before = {}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        if not arrived:
            for number, handler in before.items():
                signal.signal(number, handler)


def of_many() -> int:
    """Return the number of this process among those that torchrun started, -1 where it did not start several."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else -1


def patience_with(error: Exception) -> float:
    """Return the seconds to wait for a signal that may be behind an error: another process of ours was ended by it
    first, one that torchrun started or a worker that reads images; or the terminal is gone, and its shell says so."""
    if of_many() > 0 or (of_many() == 0 and not isinstance(error, UserError)):
        return SECONDS_FOR_TORCHRUN
    if isinstance(error, OSError) and error.errno == errno.EIO:
        return SECONDS_FOR_TORCHRUN
    reason = error.__cause__ if isinstance(error, UserError) else error
    of_worker = isinstance(reason, RuntimeError) and str(reason).startswith("DataLoader worker")
    return SECONDS_FOR_WORKERS if of_worker else 0


def say(line: str) -> None:
    """Print a line on standard error, behind what stands on standard output."""
    sys.stdout.flush()
    tell(line, file=sys.stderr, flush=True)
