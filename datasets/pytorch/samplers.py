"""Samplers that draw rare classes more often, on one process or many, by PyTorch's `DistributedSampler` interface."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from datasets.sampling import SAMPLERS, sampled_order
from utils.distributed import process_count, process_rank
from utils.errors import UserError
from utils.parameters import Range


class ClassBalancedSampler(DistributedSampler[int]):
    """Draw the class first, every class alike, and an image of it then (Kang et al., "Decoupling Representation and
    Classifier for Long-Tailed Recognition", ICLR 2020, section 4.1), so that each process has a part of every epoch.

    An epoch of N images has N draws, those of `datasets.sampling.sampled_order`: a function of (labels, sampler, seed,
    epoch) alone, which all processes compute alike. Process r of R takes the draws r, r + R, ...; the first draws are
    repeated, or with `drop_last` the last left out, where N is no multiple of R. Call `set_epoch` before every epoch,
    or each draws the same. `labels` (N,) are whole numbers from 0. `sampler` is one of `SAMPLERS`: "class_balanced",
    "sqrt", "instance" (every image once), or "progressive", from "instance" to "class_balanced" over `epochs`.
    `replicas` is (number of processes, rank of this one); without it the process group says that, and without a group
    this process is alone. Raises UserError for what cannot be.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        sampler: str = "class_balanced",
        *,
        replicas: tuple[int, int] | None = None,
        seed: int = 0,
        epochs: int = 1,
        drop_last: bool = False,
    ) -> None:
        classes = torch.as_tensor(labels)
        if classes.ndim != 1 or len(classes) == 0 or classes.is_floating_point() or int(classes.min()) < 0:
            raise UserError("a sampler needs the labels (N,) of the images: whole numbers of at least 0, one or more")
        if sampler not in SAMPLERS:
            raise UserError(f"unknown sampler '{sampler}'; known: {', '.join(SAMPLERS)}")
        if epochs not in Range(1, 1e9):
            raise UserError(f"epochs must be at least 1, not {epochs}")
        count, rank = replicas or (process_count(), process_rank())
        if not 0 <= rank < count:
            raise UserError(f"replicas are (number of processes, rank): {rank} is no rank among {count}")
        self.labels = classes.long().cpu()
        self.sampler = sampler
        self.epochs = epochs
        self.num_classes = int(self.labels.max()) + 1
        super().__init__(self.labels, count, rank, shuffle=True, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of the images that this process sees in the epoch of `set_epoch`."""
        epoch, epochs = self.epoch, 1
        if self.sampler == "progressive":
            epoch, epochs = min(epoch, self.epochs - 1), self.epochs
        order = sampled_order(self.labels, self.num_classes, self.sampler, self.seed, epoch, epochs)
        # As many as all processes take; of fewer images than processes the draws repeat as often as needed.
        places = torch.arange(self.total_size) % len(order)
        return iter(order[places][self.rank :: self.num_replicas].tolist())
