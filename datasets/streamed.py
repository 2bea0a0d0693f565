"""Large images stream from disk: workers decode, crop and resize them; the device mirrors, colours and normalises.

A random crop is that of Szegedy et al. ("Going Deeper with Convolutions", CVPR 2015) as torchvision's
`RandomResizedCrop` draws it. Every draw is a hash of (seed, epoch, image), so it depends neither on the batch an image
lands in nor on the number of workers or processes, and a resumed run draws what an uninterrupted one would have drawn.
Nothing is kept in memory but the batches on their way.
"""

import weakref
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from datasets.augment.jitter import colour_jitter
from datasets.image_source import ImageSource, rows_on
from datasets.long_tail import Augmentation
from datasets.on_disk.listed_split import ListedSplit
from datasets.workers import PIECE, Crops, Reading, Tasks, View, Workers
from utils.errors import UserError
from utils.hashing import JITTER_ON_DISK_STREAM, MIRROR_ON_DISK_STREAM, hash_ids, stream_seed

AUGMENTATIONS = ["crop", "jitter"]
NO_WORKERS = Reading()


class StreamedImages(ImageSource):
    """The images of one split on disk, and the batches made of them.

    `size` is the side of a crop in pixels, `resize` what the shorter side becomes before a centre crop; `labels` (N,)
    and `ids` (N,) int64 lie on the device. `augment` says what an image of a view undergoes: "crop" is a random crop of
    at least the share that `reading` says and, where the data set allows it, mirroring; "jitter" adds `colour_jitter`.
    With patience (`Reading`), images that cannot be read are noted in `faults` (row: why). Raises UserError for another
    augmentation, and for a crop that is larger than the resized image.
    """

    host_rows = True

    def __init__(
        self,
        split: ListedSplit,
        augmentation: Augmentation,
        device: torch.device,
        *,
        size: int,
        resize: int,
        augment: str = "crop",
        reading: Reading = NO_WORKERS,
    ) -> None:
        if augment == "autoaugment":
            raise UserError("--augment autoaugment is CIFAR's policy, for small images; use crop or jitter")
        if augment not in AUGMENTATIONS:
            raise UserError(f"unknown --augment '{augment}'; known: {', '.join(AUGMENTATIONS)}")
        if not 1 <= size <= resize:
            raise UserError(f"a crop of {size} pixels does not fit into images resized to {resize}")
        if reading.workers < 0:
            raise UserError(f"--workers must be 0 or more, not {reading.workers}")
        self.augment = augment
        self.augmentation = augmentation
        self.device = device
        self.size = size
        self.reading = reading
        self.labels = torch.from_numpy(split.labels).to(device)
        self.ids = torch.from_numpy(split.ids).to(device)
        # For a line of pixels at once: three numbers are too short an inner loop for a CPU.
        std = torch.tensor(augmentation.std, device=device).repeat(size)
        self.scale = 1 / (255 * std)
        self.shift = torch.tensor(augmentation.mean, device=device).repeat(size) / std
        self._pinned = device.type == "cuda"
        self.faults: dict[int, str] = {}
        self._crops = Crops(split, size, resize, reading)
        self._tasks = Tasks()
        self._readers: Workers | None = None
        self._passes = 0

    def __len__(self) -> int:
        return len(self.labels)

    def close(self) -> None:
        """End the worker processes; the next pass starts new ones."""
        self._passes += 1
        if self._readers is not None:
            self._end()
        self._readers = None

    def view_batches(
        self, rows: Sequence[Tensor], view: View | None = None, mirrored: bool = False
    ) -> Iterator[Tensor]:
        """Yield for each tensor of row positions (B,), on any device, its images (B, 3, size, size).

        They are normalised float32 on the device, in channels-last memory order. Without a `view` they are centre
        crops; a view (seed, epoch) is what that epoch of training sees. `mirrored` turns them left to right. A pass may
        be left at any time, and ends where another one begins. Raises UserError for a file that cannot be read.
        """
        positions = rows_on(self.device, rows)
        for pixels, part in zip(self.crops(rows, view), positions, strict=True):
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
            turned = hash_ids(ids, stream_seed(seed, MIRROR_ON_DISK_STREAM), epoch) % 2 == 1
            pixels = torch.where(turned[:, None, None, None] != mirrored, pixels.flip(2), pixels)
        elif mirrored:
            pixels = pixels.flip(2)
        if view is not None and self.augment == "jitter":
            seed, epoch = view
            draws = hash_ids(ids, stream_seed(seed, JITTER_ON_DISK_STREAM), epoch)
            pixels = colour_jitter(pixels.permute(0, 3, 1, 2), draws).permute(0, 2, 3, 1)
        return pixels

    def _batches(self, rows: Sequence[np.ndarray], view: View | None) -> Iterator[Tensor]:
        """Yield for each array of rows (B,) its crops (B, size, size, 3) uint8 on the host."""
        if self._readers is None:
            self._crops.make_slots()
        slots = self._crops.slots
        pieces = [part[start : start + PIECE] for part in rows for start in range(0, len(part), PIECE)]
        self._tasks.tasks = [(number % len(slots), piece, view) for number, piece in enumerate(pieces)]
        if self._readers is None:
            self._readers = Workers(self._crops, self._tasks, self.reading.workers)
            self._end = weakref.finalize(self, self._readers.end)  # at the latest when the program ends
        self._passes += 1
        this_pass = self._passes
        done = zip(self._tasks.tasks, self._readers.answers(), strict=True)
        try:
            for part in rows:
                batch = torch.empty(len(part), *slots.shape[2:], dtype=torch.uint8, pin_memory=self._pinned)
                for start in range(0, len(part), PIECE):
                    if self._passes != this_pass:
                        raise RuntimeError("another pass over these images has begun, which ended this one")
                    (slot, piece, _), faults = next(done)
                    if faults and not self.reading.patient:
                        raise UserError(f"{faults[0][1]}; --skip_bad N leaves out up to N such images")
                    self.faults.update(faults)
                    batch[start : start + PIECE] = slots[slot, : len(piece)]
                yield batch
        except (UserError, KeyboardInterrupt):
            self.close()
            raise


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
