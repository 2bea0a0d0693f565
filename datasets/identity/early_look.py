"""A look at the files whose hashes are kept, by processes of its own, while this one reads the lists of a data set.

Half a million looks take about as long as listing the files, and a core that has nothing to do takes them over.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from datasets.identity import states
from datasets.identity.kept_hashes import Kept, kept_file, read_kept
from datasets.on_disk.layouts import LAYOUTS, ListFiles

MOST_PROCESSES = 4
WORTH_FILES = 20_000  # fewer are looked at in a moment


class Looker:
    """A process that looks at files below `root`, whose paths (M,) are of one width."""

    def __init__(self, root: Path, paths: np.ndarray) -> None:
        # Files, since a pipe holds 64 kB: either side would wait for the other.
        with tempfile.TemporaryFile() as asked:
            self.answer: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
            asked.write(np.ascontiguousarray(paths).data)
            asked.seek(0)
            words = [sys.executable, "-I", "-S", states.__file__, str(paths.dtype.itemsize)]
            self.process = subprocess.Popen(
                words, cwd=root, stdin=asked, stdout=self.answer, stderr=subprocess.DEVNULL, start_new_session=True
            )

    def wait(self) -> bytes:
        """Return the states that it found, b"" where it could not."""
        if self.process.wait() != 0:
            return b""
        self.answer.seek(0)
        return self.answer.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.answer.close()


@dataclass(frozen=True)
class EarlyLook:
    """What is kept in the file `place`, and who looks at its files, each at a part of them."""

    place: Path
    kept: Kept
    lookers: list[Looker]

    def states(self) -> np.ndarray | None:
        """Wait for what `states.look_at` says of all kept files (M, 4) int64; None where a looker could not say it."""
        found = np.frombuffer(b"".join(looker.wait() for looker in self.lookers), dtype=np.int64)
        whole = found.size == states.STATE * len(self.kept.paths)
        return found.reshape(-1, states.STATE) if whole else None


def available_cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0))


def images_root(dataset: str, data_dir: str, files: ListFiles) -> Path | None:
    """Return the folder below which the images of a data set lie, None where they do not lie on disk."""
    if dataset == "folder":
        return Path(data_dir)
    if dataset not in LAYOUTS:
        return None
    return Path(data_dir) / LAYOUTS[dataset].folder if files.image_root is None else Path(files.image_root)


@contextlib.contextmanager
def looking_early(folder: Path, root: Path | None) -> Iterator[EarlyLook | None]:
    """Look at the files below `root` whose hashes are kept in `folder`, while the block runs; None without any."""
    if root is None or not kept_file(folder, root).is_file():
        yield None
        return
    look = EarlyLook(kept_file(folder, root), read_kept(kept_file(folder, root)), [])
    with contextlib.ExitStack() as stack:
        count = min(available_cores(), MOST_PROCESSES)
        if count > 1 and len(look.kept.paths) >= WORTH_FILES:
            with contextlib.suppress(OSError):  # no room, or no process to be had: looked at later
                for paths in np.array_split(look.kept.paths, count):
                    look.lookers.append(Looker(root, paths))
                    stack.callback(look.lookers[-1].close)
        yield look
