"""A step that is captured and replayed trains what the same step trains when it runs as it is.

There need be no GPU: a recorder in the place of CUDA's graphs keeps a step's operations with the tensors that they read
and write, undoes what they did, since a capture runs nothing, and repeats them at every replay.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from engine.epoch import EpochOptions, EpochResult, mixup_shares, train_epoch
from engine.steps import WARM_UP, StepGraph
from losses import build_loss
from losses.los import ONE_HOT
from models import build_model
from settings.fields import FLAGS
from utils.device import Execution

COUNTS = [20, 9, 4]
STEPS, BATCH = 7, 6  # the last batch has fewer


class Recorder(TorchDispatchMode):
    """Keeps operations, and at the end puts back what they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand further lines")
        for argument, given in zip(function._schema.arguments, args, strict=False):
            # Batch norm writes its statistics without saying so.
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or (given is not None and argument.name.startswith("running_")):
                for tensor in _pytree.tree_leaves(given):
                    self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def undo(self) -> None:
        for tensor, value in self.before.values():
            tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(_pytree.tree_leaves(result), _pytree.tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put the recorder in the place of CUDA's graphs; return the captures and replays, as they come."""
    events: list[str] = []

    class Graph:
        recorder: Recorder

        def replay(self) -> None:
            events.append("replay")
            self.recorder.replay()

    class Stream:
        numbers = itertools.count()

        def __init__(self, device: torch.device, priority: int) -> None:
            self.name = f"stream {next(self.numbers)} of priority {priority}"

    @contextlib.contextmanager
    def capture(graph: Graph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        events.append(f"capture {capture_error_mode} in {stream.name}")
        graph.recorder = Recorder()
        try:
            with graph.recorder:
                yield
        finally:
            graph.recorder.undo()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    return events


def train(
    execution: Execution, loss: str | nn.Module, graphed: bool, mixup: float = 0.0, max_norm: float | None = None
) -> tuple[dict[str, Tensor], list[EpochResult], SGD, StepGraph | None]:
    """Train a small network for two epochs with a falling rate; with or without a graph."""
    torch.manual_seed(0)
    model = build_model("resnet8", 3, width=4).train()
    images = torch.randn(STEPS * BATCH - 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(len(images)) % 3
    # One kernel that reads a rate from a tensor, as on CUDA.
    optimizer = SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-3, fused=True)
    objective = build_loss(loss, COUNTS, ONE_HOT) if isinstance(loss, str) else loss
    graph = StepGraph(optimizer, execution.device) if graphed else None
    results = []
    for epoch, rate in enumerate((0.1, 0.02)):
        optimizer.param_groups[0]["lr"] = rate
        shares = mixup_shares(mixup, STEPS, 0, epoch) if mixup else None
        options = EpochOptions(mixup=shares, max_norm=max_norm, graph=graph)
        batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        results.append(train_epoch(model, batches, STEPS, optimizer, objective, execution, options))
    return {**model.state_dict(), **objective.state_dict(prefix="loss.")}, results, optimizer, graph


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for name, value in one[0].items():
        torch.testing.assert_close(other[0][name], value, rtol=1e-5, atol=1e-6, msg=name)
    for ours, theirs in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-5)
        assert (ours.accuracy, ours.images, ours.diverged_at) == (theirs.accuracy, theirs.images, theirs.diverged_at)


@pytest.mark.parametrize("loss", FLAGS["loss"].choices)
def test_every_loss_of_stage_1_is_captured_and_trains_the_same(
    loss: str, cpu: Execution, recorded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    graphed = train(cpu, loss, True)
    assert_same(train(cpu, loss, False), graphed)
    # The last batch of an epoch is of another shape: it runs as it is.
    assert recorded[0].startswith("capture thread_local in stream ")
    assert recorded[1:] == ["replay"] * (2 * STEPS - WARM_UP - 2)
    assert graphed[3] is not None and graphed[3].refused is None and capsys.readouterr().out == ""
    assert graphed[2].param_groups[0]["lr"] == 0.02  # a number again, which a checkpoint keeps


def test_mixup_and_clipped_gradients_are_part_of_the_graph(cpu: Execution, recorded: list[str]) -> None:
    plain, graphed = (train(cpu, "ce", graphed, mixup=0.4, max_norm=0.5) for graphed in (False, True))
    assert_same(plain, graphed)
    assert recorded.count("replay") > STEPS


def test_no_two_graphs_are_captured_in_one_stream(cpu: Execution, recorded: list[str]) -> None:
    """They would share the memory that cuBLAS works in, and could not run at once."""
    for _ in range(3):
        train(cpu, "ce", True)
    streams = [event for event in recorded if event.startswith("capture")]
    assert len(set(streams)) == len(streams) == 3 and all(event.endswith("of priority -1") for event in streams)


class ReadsTheDevice(nn.Module):
    """A loss that waits for the device in every step."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(logits, labels)
        return loss * 2 if loss.detach().item() > 100 else loss


def test_a_step_that_cannot_be_captured_runs_as_it_is_and_says_why_once(
    cpu: Execution, recorded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    graphed = train(cpu, ReadsTheDevice(), True)
    assert_same(train(cpu, ReadsTheDevice(), False), graphed)
    assert len(recorded) == 1 and recorded[0].startswith("capture thread_local") and graphed[3] is not None
    assert graphed[3].refused == "operation not permitted when stream is capturing"
    assert capsys.readouterr().out.count("not captured as a CUDA graph, since operation not permitted") == 1


def test_a_loss_that_is_not_finite_is_found_at_its_step(cpu: Execution, recorded: list[str]) -> None:
    class FailsLater(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            self.seen.add_(1)
            return nn.functional.cross_entropy(logits, labels) / (self.seen != WARM_UP + 3)

    for graphed in (False, True):
        _, results, *_ = train(cpu, FailsLater(), graphed)
        assert results[0].diverged_at == WARM_UP + 3


def test_no_replay_falls_into_the_capture_of_another_thread(
    cpu: Execution, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two networks in one process: where one is captured, the other waits."""
    first = StepGraph(SGD([nn.Parameter(torch.zeros(1))], lr=0.1, fused=True), cpu.device)
    second = StepGraph(SGD([nn.Parameter(torch.zeros(1))], lr=0.1, fused=True), cpu.device)
    captures, inside, go_on = torch.cuda.graph, threading.Event(), threading.Event()

    def step(inputs: Tensor, labels: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
        return inputs.sum(), labels.sum()

    def run(graph: StepGraph, times: int) -> None:
        for _ in range(times):
            graph.run(step, torch.ones(2), torch.ones(2, dtype=torch.int64), None)

    @contextlib.contextmanager
    def slow(*args: Any, **kwargs: Any) -> Iterator[None]:
        with captures(*args, **kwargs):
            inside.set()
            assert go_on.wait(60)
            yield

    with first.epoch(50), second.epoch(50):
        run(first, WARM_UP + 1)
        monkeypatch.setattr(torch.cuda, "graph", slow)
        threads = [threading.Thread(target=run, args=(second, WARM_UP + 1))]
        threads[0].start()
        assert inside.wait(60)
        before = len(recorded)
        threads.append(threading.Thread(target=run, args=(first, 1)))
        threads[1].start()
        threads[1].join(0.2)
        assert len(recorded) == before  # it waits
        go_on.set()
        for thread in threads:
            thread.join(60)
    assert sorted(recorded[before:]) == ["replay", "replay"]
