"""What a data set of iNaturalist 2018's size costs before and beside training: seconds and memory.

    python -m benchmarks.speed.startup [--rows 437513] [--classes 8142] [--rounds 3] [--only WORDS] [--quick]

writes lists of that size, of classes from 1,000 images to 2 and with paths like the real ones, into a temporary folder,
and measures each piece of work in a fresh process: reading the lists, the data set with its identity, an epoch's order
for every sampler, every loss on a batch of 512, a report on the test logits (three images a class), and what
main_stage1.py does before its first batch. No image is read: there is none.
"""

import argparse
import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch

from benchmarks.record import memory, provenance, reset_peak, write_record
from datasets.listed import path_identity
from datasets.lists import ListedSplit, read_json_list, read_list
from datasets.long_tail import LongTailedData
from datasets.sampling import SAMPLERS, sampled_order
from evaluation.logits_magnitude import logits_magnitude
from evaluation.metrics import classification_report, shot_groups
from losses import LOSSES, build_loss
from losses.los import ONE_HOT, torch_target
from settings.command_line import parse_command
from settings.fields import STAGE1
from stages.data import load_data
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder, read_json, write_json, write_text

ROOT = Path(__file__).resolve().parent.parent.parent
CPU = torch.device("cpu")
ROWS, CLASSES, LARGEST, SMALLEST, TEST_PER_CLASS, BATCH = 437_513, 8142, 1000, 2, 3, 512
GROUPS = ("Plantae", "Insecta", "Aves", "Reptilia", "Mammalia", "Fungi", "Amphibia", "Mollusca", "Animalia",
          "Arachnida", "Actinopterygii", "Chromista", "Protozoa", "Bacteria")  # fmt: skip
TEXT, JSON = "text", "json"
NAMES = {TEXT: ("iNaturalist18_train.txt", "iNaturalist18_val.txt"), JSON: ("train2018.json", "val2018.json")}
SECONDS, LIST_MB = 5, 300  # the targets: all before the first batch, and what a list adds
START = """
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


def class_sizes(rows: int, classes: int) -> np.ndarray:
    """Return sizes (K,) that sum to `rows`, from 1,000 (or what so few rows allow) down to 2, largest class first.

    log n_k falls with (k / (K - 1))^p; p is what makes the sum.
    """
    if classes < 2 or rows < 4 * classes:
        raise UserError(f"{classes} classes from {LARGEST} images to {SMALLEST} need at least {4 * classes} rows")
    largest = min(LARGEST, 20 * rows // classes, rows - SMALLEST * classes)
    place = np.arange(classes) / (classes - 1)

    def sizes(power: float) -> np.ndarray:
        return (largest * (SMALLEST / largest) ** place**power + 1e-9).astype(np.int64)

    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if sizes(middle).sum() <= rows else (low, middle)
    chosen = sizes(low)
    left = np.arange(rows - chosen.sum())  # fewer than there are classes, about
    np.add.at(chosen, classes // 4 + left % max(classes // 2, 1), 1)
    return chosen


def write_lists(folder: Path, rows: int, classes: int) -> None:
    """Write the training and test lists into `folder`, as text and as JSON, each where its data set looks for it."""
    random = np.random.RandomState(0)
    train = random.permutation(np.repeat(np.arange(classes), class_sizes(rows, classes)))
    test = random.permutation(np.repeat(np.arange(classes), TEST_PER_CLASS))
    first = 0
    for part, labels in enumerate((train, test)):
        numbers = range(first, first + len(labels))
        pairs = [(image_path(number, label), label) for number, label in zip(numbers, labels.tolist(), strict=True)]
        for form in (TEXT, JSON):
            make_folder(home(folder, form))
        write_text(home(folder, TEXT) / NAMES[TEXT][part], "".join(f"{path} {label}\n" for path, label in pairs))
        write_text(home(folder, JSON) / NAMES[JSON][part], json.dumps(coco(pairs, first, classes)))
        first += len(labels)


def home(folder: Path, form: str) -> Path:
    """Return where the lists of a form lie."""
    return folder / form / "inaturalist2018"


def image_path(number: int, label: int) -> str:
    """Return a path like those of iNaturalist 2018."""
    name = hashlib.md5(str(number).encode()).hexdigest()
    return f"train_val2018/{GROUPS[label % len(GROUPS)]}/{label}/{name}.jpg"


def coco(pairs: list[tuple[str, int]], first: int, classes: int) -> dict[str, Any]:
    """Return a list in COCO's form, with the entries that iNaturalist's has."""
    extra = {"license": 3, "rights_holder": "a person on the web", "height": 600, "width": 800}
    return {
        "info": {"year": 2018},
        "images": [{**extra, "id": first + row, "file_name": path} for row, (path, _) in enumerate(pairs)],
        "annotations": [
            {"id": first + row, "image_id": first + row, "category_id": label} for row, (_, label) in enumerate(pairs)
        ],
        "categories": [{"id": label, "name": str(label), "supercategory": ""} for label in range(classes)],
    }


def data_flags(folder: Path, form: str, classes: int) -> list[str]:
    """Return the flags of main_stage1.py for the lists; those of another number of classes are anyone's lists."""
    if classes == CLASSES:
        return ["--dataset", "inaturalist2018", "--data_dir", str(folder / form)]
    train, test = (str(home(folder, form) / name) for name in NAMES[form])
    flags = {"--dataset": "list", "--train_list": train, "--test_list": test, "--image_root": str(home(folder, form))}
    return [word for pair in flags.items() for word in pair]


