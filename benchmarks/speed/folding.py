"""What folding batch norm into convolutions gains where a frozen backbone is evaluated on a CPU.

    python -m benchmarks.speed.folding
    python -m benchmarks.speed.folding --networks resnet32 --rounds 9

Features of random images in fp32, channels last, in the batches of a prediction, as the network computes them and
folded, by turns. The ratio is the median over the rounds of the CPU seconds folded by those of the network; the
difference is the largest of any feature, by the largest feature. Networks with a size behind an `@` have the imagenet
stem. Writes `results/folding.csv` and `.md`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from models import build_model
from models.batch_norm.folded import folded_features
from utils.command import run_command
from utils.device import choose_execution
from utils.errors import UserError

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
    """Return the row of a network."""
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
    row: dict[str, object] = {
        "network": network,
        "pixels": pixels,
        "batch": len(images),
        "cpu_ms_an_image": 1000 * statistics.median(before for before, _ in times) / batches / len(images),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "difference": float((found - expected).abs().max() / expected.abs().max()),
        "target": TARGET,
        "reached": statistics.median(ratios) <= TARGET,
        "rounds": rounds,
    }
    print(f"{name}: {row['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)
    return row


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this benchmark."""
    parser = make_own_parser("speed.folding", __doc__, "one round of one batch of the first network: a rehearsal")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help=f"[{' '.join(NETWORKS)}]")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of both ways [7]")
    parser.add_argument("--batches", type=int, default=8, metavar="N", help="predictions a turn [8]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write what the command line asks for."""
    own = make_parser().parse_args(argv)
    if min(own.rounds, own.batches) < 1:
        raise UserError(f"--rounds and --batches must be at least 1, not {own.rounds} and {own.batches}")
    if not all("@" not in name or name.partition("@")[2].isdecimal() for name in own.networks):
        raise UserError(f"--networks {' '.join(own.networks)}: names are such as resnet32 and resnet50@224")
    networks, rounds, batches = (own.networks[:1], 1, 1) if own.quick else (own.networks, own.rounds, own.batches)
    rows = [measure(name, rounds, batches) for name in networks]
    made = provenance("speed.folding", argv, torch.device("cpu"))
    notes = f"CPU seconds in fp32, one thread of {made['device']}; torch {made['torch']}; median of {rounds} rounds."
    table = pd.DataFrame([{**row, **made} for row in rows])
    shown = table[["network", "pixels", "cpu_ms_an_image", "ratio", "ratio_low", "ratio_high"]].round(3)
    largest = f"Features differ by {table['difference'].max():.1e} of their largest number at most."
    write_record(own.results, "folding", table, shown, f"{notes} {largest}")


if __name__ == "__main__":
    run_command(main)
