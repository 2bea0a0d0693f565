"""A training step on CUDA: its kernels launched one by one, as one graph, and the graphs of several networks at once.

    python -m benchmarks.speed.cuda_step                                       # ResNet-34, batches of 64
    python -m benchmarks.speed.cuda_step --network resnet32 --at_once 1 2 4

Milliseconds a step are of the wall clock over many steps, those of the kernels from the profiler. With N networks at
once each has a stream and a graph of its own, and the time is for one step of every one. Writes
`results/cuda_step_<network>.csv` and `.md`.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from engine.fit import make_sgd
from engine.steps import WARM_UP, StepGraph
from models import build_model
from utils.command import run_command
from utils.device import choose_execution
from utils.errors import UserError

CLASSES, SIZE, STEPS = 100, 32, 100
TEST_BATCH = 1000


class Trained:
    """A network, its optimiser, a batch of noise, and the step that trains the one on the other."""

    def __init__(self, network: str, batch: int) -> None:
        self.execution = choose_execution("cuda", 0, "auto", "graph")
        device = self.execution.device
        self.model = self.execution.place(build_model(network, CLASSES)).train()
        self.optimizer = make_sgd(self.model, 0.9, 5e-3, False)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01
        images = torch.randn(batch, 3, SIZE, SIZE, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.arange(batch, device=device) % CLASSES
        self.graph = StepGraph(self.optimizer, device)

    def step(self, images: Tensor, labels: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with self.execution.autocast():
            logits = self.model(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach() * len(labels), (logits.detach().argmax(dim=-1) == labels).sum()

    def eager(self) -> None:
        self.step(self.images, self.labels)

    def replayed(self) -> None:
        self.graph.run(self.step, self.images, self.labels, None)

    @torch.no_grad()
    def predict(self) -> None:
        with self.execution.autocast():
            self.model.eval()(self.images.repeat(-(-TEST_BATCH // len(self.images)), 1, 1, 1)[:TEST_BATCH])
        self.model.train()


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the milliseconds of `work` by the wall clock, the mean of many after some to warm up."""
    for _ in range(WARM_UP + 2):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / repeats


def kernels_of(work: Callable[[], object]) -> tuple[float, float]:
    """Return the milliseconds that the kernels of `work` take, and how many they are."""
    repeats = 5
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if str(event.device_type).endswith("CUDA")]
    return sum(event.device_time for event in events) / 1000 / repeats, len(events) / repeats


def measure(network: str, batch: int, at_once: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each way to run a step of a network on batches of `batch` images."""
    first = Trained(network, batch)
    rows = [{"how": "eager", "at_once": 1, "ms": milliseconds(first.eager, STEPS // 2)}]
    kernel_ms, kernels = kernels_of(first.eager)
    rows[0] |= {"kernel_ms": kernel_ms, "kernels": kernels}
    rows.append({"how": f"prediction of {TEST_BATCH}", "at_once": 1, "ms": milliseconds(first.predict, 10)})
    networks = [first, *(Trained(network, batch) for _ in range(max(at_once) - 1))]
    streams = [torch.cuda.Stream() for _ in networks]
    with contextlib.ExitStack() as epochs:
        for own, stream in zip(networks, streams, strict=True):
            epochs.enter_context(own.graph.epoch((len(at_once) + 1) * 2 * STEPS))
            all_of([own], [stream], WARM_UP + 1)
            torch.cuda.synchronize()
            if own.graph.refused:
                raise UserError(f"the step cannot be captured: {own.graph.refused}")
        for number in at_once:
            work = partial(all_of, networks[:number], streams[:number])
            rows.append({"how": "graph", "at_once": number, "ms": milliseconds(work, STEPS)})
    return rows


def all_of(networks: Sequence[Trained], streams: Sequence["torch.cuda.Stream"], times: int = 1) -> None:
    """Run a step of each network in its stream, `times` over."""
    for _ in range(times):
        for network, stream in zip(networks, streams, strict=True):
            with torch.cuda.stream(stream):
                network.replayed()


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_own_parser("speed.cuda_step", __doc__)
    parser.add_argument("--network", default="resnet34", help="network [resnet34]")
    parser.add_argument("--batch_size", type=int, default=64, help="images a step [64]")
    parser.add_argument("--at_once", type=int, nargs="+", default=[1, 2, 3, 4], help="networks at once [1 2 3 4]")
    own = parser.parse_args(argv)
    rows = measure(own.network, own.batch_size, own.at_once)
    table = pd.DataFrame(rows)
    table["ms_a_network"] = table["ms"] / table["at_once"]
    shared = {"network": own.network, "batch_size": own.batch_size}
    shared |= provenance("speed.cuda_step", argv, torch.device("cuda"))
    write_record(
        own.results, f"cuda_step_{own.network}", table.assign(**shared), table.round(3), __doc__.split("\n\n")[2]
    )


if __name__ == "__main__":
    run_command(main)
