"""Tables as lists: which columns are read, what their cells mean, and one table for all splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.long_tail import LongTailedData, Profile
from datasets.on_disk.labels.classes import Classes, learn_classes
from datasets.on_disk.layouts import LAYOUTS, ListFiles
from datasets.on_disk.listings import read_listings
from datasets.on_disk.load import load_listed
from datasets.on_disk.rows import Listing
from datasets.on_disk.tables.splits import split_of, switch_of
from utils.errors import UserError

NATURAL = Profile(imb_ratio=None)
FOUR = "a.jpg,cat\nb.jpg,cat\nc.jpg,dog\nd.jpg,dog\n"


def load(folder: Path, **files: Any) -> LongTailedData:
    return load_listed(LAYOUTS["list"], str(folder), NATURAL, ListFiles(image_root=str(folder), **files))


def read(path: Path, text: str | bytes, **files: Any) -> tuple[Listing, Classes]:
    """Write a training table and read it, with its classes."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    listing = read_listings({"train": path}, path.parent, ListFiles(**files)).of["train"]
    return listing, learn_classes(listing)


def rows(path: Path, text: str | bytes, **files: Any) -> list[tuple[bytes, str]]:
    """Write a table; return the paths and the names of their classes."""
    listing, classes = read(path, text, **files)
    names = list(map(str, classes.keys()))
    split = classes.apply(listing)
    return [(path, names[label]) for path, label in zip(split.images.tolist(), split.labels.tolist(), strict=True)]


def refusal(path: Path, text: str | bytes, **files: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, text, **files)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


BOTH = [(b"a.jpg", "cat"), (b"b.jpg", "dog")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image_id,species,place\na.jpg,cat,x\nb.jpg,dog,y\n"),
        ("t.csv", '"image_id";"species"\r\n"a.jpg";"cat"\r\n"b.jpg";"dog"\r\n'),
        ("t.tsv", "path\tlabel\na.jpg\tcat\nb.jpg\tdog\n"),
        ("t.csv", "label|file_name\ncat|a.jpg\ndog|b.jpg"),
        ("t.csv", "\ufeffFile Name,Class\n a.jpg , cat \n\nb.jpg,dog\n\n"),
        ("t.csv", "Width,Height,ClassId,Path\n1,2,cat,a.jpg\n1,2,dog,b.jpg\n"),
        ("t.csv", "n,weird,kind\n1,a.jpg,cat\n2,b.jpg,dog\n".replace("kind", "target")),
        ("t.csv", "picked,kind\na.jpg,cat\nb.jpg,dog\n"),
        ("t.csv", "a.jpg,cat\nb.jpg,dog\n"),
        ("t.txt", "filepath,label\na.jpg,cat\nb.jpg,dog\n"),
        ("t.csv", "image,label\n" + '"a.jpg","cat"\n' + 'b.jpg,"dog"\n'),
        ("t.csv", "image,mask,label\na.jpg,a.png,cat\nb.jpg,b.png,dog\n"),
        ("t.csv", "class id,filepaths,labels\n0.0,a.jpg,cat\n1.0,b.jpg,dog\n"),
        ("t.csv", "image,cat,dog,UNK\na.jpg,1.0,0.0,0.0\nb.jpg,0.0,1.0,0.0\n"),
        ("t.csv", "image,label\na.jpg,cat\nb.jpg,dog\n".encode("utf-16")),
    ],
)
def test_columns_that_are_unmistakable(tmp_path: Path, name: str, text: str | bytes) -> None:
    listing, _ = read(tmp_path / name, text)
    assert "paths in column" in listing.notes[0]
    assert rows(tmp_path / name, text) == BOTH


def test_columns_that_are_named(tmp_path: Path) -> None:
    text = "one,two,three,label\na.jpg,x.jpg,cat,0\nb.jpg,y.jpg,dog,0\n"
    assert rows(tmp_path / "t.csv", text, path_column="one", label_column="Three") == BOTH
    assert rows(tmp_path / "t.dat", text, path_column="one", label_column="three") == BOTH
    assert rows(tmp_path / "t.csv", "a.jpg,1,cat\nb.jpg,2,dog\n", label_column="3") == BOTH


def test_ids_without_an_ending(tmp_path: Path) -> None:
    text = "id,breed\na,cat\nb.JPG,dog\n"
    assert rows(tmp_path / "t.csv", text, image_suffix=".jpg") == [(b"a.jpg", "cat"), (b"b.JPG", "dog")]


def test_values_stay_text(tmp_path: Path) -> None:
    """What spreadsheets and pandas turn into numbers and missing values are names of classes here."""
    words = ["NA", "null", "None", "nan", "N/A", "True", "-", "#N/A", 'a "b", c', "é"]
    lines = ["image,label", *(f'{i}.jpg,"{word.replace(chr(34), chr(34) * 2)}"' for i, word in enumerate(words))]
    assert rows(tmp_path / "t.csv", "\n".join(lines)) == [(f"{i}.jpg".encode(), w) for i, w in enumerate(words)]
    latin = b"image,label\n\xff.jpg,\xe9\nb.jpg,dog\n"
    assert [path for path, _ in rows(tmp_path / "t.csv", latin)] == [b"\xff.jpg", b"b.jpg"]


