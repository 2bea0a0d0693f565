"""Large feature files, reports of many classes and linear classifiers beside an earlier build: memory and CPU time.

    git worktree add ../earlier REVISION
    python -m benchmarks.builds.large --base ../earlier
    python -m benchmarks.builds.large --base ../earlier --only report --report 5000
    python -m benchmarks.builds.large --base ../earlier --quick
    python -m benchmarks.builds.large --report 100000

Every measurement is a process of its own with one thread, on drawn features; builds alternate, `--rounds` times over,
and a ratio is the median of the rounds' ratios. Five parts, chosen by `--only`; all of them take about 25 minutes:

- `load`: what `main_stage2.py --features` needs to load `--images` rows of `--classes` classes in half precision: CPU
  and peak, and the peak's curve over the rows. A peak is that of the resident set above imports; its target is a
  multiple of the file. A feature file is read and never mapped, so that a peak holds no page of its cache;
  `mapped_mb`, by how much the pages of mapped files grew until the end of a command, are those of libraries.
- `command`: the same command as a whole, once on these rows with `FEW` classes, for its peak, and once on a sixteenth
  of them with all classes, for the speed of an epoch. All rows with all classes are an hour a round.
- `report`: `evaluate.py` where images and classes are `--report` each, and its curves over images and over classes.
- `parts`: a temperature, and re-balanced predictions.
- `probe`: a linear classifier by this build, the earlier one and scikit-learn's lbfgs after different numbers of steps;
  the time is that until the loss on held-out rows is within `NEAR` of the best of all. Once, unless `--probe_rounds`
  says otherwise. `--probe 100000 768 1000` takes hours.

This build loads and trains with `--mmap off` and, as a third one, with `--mmap on`. Writes `results/large_files.csv`,
`.md` and `.png`. Without `--base` this build alone makes one report, written to `results/large_report.csv` and `.md`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks.builds.compare import revision_of
from benchmarks.command import ROOT, make_own_parser
from benchmarks.record import provenance, write_record
from evaluation.plots import save_figure
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder, read_json

CHILD = Path(__file__).with_name("large_child.py")
PARTS = ("load", "command", "report", "parts", "probe")
FEW = 100  # classes
NEAR = 1e-3  # of the lowest held-out loss, relative
STEPS = (15, 25, 50, 100, 200)  # of a linear classifier
BLOCK = 10_000  # rows that are drawn together
EARLIER, NOW, ON_DISK = "earlier", "now", "now, --mmap on"
Ways = Mapping[str, tuple[Path, Sequence[str]]]  # the folder of a build and the flags that it is run with


class Target(NamedTuple):
    """A number of a part by a build, and what it is to be at most: a `ratio` to the earlier build, `MB`, or `files`,
    multiples of the file's MB; at the largest of the sizes, of `by` first."""

    part: str
    what: str
    unit: str
    most: float
    build: str = NOW
    by: str = "images"


TARGETS = (
    Target("load", "load_cpu_seconds", "ratio", 0.5),
    Target("load", "load_peak_mb", "files", 1.5),
    Target("load", "load_peak_mb", "files", 0.3, ON_DISK),
    Target("command", "peak_mb", "files", 1.5),
    Target("command", "peak_mb", "files", 0.3, ON_DISK),
    Target("command", "epoch_seconds", "ratio", 1 / 0.95),
    Target("command", "epoch_seconds", "ratio", 1 / 0.95, by="classes"),
    Target("command", "epoch_seconds", "ratio", 1 / 0.95, ON_DISK, "classes"),
    Target("report", "peak_mb", "MB", 1000),
    Target("parts", "temperature_seconds", "ratio", 1 / 6),
    Target("parts", "rebalanced_seconds", "ratio", 1 / 3),
)


@dataclass(frozen=True)
class Sizes:
    """What is drawn: rows, width, classes of the file that is loaded; images and classes of a report; of a probe."""

    images: int
    width: int
    classes: int
    report: int
    probe: tuple[int, int, int]


FULL = Sizes(400_000, 768, 8142, 20_000, (20_000, 128, 1000))
QUICK = Sizes(3_000, 16, 20, 60, (900, 8, 12))
PART_OF = 16  # of the rows, on which an epoch with all classes is timed


