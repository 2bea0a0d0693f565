"""The papers' CIFAR100-LT runs in job slots with a time limit: a call does the next work and stops in time.

    python -m benchmarks.jobs.paper_runs --minutes 55 --collect collected    # repeat until all items are finished
    python -m benchmarks.jobs.paper_runs --list                   # what is finished, what is left, for how long
    python -m benchmarks.jobs.paper_runs --quick --minutes 5      # a rehearsal on the digits, on a CPU
    python -m benchmarks.jobs.paper_runs --minutes 10 --plan 15 30 --travel    # what will be done; what to copy

An item is a stage 1, what is re-trained on it, and the export of its features; the one worth most comes first. Every
stage is a child process of the real scripts with `--reuse`, so the same command goes on where the last call ended,
however that ended. Other flags are those of main_stage1.py, such as --device, --amp, --compile, --data_dir, --out.
Output of the children: `<out>/paper_runs/<item>_<step>.log`.

--at_once N trains up to N stage 1s in one child, on a GPU at once (`benchmarks.jobs.at_once`), and does up to N of the
other steps at once, each in a child.

--collect DIR gets a table of the finished runs, one of their epochs, exported features and weights
(`benchmarks.jobs.collect`); to have features exported once more, remove `<out>/paper_runs/exports/<item>_features`.
With --quick the items are named quick_..., and factors that the digits have too few images for are left out.
"""

import argparse
import contextlib
import ctypes
import fcntl
import fnmatch
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import IO, Any, NoReturn

from benchmarks.command import ROOT, make_own_parser
from benchmarks.jobs.collect import MIB, Collection, collect_runs
from benchmarks.jobs.paper_items import (
    RECORDS,
    Step,
    beside,
    children_of,
    command_of,
    describe,
    in_words,
    make_steps,
    progress,
    unfinished,
)
from benchmarks.jobs.plan import Limits, Pace, at_once_factor, epoch_seconds, plan_text
from benchmarks.jobs.travel import check_travel
from runs.shards import SHARD_MIB
from settings.command_line import make_parser
from settings.declare import Facet
from settings.fields import FLAGS, STAGE1, with_facet
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder
from utils.text import tell

INTERRUPTED = ": finished epochs are saved; the same command goes on from there"
# Every item sets these itself, or no script that is run here reads them.
NOT_GIVEN = {
    "imb_ratio",
    "loss",
    "subset",
    "subset_seed",
    "stage1_seed",
    "protocol",
    "pretrained_pth",
    "json",
    *with_facet(Facet.ROW),
}

MEASURED = Path("results/paper_runs_log.csv")  # epochs of earlier runs
AT_ONCE = "cuda_step_resnet34.csv"  # beside it: steps of several networks at once
TIMES_IN_ALL = (15.0, 30.0)  # minutes
RESERVE_SECONDS = 25.0  # seconds of a call for a child to save, for Python's start, and to write what is collected
LOOK_SECONDS = 1.0  # seconds between looks whether Ctrl-C came
GRACE_SECONDS = 10.0  # seconds of these, at most, until a child that was asked to end is killed
REFUSED = 2  # exit status of what a user has to mend: trying again at once cannot help
PR_SET_PDEATHSIG = 1  # of Linux's prctl


# What there is to do


def choose(steps: Sequence[Step], patterns: Sequence[str]) -> list[Step]:
    """Return the steps of the items whose names fit a pattern, as in a shell; a UserError for one that fits none."""
    names = dict.fromkeys(step.item for step in steps)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            refuse_usage(f"no item is called '{pattern}'; items: {', '.join(names)}")
    return [step for step in steps if any(fnmatch.fnmatchcase(step.item, pattern) for pattern in patterns)]


# A call


@dataclass(frozen=True)
class Call:
    """A call's folder of logs and its lock, the time when it asks a child to end, the seconds until it kills it, and
    how many stage 1s, or children, work at once."""

    folder: Path
    lock: IO[str]
    stop: float
    grace: float
    at_once: int = 1
    ending: threading.Event = field(default_factory=threading.Event)  # set: Ctrl-C came while several children run


class TimeUp(Exception):
    """The time of a call is up; the text says where."""


def work(steps: Sequence[Step], call: Call, collect: Callable[[], object]) -> list[str]:
    """Do what is unfinished until the time is up; return the errors of the steps that failed, which stop no others."""
    errors: list[str] = []
    tried: set[Step] = set()
    try:
        for step in steps:
            if not step.is_finished() and step.can_begin() and step not in tried:
                left = [other for other in steps if not other.is_finished() and other.can_begin()]
                group = beside(step, [other for other in left if other not in tried], call.at_once)
                tried |= set(group)
                complete_all(children_of(group), call, errors)
                collect()
    except TimeUp as end:
        tell(str(end), flush=True)
    return errors


