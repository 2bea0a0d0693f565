"""Several stage 1s in one process, on a GPU at once: each has a thread, a stream and a CUDA graph of its own.

    python -m benchmarks.jobs.at_once --imb_ratio 10 + --imb_ratio 50 + --imb_ratio 100 --seed 1

`+` stands between the flags of one main_stage1.py and of the next. Each run has its own folder, and a line begins with
the name of the run that it is about. That a run is what it is alone no GPU has shown yet (`docs/runs.md`), and nothing
in its folder says that others were beside it. A run that fails stops no other. Ctrl-C ends all, which save
what they have. On a CPU they follow one another.
"""

import sys
from collections.abc import Sequence

from benchmarks.command import make_own_parser
from runs.run_names import run_path
from settings.command_line import parse_command
from settings.fields import STAGE1
from stages.commands.several_runs import RunBeside, run_all
from utils.command import EPOCHS_ARE_SAVED, NO_EPOCH_IS_SAVED, run_command
from utils.errors import UserError

BETWEEN = "+"
USAGE = f"[flags of main_stage1.py] [{BETWEEN} flags of main_stage1.py] ..."


def split_words(words: Sequence[str]) -> list[list[str]]:
    """Return the flags of each run."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == BETWEEN:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def make_runs(words: Sequence[str]) -> list[RunBeside]:
    """Return the runs of a command line; a UserError for flags that cannot be, and for a run that is named twice."""
    commands = [parse_command(STAGE1, __doc__, part) for part in split_words(words)]
    folders = [run_path(command) for command in commands]
    twice = [folder for i, folder in enumerate(folders) if folder in folders[:i]]
    if twice:
        raise UserError(f"two of the runs are {twice[0]}: leave one out, or give it other flags")
    if len({command.settings.out for command in commands}) == 1:  # which then says nothing
        folders = [folder.relative_to(commands[0].settings.out) for folder in folders]
    return [RunBeside(command, folder.as_posix()) for command, folder in zip(commands, folders, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    make_own_parser("jobs.at_once", __doc__, results=False, words=USAGE).parse_known_args(words)  # for --help
    run_all(make_runs(words), "run")


if __name__ == "__main__":
    run_command(main, EPOCHS_ARE_SAVED, NO_EPOCH_IS_SAVED)
