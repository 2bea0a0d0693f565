"""Runs that are killed at random moments, and gone on with: what is lost, what is damaged, what comes out.

    python -m benchmarks.robustness.kill_and_resume  # 50 kills, a quarter of an hour on one core; `make torture`
    python -m benchmarks.robustness.kill_and_resume --kills 5      # a rehearsal

Children are real commands on tiny data: both stages, stage 2 on image files with its feature files, a table of
`reproduce.py`. SIGKILL meets them at a moment drawn uniformly over their duration, or while a certain kind of file is
being written (its temporary file is there). The same command then goes on, is killed again, up to four times, and at
last ends; its weights, metrics, logs and features must be those of a run that nobody disturbed, bit for bit, clocks
aside. After each kill every file must be readable and at most one epoch lost, counted from the last line that was
printed. Then signals that ask for an end, a second run on a folder in use, a full disk, a read-only folder, and the
memory of 200 epochs. Exit status 1 if anything was not as it should be.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from benchmarks.record import provenance, write_record
from utils.command import run_command
from utils.errors import UserError
from utils.files import LOCK, make_folder, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent.parent
CLOCKS = {"seconds", "evaluation_seconds", "train_seconds", "images_per_second"}
# Of files whose content holds clocks, and of the code while somebody works on it.
ASIDE = CLOCKS | {"resumed", "sha256", "stage1_sha256", "git_revision", "backbone", "command", "resume"}
MOST_KILLS = 4  # of one run, until it may end
MEMORY_EPOCHS = 200
MEMORY_BOUND = 8.0  # MB that a run may grow by from epoch 20 to the last
SMALL = ("--dataset", "digits", "--width", "4")
ON_DISK = (
    "--dataset", "folder", "--data_dir", "images", "--stem", "cifar", "--network", "resnet8", "--width", "4",
    "--image_size", "16", "--resize", "18", "--workers", "1",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A command that is disturbed, what it starts from, what it adds to go on, and the files to meet it at."""

    name: str
    words: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...] = ()
    again: tuple[str, ...] = ("--resume",)
    aims: tuple[str, ...] = ("checkpoint",)


STAGE1_DIGITS = ("main_stage1.py", *SMALL, "--epochs", "2", "--out", "start")
STAGE1_ON_DISK = ("main_stage1.py", *ON_DISK, "--epochs", "1", "--out", "start")
START = "start/{0}/seed0/stage1_epochs{1}_width4".format
WORKS = (
    Work("stage 1", ("main_stage1.py", *SMALL, "--epochs", "30", "--out", "runs"), aims=("checkpoint", "report")),
    Work("stage 2", ("main_stage2.py", *SMALL, "--finetune_epoch", "60", "--views", "4", "--out", "runs",
                     "--pretrained_pth", START("digits_expIF25_resnet8", 2)), (STAGE1_DIGITS,)),
    Work("stage 2 on image files", ("main_stage2.py", *ON_DISK, "--finetune_epoch", "30", "--views", "3", "--out",
                                    "runs", "--pretrained_pth", "start/folder-images_natural_resnet8/seed0/"
                                    "stage1_epochs1_stemcifar_image_size16_resize18_width4"), (STAGE1_ON_DISK,),
         aims=("features", "checkpoint")),
    Work("reproduce.py unified", ("reproduce.py", "unified", *SMALL, "--epochs", "10", "--views", "2", "--out", "runs",
                                  "--methods", "ce", "los", "tau_norm"), again=(), aims=("table", "features")),
)  # fmt: skip
AIMS = {
    "checkpoint": r"\.(last|best)\.pth\.|\.log\.csv\.",
    "report": r"\.(metrics\.json|[a-z_]+\.png)\.",
    "features": r".*\.npy\.",
    "table": r"\.[a-z_]+_[0-9a-f]{16}\.json\.|\.unified_.*",
}


# Running and watching a child


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a script in `folder`, on one thread and no GPU, its output in the files `out` and `err` there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        return subprocess.Popen(
            [sys.executable, str(ROOT / words[0]), *words[1:]], cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
            stderr=err, env=environment, start_new_session=True,
        )  # fmt: skip