def load(folder: Path, form: str, classes: int) -> LongTailedData:
    """Load the data set as main_stage1.py does."""
    command = parse_command(STAGE1, "", data_flags(folder, form, classes))
    return load_data(command.settings, command.settings.seed)


def training_list(folder: Path) -> ListedSplit:
    return read_list(home(folder, TEXT) / NAMES[TEXT][0], folder)


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


def measure(task: str, folder: Path, classes: int) -> dict[str, float]:
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
    return {
        "seconds": seconds, "cpu_seconds": cpu_seconds, "again_seconds": again, "adds_mb": added, "peak_mb": peak
    }  # fmt: skip


def in_child(command: list[str], answer: Path, what: str) -> dict[str, Any]:
    """Run a command line of Python's in a fresh process; return the answer that it leaves."""
    process = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise UserError(f"the measurement of {what} failed: {lines[-1].removeprefix('error: ')}")
    return read_json(answer)


def run_task(task: str, folder: Path, classes: int) -> dict[str, Any]:
    """Measure a task in a fresh process."""
    answer = folder / "answer.json"
    flags = ["--task", task, "--folder", str(folder), "--classes", str(classes), "--json", str(answer)]
    return in_child(["-m", "benchmarks.speed.startup", *flags], answer, task)


def run_start(form: str, folder: Path, classes: int) -> dict[str, Any]:
    """Start Python, import main_stage1.py, parse and load the data: seconds of all of it, and of the two parts."""
    answer = folder / "answer.json"
    started = time.time()  # the one clock that two processes share
    parts = in_child(["-c", START, str(answer), *data_flags(folder, form, classes)], answer, "the start")
    return {"seconds": parts["at"] - started, "cpu_seconds": parts["cpu"],
            "import_seconds": parts["import"], "data_seconds": parts["data"]}  # fmt: skip


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line a piece of work: medians over the rounds."""
    columns = ["seconds", "cpu_seconds", "again_seconds", "adds_mb", "peak_mb"]
    lines = []
    for what, of_work in rows.groupby("work", sort=False):
        middle = {name: float(of_work[name].median()) if name in of_work else np.nan for name in columns}
        cells = {
            "work, in a process of its own": what, "s": two_digits(middle["seconds"]),
            "s of CPU": two_digits(middle["cpu_seconds"]), "s, again": two_digits(middle["again_seconds"]),
            "adds, MB": whole(middle["adds_mb"]), "peak while at it, MB": whole(middle["peak_mb"]),
        }  # fmt: skip
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
            cpu, met = of_work["cpu_seconds"].median(), "met" if seconds < SECONDS else "MISSED"
            sentences.append(f"{what}: {seconds:.1f} s ({parts}; {cpu:.1f} s of CPU), target {SECONDS} s {met}")
        elif str(what).startswith("training list"):
            adds, peak = of_work["adds_mb"].median(), of_work["peak_mb"].median()
            met = "met" if adds < LIST_MB else "MISSED"
            sentences.append(f"{what}: adds {adds:.0f} MB, target {LIST_MB} MB {met}; {peak:.0f} MB while reading")
    return ". ".join(sentences)


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; --help lists the flags")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.startup", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--rows", type=int, default=ROWS, help=f"training images [{ROWS}]")
    parser.add_argument("--classes", type=int, default=CLASSES, help=f"classes [{CLASSES}]")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured; the median is shown [3]")
    parser.add_argument("--only", default="", metavar="WORDS", help="only work whose name has these words")
    parser.add_argument("--quick", action="store_true", help="2,000 rows of 100 classes, one round")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where to write [results]")
    for name in ("--task", "--folder", "--json"):  # how it calls itself
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    own = make_parser().parse_args(argv)
    if own.task is not None:
        write_json(Path(own.json), measure(own.task, Path(own.folder), own.classes))
        return
    if own.quick:
        own.rows, own.classes, own.rounds = 2000, 100, 1
    if own.rounds < 1:
        refuse("--rounds must be at least 1")
    wanted = [name for name in (*STARTS, *TASKS) if own.only in name]
    if not wanted:
        refuse(f"--only '{own.only}' fits none of: {', '.join((*STARTS, *TASKS))}")
    measured = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lists(folder, own.rows, own.classes)
        megabytes = {form: (home(folder, form) / NAMES[form][0]).stat().st_size / 1e6 for form in NAMES}
        for number in range(own.rounds):
            for what in wanted:
                if what in STARTS:
                    answer = run_start(STARTS[what], folder, own.classes)
                else:
                    answer = run_task(what, folder, own.classes)
                measured.append({"work": what, "round": number, **answer})
                print(f"round {number + 1} of {own.rounds}: {what}: {answer['seconds']:.3g} s", flush=True)
    made = provenance("speed.startup", argv, CPU)
    rows = pd.DataFrame(measured).assign(rows=own.rows, classes=own.classes, **made)
    notes = (
        f"{own.rows:,} training images of {own.classes:,} classes from {class_sizes(own.rows, own.classes).max():,} to "
        f"{SMALLEST}, {TEST_PER_CLASS * own.classes:,} test images, lists of {megabytes[TEXT]:.0f} MB as text and "
        f"{megabytes[JSON]:.0f} MB as JSON; losses on a batch of {BATCH}; on {made['device']}, median of {own.rounds} "
        f"fresh processes. MB are of resident memory, beyond that of the libraries. {verdicts(rows)}. Made by "
        f"`{made['command']}`."
    )
    write_record(own.results, "startup", rows, summary(rows), notes.replace(". .", "."))


if __name__ == "__main__":
    run_command(main)