def write_features(path: Path, rows: tuple[int, int], width: int, classes: int, *, classifier: bool) -> None:
    """Write drawn features in half precision, `rows` of training and test images, of `classes` long-tailed classes."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((classes, width), dtype=np.float32)
    spread = np.exp2(-np.linspace(0, 3, width, dtype=np.float32))  # as features have it: few directions matter most

    def draw(labels: np.ndarray) -> np.ndarray:
        features = np.empty((len(labels), width), np.float16)
        for start in range(0, len(labels), BLOCK):
            own = labels[start : start + BLOCK]
            noise = generator.standard_normal((len(own), width), dtype=np.float32)
            features[start : start + BLOCK] = (0.4 * centres[own] + noise) * spread
        return features

    tail = (classes * generator.random(rows[0] - classes) ** 2).astype(np.int64)
    train = np.concatenate([np.arange(classes), tail])
    test = np.arange(rows[1]) % classes
    arrays = {"train_features": draw(train), "train_labels": train, "test_features": draw(test), "test_labels": test}
    weights = {"fc.weight": (0.4 * centres / spread).astype(np.float32)} if classifier else {}
    np.savez(path, **arrays, **weights)  # type: ignore[arg-type]


def measured(build: Path, *words: object) -> dict[str, Any]:
    """Return what a child process measures in the folder of a build."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        task, *more = map(str, words)
        process = subprocess.run(
            [sys.executable, str(CHILD), task, str(answer), *more],
            cwd=build,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if process.returncode:
            last = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            raise UserError(f"the measurement of {task} in {build} failed: {last}")
        return read_json(answer)


def alternate(builds: Ways, rounds: int, case: dict[str, object], words: Sequence[object]) -> list[dict]:
    """Return a row for each number, build and round of one measurement; the builds take turns."""
    rows = []
    for number in range(rounds):
        for name, (build, flags) in builds.items():
            for what, value in measured(build, *words, *flags).items():
                rows.append({**case, "build": name, "round": number, "what": what, "value": value})
            print(f"{case}, {name}, round {number + 1} of {rounds}", flush=True)
    return rows


def with_mmap(builds: Ways) -> Ways:
    """Return the builds with this one twice: with the features in memory and in their file."""
    here = builds[NOW][0]
    return {EARLIER: builds[EARLIER], NOW: (here, ("--mmap", "off")), ON_DISK: (here, ("--mmap", "on"))}


def stage2_rows(
    builds: Ways, task: str, rounds: int, file: Path, size: tuple[int, int, int], part: str
) -> Iterator[dict]:
    """Yield rows of a stage 2 of one epoch, or of its loading, on a file of so many images, features and classes."""
    images, width, classes = size
    write_features(file, (images, images // 10), width, classes, classifier=True)
    case = {"part": part, "images": images, "classes": classes, "file_mb": file.stat().st_size / 1e6}
    flags = ("--features", file, "--device", "cpu", "--finetune_epoch", 1, "--batch_size", 512)
    yield from alternate(with_mmap(builds), rounds, case, (task, "main_stage2", *flags))


def load_rows(builds: Ways, sizes: Sizes, rounds: int, folder: Path) -> Iterator[dict]:
    """Yield rows of loading a file of the full size, and once a half and a quarter of it."""
    for share, times in ((1, rounds), (2, 1), (4, 1)):
        size = (sizes.images // share, sizes.width, sizes.classes)
        yield from stage2_rows(builds, "loading", times, folder / "load.npz", size, "load")


def command_rows(builds: Ways, sizes: Sizes, rounds: int, folder: Path) -> Iterator[dict]:
    """Yield rows of a whole stage 2 on all rows and few classes, and on few rows and all classes."""
    few = max(sizes.images // PART_OF, 2 * sizes.classes)
    for images, classes in ((sizes.images, min(FEW, sizes.classes // 2)), (few, sizes.classes)):
        size = (images, sizes.width, classes)
        yield from stage2_rows(builds, "command", rounds, folder / "command.npz", size, "command")


def report_rows(builds: Ways, sizes: Sizes, rounds: int, folder: Path, *, curves: bool = True) -> Iterator[dict]:
    """Yield rows of a report whose images and classes are as many, and once of fewer images and of fewer classes."""
    full, parts = sizes.report, (2, 4) if curves else ()
    grid = [(full, full, rounds), *((full // s, full, 1) for s in parts), *((full, full // s, 1) for s in parts)]
    for images, classes, times in grid:
        file = folder / "report.npz"
        write_features(file, (classes + images, images), min(sizes.width, 128), classes, classifier=True)
        case = {"part": "report", "images": images, "classes": classes, "file_mb": file.stat().st_size / 1e6}
        yield from alternate(builds, times, case, ("command", "evaluate", "--features", file, "--device", "cpu"))


def write_report_alone(size: int, argv: Sequence[str] | None, results: Path) -> None:
    """Measure a report of as many images as classes by this build alone, and write it."""
    with tempfile.TemporaryDirectory() as folder:
        full = [*report_rows({NOW: (ROOT, ())}, replace(FULL, report=size), 1, Path(folder), curves=False)]
    made = provenance("builds.large", argv, torch.device("cpu"))
    rows = pd.DataFrame(full)
    shown = rows.pivot(index=["images", "classes"], columns="what", values="value").reset_index()
    shown = shown[["images", "classes", "cpu_seconds", "peak_mb"]]
    notes = f"One report by one thread of {made['device']}, torch {made['torch']}; the peak is in MB above imports."
    write_record(results, "large_report", rows.assign(**made), shown.round(1), notes)


def part_rows(builds: Ways, sizes: Sizes, rounds: int, folder: Path) -> Iterator[dict]:
    """Yield rows of single parts of a report."""
    images, classes = min(sizes.images // 100, 4000), sizes.classes
    yield from alternate(
        builds, rounds, {"part": "parts", "images": images, "classes": classes}, ("parts", images, classes)
    )


def probe_rows(builds: Ways, sizes: Sizes, rounds: int, folder: Path) -> Iterator[dict]:
    """Yield rows of linear classifiers after different numbers of steps."""
    images, width, classes = sizes.probe
    file = folder / "probe.npz"
    write_features(file, (images, max(images // 10, classes)), width, classes, classifier=False)
    own = {name: (build, "own") for name, (build, _) in builds.items()}
    solvers = {**own, "scikit-learn": (ROOT, "scikit-learn")}
    for number in range(rounds):
        for steps in STEPS:
            for name, (build, solver) in solvers.items():
                case = {"part": "probe", "images": images, "classes": classes, "steps": steps, "round": number}
                for what, value in measured(build, "probe", file, solver, steps).items():
                    yield {**case, "build": name, "what": what, "value": value}
            print(f"probe, {steps} steps, round {number + 1} of {rounds}", flush=True)


ROWS = {
    "load": load_rows,
    "command": command_rows,
    "report": report_rows,
    "parts": part_rows,
    "probe": probe_rows,
}


def target_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line a target: medians of both builds at the full size, the median ratio with its range, and whether the
    target is reached."""
    lines = []
    for target in TARGETS:
        own = rows[(rows["part"] == target.part) & (rows["what"] == target.what)]
        if own.empty or target.build not in set(own["build"]):
            continue
        for size in sorted(("images", "classes"), key=lambda name: name != target.by):
            own = own[own[size] == own[size].max()]
        pairs = own.pivot(index="round", columns="build", values="value")
        ratios = pairs[target.build] / pairs[EARLIER]
        now = float(pairs[target.build].median())
        counted = float(ratios.median()) if target.unit == "ratio" else now
        if target.unit == "files":
            counted /= float(own["file_mb"].iloc[0])
        lines.append(
            {
                "what": f"{target.part}: {target.what}" + target.build.removeprefix(NOW),
                "images": own["images"].iloc[0],
                "classes": own["classes"].iloc[0],
                "earlier": pairs[EARLIER].median(),
                "now": now,
                "ratio": ratios.median(),
                "lowest": ratios.min(),
                "highest": ratios.max(),
                "counted": counted,
                "target": f"{target.most:.3g} {target.unit}",
                "reached": counted <= target.most,
            }
        )
    return pd.DataFrame([*lines, *probe_lines(rows)])


def probe_lines(rows: pd.DataFrame) -> list[dict[str, object]]:
    """Return a line for each solver that this build is compared with: CPU seconds to a loss within `NEAR` of the best,
    by round."""
    own = rows[rows["part"] == "probe"]
    if own.empty:
        return []
    wide = own.pivot(index=["round", "build", "steps"], columns="what", values="value").reset_index()
    near = wide[wide["held_out_loss"] <= wide["held_out_loss"].min() * (1 + NEAR)]
    first = near.groupby(["round", "build"])["probe_seconds"].min().unstack()
    lines: list[dict[str, object]] = []
    for other in ("earlier", "scikit-learn"):
        if "now" not in first or other not in first:
            continue
        ratios = (first["now"] / first[other]).dropna()
        line = {
            "what": f"probe: seconds, beside {other}",
            "earlier": first[other].median(),
            "now": first["now"].median(),
        }
        spread = {"ratio": ratios.median(), "lowest": ratios.min(), "highest": ratios.max(), "counted": ratios.median()}
        lines.append({**line, **spread, "target": "0.333 ratio", "reached": bool(ratios.median() <= 1 / 3)})
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """Return the curves of peak memory: of loading over images, of a report over images and over classes."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    sweeps = (("load", "images", "loading"), ("report", "images", "report"), ("report", "classes", "report"))
    for axes, (part, over, title) in zip(figure.subplots(1, 3), sweeps, strict=True):
        own = rows[(rows["part"] == part) & (rows["what"] == ("load_peak_mb" if part == "load" else "peak_mb"))]
        fixed = "classes" if over == "images" else "images"
        own = own[own[fixed] == own[fixed].max()]
        for build, line in own.groupby("build"):
            peaks = line.groupby(over)["value"].median()
            axes.plot(peaks.index, peaks, marker="o", label=str(build))
        if part == "load" and not own.empty:
            files = own.groupby(over)["file_mb"].median()
            axes.plot(files.index, files, "k:", label="the file")
        axes.set(title=title, xlabel=over, ylabel="peak above imports, MB", ylim=(0, None))
        if not own.empty:
            axes.legend()
    return figure


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this benchmark."""
    parser = make_own_parser("builds.large", __doc__, "one round of small sizes: a rehearsal")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="checkout of the earlier build")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="times that each build runs [3]")
    parser.add_argument("--probe_rounds", type=int, default=1, metavar="N", help="the same of the part probe [1]")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure [all]")
    parser.add_argument("--images", type=int, metavar="N", help=f"rows of the file that is loaded [{FULL.images}]")
    parser.add_argument("--width", type=int, metavar="D", help=f"features of a row [{FULL.width}]")
    parser.add_argument("--classes", type=int, metavar="K", help=f"classes of that file [{FULL.classes}]")
    parser.add_argument("--report", type=int, metavar="N", help=f"images and classes of a report [{FULL.report}]")
    parser.add_argument("--probe", type=int, nargs=3, metavar="N", help=f"rows, width, classes {FULL.probe}")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write what the command line asks for."""
    own = make_parser().parse_args(argv)
    if min(own.rounds, own.probe_rounds) < 1:
        raise UserError(f"--rounds and --probe_rounds must be at least 1, not {own.rounds} and {own.probe_rounds}")
    if own.base is None:
        if vars(own) != {**vars(make_parser().parse_args([])), "report": own.report, "results": own.results}:
            raise UserError("without --base one report is made, and --report and --results alone are of use")
        write_report_alone(own.report or FULL.report, argv, own.results)
        return
    builds: Ways = {EARLIER: (own.base.resolve(), ()), NOW: (ROOT, ())}
    usual = QUICK if own.quick else FULL
    earlier = revision_of(own.base)
    given = {name: getattr(own, name) for name in vars(usual) if getattr(own, name) is not None}
    sizes = Sizes(**{**vars(usual), **given})
    rounds = 1 if own.quick else own.rounds
    times = dict.fromkeys(PARTS, rounds) | {"probe": 1 if own.quick else own.probe_rounds}
    with tempfile.TemporaryDirectory() as folder:
        found = [row for part in own.only for row in ROWS[part](builds, sizes, times[part], Path(folder))]
    made = {**provenance("builds.large", argv, torch.device("cpu")), "earlier_revision": earlier}
    rows = pd.DataFrame(found)
    table = target_table(rows)
    make_folder(own.results)
    save_figure(own.results / "large_files.png", draw(rows))
    notes = (
        f"One thread of {made['device']}, torch {made['torch']}; {rounds} interleaved rounds; "
        f"seconds are of the CPU, peaks in MB above imports. Revisions: {made['git_revision']}, earlier {earlier}."
    )
    write_record(own.results, "large_files", rows.assign(**made), table.round(3), notes)


if __name__ == "__main__":
    run_command(main)
