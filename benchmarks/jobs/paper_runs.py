"""The papers' CIFAR100-LT runs in job slots with a time limit: a call does the next work and stops in time.

    python -m benchmarks.jobs.paper_runs --minutes 55 --bring_home home  # again and again, until all items are finished
    python -m benchmarks.jobs.paper_runs --list  # what is finished, what is left, for how long
    python -m benchmarks.jobs.paper_runs --quick --minutes 5               # a rehearsal on the digits, on a CPU

An item is a stage 1, what is re-trained on it, and the export of its features; `order_of_worth` lists them, the one
worth most first. Every stage is a child process of the real scripts with `--reuse`, so the same command goes on where
the last call ended, however that ended. Other flags are those of main_stage1.py, such as --device, --amp, --compile,
--data_dir, --out. Output of the children: `<out>/paper_runs/<item>.log`. `benchmarks.jobs.collect` says what
--bring_home
does; to have features exported once more, remove `<out>/paper_runs/features/<item>`. With --quick the items are named
quick_..., and factors that the digits have too few images for are left out.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import IO, Any, NoReturn

import pandas as pd

from benchmarks.jobs.collect import MIB, Home, bring
from runs.checkpoint import Checkpoint
from runs.run_names import stage1_folder, stage1_tags, stage2_folder, stage2_tags
from runs.shards import PART_MIB
from settings.command_line import make_parser, parse_command
from settings.declare import Facet
from settings.fields import FLAGS, STAGE1, STAGE2, Settings, with_facet
from settings.resolve import Command
from stages.checkpoints import adopt_checkpoint
from tables.request import HOLDOUT, SPLITS, STAGE1_ONLY
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDS = "paper_runs"  # folder of this script's own files in that of the runs
INTERRUPTED = ": finished epochs are saved; the same command goes on from there"
WEIGHTS = ("if100_seed0",)  # items whose stage 1 is brought home to be released
RETRAINED: dict[str, dict[str, str]] = {
    "los": {"method": "los"},
    "los_released": {"method": "los", "protocol": "released"},
    "ce": {"method": "ce"},
}
QUICK = {"dataset": "digits", "epochs": 3, "finetune_epoch": 2, "width": 4}
QUICK_LARGEST_RATIO = 100  # the digits' largest class has 124 images
# Every item sets these itself, or no script that is run here reads them.
NOT_GIVEN = {
    "imb_ratio", "loss", "subset", "subset_seed", "stage1_seed", "protocol", "pretrained_pth", "json",
    *with_facet(Facet.ROW),
}  # fmt: skip

RESERVE = 25.0  # seconds of a call for a child to save, for Python's start, and to write what is brought home
GRACE = 10.0  # seconds of these, at most, until a child that was asked to end is killed
REFUSED = 2  # exit status of what a user has to mend: trying again at once cannot help
PR_SET_PDEATHSIG = 1  # of Linux's prctl


# What there is to do


@dataclass(frozen=True)
class Step:
    """A child process: a stage of an item or, with 0 `epochs`, the export of its features or weights.

    It makes `folder`; `stage1` is that of the item's stage 1.
    """

    item: str
    name: str
    command: tuple[str, ...]
    folder: Path
    epochs: int
    stage1: Path

    def __str__(self) -> str:
        return f"{self.item} {self.name}"

    def is_finished(self) -> bool:
        return (self.folder / "metrics.json").is_file() if self.epochs else self.folder.is_dir()

    def can_begin(self) -> bool:
        return self.name == "stage1" or (self.stage1 / "metrics.json").is_file()


def order_of_worth() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield (name, flags, whether stage 2 follows) of every item, the one worth most first."""
    readings = {"gala": {}, "gala_released": {"gala_margin": "released", "gala_accumulation": "double"}}
    first = {"imb_ratio": 100, "seed": 0}
    for ratio, seed in ((100, 0), (100, 1), (100, 2), (10, 0), (50, 0)):
        yield f"if{ratio}_seed{seed}", {"imb_ratio": ratio, "seed": seed}, True
    for reading, own in readings.items():
        for one, two in ((1.0, 1.0), (1.2, 0.9)):
            values = {**first, "loss": "gala", "lambda1": one, "lambda2": two, **own}
            yield f"if100_seed0_{reading}_lambda{one:g}_{two:g}", values, False
    for seed in SPLITS:  # what `reproduce.py unified --select` chooses on
        yield f"if100_seed{seed}_holdout", {**first, "seed": seed, "holdout": HOLDOUT}, False
    for draw in (0, 1, 2):
        yield f"if100_seed0_shuffle{draw}", {**first, "subset": "shuffle", "subset_seed": draw}, True
    for ratio, seed in ((10, 1), (50, 1), (10, 2), (50, 2), (200, 0), (500, 0)):
        yield f"if{ratio}_seed{seed}", {"imb_ratio": ratio, "seed": seed}, True


