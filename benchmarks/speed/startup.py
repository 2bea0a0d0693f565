"""What a data set of iNaturalist 2018's size costs before and beside training: seconds and memory.

    python -m benchmarks.speed.startup
    python -m benchmarks.speed.startup --rows 437513 --classes 8142 --rounds 3
    python -m benchmarks.speed.startup --only "training list"
    python -m benchmarks.speed.startup --quick

Writes lists of that size, of classes from 1,000 images to 2 and with paths like the real ones, into a temporary folder,
and measures each piece of work in a fresh process: reading the lists, the data set with its identity, an epoch's order
for every sampler, every loss on a batch of 512, a report on the test logits (three images a class), and what
main_stage1.py does before its first batch. No image is read: there is none. Writes `results/startup.csv` and `.md`.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.children import answer_of
from benchmarks.command import make_own_parser
from benchmarks.costs import memory, reset_peak
from benchmarks.record import provenance, write_record
from benchmarks.speed.startup_lists import (
    CLASSES,
    JSON,
    MIN_IMAGES,
    NAMES,
    ROWS,
    TEST_IMAGES,
    TEXT,
    class_sizes,
    data_flags,
    home,
    load,
    training_list,
    write_lists,
)
from datasets.names import SAMPLERS
from datasets.on_disk.coco import read_json_list
from datasets.on_disk.listed_split import path_identity
from datasets.on_disk.text_lists import read_list
from datasets.sampling import sampled_order
from evaluation.logits_magnitude import logits_magnitude
from evaluation.metrics import classification_report, shot_groups
from losses import LOSSES, build_loss
from losses.los import ONE_HOT, torch_target
from utils.command import run_command
from utils.files import write_json

CPU = torch.device("cpu")
BATCH = 512
TARGET_SECONDS = 5  # of all that comes before the first batch
TARGET_LIST_MB = 300  # that a list adds
START_SCRIPT = """
import time; started = time.perf_counter()
import json, sys
import main_stage1
from settings.command_line import parse_command
from settings.fields import STAGE1
from stages.data import load_data
imported = time.perf_counter()
command = parse_command(STAGE1, "", sys.argv[2:])
data = load_data(command.settings, command.settings.seed)
done = time.perf_counter()
json.dump({"import": imported - started, "data": done - imported, "at": time.time(),
           "cpu": time.process_time()}, open(sys.argv[1], "w"))
