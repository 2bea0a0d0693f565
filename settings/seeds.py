"""Several seeds in one command: `--seeds 0 1 2` stands for as many commands with `--seed`.

It is no setting: a run's record and its folder are those of its own command alone.
"""

import sys
from collections.abc import Sequence
from typing import Any

from settings.command_line import make_parser, report_idle
from settings.resolve import Command, resolve
from utils.errors import UserError

SEEDS = "seeds"
SEED_IN_PATH = "{seed}"  # what --pretrained_pth can have in the place of each seed


def parse_commands(script: str, description: str, argv: Sequence[str] | None = None) -> list[Command]:
    """Parse a command line into the commands of its `--seeds`, in their order, or into the one that it is.

    Each has the arguments that it would have alone. Raises UserError for what no command line can be.
    """
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    given = vars(make_parser(script, description, seeds=True).parse_args(arguments))
    seeds = given.pop(SEEDS, None)
    if seeds is None:
        commands = [resolve(script, given, arguments)]
    else:
        refuse_seeds(seeds, given)
        commands = [resolve(script, *of_one_seed(seed, given, arguments)) for seed in seeds]
    report_idle(script, given, commands[0])
    return commands


def refuse_seeds(seeds: Sequence[int], given: dict[str, Any]) -> None:
    """Raise UserError for seeds that cannot stand beside one another, or beside the other flags given."""
    if "seed" in given:
        raise UserError("--seeds names all seeds; leave --seed out")
    twice = [seed for i, seed in enumerate(seeds) if seed in seeds[:i]]
    if twice:
        raise UserError(f"--seeds names {twice[0]} twice")


def of_one_seed(seed: int, given: dict[str, Any], arguments: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the flags given and the arguments that the command of one seed has alone."""
    given, words = {**given, "seed": seed}, list(arguments)
    start = next(i for i, word in enumerate(words) if word.split("=")[0] == f"--{SEEDS}")
    end = start + 1
    while "=" not in words[start] and end < len(words) and not words[end].startswith("--"):
        end += 1
    words[start:end] = ["--seed", str(seed)]
    if SEED_IN_PATH in (path := given.get("pretrained_pth", "")):
        given["pretrained_pth"] = path.replace(SEED_IN_PATH, str(seed))
        words = [word.replace(path, given["pretrained_pth"]) for word in words]
    return given, tuple(words)
