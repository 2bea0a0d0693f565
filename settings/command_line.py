"""From the command line of a script to its settings, and the help that it prints.

A value comes from the command line, else from the protocol, else from the data set's preset, else from the default
of `Settings`. Method-dependent values of stage 2 left at None come from the method's `Recipe`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from datasets.augment.normalisation import constants_text
from methods.declared import loss_parameters
from settings.declare import STAGE1, STAGE2, Facet, Flag, Group
from settings.fields import FLAGS, STAGE1_LOSSES
from settings.resolve import Command, report_unused, resolve
from utils.arguments import CommandParser, first_and_examples
from utils.errors import UserError
from utils.parameters import HYPERPARAMETERS

CLOSING = "Flags of the other scripts are accepted too, and named as not used; --help-all lists them."
SHOWN_CHOICES = 24  # columns that a flag may take with its choices in place of a value; others follow the help text


def seed_value(text: str) -> int | None:
    """Parse `--seed`: an integer of 0 or more, or None."""
    return None if text == "None" else int(text)


def listed_flags(script: str) -> set[str]:
    """Return the flags that the help of a script lists: those of `used_flags` but for what few have a use for there."""
    return {
        name
        for name in used_flags(script)
        if (script == STAGE1 or Facet.RARE not in FLAGS[name].facets)
        and (name not in HYPERPARAMETERS or HYPERPARAMETERS[name].listed)
    }


def used_flags(script: str) -> set[str]:
    """Return the flags that a script reads and does not always refuse."""
    read = {name for name, flag in FLAGS.items() if script in flag.read_by}
    if script != STAGE1:
        return read
    return read - set(HYPERPARAMETERS) | {name for loss in STAGE1_LOSSES for name in loss_parameters(loss)}


def group_of(flag: Flag, script: str) -> Group:
    """Return the group that the help of a script lists a flag in: steps of both stages are those of its own."""
    return Group.STAGE2 if script == STAGE2 and flag.group is Group.STAGE1 else flag.group


def flag_help(flag: Flag) -> tuple[str | None, str]:
    """Return how the value of a flag is shown, None for a switch, and its help text with choices and default."""
    if flag.kind is bool:
        return None, flag.help
    default = "" if flag.default is None else f" [{flag.default}]"
    if flag.choices is None:
        return flag.metavar, flag.help + default
    braces = "{" + ",".join(flag.choices) + "}"
    if len(f"--{flag.name} {braces}") <= SHOWN_CHOICES:
        return braces, flag.help + default
    names = "" if all(choice in flag.help for choice in flag.choices) else f": {', '.join(flag.choices)}"
    return flag.metavar, flag.help + names + default


def make_parser(
    script: str, description: str, *, everything: bool = False, seeds: bool = False
) -> argparse.ArgumentParser:
    """Make the parser of a script. All three accept every flag; one that a script does not read is reported.

    Its help lists the flags that the script reads or, asked for `everything`, the others too. With `seeds` it takes
    `--seeds` (`settings.seeds`).
    """
    usage = f"python {script}.py [flags]"
    parser = CommandParser(
        f"{script}.py", first_and_examples(description or ""), usage=usage, epilog=CLOSING, add_help=False
    )
    groups = {group: parser.add_argument_group(group.value) for group in Group}
    others = parser.add_argument_group("accepted, not used here") if everything else parser
    shown, used = listed_flags(script), used_flags(script)
    for flag in sorted(FLAGS.values(), key=lambda flag: Facet.HYPERPARAMETER in flag.facets):
        listed = flag.name in shown
        metavar, text = flag_help(flag)
        arguments: dict[str, Any] = {"dest": flag.name, "default": argparse.SUPPRESS}
        arguments["help"] = text if listed or everything else argparse.SUPPRESS
        if metavar is None:
            arguments["action"] = "store_true"
        else:
            arguments |= {"type": seed_value if flag.name == "seed" else flag.kind, "metavar": metavar}
        if Facet.NUMBERS in flag.facets:
            arguments |= {"type": str, "nargs": "+", "action": Numbers}
        group = groups[group_of(flag, script)] if listed or (everything and flag.name in used) else others
        group.add_argument(f"--{flag.name}", **arguments)
        if flag.alias is not None:
            arguments["help"] = f"the same as --{flag.name}" if everything else argparse.SUPPRESS
            group.add_argument(flag.alias, **arguments)
    if seeds:
        text = "several seeds in one command, each as if alone, one after another"
        shown_text = text if everything or script == STAGE1 else argparse.SUPPRESS  # as of flags that are RARE
        arguments = {"nargs": "+", "type": int, "metavar": "N", "default": argparse.SUPPRESS, "help": shown_text}
        groups[Group.RUN].add_argument("--seeds", **arguments)
    groups[Group.RUN].add_argument("-h", "--help", action="help", help="print this and exit")
    groups[Group.RUN].add_argument(
        "--help-all", action=HelpAll, script=script, seeds=seeds, help="the same with all other flags"
    )
    return parser


class Numbers(argparse.Action):
    """The action of a flag that takes numbers, with commas or spaces between, or a name for them."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: object) -> None:
        try:
            setattr(namespace, self.dest, constants_text(values))
        except UserError as error:
            raise UserError(f"--{self.dest}: {error}") from error


class HelpAll(argparse.Action):
    """`--help-all`: print the help with every flag, and exit."""

    def __init__(self, option_strings: Sequence[str], dest: str, script: str, seeds: bool, **more: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **more)
        self.script, self.seeds = script, seeds

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> None:
        make_parser(self.script, parser.description or "", everything=True, seeds=self.seeds).print_help()
        parser.exit()


def parse_command(script: str, description: str, argv: Sequence[str] | None = None, *, quiet: bool = False) -> Command:
    """Parse a command line, resolve every setting, check its domain, report flags that have no effect.

    A `quiet` one is a row of a table: of flags that all rows share, some have no effect on one of them.
    """
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    given = vars(make_parser(script, description).parse_args(arguments))
    command = resolve(script, given, arguments)
    if not quiet:
        report_idle(script, given, command)
    return command


def report_idle(script: str, given: dict[str, Any], command: Command) -> None:
    """Say which of the flags given a command does not use."""
    report_unused(script, [f"--{name}" for name in FLAGS if name in given and name not in command.given])