def make_steps(given: dict[str, Any], quick: bool, part_mib: float = PART_MIB) -> list[Step]:
    """Return the steps of all items in the order of their worth; a UserError for `given` flags that cannot be."""
    steps = []
    for name, own, retrained in order_of_worth():
        if quick and own["imb_ratio"] > QUICK_LARGEST_RATIO:
            continue
        values = {**own, **(QUICK if quick else {}), **given}
        steps += steps_of(f"{'quick_' * quick}{name}", values, retrained, part_mib)
    return steps


def steps_of(item: str, values: dict[str, Any], retrained: bool, part_mib: float) -> list[Step]:
    """Return the steps of an item, in the folders that the scripts will choose."""
    command, words = script_command(STAGE1, values)
    stage1, settings = stage1_folder(command), command.settings
    steps = [Step(item, "stage1", words, stage1, settings.epochs, stage1)]
    # What stage 2 will read of a checkpoint that need not be there yet.
    config = {"stage": "stage1", "tags": stage1_tags(command), "settings": asdict(settings)}
    shared = {key: value for key, value in values.items() if key not in STAGE1_ONLY}
    for name, own in RETRAINED.items() if retrained else ():
        command, words = script_command(STAGE2, {**shared, **own, "pretrained_pth": stage1})
        path = stage1 / f"{command.settings.start}.pth"
        source = Checkpoint(path, "", "planned", {}, {"epoch": settings.epochs, "config": config})
        command = adopt_checkpoint(command, source)
        folder = stage2_folder(command.settings, stage2_tags(command, source))
        steps.append(Step(item, name, words, folder, command.settings.finetune_epoch, stage1))
    steps.append(
        export_step(item, "features", settings, stage1, part_mib, "tools.export_features", "--device", settings.device)
    )
    if item.removeprefix("quick_") in WEIGHTS:
        steps.append(export_step(item, "weights", settings, stage1, part_mib, "tools.release"))
    return steps


def export_step(
    item: str, name: str, settings: Settings, stage1: Path, part_mib: float, module: str, *flags: str
) -> Step:
    """Return the step that makes files, the features or the weights, of a finished stage 1."""
    folder = Path(settings.out) / RECORDS / "exports" / f"{item}_{name}"
    file = unfinished(folder) / f"{item}_{name}.safetensors"
    words = (sys.executable, "-m", module, stage1, file, "--part_mib", part_mib, *flags)
    return Step(item, name, tuple(map(str, words)), folder, 0, stage1)


def unfinished(folder: Path) -> Path:
    """Return where features are exported to, until all are there."""
    return folder.with_name(f"{folder.name}.unfinished")


def script_command(script: str, values: dict[str, Any]) -> tuple[Command, tuple[str, ...]]:
    """Return a script's command with those of the settings that it reads: parsed, and in words."""
    argv: list[str] = []
    for name, value in values.items():
        if script in FLAGS[name].read_by:
            argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return parse_command(script, "", argv), (sys.executable, str(ROOT / f"{script}.py"), *argv, "--reuse")


def choose(steps: Sequence[Step], patterns: Sequence[str]) -> list[Step]:
    """Return the steps of the items whose names fit a pattern, as in a shell; a UserError for one that fits none."""
    names = dict.fromkeys(step.item for step in steps)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            refuse(f"no item is called '{pattern}'; items: {', '.join(names)}")
    return [step for step in steps if any(fnmatch.fnmatchcase(step.item, pattern) for pattern in patterns)]


def progress(step: Step) -> tuple[int, float | None]:
    """Return the epochs in a run's log, and the mean seconds of one with its evaluation; None where there is none."""
    path = step.folder / "log.csv"
    if not path.is_file():
        return 0, None
    log = pd.read_csv(path)
    return len(log), float((log["seconds"] + log["evaluation_seconds"].fillna(0)).mean())


def describe(step: Step) -> str:
    """Return the state of a step in words, with the time that it still needs."""
    if step.is_finished():
        waiting = 0 if step.epochs else len(list(step.folder.iterdir()))
        return f"{step.name} {'finished' if step.epochs else f'exported in {waiting} files' if waiting else 'home'}"
    done, epoch = progress(step)
    time_left = "unknown" if epoch is None else in_words((step.epochs - done) * epoch)
    return f"{step.name} {done}/{step.epochs} ({time_left})" if step.epochs else f"{step.name} missing"


