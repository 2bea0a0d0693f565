"""Reproduce a table of the papers: train what is missing, reuse what is there, print ours beside the published figures.

    python reproduce.py unified --select
    python reproduce.py cifar --seeds 0 1 2
    python reproduce.py delta --pretrained_pth RUN_FOLDER_OR_FILE

Tables: unified (every re-training method on one feature), cifar, delta (LOS over its smoothing), path (LOS over its
steps), proximal (LOS with a minimum of its own), priors (test sets of other class shares), sets (prediction sets),
gala, ablation, stress (imbalance factors 200 and 500), imagenet_lt, inaturalist2018, places_lt. Each writes a CSV, a
Markdown table and figures into `results/`. Stopped, it goes on where it was when it is started again. The stage 1 of
a table is the run that the flags of main_stage1.py describe, trained if it is missing, or the one that
--pretrained_pth names, or that of features that any model made: --features.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import main_stage1
import main_stage2
from methods.declared import names_of
from methods.recipes import find_recipe
from settings.checks import check_value
from settings.command_line import make_parser
from settings.declare import STAGE1, Facet
from settings.fields import FLAGS, with_facet
from settings.places import READ, check_readable
from utils.arguments import CommandParser, wrapped
from utils.command import run_command
from utils.distributed import launch_of
from utils.errors import UserError
from utils.files import check_folder, make_folder

INTERRUPTED = ": what was finished is kept; the same command goes on from there"


ADVICE = "usage: python reproduce.py TABLE [--help]"
CLOSING = (
    "All other flags are those of the two stages, which `python main_stage1.py --help-all` lists; the table sets some "
    "of them itself, and says so."
)


def refuse_usage(message: str) -> NoReturn:
    """Raise UserError for a command line that cannot be."""
    raise UserError(f"{message}; {ADVICE}")


def make_table_parser() -> argparse.ArgumentParser:
    """Make the parser of this script's own flags; all others are those of the two stages."""
    usage = "python reproduce.py TABLE [flags]"
    parser = CommandParser("reproduce.py", __doc__, ADVICE, usage=usage, epilog=wrapped(CLOSING))
    parser.add_argument("table", help=", ".join(names_of("tables", "TABLES")))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="seeds; each has its own stage 1 [0]"
    )
    parser.add_argument("--imb_ratio", type=float, nargs="+", metavar="X", help="imbalance factors [the table's]")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="methods of main_stage2.py [the table's]")
    select = "unified: choose each method's numbers on held-out images, on three stage 1s trained without them"
    parser.add_argument("--select", action="store_true", help=select)
    parser.add_argument(
        "--holdout_pth", nargs="+", default=[], metavar="PATH", help="those stage 1s: run folders [trained if missing]"
    )
    views = ", ".join(names_of("tables.proximal", "VIEWS"))
    parser.add_argument("--view", nargs="+", default=[], metavar="NAME", help=f"proximal: {views} [lambda]")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="where to write [results]"
    )
    return parser


def refuse_idle(own: argparse.Namespace, given: dict[str, Any]) -> None:
    """Raise UserError for flags that the table sets itself or has no use for: none is ignored silently."""
    from tables import TABLES
    from tables.request import STAGE1_ONLY

    table = TABLES[own.table]
    sets = sorted({*with_facet(Facet.ROW), *table.sets})
    taken = [f"--{name}" for name in sets if name in given]
    if taken:
        refuse_usage(f"{', '.join(taken)} cannot be given here: the table {own.table} sets them")
    optional = ("imb_ratio", "methods", "select", "holdout_pth", "view")
    idle = [f"--{name}" for name in optional if getattr(own, name) and name not in table.uses]
    if idle:
        refuse_usage(f"{', '.join(idle)} has no use in the table {own.table}")
    for source in [name for name in ("pretrained_pth", "features") if name in given]:
        if source not in table.uses:
            refuse_usage(f"--{source} has no use in the table {own.table}, which needs several stage 1s")
        stage1 = [name for name, flag in FLAGS.items() if flag.read_by == (STAGE1,)]
        idle = [f"--{name}" for name in (*stage1, *STAGE1_ONLY) if name in given]
        if idle:
            refuse_usage(f"{', '.join(idle)} would be stage 1's, and --{source} names one")
    if "features" in given:
        idle = [f"--{name}" for name in ("imb_ratio", "holdout_pth") if getattr(own, name)]
        if idle:
            refuse_usage(
                f"{', '.join(idle)}: no use with --features, a file that has its own classes and held-out rows"
            )
    if own.holdout_pth and not own.select:
        refuse_usage("--holdout_pth names the stage 1s that --select chooses on; give both")
    if any(not 0 <= seed < 2**32 for seed in own.seeds):
        refuse_usage("--seeds must be between 0 and 4294967295")


def once(values: list[Any] | None) -> list[Any] | None:
    """Return what was asked for without repetitions, which would look like repeated measurements."""
    return None if values is None else list(dict.fromkeys(values))


def main(argv: Sequence[str] | None = None) -> None:
    """Make the table that a command line names."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if launch_of().count > 1:
        raise UserError("reproduce.py is one process that runs the stages: start it without torchrun")
    own, rest = make_table_parser().parse_known_args(arguments)
    known = names_of("tables", "TABLES")
    if own.table not in known:
        refuse_usage(f"unknown table '{own.table}'; known: {', '.join(known)}")
    given = vars(make_parser(STAGE1, "").parse_args(rest))
    for view in own.view:
        if view not in names_of("tables.proximal", "VIEWS"):
            refuse_usage(f"unknown view '{view}'; known: {', '.join(names_of('tables.proximal', 'VIEWS'))}")
    if own.select and own.table == "proximal" and own.view != ["choice"]:
        refuse_usage("--select belongs to the view choice: --view choice --select")
    for method in own.methods or []:
        find_recipe(method)
    for ratio in own.imb_ratio or []:
        check_value("imb_ratio", ratio)
    for name, value in given.items():
        if value is not None:
            check_value(name, value)
    for name in READ:
        if name in given:
            check_readable(name, given[name])
    for path in own.holdout_pth if "features" not in given else ():  # with which they are refused
        check_readable("pretrained_pth", path)
    check_folder("--results", own.results)
    from tables import TABLES  # PyTorch, which help texts and refusals of what any table has do without
    from tables.request import Request

    refuse_idle(own, given)
    make_folder(own.results)
    request = Request(
        table=own.table,
        seeds=once(own.seeds) or [0],
        imb_ratios=once(own.imb_ratio),
        methods=once(own.methods),
        select=own.select,
        holdout_pth=own.holdout_pth,
        views=once(own.view) or [],
        results=own.results,
        given=given,
        command=shlex.join(["python", "reproduce.py", *arguments]),
        train_stage1=main_stage1.main,
        train_stage2=main_stage2.main,
    )
    TABLES[own.table].make(request)


if __name__ == "__main__":
    run_command(main, INTERRUPTED)
