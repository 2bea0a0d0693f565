"""Worker processes that read images from disk: what they are asked, what they do, how they start and end."""

import math
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.augment.crops import AREA, centre_crop, random_crop
from datasets.decode import decode_rgb
from datasets.decoding.memory import memory_for
from datasets.decoding.options import PLAIN, DecodeOptions
from datasets.on_disk.listed_split import ListedSplit
from utils.errors import UserError
from utils.hashing import hash_ids
from utils.progress import show_progress

# Images that a worker is given at once, and how many such pieces it may be ahead: 32 images, 4.8 MB of shared memory at
# 224 pixels. Batches are put together from pieces, so that their size changes neither that nor how evenly the workers
# are busy.
PIECE, AHEAD = 16, 2

PATIENCE = 5  # seconds that a worker has to end when it is told to

MORE_THAN_CORES = "This DataLoader will create"  # a warning of several lines, at each pass; the user chose the number

NO_MORE = object()  # stands behind the last answer of a pass

KILLED = (
    "a worker process that reads images was killed, perhaps for want of memory or of shared memory (/dev/shm); use "
    "fewer --workers"
)

View = tuple[int, int]  # seed and epoch

Task = tuple[int, np.ndarray, View | None]  # slot for the pixels, rows, what their crops are drawn from

Fault = tuple[int, str]  # the row of an image that cannot be read, and the line that says why


class Tasks(Sampler[Task]):
    """The tasks of one pass, set before it: workers live longer than a pass, and so does what they are given."""

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


@dataclass(frozen=True)
class Reading:
    """How image files are read: by how many processes (0: this one), as which pixels, with how much patience, and the
    least share of an image that a random crop takes.

    Where it is `patient`, an image that cannot be read becomes black and is noted, and does not end the pass.
    """

    workers: int = 0
    options: DecodeOptions = PLAIN
    patient: bool = False
    crop_area: float = AREA[0]


class Crops(Dataset[list[Fault]]):
    """What a worker does: put the crops of some rows into a slot, and return the images that it cannot read.

    It stops at the first of them or, with patience, leaves their crops black and goes on.

    `slots` (n, PIECE, size, size, 3) uint8 are shared by all processes. To share a new tensor for every piece instead
    costs some milliseconds of handing over a file descriptor, as much as decoding several images.
    """

    def __init__(self, split: ListedSplit, size: int, resize: int, reading: Reading) -> None:
        self.split = split
        self.ids = torch.from_numpy(split.ids)
        self.size = size
        self.resize = resize
        self.reading = reading
        self.slots = torch.empty(0, dtype=torch.uint8)
        self.memory = memory_for(reading.options, reading.workers)

    def make_slots(self) -> None:
        """Allocate the slots, before the workers start; a UserError where the shared memory is too small for them."""
        # A loader gives the next task out before it returns what has been done: one piece more than are ahead.
        shape = (self.reading.workers * AHEAD + 1, PIECE, self.size, self.size, 3)
        try:
            self.slots = torch.empty(shape, dtype=torch.uint8)
            if self.reading.workers:
                self.slots.share_memory_()
        except RuntimeError as error:
            raise UserError(
                f"{self.reading.workers} processes that read images need {math.prod(shape) / 1e6:.0f} MB of shared "
                "memory (/dev/shm) for each part of the data, which is not there: use fewer --workers, or give the "
                "container more (docker --shm-size)"
            ) from error

    def __getitem__(self, task: Task) -> list[Fault]:
        slot, rows, view = task
        draws = [None] * len(rows) if view is None else hash_ids(self.ids[rows], *view).tolist()
        faults: list[Fault] = []
        for place, row, draw in zip(self.slots[slot], rows.tolist(), draws, strict=False):
            try:
                place.copy_(self.crop(row, draw).permute(1, 2, 0))
            except UserError as error:
                faults.append((row, str(error)))  # an exception would come with the worker's traceback
                if not self.reading.patient:
                    break
                place.zero_()
        return faults

    def crop(self, row: int, draw: int | None) -> Tensor:
        """Return the crop (3, size, size) uint8 of the image at `row` that `draw` chooses, the centre crop for None."""
        with self.memory.claims() as claim:
            image = decode_rgb(self.split.path(row), claim, self.reading.options)
            if draw is None:
                return centre_crop(image, self.size, self.resize)
            return random_crop(image, self.size, draw, self.reading.crop_area)


