"""The command lines of all commands: refusals of one line, and help that shows its examples as they are written."""

import argparse
import shutil
import textwrap
from typing import Any, NoReturn

from utils.errors import UserError

WIDTH = 100  # columns of a help text, where the terminal has as many
FLAG_WIDTH = 28  # columns of them for a flag and its value


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of at most 100 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=FLAG_WIDTH, width=help_width())


class CommandParser(argparse.ArgumentParser):
    """A parser whose help is `description`, a docstring, and whose errors are a `UserError` that ends in `advice`."""

    def __init__(self, prog: str, description: str | None, advice: str = "--help lists the flags", **more: Any) -> None:
        more = {"formatter_class": HelpFormatter, "allow_abbrev": False, **more}
        super().__init__(prog=prog, description=wrapped(description or ""), **more)
        self.advice = advice

    def error(self, message: str) -> NoReturn:
        """Raise UserError: one line, like every other user error."""
        raise UserError(f"{message}; {self.advice}")


def help_width() -> int:
    """Return the columns that a help text has."""
    return min(WIDTH, shutil.get_terminal_size().columns) - 2


def first_and_examples(text: str) -> str:
    """Return the first paragraph of a docstring and its examples, the lines that are indented."""
    examples = [line for line in text.splitlines() if line.startswith("    ")]
    return "\n\n".join([text.strip().split("\n\n")[0], *(["\n".join(examples)] if examples else [])])


def wrapped(text: str) -> str:
    """Return a docstring with its paragraphs filled to the width of a help text.

    Indented ones, which are examples, and lists stay as they are.
    """
    paragraphs = text.strip("\n").split("\n\n")
    width = help_width()
    return "\n\n".join(
        part if part.startswith((" ", "- ", "1. ")) else textwrap.fill(part, width, break_on_hyphens=False)
        for part in paragraphs
    )
