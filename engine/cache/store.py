"""Features in files: whole or absent, of the rows that they are asked for, or a line that says they are damaged."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from engine.cache.dependencies import note_dependencies
from runs.dependencies import key_of
from utils.distributed import from_main, is_main, wait_for_all
from utils.errors import UserError
from utils.files import make_folder, write_atomically
from utils.outside import plain_path, within


@dataclass(frozen=True)
class FeatureStore:
    """Where features are kept: in files of `folder` (None: nowhere) named by what they depend on.

    `depends` has that for each split (`split_dependencies`); it is written beside the features, so that it can be said
    why others are computed. `mapped` features stay in these files, of which the system holds in memory what it has room
    for. Where it is `read_only`, nothing is added.
    """

    folder: Path | None = None
    depends: dict[str, dict[str, Any]] = field(default_factory=dict)
    mapped: bool = False
    read_only: bool = False

    def path(self, split: str, name: str) -> Path | None:
        """Return the file of the features `name` of a split, None where nothing is kept."""
        if self.folder is None:
            return None
        return within(self.folder, self.folder / f"{name}_{key_of(self.depends[split])[:16]}.npy")

    def find(self, split: str, name: str, count: int) -> Tensor | None:
        """Return kept features (count, d), on the CPU or mapped; None where there are none. All processes must ask.

        Raises UserError for a file that is damaged.
        """
        path = self.path(split, name)
        return self._read(path, count) if path is not None and from_main(path.exists()) else None

    def join(self, split: str, name: str, blocks: Iterator[Tensor], count: int) -> Tensor:
        """Return blocks of rows (n, d), `count` in all, as one tensor, after they were kept.

        Of many processes all must call it, since they compute the blocks together; the first one writes.
        """
        path = None if self.read_only else self.path(split, name)
        if path is None:
            return torch.cat(list(blocks))
        if is_main():
            note_dependencies(path, name, self.depends[split])
        if self.mapped and count:
            write_blocks(path, blocks, count)
            wait_for_all()
            return self._read(path, count)
        features = torch.cat(list(blocks))
        if is_main():
            make_folder(path.parent)
            write_atomically(path, lambda file: np.save(file, features.cpu().numpy()))
        return features

    def _read(self, path: Path, count: int) -> Tensor:
        """Return stored features (count, d) as they lie in the file."""
        damaged = f"{path} is damaged; delete it, and it is computed again"
        try:
            with plain_path(path) as held:
                stored = np.load(held, mmap_mode="c" if self.mapped else None, allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(
                f"{path}, which the first process wrote, is not here: --out must be a folder that all machines share"
            ) from error
        except (OSError, ValueError, EOFError) as error:
            raise UserError(damaged) from error
        if not isinstance(stored, np.ndarray) or stored.dtype != np.float32 or stored.ndim != 2 or len(stored) != count:
            raise UserError(damaged)
        return torch.from_numpy(stored)


NOT_KEPT = FeatureStore()


def write_blocks(path: Path, blocks: Iterator[Tensor], count: int) -> None:
    """Write blocks of rows (n, d), `count` rows in all, into one .npy file, as they come.

    Of many processes all must call it, since they compute the blocks together; the first one writes.
    """

    def write(file: IO[bytes]) -> None:
        for number, block in enumerate(blocks):
            rows = block.cpu().numpy()
            if number == 0:
                shape = (count, *rows.shape[1:])
                descr = np.lib.format.dtype_to_descr(rows.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows).data)

    if is_main():
        make_folder(path.parent)
        write_atomically(path, write)
    else:
        for _ in blocks:
            pass
