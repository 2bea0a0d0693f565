"""The data sets and samplers of this project as PyTorch's own loops take them: `Dataset` and `DistributedSampler`."""

from datasets.pytorch.images import SplitImages
from datasets.pytorch.samplers import ClassBalancedSampler

__all__ = ["ClassBalancedSampler", "SplitImages"]
