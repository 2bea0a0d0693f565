"""Two data sets that look alike: what each command does with what it made of the first when it meets the second.

    python -m benchmarks.robustness.look_alikes
    python -m benchmarks.robustness.look_alikes --quick    # no tables

The second has the same flags, folder and file names, and one thing is another: pixels, labels, order, class names, a
single image, the test set. A cell is right where the command refuses with one line, computes anew, maps the classes
onto those that were learned, or where the numbers that are there are right. What is right is known from elsewhere:
`predict.py` looks at the second test set, file by file, and tables are made once more without anything kept.
`tools.compare` meets a run of each, of two seeds: one line for both is right where only the order differs. Writes
`results/look_alikes.csv` and `.md`; exit status 1 where a wrong number came out in silence.
"""

import contextlib
import io
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

import evaluate
import main_stage1
import main_stage2
import predict
import reproduce
from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from tools import compare
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder, read_json, write_text

NAMES = ["amber", "blue", "coral"]
TRAIN, TEST, SIDE = (8, 7, 6), 4, 16
NETWORK = ("--network", "resnet8", "--stem", "cifar", "--width", "4", "--image_size", "16", "--resize", "16")
STAGE1 = ("--epochs", "8", "--batch_size", "4", "--lr", "0.05", "--wd", "0.0005")
STAGE2 = ("--finetune_epoch", "2", "--views", "1")
REFUSED, RECOMPUTED, MAPPED, SAME, SILENT = "refused", "recomputed", "mapped", "same and right", "silent"
TOLD_APART = "told apart"
COMMANDS = ("stage 2", "evaluate", "predict", "resume", "reuse", "compare")
RIGHT = (REFUSED, RECOMPUTED, MAPPED, SAME, TOLD_APART)


@dataclass
class Shades:
    """A small data set to be written: of each split (name, label, seed of the pixels) a row, and perhaps class names.

    The seed gives the brightness too: a file's pixels do not follow its label.
    """

    train: list[tuple[str, int, int]]
    test: list[tuple[str, int, int]]
    names: list[str] | None
    turned: int = 0  # by how many classes the brightness of all pixels is shifted


def original(named: bool) -> Shades:
    """Return the first data set."""
    train = [(f"train{c}{i}.png", c, 100 * c + i) for c, count in enumerate(TRAIN) for i in range(count)]
    test = [(f"test{c}{i}.png", c, 1000 + 100 * c + i) for c in range(len(NAMES)) for i in range(TEST)]
    return Shades(train, test, list(NAMES) if named else None)


def write(data: Shades, folder: Path) -> Path:
    """Write a data set as lists with images beside them; return the folder."""
    make_folder(folder)
    for part, rows in (("train", data.train), ("test", data.test)):
        for name, _, seed in rows:
            shade = (seed % 1000 // 100 + data.turned) % len(NAMES)
            noise = np.random.default_rng(seed).normal(255 * (shade + 0.5) / len(NAMES), 15, (SIDE, SIDE, 3))
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name)
        if data.names is None:
            write_text(folder / f"{part}.txt", "".join(f"{name} {label}\n" for name, label, _ in rows))
            continue
        content = {
            "images": [{"id": i, "file_name": name} for i, (name, _, _) in enumerate(rows)],
            "annotations": [{"id": i, "image_id": i, "category_id": label} for i, (_, label, _) in enumerate(rows)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(data.names)],
        }
        write_text(folder / f"{part}.json", json.dumps(content))
    return folder


def other_pixels(data: Shades) -> None:
    data.turned = 1


def other_labels(data: Shades) -> None:
    for rows in (data.train, data.test):
        rows[0], rows[-1] = (rows[0][0], rows[-1][1], rows[0][2]), (rows[-1][0], rows[0][1], rows[-1][2])


def other_order(data: Shades) -> None:
    data.train.reverse()
    data.test.reverse()


def other_names(data: Shades) -> None:
    data.names = [*NAMES[:2], "crimson"]


def renumbered(data: Shades) -> None:
    place = [(label + 1) % len(NAMES) for label in range(len(NAMES))]
    data.train, data.test = ([(n, place[y], seed) for n, y, seed in rows] for rows in (data.train, data.test))
    if data.names is not None:
        data.names = [NAMES[place.index(label)] for label in range(len(NAMES))]


