"""Images as a backbone wants them, made by worker processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from datasets.decode import decode_rgb
from datasets.decoding.memory import memory_for
from datasets.decoding.options import DecodeOptions
from datasets.long_tail import Split
from datasets.on_disk.listed_split import ListedSplit
from datasets.workers import Task, Tasks, Workers
from utils.errors import UserError


@dataclass(frozen=True)
class Part:
    """A run of rows of the features: the images of a split as they are, or mirrored."""

    split: str
    images: Split
    mirrored: bool = False

    @property
    def name(self) -> str:
        """The name of its features in the file."""
        return f"{self.split}_features" + "_mirrored" * self.mirrored


class PreparedImages(Dataset[Tensor | str]):
    """What a worker does: read the images of a batch and prepare each.

    It answers (B, 3, H, W), or the line that says why an image cannot be read.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        prepare: Callable[[Image.Image], Tensor],
        options: DecodeOptions,
        workers: int,
    ) -> None:
        self.parts = parts
        self.prepare = prepare
        self.options = options
        self.memory = memory_for(options, workers)

    def __getitem__(self, task: Task) -> Tensor | str:
        number, rows, _ = task
        part = self.parts[number]
        try:
            made = [self.prepare(self._image(part, row)) for row in rows.tolist()]
        except UserError as error:
            return str(error)  # an exception would come with the worker's traceback
        shapes = {tuple(one.shape) for one in made}
        if len(shapes) != 1:
            return f"the preprocessing makes images of different sizes, {' and '.join(map(str, sorted(shapes)[:2]))}"
        return torch.stack(made)

    def _image(self, part: Part, row: int) -> Image.Image:
        if isinstance(part.images, ListedSplit):
            with self.memory.claims() as claim:
                pixels = decode_rgb(part.images.path(row), claim, self.options).permute(1, 2, 0).contiguous().numpy()
        else:
            pixels = part.images.images[row]
        image = Image.fromarray(pixels)
        return ImageOps.mirror(image) if part.mirrored else image


def prepared_batches(
    images: PreparedImages, batches: Sequence[tuple[int, np.ndarray]], workers: int
) -> Iterator[Tensor]:
    """Yield the images of each batch, given as the number of its part and rows there, in order.

    Raises UserError for the first image that cannot be read.
    """
    readers = Workers(images, Tasks([(number, rows, None) for number, rows in batches]), workers)
    try:
        for answer in readers.answers():
            if isinstance(answer, str):
                raise UserError(answer)
            yield answer
    finally:
        readers.end()