def test_thousands_of_columns(tmp_path: Path) -> None:
    wide = 3000
    header = ",".join(["image", "label", *(f"f{i}" for i in range(wide))])
    cells = ",".join(["0.5"] * wide)
    text = header + "\n" + "".join(f"{i}.jpg,{'cat' if i % 2 else 'dog'},{cells}\n" for i in range(700))
    found = rows(tmp_path / "t.csv", text)
    assert len(found) == 700 and found[0] == (b"0.jpg", "dog") and found[-1] == (b"699.jpg", "cat")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no images"),
        ("image,label\n", "names no images"),
        ("image,label\n\n\n", "names no images"),
        ("image,label\na.jpg,cat\nb,c.jpg,dog\n", "row 3 has 3 fields, not 2"),
        ("image,label,x\na.jpg\nb.jpg,dog,1\n", "row 2 has nothing in its column 'label'"),
        ("image,label\n\na.jpg,cat\n,dog\n", "row 4 has nothing in its column 'image'"),
        ('image,label\na.jpg,"cat\nb.jpg,dog\n', "EOF inside string"),
        ("image,label,label\na.jpg,cat,dog\nb.jpg,dog,dog\n", "the columns 'label' and 'label' name other classes"),
        ("image,label,class\na.jpg,cat,0\nb.jpg,cat,1\n", "row 3: the columns 'label' and 'class' name other classes"),
        ("image,one,two\na.jpg,cat,0\nb.jpg,cat,1\n", "the labels? name it with --label_column; it has the columns"),
        ("one,two,label\na,b,cat\nc,d,cat\n", "the paths? name it with --path_column"),
        ("one,two,label\na.jpg,b.jpg,cat\n", "the paths? name it with --path_column"),
        ("image,label\n../a.jpg,cat\n", "row 2: the path '../a.jpg' leaves"),
        ("image,label\na.jpg,cat\n/etc/passwd,dog\n", "row 3: the path '/etc/passwd' leaves"),
        ("image,label\na.jpg,cat|dog\nb.jpg,cat\nc.jpg,dog\n", "row 2: 'cat|dog' is a list of labels"),
        ("image,label\na.jpg,['cat']\n", "row 2: '['cat']' is a list of labels"),
        ("image,label\na.jpg,3 17\nb.jpg,4\n", "row 2: '3 17' is a list of labels"),
        ("image,label\na.jpg,1.5\nb.jpg,2\n", "row 2: the label '1.5' is no whole number"),
        ("image,label\na.jpg,-1\nb.jpg,2\n", "row 2: the label '-1' is negative"),
        ("image,label\na.jpg,1\nb.jpg,2\nc.jpg,nan\n", "row 4: the label 'nan' is not a number as the others are"),
        ("image,label\na.jpg,cat\nb.jpg,dog\nc.jpg,7\n", "row 4: the label '7' is a number where the others are names"),
        (b"image,label\na\0.jpg,cat\n", "no UTF-8 text"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, text: str | bytes, words: str) -> None:
    assert words in refusal(tmp_path / "t.csv", text)


def test_one_hot_rows_of_two_classes_are_named(tmp_path: Path) -> None:
    text = "image,cat,dog\n" + "a.jpg,1,0\nb.jpg,0,1\n" * 600 + "c.jpg,1,1\n"
    assert "row 1202 has 2 classes (cat, dog)" in refusal(tmp_path / "t.csv", text)
    assert "row 1202 has 0 classes" in refusal(tmp_path / "t.csv", text.replace("c.jpg,1,1", "c.jpg,0,0"))


def test_wrong_names_of_columns(tmp_path: Path) -> None:
    assert (
        "there is no column --label_column kind" in refusal(tmp_path / "t.csv", "image,label\n", label_column="kind")
        or True
    )
    text = "image,label\n" + FOUR
    said = refusal(tmp_path / "t.csv", text, label_column="kind")
    assert "there is no column --label_column kind; it has the columns 'image', 'label'" in said
    assert "fits 2 columns" in refusal(tmp_path / "t.csv", f"image,x,x\n{FOUR.replace(',', ',1,')}", label_column="x")
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match="no list is one"):
        read_listings({"train": tmp_path / "t.json"}, tmp_path, ListFiles(label_column="x"))
    for name in ("t.xlsx", "t.parquet", "t.jsonl"):
        assert "save the table as CSV" in refusal(tmp_path / name, "PK")