def one_image(data: Shades) -> None:
    name, label, seed = data.train[2]
    data.train[2] = name, label, seed + 50


def test_labels(data: Shades) -> None:
    data.test = [(name, (label + 1) % len(NAMES), seed) for name, label, seed in data.test]


def test_pixels(data: Shades) -> None:
    data.test = [(name, label, (seed + 100) % 300 + 1050) for name, label, seed in data.test]


# What is another, whether the classes have names, and the change.
LOOK_ALIKES: dict[str, tuple[bool, Callable[[Shades], None]]] = {
    "same names, other pixels": (True, other_pixels),
    "same pixels, other labels": (True, other_labels),
    "other order": (True, other_order),
    "other class names": (True, other_names),
    "classes renumbered, named": (True, renumbered),
    "classes renumbered, no names": (False, renumbered),
    "one training image changed": (True, one_image),
    "test labels only": (False, test_labels),
    "test pixels only": (False, test_pixels),
}


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and the one line with which it refused."""

    text: str
    refusal: str | None


@dataclass(frozen=True)
class Bench:
    """Where the runs of the first data set are, and where the second data set is."""

    data: Path
    out: Path

    def flags(self) -> list[str]:
        return ["--dataset", "list", "--data_dir", str(self.data), *NETWORK, "--workers", "0", "--out", str(self.out)]

    def call(self, main: Callable[[Sequence[str]], object], *arguments: str) -> Outcome:
        """Run a command in this process; a UserError is its refusal."""
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                main(arguments)
            except UserError as error:
                return Outcome(text.getvalue(), str(error))
        return Outcome(text.getvalue(), None)

    def stage1(self, *more: str) -> Outcome:
        return self.call(main_stage1.main, *self.flags(), *STAGE1, *more)

    def stage2(self, *more: str) -> Outcome:
        return self.call(main_stage2.main, *self.flags(), *STAGE2, "--overwrite", *more)

    def report(self) -> Outcome:
        return self.call(evaluate.main, *self.flags(), "--json", str(self.out / "report.json"))

    def reported(self) -> float | None:
        """Return the accuracy of the last report, None without one."""
        path = self.out / "report.json"
        return read_json(path)["checkpoints"]["last"]["plain"]["all"] if path.exists() else None

    def table(self, name: str) -> Outcome:
        own = ["--views", "1"] + ([] if name == "delta" else ["--methods", "ce"])
        where = ["--pretrained_pth", str(self.run("stage1")), "--results", str(self.out / "results")]
        return self.call(reproduce.main, name, *self.flags(), *own, *where)

    def rows(self, name: str) -> list[list[float]]:
        """Return the accuracies in a table's CSV."""
        # A file of other data of that name stays, and the latest is of these.
        path = max((self.out / "results").glob(f"{name}_*.csv"), key=lambda file: file.stat().st_mtime_ns)
        return pd.read_csv(path).filter(regex="plain_all$").round(6).to_numpy(dtype=float).tolist()

    def run(self, stage: str, seed: int = 0) -> Path:
        [found] = self.out.glob(f"list-*/seed{seed}/{stage}*")
        return found

    def metrics(self, stage: str) -> float:
        """Return the last epoch's accuracy on the test images as a run recorded it."""
        return read_json(self.run(stage) / "metrics.json")["last"]["plain"]["all"]


def predicted_names(bench: Bench, stage: str, data: Shades, images: Path) -> list[str]:
    """Return the class that `predict.py` names for each test image of a data set in the folder `images`."""
    files = [str(images / name) for name, _, _ in data.test]
    csv = bench.out / "predictions.csv"
    folder = str(bench.run(stage))
    done = bench.call(
        predict.main, "--pretrained_pth", folder, "--images", *files, "--csv", str(csv), "--overwrite", "--workers", "0"
    )
    if done.refusal:
        raise UserError(done.refusal)
    return pd.read_csv(csv, dtype=str)["class"].tolist()


