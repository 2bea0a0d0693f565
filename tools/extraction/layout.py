"""Which rows of which split stand in which shard of a file of features, before any is computed.

The rows of all parts stand one behind the other. A shard is a range of them. The tensors of a part that several shards
share are cut as `runs.shards` has it (`train_features.rows0`, ...), so that its reader joins them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runs.shards import cut_rows, pack
from tools.extraction.prepared import Part
from utils.errors import UserError

LABEL_BYTES = 8
BYTES_OF_NAME = 200  # what a tensor costs beside its numbers, in the header of a shard
BYTES_OF_SHARD = 1024  # and each shard


@dataclass(frozen=True)
class Layout:
    """The rows of `parts`, of `width` numbers of a `dtype` each, in shards of at most `shard_rows`.

    `extras` are the tensors behind them, in groups of a shard each; where all is one file they are in it.
    """

    parts: Sequence[Part]
    width: int
    dtype: torch.dtype
    shard_rows: int
    extras: Sequence[Mapping[str, Tensor]]
    single: bool

    @property
    def rows(self) -> int:
        """The rows of all parts."""
        return sum(len(part.images) for part in self.parts)

    @property
    def row_shards(self) -> int:
        """How many shards hold rows."""
        return -(-self.rows // self.shard_rows)

    @property
    def shards(self) -> int:
        """How many files there will be."""
        return 1 if self.single else self.row_shards + len(self.extras)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first row of a shard and the one behind its last."""
        return min(shard * self.shard_rows, self.rows), min((shard + 1) * self.shard_rows, self.rows)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the parts that rows `start` to `stop` are of: its number, and first and last row inside it."""
        offset = 0
        for number, part in enumerate(self.parts):
            low, high = max(start - offset, 0), min(stop - offset, len(part.images))
            if low < high:
                yield number, low, high
            offset += len(part.images)

    def tensors(self, shard: int, features: Tensor) -> dict[str, Tensor]:
        """Return what a shard holds, given its rows of features (n, d)."""
        start, stop = self.bounds(shard)
        found: dict[str, Tensor] = {}
        done = offset = 0
        for number, low, high in self.pieces(start, stop):
            part = self.parts[number]
            offset = sum(len(before.images) for before in self.parts[:number])
            whole = high - low == len(part.images)
            # The pieces of a part are numbered from the shard that its first row is in.
            piece = "" if whole else f".rows{shard - offset // self.shard_rows}"
            found[part.name + piece] = features[done : done + high - low].clone()
            if not part.mirrored:
                found[f"{part.split}_labels{piece}"] = torch.from_numpy(part.images.labels[low:high].copy())
            done += high - low
        return found | (dict(self.extras[0]) if self.single and self.extras else {})

    def batches(self, shards: Sequence[int], skip: int, size: int) -> list[tuple[int, np.ndarray]]:
        """Return the batches of shards, without the first `skip` rows of the first one, as the number of a part and
        rows in it; none reaches across two shards."""
        found = []
        for place, shard in enumerate(shards):
            low, high = self.bounds(shard)
            for number, first, last in self.pieces(low + (skip if place == 0 else 0), high):
                found += [(number, np.arange(row, min(row + size, last))) for row in range(first, last, size)]
        return found

    def share(self, part: int, parts: int) -> range:
        """Return the shards of rows that are the work of one of `parts` commands, counted from 1."""
        return range((part - 1) * self.row_shards // parts, part * self.row_shards // parts)


def plan_layout(
    parts: Sequence[Part], width: int, dtype: torch.dtype, extras: Mapping[str, Tensor], limit: int
) -> Layout:
    """Lay out the rows of parts in shards of at most `limit` bytes, tensors with metadata of `limit` not counted.

    Raises UserError where not one row fits.
    """
    names = 2 * len(parts) + len(extras)
    room = limit - BYTES_OF_SHARD - names * BYTES_OF_NAME
    row_bytes = width * dtype.itemsize + LABEL_BYTES
    rows = sum(len(part.images) for part in parts)
    extra_bytes = sum(tensor.nbytes for tensor in extras.values())
    if rows * row_bytes + extra_bytes <= room:
        return Layout(parts, width, dtype, max(rows, 1), [extras] if extras else [], True)
    if room < row_bytes:
        raise UserError(f"--part_mib {limit / 2**20:g} leaves no room for one row of {width} features")
    groups = pack(cut_rows(dict(extras), room), room) if extras else []
    return Layout(parts, width, dtype, room // row_bytes, groups, False)
