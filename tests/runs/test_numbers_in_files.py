"""Whole numbers as features, in every form alike, and the rows of numbers that are none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

import runs.feature_files.content
import runs.feature_files.parquet
from api.arrays import InputError, feature_rows
from runs.feature_files import read_features
from utils.errors import UserError

EXACT = 16_777_216  # 2^24: float32 has 24 bits of precision
Arrays = dict[str, np.ndarray]


def arrays(kind: str = "int64", low: int = 0, high: int = 100) -> Arrays:
    """Whole numbers as features of three classes, for training and test."""
    draw = np.random.default_rng(0)
    made: Arrays = {}
    for split, count in (("train", 12), ("test", 6)):
        made[f"{split}_features"] = draw.integers(low, high, (count, 4)).astype(kind)
        made[f"{split}_labels"] = np.arange(count) % 3
    return made


def npz(given: Arrays, place: Path) -> Path:
    np.savez(place / "mine.npz", **given)  # type: ignore[arg-type]
    return place / "mine.npz"


def npy(given: Arrays, place: Path) -> Path:
    for name, array in given.items():
        np.save(place / f"{name}.npy", array)
    return place


def pth(given: Arrays, place: Path) -> Path:
    torch.save({name: torch.from_numpy(array) for name, array in given.items()}, place / "mine.pth")
    return place / "mine.pth"


def safetensors(given: Arrays, place: Path) -> Path:
    save_file({name: torch.from_numpy(array) for name, array in given.items()}, place / "mine.safetensors")
    return place / "mine.safetensors"


def table(given: Arrays, place: Path, columns: dict[str, object]) -> Path:
    labels = np.concatenate([given["train_labels"], given["test_labels"]])
    splits = ["train"] * len(given["train_labels"]) + ["test"] * len(given["test_labels"])
    pyarrow.parquet.write_table(pyarrow.table({**columns, "label": labels, "split": splits}), place / "mine.parquet")
    return place / "mine.parquet"


def columns(given: Arrays, place: Path) -> Path:
    rows = np.concatenate([given["train_features"], given["test_features"]])
    return table(given, place, {f"f{i}": rows[:, i] for i in range(rows.shape[1])})


def lists(given: Arrays, place: Path) -> Path:
    rows = np.concatenate([given["train_features"], given["test_features"]])
    return table(given, place, {"embedding": list(rows)})


FORMS: list[Callable[[Arrays, Path], Path]] = [npz, npy, pth, safetensors, columns, lists]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("kind", ["uint8", "int16", "int64"])
def test_whole_numbers_are_what_they_are_as_floats(
    form: Callable[[Arrays, Path], Path], kind: str, tmp_path: Path
) -> None:
    given = arrays(kind)
    _, content = read_features(form(given, tmp_path), quiet=True)
    for name in ("train_features", "test_features"):
        found = content["features"][name].numpy()
        assert found.dtype == np.float32 and found.tolist() == given[name].tolist()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("sign", [1, -1])
def test_whole_numbers_that_float32_would_round_are_refused(
    form: Callable[[Arrays, Path], Path], sign: int, tmp_path: Path
) -> None:
    given = arrays()
    given["train_features"][7, 2] = sign * EXACT
    _, content = read_features(form(given, tmp_path), quiet=True)
    assert int(content["features"]["train_features"][7, 2]) == sign * EXACT
    given["train_features"][7, 2] = sign * (EXACT + 1)
    with pytest.raises(UserError) as caught:
        read_features(form(given, tmp_path), quiet=True)
    message = str(caught.value)
    assert f"whole numbers beyond 16,777,216, which float32 rounds (first: {sign * (EXACT + 1)} in row 7)" in message
    assert message.count("\n") == 0 and "save measured numbers as float32" in message


def test_the_row_of_a_table_is_that_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.feature_files.parquet, "BATCH", 1 << 11)  # two rows at a time
    given = arrays()
    given["test_features"][4, 1] = 2**40
    with pytest.raises(UserError, match=r"'f1' of mine.parquet holds .* \(first: 1099511627776 in row 16\)"):
        read_features(columns(given, tmp_path), quiet=True)


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64"])
def test_numbers_without_a_sign(kind: str, tmp_path: Path) -> None:
    given = arrays(kind)
    _, content = read_features(npz(given, tmp_path), quiet=True)
    assert content["features"]["test_features"].tolist() == given["test_features"].tolist()
    if kind != "uint16":
        given["test_features"][0, 0] = np.iinfo(kind).max
        with pytest.raises(UserError, match=f"first: {np.iinfo(kind).max} in row 0"):
            read_features(npz(given, tmp_path), quiet=True)


def test_labels_in_the_place_of_features_are_refused(tmp_path: Path) -> None:
    given = arrays()
    for name in ("train", "test"):
        swapped = given[f"{name}_labels"], given[f"{name}_features"]
        given[f"{name}_features"], given[f"{name}_labels"] = swapped
    with pytest.raises(UserError, match=r"'train_features' must be \(images, features\), not \(12,\) in int64"):
        read_features(npz(given, tmp_path), quiet=True)
    given = arrays()
    given["train_features"] = given["train_features"] > 50
    with pytest.raises(UserError, match=r"'train_features' must be .* not .* in bool"):
        read_features(npz(given, tmp_path), quiet=True)


@pytest.mark.parametrize("mmap", ["off", "on"])
@pytest.mark.parametrize(("kind", "bad", "words"), [("float32", np.nan, "not finite"), ("float64", 1e300, "too large")])
def test_rows_of_numbers_that_are_none_are_named(
    kind: str, bad: float, words: str, mmap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.feature_files.content, "BLOCK", 8)  # two rows at a time
    given = arrays(kind)
    given["train_features"][[5, 10], [3, 0]] = bad
    given["train_features"][10, 2] = bad
    with pytest.raises(UserError) as caught:
        read_features(npz(given, tmp_path), quiet=True, mmap=mmap)
    assert f"'train_features' holds numbers that are {words}" in str(caught.value)
    assert "in 2 rows (first: row 5); leave such rows out, with their labels, or make them anew" in str(caught.value)


def test_a_program_that_brings_whole_numbers() -> None:
    rows = np.array([[1, -EXACT], [EXACT, 2]])
    assert feature_rows(rows).tolist() == rows.tolist()
    for beyond in (EXACT + 1, -EXACT - 1):
        rows[0, 0] = beyond
        with pytest.raises(InputError, match="whole numbers beyond 16,777,216"):
            feature_rows(rows)