class Faults(Dataset[list[str]]):
    """What a worker does that looks for damaged files: a line for each of some rows, "" for one that can be read."""

    def __init__(self, split: ListedSplit, workers: int, options: DecodeOptions) -> None:
        self.split = split
        self.options = options
        self.memory = memory_for(options, workers)

    def __getitem__(self, task: Task) -> list[str]:
        return [self._fault(row) for row in task[1].tolist()]

    def _fault(self, row: int) -> str:
        try:
            with self.memory.claims() as claim:
                decode_rgb(self.split.path(row), claim, self.options)
        except UserError as error:
            return str(error)
        return ""


class Workers:
    """Processes that take the `tasks` of a pass in turn, start with the first pass and live until `end`.

    `work` is what each does with a task; with 0 processes this one does it itself. Answers come in the order of the
    tasks. A worker uses one thread, which is the loader's rule.
    """

    def __init__(self, work: Dataset[Any], tasks: Tasks, count: int) -> None:
        self.processes: list[BaseProcess] = []
        self._answers: Iterator[Any] = iter(())
        self._loader: DataLoader[Any] | None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", MORE_THAN_CORES)
            self._loader = DataLoader(
                work,
                batch_size=None,
                sampler=tasks,
                num_workers=count,
                collate_fn=as_it_is,
                worker_init_fn=ignore_interrupts,
                generator=torch.Generator(),  # or it would draw from the global one, and what follows depend on it
                prefetch_factor=AHEAD if count else None,
                persistent_workers=count > 0,
            )

    def answers(self) -> Iterator[Any]:
        """Yield what the workers answer to the tasks of one pass; raise UserError where one of them was killed.

        No frame keeps the loader's iterator but this object, so that `end` is the end of it.
        """
        self._unless_killed(self._start_pass)
        while (answer := self._unless_killed(lambda: next(self._answers, NO_MORE))) is not NO_MORE:
            yield answer

    def _unless_killed(self, action: Callable[[], Any]) -> Any:
        """Return what an action of the loader returns; raise UserError where a worker is dead, before or after it."""
        if not all(process.is_alive() for process in self.processes):
            raise UserError(KILLED)
        try:
            return action()
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):  # a worker's own exception starts otherwise
                raise
        raise UserError(KILLED)  # not from within, for the error's traceback holds the loader's iterator

    def _start_pass(self) -> None:
        """Hand out the first tasks of a pass; before the first pass, start the processes and remember them.

        A DataLoader lets a dead worker raise an exception wherever the program is at that moment. Without its signal
        handler the worker is missed when its next answer is asked for, and nowhere else.
        """
        assert self._loader is not None, "these workers have ended"
        handler = signal.getsignal(signal.SIGCHLD)
        before = set(multiprocessing.active_children())
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", MORE_THAN_CORES)
                self._answers = iter(self._loader)
        finally:
            self.processes += set(multiprocessing.active_children()) - before
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)

    def end(self) -> None:
        """End the processes at once: they hold nothing that could be lost.

        Left to itself the loader asks them to end through a queue, which fails where the garbage collector closed the
        queue first or Ctrl-C came while something was put into it; then it waits for ten seconds. So they are gone
        before it is, and its own cleaning up finds nobody to wait for.
        """
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes = []
        self._answers = iter(())
        self._loader = None


def as_it_is(item: Any) -> Any:
    """Return what a worker made, unconverted."""
    return item


def ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C, which every process of a terminal receives, to the process that ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def find_unreadable(split: ListedSplit, workers: int, limit: int, options: DecodeOptions = PLAIN) -> list[Fault]:
    """Decode all images of a split in `workers` processes (0: in this one), showing progress.

    Return the row of each that cannot be read and the line that says why, in the order of rows; the search ends once
    more than `limit` were found. `limit` + 1 at most are returned.
    """
    pieces = np.split(np.arange(len(split)), range(PIECE, len(split), PIECE))
    readers = Workers(Faults(split, workers, options), Tasks([(0, rows, None) for rows in pieces]), workers)
    lines = chain.from_iterable(readers.answers())
    found = []
    try:
        for row, line in enumerate(show_progress(lines, "reading all images", len(split))):
            if line:
                found.append((row, line))
            if len(found) > limit:
                break
    finally:
        readers.end()
    return found
