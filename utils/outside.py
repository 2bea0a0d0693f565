"""What comes from outside: files are opened here, and names in them become parts of paths by these rules alone.

It imports `utils.errors` alone: every room may import it.
"""

import contextlib
import errno
import os
import re
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils.errors import UserError

LONGEST_NAME = 200  # characters; file systems take 255 bytes, of which the rest of a folder's name needs some
NAME = re.compile(rf"\w[\w.+-]{{0,{LONGEST_NAME - 1}}}")
MOST_READ = 1 << 30  # bytes that the system is asked for at once
# A pipe that nobody writes to is opened at once, and a terminal never becomes ours.
WITHOUT_WAITING = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"))


def is_name(text: object) -> bool:
    """Tell whether text can be a part of a path: letters, digits and `_.+-`, a letter, digit or `_` first."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


def within(root: Path, path: Path) -> Path:
    """Return a path below `root`, links followed; a UserError refuses one that leads elsewhere."""
    home, place = (Path(os.path.realpath(each)) for each in (root, path))
    if not place.is_relative_to(home):
        raise UserError(f"{path} leads out of {root}, to {place}: it is refused; name that place itself")
    return path


def open_plain(path: Path | str, what: str = "") -> IO[bytes]:
    """Open a regular file to read its bytes.

    Raises UserError, `cannot read WHAT PATH: it is no regular file`, for a pipe, a socket or a device, which may never
    end, and OSError for what is missing, a folder, or not to be read. The opened file is asked, not its name.
    """
    words = f"{what} {path}" if what else f"{path}"
    _refuse_others(os.stat(path).st_mode, words)  # to open a socket fails, and to open a device may do something
    descriptor = os.open(path, WITHOUT_WAITING)
    try:
        _refuse_others(os.fstat(descriptor).st_mode, words)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_others(mode: int, words: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), words)
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {words}: it is no regular file")


@contextlib.contextmanager
def plain_path(path: Path, what: str = "") -> Iterator[Path]:
    """Hold a regular file open and yield a path of it for readers that take no open file; raises as `open_plain`.

    Where the system has /dev/fd it is that of the opened file itself, whatever happens to `path` meanwhile.
    """
    with open_plain(path, what) as file:
        held = Path(f"/dev/fd/{file.fileno()}")
        yield held if os.path.exists(held) else path


class HeldFile:
    """A regular file that stays open for as long as this object lives, of which parts are read when they are needed.

    What was read from a file that changes meanwhile may be of both: a UserError says so. One that is replaced under its
    name goes on being read as it was.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        """Hold what is opened as `file` from `path`; its state now is the one that it must stay in."""
        self.path = path
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._look()

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def refuse_changed(self) -> None:
        """Raise UserError where the file has been written to since it was opened."""
        if self._look() != self._state:
            raise UserError(f"{self.path} was changed while it was in use, so its numbers cannot be trusted; run again")

    def refuse_replaced(self) -> None:
        """Raise UserError where another file stands at the path."""
        if not os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
            raise UserError(f"{self.path} was replaced while it was read; run again")

    def read_into(self, buffer: memoryview, place: int) -> None:
        """Fill a buffer of bytes with those of the file from `place` on."""
        while len(buffer):
            count = os.preadv(self._descriptor, [buffer[:MOST_READ]], place)
            if count == 0:
                self.refuse_changed()
                raise UserError(f"{self.path} ends before its arrays do: it is damaged")
            buffer, place = buffer[count:], place + count


def read_plain(path: Path | str, what: str = "") -> bytes:
    """Return the content of a regular file; raises as `open_plain` does."""
    with open_plain(path, what) as file:
        return file.read()
