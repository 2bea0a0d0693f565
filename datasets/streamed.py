"""Large images stream from disk: workers decode, crop and resize them; the device mirrors, colours and normalises.

A random crop is that of Szegedy et al. ("Going Deeper with Convolutions", CVPR 2015) as torchvision's
`RandomResizedCrop` draws it. Every draw is a hash of (seed, epoch, image), so it depends neither on the batch an image
lands in nor on the number of workers or processes, and a resumed run draws what an uninterrupted one would have drawn.
Nothing is kept in memory but the batches on their way.
"""

import math
import signal
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from datasets.decode import decode_rgb
from datasets.device import MASK64, ImageSource, hash_ids, mix64, stream_seed
from datasets.jitter import colour_jitter
from datasets.lists import ListedSplit
from datasets.long_tail import Augmentation
from utils.errors import UserError
from utils.progress import show_progress

AUGMENTATIONS = ["crop", "jitter"]
# Salts of the seed beside those of `datasets.device`; crops are drawn with the seed itself.
MIRROR_STREAM, JITTER_STREAM = 3, 4
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of a random crop: share of the image, width over height
SPLITMIX_STEP = 0x9E3779B97F4A7C15
# Images that a worker is given at once, and how many such pieces it may be ahead: 32 images, 4.8 MB of shared memory at
# 224 pixels. Batches are put together from pieces, so that their size changes neither that nor how evenly the workers
# are busy.
PIECE, AHEAD = 16, 2
LONGEST_RATIO = 20  # of the sides of an image that is resized as a whole
MORE_THAN_CORES = "This DataLoader will create"  # a warning of several lines, at each pass; the user chose the number

View = tuple[int, int]  # seed and epoch
Box = tuple[int, int, int, int]  # top, left, height, width
Task = tuple[int, np.ndarray, View | None]  # slot for the pixels, rows


def uniforms(draw: int) -> Iterator[float]:
    """Yield numbers uniform in [0, 1), a function of `draw` alone (SplitMix64; Steele et al., OOPSLA 2014)."""
    while True:
        yield (mix64(draw) >> 11) / (1 << 53)
        draw = (draw + SPLITMIX_STEP) & MASK64


def draw_box(height: int, width: int, numbers: Iterator[float]) -> Box:
    """Draw a crop as torchvision's `RandomResizedCrop.get_params` does: its area and the logarithm of its ratio are
    uniform; after ten that do not fit, the largest centre crop whose ratio is within bounds."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(TRIES):
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * next(numbers))
        ratio = math.exp(low + (high - low) * next(numbers))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int((height - h + 1) * next(numbers)), int((width - w + 1) * next(numbers)), h, w
    w = max(min(width, round(height * RATIO[1])), 1)
    h = max(min(height, round(width / RATIO[0])), 1)
    return (height - h) // 2, (width - w) // 2, h, w


def resize_pixels(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (3, H, W) uint8 to (3, height, width), bilinear and antialiased, as torchvision's `resize` does.

    Channels last in memory is the fast path of both the copy out of a larger image and the interpolation.
    """
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True)[0]


def random_crop(image: Tensor, size: int, draw: int) -> Tensor:
    """Return the crop of an image (3, H, W) uint8 that `draw` chooses, resized: (3, size, size)."""
    top, left, height, width = draw_box(image.shape[1], image.shape[2], uniforms(draw))
    return resize_pixels(image[:, top : top + height, left : left + width], size, size)