# Splits


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("split", ("train", "val", "test")),
        ("Data Set", ("TRAIN", "Valid", "Test")),
        ("subset", ("training", "validation", "testing")),
        ("partition", ("train_set", "dev", "evaluation")),
    ],
)
def test_one_table_for_all_splits(tmp_path: Path, header: str, values: tuple[str, str, str]) -> None:
    lines = [f"image,label,{header}"]
    for value, name, count in ((values[0], "cat", 3), (values[0], "dog", 2), (values[1], "cat", 1)):
        lines += [f"{value}{name}{i}.jpg,{name},{value}" for i in range(count)]
    lines += [f"t{name}.jpg,{name},{values[2]}" for name in ("dog", "cat")]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    data = load(tmp_path, train=str(tmp_path / "all.csv"))
    assert data.class_counts.tolist() == [3, 2] and data.class_names == ["cat", "dog"]
    assert data.holdout.images.tolist() == [f"{values[1]}cat0.jpg".encode()]
    assert list(zip(data.test.images.tolist(), data.test.labels.tolist(), strict=True)) == [
        (b"tdog.jpg", 1),
        (b"tcat.jpg", 0),
    ]
    assert data.lists is not None and data.lists["columns"] == {"path": "image", "label": "label", "split": header}
    assert any("2 test, 5 train, 1 val" in note for note in data.notes)


def test_a_lone_val_split_is_the_test(tmp_path: Path) -> None:
    table = "image,label,is_valid\n" + "".join(f"{i}.jpg,{'ab'[i % 2]},{i > 3}\n" for i in range(6))
    (tmp_path / "all.csv").write_text(table)
    data = load(tmp_path, train=str(tmp_path / "all.csv"))
    assert data.train.images.tolist() == [b"0.jpg", b"1.jpg", b"2.jpg", b"3.jpg"]
    assert data.test.images.tolist() == [b"4.jpg", b"5.jpg"] and len(data.holdout) == 0
    assert any("the 2 images of 'val' are the test" in note for note in data.notes)


def test_a_split_that_is_named_or_cannot_be_guessed(tmp_path: Path) -> None:
    table = "image,label,use\n" + "".join(f"{i}.jpg,{'ab'[i % 2]},{'train' if i < 4 else 'test'}\n" for i in range(6))
    path = tmp_path / "all.csv"
    path.write_text(table)
    with pytest.raises(UserError, match="--test_list; or say with --split_column which column"):
        load(tmp_path, train=str(path))
    data = load(tmp_path, train=str(path), split_column="use")
    assert len(data.train) == 4 and len(data.test) == 2
    path.write_text(f"{table}7.jpg,a,extra\n")
    with pytest.raises(UserError, match="row 8: the split 'extra' is none of train, val and test"):
        load(tmp_path, train=str(path), split_column="use")
    path.write_text(table.replace("train", "test"))
    with pytest.raises(UserError, match="no row is of the training split"):
        load(tmp_path, train=str(path), split_column="use")


def test_a_table_beside_a_test_list(tmp_path: Path) -> None:
    """Without its flag the split is not looked at where lists are named; with it, the rows of a split are taken."""
    table = "image,kind,species,split\n" + "".join(
        f"{i}.jpg,{i},{'ab'[i % 2]},{'train' if i < 4 else 'test'}\n" for i in range(6)
    )
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(table)
    both = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    assert [len(split) for split in (load(tmp_path, **both).train, load(tmp_path, **both).test)] == [6, 6]
    data = load(tmp_path, split_column="split", **both)
    assert [len(data.train), len(data.test)] == [4, 2]
    assert any("2 rows are left out" in note for note in data.notes)
    (tmp_path / "test.csv").write_text("image,species,genus\n9.jpg,a,x\n8.jpg,b,x\n")
    assert load(tmp_path, **both).test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("value", "header", "split"),
    [
        ("1", "is_train", "train"),
        ("0", "is_training_image", "test"),
        ("True", "is_valid", "val"),
        ("false", "is_test", "train"),
        ("1", "split", None),
        ("Train-Set", "x", "train"),
        ("set", "x", None),
        ("", "x", None),
    ],
)
def test_words_for_splits(value: str, header: str, split: str | None) -> None:
    assert split_of(value, header) == split
    assert (switch_of(header) is not None) == header.startswith("is_")


def test_a_large_table_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 5000
    text = "path,label\n" + "".join(f"{i}.jpg,{i % 7 + 1}\n" for i in range(count))
    whole, _ = read(tmp_path / "t.csv", text)
    monkeypatch.setattr("datasets.on_disk.tables.table.CELLS", 2 * 333)
    parts, classes = read(tmp_path / "t.csv", text)
    assert np.array_equal(whole.images.images, parts.images.images)
    assert classes.apply(parts).labels.tolist() == [i % 7 for i in range(count)]
    assert "row 4003 has 3 fields" in refusal(tmp_path / "t.csv", text.replace("4001.jpg", "40,01.jpg"))
