"""A second run on a folder in use, full and read-only disks, and memory that must not grow."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command import ROOT
from benchmarks.robustness.kills.children import (
    finish,
    last_line,
    meet,
    must_finish,
    printed_epoch,
    start,
    temporaries,
)
from benchmarks.robustness.kills.commands import DIGITS, EVERY_EPOCH
from benchmarks.robustness.kills.contents import hashes
from utils.files import make_folder

MEMORY_EPOCHS = 200
MEMORY_BOUND_MB = 8.0  # MB that a run may grow by from epoch 20 to the last


def second_runs(folder: Path) -> list[dict[str, Any]]:
    """Aim a second run at a folder in use, in each way there is."""
    words = ("main_stage1.py", *DIGITS, "--epochs", "100000", "--out", "../runs")
    first, other = folder / "first", folder / "second"
    for place in (first, other):
        make_folder(place)
    process = start(words, first)
    try:
        meet(process, lambda: printed_epoch(first) >= 2)
        rows = []
        for flags in ((), ("--resume",), ("--overwrite",), ("--reuse",)):
            config = next((folder / "runs").rglob("config.json")).stat()
            status = finish((*words, *flags), other)
            same = config.st_mtime_ns == next((folder / "runs").rglob("config.json")).stat().st_mtime_ns
            refused = status == 2 and "is writing to" in last_line(other) and same and process.poll() is None
            case = f"second run, {' '.join(flags) or 'no flag'}"
            rows.append({"case": case, "status": status, "line": last_line(other), "good": refused})
        return rows
    finally:
        process.kill()
        process.wait()


def disk_case(case: str, status: int, folder: Path, before: dict[str, str], kept: Path, wanted: int) -> dict[str, Any]:
    """Return a row about a disk: whether the command ended as it should, in one line, and `kept` is as it was."""
    lines = (folder / "err").read_text(errors="replace").splitlines()
    good = status == wanted and len(lines) == (wanted == 2) and before == hashes(kept)
    return {"case": case, "status": status, "line": lines[-1] if lines else "", "good": good}


def disks(folder: Path) -> list[dict[str, Any]]:
    """Let disks fill up and refuse writing; to be called where mounting is allowed (`in_namespace`)."""
    small, log = folder / "disk", folder / "log"
    for place in (small, log):
        make_folder(place)
    mount("-t", "tmpfs", "-o", "size=4m", "none", str(small))
    words = ("main_stage1.py", *DIGITS, *EVERY_EPOCH, "--out", str(small / "runs"))
    must_finish((*words, "--epochs", "2"), log)
    finished = next(small.rglob("metrics.json")).parent
    before = hashes(finished)
    long = (*words, "--epochs", "80")
    process = start(long, log)
    meet(process, lambda: printed_epoch(log) >= 3)
    fill(small / "filler")
    rows = [disk_case("disk full during a run", process.wait(), log, before, finished, 2)]
    run = finished.with_name("stage1_epochs80_width4")
    left = hashes(run)
    rows[-1]["good"] &= torch.load(run / "last.pth", weights_only=True)["epoch"] >= 2 and not temporaries(run)
    stage2 = ("main_stage2.py", *DIGITS, "--out", str(small / "runs"), "--pretrained_pth", str(finished))
    fill(small / "filler2")
    rows.append(disk_case("disk full before a run", finish(stage2, log), log, before, finished, 2))
    status = finish((*long, "--resume"), log)
    rows.append(disk_case("disk full when a run is resumed", status, log, left, run, 2))
    for name in ("filler", "filler2"):
        (small / name).unlink()
    rows.append(disk_case("resumed with room again", finish((*long, "--resume"), log), log, before, finished, 0))
    mount("-o", "remount,ro", str(small))
    whole = hashes(small)
    for case, more, wanted in (
        ("read-only, a new run", (*words, "--epochs", "3"), 2),
        ("read-only, --overwrite", (*words, "--epochs", "2", "--overwrite"), 2),
        ("read-only, --resume", (*long, "--resume"), 2),
        ("read-only, stage 2", stage2, 2),
        ("read-only, evaluate.py", ("evaluate.py", *DIGITS, "--pretrained_pth", str(finished)), 0),
    ):
        rows.append(disk_case(case, finish(more, log), log, whole, small, wanted))
    return rows


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def fill(path: Path) -> None:
    """Leave no room on a disk."""
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return


def in_namespace(folder: Path) -> list[dict[str, Any]]:
    """Run `disks` where this process may mount, in a namespace of its own; no rows where that cannot be."""
    answer = folder / "disks.json"
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-m",
        "benchmarks.robustness.kill_and_resume",
        "--disks",
    ]
    try:
        subprocess.run([*command, str(folder), "--results", str(answer)], cwd=ROOT, check=True)
        return json.loads(answer.read_text())["rows"]
    except (OSError, subprocess.CalledProcessError):
        print("disks: not measured; either this machine lets nobody mount, or see above", file=sys.stderr)
        return []


def growth(name: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the resident memory (MB) of a run after epoch 20 and after the last epochs, medians of samples there."""
    process = start(words, folder)
    samples: list[tuple[int, float]] = []

    def sample() -> bool:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        if found:
            samples.append((printed_epoch(folder), int(found[1]) * 1.024e-3))
        time.sleep(0.02)
        return False

    meet(process, sample)
    early = [size for epoch, size in samples if 20 <= epoch < 30]
    late = [size for epoch, size in samples if MEMORY_EPOCHS - 10 <= epoch < MEMORY_EPOCHS]
    row = {"run": name, "epochs": MEMORY_EPOCHS, "bound": MEMORY_BOUND_MB, "status": process.returncode}
    if process.returncode != 0 or not early or not late:
        return {**row, "good": False}
    first, last = float(np.median(early)), float(np.median(late))
    return {**row, "early": first, "late": last, "growth": last - first, "good": last - first < MEMORY_BOUND_MB}


def memory_rows(folder: Path) -> list[dict[str, Any]]:
    """Measure what 200 epochs of either stage add to a process."""
    start_at = ("main_stage1.py", *DIGITS, "--epochs", str(MEMORY_EPOCHS), "--out", "runs")
    run = f"runs/digits_expIF25_resnet8/seed0/stage1_epochs{MEMORY_EPOCHS}_width4"
    stage2 = ("main_stage2.py", *DIGITS, "--finetune_epoch", str(MEMORY_EPOCHS), "--views", "5", "--out", "runs")
    return [
        growth("stage 1", start_at, folder),
        growth("stage 2, 5 views", (*stage2, "--pretrained_pth", run), folder),
    ]
