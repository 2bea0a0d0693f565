"""Small images live on the device as one uint8 tensor; crop, mirror and normalise run there, drawn per image.

Every draw is a hash of (seed, epoch, image), so it depends neither on the batch an image lands in nor on the number of
workers or processes, and a resumed run draws what an uninterrupted one would have drawn.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.long_tail import Augmentation, Split

MASK64 = (1 << 64) - 1


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


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the shuffled positions 0..count-1 (int64, CPU) of one epoch, a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(mix64(mix64(seed & MASK64) ^ epoch))
    return torch.randperm(count, generator=generator)


class DeviceImages:
    """The images of one split on a device, and the batches drawn from them.

    `images` (N, H, W, 3) uint8 with the padding for crops already around them; `labels` (N,) and `ids` (N,) int64.
    Batches come out as (B, 3, H, W) float32 in channels-last memory order.
    """

    def __init__(self, split: Split, augmentation: Augmentation, device: torch.device) -> None:
        pad = augmentation.padding
        self.augmentation = augmentation
        self.size = split.images.shape[1]
        self.images = F.pad(torch.from_numpy(split.images).to(device), (0, 0, pad, pad, pad, pad))
        self.labels = torch.from_numpy(split.labels).to(device)
        self.ids = torch.from_numpy(split.ids).to(device)
        std = torch.tensor(augmentation.std, device=device)
        self.scale = 1 / (255 * std)
        self.shift = torch.tensor(augmentation.mean, device=device) / std

    def __len__(self) -> int:
        return len(self.labels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 pixels (B, H, W, 3) into normalised, channels-last images (B, 3, H, W)."""
        return (pixels * self.scale - self.shift).permute(0, 3, 1, 2)

    def plain(self, rows: Tensor | slice, mirrored: bool = False) -> Tensor:
        """Return the images at `rows` as they are, or mirrored left to right: (B, 3, H, W)."""
        pad = self.augmentation.padding
        pixels = self.images[rows, pad : pad + self.size, pad : pad + self.size]
        return self.normalise(pixels.flip(2) if mirrored else pixels)

    def augmented(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the images at `rows` (B,), each with its own crop out of the padding and its own mirroring."""
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
        return self.normalise(self.images[rows[:, None, None], ys[:, :, None], xs[:, None, :]])

    def training_batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) of one shuffled epoch; the last, partial batch is kept."""
        order = epoch_order(len(self), seed, epoch).to(self.labels.device)
        for rows in order.split(batch_size):
            yield self.augmented(rows, seed, epoch), self.labels[rows]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches of one epoch, the partial one included."""
    return int(np.ceil(count / batch_size))
