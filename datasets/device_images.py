"""Small images live on the device as one uint8 tensor; crop, mirror and normalise run there, drawn per image.

So do, on request, the AutoAugment policy and Cutout that GALA's first stage adds between mirroring and normalising.
Every draw is a hash of (seed, epoch, image), so it depends neither on the batch an image lands in nor on the number of
workers or processes, and a resumed run draws what an uninterrupted one would have drawn.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.augment.jitter import colour_jitter
from datasets.image_source import ImageSource, rows_on
from datasets.long_tail import Augmentation, Split
from datasets.names import AUGMENTATIONS
from utils.errors import UserError
from utils.hashing import HOLE_STREAM, JITTER_IN_MEMORY_STREAM, POLICY_STREAM, hash_ids, stream_seed

# Training images that are augmented together; this many need some hundred MB in between.
CHUNK = 4096


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
            draws = hash_ids(self.ids[rows], stream_seed(seed, JITTER_IN_MEMORY_STREAM), epoch)
            return colour_jitter(pixels, draws).permute(0, 2, 3, 1).contiguous()
        draws = hash_ids(self.ids[rows], stream_seed(seed, POLICY_STREAM), epoch)
        # torchvision, which takes longer to import than PyTorch
        from datasets.augment.autoaugment import apply_policy, cutout, draw_policy

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
        rows = rows_on(self.labels.device, rows)
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