def finish(words: Sequence[str], folder: Path) -> int:
    """Run a script to its end and return its status."""
    process = start(words, folder)
    try:
        return process.wait()
    finally:
        process.kill()  # where this process is interrupted


def must_finish(words: Sequence[str], folder: Path) -> None:
    status = finish(words, folder)
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
    lines = re.findall(r"(?m)^epoch +(\d+)/\d+  .*$", (folder / "out").read_text(errors="replace"))
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
    if process_epochs:
        return "epoch or report"
    return "start, or before the first epoch's end"


# Reading everything, and comparing


def content(path: Path) -> Any:
    """Return what a file holds, clocks aside; whatever is damaged raises."""
    if path.suffix == ".pth":
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return plain(read_json(path))
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if is_aside(str(name))]).to_csv()
    if path.suffix == ".npy":
        return plain(torch.from_numpy(np.load(path, allow_pickle=False)))
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            return image.size
    return bool(path.read_text().strip())  # Markdown, which has seconds in its cells


def is_aside(name: str) -> bool:
    return name in ASIDE or "seconds" in name or ("sha256" in name and name.startswith(("stage1", "splits")))


def plain(value: Any) -> Any:
    """Return nested values without what is set aside, tensors as type, shape and hash of their bytes."""
    if isinstance(value, Tensor):
        data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not is_aside(str(key))}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def contents(folder: Path) -> dict[str, Any]:
    """Return the content of every file that runs and tables have written, by a name without hashes.

    Raises where one is damaged. Temporary files and locks are no data.
    """
    found = {}
    for top in ("runs", "results"):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and path.name != LOCK and not path.name.endswith(".tmp"):
                found[re.sub(r"(?<=[/_])[0-9a-f]{16}(?=[/.])", "*", str(path.relative_to(folder)))] = content(path)
    return found


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Kills


@dataclass
class Torture:
    """What is prepared once for all kills, and what came of them."""

    folder: Path
    chance: random.Random
    rows: list[dict[str, Any]] = field(default_factory=list)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)

    def fresh(self, work: Work) -> Path:
        """Return a folder in which a command may begin."""
        return Path(shutil.copytree(self.folder / "prepared" / work.name, tempfile.mkdtemp(dir=self.folder) + "/run"))

    def prepare(self, work: Work) -> None:
        """Run a command as it is without a disturbance."""
        folder = self.folder / "prepared" / work.name
        make_folder(folder)
        if any("images" in words for words in (work.words, *work.needs)):
            write_tree(folder / "images")
        for words in work.needs:
            must_finish(words, folder)
        whole = self.fresh(work)
        began = time.monotonic()
        must_finish(work.words, whole)
        self.durations[work.name] = time.monotonic() - began
        self.references[work.name] = contents(whole)

    def chain(self, work: Work, moments: Sequence[str]) -> None:
        """Disturb a command at the moments given, let it end, and compare."""
        folder = self.fresh(work)
        rows, words = [], work.words
        for moment in moments:
            before = saved_epoch(folder)
            process = start(words, folder)
            row = self.disturb(work, process, folder, moment)
            if row is None:  # it ended first
                break
            row["lost"] = max(row["printed"], before) - row["saved"] if row["readable"] else None
            rows.append(row)
            words = (*work.words, *work.again)
        status = finish(words, folder)
        try:
            same = contents(folder) == self.references[work.name]
        except Exception:
            same = False
        clean = not temporaries(folder) and not list(folder.rglob(LOCK))
        for row in rows:
            row |= {"resumed": status == 0, "identical": same, "left": not clean, "end": last_line(folder)}
        self.rows += rows
        shutil.rmtree(folder.parent)

    def disturb(self, work: Work, process: subprocess.Popen[bytes], folder: Path, moment: str) -> dict[str, Any] | None:
        """Meet a child at a moment and send the signal; return what was found, None where it had ended before."""
        began = time.monotonic()
        number = getattr(signal, moment) if moment.startswith("SIG") else signal.SIGKILL
        if moment in AIMS:
            at = being_written(folder, AIMS[moment], self.chance.choice([1, 1, 2, 3, 5, 8]))
        else:
            at = after(self.chance.uniform(0.0, self.durations[work.name]))
        if not meet(process, at):
            return None
        process.send_signal(number)
        seconds = time.monotonic() - began
        status = process.wait()
        if number != signal.SIGKILL and status == 0:
            return None
        readable = True
        try:
            contents(folder)
        except Exception:
            readable = False
        saved = saved_epoch(folder) if readable else -1
        epochs = printed_epoch(folder)
        lines = (folder / "err").read_text(errors="replace").splitlines()
        # Before the script's own code, while Python imports, a signal ends the process as it ends any.
        proper = status == -number or (status == 128 + number and len(lines) == 1)
        return {
            "work": work.name, "aim": moment if moment in AIMS else "any", "signal": signal.Signals(number).name,
            "seconds": seconds, "state": state_of(folder, epochs), "printed": epochs, "saved": saved,
            "temporary_files": len(temporaries(folder)), "readable": readable, "status": status, "proper": proper,
        }  # fmt: skip