def complete_all(children: Sequence[Sequence[Step]], call: Call, errors: list[str]) -> None:
    """Complete the steps of one child, or of several at once, and add their errors; raises TimeUp after all of them."""
    with ThreadPoolExecutor(len(children)) as pool:
        waiting = [pool.submit(complete, group, call) for group in children]
        try:
            while wait(waiting, LOOK_SECONDS).not_done:  # a wait without end may not notice Ctrl-C
                pass
        except BaseException:
            call.ending.set()
            raise
    late: list[TimeUp] = []
    for future in waiting:
        try:
            error = future.result()
        except TimeUp as end:
            late.append(end)
        else:
            errors += [error] if error else []
    if late:
        raise late[0]


def complete(group: Sequence[Step], call: Call) -> str | None:
    """Run a step, or several stage 1s in one child, on an error once more; return None when all of it is finished, else
    the error.

    Raises TimeUp where there is no time for an epoch, or none to finish.
    """
    error, log, first = None, call.folder / f"{group[0].item}_{group[0].name}.log", group[0]
    for _ in range(2):
        group = [step for step in group if not step.is_finished()]
        name = " and ".join(map(str, group))
        (done, epoch), left = progress(group[0]), call.stop - monotonic()
        if left <= (epoch or 0):
            needed = f", an epoch takes {in_words(epoch)}" if epoch else ""
            raise TimeUp(f"{name}: not begun, {in_words(max(left, 0))} left{needed}")
        tell(f"{name}: begun" + (f" after epoch {done} of {first.epochs}" if done else ""), flush=True)
        shutil.rmtree(unfinished(first.folder), ignore_errors=True)
        status = run_child(command_of(group), log, call)
        if status == 0 and not first.epochs:
            os.replace(unfinished(first.folder), first.folder)
        if all(step.is_finished() for step in group):
            tell(f"{name}: finished", flush=True)
            return None
        if status is None:
            where = f"after epoch {progress(group[0])[0]} of {first.epochs}" if first.epochs else "to be done anew"
            raise TimeUp(f"{name}: time is up, {where}")
        words = log.read_text(errors="replace").strip().splitlines()[-1].removeprefix("error: ")
        error = f"{name}: {words}"
        tell(f"{name}: failed with status {status}: {words}", flush=True)
        if status == REFUSED:
            break
    return error


def run_child(command: Sequence[str], log: Path, call: Call) -> int | None:
    """Run a child until it ends or the time is up; return its status, None where it was stopped.

    Its process group is its own, so that Ctrl-C reaches it through this script alone, and it holds the lock too: where
    it outlives this process, no other call writes into its run.
    """
    with open(log, "ab") as sink:
        sink.write(f"\n$ {shlex.join(command)}\n".encode())
        sink.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=[call.lock.fileno()],
            preexec_fn=ends_with_this_process(),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # or what it printed before an error would stand behind it
        )
    try:
        while (left := call.stop - monotonic()) > 0 and not call.ending.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(min(left, LOOK_SECONDS))
        interrupt(child, call)
        return None
    except KeyboardInterrupt:
        interrupt(child, call)
        raise
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # its checkpoints are whole at any time
            child.wait()


def interrupt(child: "subprocess.Popen[bytes]", call: Call) -> None:
    """Ask a child to save and end, and wait for it as long as it may take."""
    child.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(call.grace)


def ends_with_this_process() -> Callable[[], object] | None:
    """Return what a child does first: on Linux it asks to be killed when this process ends, however that ends."""
    if sys.platform != "linux":
        return None
    return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Hold the lock of a folder; a UserError where another call or its child does."""
    with open(folder / "lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another call is at work in {folder}; wait for its end, or name another --out") from error
        yield lock


# The command line


def refuse_usage(message: str) -> NoReturn:
    raise UserError(f"{message}; python -m benchmarks.jobs.paper_runs --help lists the flags")


def make_jobs_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's own flags; former names of flags are still taken."""
    parser = make_own_parser(
        "jobs.paper_runs",
        __doc__,
        quick="rehearse: small items on the digits",
        results=False,
        words="[flags] [flags of main_stage1.py]",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="how long this call may take, at most [9]")
    parser.add_argument(
        "--collect", "--bring_home", type=Path, metavar="DIR", help="where to write what is finished [nowhere]"
    )
    parser.add_argument(
        "--collect_files", "--home_files", type=int, default=8, metavar="N", help="files to write there, at most [8]"
    )
    parser.add_argument(
        "--collect_mib", "--home_mib", type=float, default=64.0, metavar="MIB", help="MiB to write there, at most [64]"
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="items, patterns as in a shell [all]")
    parser.add_argument("--at_once", type=int, default=1, metavar="N", help="stage 1s, or other steps, at once [1]")
    plan = parser.add_argument_group("looking ahead, running nothing")
    help_text = "print what calls of --minutes do in so many minutes in all [15 30]"
    plan.add_argument("--plan", nargs="*", type=float, metavar="MINUTES", help=help_text)
    plan.add_argument("--measured", type=Path, default=MEASURED, metavar="CSV", help=f"log of epochs [{MEASURED}]")
    help_text = "seconds that a child takes to start and to report, as --plan has it [20]"
    plan.add_argument("--start_seconds", type=float, default=20.0, metavar="X", help=help_text)
    help_text = "say how much is to be copied to another machine: this checkout, and PATHs such as the data"
    plan.add_argument("--travel", nargs="*", metavar="PATH", help=help_text)
    plan.add_argument("--travel_mib", type=float, default=64.0, metavar="MIB", help="refuse more than this [64]")
    plan.add_argument("--list", action="store_true", help="print the items with their state and end")
    return parser


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return this script's own flags and those for the stages; a UserError where they cannot be."""
    own, rest = make_jobs_parser().parse_known_args(argv)
    given = vars(make_parser(STAGE1, "").parse_args(rest))
    taken = [f"--{name}" for name in sorted(NOT_GIVEN & set(given))]
    if taken:
        refuse_usage(f"{', '.join(taken)} cannot be given here: every item sets its own")
    if not 0 < own.minutes < math.inf:
        refuse_usage(f"--minutes must be a number above 0, not {own.minutes:g}")
    if not all(0 < minutes < math.inf for minutes in own.plan or ()) or not 0 <= own.start_seconds < math.inf:
        refuse_usage("--plan takes minutes above 0, and --start_seconds a number of 0 or more")
    if own.at_once < 1:
        refuse_usage(f"--at_once must be at least 1, not {own.at_once}")
    if own.collect_files < 3 or not own.collect_mib >= 4:
        refuse_usage(
            "--collect_files must be at least 3 and --collect_mib at least 4: the tables, and a part of some features"
        )
    return own, given


