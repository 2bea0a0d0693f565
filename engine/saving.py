"""When a run is saved: by time and not by epochs, so that saving never bounds training.

A run's state is written when `--save_every` seconds have passed, at its end, and where an error or a signal ends it. In
between it is copied in memory after an epoch, since the next epoch changes it; so are the weights of the best epoch.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.log import write_log
from runs.checkpoint import save_checkpoint
from runs.run_folder import Run
from utils.background import Background

SMALL = 16 << 20  # bytes of a state that is copied after every epoch; larger ones only as often as time allows
COPY_SHARE = 40  # copying a large one takes at most one in so many seconds


class StateBuffer:
    """Room on the CPU for the tensors of a nested state, made once and filled again and again.

    The tensors of a CUDA device share one piece of pinned memory, into which all are copied without waiting for each.
    """

    def __init__(self) -> None:
        self.room: list[Tensor] = []
        self.pinned = False
        self.state: Any = None

    def fill(self, state: Any) -> None:
        """Copy nested dictionaries and lists; what is no tensor is kept as it is."""
        tensors = [tensor.detach() for tensor in tensors_in(state)]
        if [(own.shape, own.dtype) for own in self.room] != [(tensor.shape, tensor.dtype) for tensor in tensors]:
            self.pinned = any(tensor.is_cuda for tensor in tensors)
            self.room = pinned_room(tensors) if self.pinned else [torch.empty_like(tensor) for tensor in tensors]
        for own, tensor in zip(self.room, tensors, strict=True):
            own.copy_(tensor, non_blocking=True)
        if self.pinned:
            torch.cuda.current_stream().synchronize()  # not the device: another thread may be capturing a graph
        self.state = with_tensors(state, iter(self.room))

    def stored(self) -> Any:
        """Return the state with tensors that share no memory, as a file is to hold them."""
        return with_tensors(self.state, (own.clone() for own in self.room)) if self.pinned else self.state

    @property
    def size(self) -> int:
        """The bytes of the tensors."""
        return sum(own.nbytes for own in self.room)


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dictionaries and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(value)


def with_tensors(state: Any, tensors: Iterator[Tensor]) -> Any:
    """Return nested dictionaries and lists with other tensors, in the order of `tensors_in`."""
    if isinstance(state, Tensor):
        return next(tensors)
    if isinstance(state, dict):
        return {key: with_tensors(value, tensors) for key, value in state.items()}
    return [with_tensors(value, tensors) for value in state] if isinstance(state, list) else state


def pinned_room(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return room for tensors in one piece of pinned memory, each from a multiple of 64 bytes on, in its own order."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.nbytes // 64) * 64)
    whole = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    pieces = [whole[start : start + tensor.nbytes] for start, tensor in zip(starts, tensors, strict=False)]
    strides = [torch.empty_like(tensor).stride() for tensor in tensors]  # channels last or not
    return [
        piece.view(tensor.dtype).as_strided(tensor.shape, stride)
        for piece, tensor, stride in zip(pieces, tensors, strides, strict=True)
    ]


class Saver:
    """Keeps the state of a run in memory and writes it behind the epochs that follow, when it is time.

    `seconds` lie at least between two writings; 0 writes after every epoch. `kept` is the last epoch whose state is
    on disk or will be, whatever ends the run but a kill.
    """

    def __init__(self, run: Run, background: Background, seconds: float, kept: int = 0) -> None:
        self.run, self.background, self.seconds, self.kept = run, background, seconds, kept
        self.best: StateBuffer | None = None
        self.last: StateBuffer | None = None
        self.free: dict[str, list[StateBuffer]] = {"best": [], "last": []}
        self.written_at = self.copied_at = time.monotonic()
        self.copy_seconds = 0.0

    def keep(self, best: dict[str, Any] | None, last: dict[str, Any], *, final: bool) -> None:
        """Keep the state after an epoch, and that of the best epoch where it is this one; write them if it is time.

        A writing that is under way is waited for at the end alone, or where every epoch is to be written.
        """
        if best is not None:
            self.best = self._copied("best", best, self.best)
        waited = time.monotonic() - self.written_at
        due = final or self.seconds == 0 or (waited >= self.seconds and not self.background.busy)
        if due or self._affordable():
            started = time.monotonic()
            self.last = self._copied("last", last, self.last)
            self.kept, self.copied_at = last["epoch"], time.monotonic()
            self.copy_seconds = self.copied_at - started
        if due:
            self.write()

    def write(self) -> None:
        """Write what is kept and not yet written, behind what comes next."""
        best, last = self.best, self.last
        if last is None:
            return

        def save() -> None:
            if best is not None:
                save_checkpoint(self.run.best, best.stored())
            state = last.stored()
            save_checkpoint(self.run.last, state)
            write_log(self.run, state["history"]["log"])
            self.free["last"].append(last)
            self.free["best"] += [] if best is None else [best]

        self.background.start(save)
        self.best = self.last = None
        self.written_at = time.monotonic()

    def _affordable(self) -> bool:
        buffer = self.last or next(iter(self.free["last"]), None)
        small = buffer is None or buffer.size < SMALL
        return small or time.monotonic() - self.copied_at >= COPY_SHARE * self.copy_seconds

    def _copied(self, kind: str, state: dict[str, Any], before: StateBuffer | None) -> StateBuffer:
        """Return a copy of a state, in other memory than the one `before`: an interruption of it spoils nothing."""
        buffer = self.free[kind].pop() if self.free[kind] else StateBuffer()
        buffer.fill(state)
        self.free[kind] += [] if before is None else [before]
        return buffer
