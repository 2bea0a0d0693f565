"""Feed bad input to the commands and readers for a long time, and record what became of it.

    python -m benchmarks.robustness.fuzz                # 2,000 inputs, from a seed that is drawn anew each time
    python -m benchmarks.robustness.fuzz --quick        # 50 inputs
    python -m benchmarks.robustness.fuzz --only image --inputs 5000 --seed 3

The generators (`benchmarks.robustness.fuzz_inputs`) are those of the property tests; the inputs are shared among the
kinds. Each case is accepted, and something stated holds of the result, or refused in one printable line that names the
file; nothing else counts as fine. A case that fails is printed with the seed that draws it again, and the command ends
with status 1. Writes `results/fuzz.csv` and `.md`.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from utils.command import run_command
from utils.errors import UserError
from utils.text import tell

if TYPE_CHECKING:  # these need hypothesis
    from benchmarks.robustness.fuzz_inputs.cases import Kind, Material

# How many of the inputs a kind gets: more where there is more to get wrong.
WEIGHTS = {
    "command line": 6,
    "list": 3,
    "COCO list": 2,
    "record of a run": 2,
    "features": 3,
    "image": 3,
    "checkpoint": 4,
    "no plain file": 1,
}
FAILED = "failed"
QUICK_INPUTS = 50


def check_hypothesis() -> None:
    """Refuse to go on where the library that draws the inputs is missing."""
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install --requirement requirements-dev.txt") from error


def try_cases(kind: "Kind", material: "Material", count: int, seed: int) -> list[dict[str, Any]]:
    """Try `count` cases of a kind; return a row for each: kind, outcome, seconds, and what went wrong."""
    import hypothesis

    rows: list[dict[str, Any]] = []

    def attempt(case: Any) -> None:
        if len(rows) < count:
            rows.append({"kind": kind.name, **try_case(kind, material, case, seed, len(rows)), "seed": seed})

    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(kind.cases(material))(attempt)))()
    return rows


def try_case(kind: "Kind", material: "Material", case: Any, seed: int, number: int) -> dict[str, Any]:
    """Try one case in a folder of its own; return its outcome, its seconds, and what went wrong, which is printed."""
    from benchmarks.robustness.fuzz_inputs.kinds import describe_case

    folder = Path(tempfile.mkdtemp(dir=material.home.parent))
    started, problem = time.perf_counter(), ""
    try:
        outcome = kind.attempt(material, folder, case)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        outcome = FAILED
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        problem = f"{type(error).__name__} at {place}: {error}"
        words = describe_case(kind, case)
        tell(f"{kind.name} failed, seed {seed}, case {number}: {words[:600]}\n    {problem[:1500]}", flush=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return {"outcome": outcome, "seconds": seconds, "problem": problem}


def try_kinds(kinds: Sequence["Kind"], inputs: int, seed: int) -> pd.DataFrame:
    """Share `inputs` cases among the kinds and try them; return a row a case."""
    from benchmarks.robustness.fuzz_inputs.cut_short import cut_short
    from benchmarks.robustness.fuzz_inputs.material import make_material

    share = inputs / sum(WEIGHTS[kind.name] for kind in kinds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, cut_short():
        material = make_material(Path(folder))
        for kind in kinds:
            count = max(1, -int(-share * WEIGHTS[kind.name] // 1))
            tell(f"{kind.name}: {count} inputs, seed {seed}", flush=True)
            rows += try_cases(kind, material, count, seed)
    columns = ["kind", "outcome", "seconds", "seed", "problem"]
    return pd.DataFrame(rows)[columns]


def kinds_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line a kind of input: how many were tried, what became of them, and the slowest."""
    lines = []
    for kind, own in [*rows.groupby("kind", sort=False), ("all", rows)]:
        counts = own["outcome"].value_counts()
        lines.append(
            {
                "kind of input": kind,
                "inputs": f"{len(own):,}",
                "accepted, and right": f"{counts.get('accepted', 0):,}",
                "refused in one line": f"{counts.get('refused', 0):,}",
                "anything else": f"{counts.get(FAILED, 0):,}",
                "median": f"{1000 * own['seconds'].median():.0f} ms",
                "slowest": f"{own['seconds'].max():.2f} s",
            }
        )
    return pd.DataFrame(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags; a UserError where they cannot be."""
    parser = make_own_parser("robustness.fuzz", __doc__, quick=f"{QUICK_INPUTS} inputs")
    parser.add_argument("--inputs", type=int, default=2000, help="bad inputs, of all kinds together [2000]")
    parser.add_argument("--only", default="", metavar="WORDS", help="only kinds of input whose name has these words")
    parser.add_argument("--seed", type=int, help="draw the same inputs again [another one every time]")
    own = parser.parse_args(argv)
    if not 1 <= own.inputs <= 10**7:
        parser.error(f"--inputs must be between 1 and 10,000,000, not {own.inputs}")
    if not any(own.only in name for name in WEIGHTS):
        parser.error(f"unknown --only '{own.only}'; known: {', '.join(WEIGHTS)}")
    return own


def main(argv: Sequence[str] | None = None) -> None:
    own = parse(argv)
    check_hypothesis()
    from benchmarks.robustness.fuzz_inputs.kinds import KINDS

    seed = random.SystemRandom().randrange(2**32) if own.seed is None else own.seed
    made = provenance("robustness.fuzz", argv, torch.device("cpu"))
    kinds = [kind for kind in KINDS if own.only in kind.name]
    table = try_kinds(kinds, QUICK_INPUTS if own.quick else own.inputs, seed).assign(**made)
    notes = (
        f"Bad inputs drawn with seed {seed} on {made['device']}. What was accepted had the stated invariant (the rows "
        "of an independent parser, the pixels of the header's size, numbers that are finite, settings as they were "
        "written); a refusal is status 2 and one printable line. Anything else would be a traceback, a hang, another "
        f"message, a wrong result or a changed file. Made by `{made['command']}`."
    )
    write_record(own.results, "fuzz", table, kinds_table(table), notes)
    if (table["outcome"] == FAILED).any():
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