def main(argv: Sequence[str] | None = None) -> None:
    started = monotonic()
    own, given = parse(argv)
    everything = make_steps(given, own.quick, min(SHARD_MIB, own.collect_mib / 2))
    steps = choose(everything, own.only)
    if own.list:
        for item, group in groupby(steps, key=lambda step: step.item):
            tell(f"{item}: {', '.join(map(describe, group))}")
        return
    if own.travel is not None:
        check_travel(ROOT, own.travel, own.travel_mib)
    if own.plan is not None:
        tell_plan(steps, everything, own)
    if own.plan is not None or own.travel is not None:
        return
    folder = Path(given.get("out", FLAGS["out"].default)) / RECORDS
    make_folder(folder / "exports")
    collection = None
    if own.collect is not None:
        make_folder(own.collect)
        collection = Collection(own.collect, own.collect_files, own.collect_mib * MIB)
    collect = partial(collect_finished, everything, collection)
    reserve = reserve_of(own.minutes)
    with locked(folder) as lock:
        call = Call(folder, lock, started + 60 * own.minutes - reserve, min(GRACE_SECONDS, reserve / 2), own.at_once)
        collect()  # what the last call had no room or no time for
        errors = work([step for step in steps if step.epochs or collection], call, collect)
        waiting = collect()
    if collection is not None:
        size = sum(collection.written.values()) / MIB
        written = ", ".join(collection.written) or "nothing new"
        tell(f"collected: {written} ({size:.1f} MiB) in {collection.folder}")
    if waiting:
        tell(f"no room in this call, the next one collects: {', '.join(waiting)}")
    left = sum(not step.is_finished() for step in steps if step.epochs)
    words = f"{left} runs are unfinished" if left else "all runs are finished"
    tell(f"{words}; --list shows them; this call took {in_words(monotonic() - started)}", flush=True)
    if errors:
        raise UserError(f"{len(errors)} steps failed, see {folder}/<item>_<step>.log; the first, {errors[0]}")


def tell_plan(steps: Sequence[Step], everything: Sequence[Step], own: argparse.Namespace) -> None:
    """Print what calls will do, for each time that `--plan` names."""
    pace = Pace(epoch_seconds(steps, everything, own.measured), at_once_factor(own.measured.with_name(AT_ONCE)))
    seconds = 60 * own.minutes - reserve_of(own.minutes)
    for minutes in own.plan or TIMES_IN_ALL:
        calls = minutes / own.minutes
        tell(plan_text(steps, pace, Limits(seconds, calls * seconds, own.start_seconds, own.at_once)))


def reserve_of(minutes: float) -> float:
    """Return the seconds of a call that are kept for saving."""
    return min(RESERVE_SECONDS, 60 * minutes / 4)


def collect_finished(steps: Sequence[Step], collection: Collection | None) -> list[str]:
    """Collect what is finished of all items, whichever this call is about; return what there was no room for."""
    if collection is None:
        return []
    runs = {(step.item, step.name): step.folder for step in steps if step.epochs and step.is_finished()}
    return collect_runs(runs, [step.folder for step in steps if not step.epochs], collection)


if __name__ == "__main__":
    # A child of a call in the background would ignore SIGINT without this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command(main, INTERRUPTED)
