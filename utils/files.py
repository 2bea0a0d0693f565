"""Files that are whole or absent, and their hashes. It imports `utils.errors` alone: every room may import it."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from utils.errors import UserError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old file or the new one.

    A full disk or a read-only folder becomes a `UserError`; what stood at `path` before is still there then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unchanged = "; the file that was there before is unchanged" if path.exists() else ""
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{unchanged}") from error
    finally:
        with contextlib.suppress(OSError):  # gone already, or never made
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically. NaN and infinity are not JSON and raise ValueError: use None."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object; a `UserError` names the file when it is missing or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a JSON object is expected")
    return content


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they are there; a `UserError` says why that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror or error}") from error


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
