"""The same images through every form in which they can lie on disk, by one process and by two.

    python -m benchmarks.robustness.image_trees cifar_trees
    python -m benchmarks.robustness.layouts cifar_trees
    python -m benchmarks.robustness.layouts cifar_trees --epochs 2 --workers 1

The folder is what the first command wrote. Stage 1 (a small network on crops of 32 pixels), stage 2 (LOS) and the
report run as at the shell: a folder a class, lists, COCO's JSON, ImageNet-LT's layout, and two of them again as
two processes over gloo that share every batch. `results/layouts.csv` and `.md` say what came out, and how far the
weights of runs lie apart that should be the same: folder, lists and JSON name the same images in the same order, so
that training is promised to agree bit for bit; two processes sum in another order than one, so that they agree but for
rounding, which training amplifies. How far, a run by one process on two threads shows, which sums in another order too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.command import ROOT, make_own_parser
from benchmarks.record import provenance, write_record
from runs.checkpoint import load_checkpoint
from utils.command import run_command
from utils.errors import UserError
from utils.files import read_json

NETWORK = ["--network", "resnet20", "--stem", "cifar", "--image_size", "32", "--resize", "32", "--batch_size", "64"]
STAGE1 = ["--lr", "0.05", "--wd", "5e-4", "--amp", "off", "--device", "cpu"]


@dataclass(frozen=True)
class Way:
    """A form of the data, the flags that name it, how many processes and threads compute, and the way it is like."""

    name: str
    flags: tuple[str, ...]
    processes: int = 1
    threads: int = 1
    like: str = ""


def ways(trees: Path) -> list[Way]:
    """Return every way there is into the trees."""
    folder = ("--dataset", "folder", "--data_dir", str(trees / "folder"))
    images = ("--data_dir", str(trees / "list"), "--image_root", str(trees / "list" / "images"))
    json = tuple(
        word for part in ("train", "val", "test") for word in (f"--{part}_list", str(trees / "list" / f"{part}.json"))
    )
    imagenet = ("--dataset", "imagenet_lt", "--data_dir", str(trees / "data"))
    return [
        Way("folder", folder),
        Way("list", ("--dataset", "list", *images), like="folder"),
        Way("COCO's JSON", ("--dataset", "list", *images, *json), like="folder"),
        Way("folder, 2 threads", folder, threads=2, like="folder"),
        Way("folder, 2 processes", folder, processes=2, like="folder"),
        Way("ImageNet-LT's layout", imagenet),
        Way("ImageNet-LT's layout, 2 processes", imagenet, processes=2, like="ImageNet-LT's layout"),
    ]


def run_script(script: str, arguments: Sequence[str], way: Way) -> float:
    """Run a script as at the shell and return its seconds; a UserError has the last line of one that failed."""
    launcher = [sys.executable]
    if way.processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={way.processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(way.threads)}
    started = time.perf_counter()
    done = subprocess.run([*launcher, script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise UserError(f"{script} failed: {errors[0].removeprefix('error: ') if errors else done.stderr[-300:]}")
    return time.perf_counter() - started


def measure_way(way: Way, epochs: int, workers: int, out: Path) -> dict[str, Any]:
    """Run both stages and the report of a way below `out`; return what they found."""
    common = [*way.flags, *NETWORK, "--workers", str(workers), "--out", str(out)]
    row: dict[str, Any] = {"way": way.name, "processes": way.processes, "threads": way.threads, "epochs": epochs}
    row["stage1_seconds"] = run_script("main_stage1.py", [*common, *STAGE1, "--epochs", str(epochs)], way)
    row["stage2_seconds"] = run_script("main_stage2.py", [*common, "--device", "cpu"], way)
    report = out / "report.json"
    stage2 = next(out.rglob("stage2_*/metrics.json")).parent
    evaluated = [*way.flags, "--workers", str(workers), "--pretrained_pth", str(stage2), "--json", str(report)]
    run_script("evaluate.py", [*evaluated, "--device", "cpu"], way)
    for stage, folder in (("stage1", next(out.rglob("stage1_*/metrics.json")).parent), ("stage2", stage2)):
        metrics = read_json(folder / "metrics.json")
        row |= {f"{stage}_{group}": metrics["last"]["plain"][group] for group in ("all", "many", "medium", "few")}
        if stage == "stage1":
            row["images_per_second"] = metrics["images_per_second"]
            row["classes"] = metrics["num_class"]
            row["loss"] = pd.read_csv(folder / "log.csv")["loss"].iloc[-1]
    row["evaluate_all"] = read_json(report)["checkpoints"]["last"]["plain"]["all"]
    return row


def distance(left: Path, right: Path, stage: str) -> float:
    """Return the norm of the difference of two runs' weights over the norm of the first's."""
    states = [load_checkpoint(next(out.rglob(f"{stage}_*/last.pth"))).state for out in (left, right)]
    vectors = [torch.cat([tensor.flatten().double() for tensor in state.values()]) for state in states]
    return float((vectors[0] - vectors[1]).norm() / vectors[0].norm())


def ways_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the lines that people read."""
    lines = []
    for row in rows.to_dict("records"):
        line: dict[str, Any] = {"way": row["way"], "classes": row["classes"]}
        line["images/s"] = f"{row['images_per_second']:.0f}"
        line["stage 1 loss"] = f"{row['loss']:.4f}"
        line |= {f"{stage} all": f"{row[f'{stage}_all']:.2f}" for stage in ("stage1", "stage2")}
        line["evaluate.py"] = f"{row['evaluate_all']:.2f}"
        if row["like"]:
            for stage in ("stage1", "stage2"):
                gap = row[f"{stage}_distance"]
                line[f"{stage} weights"] = f"= {row['like']}" if gap == 0 else f"{gap:.1e} from {row['like']}"
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_own_parser("robustness.layouts", __doc__, quick="one epoch", words="FOLDER [flags]")
    parser.add_argument("trees", metavar="FOLDER", type=Path, help="what benchmarks.robustness.image_trees wrote")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of stage 1 [10]")
    parser.add_argument("--workers", type=int, default=1, help="processes that read, for each that computes [1]")
    own = parser.parse_args(argv)
    if own.epochs < 1 or own.workers < 0:
        parser.error("--epochs must be at least 1 and --workers 0 or more")
    if not (own.trees / "folder").is_dir():
        raise UserError(
            f"{own.trees} has no trees; make them first: python -m benchmarks.robustness.image_trees {own.trees}"
        )
    made = provenance("robustness.layouts", argv, torch.device("cpu"))
    epochs = 1 if own.quick else own.epochs
    rows = []
    work = Path(tempfile.mkdtemp(prefix="layouts"))
    try:
        for way in ways(own.trees.resolve()):
            out = work / way.name
            row = measure_way(way, epochs, own.workers, out)
            row["like"] = way.like
            if way.like:
                row |= {f"{stage}_distance": distance(work / way.like, out, stage) for stage in ("stage1", "stage2")}
            rows.append({**made, **row})
            print(f"{way.name}: {row['stage1_seconds']:.0f} + {row['stage2_seconds']:.0f} s", flush=True)
    finally:
        shutil.rmtree(work)
    table = pd.DataFrame(rows)
    cpu = made["device"].rsplit(",", 1)[0]
    notes = (
        f"ResNet-20 on crops of 32 pixels, {epochs} epochs of stage 1, LOS with its published stage 2, last epoch, "
        f"plain; {cpu}, a thread and {own.workers} readers for each process, torch {made['torch']}. Distance of "
        f"weights: norm of the difference over the norm. Made by `{made['command']}`."
    )
    write_record(own.results, "layouts", table, ways_table(table), notes)


if __name__ == "__main__":
    run_command(main)
