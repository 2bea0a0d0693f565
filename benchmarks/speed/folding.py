"""What folding batch norm into convolutions gains where a frozen backbone is evaluated on a CPU.

    python -m benchmarks.speed.folding
    python -m benchmarks.speed.folding --networks resnet32 --processes 15

Features of random images in fp32, channels last, in the batches of a prediction, as the network computes them and
folded, by turns, on one thread. The ratio of a process is the median over its rounds of the CPU seconds folded by those
of the network. Where memory lies differs from process to process, and the ratio of small networks with it, far more
than from round to round. So a network is measured in several processes, and its ratio is the median over them. The
difference is the largest of any feature, by the largest feature. Networks with a size behind an `@` have the imagenet
stem. Writes `results/folding.csv`, with a row for each process, and `.md`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.children import answer_of
from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from models import build_model
from models.batch_norm.folded import folded_features
from utils.command import run_command
from utils.device import choose_execution
from utils.errors import UserError
from utils.files import write_json

NETWORKS = ["resnet32", "resnet18", "resnet34", "resnet50@224"]
TARGET = 0.9


def with_statistics(model: nn.Module) -> None:
    """Give batch norms means, variances, weights and biases as training might leave them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)


def seconds_of(function: Callable[[Tensor], Tensor], images: Tensor, batches: int) -> float:
    """Return the CPU seconds of `batches` predictions."""
    started = time.process_time()
    for _ in range(batches):
        function(images)
    return time.process_time() - started


@torch.inference_mode()
def measure(name: str, rounds: int, batches: int) -> dict[str, object]:
    """Return what this process measures of a network."""
    torch.set_num_threads(1)
    network, _, size = name.partition("@")
    execution = choose_execution("cpu", 0, "off", "off", 1)
    torch.manual_seed(0)
    model = build_model(network, 100, "imagenet" if size else "cifar")
    with_statistics(model)
    execution.place(model).eval()
    folded = folded_features(model)
    pixels = int(size or 32)
    images = torch.randn(execution.predict_batch(pixels), 3, pixels, pixels).to(memory_format=torch.channels_last)
    expected, found = model.features(images), folded(images)
    times = [(seconds_of(model.features, images, batches), seconds_of(folded, images, batches)) for _ in range(rounds)]
    ratios = [after / before for before, after in times]
    return {
        "network": network,
        "pixels": pixels,
        "batch": len(images),
        "cpu_ms_an_image": 1000 * statistics.median(before for before, _ in times) / batches / len(images),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "difference": float((found - expected).abs().max() / expected.abs().max()),
        "rounds": rounds,
    }


def process_rows(names: Sequence[str], processes: int, rounds: int, batches: int) -> Iterator[dict[str, object]]:
    """Yield a row for each process and network; the networks take turns."""
    for number in range(processes):
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                answer = Path(folder) / "answer.json"
                flags = [
                    "--networks",
                    name,
                    "--rounds",
                    str(rounds),
                    "--batches",
                    str(batches),
                    "--answer",
                    str(answer),
                ]
                row = answer_of(["-m", "benchmarks.speed.folding", *flags], answer, name)
            print(f"{name}, process {number + 1} of {processes}: {row['ratio']:.3f}", flush=True)
            yield {"process": number, **row, "target": TARGET}


def network_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each network: the median over the processes of what they measured, the range of their ratios,
    the widest range of the rounds of one process, and how many processes reach the target."""
    lines = []
    for (network, pixels), own in rows.groupby(["network", "pixels"], sort=False):
        ratio = float(own["ratio"].median())
        line = {"network": network, "pixels": pixels, "cpu_ms_an_image": own["cpu_ms_an_image"].median()}
        spread = {"ratio": ratio, "ratio_low": own["ratio"].min(), "ratio_high": own["ratio"].max()}
        within = {"within_one": (own["ratio_high"] - own["ratio_low"]).max()}
        below = f"{int((own['ratio'] <= TARGET).sum())} of {len(own)}"
        lines.append({**line, **spread, **within, "below_target": below, "reached": ratio <= TARGET})
    return pd.DataFrame(lines)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this benchmark."""
    parser = make_own_parser(
        "speed.folding", __doc__, "one process and round of one batch of the first network: a rehearsal"
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help=f"[{' '.join(NETWORKS)}]")
    parser.add_argument("--processes", type=int, default=9, metavar="N", help="processes for each network [9]")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of both ways in a process [7]")
    parser.add_argument("--batches", type=int, default=8, metavar="N", help="predictions a turn [8]")
    parser.add_argument("--answer", type=Path, metavar="FILE", help="measure in this process alone, into a JSON file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write what the command line asks for."""
    own = make_parser().parse_args(argv)
    if min(own.processes, own.rounds, own.batches) < 1:
        numbers = f"{own.processes}, {own.rounds} and {own.batches}"
        raise UserError(f"--processes, --rounds and --batches must be at least 1, not {numbers}")
    if not all("@" not in name or name.partition("@")[2].isdecimal() for name in own.networks):
        raise UserError(f"--networks {' '.join(own.networks)}: names are such as resnet32 and resnet50@224")
    if own.answer is not None:
        write_json(own.answer, measure(own.networks[0], own.rounds, own.batches))
        return
    networks = own.networks[:1] if own.quick else own.networks
    counts = (1, 1, 1) if own.quick else (own.processes, own.rounds, own.batches)
    made = {**provenance("speed.folding", argv, torch.device("cpu")), "threads": 1}
    table = pd.DataFrame([{**row, **made} for row in process_rows(networks, *counts)])
    notes = (
        f"CPU seconds in fp32, one thread of {made['device']}; torch {made['torch']}; medians of {counts[0]} processes "
        f"of {counts[1]} rounds each. `ratio_low` and `ratio_high` are the lowest and the highest process, `within_one`"
        f" the widest range of the rounds of one. Features differ by {table['difference'].max():.1e} of their largest "
        "number at most."
    )
    write_record(own.results, "folding", table, network_lines(table).round(3), notes)


if __name__ == "__main__":
    run_command(main)