"""


# A task is given the folder of the lists and the number of classes, gets ready, and returns the work to be measured.
Work = Callable[[], object]
Task = Callable[[Path, int], Work]


def one_list(form: str, folder: Path, classes: int) -> Work:
    read = read_list if form == TEXT else read_json_list
    return partial(read, home(folder, form) / NAMES[form][0], folder)


def whole_data_set(form: str, folder: Path, classes: int) -> Work:
    return partial(load, folder, form, classes)


def identity(folder: Path, classes: int) -> Work:
    return partial(path_identity, training_list(folder))


def counts_and_shots(folder: Path, classes: int) -> Work:
    labels = training_list(folder).labels
    return lambda: shot_groups(np.bincount(labels, minlength=classes))


def order(sampler: str, folder: Path, classes: int) -> Work:
    labels = torch.from_numpy(training_list(folder).labels)
    return partial(sampled_order, labels, classes, sampler, 0, 1, 10)


def loss(name: str, folder: Path, classes: int) -> Work:
    """Build a loss and go forward and backward through it; "los" is cross-entropy with the over-smoothed target."""
    counts = np.bincount(training_list(folder).labels, minlength=classes).tolist()
    target = torch_target(0.98, classes) if name == "los" else ONE_HOT
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, classes, generator=generator).requires_grad_()
    labels = torch.randint(classes, (BATCH,), generator=generator)

    def work() -> object:
        logits.grad = None
        function = build_loss("ce" if name == "los" else name, counts, target)
        function(logits, labels).backward()
        return function

    return work


def report(function: Callable[..., object], wants_counts: bool, folder: Path, classes: int) -> Work:
    """Return a report on random logits of the test images, (3 K, K)."""
    test = read_list(home(folder, TEXT) / NAMES[TEXT][1], folder)
    logits = torch.randn(len(test), classes, generator=torch.Generator().manual_seed(0))
    counts = (np.bincount(training_list(folder).labels, minlength=classes),) if wants_counts else ()
    return partial(function, logits, torch.from_numpy(test.labels), *counts)


TASKS: dict[str, Task] = {
    "training list, text": partial(one_list, TEXT),
    "training list, JSON": partial(one_list, JSON),
    "data set with identity, text": partial(whole_data_set, TEXT),
    "data set with identity, JSON": partial(whole_data_set, JSON),
    "identity of the training list": identity,
    "class counts and shots": counts_and_shots,
    **{f"an epoch's order, {sampler}": partial(order, sampler) for sampler in SAMPLERS},
    **{f"loss {name}": partial(loss, name) for name in ("los", *LOSSES)},
    "report on the test logits": partial(report, classification_report, True),
    "LoMa and RSD of the test logits": partial(report, logits_magnitude, False),
}
STARTS = {f"main_stage1.py up to its data, {form}": form for form in (TEXT, JSON)}


def measure_task(task: str, folder: Path, classes: int) -> dict[str, float]:
    """Do a task in this process; return its seconds, by the clock and of CPU, those of doing it again, the MB that it
    adds, and those that it needs at its peak."""
    work = TASKS[task](folder, classes)
    gc.collect()
    reset_peak(CPU)
    before = memory(CPU)[0]
    started, cpu_started = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak = memory(CPU)[1] - before
    gc.collect()
    reset_peak(CPU)
    added = memory(CPU)[0] - before
    del result
    started = time.perf_counter()
    work()
    again = time.perf_counter() - started
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "again_seconds": again, "adds_mb": added, "peak_mb": peak}


def run_task(task: str, folder: Path, classes: int) -> dict[str, Any]:
    """Measure a task in a fresh process."""
    answer = folder / "answer.json"
    flags = ["--task", task, "--folder", str(folder), "--classes", str(classes), "--json", str(answer)]
    return answer_of(["-m", "benchmarks.speed.startup", *flags], answer, task)


def run_start(form: str, folder: Path, classes: int) -> dict[str, Any]:
    """Start Python, import main_stage1.py, parse and load the data: seconds of all of it, and of the two parts."""
    answer = folder / "answer.json"
    started = time.time()  # the one clock that two processes share
    parts = answer_of(["-c", START_SCRIPT, str(answer), *data_flags(folder, form, classes)], answer, "the start")
    return {
        "seconds": parts["at"] - started,
        "cpu_seconds": parts["cpu"],
        "import_seconds": parts["import"],
        "data_seconds": parts["data"],
    }


def costs_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line a piece of work: medians over the rounds."""
    columns = ["seconds", "cpu_seconds", "again_seconds", "adds_mb", "peak_mb"]
    lines = []
    for what, of_work in rows.groupby("work", sort=False):
        middle = {name: float(of_work[name].median()) if name in of_work else np.nan for name in columns}
        cells = {
            "work, in a process of its own": what,
            "s": two_digits(middle["seconds"]),
            "s of CPU": two_digits(middle["cpu_seconds"]),
            "s, again": two_digits(middle["again_seconds"]),
            "adds, MB": whole(middle["adds_mb"]),
            "peak while at it, MB": whole(middle["peak_mb"]),
        }
        lines.append(cells)
    return pd.DataFrame(lines)


