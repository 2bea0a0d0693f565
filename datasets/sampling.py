"""Which images an epoch visits: every one once, or drawn so that rare classes are seen more often.

The strategies of Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
section 4.1. Draws are a function of (seed, epoch) alone, as everywhere in this project.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.names import SAMPLERS as SAMPLERS  # a name of this module too
from utils.errors import UserError
from utils.hashing import MASK64, SAMPLING_STREAM, epoch_order, mix64, stream_seed


def class_probabilities(class_counts: Tensor | Sequence[int], sampler: str, progress: float = 0.0) -> Tensor:
    """Return the probability of each class, (K,) float64 on the CPU, when an image is drawn (Kang et al., equation 1).

    p_j is in proportion to n_j^q over the classes that have images, with q = 1 ("instance"), 1/2 ("sqrt") or 0
    ("class_balanced"); "progressive" goes from the first to the last, (1 - t) p_instance + t p_balanced with
    t = `progress` in [0, 1] (equation 2). A class without images has probability 0. Raises UserError for an unknown
    sampler, a progress out of range, counts below 0, and where no class has an image.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"unknown --sampler '{sampler}'; known: {', '.join(SAMPLERS)}")
    if not 0 <= progress <= 1:
        raise UserError(f"the progress of sampling must be at least 0 and at most 1, not {progress}")
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device="cpu")
    if counts.numel() == 0 or counts.min() < 0 or counts.max() <= 0:
        raise UserError("class_counts must be at least 0, and at least one class must have an image")
    instance, balanced = counts / counts.sum(), (counts > 0).double() / (counts > 0).sum()
    if sampler == "sqrt":
        return counts.sqrt() / counts.sqrt().sum()
    t = {"instance": 0.0, "class_balanced": 1.0, "progressive": progress}[sampler]
    return (1 - t) * instance + t * balanced


def sampled_order(labels: Tensor, num_classes: int, sampler: str, seed: int, epoch: int, epochs: int) -> Tensor:
    """Return the positions (N,) int64, on the CPU, of the images that `epoch` (from 0) of `epochs` visits, in order.

    `labels` (N,) int64 are the classes of the images. "instance" is `epoch_order`: every image once. The others draw N
    images with replacement, the class by `class_probabilities` and the image uniformly within it; "progressive" has
    t = epoch / (epochs - 1), 0 where there is one epoch only (Kang et al., equation 2). The order is a function of
    (labels, sampler, seed, epoch, epochs). Raises UserError for an unknown sampler, and for labels not in
    [0, num_classes).
    """
    labels = labels.cpu()
    count = len(labels)
    if count == 0 or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"sampling needs images with labels from 0 to {num_classes - 1}")
    class_counts = torch.bincount(labels, minlength=num_classes)
    probabilities = class_probabilities(class_counts, sampler, epoch / (epochs - 1) if epochs > 1 else 0.0)
    if sampler == "instance":
        return epoch_order(count, seed, epoch)
    generator = torch.Generator().manual_seed(mix64(stream_seed(seed, SAMPLING_STREAM) ^ (epoch & MASK64)))
    classes = torch.multinomial(probabilities, count, replacement=True, generator=generator)
    within = torch.rand(count, generator=generator, dtype=torch.float64) * class_counts[classes]
    # Sorted by class, the images of class j are a run of `class_counts[j]` positions.
    by_class = labels.argsort(stable=True)
    first = class_counts.cumsum(0) - class_counts
    return by_class[first[classes] + within.long()]
