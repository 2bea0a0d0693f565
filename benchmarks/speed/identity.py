"""What it costs to know images by their content: time and memory, the first time and the second.

    python -m benchmarks.speed.identity                   # 437,513 training images, as iNaturalist 2018 has
    python -m benchmarks.speed.identity --files 100000

Writes tiny files into a folder a class, of the class sizes of `benchmarks.speed.startup_lists`, in a temporary folder,
and starts a process for each measurement: `listing` alone (`--dataset folder`), listing and hashing all files, and the
same again with the hashes that were kept, at whose files two to four other processes look while the first one lists
them, where there are cores for them. Files are tiny: reading larger ones adds what the disk needs for them, the
first time alone. Writes `results/identity.csv` and `.md`.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.children import answer_of
from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from benchmarks.speed.startup_lists import CLASSES, ROWS, class_sizes
from datasets import Profile, load_dataset
from datasets.identity.content import with_identity
from datasets.identity.early_look import looking_early
from datasets.identity.kept_hashes import UNSETTLED_NS
from utils.command import run_command
from utils.files import make_folder, write_json

LISTING, FIRST, SECOND = "listing alone", "content, first time", "content, second time"
NAMES, NAMES_AGAIN = "names, first time", "names, second time"
REPEATS = 3  # of what is quick; the median is shown


def write_tree(root: Path, files: int, classes: int) -> None:
    """Write `files` tiny training images and a test image a class."""
    for label, count in enumerate(class_sizes(files, classes).tolist()):
        for part, images in (("train", count), ("test", 1)):
            folder = root / part / f"class{label:05}"
            make_folder(folder)
            for number in range(images):
                (folder / f"image{number:06}.jpg").write_bytes(b"%s %d %d" % (part.encode(), label, number))


def measure(what: str, root: Path) -> dict[str, float]:
    """Return the seconds of loading a data set, with its identity where `what` says so, and the peak memory in MiB."""
    started = time.perf_counter()
    with looking_early(root / "identity", root / "data" if what in (FIRST, SECOND) else None) as early:
        data = load_dataset("folder", Profile(imb_ratio=None), str(root / "data"))
        listed = time.perf_counter()
        if what != LISTING:
            with_identity(data, "names" if what in (NAMES, NAMES_AGAIN) else "content", root / "identity", early=early)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": ended - started, "identity_seconds": ended - listed, "peak_mib": peak}


def measured(what: str, root: Path) -> dict[str, float]:
    """Return what `measure` finds in a fresh process."""
    answer = root / "answer.json"
    words = ["-m", "benchmarks.speed.identity", "--measure", what, "--root", str(root), "--answer", str(answer)]
    return answer_of(words, answer, what)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_own_parser("speed.identity", __doc__)
    parser.add_argument("--files", type=int, default=ROWS, help=f"training images [{ROWS}]")
    for name in ("measure", "root", "answer"):  # how it calls itself
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    own = parser.parse_args(argv)
    if own.files < 100:
        parser.error("--files must be at least 100")
    return own


def main(argv: Sequence[str] | None = None) -> None:
    own = parse(argv)
    if own.measure:
        write_json(Path(own.answer), measure(own.measure, Path(own.root)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root, classes = Path(folder), min(CLASSES, own.files // 5)
        write_tree(root / "data", own.files, classes)
        time.sleep(1e-9 * UNSETTLED_NS)
        for what in (LISTING, FIRST, SECOND, NAMES, NAMES_AGAIN):
            for repeat in range(1 if what in (FIRST, NAMES) else REPEATS):
                rows.append({"what": what, "files": own.files + classes, "repeat": repeat, **measured(what, root)})
                print(f"{what}: {rows[-1]['seconds']:.2f} s", flush=True)
    table = pd.DataFrame(rows)
    medians = table.groupby("what", sort=False)[["seconds", "identity_seconds", "peak_mib"]].median()
    medians["ratio"] = medians["seconds"] / medians.loc[LISTING, "seconds"]
    shown = pd.DataFrame(
        {
            "what": medians.index,
            "seconds": medians["seconds"].map("{:.2f}".format),
            "of these, identity": medians["identity_seconds"].map("{:.2f}".format),
            "listing alone = 1": medians["ratio"].map("{:.2f}".format),
            "peak MiB": medians["peak_mib"].map("{:.0f}".format),
        }
    )
    made = provenance("speed.identity", argv, torch.device("cpu"))
    table = table.assign(**made)
    notes = f"{own.files + classes:,} tiny files in {classes:,} classes, medians. Made by `{made['command']}`."
    write_record(own.results, "identity", table, shown, notes)


if __name__ == "__main__":
    run_command(main)