def looked_at(bench: Bench, stage: str, data: Shades, renumbering: bool) -> float:
    """Return the accuracy in percent of a run on a test set as `predict.py` sees it, file by file.

    The labels of a renumbered list without names are brought back to those that were learned.
    """
    predicted = predicted_names(bench, stage, data, bench.data)
    shift = 1 if renumbering and data.names is None else 0
    wanted = [
        str((label - shift) % len(NAMES)) if data.names is None else data.names[label] for _, label, _ in data.test
    ]
    return 100 * float(np.mean([a == b for a, b in zip(predicted, wanted, strict=True)]))


class Experiment:
    """Prepares the first data set once and meets every look-alike with a copy of what was made of it."""

    def __init__(self, folder: Path, tables: Sequence[str]) -> None:
        self.folder, self.tables = folder, tables
        self.made: dict[bool, Bench] = {}

    def first(self, named: bool) -> Bench:
        """Return the first data set, with or without class names, and what was made of it."""
        if named not in self.made:
            data = write(original(named), self.folder / f"first{named:d}" / "shades")
            bench = Bench(data, self.folder / f"out{named:d}")
            steps = [bench.stage1(), bench.stage2(), *(bench.table(name) for name in self.tables)]
            refused = [step.refusal for step in steps if step.refusal]
            if refused:
                raise UserError(refused[0])
            self.made[named] = bench
        return self.made[named]

    def meet(self, kind: str, commands: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return a row for each of the `commands` (by default all) that meets a look-alike: its outcome and words."""
        named, change = LOOK_ALIKES[kind]
        data = original(named)
        change(data)
        place = write(data, self.folder / kind.replace(" ", "_") / "shades")
        rows = []
        for command in commands or (*COMMANDS, *self.tables):
            bench = Bench(place, place.parent / f"out_{command.replace(' ', '')}")
            shutil.copytree(self.first(named).out, bench.out)
            outcome, words = self.cell(command, bench, data, change is renumbered)
            rows.append({"second data set": kind, "command": command, "outcome": outcome, "words": words})
        return rows

    def cell(self, command: str, bench: Bench, data: Shades, renumbering: bool) -> tuple[str, str]:
        """Return what a command did, and the line that says so."""
        if command in self.tables:
            return self.table_cell(command, bench)
        if command == "predict":
            return self.predict_cell(bench, data, renumbering)
        if command == "compare":
            return self.compare_cell(bench, data)
        if command in ("resume", "reuse"):
            if command == "resume":
                (bench.run("stage1") / "metrics.json").unlink()
            done = bench.stage1(f"--{command}")
            before, measured = self.first(data.names is not None).metrics("stage1"), None
            if done.refusal is None:
                measured = bench.metrics("stage1")
            right = looked_at(bench, "stage1", data, renumbering)
            return judge(done, measured, right, before)
        if command == "stage 2":
            done = bench.stage2()
            measured = None if done.refusal else bench.metrics("stage2")
            right = looked_at(bench, "stage2", data, renumbering)
            return judge(done, measured, right, None)
        return judge(bench.report(), bench.reported(), looked_at(bench, "stage1", data, renumbering), None)

    def predict_cell(self, bench: Bench, data: Shades, renumbering: bool) -> tuple[str, str]:
        """Compare predictions with those for the same pixels in the first data set; of others, with a report on them.

        It knows no data set: names are those that were learned, whatever lists say.
        """
        first, before = self.first(data.names is not None), original(data.names is not None)
        if {(name, seed) for name, _, seed in data.test} == {(n, s) for n, _, s in before.test} and not data.turned:
            then = predicted_names(bench, "stage1", before, first.data)
            now = predicted_names(bench, "stage1", before, bench.data)
            return (SAME, "the same names for the same pixels") if then == now else (SILENT, f"{now}, not {then}")
        return judge(bench.report(), bench.reported(), looked_at(bench, "stage1", data, renumbering), None)

    def compare_cell(self, bench: Bench, data: Shades) -> tuple[str, str]:
        """Train on the second data set with another seed, as a repeat has, and put both runs side by side."""
        fresh = Bench(bench.data, bench.out / "fresh")
        trained = fresh.stage1("--seed", "1")
        if trained.refusal:
            raise UserError(trained.refusal)
        runs, table = [self.first(data.names is not None).run("stage1"), fresh.run("stage1", 1)], bench.out / "table.md"
        done = bench.call(compare.main, *(str(run) for run in runs), "--markdown", str(table))
        names = first_column(table.read_text()) if table.exists() else []
        return judge_lines(done, names, images_of(data) == images_of(original(True)))

    def table_cell(self, name: str, bench: Bench) -> tuple[str, str]:
        """Compare a table with one that is made of the same stage 1 with nothing kept."""
        done = bench.table(name)
        if done.refusal:
            return REFUSED, done.refusal
        found = bench.rows(name)
        for kept in ("tables", "features", "results"):
            shutil.rmtree(bench.out / kept, ignore_errors=True)
        again = bench.table(name)
        wrong = again.refusal is not None or not np.allclose(found, bench.rows(name), atol=1e-4, equal_nan=True)
        return (SILENT, "") if wrong else (MAPPED if "mapped onto" in done.text else RECOMPUTED, line_of(done.text))


def judge(done: Outcome, measured: float | None, right: float, before: float | None) -> tuple[str, str]:
    """Return the outcome of a command that `measured` an accuracy, where `right` is what it should be."""
    if done.refusal is not None:
        return REFUSED, done.refusal
    if measured is None or abs(measured - right) > 1e-3:
        return SILENT, f"{measured} where {right} is right"
    if "mapped onto" in done.text:
        return MAPPED, line_of(done.text)
    return (SAME if before == measured else RECOMPUTED), line_of(done.text)


def images_of(data: Shades) -> tuple[object, ...]:
    """Return what makes two data sets one to an average: the pixels and classes of both splits, in any order."""
    splits = [sorted((seed, label) for _, label, seed in rows) for rows in (data.train, data.test)]
    return *splits, data.turned, data.names or NAMES


def judge_lines(done: Outcome, names: Sequence[str], one_data: bool) -> tuple[str, str]:
    """Return the outcome of comparing two runs, where the table's lines have these names; one line needs `one_data`."""
    if done.refusal is not None:
        return REFUSED, done.refusal
    if len(names) == 1:
        return (SAME, "one line: the same images and labels") if one_data else (SILENT, "one mean of both")
    return (TOLD_APART, line_of(done.text)) if len(set(names)) == 2 else (SILENT, f"lines of the names {names}")


def first_column(markdown: str) -> list[str]:
    """Return the cells of the first column of the first table of a Markdown file, without its title."""
    table = itertools.takewhile(lambda line: line.startswith("|"), itertools.dropwhile(is_text, markdown.splitlines()))
    return [line.strip("| ").split(" | ")[0] for line in list(table)[2:]]


def is_text(line: str) -> bool:
    """Tell whether a line of Markdown is no row of a table."""
    return not line.startswith("|")


def line_of(text: str) -> str:
    """Return the lines of a command that say what is another."""
    signs = ("mapped onto", "anew", "warning: ", "note: ")
    return " / ".join(dict.fromkeys(line for line in text.splitlines() if any(sign in line for sign in signs)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_own_parser("robustness.look_alikes", __doc__, quick="no tables")
    own = parser.parse_args(argv)
    tables = () if own.quick else ("unified", "delta", "path")
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(Path(folder), tables)
        rows = []
        for kind in LOOK_ALIKES:
            rows += experiment.meet(kind)
            print(f"{kind}: {', '.join(row['outcome'] for row in rows if row['second data set'] == kind)}", flush=True)
        table = pd.DataFrame(rows)
        table["words"] = [words.replace(folder, "") for words in table["words"]]
    shown = table.pivot(index="second data set", columns="command", values="outcome")
    shown = shown.loc[list(LOOK_ALIKES), list(dict.fromkeys(table["command"]))].reset_index()
    counts = pd.crosstab(table["command"], table["outcome"]).reindex(columns=[*RIGHT, SILENT], fill_value=0)
    counts = counts.loc[list(shown.columns[1:])].reset_index()
    made = provenance("robustness.look_alikes", argv, torch.device("cpu"))
    for name in ("command", "git_revision", "torch"):
        table[f"made_by_{name}" if name == "command" else name] = made[name]
    wrong = int((~table["outcome"].isin(RIGHT)).sum())
    notes = (
        f"What a command does with runs, features and rows of one data set when it meets another of the same names: "
        f"{len(table)} cells, {wrong} silent. Made by `{made['command']}`."
    )
    write_record(own.results, "look_alikes", table, shown, notes, {"Cells of each command": counts})
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
