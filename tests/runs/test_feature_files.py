"""Features as people have them: names, splits, labels, arrays in files and folders are read as what they are."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import runs.feature_files.content
import runs.feature_files.numpy_arrays
from datasets.names import FEATURE_FILES
from runs.feature_files import read_features
from runs.feature_files.folder import READERS
from runs.feature_files.names import KINDS, ROLES, SPLIT_WORDS, SPLITS, role_of, split_in, split_of
from utils.errors import UserError
from utils.files import sha256_file

Arrays = dict[str, np.ndarray]


def rows(seed: int = 0, width: int = 4) -> Arrays:
    """Features of three classes, for training and test, by this project's names."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 12), ("test", 6)):
        arrays[f"{split}_features"] = draw.standard_normal((count, width)).astype(np.float32)
        arrays[f"{split}_labels"] = np.arange(count) % 3
    return arrays


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def npz(arrays: Arrays, name: str = "mine.npz") -> Path:
    np.savez(name, **arrays)
    return Path(name)


def npy(arrays: Arrays, folder: str = "mine") -> Path:
    """Write each array into a file of its own."""
    for name, array in arrays.items():
        (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(Path(folder) / f"{name}.npy", array)
    return Path(folder)


def pth(content: object, name: str = "mine.pth") -> Path:
    torch.save(content, name)
    return Path(name)


def renamed(arrays: Arrays, **names: str) -> Arrays:
    return {names.get(name, name): array for name, array in arrays.items()}


def tensors(arrays: Arrays) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def same_as(path: Path, arrays: Arrays, names: tuple[str, ...] = ("0", "1", "2")) -> None:
    """Assert that a file holds these arrays, number by number."""
    _, content = read_features(path)
    for name, array in arrays.items():
        assert content["features"][name].numpy().tobytes() == array.tobytes(), name
    assert tuple(content["class_names"]) == names


def refusal(path: Path) -> str:
    """Return the one line by which a file is refused."""
    with pytest.raises(UserError) as caught:
        read_features(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# Names


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "X_train y_train",
            "x_train Y_train",
            "train_x train_y",
            "trainX trainY",
            "Xtr ytr",
            "train_feats train_targets",
        ),
        *("train.embeddings train.target", "features_train labels_train", "training-features training-labels"),
    ],
)
def test_names_as_people_write_them(pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    features, labels = pattern.split()
    names = {"train_features": features, "train_labels": labels}
    same_as(npz(renamed(rows(), **names)), rows())
    assert f"mine.npz: taken: {features} as train_features, {labels} as train_labels\n" in capsys.readouterr().out


@pytest.mark.parametrize("split", SPLITS["holdout"])
def test_names_of_held_out_rows(split: str) -> None:
    arrays = rows()
    held = {f"{split}_X": arrays["test_features"][:3], f"{split}_y": arrays["test_labels"][:3]}
    path = npz({**arrays, **held})
    same_as(path, {**arrays, "holdout_features": held[f"{split}_X"]})
    assert read_features(path)[1]["features"]["holdout_labels"].tolist() == held[f"{split}_y"].tolist()


def test_a_name_means_one_thing() -> None:
    words = [word for s in SPLITS.values() for word in s]
    assert len(words) == len(SPLIT_WORDS)
    for split, splits in SPLITS.items():
        for kind, kinds in KINDS.items():
            assert {ROLES[a + b] for s in splits for k in kinds for a, b in ((s, k), (k, s))} == {f"{split}_{kind}"}
    assert role_of("labels") == "labels" and role_of("labels", "test") == "test_labels"
    assert role_of("train_y", "train") == "train_labels" and role_of("latent") is None
    assert split_of("Validation") == "holdout" and split_of("all") is None
    assert split_in("data/train-00000-of-00004") == ("train", "data 00000 of 00004")
    assert split_in("train_and_test")[0] is None and split_in("trainer")[0] is None
    assert set(READERS) == set(FEATURE_FILES)


def test_two_names_for_one_thing_are_refused_by_name() -> None:
    message = refusal(npz({**rows(), "X_train": rows()["train_features"]}))
    assert "'train_features' and 'X_train' are both 'train_features'" in message


def test_what_is_of_no_split_beside_what_is_stays_unused(capsys: pytest.CaptureFixture[str]) -> None:
    same_as(npz({**rows(), "x": np.zeros(2), "y": np.zeros(2), "data": np.zeros(2), "classes": np.zeros(3)}), rows())
    assert capsys.readouterr().err == "not used of mine.npz: classes, data, x, y\n"


@pytest.mark.parametrize("mixed", [False, True])
def test_a_column_of_splits(mixed: bool) -> None:
    arrays = rows()
    order = np.random.default_rng(0).permutation(18) if mixed else np.arange(18)
    x, y = (np.concatenate([arrays[f"{split}_{kind}"] for split in ("train", "test")])[order] for kind in KINDS)
    split = np.array(["train"] * 12 + ["Test"] * 6)[order]
    right = {
        "train_features": x[split == "train"],
        "test_features": x[split == "Test"],
        "test_labels": y[split == "Test"],
    }
    same_as(npz({"embeddings": x, "target": y, "split": split}), right)  # rows of a split keep their order
    same_as(pth({"x": torch.tensor(x), "y": torch.tensor(y), "split": split.tolist()}), right)
    assert "'split' holds 'folds'" in refusal(npz({"x": x, "y": y, "split": np.array(["folds"] * 18)}))
    assert "'split' 17" in refusal(npz({"x": x, "y": y, "split": split[1:]}))
    assert "'split' must be one text a row" in refusal(npz({"x": x, "y": y, "split": np.zeros(18)}))


@pytest.mark.parametrize("form", ["names", "a column"])
def test_held_out_rows_without_a_test_are_the_test(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As of folders and lists (docs/images.md)."""
    arrays = rows()
    if form == "names":
        path = npz(renamed(arrays, test_features="val_features", test_labels="val_labels"))
    else:
        x, y = (np.concatenate([arrays[f"{split}_{kind}"] for split in ("train", "test")]) for kind in KINDS)
        path = npz({"x": x, "y": y, "split": np.array(["train"] * 12 + ["valid"] * 6)})
    same_as(path, arrays)
    assert "there is no test split, so that the 6 held-out rows are the test" in capsys.readouterr().out
    assert "holdout_labels" not in read_features(path)[1]["features"]


def test_held_out_rows_beside_a_part_of_a_test_are_not_the_test() -> None:
    arrays = renamed(rows(), test_features="val_features", test_labels="val_labels")
    assert "'test_labels' is missing" in refusal(npz({**arrays, "test_features": np.zeros((6, 4), np.float32)}))
    assert "'test_features' is missing" in refusal(npz({n: a for n, a in arrays.items() if n != "val_labels"}))


def test_what_is_missing_is_said_with_what_is_there_and_a_way_out() -> None:
    arrays = rows()
    train = {name: array for name, array in arrays.items() if name.startswith("train")}
    message = refusal(npz({**train, "more": np.zeros((2, 3))}))
    assert "'test_features' is missing: there is nothing to report on" in message
    assert "it holds train_features (12, 4) in float32, train_labels (12,) in int64, more (2, 3) in float64" in message
    message = refusal(npz({"features": arrays["train_features"], "labels": arrays["train_labels"]}))
    assert "do not say of which split they are" in message and "add 'split'" in message
    assert "it holds conv.weight (2,) in float32" in refusal(pth({"conv": {"weight": torch.zeros(2)}}))
    assert "'holdout_labels' is missing" in refusal(npz({**arrays, "val_x": arrays["test_features"]}))


@pytest.mark.parametrize("mmap", ["off", "on"])
@pytest.mark.parametrize("change", [None, (0, 0), (11, 3)])
def test_training_rows_that_are_all_the_same_are_said(
    change: tuple[int, int] | None, mmap: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs.feature_files.content, "BLOCK", 8)  # two rows
    arrays = rows()
    arrays["train_features"][:] = np.float32(0.1)
    if change is not None:
        arrays["train_features"][change] = 0.2
    read_features(npz(arrays), mmap=mmap)
    assert ("mine.npz: warning: all training rows are the same" in capsys.readouterr().err) == (change is None)


def test_of_rows_that_differ_one_block_is_looked_at() -> None:
    """Another pass over a large file would cost what reading it does."""

    class Counted:
        looked: ClassVar[list[int]] = []

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, rows: slice) -> torch.Tensor:
            return torch.zeros(1, runs.feature_files.content.BLOCK)

        def split(self, count: int) -> Iterator[torch.Tensor]:
            for block in range(len(self)):
                self.looked.append(block)
                yield torch.full((count, runs.feature_files.content.BLOCK), float(block))

    assert not runs.feature_files.content.all_alike(Counted())
    assert Counted.looked == [0, 1]


# Labels


def with_labels(arrays: Arrays, change: Any) -> Arrays:
    return {name: change(array) if name.endswith("_labels") else array for name, array in arrays.items()}


NAMES = np.array(["rose", "daisy", "tulip"])
LABELS: dict[str, tuple[Any, list[int], tuple[str, ...], str]] = {
    "texts": (lambda a: NAMES[a], [1, 0, 2], ("daisy", "rose", "tulip"), "daisy -> 0, rose -> 1, tulip -> 2"),
    "bytes": (lambda a: np.char.encode(NAMES[a]), [1, 0, 2], ("daisy", "rose", "tulip"), "daisy -> 0"),
    "1 to K": (lambda a: a + 1, [0, 1, 2], ("1", "2", "3"), "1 -> 0, 2 -> 1, 3 -> 2"),
    "sparse": (lambda a: np.array([501, 3, 17])[a], [2, 0, 1], ("3", "17", "501"), "3 -> 0, 17 -> 1, 501 -> 2"),
    "numbers as texts": (lambda a: np.array(["10", "9", "1"])[a], [2, 1, 0], ("1", "9", "10"), "1 -> 0, 9 -> 1"),
    "whole floats": (lambda a: a.astype(np.float32), [0, 1, 2], ("0", "1", "2"), ""),
    "a column": (lambda a: a[:, None], [0, 1, 2], ("0", "1", "2"), ""),
    "a column of texts": (lambda a: NAMES[a][:, None], [1, 0, 2], ("daisy", "rose", "tulip"), "daisy -> 0"),
    "one-hot": (lambda a: np.eye(3)[a], [0, 1, 2], ("0", "1", "2"), "train_labels: one-hot of 3 classes"),
    "one-hot of truths": (lambda a: np.eye(3, dtype=bool)[a], [0, 1, 2], ("0", "1", "2"), "one-hot"),
    "unsigned": (lambda a: a.astype(np.uint8), [0, 1, 2], ("0", "1", "2"), ""),
    "swapped bytes": (lambda a: a.astype(">i4"), [0, 1, 2], ("0", "1", "2"), ""),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_as_people_write_them(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, places, names, words = LABELS[kind]
    arrays = rows()
    right = with_labels(arrays, lambda a: np.array(places)[a])
    same_as(npz(with_labels(arrays, change)), right, names)
    out = capsys.readouterr().out
    assert words in out if words else out == ""
    same_as(npy(with_labels(arrays, change)), right, names)
    if kind != "bytes":  # which torch does not store
        same_as(pth(with_labels(arrays, change)), right, names)


def test_the_names_of_classes_give_the_order_of_labels_that_are_texts() -> None:
    arrays = {**rows(), "class_names": np.array(["tulip", "daisy", "rose"])}
    right = with_labels(rows(), lambda a: np.array([2, 1, 0])[a])
    same_as(npz(with_labels(arrays, lambda a: NAMES[a])), right, ("tulip", "daisy", "rose"))
    same_as(npz(with_labels(arrays, lambda a: a + 1)), rows(), ("tulip", "daisy", "rose"))
    arrays["class_names"] = np.array(["2", "0", "1"])  # names that look like numbers are names
    right = with_labels(rows(), lambda a: np.array([1, 2, 0])[a])
    path = npz(with_labels(arrays, lambda a: a.astype(str)))
    same_as(path, right, ("2", "0", "1"))
    assert read_features(path)[1]["features"]["test_labels"].tolist() == right["test_labels"].tolist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_labels": np.array(["elm"] * 6), "train_labels": NAMES[np.arange(12) % 3]}, "'test_labels' holds 'elm'"),
        ({"test_labels": NAMES[np.arange(6) % 3]}, "some splits are texts"),
        ({"train_labels": np.arange(12) % 3 + 1, "test_labels": np.arange(6)}, "'test_labels' holds 0, 4, 5, without"),
        ({"train_labels": np.array([""] * 12), "test_labels": NAMES[np.arange(6) % 3]}, "has no text in row 0"),
        ({"train_labels": NAMES[np.arange(12) % 3], "test_labels": NAMES[:3], "class_names": NAMES[:2]}, "'tulip'"),
        ({"class_names": np.array(["a", "b", "c", "d"])}, "class 3 has no training image"),
        (
            {"train_labels": np.array(["a", "a\x00\x1b[2J"] * 6), "test_labels": np.array(["a\x1b"] * 6)},
            "holds 'a\\x1b'",
        ),
    ],
)
def test_labels_that_cannot_be(change: Arrays, words: str) -> None:
    message = refusal(npz({**rows(), **change}))
    assert words in message and message.isprintable()


def test_names_from_a_file_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    signs = np.array(["a\x1b[2J", "b\n\r", "\u202ec"])
    _, content = read_features(npz({**with_labels(rows(), lambda a: signs[a]), "x\x1b[2J": np.zeros(1)}))
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (*said.out.splitlines(), *said.err.splitlines()))
    assert all(name.isprintable() for name in content["class_names"])


@pytest.mark.parametrize("shape", [(-1, 4, 1, 1), (-1, 1, 1, 4), (-1, 1, 4)])
def test_maps_of_one_pixel(shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    arrays = rows()
    maps = {name: array.reshape(shape) if "features" in name else array for name, array in arrays.items()}
    same_as(npz(maps), arrays)
    assert f"train_features: {maps['train_features'].shape} as (12, 4)" in capsys.readouterr().out


# Folders


def test_arrays_in_a_folder() -> None:
    arrays = rows()
    folder = npy(arrays)
    same_as(folder, arrays)
    for name in arrays:
        same_as(folder / f"{name}.npy", arrays)
    assert len({read_features(place)[0] for place in (folder, *folder.iterdir())}) == 1
    people = renamed(
        arrays, train_features="X_train", train_labels="y_train", test_features="test/x", test_labels="test/y"
    )
    same_as(npy(people, "theirs"), arrays)
    assert read_features(Path("theirs"))[0] == read_features(folder)[0]  # the same content by other names
    other = npy({**arrays, "test_labels": arrays["test_labels"][::-1]}, "other")
    assert read_features(other)[0] != read_features(folder)[0]
    swapped = npy(renamed(arrays, train_features="test_features", test_features="train_features"), "swapped")
    assert "rows and" in refusal(swapped)


def test_names_of_classes_in_a_folder() -> None:
    npy({**rows(), "class_names": NAMES})
    same_as(Path("mine"), rows(), tuple(NAMES))
    (Path("mine") / "class_names.npy").unlink()
    (Path("mine") / "classes.txt").write_text("ä\nb\n\nc\n", encoding="utf-8")
    same_as(Path("mine"), rows(), ("ä", "b", "c"))
    (Path("mine") / "classes.txt").write_bytes(b"\xff\n")
    assert "no text in UTF-8" in refusal(Path("mine"))


def test_several_sets_in_a_folder() -> None:
    for network in ("clip", "resnet50"):
        npy({f"{network}_{name}": array for name, array in rows(len(network)).items()})
    message = refusal(Path("mine"))
    assert "several sets" in message and "clip_test_features.npy" in message and "resnet50_test_features.npy" in message
    same_as(Path("mine/clip_train_labels.npy"), rows(4))
    same_as(Path("mine/resnet50_test_features.npy"), rows(8))
    npy({"other": np.zeros(2)})
    assert "does not say what is in it" in refusal(Path("mine/other.npy"))
    npy(rows(1))  # without more words: the set of the folder
    same_as(Path("mine"), rows(1))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_a_file_a_split(suffix: str) -> None:
    arrays = rows()
    Path("mine").mkdir()
    for split in ("train", "test"):
        own = {"X": arrays[f"{split}_features"], f"{split}_y": arrays[f"{split}_labels"]}
        file = Path("mine") / f"{split}{suffix}"
        if suffix == ".npz":
            np.savez(file, **own)
        elif suffix == ".pth":
            torch.save(tensors(own), file)
        else:
            save_file(tensors(own), file)
    same_as(Path("mine"), arrays)
    message = refusal(Path("mine") / f"train{suffix}")
    assert "is missing" in message and "it holds" in message
    npy({"test_features": arrays["test_features"]})
    assert "'test_features' is in " in refusal(Path("mine"))


def test_a_folder_of_one_file_and_of_none() -> None:
    Path("mine").mkdir()
    assert "no features in this folder; looked for .npz" in refusal(Path("mine"))
    file = npz(rows(), "mine/one.npz")
    same_as(Path("mine"), rows())
    assert read_features(Path("mine"))[0] == sha256_file(file)
    npz(rows(), "mine/two.npz")
    assert "no name says what is in it" in refusal(Path("mine"))


def test_large_arrays_stay_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.feature_files.numpy_arrays, "MAPPED", 1)
    arrays = rows()
    arrays["train_features"] = np.asfortranarray(arrays["train_features"])
    folder = npy(arrays)
    _, content = read_features(folder)
    assert np.array_equal(content["features"]["train_features"].numpy(), arrays["train_features"])
    before = (folder / "test_features.npy").read_bytes()
    content["features"]["test_features"].add_(1)
    assert (folder / "test_features.npy").read_bytes() == before


def test_arrays_that_are_damaged() -> None:
    folder = npy(rows())
    file = folder / "train_features.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert "is damaged: 'train_features.npy' says that it has 192 bytes, and the file has 191" in refusal(folder)
    file.write_bytes(whole.replace(b"(12, 4)", b"(10**12, 4)"))
    assert "damaged" in refusal(folder)
    file.write_bytes(whole.replace(b"(12, 4), }     ", b"(900000000000, 4), }")[: len(whole)])
    assert "damaged" in refusal(folder)
    file.write_bytes(b"")
    assert "damaged, or not a .npy file" in refusal(folder)
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    assert "array of Python objects" in refusal(folder)


def test_an_archive_that_says_more_than_it_has() -> None:
    file = npz(rows())
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    header = entries["train_features.npy"].replace(b"(12, 4), }" + 12 * b" ", b"(8000000000000, 4), } ")
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**entries, "train_features.npy": header}.items():
            archive.writestr(name, content)
    assert "says that it has 128,000,000,000,000 bytes, and the file has" in refusal(file)


def test_what_is_no_file_is_not_waited_for() -> None:
    folder = npy(rows())
    (folder / "test_labels.npy").unlink()
    os.mkfifo(folder / "test_labels.npy")
    assert "no regular file" in refusal(folder)
    os.mkfifo("pipe.pth")
    assert "no regular file" in refusal(Path("pipe.pth"))


# Dictionaries of torch


def test_dictionaries() -> None:
    arrays = rows()
    own = tensors(arrays)
    same_as(pth(own), arrays)
    nested = {s: {"feats": own[f"{s}_features"], "labels": own[f"{s}_labels"]} for s in ("train", "test")}
    same_as(pth(nested, "mine.pt"), arrays)
    same_as(pth({**nested, "class_names": ["a", "b", "c"], "epoch": 3}), arrays, ("a", "b", "c"))
    listed = {**own, "train_labels": arrays["train_labels"].tolist(), "test_labels": own["test_labels"].float()}
    same_as(pth(listed), arrays)
    half = {**own, "train_features": torch.nn.Parameter(own["train_features"].bfloat16())}
    _, content = read_features(pth(half))
    assert torch.equal(content["features"]["train_features"], half["train_features"].detach().float())


@pytest.mark.parametrize("kind", ["<f4", ">f4", "f2", "f8"])
def test_numpy_arrays_in_a_dictionary(kind: str) -> None:
    arrays = rows()
    arrays = {n: a.astype(kind) if "features" in n else a for n, a in arrays.items()}
    arrays["train_features"] = np.asfortranarray(arrays["train_features"])
    _, content = read_features(pth({**arrays, "test_labels": [np.int64(i) for i in arrays["test_labels"]]}))
    for name, array in arrays.items():
        assert np.array_equal(content["features"][name].numpy(), array.astype(array.dtype.newbyteorder("=")))


class Crafted:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_no_code_of_a_dictionary_runs() -> None:
    bad = {
        "an object": {**tensors(rows()), "more": Crafted()},
        "objects": {**tensors(rows()), "train_labels": np.array([Crafted()] * 12, dtype=object)},
        "objects in fields": {"train_labels": np.zeros(2, dtype=[("a", "O"), ("b", "i4")])},
        "a network": torch.nn.Linear(2, 2),
    }
    for content in bad.values():
        refusal(pth(content))
    Path("plain.pth").write_bytes(pickle.dumps(rows()))
    assert "could run any code" in refusal(Path("plain.pth"))
    Path("plain.pkl").write_bytes(pickle.dumps(Crafted()))
    assert "numpy.savez" in refusal(Path("plain.pkl"))
    assert not Path("exploded").exists()


def test_a_type_that_was_tampered_with_makes_no_pointers() -> None:
    """Numpy's own would take eight bytes for the address of an object."""
    file = pth({"train_features": np.zeros(3)})
    content = file.read_bytes()
    for before, after in ((b"f8", b"O8"), (b"f8", b"V8"), (b"f8", b"M8")):
        assert content.count(b"f8") == 1
        file.write_bytes(content.replace(before, after))
        assert re.search("numpy array of|damaged", refusal(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "must hold a dictionary of tensors by their names, not list"),
        (torch.zeros(2, 3), "not (2, 3) in float32"),
        ({"train_features": [torch.zeros(2)] * 3}, "not a list of 3; join its tensors (torch.cat)"),
        ({"train_labels": [2**63]}, "too large"),
        ({"train_features": torch.zeros(1).expand(10**6, 10**6)}, "more numbers than the file has room for"),
        ({"train_features": torch.zeros(2, 2).to_sparse()}, "sparse"),
        ({"train_features": "text"}, "not a str"),
        ({"stage": "stage1", "config": {}, "model": {}}, "this project wrote this file itself"),
    ],
)
def test_dictionaries_of_something_else(content: object, words: str) -> None:
    assert words in refusal(pth(content))


@pytest.mark.parametrize("name", ["a.pkl", "a.mat", "a.h5", "a.csv", "a.feather", "a.txt", "a"])
def test_other_files_are_refused_with_what_makes_one(name: str) -> None:
    Path(name).write_bytes(b"")
    message = refusal(Path(name))
    assert "must end in .npz" in message and ("makes one" in message or "savez" in message or name in ("a.txt", "a"))
