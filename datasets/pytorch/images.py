"""A split of a long-tailed data set as a `torch.utils.data.Dataset`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.decode import decode_rgb
from datasets.decoding.options import DecodeOptions
from datasets.long_tail import Split
from datasets.on_disk.listed_split import ListedSplit
from utils.errors import UserError


class SplitImages(Dataset[tuple[Any, int]]):
    """The images of `load_dataset(...).train`, `.holdout` or `.test`, one at a time, for PyTorch's `DataLoader`.

    `dataset[i]` is (image, label): an image (3, H, W) uint8, or what `transform` makes of it, such as one of
    `torchvision.transforms.v2`. Images on disk are decoded as `options` say, when they are asked for; one that cannot
    be read raises UserError. `labels` (N,) int64 is what a `ClassBalancedSampler` takes.
    """

    def __init__(
        self, split: Split, transform: Callable[[Tensor], Any] | None = None, options: DecodeOptions | None = None
    ) -> None:
        self.split = split
        self.transform = transform
        self.options = options or DecodeOptions()
        self.labels = torch.from_numpy(split.labels)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an image (3, H, W), or what the transform makes of it, and its label. Raises UserError for a file that
        cannot be read."""
        if isinstance(self.split, ListedSplit):
            image = decode_rgb(self.split.path(range(len(self))[index]), options=self.options)
        elif self.split.images.ndim != 4:
            raise UserError("this split holds features, not images: take its arrays")
        else:
            image = torch.from_numpy(self.split.images[index]).permute(2, 0, 1)
        return self.transform(image) if self.transform else image, int(self.split.labels[index])
