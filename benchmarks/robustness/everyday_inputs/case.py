"""A case: an input, the commands that are run on it, and what is right; how an outcome is judged."""

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.robustness.everyday_inputs.checkout import Checkout, Done
from utils.errors import UserError
from utils.files import make_folder, read_json

RIGHT, WAY_OUT, REFUSED, WRONG, TRACEBACK = "right", "refused with a way out", "refused", "wrong", "traceback"
NOT_RUN = "not run"
CHECK = ("-m", "tools.check_dataset")
Words = tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """What the commands of a case left: folder, the last status, the output of all, the line of a refusal."""

    out: Path
    status: int
    text: str
    line: str
    seconds: float

    def report(self, name: str = "report.json") -> dict[str, Any]:
        """Return what `--json` wrote."""
        return read_json(self.out / name)

    def run(self, stage: str = "stage1") -> Path:
        """Return the folder of the only run of a stage."""
        [found] = self.out.glob(f"*/seed0/{stage}*")
        return found

    def config(self, stage: str = "stage1") -> dict[str, Any]:
        return read_json(self.run(stage) / "config.json")

    def scores(self, stage: str = "stage1") -> dict[str, Any]:
        """Return the accuracies of the last epoch, in percent, without flip averaging."""
        return read_json(self.run(stage) / "metrics.json")["last"]["plain"]

    def predictions(self) -> pd.DataFrame:
        """Return the rows of predict.py, by the names of the files, all as text."""
        rows = pd.read_csv(self.out / "predictions.csv", dtype=str, keep_default_na=False)
        return rows.set_index(rows["file"].map(lambda name: Path(name).name))

    def answers(self) -> Any:
        """Return the last line of the output, which is JSON."""
        return json.loads(self.text.strip().splitlines()[-1])


Judge = Callable[[Ended], str | None]  # what is wrong, None where all is right


@dataclass(frozen=True)
class Case:
    """An input as people have it.

    `make` writes it below a folder, if there is anything to write. `steps` are commands, in which {data} is this
    folder, {out} an empty one and {run} the latest stage that a step has left there. `way` are expressions, all of
    which stand in a refusal that shows a way out; it is what is right where `refuse` says so.
    """

    kind: str
    name: str
    right: str
    make: Callable[[Path], None] | None
    steps: Sequence[Words]
    judge: Judge
    way: Words = ()
    refuse: bool = False
    statuses: tuple[int, ...] = (0,)  # of a last step that did what it is for
    needs: Words = field(default=())  # packages that may be missing

    def missing(self) -> list[str]:
        """Return the packages that the case needs and that are not here."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def is_right(self, outcome: str) -> bool:
        """Tell whether an outcome is what should be."""
        return outcome == (WAY_OUT if self.refuse else RIGHT)


def run_steps(case: Case, checkout: Checkout, data: Path, out: Path) -> Ended:
    """Run the steps of a case, up to the first that does not end well."""
    make_folder(out)
    places = {"{data}": str(data), "{out}": str(out)}
    text, seconds = "", 0.0
    done = Done(0, "", 0.0)
    for step in case.steps:
        words = list(step)
        stages = sorted(out.glob("*/seed0/stage*"))
        for name, place in {**places, "{run}": str(stages[-1] if stages else out)}.items():
            words = [word.replace(name, place) for word in words]
        done = checkout.run(checkout.translate(words))
        text, seconds = text + done.text, seconds + done.seconds
        if done.status:
            break
    spoken = done.text.strip().splitlines() or [""]
    line = next((one for one in reversed(spoken) if one.startswith("error: ")), spoken[-1])
    for own in (str(out), str(data)):  # or a folder's name might be taken for the words of a refusal
        line = line.replace(own, "")
    return Ended(out, done.status, text, line.strip().removeprefix("error: "), seconds)


def judge(case: Case, ended: Ended) -> tuple[str, str]:
    """Return the outcome of a case and the words that go with it: a refusal's line, or what is wrong."""
    if "Traceback (most recent call last)" in ended.text:
        return TRACEBACK, ended.line
    if ended.status not in case.statuses:
        if ended.status not in (1, 2):
            return WRONG, f"exit status {ended.status}: {ended.line}"
        shown = case.way and all(re.search(one, ended.line) for one in case.way)
        return (WAY_OUT if shown else REFUSED), ended.line
    try:
        wrong = case.judge(ended)
    except (LookupError, ValueError, OSError, UserError) as error:  # what should be in a file is not there
        wrong = f"{type(error).__name__}: {error}"
    return (RIGHT, "") if wrong is None else (WRONG, wrong)


def differs(what: str, found: object, right: object) -> str | None:
    """Return words for two values that should be equal and are not."""
    return None if found == right else f"{what} {found} where {right} is right"


def near(what: str, found: float, right: float, within: float = 1e-3) -> str | None:
    """Return words for two numbers that should agree and do not."""
    return None if abs(found - right) <= within else f"{what} {found:.2f} where {right:.2f} is right"


def first_of(*found: str | None) -> str | None:
    """Return the first thing that is wrong."""
    return next((words for words in found if words is not None), None)


def taken(ended: Ended) -> str:
    """Judge a case that should have been refused."""
    return "taken without a word"
