"""What calls of `benchmarks.jobs.paper_runs` with a time limit will do: from the seconds that epochs took before.

An epoch takes what it took in this run, else what epochs of that stage took in a file of measured ones, times its
training images over theirs. N steps at once take the time of all one after another, times the share that a step of
training takes when N networks are trained at once on a GPU (`benchmarks.speed.cuda_step`), 1 where that is unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from benchmarks.jobs.paper_items import STAGE1_NAME, Step, beside, in_words, progress
from datasets.long_tail import Profile
from evaluation.csv_files import read_csv
from utils.errors import UserError

BALANCED_IMAGES, CLASSES = 500, 100  # CIFAR-100's images a class before the profile, and its classes


@dataclass(frozen=True)
class Limits:
    """Seconds that a call works and that all calls work together, those that a child takes to start, and how many
    steps it does at once."""

    call: float
    whole: float
    start: float
    at_once: int = 1


@dataclass
class PlannedCall:
    """What a call does: lines for people, and the steps that it finishes."""

    lines: list[str] = field(default_factory=list)
    finished: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Pace:
    """Seconds of an epoch by step, and how many times as long it takes with others at once."""

    epoch: Mapping[Step, float]
    factor: Callable[[int], float]


def word_after(step: Step, flag: str, default: str) -> str:
    """Return the value of a flag in a step's command."""
    words = step.command
    return words[words.index(flag) + 1] if flag in words else default


def training_images(step: Step) -> float:
    """Return how many images an epoch of a step has, in the proportions of CIFAR100-LT."""
    counts = Profile(float(word_after(step, "--imb_ratio", "100"))).counts(BALANCED_IMAGES, CLASSES)
    return sum(counts) * (1 - float(word_after(step, "--holdout", "0")))


def epoch_seconds(steps: Sequence[Step], everything: Sequence[Step], measured: Path | None) -> dict[Step, float]:
    """Return the seconds of an epoch of each step that has epochs, with its evaluation.

    `everything` has the steps of all items that may have been measured. Raises UserError where no epoch of a stage was.
    """
    images = {step.item: training_images(step) for step in everything if step.name == STAGE1_NAME}
    rates = rates_in(measured, images) if measured is not None and measured.is_file() else {}
    found: dict[Step, float] = {}
    for step in steps:
        own = progress(step)[1] if step.epochs else 0.0
        if own is None and step.name in rates:
            own = rates[step.name] * images[step.item]
        if own is None:
            where = f"neither in {step.folder} nor in {measured}"
            raise UserError(f"no epoch of {step} was measured, {where}: make one call, or name a log with --measured")
        found[step] = own
    return found


def rates_in(measured: Path, images: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds that an epoch takes for an image, by the names of steps, from a log of epochs."""
    log = read_csv(measured)
    log["whole"] = log["seconds"] + log["evaluation_seconds"].fillna(0)
    known = log[log["item"].isin(images)]
    if known.empty:
        return {}
    means = known.groupby(["item", "run"])["whole"].mean().reset_index()
    means["rate"] = means["whole"] / means["item"].map(images)
    return {str(name): float(rate) for name, rate in means.groupby("run")["rate"].median().items()}


def at_once_factor(measured: Path) -> Callable[[int], float]:
    """Return how many times as long steps of N networks at once take as those of one."""
    if not measured.is_file():
        return float
    table = pd.read_csv(measured)
    rows = table[table["how"] == "graph"].set_index("at_once")["ms"]

    def factor(number: int) -> float:
        known = 1 in rows.index and number in rows.index
        return float(rows[number] / rows[1]) if known else float(number)

    return factor


def plan_calls(steps: Sequence[Step], pace: Pace, limits: Limits) -> tuple[list[PlannedCall], list[Step]]:
    """Return what each call does, in the order in which `paper_runs` works, and the steps that none of them finishes.

    A child that has no time for one more epoch is stopped, and the next call goes on with it.
    """
    done = {step: step.epochs if step.is_finished() else progress(step)[0] for step in steps}
    finished = {step for step in steps if step.is_finished()}
    calls: list[PlannedCall] = []
    left_of_all = limits.whole
    while left_of_all > 0 and len(finished) < len(steps):
        call, left = PlannedCall(), min(limits.call, left_of_all)
        left_of_all -= limits.call
        while group := next_group(steps, finished, limits.at_once):
            left = work_on(group, done, pace, limits, call, left)
            finished |= set(call.finished)
            if not all(step in finished for step in group):
                break
        if not call.lines:
            break
        calls.append(call)
    return calls, [step for step in steps if step not in finished]


def next_group(steps: Sequence[Step], finished: set[Step], at_once: int) -> list[Step]:
    """Return what is done next: a step, or several at once; nothing where all is done."""
    folders = {step.folder for step in finished}
    ready = [step for step in steps if step not in finished and (step.name == STAGE1_NAME or step.stage1 in folders)]
    return beside(ready[0], ready, at_once) if ready else []


def work_on(
    group: Sequence[Step], done: dict[Step, int], pace: Pace, limits: Limits, call: PlannedCall, left: float
) -> float:
    """Do what there is time for of a step, or of several at once; return the seconds of the call that are left."""
    share = pace.factor(len(group)) / len(group)
    wanted = {step: step.epochs - done[step] for step in group}
    needed = share * sum(epochs * pace.epoch[step] for step, epochs in wanted.items())
    room = left - limits.start
    if room < 0:
        return 0.0
    whole = room >= needed
    possible = wanted if whole else {step: int(epochs * room / needed) for step, epochs in wanted.items()}
    if not whole and not any(possible.values()):
        return 0.0
    seconds = limits.start + share * sum(epochs * pace.epoch[step] for step, epochs in possible.items())
    first, begun = group[0], done[group[0]]
    for step in group:
        done[step] += possible[step]
    call.finished += group if whole else []
    epochs = f" epochs {begun + 1} to {begun + possible[first]} of {first.epochs}" if first.epochs else ""
    name = " and ".join(map(str, group))
    call.lines.append(f"{name}:{epochs} {in_words(seconds)}{'' if whole else ', the next call goes on'}")
    return left - seconds if whole else 0.0


def plan_text(steps: Sequence[Step], pace: Pace, limits: Limits) -> str:
    """Return the plan of all calls in lines: what runs, what it brings home, what is not reached."""
    calls, skipped = plan_calls(steps, pace, limits)
    lines = [f"{in_words(limits.whole)} in all, {in_words(limits.call)} of work a call:"]
    for number, call in enumerate(calls, 1):
        lines += [f"  call {number}", *(f"    {line}" for line in call.lines)]
        rows = [str(step) for step in call.finished if step.epochs]
        files = [str(step) for step in call.finished if not step.epochs]
        home = ", ".join([*rows, *(f"files of {name}" for name in files)]) or "nothing: no run is finished"
        lines.append(f"    brings home: {home}")
    names, missing = (
        {item: [step.name for step in found if step.item == item] for item in dict.fromkeys(s.item for s in found)}
        for found in (steps, skipped)
    )
    parts = [item + (f" ({', '.join(left)})" if left != names[item] else "") for item, left in missing.items()]
    return "\n".join([*lines, f"  not reached: {'; '.join(parts) or 'nothing'}"])
