"""Files that are whole or absent, their hashes, and folders that one process at a time writes into.

Locks are those of POSIX (`fcntl.lockf`). They belong to a process: one that is killed leaves none behind, not even to
worker processes that it forked and that live a little longer; its own locks it may take again; network file systems
know them. Where there are none, everything goes on without, and says so.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import re
import secrets
import sys
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any, cast

from utils.errors import UserError
from utils.outside import open_plain, read_plain
from utils.text import shown, tell

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

# A link in the place of a lock or of a temporary file would lead elsewhere.
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
LONGEST_NAME = 230  # bytes of a file's name, of which a temporary one beside it needs some more
LONGEST_FOLDER = 255  # bytes of a folder's name, as file systems have it
LOCK = ".lock"  # the file by which a folder is locked
TEMPORARY = re.compile(r"\.(.+)\.\d+(?:-[0-9a-f]+)?\.tmp")


class Sink(io.RawIOBase):
    """A file to write to that remembers why it could not be: libraries replace that by words of their own.

    It is no file of the system to numpy and others, which then write through it and not around it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.failure = ""  # in words: the error itself would hold the frames that hold this

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error.strerror or str(error)
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return self.file.seek(offset, whence)  # which writes what is buffered
        except OSError as error:
            self.failure = error.strerror or str(error)
            raise

    def tell(self) -> int:
        return self.file.tell()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old file or the new one.

    A full disk or a read-only folder becomes a `UserError`; what stood at `path` before is still there then. What a
    killed writer of the same file has left is removed. Of one process, one thread at a time may write a file.
    """
    if not path.name:
        raise UserError(f"cannot write {path}: it is a folder")
    remove_leftovers(path.parent, [path.name])
    # Processes in two containers that share the folder can have one number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    unchanged = "; the file that was there before is unchanged" if os.path.exists(path) else ""
    sink: Sink | None = None
    try:
        with open(open_locked(temporary)[0], "wb") as file:
            sink = Sink(file)
            write(cast(IO[bytes], sink))
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # under the lock, or it could be taken for a leftover
                os.replace(temporary, path)
        if fcntl is None:  # Windows renames no open file
            os.replace(temporary, path)
    except Exception as error:
        reason = sink.failure if sink is not None else ""
        if isinstance(error, OSError):
            reason = reason or error.strerror or str(error)
        if not reason:
            raise
        raise UserError(f"cannot write {path}: {reason}{unchanged}") from error
    finally:
        with contextlib.suppress(OSError):  # gone already, or never made
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically. NaN and infinity are not JSON and raise ValueError: use None."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object; a `UserError` names the file when it is missing or is none."""
    try:
        content = json.loads(read_plain(path).decode("utf-8"), parse_constant=refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a JSON object is expected")
    return content


def refuse_constant(name: str) -> None:
    """Raise ValueError for NaN and Infinity, which Python's reader takes for numbers and JSON does not have."""
    raise ValueError(f"{name} is no number")


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they are there; a `UserError` says why that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror or error}") from error


def check_file(what: str, path: Path | str, *, overwrite: bool = True, makes_folder: bool = False) -> None:
    """Raise UserError where a file cannot be written, before anything is computed for it; `what` is the flag that names
    it. Its folder must be there, unless the command `makes_folder` where it is missing.
    """
    said, place = f"{what} {shown(str(path))}", Path(path)
    if os.path.isdir(path):
        raise UserError(f"{said}: it is a folder; name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{said} is no file; name one")
    if not overwrite and os.path.lexists(path):
        raise UserError(f"{said} is there already; name another file, or replace it with --overwrite")
    if len(os.fsencode(place.name)) > LONGEST_NAME or "\0" in place.name:
        raise UserError(f"{said}: cannot write a file of that name; use a shorter one")
    if makes_folder:
        check_folder(what, place.parent)
    elif not place.name or not os.path.isdir(place.parent):
        raise UserError(f"{said}: there is no folder {shown(str(place.parent))}")
    if os.path.isdir(place.parent) and not os.access(place.parent, os.W_OK):
        raise UserError(f"{said}: cannot write into the folder {shown(str(place.parent))}")


