"""Lists: tables with headers and labels of any kind, paths in many forms, COCO files as tools export them."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.robustness.everyday_inputs.case import CHECK, Case, Ended, Judge, Words, differs, first_of, taken
from benchmarks.robustness.everyday_inputs.folders import sizes
from benchmarks.robustness.everyday_inputs.pictures import (
    COLOURS,
    NAMES,
    NETWORK,
    SOLO,
    TEST,
    TRAIN,
    TRAINED,
    colour,
    folder_at,
    rows,
    tree,
    write_lists,
)

ROOT = ("--image_root", "{data}/images")


def both(end: str) -> Words:
    """Return the flags of a list a split."""
    return ("--dataset", "list", "--train_list", f"{{data}}/train{end}", "--test_list", f"{{data}}/test{end}", *ROOT)


def look(flags: Words) -> Words:
    return (*CHECK, *flags, "--decode", "all", "--json", "{out}/report.json", "--out", "{out}")


def numbered(ended: Ended) -> str | None:
    """Judge the counts of classes that have no names in their list, in order."""
    right = {"train": list(TRAIN.values()), "test": list(TEST.values())}
    return differs("images", ended.report()["by_class"], right)


def table(
    name: str, lines: Sequence[str], end: str = ".csv", flags: Words = (), judge: Judge | None = None, kind: str = ""
) -> Case:
    """Return a case of a list a split with these lines (`pictures.write_lists`), by default with names of classes."""
    right = "3 classes, 24 and 6 images" + (", named" if judge is None else "")
    make = partial(write_lists, lines=lines, name="{split}" + end)
    return Case(kind or TABLES, name, right, make, [look((*both(end), *flags))], judge or sizes(TRAIN, TEST))


def encoded(folder: Path) -> None:
    """Write lists as a spreadsheet on Windows does: a byte order mark, line ends of two characters, semicolons."""
    write_lists(folder, ("Datei;Klasse", "{path};{name}"), "{split}.csv")
    for path in (folder / "train.csv", folder / "test.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))


def with_split(folder: Path) -> None:
    write_lists(folder, ("filename,label,subset", "{path},{name},{split}"), "{split}.csv")
    train, test = ((folder / f"{split}.csv").read_text() for split in ("train", "test"))
    (folder / "all.csv").write_text(train + "".join(test.splitlines(keepends=True)[1:]))


def with_names(folder: Path) -> None:
    write_lists(folder)
    (folder / "names.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(NAMES)))


def newcomer(folder: Path) -> None:
    write_lists(folder, ("image_id,species,place", '{stem},{name},"pit 3, north"'), "{split}.csv")
    folder_at(folder / "new")
    for i, name in enumerate(COLOURS):
        colour(name, 800 + i).save(folder / "new" / f"{name}.png")


def named_end_to_end(ended: Ended) -> str | None:
    wrong = [f"{name} is {row['class']}" for name, row in ended.predictions().iterrows() if row["class"] not in name]
    return first_of(differs("classes", ended.config()["class_names"], NAMES), ", ".join(wrong) or None)


def other_ending(folder: Path) -> None:
    write_lists(folder)
    for path in (folder / "train.txt", folder / "test.txt"):
        path.write_text(path.read_text().replace(".png", ".JPEG"))


def backslashes(folder: Path) -> None:
    write_lists(folder)
    for path in (folder / "train.txt", folder / "test.txt"):
        path.write_text(path.read_text().replace("/", "\\"))


def coco(folder: Path) -> None:
    """Write COCO's JSON, with an image that nobody annotated."""
    tree(folder / "images")
    for split in ("train", "test"):
        listed = rows(folder / "images", split)
        colour("azurite", 4).save(folder / "images" / split / "unseen.png")
        paths = [*(path for path, _ in listed), f"{split}/unseen.png"]
        marks = [10 + NAMES.index(name) for _, name in listed]
        content = {
            "images": [{"id": i, "file_name": path, "width": 20, "height": 20} for i, path in enumerate(paths)],
            "annotations": [{"id": 50 + i, "image_id": i, "category_id": mark} for i, mark in enumerate(marks)],
            "categories": [{"id": 10 + i, "name": name, "supercategory": "none"} for i, name in enumerate(NAMES)],
        }
        (folder / f"{split}.json").write_text(json.dumps(content))


TABLES, PATHS, EMPTY = "tables as lists", "paths in lists", "classes without images"
CSV = (*both(".csv"), "--image_suffix", ".png")
RUN = ("{run}", "--images", "{data}/new", "--csv", "{out}/predictions.csv")
PATHS_OF_NEWCOMER = [
    look(CSV),
    ("main_stage1.py", *CSV, *TRAINED),
    ("main_stage2.py", *CSV, *NETWORK, *SOLO, "--finetune_epoch", "2", "--method", "ce"),
    ("evaluate.py", *CSV, *NETWORK, *SOLO, "--cur_stage", "stage2", "--method", "ce"),
    ("predict.py", "--pretrained_pth", *RUN),
]
CASES = (
    table("CSV with a header, names, quoted fields", ("image,species,place", '{path},{name},"pit 3, north"')),
    Case(
        TABLES,
        "semicolons, byte order mark, Windows line ends",
        "3 classes, 24 and 6 images, named",
        encoded,
        [look((*both(".csv"), "--path_column", "Datei", "--label_column", "Klasse"))],
        sizes(TRAIN, TEST),
    ),
    table("text with names as labels", ("{path} {name}",), ".txt"),
    table("labels 1 to K", ("{path} {from_one}",), ".txt", judge=numbered),
    table("labels 7.0, 40.0, 2005.0", ("path,label", "{path},{catalogue}.0"), judge=numbered),
    table("one-hot columns", ("image,azurite,calcite,malachite", "{path},{hot}")),
    table("ids without an ending, --image_suffix", ("id,label", "{stem},{name}"), flags=("--image_suffix", ".png")),
    Case(
        TABLES,
        "one table with a column of splits",
        "3 classes, 24 and 6 images, named",
        with_split,
        [look(("--dataset", "list", "--train_list", "{data}/all.csv", *ROOT))],
        sizes(TRAIN, TEST),
    ),
    Case(
        TABLES,
        "a text list of numbers, --class_names",
        "3 classes, 24 and 6 images, named",
        with_names,
        [look((*both(".txt"), "--class_names", "{data}/names.txt"))],
        sizes(TRAIN, TEST),
    ),
    Case(
        TABLES,
        "from a CSV to predictions",
        "check, both stages, report, names in the predictions",
        newcomer,
        PATHS_OF_NEWCOMER,
        named_end_to_end,
    ),
    table("absolute paths below the root", ("{place}/{path} {number}",), ".txt", judge=numbered, kind=PATHS),
    Case(
        PATHS,
        "backslashes",
        "3 classes, 24 and 6 images",
        backslashes,
        [look(both(".txt"))],
        numbered,
    ),
    Case(
        PATHS,
        "files of another ending",
        "refused, with the ending that is there",
        other_ending,
        [look(both(".txt"))],
        taken,
        way=(r"\.png",),
        refuse=True,
    ),
    Case(EMPTY, "COCO, an image without annotation", "left out", coco, [look(both(".json"))], sizes(TRAIN, TEST)),
    table("text with labels 0 to K-1", ("{path} {number}",), ".txt", judge=numbered, kind="plain files"),
)
