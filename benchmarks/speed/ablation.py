"""What each optimisation of stage 1's training loop gains by itself.

    python -m benchmarks.speed.ablation
    python -m benchmarks.speed.ablation --network resnet32 --rounds 4 --steps 20
    python -m benchmarks.speed.ablation --quick

An optimisation is one difference between the baseline loop and the fast path. Each is measured twice: added alone, to a
loop with none of them, and added last, to one with all the others (bf16, compilation and the fused optimiser, which a
CPU does not default to, are added last to a fast path without all three; on CUDA compilation to one without the graph
that it stands in the place of). All ways take turns, round after round, in
one process, so that what the machine does beside it meets all of them. The gain is the median over the rounds of the
ratio to the way it is compared with in the same round. Other flags are those of main_stage1.py. Writes
`results/speed_ablation_<device>_<network>.csv` and `.md`, anew after every round: one that is cut short leaves the
rounds before.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pandas as pd
import torch
from torch import Tensor
from torch.optim import SGD

from benchmarks.command import Benchmark
from benchmarks.costs import synchronize
from benchmarks.noise import CLASSES, noise_data
from benchmarks.peers.baseline_loop import BaselineLoop
from benchmarks.record import network_name, provenance, write_record
from datasets.device_images import DeviceImages
from datasets.long_tail import LongTailedData
from engine.epoch import Batches, EpochOptions, train_epoch
from engine.steps import StepGraph
from losses import build_loss
from losses.los import ONE_HOT
from models import build_model
from settings.fields import Settings
from stages.session import settle_execution
from utils.command import run_command
from utils.device import Execution
from utils.hashing import epoch_order


@dataclass(frozen=True)
class Optimisations:
    """Which optimisations are on. With none, the loop is the baseline but for its bookkeeping."""

    resident: bool = False  # images on the device as uint8, augmented there, instead of PIL in worker processes
    together: bool = False  # thousands of images augmented at once, not batch by batch
    no_sync: bool = False  # losses and counts read once an epoch, not in every step
    channels_last: bool = False
    fused: bool = False  # the optimiser updates all parameters in one operation
    bf16: bool = False
    compile: bool = False
    graph: bool = False  # a step is launched as one CUDA graph


DESCRIPTIONS = {
    "resident": "images on the device, augmented there",
    "together": "thousands augmented at once",
    "no_sync": "no waiting for numbers in a step",
    "channels_last": "channels last",
    "fused": "fused optimiser",
    "bf16": "bf16 autocast",
    "compile": "compiled backbone",
    "graph": "a step as one CUDA graph",
}


def possible_optimisations(device: torch.device) -> list[str]:
    """Return the optimisations that can be had here: without a compiler nothing is compiled."""
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    missing = {"compile": not compiler, "graph": device.type != "cuda"}
    return [name for name in DESCRIPTIONS if not missing.get(name, False)]


@dataclass(frozen=True)
class Comparison:
    """Two ways that differ by one optimisation."""

    optimisation: str
    kind: str  # "alone" or "last"
    without: Optimisations
    added: Optimisations


def comparisons(device: torch.device, names: Sequence[str]) -> list[Comparison]:
    """Return each of the named optimisations added alone, and added last to the fast path of this device.

    Some need others: images augmented thousands at a time are on the device; a graph holds a step that waits for
    nothing and whose optimiser reads its learning rate from the device; a compiled backbone stands in a graph's place.
    """
    fast = Optimisations(**dict.fromkeys(DESCRIPTIONS, True))
    if device.type == "cpu":
        fast = dataclasses.replace(fast, bf16=False, compile=False, fused=False, graph=False)
    else:
        fast = dataclasses.replace(fast, compile=False)
    start = {"together": Optimisations(resident=True), "graph": Optimisations(no_sync=True, fused=True)}
    gone = {"resident": ("together",), "no_sync": ("graph",), "fused": ("graph",), "compile": ("graph",)}
    found = []
    for name in names:
        alone = start.get(name, Optimisations())
        found.append(Comparison(name, "alone", alone, dataclasses.replace(alone, **{name: True})))
        without = dataclasses.replace(fast, **dict.fromkeys((name, *gone.get(name, ())), False))
        last = (
            dataclasses.replace(without, compile=True)
            if name == "compile"
            else dataclasses.replace(fast, **{name: True})
        )
        found.append(Comparison(name, "last", without, last))
    return found


class Trainer:
    """A network of its own, trained in one way; each call trains `steps` steps and returns images a second."""

    def __init__(
        self,
        optimisations: Optimisations,
        settings: Settings,
        data: LongTailedData,
        device: torch.device,
        loaders: int,
    ) -> None:
        self.on = optimisations
        self.settings = settings
        self.device = device
        self.execution = Execution(device, optimisations.bf16, optimisations.compile, ())
        torch.manual_seed(0)
        self.model = self.execution.place(build_model(settings.network, CLASSES, width=settings.width))
        if not optimisations.channels_last:
            self.model.to(memory_format=torch.contiguous_format)
        self.optimizer = SGD(
            self.model.parameters(),
            lr=1e-3,
            momentum=settings.momentum,
            weight_decay=settings.wd,
            fused=True if optimisations.fused else None,
        )
        self.loss = build_loss("ce", [1] * CLASSES, ONE_HOT).to(device)
        self.images = DeviceImages(data.train, data.augmentation, device)
        self.loader = BaselineLoop(self.model, data, device, loaders, settings.batch_size).loader("train")
        self.options = EpochOptions(graph=StepGraph(self.optimizer, device) if optimisations.graph else None)
        self.epoch = 0

    def batches(self, steps: int) -> Batches:
        """Return the batches of the next `steps` steps, as the optimisations make them."""
        if not self.on.resident:
            return self._from_workers(steps)
        made = self._from_device()
        return islice(made if self.on.channels_last else self._as_nchw(made), steps)

    def _from_workers(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        format_ = torch.channels_last if self.on.channels_last else torch.contiguous_format
        for inputs, labels in islice(self.loader, steps):
            yield inputs.to(self.device, memory_format=format_), labels.to(self.device)

    def _from_device(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, size = self.images, self.settings.batch_size
        if self.on.together:
            yield from images.training_batches(size, 0, self.epoch)
        else:
            for rows in epoch_order(len(images), 0, self.epoch).to(self.device).split(size):
                yield images.augmented(rows, 0, self.epoch), images.labels[rows]

    @staticmethod
    def _as_nchw(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in batches:
            yield inputs.contiguous(), labels

    def loss_function(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss, which by default waits for its own value and for the accuracy, as released."""
        if self.on.no_sync:
            return self.loss

        def waiting(logits: Tensor, labels: Tensor) -> Tensor:
            value = self.loss(logits, labels)
            value.item()
            right = logits.detach().topk(5).indices == labels[:, None]
            right[:, :1].sum().item()
            right.sum().item()
            return value

        return waiting

    def __call__(self, steps: int) -> float:
        self.epoch += 1
        self.model.train()
        synchronize(self.device)
        started = time.perf_counter()
        loss = self.loss_function()
        result = train_epoch(self.model, self.batches(steps), steps, self.optimizer, loss, self.execution, self.options)
        synchronize(self.device)
        return result.images / (time.perf_counter() - started)


