"""Rows of a large matrix, a block at a time: what is computed in float64 never holds all of it."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers that are handled together in float64. On a CPU, temporaries of more than a few MB leave the cache and are
# mapped anew, page by page, at every use, which takes several times as long; a GPU wants work enough for each kernel.
CPU_BLOCK, GPU_BLOCK = 1 << 18, 1 << 24


def row_blocks(values: Tensor, device: torch.device | None = None) -> Iterator[slice]:
    """Yield the rows of `values` (N, K), in order, in blocks of at most `CPU_BLOCK` numbers, at least one row each, or
    `GPU_BLOCK` where the `device` that computes, that of `values` if not given, is no CPU."""
    block = CPU_BLOCK if (device or values.device).type == "cpu" else GPU_BLOCK
    rows = max(block // max(values.shape[1], 1), 1)
    for start in range(0, len(values), rows):
        yield slice(start, min(start + rows, len(values)))