def two_digits(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def whole(value: float) -> str:
    return "-" if np.isnan(value) else f"{max(value, 0):.0f}"


def verdicts(rows: pd.DataFrame) -> str:
    """Return a sentence a target: what was measured against it."""
    sentences = []
    for what, of_work in rows.groupby("work", sort=False):
        seconds = of_work["seconds"].median()
        if what in STARTS:
            parts = ", ".join(
                f"{of_work[f'{part}_seconds'].median():.1f} s {words}"
                for part, words in (("import", "importing"), ("data", "flags and data"))
            )
            cpu, met = of_work["cpu_seconds"].median(), "met" if seconds < TARGET_SECONDS else "MISSED"
            sentences.append(f"{what}: {seconds:.1f} s ({parts}; {cpu:.1f} s of CPU), target {TARGET_SECONDS} s {met}")
        elif str(what).startswith("training list"):
            adds, peak = of_work["adds_mb"].median(), of_work["peak_mb"].median()
            met = "met" if adds < TARGET_LIST_MB else "MISSED"
            target = f"target {TARGET_LIST_MB} MB {met}"
            sentences.append(f"{what}: adds {adds:.0f} MB, {target}; {peak:.0f} MB while reading")
    return ". ".join(sentences)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags and the names of the work that is wanted; a UserError where they cannot be."""
    parser = make_own_parser("speed.startup", __doc__, quick="2,000 rows of 100 classes, one round")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"training images [{ROWS}]")
    parser.add_argument("--classes", type=int, default=CLASSES, help=f"classes [{CLASSES}]")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured; the median is shown [3]")
    parser.add_argument("--only", default="", metavar="WORDS", help="only work whose name has these words")
    for name in ("--task", "--folder", "--json"):  # how it calls itself
        parser.add_argument(name, help=argparse.SUPPRESS)
    own = parser.parse_args(argv)
    if own.quick:
        own.rows, own.classes, own.rounds = 2000, 100, 1
    if own.rounds < 1:
        parser.error("--rounds must be at least 1")
    wanted = [name for name in (*STARTS, *TASKS) if own.only in name]
    if not wanted:
        parser.error(f"--only '{own.only}' fits none of: {', '.join((*STARTS, *TASKS))}")
    return own, wanted


def measure_all(wanted: Sequence[str], folder: Path, classes: int, rounds: int) -> pd.DataFrame:
    """Measure each piece of work `rounds` times; return a row each time."""
    measured = []
    for number in range(rounds):
        for what in wanted:
            is_start = what in STARTS
            answer = run_start(STARTS[what], folder, classes) if is_start else run_task(what, folder, classes)
            measured.append({"work": what, "round": number, **answer})
            print(f"round {number + 1} of {rounds}: {what}: {answer['seconds']:.3g} s", flush=True)
    return pd.DataFrame(measured)


def main(argv: Sequence[str] | None = None) -> None:
    own, wanted = parse(argv)
    if own.task is not None:
        write_json(Path(own.json), measure_task(own.task, Path(own.folder), own.classes))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lists(folder, own.rows, own.classes)
        megabytes = {form: (home(folder, form) / NAMES[form][0]).stat().st_size / 1e6 for form in NAMES}
        measured = measure_all(wanted, folder, own.classes, own.rounds)
    made = provenance("speed.startup", argv, CPU)
    rows = measured.assign(rows=own.rows, classes=own.classes, **made)
    notes = (
        f"{own.rows:,} training images of {own.classes:,} classes from {class_sizes(own.rows, own.classes).max():,} to "
        f"{MIN_IMAGES}, {TEST_IMAGES * own.classes:,} test images, lists of {megabytes[TEXT]:.0f} MB as text and "
        f"{megabytes[JSON]:.0f} MB as JSON; losses on a batch of {BATCH}; on {made['device']}, median of {own.rounds} "
        f"fresh processes. MB are of resident memory, beyond that of the libraries. {verdicts(rows)}. Made by "
        f"`{made['command']}`."
    )
    write_record(own.results, "startup", rows, costs_table(rows), notes.replace(". .", "."))


if __name__ == "__main__":
    run_command(main)
