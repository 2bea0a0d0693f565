"""How the steps of an epoch are launched: as they are, or as one CUDA graph that is captured once and replayed."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from utils.text import tell

# (inputs, labels, share of the first label or None) -> (loss times the images of the batch, right answers)
Step = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

# Steps before the capture: by then cuDNN has chosen its algorithms, and the optimiser has its buffers.
WARM_UP = 3

# Streams of this priority are captured in and never run, so that no other run's stream is among them. PyTorch has 32 of
# each priority and hands them out in turn.
CAPTURE_PRIORITY = -1
MOST_AT_ONCE = 32

# A replay must not fall into the capture of another thread, and no seeding into either: all use the state of PyTorch's
# random generator, of which a device has one.
_ONE_AT_A_TIME = threading.Lock()


def seed_generators(seed: int) -> None:
    """Seed PyTorch's random generators, those of the devices too, outside every capture."""
    with _ONE_AT_A_TIME:
        torch.manual_seed(seed)


class EagerSteps:
    """Runs every step of an epoch as it is."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._correct: Tensor | int = 0

    def epoch(self, steps: int) -> contextlib.AbstractContextManager[None]:
        """Begin an epoch of `steps` steps."""
        return contextlib.nullcontext()

    def run(self, step: Step, inputs: Tensor, labels: Tensor, share: Tensor | None) -> None:
        """Run a step on a batch (B, ...) with labels (B,), of which `share` () counts for its own labels."""
        loss, correct = step(inputs, labels, share)
        self._losses.append(loss)
        self._correct = self._correct + correct

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return the losses (steps,) times their images and the right answers (); of H heads (steps, H) and (H,)."""
        losses = torch.stack(self._losses)
        return losses, torch.as_tensor(self._correct, device=losses.device)


@dataclass(frozen=True)
class _Totals:
    """What the steps of an epoch add to: the losses (steps,), right answers () and the position (1,) of the next."""

    losses: Tensor
    correct: Tensor
    position: Tensor

    def add(self, loss: Tensor, correct: Tensor) -> None:
        self.losses.index_copy_(0, self.position, loss.reshape(1))
        self.correct.add_(correct)
        self.position.add_(1)


@dataclass(frozen=True)
class _Capture:
    """A captured step and the tensors that it reads."""

    graph: "torch.cuda.CUDAGraph"
    inputs: Tensor
    labels: Tensor
    share: Tensor | None


class StepGraph:
    """Runs the steps of epochs: the first few and those of another shape as they are, all others as one launch.

    A step of a deep network on small images is hundreds of short kernels, and launching one takes longer than running
    it; a graph launches all at once. What is computed is the same. Learning rates are read from tensors, also by the
    steps that are not replayed, so that a resumed run repeats an uninterrupted one. Where the step cannot be captured,
    because it reads from the device or has shapes that depend on values there, every step runs as it is, and `refused`
    says why, once.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.device = device
        self.refused: str | None = None
        self._capture: _Capture | None = None
        self._totals: _Totals | None = None
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._warm = 0

    @contextlib.contextmanager
    def epoch(self, steps: int) -> Iterator[None]:
        """Begin an epoch of `steps` steps, in which the optimiser's learning rates are tensors on the device."""
        if self._totals is None or len(self._totals.losses) != steps:
            losses = torch.zeros(steps, device=self.device)
            correct = torch.zeros((), dtype=torch.int64, device=self.device)
            position = torch.zeros(1, dtype=torch.int64, device=self.device)
            self._totals, self._capture = _Totals(losses, correct, position), None
        self._totals.correct.zero_()
        self._totals.position.zero_()
        groups = self.optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate.fill_(group["lr"])
        try:
            yield
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number

    def run(self, step: Step, inputs: Tensor, labels: Tensor, share: Tensor | None) -> None:
        """Run a step on a batch (B, ...) with labels (B,), of which `share` () counts for its own labels."""
        assert self._totals is not None, "a step belongs to an epoch"
        if self._capture is None and self.refused is None and self._warm >= WARM_UP:
            self._try_to_capture(step, inputs, labels, share)
        capture = self._capture
        if capture is None or capture.inputs.shape != inputs.shape:
            self._warm += 1
            self._totals.add(*step(inputs, labels, share))
            return
        capture.inputs.copy_(inputs)
        capture.labels.copy_(labels)
        if capture.share is not None and share is not None:
            capture.share.copy_(share)
        with _ONE_AT_A_TIME:
            capture.graph.replay()

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return the losses (steps,) of the epoch, each times its images, and the number of right answers ()."""
        assert self._totals is not None, "an epoch was run"
        return self._totals.losses.clone(), self._totals.correct.clone()

    def _try_to_capture(self, step: Step, inputs: Tensor, labels: Tensor, share: Tensor | None) -> None:
        """Capture the step on batches of this shape; nothing of it runs. Where that fails, say why."""
        assert self._totals is not None
        capture = _Capture(
            torch.cuda.CUDAGraph(), inputs.clone(), labels.clone(), None if share is None else share.clone()
        )
        # The gradients' memory must be the graph's own: a captured backward pass makes it anew.
        self.optimizer.zero_grad(set_to_none=True)
        try:
            # PyTorch keeps the memory that cuBLAS works in by stream: graphs that were captured in one stream, as all
            # are by default, share it, and spoil each other's sums when they run at once (pytorch/pytorch#193402).
            stream = torch.cuda.Stream(self.device, priority=CAPTURE_PRIORITY)
            with _ONE_AT_A_TIME, torch.cuda.graph(capture.graph, stream=stream, capture_error_mode="thread_local"):
                self._totals.add(*step(capture.inputs, capture.labels, capture.share))
        except RuntimeError as error:
            self.refused = str(error).strip().splitlines()[0]
            self.optimizer.zero_grad(set_to_none=True)
            tell(f"step: not captured as a CUDA graph, since {self.refused}; its kernels are launched one by one")
            return
        self._capture = capture
