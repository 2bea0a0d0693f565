"""Features in parquet: one row an image, in one file or in shards, with splits in a column or in the names of files."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import runs.feature_files.parquet
from runs.feature_files import read_features
from utils.errors import UserError
from utils.files import sha256_file

NAMES = np.array(["rose", "daisy", "tulip"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def arrow() -> Any:
    return pytest.importorskip("pyarrow")


def features(count: int, seed: int = 0, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def write(path: str, columns: dict[str, Any], **options: Any) -> Path:
    """Write a table; an array (N, d) is a column of lists."""
    import pyarrow as pa
    from pyarrow import parquet

    made = {
        name: pa.array(list(value)) if isinstance(value, np.ndarray) and value.ndim == 2 else value
        for name, value in columns.items()
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(made)
    parquet.write_table(table.replace_schema_metadata(options.pop("metadata", None)), path, **options)
    return Path(path)


def read(path: Path) -> dict[str, Any]:
    return read_features(path)[1]


def refusal(path: Path) -> str:
    """Return the one line by which a file is refused."""
    with pytest.raises(UserError) as caught:
        read_features(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


def test_without_pyarrow_a_line_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    Path("mine.parquet").write_bytes(b"PAR1")
    assert "reading .parquet needs pyarrow: pip install pyarrow" in refusal(Path("mine.parquet"))


@pytest.mark.usefixtures("arrow")
@pytest.mark.parametrize("batch", [1, 1 << 22])
def test_a_column_of_lists_of_labels_and_of_splits(
    batch: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs.feature_files.parquet, "BATCH", batch)
    x, y, split = features(24), np.arange(24) % 3, np.array(["train", "validation", "train", "test"] * 6)
    columns = {"id": np.arange(24), "embedding": x, "target": NAMES[y].tolist(), "split": split.tolist()}
    file = write("mine.parquet", columns, row_group_size=5)
    content = read(file)
    for name, rows in (("train", split == "train"), ("holdout", split == "validation"), ("test", split == "test")):
        assert np.array_equal(content["features"][f"{name}_features"].numpy(), x[rows])
        assert np.array_equal(content["features"][f"{name}_labels"].numpy(), np.array([1, 0, 2])[y[rows]])
    assert content["class_names"] == ["daisy", "rose", "tulip"] and read_features(file)[0] == sha256_file(file)
    said = capsys.readouterr()
    assert "taken: embedding as features, target as labels" in said.out and "not used of mine.parquet: id" in said.err
    columns["split"] = ["train"] * 23 + ["all"]
    assert "'split' holds 'all'" in refusal(write("mine.parquet", columns))


@pytest.mark.usefixtures("arrow")
def test_shards_as_hugging_face_writes_them() -> None:
    x, y = features(30), np.arange(30) % 3
    names = {"info": {"features": {"label": {"names": NAMES.tolist(), "_type": "ClassLabel"}}}}
    pieces = {"train-00000-of-00002": (0, 10), "train-00001-of-00002": (10, 20), "test-00000-of-00001": (20, 30)}
    for name, (first, last) in pieces.items():
        columns = {"image_embeds": x[first:last], "label": y[first:last]}
        write(f"mine/data/{name}.parquet", columns, metadata={"huggingface": json.dumps(names)})
    digest, content = read_features(Path("mine"))
    assert np.array_equal(content["features"]["train_features"].numpy(), x[:20])
    assert np.array_equal(content["features"]["test_labels"].numpy(), y[20:])
    assert content["class_names"] == NAMES.tolist()
    first, second = (Path(f"mine/data/train-0000{i}-of-00002.parquet") for i in (0, 1))
    content = second.read_bytes()
    write(str(second), {"image_embeds": x[10:20, :3], "label": y[10:20]}, metadata={"huggingface": json.dumps(names)})
    assert "train-00001-of-00002.parquet has rows of 3 features, and there are others of 4" in refusal(Path("mine"))
    write(str(second), {"image_embeds": x[10:20], "y": y[10:20]})
    assert "have other columns" in refusal(Path("mine"))
    second.unlink()
    assert "is in 2 files, of which number 1 is missing" in refusal(Path("mine"))
    second.write_bytes(content)
    assert read_features(Path("mine"))[0] == digest
    first.write_bytes(content)  # the same rows twice
    assert read_features(Path("mine"))[0] != digest
    message = refusal(second)
    assert "do not say of which split" in message and "10 rows" not in message


@pytest.mark.usefixtures("arrow")
def test_parts_are_read_in_the_order_of_their_numbers() -> None:
    x = features(12)
    for part, rows in {"part-2": slice(0, 4), "part-10": slice(4, 8), "part-11": slice(8, 12)}.items():
        split = ["train", "train", "train", "test"]
        write(f"mine.parquet/{part}.parquet", {"features": x[rows], "labels": [0, 1, 2, 0], "split": split})
    content = read(Path("mine.parquet"))
    assert np.array_equal(content["features"]["test_features"].numpy(), x[3::4])
    assert content["config"]["settings"]["dataset"] == "own_mine"


@pytest.mark.usefixtures("arrow")
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int16"])
def test_a_column_a_feature(kind: str) -> None:
    x = (10 * features(18)).astype(kind)
    frame = pd.DataFrame(x, columns=[f"f{i}" for i in (3, 1, 2, 0)])
    frame["label"] = pd.Categorical(NAMES[np.arange(18) % 3])
    frame["split"] = ["train"] * 12 + ["test"] * 6
    frame.index = pd.Index(range(5, 23))
    frame["image_id"] = range(18)
    frame.to_parquet("mine.parquet")
    content = read(Path("mine.parquet"))
    found = content["features"]["train_features"].numpy()
    assert np.array_equal(found, x[:12].astype(np.float32)) and content["class_names"] == ["daisy", "rose", "tulip"]
    assert found.dtype == (np.float16 if kind == "float16" else np.float32)


@pytest.mark.usefixtures("arrow")
@pytest.mark.parametrize("split", ["split", None])
def test_numbers_named_like_a_split_are_features_where_something_else_says_it(split: str | None) -> None:
    """A text column, or the names of the files."""
    frame = pd.DataFrame({"f0": features(18)[:, 0], "subset": range(18), "label": np.arange(18) % 3})
    if split is None:
        Path("mine").mkdir()
        frame[:12].to_parquet("mine/train.parquet")
        frame[12:].to_parquet("mine/test.parquet")
    else:
        frame[split] = ["train"] * 12 + ["test"] * 6
        frame.to_parquet("mine.parquet")
    found = read(Path("mine" if split is None else "mine.parquet"))["features"]
    assert found["test_features"][:, 1].tolist() == list(range(12, 18))


def table(**changes: Any) -> dict[str, Any]:
    base = {"features": features(6), "labels": [0, 1, 2] * 2, "split": ["train"] * 3 + ["test"] * 3}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, "no column of labels: it may be named label, target, y, ...; mine.parquet holds"),
    "no features": ({"features": None}, "no column of features"),
    "two labels": ({"y": [0] * 6}, "'labels' and 'y' are both 'labels'"),
    "lists of texts": ({"features": [["1", "2"]] * 6}, "no column of features: one of lists"),
    "lists of many lengths": ({"features": [[1.0]] * 5 + [[1.0, 2.0]]}, "has rows of different lengths: 1, 2"),
    "no list": ({"features": [[1.0]] * 5 + [None]}, "has rows without a value"),
    "no number": ({"features": [[1.0]] * 5 + [[None]]}, "has lists with numbers missing"),
    "no label": ({"labels": [0, 1, 2, 0, 1, None]}, "'labels' of mine.parquet has rows without a value"),
    "not a number": ({"features": [[1.0]] * 5 + [[float("nan")]]}, "'test_features' holds numbers that are not finite"),
    "too large": ({"features": [[1.0]] * 5 + [[1e300]]}, "too large for float32"),
    "no split": ({"split": None}, "do not say of which split they are"),
    "a split of numbers": (
        {"split": [0, 0, 0, 1, 1, 1]},
        "'split' holds 0, 1 (int64); it may be train, test or holdout, a text a row",
    ),
    "a split of truths": ({"split": [True] * 3 + [False] * 3}, "'split' holds False, True (bool)"),
    "no test": ({"split": ["train"] * 6}, "'test_features' is missing: there is nothing to report on"),
    "a line in a name": ({"labels": None, "\x1b[2J": [0] * 6}, "\\x1b[2J"),
    "empty": ({"features": features(0), "labels": np.arange(0), "split": np.array([], dtype=str)}, "no column of"),
}


@pytest.mark.usefixtures("arrow")
@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    change, words = BAD[name]
    assert words in refusal(write("mine.parquet", table(**change)))


@pytest.mark.usefixtures("arrow")
def test_of_several_lists_the_one_that_is_named_so_is_taken() -> None:
    columns = table(boxes=features(6, 1))
    assert np.array_equal(read(write("mine.parquet", columns))["features"]["train_features"], columns["features"][:3])
    columns["other"] = columns.pop("features")
    assert "no column of features" in refusal(write("mine.parquet", columns))


@pytest.mark.usefixtures("arrow")
def test_files_that_are_damaged_or_ask_for_all_memory() -> None:
    file = write("mine.parquet", table())
    whole = file.read_bytes()
    for damaged in (b"", b"PAR1" * 3, whole[:100], whole[:200] + bytes(80) + whole[280:], whole[:-20] + whole[-12:]):
        file.write_bytes(damaged)
        assert "damaged" in refusal(file)
    many = 1 << 25
    import pyarrow as pa

    constant = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(many, np.float32)), many // 4)
    file = write(
        "mine.parquet", {"features": constant, "labels": [0, 1, 0, 1], "split": ["train", "train", "test", "test"]}
    )
    assert file.stat().st_size < 1 << 20
    assert "this is taken for an attack on the memory" in refusal(file)
