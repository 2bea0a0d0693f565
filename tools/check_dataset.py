"""Look at a data set before a night on a GPU is spent on it: classes, counts, shots, lists, missing and odd images.

    python -m tools.check_dataset --dataset imagenet_lt --data_dir data --plot sizes.png
    python -m tools.check_dataset --dataset folder --data_dir my_images --decode all --json report.json

Exit status 0 where nothing is missing and every image that was decoded can be, 1 otherwise, 2 for what a user got
wrong. That every file exists is always looked at (a minute for half a million on a local disk), and 1,000 random images
are decoded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets import IN_MEMORY, load_dataset
from datasets.decoding.options import ORIENTATIONS, DecodeOptions
from datasets.identity.content import CONTENT, HOW, with_identity
from datasets.identity.early_look import images_root, looking_early
from datasets.long_tail import FIELD_BOUNDS, LongTailedData, Profile
from datasets.on_disk.folder_splits import with_written_lists
from datasets.on_disk.layouts import LAYOUTS, LIST_FLAGS, Facts, find_lists, list_files
from datasets.on_disk.listed_split import ListedSplit, join
from evaluation.metrics import shot_groups, thirds_fill
from evaluation.places import check_figure
from evaluation.plots import save_figure
from settings.checks import check_value
from settings.fields import FLAGS, STAGE1
from settings.presets import stage_preset
from tools.image_files import KINDS, SMALLER, check_files, suggested_size, use_of
from utils.arguments import CommandParser
from utils.command import run_command
from utils.files import check_file, sha256_file, write_json
from utils.text import counted, shown, tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 30  # classes that are printed one by one
STANDS = ("path stands", "paths stand")
WARNING = "warning: "  # how such a note of a data set begins


def shot_counts(class_counts: np.ndarray) -> dict[str, int]:
    """Return how many classes are many-, medium- and few-shot (`evaluation.metrics.shot_groups`)."""
    return {name: int(members.sum()) for name, members in shot_groups(class_counts).items()}


def part_counts(labels: np.ndarray, num_classes: int) -> dict[str, int]:
    """Return a part's images, its classes, and the images of the largest and the smallest of all classes."""
    counts = np.bincount(labels, minlength=num_classes)
    return {
        "images": len(labels),
        "classes": int((counts > 0).sum()),
        "largest": int(counts.max()),
        "smallest": int(counts.min()),
    }


def compare_facts(facts: Facts, parts: dict[str, dict[str, int]], shots: dict[str, int]) -> list[str]:
    """Return a line for every number that is not the field's."""
    rows = (
        ("training images", facts.train, parts["train"]["images"]),
        ("test images", facts.test, parts["test"]["images"]),
        ("images in the largest class", facts.largest, parts["train"]["largest"]),
        ("images in the smallest class", facts.smallest, parts["train"]["smallest"]),
        ("many-medium-few classes", "-".join(map(str, facts.shots)), "-".join(map(str, shots.values()))),
    )
    return [f"{found} {what}, where the field's lists have {known}" for what, known, found in rows if known != found]


def find_repeats(learned: ListedSplit, test: ListedSplit) -> list[str]:
    """Return a line for paths that stand twice in the training or the test list, and for those in both."""
    seen, tested = (np.unique(split.images, return_counts=True) for split in (learned, test))
    rows = (
        (seen[0][seen[1] > 1], *STANDS, "more than once among the training (and held-out) images"),
        (tested[0][tested[1] > 1], *STANDS, "more than once among the test images"),
        (
            np.intersect1d(seen[0], tested[0], assume_unique=True),
            "path is",
            "paths are",
            "among training and test images",
        ),
    )
    return [
        f"{counted(len(paths), one, several)} {where} (first: {shown(os.fsdecode(paths[0]))})"
        for paths, one, several, where in rows
        if len(paths)
    ]


def make_report(
    data: LongTailedData, lists: dict[str, Path], facts: Facts | None, decode: int | None, options: DecodeOptions
) -> dict[str, Any]:
    """Return all that is known of a data set, its files included where it has some, as JSON can hold it."""
    splits = {"train": data.train, "holdout": data.holdout, "test": data.test}
    parts = {name: part_counts(split.labels, data.num_classes) for name, split in splits.items() if len(split)}
    shots = shot_counts(data.class_counts)
    report = {
        "dataset": data.name,
        "classes": data.num_classes,
        "parts": parts,
        "imbalance_factor": float(data.class_counts.max() / data.class_counts.min()),
        "shots": shots,
        "subset": data.subset,
        "lists": {str(path): sha256_file(path) for path in lists.values()},
        "reading": [note for note in data.notes if not note.startswith(WARNING)],
        "warnings": [note.removeprefix(WARNING) for note in data.notes if note.startswith(WARNING)],
        "files": None,
        "class_names": data.class_names,
        "class_counts": data.class_counts.tolist(),
        "by_class": {
            name: np.bincount(split.labels, minlength=data.num_classes).tolist()
            for name, split in splits.items()
            if len(split)
        },
    }
    report["warnings"] += compare_facts(facts, parts, shots) if facts else []
    listed = [split for split in splits.values() if isinstance(split, ListedSplit)]
    if listed:
        report["warnings"] += find_repeats(join(listed[:2]), listed[2])
        report["files"] = check_files(join(listed), decode, options)
    report["warnings"] += data.identity.warnings if data.identity is not None else ()
    return report


