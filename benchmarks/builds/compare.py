"""What commands cost beside an earlier build of this project: start-up, saving, precision on a CPU, re-training.

    git worktree add ../earlier REVISION
    python -m benchmarks.builds.compare --base ../earlier
    python -m benchmarks.builds.compare --base ../earlier --only start-up --rounds 7
    python -m benchmarks.builds.compare --base ../earlier --quick

Each case runs its ways one after the other, and that `--rounds` times over. A way's ratio is the median over the rounds
of its CPU seconds by those of the case's first way in the same round; that of `auto` is by the faster of `off` and
`bf16`. `--only` takes words of cases' names. "precision" counts the seconds of steps alone, on the CPU as it is and
with oneDNN limited to AVX2, which has no bf16. "re-training" (`benchmarks.builds.retraining`) counts epochs of stage 2,
a stack of heads beside its matrix products, and whole tables. Writes `results/builds.csv` and `.md`.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.builds.cases import Case, Way
from benchmarks.builds.retraining import retraining_cases
from benchmarks.command import ROOT, make_own_parser
from benchmarks.record import provenance, write_record
from utils.command import run_command
from utils.errors import UserError

THREADS = "1"  # of PyTorch: what is counted are CPU seconds
# Prints the seconds of ten training steps and ten predictions of ResNet-32 in the precision that --amp chooses.
STEPS = """
import sys, time, torch
from models import build_model
from utils.device import choose_execution
torch.manual_seed(0)
execution = choose_execution("cpu", 0, sys.argv[1], "off")
model = execution.place(build_model("resnet32", 100))
images, labels = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for step in range(int(sys.argv[2]) + 1):
    if step == 1:
        started = time.process_time()
    with execution.autocast():
        logits = model(images)
    torch.nn.functional.cross_entropy(logits.float(), labels).backward()
    optimizer.step()
    with torch.inference_mode(), execution.autocast():
        model(images)
