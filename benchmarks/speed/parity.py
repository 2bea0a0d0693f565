"""Do the baseline loop, this project in full precision and its fast path train to the same accuracy?

    python -m benchmarks.speed.parity
    python -m benchmarks.speed.parity --seeds 0 1 2 --epochs 15 --finetune_epoch 3 --loaders 2
    python -m benchmarks.speed.parity --quick

Every way trains stage 1 with every seed by the same recipe, then label over-smoothing on its own stage 1: the baseline
loop as released (the whole network in train mode, fresh augmentation), ours in the same way and with cached features
(the default). Accuracies are the last epoch's. Ways whose means differ by less than the seeds' deviation agree. Other
flags are those of main_stage1.py. Writes `results/parity_<device>_<network>.csv` and `.md`.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

import main_stage1
import main_stage2
from benchmarks.command import Benchmark
from benchmarks.peers.baseline_loop import LABEL_SMOOTH, STAGE2_LR, BaselineLoop
from benchmarks.record import network_name, provenance, write_record
from models import build_model
from runs.run_names import run_path
from settings.command_line import parse_command
from settings.fields import STAGE1
from settings.resolve import Command
from stages.data import load_data
from stages.session import settle_execution
from utils.command import run_command

SMALL = {"network": "resnet20", "epochs": "15"}  # what three seeds can be trained of three times on a CPU
AS_RELEASED = "los, train-mode batch norm, fresh augmentation"
RELEASED = ["--start", "last", "--bn_mode", "train", "--views", "fresh"]


def baseline_rows(command: Command, seed: int, finetune_epoch: int, loaders: int) -> list[dict[str, Any]]:
    """Train both stages with the baseline loop; return a row each."""
    settings, execution = command.settings, settle_execution(command)
    data = load_data(settings, seed)
    torch.manual_seed(seed)
    model = build_model(settings.network, data.num_classes, width=settings.width)
    loop = BaselineLoop(model, data, execution.device, loaders, settings.batch_size)
    first = loop.stage1(settings.epochs, settings.lr, settings.wd, settings.momentum, test="last")
    second = loop.stage2(finetune_epoch, STAGE2_LR, settings.momentum, test="last")
    common = {"way": "baseline loop", "seed": seed}
    return [{"stage": "stage 1", **common, **first.accuracy}, {"stage": AS_RELEASED, **common, **second.accuracy}]


def our_rows(
    argv: list[str], way: str, flags: list[str], seed: int, finetune_epoch: int, out: str
) -> list[dict[str, Any]]:
    """Train both stages with main_stage1.py and main_stage2.py; return a row for each stage and kind of stage 2."""
    own = [*argv, *flags, "--seed", str(seed), "--out", out, "--eval_every", "1000"]
    rows = [{"stage": "stage 1", "way": way, "seed": seed, **accuracies(main_stage1.main(own))}]
    command = parse_command(STAGE1, "", own)
    kept = []
    for flag in ("data_dir", "workers", "device", "gpu", "batch_size", "momentum"):
        kept += [f"--{flag}", str(command.given[flag])] if flag in command.given else []
    common = ["--pretrained_pth", str(run_path(command)), "--out", out, *kept, "--seed", str(seed)]
    common += [*(flags if "--amp" in flags else []), "--finetune_epoch", str(finetune_epoch), "--eval_every", "1000"]
    common += ["--finetune_lr", str(STAGE2_LR), "--label_smooth", str(LABEL_SMOOTH)]
    kinds = {AS_RELEASED: RELEASED, "los, frozen, cached features": []}
    for stage, switches in kinds.items():
        metrics = main_stage2.main([*common, *switches])
        rows.append({"stage": stage, "way": way, "seed": seed, **accuracies(metrics)})
    return rows


def accuracies(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Return the last epoch's accuracy on the test images, plain and flip-averaged, in percent."""
    return {way: report and report["all"] for way, report in metrics["last"].items() if way != "epoch"}


