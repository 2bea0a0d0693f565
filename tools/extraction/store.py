"""A file of features in the making: its shards one after the other, and what there is of the next one.

Finished shards stand where they will stay. Beside them, in the folder `NAME.unfinished`, are the plan by which they are
made, the rows of the shard that is being made, and the lock. A command with the same plan goes on with the next row.
The card is written last, and the folder removed; until then a reader says that shards are missing.

Many commands can share the work (`--part I/N`): each makes shards of its own, and has its lock and the rows of its next
one in a folder inside that one. A command for the whole file then makes what is missing, and the card.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from runs.dependencies import key_of
from runs.shards import card_of, describe_files, find_shards, shard_names
from tools.extraction.layout import Layout
from utils.errors import UserError
from utils.files import FolderLock, lock_folder, make_folder, read_json, remove_leftovers, write_atomically, write_json
from utils.outside import read_plain

SECONDS_BETWEEN_SAVES = 60.0
PLAN, ROWS = "plan.json", "rows.safetensors"
PART = "part{}of{}"  # the folder of one of many commands


def unfinished_folder(file: Path) -> Path:
    """Return where the work on a file is kept until it is finished."""
    return file.with_name(f"{file.stem}.unfinished")


def refuse_finished(file: Path) -> None:
    """Raise UserError where a file is there already, other than one in the making."""
    there = [path for path in (card_of(file), *find_any(file)) if path.exists()]
    if there and not (unfinished_folder(file) / PLAN).is_file():
        raise UserError(f"{there[0]} is there already; name another file, or replace it with --overwrite")


class Store:
    """The shards of `file`, written by a `layout`; `plan` (plain values) says all that its numbers depend on.

    `missing` are the shards that it is to make, of all or of one `part` (number from 1, how many), and `done` the rows
    that are there already. Raises UserError where another file is, where the work there has another plan, and where
    another process is at it; with `overwrite` what is there is removed instead.
    """

    def __init__(
        self,
        file: Path,
        layout: Layout,
        plan: Mapping[str, Any],
        metadata: Mapping[str, str],
        *,
        overwrite: bool = False,
        part: tuple[int, int] | None = None,
    ) -> None:
        self.file = file
        self.layout = layout
        self.metadata = metadata
        self.plan = json.loads(json.dumps(plan))
        self.names = [file] if layout.single else shard_names(file, layout.shards)
        self.whole_folder = unfinished_folder(file)
        self.folder = self.whole_folder if part is None else self.whole_folder / PART.format(*part)
        self.locks = self._open(overwrite)
        self.shards = layout.share(*(part or (1, 1)))
        self.missing = [shard for shard in self.shards if not self.names[shard].exists()]
        self.rows = self._saved()
        self.saved = time.monotonic()

    def _open(self, overwrite: bool) -> list[FolderLock | None]:
        make_folder(self.file.parent)
        if not overwrite:
            refuse_finished(self.file)
        make_folder(self.folder)
        # The command for the whole file also keeps the parts from going on.
        parts = sorted(self.whole_folder.glob(PART.format("*", "*"))) if self.folder == self.whole_folder else []
        locks = [lock_folder(folder) for folder in (self.folder, *parts)]
        plan = self.whole_folder / PLAN
        if overwrite:
            rows = [folder / ROWS for folder in (self.folder, *parts)]
            for path in [card_of(self.file), *find_any(self.file), plan, *rows]:
                path.unlink(missing_ok=True)
        elif plan.is_file():
            before = read_json(plan)
            differing = [name for name in {**before, **self.plan} if before.get(name) != self.plan.get(name)]
            if differing:
                raise UserError(
                    f"{self.whole_folder} was begun with another {' and another '.join(sorted(differing))}; go on as "
                    "it was begun, name another file, or begin anew with --overwrite"
                )
        write_json(plan, self.plan)
        return locks

    def _saved(self) -> list[Tensor]:
        """Return the rows of the shard in the making that an earlier command has kept."""
        path = self.folder / ROWS
        remove_leftovers(self.folder, [ROWS])
        if not path.exists():
            return []
        try:
            found = load(read_plain(path))
            shard, rows = int(found["shard"]), found["rows"]
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is damaged; begin anew with --overwrite") from error
        return [rows] if [shard] == self.missing[:1] else []  # else its shard was written since

    @property
    def done(self) -> int:
        """The rows that are there, of those that it is to make."""
        there = [shard for shard in self.shards if shard not in self.missing]
        return sum(map(self._size, there)) + sum(map(len, self.rows))

    @property
    def wanted(self) -> int:
        """The rows that it is to make, with those that are there."""
        return sum(map(self._size, self.shards))

    def _size(self, shard: int) -> int:
        start, stop = self.layout.bounds(shard)
        return stop - start

    def batches(self, size: int) -> list[tuple[int, np.ndarray]]:
        """Return the batches whose rows are missing (`Layout.batches`)."""
        return self.layout.batches(self.missing, sum(map(len, self.rows)), size)

    def add(self, features: Tensor) -> None:
        """Take the features (B, d) of the next rows, none of them beyond the shard; write what is due."""
        self.rows.append(features)
        shard = self.missing[0]
        if sum(map(len, self.rows)) == self._size(shard):
            self._write(shard, self.layout.tensors(shard, torch.cat(self.rows)))
            self.missing, self.rows, self.saved = self.missing[1:], [], time.monotonic()
        elif time.monotonic() - self.saved >= SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Keep the rows of the shard in the making, so that nothing that was computed is computed again."""
        if self.rows:
            self.rows = [torch.cat(self.rows)]
            content = save({"shard": torch.tensor(self.missing[0]), "rows": self.rows[0]})
            write_atomically(self.folder / ROWS, lambda file: file.write(content))
        self.saved = time.monotonic()

    def leave(self) -> None:
        """Keep what there is for a command that goes on; nothing where there is nothing."""
        self.save()
        self._unlock()
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)

    def finish_part(self) -> list[Path]:
        """End the work on a part; return its files."""
        self._unlock()
        shutil.rmtree(self.folder, ignore_errors=True)
        return [self.names[shard] for shard in self.shards]

    def _unlock(self) -> None:
        for lock in self.locks:
            if lock is not None:
                lock.release()

    def finish(self, card: Mapping[str, Any]) -> list[Path]:
        """Write the tensors behind the rows, and the card; return all files, the card last."""
        for number, extras in enumerate(() if self.layout.single else self.layout.extras):
            self._write(self.layout.row_shards + number, dict(extras))
        write_json(card_of(self.file), {**describe_files(self.file), **card})
        self._unlock()
        shutil.rmtree(self.folder, ignore_errors=True)
        return [*self.names, card_of(self.file)]

    def _write(self, shard: int, tensors: dict[str, Tensor]) -> None:
        # `whole` keeps shards of two files apart: what all of them are made by stands for what they are together.
        common = {"whole": key_of(self.plan), "parts": str(self.layout.shards), "part": str(shard + 1)}
        metadata = {**(self.metadata if shard == 0 else {}), **({} if self.layout.single else common)}
        content = save(tensors, metadata)
        write_atomically(self.names[shard], lambda file: file.write(content))


def find_any(file: Path) -> list[Path]:
    """Return the files of that name that there are, shards of whatever division."""
    try:
        return [path for path in find_shards(file) if path.exists()]
    except UserError:  # some are missing, or of two divisions
        return sorted(file.parent.glob(f"{file.stem}-?????-of-?????{file.suffix}"))