def write_tree(folder: Path) -> None:
    """Write a tree of small images, brighter from class to class: 40 to 10 to train on, 5 to test on."""
    generator = np.random.default_rng(0)
    for part, counts in (("train", (40, 30, 20, 10)), ("test", (5, 5, 5, 5))):
        for label, count in enumerate(counts):
            place = folder / part / f"class{label}"
            make_folder(place)
            for number in range(count):
                pixels = generator.normal(50 + 45 * label, 25, (24, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


def plan(kills: int, chance: random.Random) -> list[tuple[Work, list[str]]]:
    """Return the commands and the moments they are met at, twice as many as needed: some end before."""
    chains = []
    for number in range(2 * kills):
        work = WORKS[number % len(WORKS)]
        chains.append((work, [chance.choice(["any", "any", *work.aims]) for _ in range(chance.randint(2, MOST_KILLS))]))
    return chains


# A folder in use, disks, memory


def second_runs(folder: Path) -> list[dict[str, Any]]:
    """Aim a second run at a folder in use, in each way there is."""
    words = ("main_stage1.py", *SMALL, "--epochs", "100000", "--out", "../runs")
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
    words = ("main_stage1.py", *SMALL, "--out", str(small / "runs"))
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
    stage2 = ("main_stage2.py", *SMALL, "--out", str(small / "runs"), "--pretrained_pth", str(finished))
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
        ("read-only, evaluate.py", ("evaluate.py", *SMALL, "--pretrained_pth", str(finished)), 0),
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
    row = {"run": name, "epochs": MEMORY_EPOCHS, "bound": MEMORY_BOUND, "status": process.returncode}
    if process.returncode != 0 or not early or not late:
        return {**row, "good": False}
    first, last = float(np.median(early)), float(np.median(late))
    return {**row, "early": first, "late": last, "growth": last - first, "good": last - first < MEMORY_BOUND}


def memory_rows(folder: Path) -> list[dict[str, Any]]:
    """Measure what 200 epochs of either stage add to a process."""
    start_at = ("main_stage1.py", *SMALL, "--epochs", str(MEMORY_EPOCHS), "--out", "runs")
    run = f"runs/digits_expIF25_resnet8/seed0/stage1_epochs{MEMORY_EPOCHS}_width4"
    stage2 = ("main_stage2.py", *SMALL, "--finetune_epoch", str(MEMORY_EPOCHS), "--views", "5", "--out", "runs")
    return [
        growth("stage 1", start_at, folder),
        growth("stage 2, 5 views", (*stage2, "--pretrained_pth", run), folder),
    ]


# The report


def kill_table(kills: pd.DataFrame) -> pd.DataFrame:
    """Return the table of what the kills left, a row for each thing that a command was doing."""
    lines = []
    for state, group in [*kills.groupby("state"), ("all", kills)]:
        lines.append({
            "killed": state,
            "kills": len(group),
            "all files readable": f"{group['readable'].sum()}",
            "went on and ended": f"{group['resumed'].sum()}",
            "identical to an undisturbed run": f"{group['identical'].sum()}",
            "epochs lost, at most": f"{group['lost'].max():.0f}",
            "files left over": f"{group['left'].sum()}",
        })  # fmt: skip
    return pd.DataFrame(lines)


def signal_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table of the signals that ask for an end."""
    return pd.DataFrame([
        {
            "signal": name,
            "sent": len(group),
            "status": ", ".join(str(status) for status in sorted(set(group["status"]))),
            "as it should be": f"{group['proper'].sum()}",
            "identical when gone on": f"{group['identical'].sum()}",
            "epochs lost, at most": f"{group['lost'].max():.0f}",
        }
        for name, group in rows.groupby("signal")
    ])  # fmt: skip


def case_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([
        {"case": row["case"], "status": row["status"], "as it should be, earlier files intact": "yes" if row["good"]
         else "NO"} for row in rows
    ])  # fmt: skip


def memory_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([
        {
            "run": row["run"],
            "epochs": row["epochs"],
            "MB after epoch 20": f"{row.get('early', np.nan):.1f}",
            f"MB after epoch {MEMORY_EPOCHS - 10}": f"{row.get('late', np.nan):.1f}",
            "growth, MB": f"{row.get('growth', np.nan):.1f}",
            "bound, MB": f"{row['bound']:g}",
        }
        for row in rows
    ])  # fmt: skip


def is_good(row: dict[str, Any]) -> bool:
    """Tell whether a kill or a signal did no harm."""
    lost = row["lost"] is not None and row["lost"] <= (1 if row["signal"] == "SIGKILL" or row["status"] < 0 else 0)
    proper = row["signal"] == "SIGKILL" or row["proper"]
    return bool(row["readable"] and row["resumed"] and row["identical"] and not row["left"] and lost and proper)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness.kill_and_resume",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=50, help="how many times SIGKILL is sent [50]")
    parser.add_argument("--signals", type=int, default=6, help="how many SIGINT, SIGTERM and SIGHUP together [6]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where to write [results]")
    parser.add_argument("--disks", type=Path, help=argparse.SUPPRESS)
    own = parser.parse_args(argv)
    if own.disks is not None:
        write_json(own.results, {"rows": disks(own.disks)})
        return
    began = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        torture = Torture(Path(scratch), random.Random(own.seed))
        for work in WORKS:
            torture.prepare(work)
            print(f"{work.name}: {torture.durations[work.name]:.1f} s undisturbed", flush=True)
        for work, moments in plan(own.kills, torture.chance):
            left = own.kills - len(torture.rows)
            if left > 0:
                torture.chain(work, moments[:left])
                print(f"{len(torture.rows)} of {own.kills} kills", flush=True)
        for number in range(own.signals):
            torture.chain(WORKS[number % len(WORKS)], [("SIGINT", "SIGTERM", "SIGHUP")[number % 3]])
        make_folder(Path(scratch) / "memory")
        memory = memory_rows(Path(scratch) / "memory")
        cases = second_runs(Path(scratch) / "two") + in_namespace(Path(scratch) / "namespace")
    rows = pd.DataFrame(torture.rows)
    rows["good"] = [is_good(row) for row in torture.rows]
    together = pd.concat([
        rows.assign(kind="signal"), pd.DataFrame(cases).assign(kind="case"), pd.DataFrame(memory).assign(kind="memory")
    ])  # fmt: skip
    for column, value in provenance("robustness.kill_and_resume", argv, torch.device("cpu")).items():
        together[column] = value
    killed = rows["signal"] == "SIGKILL"
    notes = (
        f"{killed.sum()} kills with SIGKILL at random moments, seed {own.seed}, of {', '.join(w.name for w in WORKS)}; "
        f"{time.monotonic() - began:.0f} s in all. Lost epochs are counted from the last line that was printed."
    )
    tables = {
        "Signals that ask for an end (a negative status: the signal came while Python was importing)": rows[~killed],
    }
    more = {title: signal_table(table) for title, table in tables.items() if len(table)}
    more["A folder in use, full disks, read-only disks"] = case_table(cases)
    more["Resident memory"] = memory_table(memory)
    write_record(own.results, "torture", together, kill_table(rows[killed]), notes, more)
    bad = together[~together["good"].astype(bool)]
    if len(bad):
        print(bad.dropna(axis=1, how="all").to_string(), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
