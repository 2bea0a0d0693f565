"""Features as people save them, held-out rows that ask for no temperature, a test set that is not balanced."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.robustness.everyday_inputs.case import Case, Ended, Judge, Words, differs, first_of, near
from benchmarks.robustness.everyday_inputs.photos import PREDICT
from benchmarks.robustness.everyday_inputs.pictures import NAMES, TRAINED, folder_at, tree

WIDTH = 6
COUNTS = {"train": (12, 8, 4), "test": (4, 4, 4)}
Arrays = dict[str, Any]  # arrays by name
Writer = Callable[[Path, Arrays], None]


def rows(counts: Mapping[str, tuple[int, ...]] = COUNTS, spread: float = 0.3) -> Arrays:
    """Return features of three classes, those of each around a point of its own, and their labels."""
    arrays: Arrays = {}
    for number, (split, sizes) in enumerate(counts.items()):
        labels = np.arange(len(sizes)).repeat(sizes)
        noise = np.random.default_rng(number).normal(0, spread, (len(labels), WIDTH))
        arrays[f"{split}_features"] = (3 * np.eye(3, WIDTH)[labels] + noise).astype(np.float32)
        arrays[f"{split}_labels"] = labels
    return arrays


def named(arrays: Arrays) -> Arrays:
    """Return the same with names as labels."""
    return {key: np.array(NAMES)[value] if key.endswith("labels") else value for key, value in arrays.items()}


def shaped(arrays: Arrays) -> Arrays:
    """Return maps of one pixel and labels of one column."""
    return {key: value[:, None] if key.endswith("labels") else value[..., None, None] for key, value in arrays.items()}


def of_pairs(folder: Path) -> None:
    folder_at(folder / "rows")
    for key, value in rows().items():
        np.save(folder / "rows" / f"{key}.npy", value)


def of_scikit(folder: Path) -> None:
    letters = {"features": "X", "labels": "y"}
    renamed: Arrays = {f"{letters[key.split('_')[1]]}_{key.split('_')[0]}": value for key, value in rows().items()}
    np.savez(folder / "rows.npz", **renamed)


def of_right_names(folder: Path) -> None:
    np.savez(folder / "rows.npz", **rows())


def of_names(folder: Path) -> None:
    np.savez(folder / "rows.npz", **named(rows()))


def of_shapes(folder: Path) -> None:
    np.savez(folder / "rows.npz", **shaped(rows()))


def of_torch(folder: Path) -> None:
    torch.save({key: torch.from_numpy(value) for key, value in rows().items()}, folder / "rows.pth")


def of_one_column(folder: Path) -> None:
    arrays = rows()
    kinds = ("features", "labels")
    joined: Arrays = {kind: np.concatenate([arrays[f"{split}_{kind}"] for split in COUNTS]) for kind in kinds}
    joined["split"] = np.array(list(COUNTS)).repeat([sum(sizes) for sizes in COUNTS.values()])
    np.savez(folder / "rows.npz", **joined)


def of_parquet(folder: Path) -> None:
    arrays = named(rows())
    tables = [
        pd.DataFrame(
            {"embedding": list(arrays[f"{split}_features"]), "label": arrays[f"{split}_labels"], "split": split}
        )
        for split in COUNTS
    ]
    pd.concat(tables).to_parquet(folder / "rows.parquet")


def unseparated(folder: Path) -> None:
    np.savez(folder / "rows.npz", **rows({**COUNTS, "holdout": (3, 3, 3)}, spread=0.1))


def long_tailed_test(folder: Path) -> None:
    np.savez(folder / "rows.npz", **rows({"train": (40, 8, 2), "test": (40, 8, 2)}, spread=2.5))


def with_val(folder: Path) -> None:
    tree(folder / "set")
    tree(folder / "set", train="val", test=None)
    tree(folder / "new", train="azurite", test=None)


def all_right(names: list[str] | None = None) -> Judge:
    """Return a judge of a run on these features: class sizes, names where they are given, accuracy."""

    def judged(ended: Ended) -> str | None:
        config = ended.config()
        return first_of(
            differs("class sizes", config["class_counts"], list(COUNTS["train"])),
            differs("classes", config["class_names"], names) if names else None,
            near("accuracy", ended.scores()["all"], 100),
        )

    return judged


def says_why(ended: Ended) -> str | None:
    """Judge what is said of a temperature that held-out images do not give."""
    if "with --holdout" in ended.text:
        return "asks for --holdout, which was there"
    return None if "no finite temperature" in ended.text else "no word about the temperature"


def balanced_beside(ended: Ended) -> str | None:
    scores = ended.scores()
    if "class_balanced" not in scores:
        return f"'all' alone, {scores['all']:.1f}"
    mean = sum(scores["per_class_accuracy"]) / 3
    said = None if "not balanced" in ended.text else "no line says which is which"
    return first_of(near("class-balanced accuracy", scores["class_balanced"], mean), said)


def probe(name: str) -> list[Words]:
    """Return the command that trains a classifier on a file."""
    return [("main_stage1.py", "--features", f"{{data}}/{name}", "--out", "{out}")]


FORMS, NO_TEMPERATURE = "forms of features", "no finite temperature"
train = partial(Case, FORMS)
WELL = "class sizes 12, 8, 4, accuracy 100"
CASES = (
    Case(
        NO_TEMPERATURE,
        "held-out rows that are all right",
        "the run says so, and not --holdout",
        unseparated,
        probe("rows.npz"),
        says_why,
    ),
    Case(
        NO_TEMPERATURE,
        "predict.py after held-out images that are all right",
        "it says so, and not --holdout",
        with_val,
        [("main_stage1.py", "--dataset", "folder", "--data_dir", "{data}/set", *TRAINED), PREDICT],
        says_why,
    ),
    Case(
        "long-tailed test set",
        "a test set as long-tailed as the training set",
        "class-balanced accuracy beside all, and a line",
        long_tailed_test,
        probe("rows.npz"),
        balanced_beside,
    ),
    train("pairs of .npy in a folder", WELL, of_pairs, probe("rows"), all_right()),
    train("X_train and y_train", WELL, of_scikit, probe("rows.npz"), all_right()),
    train("names as labels", WELL + ", named", of_names, probe("rows.npz"), all_right(NAMES)),
    train("(N, d, 1, 1) and labels (N, 1)", WELL, of_shapes, probe("rows.npz"), all_right()),
    train("a dictionary of torch", WELL, of_torch, probe("rows.pth"), all_right()),
    train("features, labels and split", WELL, of_one_column, probe("rows.npz"), all_right()),
    train(
        "a table in parquet", WELL + ", named", of_parquet, probe("rows.parquet"), all_right(NAMES), needs=("pyarrow",)
    ),
    Case("plain files", "train_features and its like", WELL, of_right_names, probe("rows.npz"), all_right()),
)
