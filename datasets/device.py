"""Small images live on the device as one uint8 tensor; crop, mirror and normalise run there, drawn per image.

So do, on request, the AutoAugment policy and Cutout that GALA's first stage adds between mirroring and normalising.
Every draw is a hash of (seed, epoch, image), so it depends neither on the batch an image lands in nor on the number of
workers or processes, and a resumed run draws what an uninterrupted one would have drawn.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.autoaugment import AUGMENTATIONS, apply_policy, cutout, draw_policy
from datasets.jitter import colour_jitter
from datasets.long_tail import Augmentation, Split
from utils.distributed import process_count, process_rank
from utils.errors import UserError

MASK64 = (1 << 64) - 1
# Salts of the seed: what they draw is independent of the crops, which are drawn with the seed itself.
POLICY_STREAM, HOLE_STREAM, JITTER_STREAM, MIRROR_STREAM = 1, 2, 3, 4
# Training images that are augmented together; this many need some hundred MB in between.
CHUNK = 4096


def mix64(value: int) -> int:
    """Scramble a 64-bit integer (the finaliser of SplitMix64; Steele et al., OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def signed64(value: int) -> int:
    """Reinterpret an unsigned 64-bit integer as the signed one of the same bits, which is what tensors hold."""
    return value - (1 << 64) if value >= 1 << 63 else value


def hash_ids(ids: Tensor, seed: int, epoch: int) -> Tensor:
    """Return one well-mixed integer in [0, 2**62) for every id (B,) int64, a function of (seed, epoch, id) alone."""
    value = ids + signed64(mix64(mix64(seed & MASK64) ^ epoch))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        logical_shift = (value >> shift) & ((1 << (64 - shift)) - 1)
        value = (value ^ logical_shift) * signed64(factor)
    return (value ^ ((value >> 31) & ((1 << 33) - 1))) & ((1 << 62) - 1)


def stream_seed(seed: int, stream: int) -> int:
    """Return the seed of a further stream of draws, independent of those of `seed` and of its other streams."""
    return mix64(mix64(stream) ^ (seed & MASK64))


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the shuffled positions 0..count-1 (int64, CPU) of one epoch, a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(mix64(mix64(seed & MASK64) ^ epoch))
    return torch.randperm(count, generator=generator)


class ImageSource:
    """The images of one split, and the batches drawn from them: what training and prediction need to know of them.

    `size` is the side in pixels of what the network sees; `labels` (N,) and `ids` (N,) int64 lie on the device. Batches
    are (B, 3, size, size) float32, normalised, in channels-last memory order.
    """

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

        A tensor without rows gives a batch without images.
        """
        raise NotImplementedError

    def training_batches(
        self, batch_size: int, seed: int, epoch: int, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of one shuffled epoch; the last, partial batch is kept unless `drop_last`.

        Of many processes each gets its share of every batch. Raises UserError, at the call, where dropping the last one
        would leave no batch.
        """
        steps = steps_per_epoch(len(self), batch_size, drop_last)
        order = epoch_order(len(self), seed, epoch).to(self.labels.device)
        rows = share_of_batches(order[: steps * batch_size], batch_size)
        return zip(self.view_batches(rows, (seed, epoch)), (self.labels[batch] for batch in rows), strict=True)


class DeviceImages(ImageSource):
    """The images of one split on a device, and the batches drawn from them.

    `images` (N, H, W, 3) uint8 with the padding for crops already around them; `labels` (N,) and `ids` (N,) int64.
    Batches come out as (B, 3, H, W) float32 in channels-last memory order. `augment` says what an augmented image
    undergoes: "crop" is a crop and, where the data set allows it, mirroring; "jitter" adds `colour_jitter`,
    "autoaugment" the CIFAR-10 policy and Cutout (GALA's first stage). Raises UserError for another one, and for the
    policy on images without mirroring.
    """

    def __init__(self, split: Split, augmentation: Augmentation, device: torch.device, augment: str = "crop") -> None:
        if augment not in AUGMENTATIONS:
            raise UserError(f"unknown --augment '{augment}'; known: {', '.join(AUGMENTATIONS)}")
        if augment == "autoaugment" and not augmentation.mirror:
            raise UserError(
                "--augment autoaugment would change what the images of this data set show, as mirroring them would; "
                "use --augment crop"
            )
        pad = augmentation.padding
        self.augment = augment
        self.augmentation = augmentation
        self.size = split.images.shape[1]
        self.images = F.pad(torch.from_numpy(split.images).to(device), (0, 0, pad, pad, pad, pad))
        self.labels = torch.from_numpy(split.labels).to(device)
        self.ids = torch.from_numpy(split.ids).to(device)
        std = torch.tensor(augmentation.std, device=device)
        self.scale = 1 / (255 * std)
        self.shift = torch.tensor(augmentation.mean, device=device) / std

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 pixels (B, H, W, 3) into normalised, channels-last images (B, 3, H, W)."""
        return (pixels * self.scale - self.shift).permute(0, 3, 1, 2)

    def plain(self, rows: Tensor | slice, mirrored: bool = False) -> Tensor:
        """Return the images at `rows` as they are, or mirrored left to right: (B, 3, H, W)."""
        pad = self.augmentation.padding
        pixels = self.images[rows, pad : pad + self.size, pad : pad + self.size]
        return self.normalise(pixels.flip(2) if mirrored else pixels)

    def augmented(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the images at `rows` (B,) as an epoch of training sees them: (B, 3, H, W)."""
        return self.normalise(self.augmented_pixels(rows, seed, epoch))

    def augmented_pixels(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the images at `rows` (B,) augmented but not normalised: (B, H, W, 3) uint8."""
        if self.augment == "crop":
            return self.cropped(rows, seed, epoch)
        pixels = self.cropped(rows, seed, epoch).permute(0, 3, 1, 2).contiguous()
        if self.augment == "jitter":
            draws = hash_ids(self.ids[rows], stream_seed(seed, JITTER_STREAM), epoch)
            return colour_jitter(pixels, draws).permute(0, 2, 3, 1).contiguous()
        draws = hash_ids(self.ids[rows], stream_seed(seed, POLICY_STREAM), epoch)
        pixels = apply_policy(pixels, *draw_policy(draws.cpu()))
        pixels = cutout(pixels, hash_ids(self.ids[rows], stream_seed(seed, HOLE_STREAM), epoch))
        return pixels.permute(0, 2, 3, 1).contiguous()

    def cropped(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the pixels (B, H, W, 3) at `rows` (B,), each with its own crop out of the padding and mirroring."""
        draws = hash_ids(self.ids[rows], seed, epoch)
        offsets = 2 * self.augmentation.padding + 1
        line = torch.arange(self.size, device=draws.device)
        ys = (draws % offsets)[:, None] + line
        xs = (draws // offsets % offsets)[:, None]
        if self.augmentation.mirror:
            mirrored = (draws // offsets**2 % 2).bool()[:, None]
            xs = xs + torch.where(mirrored, line.flip(0), line)
        else:
            xs = xs + line
        return self.images[rows[:, None, None], ys[:, :, None], xs[:, None, :]]

    def view_batches(
        self, rows: Sequence[Tensor], view: tuple[int, int] | None = None, mirrored: bool = False
    ) -> Iterator[Tensor]:
        """Yield the images of each tensor of `rows` as they are, mirrored, or augmented as `view` = (seed, epoch) says.

        Thousands of images are augmented together, as uint8: on a GPU the few kernels of a batch would each cost a
        launch, and the policy needs many images of each operation.
        """
        if view is None:
            yield from (self.plain(batch, mirrored) for batch in rows)
            return
        for group in grouped(rows, CHUNK):
            pixels = self.augmented_pixels(torch.cat(group), *view)
            yield from map(self.normalise, pixels.split([len(batch) for batch in group]))


def grouped(batches: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Yield consecutive batches together, as many as hold at most `most` rows, one at least."""
    group: list[Tensor] = []
    held = 0
    for batch in batches:
        if group and held + len(batch) > most:
            yield group
            group, held = [], 0
        group.append(batch)
        held += len(batch)
    if group:
        yield group


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
