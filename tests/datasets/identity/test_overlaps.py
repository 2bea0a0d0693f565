"""Rows of features, and images in memory, that stand in training and test alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets import load_dataset
from datasets.features import FileSplit
from datasets.identity.content import with_identity
from datasets.long_tail import LongTailedData, Profile
from datasets.on_disk.layouts import ListFiles
from runs.feature_files import read_features
from runs.feature_files.held_out import hold_out
from tests.helpers import succeed

TRAIN = np.repeat(np.arange(3), [12, 5, 2])
TEST = np.repeat(np.arange(3), 4)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Features of three classes, no row of which is another's."""
    draw = np.random.default_rng(seed)
    train, test = (draw.standard_normal((len(labels), 6)).astype(np.float32) for labels in (TRAIN, TEST))
    return {"train_features": train, "train_labels": TRAIN, "test_features": test, "test_labels": TEST}


def warnings_of(path: Path, given: dict[str, np.ndarray], mmap: str = "off", holdout: float = 0.0) -> tuple[str, ...]:
    """Return what is noticed of features in a file that is written here."""
    np.savez(path, **given)  # type: ignore[arg-type]
    content = read_features(path, quiet=True, mmap=mmap)[1]
    data: LongTailedData = (hold_out(content, holdout, 0) if holdout else content)["data"]
    assert isinstance(data.test, FileSplit) == (mmap == "on")
    identity = with_identity(data).identity
    assert identity is not None
    return identity.warnings


@pytest.mark.parametrize("mmap", ["off", "on"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_test_rows_that_are_training_rows_are_counted(mmap: str, mirrored: bool, tmp_path: Path) -> None:
    given = arrays()
    if mirrored:  # which training rows never have
        given["test_features_mirrored"] = given["test_features"] + 1
    assert warnings_of(tmp_path / "clean.npz", given, mmap) == ()
    given["test_features"][[1, 4, 5]] = given["train_features"][[7, 12, 13]]
    assert warnings_of(tmp_path / "leak.npz", given, mmap) == (
        "3 test rows are training rows too, by content (first: row 1 of test is row 7 of train)",
    )


def test_held_out_rows_are_looked_for_among_training_rows_and_test_rows_among_both(tmp_path: Path) -> None:
    given = arrays()
    other = arrays(1)
    given |= {"holdout_features": other["test_features"], "holdout_labels": TEST}
    given["holdout_features"][2] = given["train_features"][3]
    given["test_features"][[0, 6]] = given["train_features"][0], given["holdout_features"][7]
    assert warnings_of(tmp_path / "mine.npz", given) == (
        "1 held-out row is a training row too, by content (first: row 2 of holdout is row 3 of train)",
        "2 test rows are training rows too, by content (first: row 0 of test is row 0 of train)",
    )
    given["test_features"][0] = 9.0
    assert warnings_of(tmp_path / "second.npz", given)[1] == (
        "1 test row is a training row too, by content (first: row 6 of test is row 7 of holdout)"
    )


def test_a_share_of_rows_that_are_there_twice_is_no_held_out_share(tmp_path: Path) -> None:
    given = arrays()
    given["train_features"] = given["train_features"][np.r_[:6, :6, 12:19]]  # over-sampled before the split
    (told,) = warnings_of(tmp_path / "mine.npz", given, holdout=0.5)
    assert "held-out rows are training rows too" in told or "held-out row is a training row too" in told


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_rows_are_no_leak_and_are_said(value: float, tmp_path: Path) -> None:
    given = arrays()
    given["train_features"][[0, 12, 17]] = value
    given["test_features"][[3, 4]] = value
    given["test_features"][8] = given["train_features"][18]
    assert warnings_of(tmp_path / "mine.npz", given) == (
        "1 test row is a training row too, by content (first: row 8 of test is row 18 of train)",
        "2 test rows are training rows too, under more than one label (first: row 3 of test is row 0 of train): empty "
        "rows, or wrong labels",
    )
    constant = {name: np.full_like(own, value) if own.ndim == 2 else own for name, own in given.items()}
    (told,) = warnings_of(tmp_path / "constant.npz", constant)
    assert told.startswith("12 test rows are training rows too, under more than one label")


def test_random_rows_are_found_as_a_search_by_their_bytes_finds_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    given = arrays()
    for name in ("train_features", "test_features"):  # many equal ones, under any label
        given[name] = draw.integers(0, 3, (len(given[name]), 3)).astype(np.float32)
    labels: dict[bytes, set[int]] = {}
    for split in ("train", "test"):
        for row, label in zip(given[f"{split}_features"], given[f"{split}_labels"].tolist(), strict=True):
            labels.setdefault(row.tobytes(), set()).add(label)
    learned = {row.tobytes() for row in given["train_features"]}
    shared = [row.tobytes() for row in given["test_features"] if row.tobytes() in learned]
    one = sum(len(labels[row]) == 1 for row in shared)
    told = warnings_of(tmp_path / "mine.npz", given)
    counts = {"more than one" in line: int(line.split()[0]) for line in told}
    assert len(shared) and (counts.get(False, 0), counts.get(True, 0)) == (one, len(shared) - one)


def test_images_in_memory_are_looked_for_too() -> None:
    digits = load_dataset("digits", Profile(), "data", ListFiles())
    clean = with_identity(digits).identity
    assert clean is not None and clean.warnings == ()
    images = digits.test.images.copy()
    images[5] = digits.train.images[2]
    labels = digits.test.labels.copy()
    labels[5] = digits.train.labels[2]
    data = replace(digits, test=replace(digits.test, images=images, labels=labels))
    identity = with_identity(data).identity
    ids = digits.test.ids[5], digits.train.ids[2]
    assert identity is not None and identity.warnings == (
        f"1 test image is a training image too, by content (first: image {ids[0]} of test is image {ids[1]} of train)",
    )


def test_a_command_says_it_before_training(tmp_path: Path) -> None:
    given = arrays()
    given["test_features"][0] = given["train_features"][0]
    np.savez(tmp_path / "mine.npz", **given)  # type: ignore[arg-type]
    told = succeed("main_stage1", "--features", tmp_path / "mine.npz", "--out", tmp_path / "out").err
    assert told.splitlines()[0].startswith("warning: 1 test row is a training row too")