def measure_ways(
    pairs: Sequence[Comparison], settings: Settings, device: torch.device, loaders: int, steps: int, rounds: int
) -> Iterator[pd.DataFrame]:
    """Yield, after each round, one row an optimisation, kind and round so far: images per second without and with it.

    An epoch has `steps` steps.
    """
    data = noise_data(settings.batch_size * steps)
    ways = list(dict.fromkeys(way for pair in pairs for way in (pair.without, pair.added)))
    trainers: dict[Optimisations, Trainer] = {}
    speeds: dict[tuple[Optimisations, int], float] = {}
    for way in ways:
        trainers[way] = Trainer(way, settings, data, device, loaders)
        trainers[way](min(steps, 5))
        print(".", end="", flush=True)
    for number in range(rounds):
        for way in ways:
            speeds[way, number] = trainers[way](steps)
        print(f" round {number + 1} of {rounds} done", flush=True)
        yield pd.DataFrame(
            {
                "lever": pair.optimisation,  # the column's name in the records that were released
                "kind": pair.kind,
                "round": done,
                "without": speeds[pair.without, done],
                "with": speeds[pair.added, done],
            }
            for pair in pairs
            for done in range(number + 1)
        )


def gains_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line an optimisation: the median gain alone and last, with its range over the rounds."""
    lines = []
    for name in rows["lever"].unique():
        line: dict[str, str] = {"optimisation": DESCRIPTIONS[name]}
        for kind in ("alone", "last"):
            own = rows[(rows["lever"] == name) & (rows["kind"] == kind)]
            gains = own["with"] / own["without"]
            line[f"{kind}: images/s"] = f"{own['without'].median():.0f} -> {own['with'].median():.0f}"
            line[f"{kind}: gain"] = f"{gains.median():.2f} ({gains.min():.2f} to {gains.max():.2f})"
        lines.append(line)
    return pd.DataFrame(lines)


def main(argv: Sequence[str] | None = None) -> None:
    benchmark = Benchmark("speed.ablation", __doc__, "one round of few steps")
    benchmark.add("--rounds", default=5, help="turns of all ways [5]")
    benchmark.add("--steps", help="steps a turn, an epoch of its own [40, on CUDA 170]")
    benchmark.add("--loaders", help="worker processes where images come from them [0, on CUDA 8]")
    benchmark.add("--only", nargs="+", kind=str, choices=list(DESCRIPTIONS), help="optimisations [all there are here]")
    own, command = benchmark.parse(argv, taken=("amp", "compile"))
    settings, execution = command.settings, settle_execution(command)
    cuda = execution.device.type == "cuda"
    loaders = own.loaders if own.loaders is not None else 8 if cuda else 0
    steps = own.steps if own.steps is not None else 170 if cuda else 40
    if own.rounds < 1 or steps < 1 or loaders < 0:
        benchmark.refuse_usage("--rounds and --steps must be at least 1, and --loaders 0 or more")
    possible = possible_optimisations(execution.device)
    chosen = [name for name in own.only or possible if name in possible]
    if not chosen:
        benchmark.refuse_usage(f"none of --only can be had here: {', '.join(possible)} can")
    rounds, steps = (1, 2) if own.quick else (own.rounds, steps)
    made = provenance("speed.ablation", argv, execution.device)
    pairs = comparisons(execution.device, chosen)
    name = f"speed_ablation_{execution.device.type}_{network_name(settings, short=True)}"
    shared = {"network": settings.network, "width": settings.width, "batch_size": settings.batch_size}
    measured = measure_ways(pairs, settings, execution.device, loaders, steps, rounds)
    for done, rows in enumerate(measured, start=1):
        notes = (
            f"{network_name(settings)}, batch {settings.batch_size}, training alone, on {made['device']}, torch "
            f"{made['torch']}; median and range over {done} rounds of {steps} steps. Made by `{made['command']}`."
        )
        rows = rows.assign(**made, **shared, steps=steps, loaders=loaders)
        write_record(own.results, name, rows, gains_table(rows), notes, printed=done == rounds)


if __name__ == "__main__":
    run_command(main)