print(time.process_time() - started)
"""


def start_up_cases() -> list[Case]:
    """Return help texts and refusals beside the earlier build's, and the imports of reports beside PyTorch's."""
    lines = {
        "help": ("main_stage1.py", "--help"),
        "unknown flag": ("main_stage2.py", "--nosuch"),
        "value that cannot be": ("main_stage2.py", "--method", "los", "--tau", "2"),
    }
    cases = [
        Case(f"start-up, {name}", (Way("earlier", words, earlier=True), Way("now", words)), 0.1, "ratio to earlier")
        for name, words in lines.items()
    ]
    for name in ("stages.commands.report", "stages.commands.predict", "tools.check_dataset"):
        ways = (Way("import torch", ("-c", "import torch")), Way("now", ("-c", f"import {name}")))
        cases.append(Case(f"start-up, import {name}", ways, 1.3, "ratio to import torch"))
    return cases


def saving_case(epochs: int) -> Case:
    """Return nearly empty epochs of ResNet-34: saved at the end alone, as in the earlier build, and as they are now."""
    words: tuple[str, ...] = (
        "main_stage1.py",
        "--dataset",
        "digits",
        "--network",
        "resnet34",
        "--imb_ratio",
        "100",
        "--amp",
        "off",
    )
    words += ("--epochs", str(epochs), "--eval_every", str(epochs), "--device", "cpu", "--out", "{out}")
    return Case(
        "saving, ResNet-34",
        (
            Way("at the end alone", (*words, "--save_every", "1e9")),
            Way("earlier", words, earlier=True),
            Way("now", words),
        ),
        1.1,
        "ratio to saving at the end alone",
    )


def precision_cases(steps: int) -> list[Case]:
    """Return steps of ResNet-32 in fp32, in bf16, and as `--amp auto` chooses, on two kinds of CPU."""
    cases = []
    for kind, environment in (("this CPU", {}), ("without bf16", {"ONEDNN_MAX_CPU_ISA": "AVX2"})):
        ways = [
            Way(amp, ("-c", STEPS, amp, str(steps)), prints=True, environment=environment)
            for amp in ("off", "bf16", "auto")
        ]
        cases.append(Case(f"precision, {kind}", tuple(ways), 1 / 0.97, "ratio of auto to the faster of off and bf16"))
    return cases


def seconds_of(way: Way, base: Path) -> float:
    """Run a way and return its CPU seconds. Raises UserError where it ends as no command should."""
    with tempfile.TemporaryDirectory() as out:
        words = [word.replace("{out}", out) for word in way.words]
        environment = {**os.environ, "OMP_NUM_THREADS": THREADS, **way.environment}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        outcome = subprocess.run(
            [sys.executable, *words],
            cwd=base if way.earlier else ROOT,
            env=environment,
            text=True,
            capture_output=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if outcome.returncode not in (0, 2) or "Traceback" in outcome.stderr:
        raise UserError(f"'{way.name}' ended with {outcome.returncode}: {outcome.stderr[-500:]}")
    if way.prints:
        return float(outcome.stdout.split()[-1])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(case: Case, base: Path, rounds: int) -> list[dict[str, object]]:
    """Return a row for each way of a case: seconds and ratios, medians with their ranges over the rounds."""
    times: list[list[float]] = []
    for _ in range(rounds):
        times.append([seconds_of(way, base) for way in case.ways])
        print(f"{case.name}: {', '.join(f'{seconds:.3g}' for seconds in times[-1])} s", flush=True)
    rows = []
    for i, way in enumerate(case.ways):
        of_way = [line[i] for line in times]
        last = i == len(case.ways) - 1
        by_faster = last and case.name.startswith("precision")
        ratios = [line[i] / (min(line[:i]) if by_faster else line[0]) for line in times]
        rows.append(
            {
                "case": case.name,
                "way": way.name,
                "cpu_seconds": statistics.median(of_way),
                "seconds_low": min(of_way),
                "seconds_high": max(of_way),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "counted": case.counted,
                "target": case.target if last else None,
                "reached": statistics.median(ratios) <= case.target if last else None,
                "rounds": rounds,
            }
        )
    return rows


def revision_of(folder: Path) -> str:
    """Return the commit that a folder is a checkout of. Raises UserError where it is none."""
    words = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    outcome = subprocess.run(words, capture_output=True, text=True)
    if outcome.returncode or not (folder / "main_stage1.py").is_file():
        raise UserError(
            f"--base {folder} is no checkout of this project; make one with git worktree add FOLDER REVISION"
        )
    return outcome.stdout.strip()


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this benchmark."""
    parser = make_own_parser("builds.compare", __doc__, "one round of few epochs and steps: a rehearsal")
    parser.add_argument("--base", type=Path, required=True, metavar="FOLDER", help="checkout of the earlier build")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that each way runs [5]")
    help_text = "cases whose names have one of these words [all]"
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORDS", help=help_text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write what the command line asks for."""
    own = make_parser().parse_args(argv)
    if own.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {own.rounds}")
    earlier = revision_of(own.base)
    with tempfile.TemporaryDirectory() as folder:
        cases = [*start_up_cases(), saving_case(2 if own.quick else 200), *precision_cases(1 if own.quick else 10)]
        cases += retraining_cases(Path(folder), own.quick)
        chosen = [case for case in cases if any(words in case.name for words in own.only)]
        if not chosen:
            raise UserError(f"--only {own.only[0]!r} is in no case; cases: {', '.join(case.name for case in cases)}")
        rows = [row for case in chosen for row in measure(case, own.base, 1 if own.quick else own.rounds)]
    made = {**provenance("builds.compare", argv, torch.device("cpu")), "earlier_revision": earlier}
    table = pd.DataFrame([{**row, **made} for row in rows])
    shown = table[["case", "way", "cpu_seconds", "ratio", "ratio_low", "ratio_high"]].round(3)
    notes = (
        f"CPU seconds of whole commands, one thread of {made['device']}; torch {made['torch']}; median of "
        f"{rows[0]['rounds']} interleaved rounds. Revisions: {made['git_revision']}, earlier {earlier}."
    )
    write_record(own.results, "builds", table, shown, notes)


if __name__ == "__main__":
    run_command(main)
