"""This project beside a baseline PyTorch loop, both stages, in one run on one machine.

    python -m benchmarks.speed.throughput
    python -m benchmarks.speed.throughput --network resnet32 --workers 3 --rounds 2 --loaders 0 1 2 3
    python -m benchmarks.speed.throughput --quick

The baseline loop (`benchmarks.peers.baseline_loop`) does what the released code does; the number of its worker
processes, and on CUDA TF32 on or off, is swept and the best taken. Ours are main_stage1.py and main_stage2.py as a user
runs them. Every measurement has a process of its own, and baseline and ours take turns; a ratio is that of the two in
the same round. What is timed:

    training            the steps of an epoch: data, forward, backward, update
    training + report   the same and the evaluation after it: test images plain and mirrored
    fixed               what a stage costs beside its epochs: reading the data; of ours also files and the final report
    whole stage         all of it; of stage 1 computed from the lines above for all its epochs

Stage 2 is timed over its 20 epochs: of ours the steps and every feature that they need, of the baseline loop the faster
of two epochs, times 20. `--stages 1` leaves it out. Other flags are those of main_stage1.py. Writes
`results/speed_<device>_<network>.csv` and `.md`, anew after each stage of each round: one that is cut short leaves what
was measured.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.command import Benchmark
from benchmarks.record import network_name, provenance, write_record
from benchmarks.speed.child import run_child
from benchmarks.speed.roofline import operations_per_image, product_rate
from settings.command_line import parse_command
from settings.fields import STAGE1, Settings
from settings.resolve import Command
from stages.session import settle_execution
from utils.command import run_command

STAGE2_EPOCHS = 20
BASELINE = "baseline"
LOADERS = (0, 1, 2, 4, 8, 16)  # worker processes that the baseline loop tries, as far as there are cores


@dataclass(frozen=True)
class Way:
    """One way of doing the work: its name, and the flags that main_stage1.py gets for it (none for the baseline)."""

    name: str
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What is to be measured: the flags both sides get, the resolved settings, and how often."""

    argv: list[str]
    settings: Settings
    device: torch.device
    loaders: list[int]
    rounds: int
    stages: int
    epochs: int
    max_steps: int | None
    views: list[str]


def make_plan(own: argparse.Namespace, command: Command) -> Plan:
    """Settle what is measured; `--quick` is one round, few steps of the baseline loop."""
    return Plan(
        argv=list(command.arguments),
        settings=command.settings,
        device=settle_execution(command).device,
        loaders=own.loaders or [count for count in LOADERS if count <= (2 if own.quick else os.cpu_count() or 1)],
        rounds=1 if own.quick else own.rounds,
        stages=own.stages,
        epochs=1 if own.quick else 2,
        max_steps=10 if own.quick else None,
        views=["1"] if own.quick else ["1", "5"],
    )


def our_ways(device: torch.device) -> list[Way]:
    """Return full precision and bf16; on CUDA the latter is the default, compiled, on a CPU the former is."""
    if device.type == "cuda":
        return [Way("ours, fp32, eager", ["--amp", "off", "--compile", "off"]), Way("ours (default)")]
    return [Way("ours (default, fp32)"), Way("ours, bf16", ["--amp", "bf16"])]


def sweep(plan: Plan) -> tuple[int, bool, list[dict[str, Any]]]:
    """Return the number of worker processes and the TF32 switch with which the baseline is fastest, and all rows."""
    epochs = 2 if plan.device.type == "cuda" else 1  # the first one on CUDA chooses and loads kernels
    rows: list[dict[str, Any]] = []
    for tf32 in (False, True) if plan.device.type == "cuda" else (False,):
        for loaders in plan.loaders:
            answer = run_child(
                "baseline",
                stage="stage1",
                argv=plan.argv,
                loaders=loaders,
                tf32=tf32,
                epochs=epochs,
                max_steps=plan.max_steps,
                test="none",
            )
            speed = answer["train_images"][0] / min(answer["train_seconds"])
            rows.append({"loaders": loaders, "tf32": tf32, "images_per_second": speed})
            print(f"baseline loop, {loaders} worker processes, TF32 {tf32}: {speed:.0f} images/s", flush=True)
    best = max(rows, key=lambda row: row["images_per_second"])
    named = [{"stage": "stage 1", "way": BASELINE, "timed": "sweep", **row} for row in rows]
    return best["loaders"], best["tf32"], named


