"""What a run asks of a device, event by event, each with the line of the product and where in the run it is."""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from utils.progress import show_progress

# Work; a value that the host waits for; a copy to the device that it waits for, and one that it does not wait for.
LAUNCH, READ, UPLOAD, QUEUED = "launch", "read", "upload", "queued copy"
STEP, EPOCH, OUTSIDE = "step", "epoch", "outside"
ROOT = Path(__file__).resolve().parent.parent
Item = TypeVar("Item")


@dataclass(frozen=True)
class Event:
    """What happened: its kind, the operation, the line of the product, and the section of the run."""

    kind: str
    operation: str
    line: str
    section: str


@dataclass
class DeviceEvents:
    """The events so far, in order.

    `section` is where the run is: in a training `STEP`, elsewhere in an `EPOCH` of `engine.fit`, or `OUTSIDE`. A step
    begins when its batch is there, or, after the first of an epoch, when the one before it ends.
    """

    events: list[Event] = field(default_factory=list)
    section: str = OUTSIDE
    steps: int = 0
    epochs: int = 0

    def note(self, kind: str, operation: str) -> None:
        """Add an event."""
        self.events.append(Event(kind, operation, product_line(), self.section))

    def found(self, *kinds: str, section: str | None = None) -> list[Event]:
        """Return the events of these kinds, in one section or in all."""
        return [event for event in self.events if event.kind in kinds and section in (None, event.section)]

    def count(self, *kinds: str, section: str | None = None) -> int:
        """Return how many there are."""
        return len(self.found(*kinds, section=section))

    def lines(self, *kinds: str, section: str | None = None) -> list[str]:
        """Return the events in words, the most frequent first."""
        counts = Counter(self.found(*kinds, section=section))
        return [f"{n} x {e.operation} ({e.kind}, {e.section}) at {e.line}" for e, n in counts.most_common()]

    def follow_steps(self, batches: Iterable[Item], message: str, total: int) -> Iterator[Item]:
        """Stand for `show_progress` in the loops over batches, and note where training is."""
        if not torch.is_grad_enabled():  # a pass of prediction
            yield from show_progress(batches, message, total)
            return
        around = self.section
        try:
            for batch in show_progress(batches, message, total):
                self.section = STEP
                self.steps += 1
                yield batch
        finally:
            self.section = around

    def follow_epochs(self, train_one: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands for `engine.fit.train_one`, and notes where the run is."""

        def followed(*arguments: Any) -> Any:
            self.section = EPOCH
            self.epochs += 1
            try:
                return train_one(*arguments)
            finally:
                self.section = OUTSIDE

        return followed


@functools.cache
def product_file(name: str) -> str | None:
    """Return the path of a file of the product in the repository, None for any other file."""
    inside = name.removeprefix(f"{ROOT}/")
    return None if inside == name or inside.startswith(("tests/", ".venv/")) else inside


def product_line() -> str:
    """Return the line of the product that is executed, and the one that called it."""
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < 2:
        if file := product_file(frame.f_code.co_filename):
            lines.append(f"{file}:{frame.f_lineno}")
        frame = frame.f_back
    return ", called at ".join(lines) or "no line of the product"
