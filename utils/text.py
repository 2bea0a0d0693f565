"""Text that may come from a stranger's file, made fit for a message of one line, a table or a file's name."""

import contextlib
import hashlib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TextIO

SHOWN = 200  # characters of a stranger's text in a message
# What stands before every line that is told; each thread has its own.
_LABEL: ContextVar[str] = ContextVar("label", default="")
LONGEST_MESSAGE = 2000  # characters of a message, whatever long flags and strangers' files put into it


def shown(text: str) -> str:
    """Return text that any terminal shows as it is, whatever bytes it came from, and is not too long for a line."""
    line = printable(text[: SHOWN + 1]).replace("\\x00", "\\0")
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def printable(text: str) -> str:
    """Return text as one line that any terminal and any file in UTF-8 can hold; most text stays as it is."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def one_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Return text as one line that any terminal shows as it is: what is not printable is escaped, the end cut off."""
    line = printable(" ".join(text.split())[:longest])
    return line if len(line) < longest else f"{line[: longest - 3]}..."


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Let every line that this thread tells within begin with `label`."""
    token = _LABEL.set(f"{label}: ")
    try:
        yield
    finally:
        _LABEL.reset(token)


def label() -> str:
    """Return what every line begins with that this thread tells, empty where nothing is asked for."""
    return _LABEL.get()


def tell(text: str = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print lines on standard output or on `file`; whatever could steer a terminal is escaped.

    Everything that commands print goes through here, since nearly all of it may have come from a stranger's file. On a
    terminal long lines are broken at words; in a pipe or a file each stays one line, as programs read them.
    """
    lines = [label() + line if line else line for line in map(printable, text.split("\n"))]
    out = sys.stdout if file is None else file
    if out is not None and out.isatty():
        lines = [part for line in lines for part in at_words(line, shutil.get_terminal_size().columns)]
    print("\n".join(lines), file=file, flush=flush)


def at_words(line: str, columns: int) -> list[str]:
    """Return a line in parts that fit a terminal, broken at spaces; lines of tables, and words, stay whole."""
    if len(line) <= columns or "  " in line.strip():
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, columns, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False)


def plain_name(text: str) -> str:
    """Return text as it can stand in a file's name anywhere."""
    return re.sub(r"[^0-9A-Za-z.-]+", "-", text).strip("-.") or "root"


def shortened(text: str, longest: int) -> str:
    """Return text as part of a file's name: as it is, or where it is longer 8 hexadecimal digits of its sha256."""
    return text if len(text) <= longest else hashlib.sha256(text.encode()).hexdigest()[:8]


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number of things in words: "1 image", "2 images"; `several` where it is not `one` with an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def utf8_text(text: str) -> str:
    """Return text that UTF-8 can hold: other bytes of a file's name as backslash sequences."""
    return text.encode("utf-8", "backslashreplace").decode()
