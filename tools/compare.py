"""Finished runs side by side: a table on the screen, one CSV row a run, a Markdown table, a figure.

    python -m tools.compare RUN_FOLDER [RUN_FOLDER ...] [--reference RUN_FOLDER] [--csv FILE] [--markdown FILE]
        [--figure FILE]

Every number comes from the runs' own metrics.json and config.json. RESULTS.md is made of such tables. The headline of
each run has its interval, and its difference to that of the reference, the first run, a paired test.
"""

from collections.abc import Sequence
from pathlib import Path

from evaluation.places import check_figure, refuse_unfinished
from utils.arguments import CommandParser
from utils.command import run_command
from utils.files import check_file


def main(argv: Sequence[str] | None = None) -> None:
    """Put the runs that a command line names side by side."""
    usage = "python -m tools.compare RUN_FOLDER ... [--reference RUN_FOLDER] [--csv F] [--markdown F] [--figure F]"
    parser = CommandParser("python -m tools.compare", __doc__, f"usage: {usage}", usage=usage)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folders of finished runs")
    reference = "the run that the others are compared with, one of them [the first]"
    parser.add_argument("--reference", type=Path, metavar="RUN_FOLDER", help=reference)
    for flag, what in (
        ("csv", "a row a run"),
        ("markdown", "the table"),
        ("figure", "a picture, as .png, .pdf or .svg,"),
    ):
        parser.add_argument(f"--{flag}", type=Path, metavar="FILE", help=f"write {what} to this file")
    arguments = parser.parse_args(argv)
    for folder in [*arguments.runs, *filter(None, [arguments.reference])]:
        refuse_unfinished(folder)
    for flag in ("csv", "markdown"):
        if getattr(arguments, flag) is not None:
            check_file(f"--{flag}", getattr(arguments, flag))
    if arguments.figure is not None:
        check_figure("--figure", arguments.figure)
    from tools.compared_runs import compare_runs  # PyTorch, which help texts and refusals do without

    compare_runs(arguments)


if __name__ == "__main__":
    run_command(main)
