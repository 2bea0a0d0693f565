"""Real commands as child processes, and waiting for a moment of theirs."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.command import ROOT
from benchmarks.robustness.kills.commands import AIMS
from utils.errors import UserError


def start(words: Sequence[str], folder: Path, processes: int = 1) -> subprocess.Popen[bytes]:
    """Start a script, or a module after `-m`, in `folder`, on one thread and no GPU, its output in the files `out` and
    `err` there; several `processes` are started by torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    script = list(words[:2]) if words[0] == "-m" else [str(ROOT / words[0])]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        return subprocess.Popen(
            [sys.executable, *launcher, *script, *words[len(script) :]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )


def kill_one(process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Send SIGKILL to one of the processes that torchrun has started, to torchrun itself where there is none yet."""
    try:
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(chance.choice(ranks)), signal.SIGKILL)
    except (OSError, IndexError):
        os.killpg(process.pid, signal.SIGKILL)


def finish(words: Sequence[str], folder: Path, processes: int = 1) -> int:
    """Run a script to its end and return its status."""
    process = start(words, folder, processes)
    try:
        return process.wait()
    finally:
        process.kill()  # where this process is interrupted


def must_finish(words: Sequence[str], folder: Path, processes: int = 1) -> None:
    status = finish(words, folder, processes)
    if status != 0:
        raise UserError(f"python {' '.join(words)} ended with status {status}: {last_line(folder)}")


def last_line(folder: Path) -> str:
    return ((folder / "err").read_text(errors="replace").strip().splitlines() or [""])[-1]


def meet(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> bool:
    """Wait for a moment of a child; False where it ends before."""
    try:
        while process.poll() is None:
            if moment():
                return True
            time.sleep(0.001)
        return False
    except BaseException:  # such as Ctrl-C
        process.kill()
        raise


def after(seconds: float) -> Callable[[], bool]:
    """Return the moment some seconds from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def being_written(folder: Path, pattern: str, count: int) -> Callable[[], bool]:
    """Return the moment when the `count`-th temporary file whose name begins with `pattern` is there."""
    seen = set(temporaries(folder))  # not those of writers who were killed

    def moment() -> bool:
        now = [path for path in temporaries(folder) if path not in seen and re.match(pattern, path.name)]
        if len(now) == 0:
            return False
        seen.update(now)
        nonlocal count
        count -= len(now)
        return count <= 0

    return moment


def printed(folder: Path, text: str) -> Callable[[], bool]:
    """Return the moment when a child has printed a text."""
    return lambda: text in (folder / "out").read_text(errors="replace")


def temporaries(folder: Path) -> list[Path]:
    """Return the temporary files below a folder."""
    found = []
    for place, _, names in os.walk(folder):
        found += [Path(place, name) for name in names if name.startswith(".") and name.endswith(".tmp")]
    return found


def printed_epoch(folder: Path) -> int:
    """Return the last epoch whose line a child has printed, 0 for none."""
    lines = re.findall(r"(?m)^epoch +(\d+)/\d+ .* to go$", (folder / "out").read_text(errors="replace"))
    return int(lines[-1]) if lines else 0


def saved_epoch(folder: Path) -> int:
    """Return the epoch that the command of this folder would go on from, 0 for the beginning."""
    found = list((folder / "runs").rglob("last.pth"))
    return torch.load(found[0], weights_only=True)["epoch"] if found else 0


def state_of(folder: Path, process_epochs: int) -> str:
    """Say in words what a child was doing when it was killed."""
    for name, pattern in AIMS.items():
        if any(re.match(pattern, path.name) for path in temporaries(folder)):
            return f"{name} being written"
    if list((folder / "runs").rglob("metrics.json")):
        return "table" if (folder / "runs" / "features").exists() else "end"
    if list((folder / "runs").rglob("*.safetensors")):
        return "between shards"
    if process_epochs:
        return "epoch or report"
    return "start, or before the first epoch's end"
