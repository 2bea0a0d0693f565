"""What a second method on one stage 1 costs, and a report after it, beside an earlier build of this project.

    git worktree add ../earlier REVISION
    python -m benchmarks.builds.second_method --base ../earlier
    python -m benchmarks.builds.second_method --base ../earlier --stage1 FILE --quick

In each of `--rounds`, in either build by turns and in a folder of its own, stage 2 re-trains a released stage 1 with
`--method los`, then with `lort`, and `evaluate.py` reports on the second run. CPU seconds of whole commands, imports
included; a step's ratio is the median over the rounds of the earlier build's seconds by this one's. Writes
`results/builds_second_method.csv` and `.md`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.builds.compare import Way, revision_of, seconds_of
from benchmarks.command import ROOT, make_own_parser
from benchmarks.record import provenance, write_record
from utils.command import run_command
from utils.errors import UserError

STAGE1 = Path("checkpoints/released/cifar100_expIF100_resnet18w24_seed0.safetensors")
TARGET = 8.0  # times less than the earlier build
FIRST, SECOND, REPORT = "first method", "second method", "evaluate.py after it"
SHARED = ("--device", "cpu", "--amp", "off", "--data_dir", str(ROOT / "data"))


def measure_round(stage1: Path, base: Path, earlier: bool) -> dict[str, float]:
    """Return the CPU seconds of each step in one build, in a new folder."""
    with tempfile.TemporaryDirectory() as out:
        seconds = {}
        for step, method in ((FIRST, "los"), (SECOND, "lort")):
            words = ("main_stage2.py", *SHARED, "--method", method, "--pretrained_pth", str(stage1), "--out", out)
            seconds[step] = seconds_of(Way(step, words, earlier), base)
        runs = list(Path(out).glob("*/seed0/stage2_lort*"))
        if len(runs) != 1:
            raise UserError(f"stage 2 of the {'earlier' if earlier else 'present'} build left no run on {stage1}")
        report = ("evaluate.py", *SHARED, "--pretrained_pth", str(runs[0]))
        seconds[REPORT] = seconds_of(Way(REPORT, report, earlier), base)
    return seconds


def rows_of(earlier: Sequence[dict[str, float]], now: Sequence[dict[str, float]]) -> list[dict[str, object]]:
    """Return a row a step from the seconds of the rounds in both builds."""
    rows: list[dict[str, object]] = []
    for step in now[0]:
        pairs = [(before[step], after[step]) for before, after in zip(earlier, now, strict=True)]
        ratios = [before / after for before, after in pairs]
        target = None if step == FIRST else TARGET
        rows.append(
            {
                "step": step,
                "earlier_cpu_seconds": statistics.median(before for before, _ in pairs),
                "now_cpu_seconds": statistics.median(after for _, after in pairs),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "target": target,
                "reached": None if target is None else statistics.median(ratios) >= target,
                "rounds": len(now),
            }
        )
    return rows


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this benchmark."""
    parser = make_own_parser("builds.second_method", __doc__, "one round: a rehearsal")
    parser.add_argument("--base", type=Path, required=True, metavar="FOLDER", help="checkout of the earlier build")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that both builds run [5]")
    parser.add_argument("--stage1", type=Path, default=ROOT / STAGE1, metavar="FILE", help=f"stage 1 [{STAGE1}]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write what the command line asks for."""
    own = make_parser().parse_args(argv)
    if own.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {own.rounds}")
    if not own.stage1.is_file():
        raise UserError(f"--stage1 {own.stage1} is not there; name a released stage 1 or a run's last.pth")
    base, stage1 = own.base.resolve(), own.stage1.resolve()
    revision = revision_of(base)
    times: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for _ in range(1 if own.quick else own.rounds):
        for earlier, of_build in times.items():
            of_build.append(measure_round(stage1, base, earlier))
            steps = ", ".join(f"{step} {seconds:.3g} s" for step, seconds in of_build[-1].items())
            print(f"{'earlier' if earlier else 'now'}: {steps}", flush=True)
    made = {**provenance("builds.second_method", argv, torch.device("cpu")), "earlier_revision": revision}
    table = pd.DataFrame([{**row, "stage1": stage1.name, **made} for row in rows_of(times[True], times[False])])
    notes = (
        f"CPU seconds of whole commands, one thread of {made['device']}; torch {made['torch']}; stage 1 {stage1.name}; "
        f"median of {len(times[True])} interleaved rounds. Revisions: {made['git_revision']}, earlier {revision}."
    )
    shown = table[["step", "earlier_cpu_seconds", "now_cpu_seconds", "ratio", "ratio_low", "ratio_high", "target"]]
    write_record(own.results, "builds_second_method", table, shown.round(2), notes)


if __name__ == "__main__":
    run_command(main)
