"""Feed the commands and readers rubbish for a long time, and record what became of it.

    python -m benchmarks.robustness.fuzz [--inputs 2000] [--only WORDS] [--seed S] [--quick] [--results results]

The generators are those of the property tests (benchmarks/robustness/fuzz_inputs.py), with `--inputs` cases shared
among the kinds of
input, from a seed that is drawn anew each time. Each case is accepted, and something stated holds of the result, or
refused in one printable line that names the file; nothing else counts as fine. A case that fails is printed with the
seed that draws it again, and the command ends with status 1.
"""

import argparse
import importlib
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch

from benchmarks.record import provenance, write_record
from utils.command import run_command
from utils.errors import UserError

GENERATORS = Path(__file__).resolve().parent.parent.parent / "tests"
# How many of the inputs a kind gets: more where there is more to get wrong.
WEIGHTS = {
    "command line": 6, "list": 3, "COCO list": 2, "record of a run": 2, "features": 3, "image": 3, "checkpoint": 4,
}  # fmt: skip
FAILED = "failed"


def find_generators() -> Any:
    """Return the module of the generators; a UserError says what is missing for it."""
    sys.path.insert(0, str(GENERATORS))
    try:
        return importlib.import_module("rubbish")
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install --requirement requirements-dev.txt") from error
    finally:
        sys.path.remove(str(GENERATORS))


def measure(generators: Any, kind: Any, material: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """Try `count` cases of a kind; return a row for each: kind, outcome, seconds, and what went wrong."""
    import hypothesis

    rows: list[dict[str, Any]] = []

    def attempt(case: Any) -> None:
        if len(rows) >= count:
            return
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
            words = generators.describe_case(kind, case)
            print(f"{kind.name} failed, seed {seed}, case {len(rows)}: {words[:600]}\n    {problem[:1500]}", flush=True)
        seconds = time.perf_counter() - started
        rows.append({"kind": kind.name, "outcome": outcome, "seconds": seconds, "seed": seed, "problem": problem})
        shutil.rmtree(folder)

    settings = hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    hypothesis.seed(seed)(settings(hypothesis.given(kind.cases(material))(attempt)))()
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
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


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; --help lists the flags")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness.fuzz", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--inputs", type=int, default=2000, help="bad inputs, of all kinds together [2000]")
    parser.add_argument("--only", default="", metavar="WORDS", help="only kinds of input whose name has these words")
    parser.add_argument("--seed", type=int, help="draw the same inputs again [another one every time]")
    parser.add_argument("--quick", action="store_true", help="50 inputs")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where to write [results]")
    own = parser.parse_args(argv)
    if not 1 <= own.inputs <= 10**7:
        refuse(f"--inputs must be between 1 and 10,000,000, not {own.inputs}")
    generators = find_generators()
    kinds = [kind for kind in generators.KINDS if own.only in kind.name]
    if not kinds:
        refuse(f"unknown --only '{own.only}'; known: {', '.join(kind.name for kind in generators.KINDS)}")
    seed = random.SystemRandom().randrange(2**32) if own.seed is None else own.seed
    inputs = 50 if own.quick else own.inputs
    share = inputs / sum(WEIGHTS[kind.name] for kind in kinds)
    made = provenance("robustness.fuzz", argv, torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, generators.cut_short():
        material = generators.make_material(Path(folder))
        for kind in kinds:
            count = max(1, -int(-share * WEIGHTS[kind.name] // 1))
            print(f"{kind.name}: {count} inputs, seed {seed}", flush=True)
            rows += measure(generators, kind, material, count, seed)
    table = pd.DataFrame(rows)
    failures = int((table["outcome"] == FAILED).sum())
    for name, value in made.items():
        table[name] = value
    notes = (
        f"Bad inputs drawn with seed {seed} on {made['device']}. What was accepted had the stated invariant (the rows "
        "of an independent parser, the pixels of the header's size, numbers that are finite, settings as they were "
        "written); a refusal is status 2 and one printable line. Anything else would be a traceback, a hang, another "
        f"message, a wrong result or a changed file. Made by `{made['command']}`."
    )
    write_record(own.results, "rubbish", table, summary(table), notes)
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
