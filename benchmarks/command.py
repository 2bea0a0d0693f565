"""The command line that benchmarks share: flags of their own, and those of main_stage1.py."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from settings.command_line import make_parser, parse_command
from settings.fields import STAGE1
from settings.resolve import Command
from utils.arguments import CommandParser
from utils.files import check_folder

ROOT = Path(__file__).resolve().parent.parent  # of the repository, whose scripts are run as child processes
# Flags of main_stage1.py that no benchmark leaves to the user: it trains into a folder of its own.
NOT_TAKEN = ("out", "eval_every", "resume", "overwrite", "reuse")


def make_own_parser(
    name: str, description: str | None, quick: str | None = None, results: bool = True, words: str = "[flags]"
) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.<name>`, with --quick where `quick` says what it does, and --results.

    `description` is the module's docstring. `words` stand behind the command in the usage line. A wrong command line is
    a UserError.
    """
    command = f"python -m benchmarks.{name}"
    parser = CommandParser(command, description, f"{command} --help lists the flags", usage=f"{command} {words}")
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help=quick)
    if results:
        parser.add_argument("--results", type=results_folder, default=Path("results"), help="where to write [results]")
    return parser


def results_folder(text: str) -> Path:
    """Parse `--results`. Raises UserError for a folder that cannot be made, before anything is measured."""
    check_folder("--results", text)
    return Path(text)


class Benchmark:
    """The parser of a benchmark that takes flags of main_stage1.py too; `add` declares further flags of its own."""

    def __init__(self, name: str, description: str | None, quick: str) -> None:
        self.parser = make_own_parser(name, description, quick, words="[flags] [flags of main_stage1.py]")

    def add(self, *names: str, kind: Callable[[str], object] = int, **more: object) -> None:
        """Declare a flag, a whole number unless `kind` says otherwise."""
        self.parser.add_argument(*names, type=kind, **more)  # type: ignore[arg-type]

    def refuse_usage(self, message: str) -> NoReturn:
        """Raise the error of a command line that cannot be."""
        self.parser.error(message)

    def parse(
        self,
        argv: Sequence[str] | None,
        usual: Callable[[argparse.Namespace], Mapping[str, str]] = lambda own: {},
        taken: Sequence[str] = (),
    ) -> tuple[argparse.Namespace, Command]:
        """Return the benchmark's own flags and the command of main_stage1.py that the others describe.

        `usual` gives, from the own flags, those of main_stage1.py that stand in where they are not given; a flag
        that is `taken` by the benchmark is refused.
        """
        own, rest = self.parser.parse_known_args(argv)
        given = vars(make_parser(STAGE1, "").parse_args(rest))
        for name in (*NOT_TAKEN, *taken):
            if name in given:
                self.refuse_usage(f"--{name} is set here")
        for name, value in usual(own).items():
            rest = rest if name in given else [*rest, f"--{name}", value]
        return own, parse_command(STAGE1, "", rest)