def our_ways(device: torch.device) -> dict[str, list[str]]:
    """Return full precision, and the fast path: the default on CUDA, bf16 on a CPU."""
    exact = ["--amp", "off", "--compile", "off"]
    return {"ours, fp32, eager": exact, "ours, fast": [] if device.type == "cuda" else ["--amp", "bf16"]}


def accuracies_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and sample deviation over the seeds, and each way's distance from full precision.

    The distance is in units of its own deviation, pooled over the two ways, for means of this many seeds.
    """
    lines = []
    for stage, of_stage in rows.groupby("stage", sort=False):
        exact = of_stage[of_stage["way"] == "ours, fp32, eager"]["plain"]
        for way, own in of_stage.groupby("way", sort=False):
            values = own["plain"]
            line = {"stage": stage, "way": way, "seeds": len(values)}
            for column in ("plain", "flip"):
                seen = own[column].astype(float)
                line[f"{column}, %"] = "-" if seen.isna().any() else f"{seen.mean():.2f} ± {seen.std():.2f}"
            pooled = float(np.sqrt((values.var() + exact.var()) / 2))
            error = pooled * float(np.sqrt(1 / len(values) + 1 / len(exact)))
            same = way == "ours, fp32, eager"
            line["from ours in fp32"] = "-" if same else f"{values.mean() - exact.mean():+.2f} ± {error:.2f}"
            lines.append(line)
    return pd.DataFrame(lines)


def measure_accuracies(
    command: Command, seeds: Sequence[int], finetune_epoch: int, loaders: int, device: torch.device
) -> pd.DataFrame:
    """Train every way with every seed; return a row a way, stage and seed."""
    rows: list[dict[str, Any]] = []
    for seed in dict.fromkeys(seeds):
        of_seed = baseline_rows(command, seed, finetune_epoch, loaders)
        with tempfile.TemporaryDirectory() as out:
            for number, (way, flags) in enumerate(our_ways(device).items()):
                of_seed += our_rows(list(command.arguments), way, flags, seed, finetune_epoch, f"{out}/{number}")
        for row in of_seed:
            print(f"seed {seed}: {row['way']}, {row['stage']}: {row['plain']:.2f}", flush=True)
        rows += of_seed
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    benchmark = Benchmark("speed.parity", __doc__, "one epoch of each stage on ResNet-8")
    benchmark.add("--seeds", nargs="+", default=[0, 1, 2], help="seeds, two at least [0 1 2]")
    benchmark.add("--finetune_epoch", default=3, help="epochs of label over-smoothing [3]")
    benchmark.add("--loaders", default=2, help="worker processes of the baseline loop [2]")
    own, command = benchmark.parse(
        argv,
        lambda own: {"lr": "0.05", **({"network": "resnet8", "epochs": "1"} if own.quick else SMALL)},
        taken=("seed", "amp", "compile"),
    )
    if len(set(own.seeds)) < 2 or own.loaders < 0 or own.finetune_epoch < 1:
        benchmark.refuse_usage("--seeds needs two at least, --loaders 0 or more, --finetune_epoch 1 or more")
    finetune_epoch = 1 if own.quick else own.finetune_epoch
    settings, device = command.settings, settle_execution(command).device
    made = provenance("speed.parity", argv, device)
    table = measure_accuracies(command, own.seeds, finetune_epoch, own.loaders, device).assign(
        **made,
        network=settings.network,
        width=settings.width,
        epochs=settings.epochs,
        finetune_epoch=finetune_epoch,
    )
    notes = (
        f"{network_name(settings)}, {settings.dataset}, imbalance factor {settings.imb_ratio:g}, {settings.epochs} "
        f"epochs of stage 1 (batch {settings.batch_size}, learning rate {settings.lr:g}, weight decay {settings.wd:g}) "
        f"and {finetune_epoch} of stage 2, on {made['device']}, torch {made['torch']}. Last epoch, mean and sample "
        f"deviation over seeds {', '.join(map(str, own.seeds))}; the last column is the difference of the means and "
        f"its standard error. Made by `{made['command']}`."
    )
    name = f"parity_{device.type}_{network_name(settings, short=True)}"
    write_record(own.results, name, table, accuracies_table(table), notes)


if __name__ == "__main__":
    run_command(main)