def memory(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the peaks of memory of an answer."""
    return {name: answer[name] for name in ("peak_mib", "worker_peak_mib", "cuda_peak_mib")}


def baseline_rows(
    plan: Plan, stage: str, loaders: int, tf32: bool, checkpoint: str, images: int
) -> list[dict[str, Any]]:
    """Measure a stage of the baseline loop once; return its rows.

    Where its epochs were cut short, their seconds are scaled up to the `images` of a whole one.
    """
    source = {} if stage == "stage1" else {"checkpoint": checkpoint}
    answer = run_child(
        "baseline",
        stage=stage,
        argv=plan.argv,
        loaders=loaders,
        tf32=tf32,
        epochs=plan.epochs,
        max_steps=plan.max_steps,
        test="all",
        **source,
    )
    scale = images / answer["train_images"][0]
    train = min(answer["train_seconds"]) * scale
    report = min(answer["test_seconds"])
    fixed = answer["wall_seconds"] - sum(answer["train_seconds"]) - sum(answer["test_seconds"])
    common = {"way": BASELINE, "loaders": loaders, "tf32": tf32, **memory(answer)}
    if stage == "stage1":
        return stage1_rows(plan, common, images, train, report, fixed)
    return stage2_rows(common, images, STAGE2_EPOCHS * train, STAGE2_EPOCHS * (train + report) + fixed)


def stage1_rows(
    plan: Plan, common: dict[str, Any], images: int, train: float, report: float, fixed: float
) -> list[dict[str, Any]]:
    """Return the rows of one measurement of stage 1, given the seconds of an epoch, of its report, of all else."""
    epochs = plan.settings.epochs
    timed = {
        "training": train,
        "training + report": train + report,
        "fixed": fixed,
        f"whole stage, {epochs} epochs, computed": fixed + epochs * (train + report),
    }
    return [
        {
            "stage": "stage 1",
            "timed": what,
            "seconds": seconds,
            "images": images,
            "images_per_second": images / seconds if what == "training" else None,
            **common,
        }
        for what, seconds in timed.items()
    ]


def stage2_rows(common: dict[str, Any], images: int, train: float, wall: float) -> list[dict[str, Any]]:
    """Return the rows of one measurement of stage 2; seconds are those of all its epochs."""
    timed = {f"training, {STAGE2_EPOCHS} epochs": train, f"whole stage, {STAGE2_EPOCHS} epochs": wall}
    return [
        {
            "stage": "stage 2",
            "timed": what,
            "seconds": seconds,
            "images": images,
            "images_per_second": images * STAGE2_EPOCHS / seconds if what.startswith("training") else None,
            **common,
        }
        for what, seconds in timed.items()
    ]


def our_stage1(plan: Plan, way: Way, out: str) -> tuple[list[dict[str, Any]], str]:
    """Measure main_stage1.py once; return its rows and the run's folder."""
    argv = [*plan.argv, *way.flags, "--epochs", str(plan.epochs), "--eval_every", "1", "--out", out, "--overwrite"]
    answer = run_child("ours", script="main_stage1", argv=argv)
    log = answer["log"]
    train = min(log["seconds"])
    images = round(log["seconds"][0] * log["images_per_second"][0])
    common = {"way": way.name, **memory(answer)}
    report = min(log["evaluation_seconds"])
    fixed = answer["wall_seconds"] - sum(log["seconds"]) - sum(log["evaluation_seconds"])
    return stage1_rows(plan, common, images, train, report, fixed), answer["folder"]


def our_stage2(plan: Plan, name: str, flags: list[str], stage1: str, out: str) -> list[dict[str, Any]]:
    """Measure main_stage2.py, LOS, once: training includes the features that it needs."""
    kept = []
    settings = parse_command(STAGE1, "", plan.argv).given
    for flag in ("data_dir", "workers", "device", "gpu", "batch_size", "momentum"):
        kept += [f"--{flag}", str(settings[flag])] if flag in settings else []
    with tempfile.TemporaryDirectory(dir=out) as folder:
        argv = ["--pretrained_pth", stage1, "--out", folder, *kept, *flags]
        answer = run_child("ours", script="main_stage2", argv=argv)
    log = answer["log"]
    images = round(log["seconds"][0] * log["images_per_second"][0])
    common = {"way": name, **memory(answer)}
    return stage2_rows(common, images, answer["train_seconds"], answer["wall_seconds"])


def measure_plan(plan: Plan) -> Iterator[pd.DataFrame]:
    """Make all measurements; yield the rows so far, one a measurement, after each stage of each round."""
    loaders, tf32, rows = sweep(plan)
    for number in range(plan.rounds):
        with tempfile.TemporaryDirectory() as out:
            made: list[dict[str, Any]] = []
            folder, images = "", 0
            for way in our_ways(plan.device):
                found, folder = our_stage1(plan, way, f"{out}/{len(made)}")
                made, images = made + found, found[0]["images"]
            made += baseline_rows(plan, "stage1", loaders, tf32, "", images)
            rows += [{**row, "round": number} for row in made]
            yield pd.DataFrame(rows)
            if plan.stages == 1:
                continue
            made = []
            for views in plan.views:
                words = "default, 5 views" if views == "5" else "1 view"
                made += our_stage2(plan, f"ours ({words})", ["--views", views], folder, out)
            made += baseline_rows(plan, "stage2", loaders, tf32, f"{folder}/last.pth", images)
            rows += [{**row, "round": number} for row in made]
            yield pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    benchmark = Benchmark("speed.throughput", __doc__, "one round on a small network, for a look")
    benchmark.add("--rounds", default=3, help="measurements of everything [3]")
    benchmark.add("--loaders", nargs="+", help="worker processes that the baseline loop tries [0 1 2 4 ...]")
    benchmark.add("--stages", default=2, choices=(1, 2), help="1: stage 1 alone [2]")
    own, command = benchmark.parse(
        argv, lambda own: {"network": "resnet8"} if own.quick else {}, taken=("epochs", "amp", "compile")
    )
    if own.rounds < 1 or any(loaders < 0 for loaders in own.loaders or []):
        benchmark.refuse_usage("--rounds must be at least 1, and --loaders 0 or more")
    plan = make_plan(own, command)
    made = provenance("speed.throughput", argv, plan.device)
    rates = operations_per_image(plan.settings), *product_rate(plan.device, product_type(plan.device))
    parts = plan.rounds * plan.stages
    for done, rows in enumerate(measure_plan(plan), start=1):
        write(plan, rows, rates, own.results, made, printed=done == parts)


def product_type(device: torch.device) -> torch.dtype:
    """Return the precision of matrix products that a device is compared with."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def write(
    plan: Plan, rows: pd.DataFrame, rates: tuple[float, float, str], results: Path, made: dict[str, Any], printed: bool
) -> None:
    """Write every measurement so far, and the table, which is `printed` at the end.

    `rates` are the operations of an image, those a second of a large product here, and that product in words.
    """
    settings = plan.settings
    operations, products, product = rates
    rows = rows.assign(
        **made,
        network=settings.network,
        width=settings.width,
        batch_size=settings.batch_size,
        imb_ratio=settings.imb_ratio,
    )
    shown = ratios_table(rows[rows["round"].notna()])
    default = rows[(rows["timed"] == "training") & rows["way"].str.contains("default")]["images_per_second"].max()
    reached = default * operations
    swept = rows[rows["round"].isna()]
    best = swept.loc[swept["images_per_second"].idxmax()]
    notes = (
        f"{network_name(settings)}, batch {settings.batch_size}, imbalance factor {settings.imb_ratio:g}, on "
        f"{made['device']}, torch {made['torch']}; {rows['round'].nunique()} rounds: the fastest seconds, the median "
        f"of the rounds' ratios, in brackets their range. The baseline loop ran with {best['loaders']:.0f} worker "
        f"processes, the fastest of {', '.join(map(str, plan.loaders))}. Ours by default makes {reached / 1e9:.0f} of "
        f"the {products / 1e9:.0f} billion operations a second that a large {product} reaches here "
        f"({reached / products:.0%}). Made by `{made['command']}`."
    )
    name = f"speed_{plan.device.type}_{network_name(settings, short=True)}"
    write_record(results, name, rows, shown, notes, printed=printed)


def ratios_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table that people read: every way beside the baseline loop, the best of the rounds."""
    lines = []
    for (stage, timed), group in rows.groupby(["stage", "timed"], sort=False):
        baseline = group[group["way"] == BASELINE].set_index("round")
        for way, of_way in sorted(group.groupby("way", sort=False), key=lambda pair: pair[0] != BASELINE):
            own = of_way.set_index("round")
            ratios = baseline["seconds"] / own["seconds"]
            fastest = own.loc[own["seconds"].idxmin()]
            each = "an epoch" if timed.startswith("training") and stage == "stage 1" else "in all"
            speed = fastest["images_per_second"]
            times = f"{ratios.median():.3g} ({ratios.min():.3g} to {ratios.max():.3g})"
            peak = [fastest["peak_mib"], fastest["worker_peak_mib"], fastest["cuda_peak_mib"]]
            lines.append(
                {
                    "stage": stage,
                    "timed": timed,
                    "way": way,
                    "seconds": f"{fastest['seconds']:.3g} {each}",
                    "images/s": "-" if pd.isna(speed) else f"{speed:.0f}",
                    "times the baseline loop": "1" if way == BASELINE else times,
                    "peak memory, MiB": " + ".join(f"{value:.0f}" for value in peak if pd.notna(value) and value > 0),
                }
            )
    return pd.DataFrame(lines)


if __name__ == "__main__":
    run_command(main)