def report_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    import pandas as pd

    classes = pd.DataFrame(report["by_class"], index=[shown(name) for name in report["class_names"]])
    train = report["parts"]["train"]
    lines = [
        f"{report['dataset']}: {report['classes']} classes",
        pd.DataFrame(report["parts"]).T.to_string(),
        f"imbalance factor {report['imbalance_factor']:.1f} ({train['largest']} / {train['smallest']}): the training "
        "images of the largest class over those of the smallest",
        *shot_lines(np.array(report["class_counts"])),
        *([classes.to_string()] if len(classes) <= NAMED else []),
        *(f"list {path}: sha256 {digest}" for path, digest in report["lists"].items()),
        *report["reading"],
        *(f"subset {name}: {value}" for name, value in report["subset"].items()),
        *(f"warning: {line}" for line in report["warnings"]),
    ]
    return "\n".join([*lines, *file_lines(report["files"]), *verdict(report)])


def shot_lines(class_counts: np.ndarray) -> list[str]:
    """Return how the classes fall into the groups that reports are made for, and what to do where one is empty."""
    (many, few), shots = FIELD_BOUNDS, shot_counts(class_counts)
    lines = [
        f"shots: {shots['many']} many (> {many}), {shots['medium']} medium ({few} to {many}), "
        f"{shots['few']} few (< {few})",
        "(groups of classes by their training images, for which accuracies are reported)",
    ]
    if thirds_fill(class_counts):
        lines.append("a group is empty: --shots thirds groups these classes by their own sizes")
    return lines


def verdict(report: dict[str, Any]) -> list[str]:
    """Return the last lines: whether training can use what was looked at, and which image size suits it."""
    files = report["files"]
    if files is None:
        return []
    lines, sides = [], files["shorter_sides"]
    if sides is not None:
        size, resize, stem = suggested_size(sides["median"])
        lines += [
            f"shorter side of the images: {sides['smallest']} to {sides['largest']} pixels, median {sides['median']}",
            f"flags for this size: --image_size {size} --resize {resize} --stem {stem}",
        ]
    unusable = sum(entry["files"] for kind, entry in files["kinds"].items() if KINDS[kind] is None)
    if unusable:
        return [
            *lines,
            f"{counted(unusable, 'file')} cannot be used: mend or remove, or train with --skip_bad {unusable}",
        ]
    return [*lines, "training can use every file that was looked at"]


def file_lines(files: dict[str, Any] | None) -> list[str]:
    """Return the lines of the report on the files, none for a data set that has none."""
    import pandas as pd

    if files is None:
        return []
    options = DecodeOptions(**files["options"])
    rows = [
        {"files": f"{entry['files']:,}", "kind": kind, "training": use_of(kind, options)}
        for kind, entry in files["kinds"].items()
    ]
    lines = [f"{files['listed']:,} files looked for in {files['root']}, {files['decoded']:,} of them decoded"]
    lines += [options.words()] if options.bits is not None or options.max_pixels is not None else []
    lines += [pd.DataFrame(rows).to_string(index=False)] if rows else ["all there, all plain RGB"]
    for kind in reversed(files["kinds"]):  # the worst last, where they are seen
        entry = files["kinds"][kind]
        if kind == SMALLER:  # nothing that anyone would mend
            continue
        lines += [f"{kind}:", *(f"    {name}" for name in entry["first"])]
        lines += [f"    {entry['why']}"] if "why" in entry else []
        if entry["files"] > len(entry["first"]):
            lines.append(f"    and {entry['files'] - len(entry['first']):,} more")
    return lines


def is_usable(report: dict[str, Any]) -> bool:
    """Tell whether no file was found that training cannot use."""
    return report["files"] is None or all(KINDS[kind] for kind in report["files"]["kinds"])


