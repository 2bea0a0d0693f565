"""Features that stay in their file (`--mmap`): the same numbers, rows read when they are asked for, changes noticed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import runs.feature_files.source
from datasets.features import DeviceFeatures, FileRows, FileSplit
from datasets.long_tail import LongTailedData
from runs.feature_files import read_features
from runs.feature_files.held_out import hold_out
from utils.errors import UserError

COUNTS = {"train": 40, "holdout": 9, "test": 12}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def arrays(kind: str = "float32", mirrored: bool = False) -> dict[str, torch.Tensor]:
    """Features of three classes of all splits, in a type of torch's."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for split, count in COUNTS.items():
        found[f"{split}_features"] = torch.randn(count, 5, generator=draw, dtype=torch.float64)
        found[f"{split}_labels"] = torch.arange(count) % 3
    if mirrored:
        found["test_features_mirrored"] = found["test_features"].flip(1)
    own = getattr(torch, kind)
    return {name: values.to(own) if "features" in name else values for name, values in found.items()}


def npz(values: dict[str, torch.Tensor]) -> Path:
    np.savez("mine.npz", **{name: own.numpy() for name, own in values.items()})  # type: ignore[arg-type]
    return Path("mine.npz")


def npy(values: dict[str, torch.Tensor]) -> Path:
    Path("mine").mkdir()
    for name, own in values.items():
        np.save(f"mine/{name}.npy", own.numpy())
    return Path("mine")


def safetensors(values: dict[str, torch.Tensor]) -> Path:
    save_file({name: own.contiguous() for name, own in values.items()}, "mine.safetensors")
    return Path("mine.safetensors")


WRITERS = {"npz": npz, "npy": npy, "safetensors": safetensors}


def data_of(path: Path, mmap: str) -> LongTailedData:
    return read_features(path, quiet=True, mmap=mmap)[1]["data"]


def in_file(path: Path) -> FileRows:
    """The training features of a file, which they stay in."""
    split = data_of(path, "on").train
    assert isinstance(split, FileSplit)
    return split.ways[0]


def same(left: LongTailedData, right: LongTailedData) -> None:
    """Assert that two data sets, of which the second stays in its file, have the same numbers bit for bit."""
    for name in COUNTS:
        there, stays = getattr(left, name), getattr(right, name)
        assert not isinstance(there, FileSplit) and isinstance(stays, FileSplit)
        for way in range(there.images.shape[1]):
            whole = stays.ways[way].whole()
            assert whole.numpy().dtype == there.images.dtype and np.array_equal(whole, there.images[:, way])
        assert stays.images.shape[1:] == there.images.shape[1:]
        assert np.array_equal(stays.digests, there.digests) and np.array_equal(stays.labels, there.labels)
    assert left.subset == right.subset


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_same_numbers_in_every_form(form: str, kind: str, mirrored: bool) -> None:
    if kind == "bfloat16" and form != "safetensors":
        pytest.skip("numpy has no bfloat16")
    path = WRITERS[form](arrays(kind, mirrored))
    assert read_features(path, quiet=True, mmap="on")[0] == read_features(path, quiet=True, mmap="off")[0]
    same(data_of(path, "off"), data_of(path, "on"))


@pytest.mark.parametrize("form", WRITERS)
def test_maps_of_one_pixel_and_a_column_of_splits(form: str) -> None:
    values = arrays()
    parts = [values[f"{split}_features"] for split in COUNTS]
    words = np.repeat(list(COUNTS), list(COUNTS.values()))
    order = np.random.default_rng(0).permutation(len(words))
    together = {
        "features": torch.cat(parts)[order][:, :, None, None],
        "labels": torch.cat([values[f"{split}_labels"] for split in COUNTS])[order],
    }
    if form == "safetensors":  # which holds no texts
        together = {name: own[:, :, None, None] if "features" in name else own for name, own in values.items()}
    path = WRITERS[form](together)
    if form == "npz":
        np.savez(path, split=words[order], **{name: own.numpy() for name, own in together.items()})  # type: ignore[arg-type]
    if form == "npy":
        np.save(path / "split.npy", words[order])
    stays = data_of(path, "on")
    same(data_of(path, "off"), stays)
    assert {name: len(getattr(stays, name)) for name in COUNTS} == COUNTS


