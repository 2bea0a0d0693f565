"""Runs that are killed at random moments and resumed: what is lost, what is damaged, what comes out.

    python -m benchmarks.robustness.kill_and_resume             # 100 kills, below 25 minutes on two cores
    python -m benchmarks.robustness.kill_and_resume --kills 5   # a rehearsal

Children are real commands on tiny data: both stages, stage 2 on image files with its feature files, a table of
`reproduce.py`, stage 1 by two processes, stage 1 on image files whose hashing takes seconds, features and weights that
are written in shards. SIGKILL meets them at a moment drawn uniformly over their duration, or while a certain kind of
file is being written (its temporary file is there). Of two processes one is killed. The same command is then resumed,
killed again, up to four times, and at last ends; what two processes began goes on with one, two or three. Its weights,
metrics, logs, features and shards must be those of a run that nobody disturbed, bit for bit, clocks aside; where the
number of processes changed, bit for bit until then, with all epochs and nearly the same loss at the end. After each
kill every file must be readable and at most one epoch lost, counted from the last line that was printed. Then follow
signals that ask for an end, a second run on a folder in use, a full disk, a read-only folder, and the memory of 200
epochs. Writes `results/kill_and_resume.csv` and `.md`. Exit status 1 if anything was not as it should be. `make
kill-and-resume` runs it.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from benchmarks.robustness.kills.commands import COMMANDS, plan
from benchmarks.robustness.kills.faults import disks, in_namespace, memory_rows, second_runs
from benchmarks.robustness.kills.kills import KillExperiment
from benchmarks.robustness.kills.report import case_table, is_good, kill_table, memory_table, signal_table
from utils.command import run_command
from utils.files import make_folder, write_json

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags; a UserError where they cannot be."""
    parser = make_own_parser("robustness.kill_and_resume", __doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many times SIGKILL is sent, at least [100]")
    parser.add_argument("--jobs", type=int, default=2, help="how many commands are disturbed at once [2]")
    parser.add_argument("--signals", type=int, default=6, help="how many SIGINT, SIGTERM and SIGHUP together [6]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    parser.add_argument("--disks", type=Path, help=argparse.SUPPRESS)  # how it calls itself, in a namespace
    own = parser.parse_args(argv)
    if own.kills < 1 or own.jobs < 1 or own.signals < 0:
        parser.error("--kills and --jobs must be at least 1 and --signals 0 or more")
    return own


def kill(folder: Path, own: argparse.Namespace) -> list[dict[str, Any]]:
    """Prepare every command in `folder`, kill and signal them, `own.jobs` at once; return a row a kill or signal."""
    experiment = KillExperiment(folder)
    with ThreadPoolExecutor(own.jobs) as pool:
        for command, _ in zip(COMMANDS, pool.map(experiment.prepare, COMMANDS), strict=True):
            print(f"{command.name}: {experiment.durations[command.name]:.1f} s undisturbed", flush=True)
        chains = plan(own.kills, random.Random(own.seed))

        def chain(number: int) -> None:
            left = own.kills - len(experiment.rows)  # some more come out where several are under way
            command, moments = chains[number]
            if left > 0:
                experiment.chain(command, moments[:left], random.Random(f"{own.seed} {number}"))
                print(f"{len(experiment.rows)} of {own.kills} kills", flush=True)

        list(pool.map(chain, range(len(chains))))
        alone = [command for command in COMMANDS if command.processes == 1]  # torchrun has words of its own for them

        def ask(number: int) -> None:
            command, name = alone[number % len(alone)], SIGNALS[number % len(SIGNALS)]
            experiment.chain(command, [name], random.Random(f"{own.seed} signal {number}"))

        list(pool.map(ask, range(own.signals)))
    return [{**row, "good": is_good(row)} for row in experiment.rows]


def write(
    own: argparse.Namespace,
    made: dict[str, Any],
    rows: pd.DataFrame,
    cases: list[dict[str, Any]],
    memory: list[dict[str, Any]],
    seconds: float,
) -> pd.DataFrame:
    """Write the record of kills and signals (`rows`), cases and memory, and return all rows together."""
    parts = {"signal": rows, "case": pd.DataFrame(cases), "memory": pd.DataFrame(memory)}
    together = pd.concat([part.assign(kind=kind) for kind, part in parts.items()])
    for column, value in made.items():
        together[column] = value
    killed = rows["signal"] == "SIGKILL"
    notes = (
        f"{killed.sum()} kills with SIGKILL at random moments, seed {own.seed}, of "
        f"{', '.join(command.name for command in COMMANDS)}; {seconds:.0f} s in all. Lost epochs are counted from the "
        f"last line that was printed. Made by `{made['command']}`."
    )
    more = {"By command": kill_table(rows[killed], "work")}
    if not killed.all():
        title = "Signals that ask for an end (a negative status: the signal came while Python was importing)"
        more[title] = signal_table(rows[~killed])
    more["A folder in use, full disks, read-only disks"] = case_table(cases)
    more["Resident memory"] = memory_table(memory)
    write_record(own.results, "kill_and_resume", together, kill_table(rows[killed]), notes, more)
    return together


def main(argv: Sequence[str] | None = None) -> None:
    own = parse(argv)
    if own.disks is not None:
        write_json(own.results, {"rows": disks(own.disks)})
        return
    began = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        rows = kill(Path(scratch), own)
        make_folder(Path(scratch) / "memory")
        memory = memory_rows(Path(scratch) / "memory")
        cases = second_runs(Path(scratch) / "two") + in_namespace(Path(scratch) / "namespace")
    made = provenance("robustness.kill_and_resume", argv, torch.device("cpu"))
    together = write(own, made, pd.DataFrame(rows), cases, memory, time.monotonic() - began)
    bad = together[~together["good"].astype(bool)]
    if len(bad):
        print(bad.dropna(axis=1, how="all").to_string(), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