def centre(image: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of an image (3, H, W) with at most `height` x `width` pixels, rounded as torchvision does."""
    top, left = (max(round((now - then) / 2), 0) for now, then in zip(image.shape[1:], (height, width), strict=True))
    return image[:, top : top + height, left : left + width]


def centre_crop(image: Tensor, size: int, resize: int) -> Tensor:
    """Return the centre crop (3, size, size) of an image (3, H, W) uint8 whose shorter side was resized to `resize`."""
    short = min(image.shape[1:])
    # A strip of one pixel by thousands would be enlarged to gigabytes, of which one square is used.
    image = centre(image, LONGEST_RATIO * short, LONGEST_RATIO * short)
    height, width = (int(resize * side / short) for side in image.shape[1:])
    return centre(resize_pixels(image, height, width), size, size)


class Crops(Dataset[str]):
    """What a worker does: put the crops of some rows into a slot, and return the line of the file it cannot read or "".

    `slots` (n, PIECE, size, size, 3) uint8 are shared by all processes. To share a new tensor for every piece instead
    costs some milliseconds of handing over a file descriptor, as much as decoding several images.
    """

    def __init__(self, split: ListedSplit, size: int, resize: int, workers: int) -> None:
        self.split = split
        self.ids = torch.from_numpy(split.ids)
        self.size = size
        self.resize = resize
        self.workers = workers
        self.slots = torch.empty(0, dtype=torch.uint8)

    def make_slots(self) -> None:
        """Allocate the slots, before the workers start; a UserError where the shared memory is too small for them."""
        # A loader gives the next task out before it returns what has been done: one piece more than are ahead.
        shape = (self.workers * AHEAD + 1, PIECE, self.size, self.size, 3)
        try:
            self.slots = torch.empty(shape, dtype=torch.uint8)
            if self.workers:
                self.slots.share_memory_()
        except RuntimeError as error:
            raise UserError(
                f"{self.workers} processes that read images need {math.prod(shape) / 1e6:.0f} MB of shared memory "
                "(/dev/shm) for each part of the data, which is not there: use fewer --workers, or give the container "
                "more (docker --shm-size)"
            ) from error

    def __getitem__(self, task: Task) -> str:
        slot, rows, view = task
        draws = [None] * len(rows) if view is None else hash_ids(self.ids[rows], *view).tolist()
        try:
            for place, row, draw in zip(self.slots[slot], rows.tolist(), draws, strict=False):
                place.copy_(self.crop(row, draw).permute(1, 2, 0))
        except UserError as error:
            return str(error)  # an exception would come with the worker's traceback
        return ""

    def crop(self, row: int, draw: int | None) -> Tensor:
        """Return the crop (3, size, size) uint8 of the image at `row` that `draw` chooses, the centre crop for None."""
        image = decode_rgb(self.split.path(row))
        return centre_crop(image, self.size, self.resize) if draw is None else random_crop(image, self.size, draw)


class Faults(Dataset[list[str]]):
    """What a worker does that looks for damaged files: a line for each of some rows, "" for one that can be read."""

    def __init__(self, split: ListedSplit) -> None:
        self.split = split

    def __getitem__(self, task: Task) -> list[str]:
        return [self._fault(row) for row in task[1].tolist()]

    def _fault(self, row: int) -> str:
        try:
            decode_rgb(self.split.path(row))
        except UserError as error:
            return str(error)
        return ""


class Tasks(Sampler[Task]):
    """The tasks of one pass, set before it: workers live longer than a pass, and so does what they are given."""

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


def ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C, which every process of a terminal receives, to the process that ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_loader(work: Dataset[Any], tasks: Tasks, workers: int) -> DataLoader[Any]:
    """Return a loader that hands each of the tasks to one of `workers` processes (0: does it itself), in order.

    Workers use one thread each, which is the loader's rule, and live as long as the loader.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", MORE_THAN_CORES)
        return DataLoader(
            work,
            batch_size=None,
            sampler=tasks,
            num_workers=workers,
            collate_fn=as_it_is,
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),  # or it would draw from the global one, and what follows would depend on it
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
        )


def as_it_is(item: Any) -> Any:
    """Return what a worker made, unconverted."""
    return item