def check_folder(what: str, path: Path | str) -> None:
    """Raise UserError where a folder can neither be there nor be made, before anything is computed for it; `what` is
    the flag that names it. One that is there is taken as it is."""
    said, above = f"{what} {shown(str(path))}: cannot make the folder", Path(path).absolute()
    while not os.path.lexists(above) and above != above.parent:
        if len(os.fsencode(above.name)) > LONGEST_FOLDER or "\0" in above.name:
            raise UserError(f"{said}: its name cannot be; use a shorter one")
        above = above.parent
    if not os.path.isdir(above):
        raise UserError(f"{said}: {shown(str(above))} is no folder; name another place")
    if above != Path(path).absolute() and not os.access(above, os.W_OK):
        raise UserError(f"{said}: {shown(str(above))} cannot be written into; name another place")


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with open_plain(path) as file:
        return sha256_of(file)


def sha256_of(file: IO[bytes]) -> str:
    """Return the hexadecimal sha256 of an opened file's content, and go back to its start."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return digest


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what writers of the files `names` who were killed have left in a folder, as far as that is possible.

    Temporary files of living writers stay: these hold their locks.
    """
    with contextlib.suppress(OSError):  # no folder
        for path in folder.iterdir():
            found = TEMPORARY.fullmatch(path.name)
            if found and found[1] in names and path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError), open(path, "r+b") as file:
                    if take_lock(file.fileno()):
                        path.unlink()


def take_lock(file: int) -> bool | None:
    """Lock an open file, by its descriptor, for this process: True where that is done, False where another process has
    it, None where files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either may be said of another's lock
        return False
    except OSError:
        return None
    return True


def open_locked(path: Path) -> tuple[int, bool | None]:
    """Open or make a file to read and write, and lock it; return its descriptor and what `take_lock` says."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        taken = take_lock(file)
        if not taken or stands_at(file, path):
            return file, taken
        os.close(file)  # another process removed it before it was locked


def stands_at(file: int, path: Path) -> bool:
    """Tell whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


class FolderLock:
    """The sole right to write into a folder; it ends with `release`, this object or the process."""

    def __init__(self, path: Path, file: int) -> None:
        owner = f"process {os.getpid()} on {platform.node() or 'this machine'}"
        words = f"{owner}, {secrets.token_hex(8)}\n".encode()
        with contextlib.suppress(OSError):  # a full disk has no room for the words, which are for people
            os.truncate(file, 0)
            os.write(file, words)
        self.release = weakref.finalize(self, _unlock, path, file, words, os.getpid())


def _unlock(path: Path, file: int, words: bytes, owner: int) -> None:
    """Give a folder free, unless that is another's to do.

    A forked child has this object too. And where its process has locked the folder again, closing this file would end
    the later lock, by the rules of POSIX: it stays open.
    """
    if os.getpid() != owner:
        return
    with contextlib.suppress(OSError):
        if os.pread(file, 1000, 0) in (words, b""):
            if stands_at(file, path):
                path.unlink()  # before the lock ends: who opens it meanwhile finds out (`open_locked`)
            os.close(file)


def lock_folder(folder: Path) -> FolderLock | None:
    """Return the lock of a folder that is there, None, with a line, on a file system that has no locks.

    Raises UserError where another process has it, and where its file cannot be opened: it may be that of another user,
    whose run nobody else may enter.
    """
    path = folder / LOCK
    try:
        file, taken = open_locked(path)
    except OSError as error:
        if error.errno == errno.EROFS:  # nobody can write there from here; the first file that is tried says so
            return None
        whose = f"; {path.name} is another user's, who may be at work there" if os.path.exists(path) else ""
        raise UserError(f"cannot lock {folder}: {error.strerror or error}{whose}; name another place with --out") from (
            error
        )
    if taken:
        return FolderLock(path, file)
    with open(file, "rb") as opened:
        if taken is None:
            with contextlib.suppress(OSError):
                path.unlink()
            tell(f"warning: {folder} cannot be locked here: see that nothing else writes there", file=sys.stderr)
            return None
        owner = opened.read(1000).decode(errors="replace").split(",")[0] or "another process"
    raise UserError(f"{owner} is writing to {folder}; wait for its end, or name another place with --out")
