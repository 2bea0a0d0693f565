"""Every setting of the three scripts: one typed record, one parser made from it, presets, protocols.

A value comes from the command line, else from the protocol, else from the data set's preset, else from the default
below. Method-dependent values of stage 2 left at None come from the method's `Recipe`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from settings.fields import FIELDS
from settings.resolve import Command, report_unused, resolve
from utils.errors import UserError


def seed_value(text: str) -> int | None:
    """Parse `--seed`: an integer of 0 or more, or None."""
    return None if text == "None" else int(text)


def make_parser(script: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a script. All three accept every flag; one that a script does not read is reported."""
    parser = argparse.ArgumentParser(prog=f"{script}.py", description=description, allow_abbrev=False)
    parser.error = _refuse  # type: ignore[method-assign]  # one line, like every other user error
    groups = {
        used: parser.add_argument_group("settings" if used else "accepted, not used here") for used in (True, False)
    }
    for field in FIELDS.values():
        meta = field.metadata
        shown = "" if field.default is None or meta["kind"] is bool else f" [{field.default}]"
        arguments: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": meta["help"] + shown}
        if meta["kind"] is bool:
            arguments["action"] = "store_true"
        else:
            arguments["type"] = seed_value if field.name == "seed" else meta["kind"]
            arguments["metavar"] = (
                field.name.upper() if meta["choices"] is None else "{" + ",".join(meta["choices"]) + "}"
            )
        groups[script in meta["used_by"]].add_argument(f"--{field.name}", *meta["names"], **arguments)
    return parser


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; --help lists the flags")


def parse_command(script: str, description: str, argv: Sequence[str] | None = None) -> Command:
    """Parse a command line, resolve every setting, check its domain, report flags that have no effect."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    given = vars(make_parser(script, description).parse_args(arguments))
    command = resolve(script, given, arguments)
    report_unused(script, [f"--{name}" for name in FIELDS if name in given and name not in command.given])
    return command