def start_pass(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return the iterator of a pass, in whose time only the pass itself raises errors.

    A DataLoader lets a dead worker raise an exception wherever the program is at that moment; without its signal
    handler the worker is missed when its next piece is asked for, a few seconds later.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", MORE_THAN_CORES)
        iterator = iter(loader)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return iterator


def pieces_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield what the workers deliver in one pass; raise UserError where one of them is gone."""
    try:
        yield from start_pass(loader)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # a worker's own exception starts otherwise
            raise
        raise UserError(
            "a worker process that reads images was killed, perhaps for want of memory or of shared memory "
            "(/dev/shm); use fewer --workers"
        ) from error


def end_workers(loader: DataLoader[Any]) -> None:
    """End the processes of a loader at once: they hold nothing that could be lost.

    Left to itself the loader asks them to end through a queue, which fails where the garbage collector closed the queue
    first or Ctrl-C came while something was put into it; then it waits for ten seconds.
    """
    iterator = loader._iterator
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        for worker in iterator._workers:
            worker.terminate()
        iterator._shutdown_workers()


def copy_ahead(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Put batches that lie in pinned memory on a CUDA device, one ahead of its use.

    The copies run on a stream of their own, beside the computation.
    """
    stream = torch.cuda.Stream(device)
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    for batch in chain(batches, (None,)):
        coming = None
        if batch is not None:
            with torch.cuda.stream(stream):
                coming = batch.to(device, non_blocking=True), stream.record_event()
        if waiting is not None:
            copied, done = waiting
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            copied.record_stream(current)  # its memory is not given to the next copy while it is in use here
            yield copied
        waiting = coming


class StreamedImages(ImageSource):
    """The images of one split on disk, and the batches made of them.

    `size` is the side of a crop in pixels, `resize` what the shorter side becomes before a centre crop; `labels` (N,)
    and `ids` (N,) int64 lie on the device. `augment` says what an image of a view undergoes: "crop" is a random crop
    and, where the data set allows it, mirroring; "jitter" adds `colour_jitter`. Raises UserError for another one, and
    for a crop that is larger than the resized image.
    """

    def __init__(
        self,
        split: ListedSplit,
        augmentation: Augmentation,
        device: torch.device,
        *,
        size: int,
        resize: int,
        augment: str = "crop",
        workers: int = 0,
    ) -> None:
        if augment == "autoaugment":
            raise UserError("--augment autoaugment is CIFAR's policy, for small images; use crop or jitter")
        if augment not in AUGMENTATIONS:
            raise UserError(f"unknown --augment '{augment}'; known: {', '.join(AUGMENTATIONS)}")
        if not 1 <= size <= resize:
            raise UserError(f"a crop of {size} pixels does not fit into images resized to {resize}")
        if workers < 0:
            raise UserError(f"--workers must be 0 or more, not {workers}")
        self.augment = augment
        self.augmentation = augmentation
        self.device = device
        self.size = size
        self.workers = workers
        self.labels = torch.from_numpy(split.labels).to(device)
        self.ids = torch.from_numpy(split.ids).to(device)
        # For a line of pixels at once: three numbers are too short an inner loop for a CPU.
        std = torch.tensor(augmentation.std, device=device).repeat(size)
        self.scale = 1 / (255 * std)
        self.shift = torch.tensor(augmentation.mean, device=device).repeat(size) / std
        self._pinned = device.type == "cuda"
        self._crops = Crops(split, size, resize, workers)
        self._tasks = Tasks()
        self._loader: DataLoader[Any] | None = None
        self._passes = 0

    def __len__(self) -> int:
        return len(self.labels)

    def close(self) -> None:
        """End the worker processes; the next pass starts new ones."""
        self._passes += 1
        if self._loader is not None:
            self._end()
        self._loader = None

    def view_batches(
        self, rows: Sequence[Tensor], view: View | None = None, mirrored: bool = False
    ) -> Iterator[Tensor]:
        """Yield for each tensor of row positions (B,), on any device, its images (B, 3, size, size).

        They are normalised float32 on the device, in channels-last memory order. Without a `view` they are centre
        crops; a view (seed, epoch) is what that epoch of training sees. `mirrored` turns them left to right. A pass may
        be left at any time, and ends where another one begins. Raises UserError for a file that cannot be read.
        """
        positions = [part.to(self.device) for part in rows]
        for pixels, part in zip(self.crops(positions, view), positions, strict=True):
            yield self.normalise(self._augmented(pixels, self.ids[part], view, mirrored))

    def crops(self, rows: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        """Yield what the workers make for each tensor of rows (B,): (B, size, size, 3) uint8 on the device.

        That is a view before it is mirrored and its colours change.
        """
        if not rows:
            return iter(())
        # One copy to the host, not one a batch.
        parts = torch.cat(list(rows)).cpu().split([len(part) for part in rows])
        batches = self._batches([part.numpy() for part in parts], view)
        return copy_ahead(batches, self.device) if self.device.type == "cuda" else batches

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn pixels (B, H, W, 3) in 0..255 into normalised, channels-last images (B, 3, H, W)."""
        lines = (pixels.flatten(2) * self.scale).sub_(self.shift)
        return lines.unflatten(2, (self.size, 3)).permute(0, 3, 1, 2)

    def _augmented(self, pixels: Tensor, ids: Tensor, view: View | None, mirrored: bool) -> Tensor:
        """Return crops (B, H, W, 3) mirrored, in colours of their own where `augment` says so."""
        if view is not None and self.augmentation.mirror:
            seed, epoch = view
            turned = hash_ids(ids, stream_seed(seed, MIRROR_STREAM), epoch) % 2 == 1
            pixels = torch.where(turned[:, None, None, None] != mirrored, pixels.flip(2), pixels)
        elif mirrored:
            pixels = pixels.flip(2)
        if view is not None and self.augment == "jitter":
            seed, epoch = view
            draws = hash_ids(ids, stream_seed(seed, JITTER_STREAM), epoch)
            pixels = colour_jitter(pixels.permute(0, 3, 1, 2), draws).permute(0, 2, 3, 1)
        return pixels

    def _batches(self, rows: Sequence[np.ndarray], view: View | None) -> Iterator[Tensor]:
        """Yield for each array of rows (B,) its crops (B, size, size, 3) uint8 on the host."""
        if self._loader is None:
            self._crops.make_slots()
        slots = self._crops.slots
        pieces = [part[start : start + PIECE] for part in rows for start in range(0, len(part), PIECE)]
        self._tasks.tasks = [(number % len(slots), piece, view) for number, piece in enumerate(pieces)]
        if self._loader is None:
            self._loader = make_loader(self._crops, self._tasks, self.workers)
            self._end = weakref.finalize(self, end_workers, self._loader)  # at the latest when the program ends
        self._passes += 1
        this_pass = self._passes
        done = zip(self._tasks.tasks, pieces_of(self._loader), strict=True)
        try:
            for part in rows:
                batch = torch.empty(len(part), *slots.shape[2:], dtype=torch.uint8, pin_memory=self._pinned)
                for start in range(0, len(part), PIECE):
                    if self._passes != this_pass:
                        raise RuntimeError("another pass over these images has begun, which ended this one")
                    (slot, piece, _), fault = next(done)
                    if fault:
                        raise UserError(fault)
                    batch[start : start + PIECE] = slots[slot, : len(piece)]
                yield batch
        except (UserError, KeyboardInterrupt):
            self.close()
            raise


def find_unreadable(split: ListedSplit, workers: int, limit: int) -> list[tuple[int, str]]:
    """Decode all images of a split in `workers` processes (0: in this one), showing progress.

    Return the row of each that cannot be read and the line that says why, in the order of rows; the search ends once
    more than `limit` were found. `limit` + 1 at most are returned.
    """
    pieces = np.split(np.arange(len(split)), range(PIECE, len(split), PIECE))
    loader = make_loader(Faults(split), Tasks([(0, rows, None) for rows in pieces]), workers)
    lines = chain.from_iterable(pieces_of(loader))
    found = []
    try:
        for row, line in enumerate(show_progress(lines, "reading all images", len(split))):
            if line:
                found.append((row, line))
            if len(found) > limit:
                break
    finally:
        end_workers(loader)
    return found
