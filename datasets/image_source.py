"""What training and prediction need to know of the images of a split, and how an epoch is cut into batches."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import Augmentation
from utils.distributed import process_count, process_rank
from utils.errors import UserError
from utils.hashing import epoch_order


class ImageSource:
    """The images of one split, and the batches drawn from them: what training and prediction need to know of them.

    `size` is the side in pixels of what the network sees; `labels` (N,) and `ids` (N,) int64 lie on the device. Batches
    are (B, 3, size, size) float32, normalised, in channels-last memory order. `host_rows` says that `view_batches`
    takes its positions from the host, where they need not be read back from the device.
    """

    host_rows: ClassVar[bool] = False
    size: int
    labels: Tensor
    ids: Tensor
    augmentation: Augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def view_batches(
        self, rows: Sequence[Tensor], view: tuple[int, int] | None = None, mirrored: bool = False
    ) -> Iterator[Tensor]:
        """Yield the images of each tensor of `rows` as they are, mirrored, or augmented as `view` = (seed, epoch) says.

        Positions (B,) may lie on any device; `rows_device` is where they need no copy. A tensor without rows gives a
        batch without images.
        """
        raise NotImplementedError

    @property
    def rows_device(self) -> torch.device:
        """Where `view_batches` takes positions from."""
        return torch.device("cpu") if self.host_rows else self.labels.device

    def labelled_views(self, rows: Sequence[Tensor], view: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) for each tensor of `rows` (B,) on the CPU, augmented as `view` says."""
        placed = rows_on(self.labels.device, rows)
        images = self.view_batches(rows if self.host_rows else placed, view)
        return zip(images, (self.labels[batch] for batch in placed), strict=True)

    def training_batches(
        self, batch_size: int, seed: int, epoch: int, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of one shuffled epoch; the last, partial batch is kept unless `drop_last`.

        Of many processes each gets its share of every batch. Raises UserError, at the call, where dropping the last one
        would leave no batch.
        """
        steps = steps_per_epoch(len(self), batch_size, drop_last)
        order = epoch_order(len(self), seed, epoch)
        return self.labelled_views(share_of_batches(order[: steps * batch_size], batch_size), (seed, epoch))


def rows_on(device: torch.device, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of positions (B,) on a device, sent in one copy, however many they are."""
    if not rows or rows[0].device == device:
        return list(rows)
    return list(torch.cat(list(rows)).to(device).split([len(part) for part in rows]))


def share_of_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Split an order (N,) into batches and return what this process computes of each: all of it where it is alone.

    `batch_size` is that of all processes together. The parts of a batch differ by one image at most; the last batch may
    leave a process without any.
    """
    parts = (batch.tensor_split(process_count())[process_rank()] for batch in order.split(batch_size))
    return list(parts)


def batch_sizes(count: int, batch_size: int, drop_last: bool = False) -> list[int]:
    """Return the size of every batch of an epoch over `count` images, over all processes."""
    steps = steps_per_epoch(count, batch_size, drop_last)
    return [min(batch_size, count - step * batch_size) for step in range(steps)]


def steps_per_epoch(count: int, batch_size: int, drop_last: bool = False) -> int:
    """Return the number of batches of one epoch, the partial one included unless `drop_last`.

    Raises UserError where dropping it would leave no batch.
    """
    if not drop_last:
        return int(np.ceil(count / batch_size))
    if count < batch_size:
        raise UserError(
            f"{count} training images are fewer than one batch of {batch_size}, and the last, partial batch is "
            "dropped, so none would be left; use a smaller --batch_size"
        )
    return count // batch_size
