"""This project beside what a user would take instead: torchvision, timm, Lightning, scikit-learn, DINOv2's evaluation.

    pip install timm lightning
    python -m benchmarks.robustness.image_trees cifar_trees --imb_ratio 100
    python -m benchmarks.peers.side_by_side --trees cifar_trees --features features.safetensors
    python -m benchmarks.peers.side_by_side --trees cifar_trees --quick

`stage 1` is an epoch of the classic ResNet-20 on class folders of JPEG and PNG images, cropped and mirrored; every side
reads the same files. The number of worker processes is swept for each, bf16 too where the CPU has its units, and the
fastest setting taken. `linear evaluation` is a linear classifier on a file of features that `--features` reads, from
the file to the accuracy: ours is main_stage1.py --features. Every measurement has a process of its own, and all sides
take turns. `times` is the median over the rounds of a side's seconds by ours. Writes `results/peers.csv` and `.md`.
"""

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from benchmarks.speed.child import run_child
from utils.command import run_command
from utils.device import has_bf16_units
from utils.errors import UserError

NETWORK, BATCH, RATE, DECAY = "resnet20", 128, 0.05, 5e-4
OURS = "ours"
LOOPS = ("torchvision", "timm", "lightning")
CLASSIFIERS = ("scikit-learn", "dinov2")


@dataclass(frozen=True)
class Side:
    """A side of the comparison of training loops and the setting it runs with."""

    name: str
    workers: int
    bf16: bool

    def __str__(self) -> str:
        return f"{self.name}, {self.workers} workers, {'bf16' if self.bf16 else 'fp32'}"


def epoch_of(side: Side, trees: Path, epochs: int) -> dict[str, float]:
    """Train some epochs of a side; return the `seconds` of its fastest epoch and its `images`."""
    if side.name != OURS:
        shared = {"network": NETWORK, "batch_size": BATCH, "lr": RATE, "wd": DECAY, "epochs": epochs}
        answer = run_child(
            "peer", peer=side.name, source=str(trees / "train"), workers=side.workers, bf16=side.bf16, **shared
        )
        return {"seconds": min(answer["seconds"]), "images": answer["images"]}
    with tempfile.TemporaryDirectory() as out:
        argv = ["--dataset", "folder", "--data_dir", str(trees), "--network", NETWORK, "--stem", "cifar"]
        argv += ["--image_size", "32", "--resize", "32", "--batch_size", str(BATCH), "--lr", str(RATE)]
        argv += ["--wd", str(DECAY), "--epochs", str(epochs), "--eval_every", str(epochs), "--out", out]
        argv += ["--workers", str(side.workers), "--amp", "bf16" if side.bf16 else "off", "--device", "cpu"]
        log = run_child("ours", script="main_stage1", argv=argv)["log"]
    fastest = min(range(epochs), key=lambda epoch: log["seconds"][epoch])
    return {
        "seconds": log["seconds"][fastest],
        "images": round(log["seconds"][fastest] * log["images_per_second"][fastest]),
    }


def fastest_setting(name: str, trees: Path, epochs: int, loaders: Sequence[int]) -> tuple[Side, list[dict[str, Any]]]:
    """Return the fastest setting of a side, and a row for each that was tried."""
    rows: list[dict[str, Any]] = []
    for bf16 in (False, True) if has_bf16_units() else (False,):
        for workers in loaders:
            side = Side(name, workers, bf16)
            rows.append({"what": "sweep", "side": name, "setting": str(side), **epoch_of(side, trees, epochs)})
            print(f"{side}: {rows[-1]['seconds']:.3g} s", flush=True)
    seconds = [row["seconds"] for row in rows]
    best = seconds.index(min(seconds))
    return Side(name, loaders[best % len(loaders)], best >= len(loaders)), rows


def measure_loops(trees: Path, rounds: int, epochs: int, loaders: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each epoch of each side at its fastest setting, and those of the sweep."""
    sides, rows = [], []
    for name in (OURS, *LOOPS):
        side, tried = fastest_setting(name, trees, epochs, loaders)
        sides.append(side)
        rows += tried
    for number in range(rounds):
        for side in sides:
            measured = epoch_of(side, trees, epochs)
            rows.append({"what": "stage 1", "side": side.name, "setting": str(side), "round": number, **measured})
        print(f"stage 1, round {number + 1} of {rounds} done", flush=True)
    return rows


def measure_classifiers(file: Path, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each linear classifier and round: seconds from the file to the accuracy."""
    rows = []
    for number in range(rounds):
        for name in (OURS, *CLASSIFIERS):
            if name == OURS:
                with tempfile.TemporaryDirectory() as out:
                    answer = run_child("ours", script="main_stage1", argv=["--features", str(file), "--out", out])
                accuracy = answer["accuracy"]["plain"]
            else:
                answer = run_child("peer", peer=name, source=str(file))
                accuracy = answer["accuracy"]
            seconds = answer["wall_seconds"]
            rows.append(
                {"what": "linear evaluation", "side": name, "round": number, "seconds": seconds, "accuracy": accuracy}
            )
            print(f"linear evaluation, {name}: {seconds:.3g} s, {accuracy:.1f} %", flush=True)
    return rows


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each side: the median of its seconds, and how many times ours they are."""
    lines = []
    for (what, side), own in rows[rows["round"].notna()].groupby(["what", "side"], sort=False):
        by_round = own.set_index("round")["seconds"]
        ours = rows[(rows["what"] == what) & (rows["side"] == OURS)].set_index("round")["seconds"]
        times = [by_round[number] / ours[number] for number in by_round.index]
        line = {"what": what, "side": side, "seconds": statistics.median(by_round), "times": statistics.median(times)}
        lines.append({**line, "lowest": min(times), "highest": max(times)})
    return pd.DataFrame(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for and write the table."""
    parser = make_own_parser("peers.side_by_side", __doc__, "one round of one epoch each: a rehearsal")
    parser.add_argument("--trees", type=Path, metavar="FOLDER", help="what benchmarks.robustness.image_trees wrote")
    parser.add_argument("--features", type=Path, metavar="FILE", help="file of features for linear evaluation")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that each side runs [5]")
    own = parser.parse_args(argv)
    rounds, epochs = (1, 1) if own.quick else (own.rounds, 2)
    if rounds < 1 or (own.trees is None and own.features is None):
        raise UserError("give --trees, --features or both, and --rounds of at least 1")
    if own.trees is not None and not (own.trees / "folder" / "train").is_dir():
        raise UserError(f"{own.trees} has no folder/train; python -m benchmarks.robustness.image_trees makes it")
    loaders = sorted({0, *([] if own.quick else [1, os.cpu_count() or 1])})
    rows: list[dict[str, Any]] = []
    if own.trees is not None:
        rows += measure_loops(own.trees / "folder", rounds, epochs, loaders)
    if own.features is not None:
        rows += measure_classifiers(own.features, rounds)
    made = provenance("peers.side_by_side", argv, torch.device("cpu"))
    table = pd.DataFrame([{**row, **made} for row in rows])
    shown = ratios(table).round({"seconds": 2, "times": 2, "lowest": 2, "highest": 2})
    notes = (
        f"Seconds of an epoch of {NETWORK} (batch {BATCH}), or of a linear classifier from the file to the accuracy; "
        f"{made['device']}, {made['threads']} threads, torch {made['torch']}; medians of {rounds} interleaved rounds. "
        f"`times` is how many times ours a side takes. Made by `{made['command']}`."
    )
    write_record(own.results, "peers", table, shown, notes)


if __name__ == "__main__":
    run_command(main)