def test_rows_are_indexed_as_those_of_the_tensor_that_they_stand_for() -> None:
    rows, whole = in_file(npz(arrays())), arrays()["train_features"]
    assert (len(rows), rows.ndim, rows.shape, rows.numel(), rows.dtype) == (40, 2, (40, 5), 200, torch.float32)
    order = torch.tensor([7, 8, 9, 3, 3, 39, 0])
    for asked in (slice(None), slice(3, 11), slice(0, 40, 7), slice(5, 5), order, order[:0], whole[:, 0] > 0):
        assert torch.equal(rows[asked], whole[asked])
    taken = rows.take(order.numpy())
    assert torch.equal(taken.whole(), whole[order]) and torch.equal(taken[2:4], whole[order][2:4])
    assert all(map(torch.equal, rows.split(16), whole.split(16)))


def test_held_out_rows_and_batches_on_a_device() -> None:
    values = {name: own for name, own in arrays("float16", True).items() if not name.startswith("holdout")}
    path = npz(values)
    both = [hold_out(read_features(path, quiet=True, mmap=mmap)[1], 0.3, 1)["data"] for mmap in ("off", "on")]
    same(*both)
    for name in COUNTS:
        there, stays = (DeviceFeatures(getattr(data, name), torch.device("cpu")) for data in both)
        rows = torch.tensor([2, 0])
        for mirrored in (False, True) if name == "test" else (False,):
            assert torch.equal(there.plain(rows, mirrored), stays.plain(rows, mirrored))


def compressed() -> Path:
    np.savez_compressed("mine.npz", **{name: own.numpy() for name, own in arrays().items()})  # type: ignore[arg-type]
    return Path("mine.npz")


def pickled() -> Path:
    torch.save(arrays(), "mine.pth")
    return Path("mine.pth")


def column_after_column() -> Path:
    folder = npy(arrays())
    np.save(folder / "train_features.npy", np.asfortranarray(arrays()["train_features"]))
    return folder


def of_another_machine() -> Path:
    folder = npy(arrays())
    np.save(folder / "train_features.npy", arrays()["train_features"].numpy().astype(">f4"))
    return folder


@pytest.mark.parametrize("make", [compressed, pickled, column_after_column, of_another_machine])
def test_what_cannot_stay_is_refused_where_it_was_asked_for_and_read_where_not(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make()
    with pytest.raises(
        UserError, match=r"--mmap on: 'train_features[.npy]*' cannot stay in its file, being .*; numpy\.save, "
    ):
        read_features(path, mmap="on")
    expected = data_of(path, "off").train.images
    monkeypatch.setattr(runs.feature_files.source, "memory_size", lambda: 1.0)
    assert np.array_equal(data_of(path, "auto").train.images, expected)


def test_what_is_large_beside_the_memory_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npz(arrays())
    for memory, stays in ((1.9 * path.stat().st_size, True), (2.1 * path.stat().st_size, False)):
        monkeypatch.setattr(runs.feature_files.source, "memory_size", lambda memory=memory: memory)
        assert isinstance(read_features(path)[1]["data"].train, FileSplit) == stays
        assert ("features stay in the file" in capsys.readouterr().out) == stays
    assert not isinstance(data_of(path, "off").train, FileSplit)


@pytest.mark.parametrize("form", WRITERS)
def test_a_file_that_changes_under_a_run_is_refused_and_one_that_is_replaced_goes_on(form: str) -> None:
    path = WRITERS[form](arrays())
    rows, whole = in_file(path), arrays()["train_features"]
    file = path / "train_features.npy" if path.is_dir() else path
    content, status = file.read_bytes(), file.stat()
    Path("other").write_bytes(bytes(len(content)))
    os.rename(file, "old")
    os.rename("other", file)
    assert torch.equal(rows[:], whole)
    with open("old", "r+b") as opened:
        opened.write(content)
    os.utime("old", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(rows[:], whole)  # touched, and as it was
    os.utime("old", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(UserError, match="was changed while it was in use"):
        rows[:3]
    os.truncate("old", len(content) // 3)
    with pytest.raises(UserError, match="was changed while it was in use"):
        rows[39:]


@pytest.mark.parametrize(("change", "words"), [(np.inf, "not finite"), (np.nan, "not finite"), (1e300, "too large")])
def test_numbers_that_are_not_finite_are_found(change: float, words: str) -> None:
    values = arrays("float64")
    values["train_features"][7, 3] = change
    path = npz(values)
    for mmap in ("on", "off"):
        with pytest.raises(UserError, match=f"'train_features' holds numbers that are {words}"):
            read_features(path, mmap=mmap)


def test_a_flipped_bit_of_an_archive_is_found() -> None:
    path = npz({**arrays(), "train_features": torch.arange(400_000.0).view(40, 10_000)})
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(300_000.0, 300_100.0).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    for mmap in ("on", "off"):
        with pytest.raises(UserError, match=r"damaged, or not a \.npz file \(Bad CRC-32 for file 'train_features"):
            read_features(path, mmap=mmap)
