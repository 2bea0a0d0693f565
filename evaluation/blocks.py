"""Rows of a large matrix, a block at a time: what is computed in float64 never holds all of it, nor need the matrix be
there."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from datasets.features import FileRows

# Numbers that are handled together in float64. On a CPU, temporaries of more than a few MB leave the cache and are
# mapped anew, page by page, at every use, which takes several times as long; a GPU wants work enough for each kernel.
CPU_BLOCK, GPU_BLOCK = 1 << 18, 1 << 24
KEPT = 1 << 26  # computed numbers that are kept for the next pass: 256 MiB in float32


class ComputedRows:
    """A matrix (N, K) whose rows are computed when they are asked for, in place of a tensor: `row_blocks` and slices.

    Where it has at most `KEPT` numbers it is computed once. Of a larger one the last `chunk` rows are kept, so that a
    pass over its rows in order computes each of them once, whatever the blocks. A row is the same in every pass: it is
    always computed in the same chunk.
    """

    def __init__(
        self, compute: Callable[[slice], Tensor], shape: tuple[int, int], device: torch.device, chunk: int
    ) -> None:
        self.compute = compute
        self.shape = shape
        self.device = device
        self.chunk = chunk
        self._last: tuple[int, Tensor] | None = None
        self._whole: Tensor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Return rows (n, K) that follow one another."""
        start, stop, _ = rows.indices(len(self))
        if self._whole is None and self.shape[0] * self.shape[1] <= KEPT:
            self.whole()
        if self._whole is not None:
            return self._whole[start:stop]
        first = start // self.chunk * self.chunk
        end = min(first + self.chunk, len(self))
        if self._last is None or self._last[0] != first:
            self._last = None  # two of them are never there at once
            self._last = first, self.compute(slice(first, end))
        found = self._last[1][start - first : stop - first]
        return found if stop <= end else torch.cat([found, self[end:stop]])

    def whole(self) -> Tensor:
        """Return all rows, and keep them."""
        if self._whole is None:
            for rows in self.chunks():
                computed = self.compute(rows)
                if len(computed) == len(self):
                    self._whole = computed
                    break
                if rows.start == 0:
                    joined = computed.new_empty(self.shape)
                joined[rows] = computed
            else:
                assert len(self), "no rows"
                self._whole = joined
            self._last = None
        return self._whole

    def chunks(self) -> Iterator[slice]:
        """Yield the rows that are computed together, in order."""
        for start in range(0, len(self), self.chunk):
            yield slice(start, min(start + self.chunk, len(self)))


def largest(values: Tensor) -> Tensor:
    """Return the place (N,) of the largest of each row of values (N, K): of equal ones the first, NaN before all.

    On a CPU NumPy looks with vector instructions, which PyTorch's `argmax` does not, and finds the same.
    """
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.argmax(dim=1)
    return torch.from_numpy(values.detach().numpy().argmax(axis=1))


Rows = Tensor | ComputedRows  # a matrix (N, K), there or computed when it is looked at


def block_rows(width: int, device: torch.device, least: int = 1) -> int:
    """Return how many rows of `width` numbers make a block where the `device` computes, `least` of them or more."""
    block = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    return max(block // max(width, 1), least)


def row_blocks(values: Rows | FileRows, device: torch.device | None = None, least: int = 1) -> Iterator[slice]:
    """Yield the rows of `values` (N, K), in order, in blocks of at most `CPU_BLOCK` numbers, `least` rows or more, or
    `GPU_BLOCK` where the `device` that computes, that of `values` if not given, is no CPU."""
    rows = block_rows(values.shape[1], device or values.device, least)
    for start in range(0, len(values), rows):
        yield slice(start, min(start + rows, len(values)))
