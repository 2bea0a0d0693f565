"""Where finished runs lie, where a figure can go and in which format: known before anything large is imported."""

import os
from pathlib import Path

from utils.errors import UserError
from utils.files import check_file

FORMATS = ("png", "pdf", "svg")  # ends of names, and what matplotlib writes under them


def format_of(path: Path) -> str:
    """Return the format that the end of a figure's name says, in any case; a UserError lists those that there are."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        known = ", ".join(f".{known}" for known in FORMATS)
        raise UserError(f"{path} does not say which format the figure has: its name must end in {known}")
    return ending


def check_figure(flag: str, path: Path) -> None:
    """Raise UserError where no figure can be written to the path that a flag names, before one is drawn."""
    check_file(flag, path)
    try:
        format_of(path)
    except UserError as error:
        raise UserError(f"{flag} {error}") from error


def refuse_unfinished(folder: Path) -> None:
    """Raise UserError where a folder is none of a finished run; it says what is missing."""
    if not os.path.isdir(folder):  # unlike pathlib, it has no exceptions for names that cannot be
        raise UserError(f"{folder} is {'a file' if os.path.exists(folder) else 'not there'}; name the folder of a run")
    if not (folder / "metrics.json").is_file():
        advice = "; finish it with --resume" if (folder / "config.json").is_file() else ""
        raise UserError(f"{folder} is not a finished run (no metrics.json){advice}")