def draw_sizes(name: str, class_counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw the sorted class sizes with the bounds of the shot groups."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    sizes = np.sort(class_counts)[::-1]
    if len(sizes) <= NAMED:
        order = np.argsort(-class_counts, kind="stable")
        axes.bar(np.arange(len(sizes)), sizes, color="tab:blue")
        names = [shown(class_names[label])[:20] for label in order]
        axes.set_xticks(np.arange(len(sizes)), names, rotation=60, ha="right")
    else:
        axes.step(np.arange(len(sizes) + 1), [*sizes, sizes[-1]], where="post", color="tab:blue")
    axes.set_yscale("log")
    shots = shot_counts(class_counts)
    for words, bound, colour in (
        (f"many: > {FIELD_BOUNDS.many_above} ({shots['many']} classes)", FIELD_BOUNDS.many_above + 0.5, "tab:green"),
        (f"few: < {FIELD_BOUNDS.few_below} ({shots['few']} classes)", FIELD_BOUNDS.few_below - 0.5, "tab:red"),
    ):
        axes.axhline(bound, color=colour, linestyle=":", linewidth=1, label=words)
    axes.set(xlabel="class, largest first", ylabel="training images", title=f"{name}: {sizes.sum():,} training images")
    axes.legend(fontsize=8, title=f"{len(sizes)} classes, {shots['medium']} medium", title_fontsize=8)
    return figure


def load(arguments: argparse.Namespace) -> tuple[LongTailedData, dict[str, Path], Facts | None]:
    """Load the data set that the command line names; return it, its list files, and what is known of these."""
    name, data_dir = arguments.dataset, arguments.data_dir
    files = list_files(arguments)
    profile = Profile(
        imb_ratio=arguments.imb_ratio,
        test_share=arguments.test_share,
        test_seed=arguments.test_seed,
        drop_empty_classes=arguments.drop_empty_classes,
    )
    folder = Path(arguments.out) / "identity"
    root = images_root(name, data_dir, files) if arguments.identity == CONTENT else None
    with looking_early(folder, root) as early:
        data = with_written_lists(load_dataset(name, profile, data_dir, files), Path(arguments.out))
        data = with_identity(data, arguments.identity, folder, early=early)
    if name in LAYOUTS:
        return data, find_lists(LAYOUTS[name], data_dir, files), LAYOUTS[name].facts
    return data, {}, None


def decode_options(arguments: argparse.Namespace) -> DecodeOptions:
    """Return how training would make pixels of the images of a command line."""
    usual = stage_preset(STAGE1, arguments.dataset, {}).get("orientation", FLAGS["orientation"].default)
    return DecodeOptions(arguments.orientation or usual, arguments.bits, arguments.max_pixels)


def decode_count(text: str) -> int | None:
    """Parse `--decode`: a number of images, or None for "all"."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of images nor 'all'")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = CommandParser("python -m tools.check_dataset", __doc__)
    parser.add_argument("--dataset", required=True, help="name of the data set")
    parser.add_argument("--data_dir", default="data", help="folder of the data sets; of list and folder: their own")
    for flag in LIST_FLAGS:
        declared = FLAGS[flag.removeprefix("--")]
        parser.add_argument(flag, metavar=declared.metavar, help=declared.help)
    parser.add_argument("--imb_ratio", type=float, help="make balanced data long-tailed [cifar and digits: 100]")
    parser.add_argument("--test_share", type=float, default=0.0, metavar="X", help=FLAGS["test_share"].help)
    parser.add_argument("--test_seed", type=int, default=0, metavar="N", help="seed of --test_share [0]")
    parser.add_argument("--drop_empty_classes", action="store_true", help=FLAGS["drop_empty_classes"].help)
    parser.add_argument("--orientation", choices=ORIENTATIONS, help=FLAGS["orientation"].help + " [as in training]")
    parser.add_argument("--bits", type=int, metavar="N", help=FLAGS["bits"].help)
    parser.add_argument("--max_pixels", type=int, metavar="N", help=FLAGS["max_pixels"].help)
    parser.add_argument(
        "--identity", choices=HOW, default=CONTENT, help="tell images apart by content or by name [content]"
    )
    parser.add_argument(
        "--out", default="checkpoints", metavar="FOLDER", help="folder of the runs, for the hashes [checkpoints]"
    )
    parser.add_argument("--decode", type=decode_count, default=1000, metavar="N|all", help="images to decode [1000]")
    parser.add_argument("--plot", type=Path, help="write a picture of the class sizes to this file: .png, .pdf or .svg")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check the data set that a command line names; exit with status 1 where training cannot use it."""
    arguments = make_parser().parse_args(argv)
    for name in ("imb_ratio", "test_share", "test_seed", "bits", "max_pixels"):
        if getattr(arguments, name) is not None:
            check_value(name, getattr(arguments, name))
    if arguments.plot is not None:
        check_figure("--plot", arguments.plot)
    if arguments.json is not None:
        check_file("--json", arguments.json)
    if arguments.dataset in IN_MEMORY:
        if arguments.imb_ratio is None:
            arguments.imb_ratio = Profile().imb_ratio
        factor = arguments.imb_ratio
        tell(f"a balanced data set, made long-tailed by a factor of {factor:g}; --imb_ratio names another, 1 for none")
    report = make_report(*load(arguments), arguments.decode, decode_options(arguments))
    tell(report_text(report))
    if arguments.plot:
        counts = np.array(report["class_counts"])
        save_figure(arguments.plot, draw_sizes(report["dataset"], counts, report["class_names"]))
    if arguments.json:
        write_json(arguments.json, report)
    if not is_usable(report):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