def in_words(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


# A call


@dataclass(frozen=True)
class Call:
    """A call's folder of logs and its lock, the time when it asks a child to end, the seconds until it kills it."""

    folder: Path
    lock: IO[str]
    stop: float
    grace: float


class TimeUp(Exception):
    """The time of a call is up; the text says where."""


def work(steps: Sequence[Step], call: Call, bring_home: Callable[[], object]) -> list[str]:
    """Do what is unfinished until the time is up; return the errors of the steps that failed, which stop no others."""
    errors: list[str] = []
    try:
        for step in steps:
            if not step.is_finished() and step.can_begin():
                error = complete(step, call)
                errors += [error] if error else []
                bring_home()
    except TimeUp as end:
        print(end, flush=True)
    return errors


def complete(step: Step, call: Call) -> str | None:
    """Run a step, on an error once more; return None when it is finished, else the error.

    Raises TimeUp where there is no time for an epoch, or none to finish.
    """
    error = None
    for _ in range(2):
        (done, epoch), left = progress(step), call.stop - monotonic()
        if left <= (epoch or 0):
            needed = f", an epoch takes {in_words(epoch)}" if epoch else ""
            raise TimeUp(f"{step}: not begun, {in_words(max(left, 0))} left{needed}")
        print(f"{step}: begun" + (f" after epoch {done} of {step.epochs}" if done else ""), flush=True)
        log = call.folder / f"{step.item}.log"
        shutil.rmtree(unfinished(step.folder), ignore_errors=True)
        status = run_child(step.command, log, call)
        if status == 0 and not step.epochs:
            os.replace(unfinished(step.folder), step.folder)
        if step.is_finished():
            print(f"{step}: finished", flush=True)
            return None
        if status is None:
            where = f"after epoch {progress(step)[0]} of {step.epochs}" if step.epochs else "to be done anew"
            raise TimeUp(f"{step}: time is up, {where}")
        words = log.read_text(errors="replace").strip().splitlines()[-1].removeprefix("error: ")
        error = f"{step}: {words}"
        print(f"{step}: failed with status {status}: {words}", flush=True)
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
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, process_group=0,
            pass_fds=[call.lock.fileno()], preexec_fn=ends_with_this_process(),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # or what it printed before an error would stand behind it
        )  # fmt: skip
    try:
        return child.wait(call.stop - monotonic())
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(call.grace)
        if isinstance(reason, KeyboardInterrupt):
            raise
        return None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # its checkpoints are whole at any time
            child.wait()


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


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; usage: python -m benchmarks.jobs.paper_runs [--help]")


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return this script's own flags and those for the stages; a UserError where they cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.jobs.paper_runs", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--minutes", type=float, default=9.0, help="how long this call may take, at most [9]")
    parser.add_argument("--bring_home", type=Path, metavar="DIR", help="where to write what is finished [nowhere]")
    parser.add_argument("--home_files", type=int, default=8, help="files that this call may write there [8]")
    parser.add_argument("--home_mib", type=float, default=64.0, help="MiB that this call may write there [64]")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="items, patterns as in a shell [all]")
    parser.add_argument("--list", action="store_true", help="print the items with their state and end")
    parser.add_argument("--quick", action="store_true", help="rehearse: small items on the digits")
    own, rest = parser.parse_known_args(argv)
    given = vars(make_parser(STAGE1, "").parse_args(rest))
    taken = [f"--{name}" for name in sorted(NOT_GIVEN & set(given))]
    if taken:
        refuse(f"{', '.join(taken)} cannot be given here: every item sets its own")
    if not 0 < own.minutes < math.inf:
        refuse(f"--minutes must be a number above 0, not {own.minutes:g}")
    if own.home_files < 3 or not own.home_mib >= 4:
        refuse("--home_files must be at least 3 and --home_mib at least 4: the tables, and a part of some features")
    return own, given


def main(argv: Sequence[str] | None = None) -> None:
    started = monotonic()
    own, given = parse(argv)
    everything = make_steps(given, own.quick, min(PART_MIB, own.home_mib / 2))
    steps = choose(everything, own.only)
    if own.list:
        for item, group in groupby(steps, key=lambda step: step.item):
            print(f"{item}: {', '.join(map(describe, group))}")
        return
    folder = Path(given.get("out", FLAGS["out"].default)) / RECORDS
    make_folder(folder / "exports")
    home = None
    if own.bring_home is not None:
        make_folder(own.bring_home)
        home = Home(own.bring_home, own.home_files, own.home_mib * MIB)
    bring_home = partial(bring_finished, everything, home)
    reserve = min(RESERVE, 60 * own.minutes / 4)
    with locked(folder) as lock:
        call = Call(folder, lock, started + 60 * own.minutes - reserve, min(GRACE, reserve / 2))
        bring_home()  # what the last call had no room or no time for
        errors = work([step for step in steps if step.epochs or home], call, bring_home)
        waiting = bring_home()
    if home is not None:
        size = sum(home.written.values()) / MIB
        print(f"brought home: {', '.join(home.written) or 'nothing new'} ({size:.1f} MiB) into {home.folder}")
    if waiting:
        print(f"no room in this call, the next one brings: {', '.join(waiting)}")
    left = sum(not step.is_finished() for step in steps if step.epochs)
    words = f"{left} runs are unfinished" if left else "all runs are finished"
    print(f"{words}; --list shows them; this call took {in_words(monotonic() - started)}", flush=True)
    if errors:
        raise UserError(f"{len(errors)} steps failed, see {folder}/<item>.log; the first, {errors[0]}")


def bring_finished(steps: Sequence[Step], home: Home | None) -> list[str]:
    """Bring home what is finished of all items, whichever this call is about; return what there was no room for."""
    if home is None:
        return []
    runs = {(step.item, step.name): step.folder for step in steps if step.epochs and step.is_finished()}
    return bring(runs, [step.folder for step in steps if not step.epochs], home)


if __name__ == "__main__":
    # A child of a call in the background would ignore SIGINT without this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command(main, INTERRUPTED)
