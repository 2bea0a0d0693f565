"""How a command ends: its exit status, and one line where a user is to blame. It imports leaves alone: every room may
import it."""

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

from utils.distributed import disconnect
from utils.errors import UserError
from utils.text import printable

# Seconds in which torchrun ends the other processes once one has failed: of all that fail alike only the first speaks.
SECONDS_FOR_TORCHRUN = 3
# Seconds in which a signal to a whole group of processes reaches each of them.
SECONDS_FOR_WORKERS = 0.5
# Seconds in which signals after the first are taken for the same request: terminals and torchrun send several.
SECONDS_OF_ONE_REQUEST = 10
ENDING_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def run_command(command: Callable[[], object], interrupted: str = "") -> None:
    """Run a script's `main` and turn what a user can cause into an exit status.

    Status 2 with one line for a `UserError`. Ctrl-C, SIGTERM and SIGHUP end the command alike, as a `KeyboardInterrupt`
    that lets a checkpoint be completed: one line, where `interrupted` says what is left behind, and the status is by
    convention 128 and the signal's number, so 130, 143 and 129. A signal that is ignored, as `nohup` has it, stays so.
    Anything else is a defect of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files can be any bytes, and a terminal's coding any
            stream.reconfigure(errors="backslashreplace")
    arrived: list[int] = []
    with signals_as_interrupts(arrived):
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
        except KeyboardInterrupt:
            number = arrived[0] if arrived else signal.SIGINT
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            if of_many() <= 0:
                say(f"interrupted{by}{interrupted}")
            sys.exit(128 + number)


def line_for(error: Exception) -> str | None:
    """Return the line that a user is told of an error, None where it is a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return str(UserError(f"{error.strerror}: {error.filename}"))
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    if found:
        return f"--deterministic: {operation} cannot be repeated on CUDA; leave the flag out, or take another network"
    return None


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
    """Print a line on standard error, and have done with both streams: their terminal may be gone."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{printable(line)}\n")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # or Python tries once more when it ends, and fails
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
