"""Labels as lists write them, the classes that they become, and files that name these."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.long_tail import LongTailedData, Profile
from datasets.on_disk.labels.writing import number_of, runs_of, several_labels
from datasets.on_disk.layouts import LAYOUTS, ListFiles
from datasets.on_disk.load import load_listed
from datasets.on_disk.long_tailed import with_splits
from utils.errors import UserError

NATURAL = Profile(imb_ratio=None)


def load(
    folder: Path, train: list[str], test: list[str], layout: str = "list", profile: Profile = NATURAL, **files: Any
) -> LongTailedData:
    """Load a data set of a text list with these labels."""
    for part, labels in (("train", train), ("test", test)):
        (folder / f"{part}.txt").write_text("".join(f"{part}{i}.jpg\t{label}\n" for i, label in enumerate(labels)))
    lists = {"train": str(folder / "train.txt"), "test": str(folder / "test.txt"), "image_root": str(folder)}
    return load_listed(LAYOUTS[layout], str(folder), profile, ListFiles(**{**lists, **files}))


def refusal(*arguments: Any, **files: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments, **files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "test", "names", "classes"),
    [
        (["0", "1", "1"], ["1", "0"], ["0", "1"], [0, 1, 1]),
        (["2", "1", "3", "10"], ["10", "2", "3", "1"], ["1", "2", "3", "10"], [1, 0, 2, 3]),
        (["501", "3", "17"], ["3", "17", "501"], ["3", "17", "501"], [2, 0, 1]),
        (["1.0", "02", "1"], ["1", "2.0"], ["1", "2"], [0, 1, 0]),
        (["3e0", "123456789012345678"], ["3", "123456789012345678"], ["3", "123456789012345678"], [0, 1]),
        (["dog", "Cat", "ant"], ["ant", "Cat", "dog"], ["Cat", "ant", "dog"], [2, 0, 1]),
        (["n02", "n01"], ["n01", "n02"], ["n01", "n02"], [1, 0]),
        (["True", "False"], ["True", "False"], ["False", "True"], [1, 0]),
        (["sea lion", "lion"], ["lion", "sea lion"], ["lion", "sea lion"], [1, 0]),
        (["NA", "null"], ["NA", "null"], ["NA", "null"], [0, 1]),
    ],
)
def test_labels_become_classes(
    tmp_path: Path, train: list[str], test: list[str], names: list[str], classes: list[int]
) -> None:
    data = load(tmp_path, train, test)
    assert data.class_names == names and data.train.labels.tolist() == classes
    place = {name: label for label, name in enumerate(names)}
    known = [place[word] if word in place else place[str(number_of(word))] for word in test]
    assert data.test.labels.tolist() == known
    if names == ["0", "1"]:  # as they are: nothing to say or to record
        assert data.notes == () and data.lists is None
    else:
        assert data.lists == {"columns": None, "labels": {name: name for name in names}}
        assert any("classes" in note for note in data.notes)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (["0", "2"], ["0"], "1 of 3 classes have no training image (first: class 1)"),
        (["0", "999999999999"], ["0"], "classes have no training image (first: class 1)"),
        (["0", "1"], ["0", "2"], "test.txt, line 2: the label '2' is not an integer from 0 to 1"),
        (["1", "2"], ["1", "0"], "line 2: the label '0' is of no image of the training list: it has 1-2"),
        (["1", "2"], ["1", "3"], "the label '3' is of no image of the training list: it has 1-2"),
        (["3", "17"], ["3", "4"], "it has 3, 17"),
        (["1", "2"], ["1", "a"], "the label 'a' is of no image"),
        (["cat", "dog"], ["cat", "Dog"], "the label 'Dog' is of no image of the training list; it has 'dog'"),
        (["cat", "dog"], ["cat", "cow"], "it has cat, dog"),
        (["1", "1"], ["1"], "of one class"),
        (["1", "2", "x"], ["1"], "train.txt, line 3: the label 'x' is not a number as the others are"),
        (["a", "b", "7"], ["a"], "line 3: the label '7' is a number where the others are names"),
        (["1", "-1"], ["1"], "line 2: the label '-1' is negative"),
        (["1", "0.5"], ["1"], "'0.5' is no whole number"),
        (["a", "b", "a|b"], ["a"], "'a|b' is a list of labels"),
        (["a", "b", "b a"], ["a"], "'b a' is a list of labels"),
        (["[1]", "[2]"], ["[1]"], "'[1]' is a list of labels"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, train: list[str], test: list[str], words: str) -> None:
    assert words in refusal(tmp_path, train, test)


def test_names_that_look_alike_are_warned_of(tmp_path: Path) -> None:
    notes = load(tmp_path, ["dog", "Dog", "cat"], ["dog", "Dog", "cat"]).notes
    assert [note for note in notes if note.startswith("warning")] == [
        f"warning: {tmp_path / 'train.txt'}: 'Dog' and 'dog' are two classes that look alike"
    ]


def test_a_name_of_several_words_without_a_tab_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a.jpg sea lion\nb.jpg mountain lion\n")
    files = ListFiles(train=str(tmp_path / "train.txt"), test=str(tmp_path / "train.txt"))
    with pytest.raises(UserError, match=r"train.txt: 'a.jpg sea' .*put a tab between path and label"):
        load_listed(LAYOUTS["list"], str(tmp_path), NATURAL, files)


def test_the_order_of_names_is_that_of_folders(tmp_path: Path) -> None:
    names = ["zebra", "Ant", "ant 2", "_x", "10 b", "9 b", "é"]
    for part in ("train", "test"):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
    found = sorted(entry.name for entry in (tmp_path / "train").iterdir())
    assert load(tmp_path, names, names).class_names == found


def test_the_mapping_is_short_for_many_classes(tmp_path: Path) -> None:
    labels = [str(label) for label in (*range(1, 100), 9100)]
    [note] = load(tmp_path, labels, labels).notes
    assert note.endswith(
        "labels 1-99, 9100 are classes 0-99, in the order of the numbers; 9000 numbers between them have no image"
    )
    names = [f"c{label:03d}" for label in range(100)]
    [note] = load(tmp_path, names, names).notes
    assert note.endswith("100 classes, sorted by name: 0 c000, 1 c001, 2 c002, 3 c003, 4 c004, ..., 99 c099")
    assert runs_of(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, ..., 38"


@pytest.mark.parametrize(
    ("word", "several"),
    [("a|b", True), ("a; b", True), ("1 2", True), ("[]", True), ("a c", False), ("tench, fish", False), ("a", False)],
)
def test_lists_of_labels(word: str, several: bool) -> None:
    assert several_labels(word, {"a", "b", word}) is several


# Names of classes


FILES = {
    "names.txt": "rose\nsea lily\ntulip\n",
    "numbered.txt": "1 rose\n2 sea lily\n3 tulip\n4 weed\n",
    "behind.txt": "rose 1\nsea lily 2\ntulip 3\n",
    "table.csv": 'class_id,name\n3,tulip\n1,rose\n2,"sea lily"\n',
    "bare.csv": "rose,1\ntulip,3\nsea lily,2\n",
    "tab.txt": "1\trose\n2\tsea lily\n3\ttulip\n",
    "list.json": json.dumps(["rose", "sea lily", "tulip"]),
    "of.json": json.dumps({"1": "rose", "2": "sea lily", "3": "tulip", "9": "weed"}),
    "to.json": json.dumps({"tulip": 3, "rose": 1, "sea lily": 2}),
    "parts.json": json.dumps({"1": ["rose"], "2": ["sea", "lily"], "3": ["tulip"]}),
}


@pytest.mark.parametrize("name", FILES)
def test_class_names_for_numbers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    data = load(tmp_path, ["2", "1", "3"], ["1", "2", "3"], class_names=str(tmp_path / name))
    assert data.class_names == ["rose", "sea lily", "tulip"] and data.train.labels.tolist() == [1, 0, 2]
    assert data.lists == {"columns": None, "labels": {"1": "rose", "2": "sea lily", "3": "tulip"}}


def test_class_names_for_plain_numbers_names_and_both(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("rose\nlily\nweed\n")
    assert load(tmp_path, ["0", "1"], ["0", "1"], class_names=str(path)).class_names == ["rose", "lily"]
    path.write_text("7\na\nb\n")
    data = load(tmp_path, ["a", "b", "7"], ["a", "b", "7"], class_names=str(path))
    assert data.class_names == ["7", "a", "b"] and data.train.labels.tolist() == [1, 2, 0]
    path.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    words = ["n01443537", "n01440764"]
    data = load(tmp_path, words, words, class_names=str(path))
    assert data.class_names == ["tench, Tinca tinca", "goldfish"] and data.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "rose\n", "has 1 names for 2 classes"),
        ("a.txt", "rose\nlily\nweed\n", "has 3 names for 2 classes; write 'number name'"),
        ("a.txt", "1 rose\n", "has no name for the label '2'"),
        ("a.txt", "1 rose\n1 lily\n2 x\n", "names the label '1' twice"),
        ("a.txt", "1 rose\n2 rose\n", "both named 'rose'"),
        ("a.txt", "\n", "holds no class names"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1, 2]", "neither a list of class names"),
        ("a.json", '{"1": {"a": 1}}', "neither a list of class names"),
        ("a.txt", None, "cannot read the class names"),
    ],
)
def test_wrong_class_names(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert words in refusal(tmp_path, ["1", "2"], ["1", "2"], class_names=str(tmp_path / name))


# --drop_empty_classes: labels of test and held-out images that the training list lacks


DROPPING = Profile(imb_ratio=None, drop_empty_classes=True)


def dropped(folder: Path, train: list[str], test: list[str], val: tuple[str, ...] = (), **files: Any) -> LongTailedData:
    """Load lists that may hold classes without training images, with a validation list where there is one."""
    if val:
        (folder / "val.txt").write_text("".join(f"val{i}.jpg\t{label}\n" for i, label in enumerate(val)))
        files["val"] = str(folder / "val.txt")
    return load(folder, train, test, profile=DROPPING, **files)


@pytest.mark.parametrize(
    ("train", "test", "classes", "named"),
    [
        (["rose", "daisy"], ["tulip", "daisy", "rose", "tulip", "lily"], [0, 1], "tulip, lily"),
        (["17", "3"], ["501", "3", "17", "501", "4"], [0, 1], "501, 4"),
        (["0", "1"], ["2", "0", "1", "7", "2"], [0, 1], "2, 7"),
        (["0", "1"], ["2", "0", "1", "7", "2.0"], [0, 1], "2, 7, 2.0"),
    ],
)
def test_labels_without_training_images_are_left_out_with_a_line(
    tmp_path: Path, train: list[str], test: list[str], classes: list[int], named: str
) -> None:
    assert "; --drop_empty_classes leaves such images out" in refusal(tmp_path, train, test)
    data = dropped(tmp_path, train, test, val=("8000", *train))
    assert data.test.labels.tolist() == classes and len(data.class_names) == 2
    assert f"{tmp_path / 'test.txt'}: 3 images of labels that the training list lacks are left out: {named}" in (
        data.notes
    )
    assert f"{tmp_path / 'val.txt'}: 1 image of labels that the training list lacks is left out: 8000" in data.notes
    assert data.holdout.labels.tolist() == [data.class_names.index(label) for label in train]
    assert data.test.path(0).endswith("test1.jpg")


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (["rose", "daisy"], ["rose", "Daisy"], "it has 'daisy'"),
        (["3", "17"], ["3", "rose"], "it has 3, 17"),
        (["0", "1"], ["0", "-1"], "is not an integer from 0 to 1"),
        (["rose", "daisy"], ["tulip", "lily"], "test.txt: no image is of a class that has training images"),
    ],
)
def test_what_is_no_other_class_is_refused_all_the_same(
    tmp_path: Path, train: list[str], test: list[str], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        dropped(tmp_path, train, test)
    assert words in str(caught.value) and "leaves such images out" not in str(caught.value)


def test_the_record_of_labels_names_the_classes_that_are_left(tmp_path: Path) -> None:
    data = dropped(tmp_path, ["0", "2", "2"], ["1", "2", "0"])
    assert data.class_names == ["0", "2"] and data.test.labels.tolist() == [1, 0]
    assert data.lists == {"columns": None, "labels": {"0": "0", "2": "2"}}
    (tmp_path / "names.txt").write_text("0 ant\n1 bee\n2 cow\n")
    data = dropped(tmp_path, ["0", "2", "2"], ["1", "2", "0"], class_names=str(tmp_path / "names.txt"))
    assert data.class_names == ["ant", "cow"] and data.lists == {"columns": None, "labels": {"0": "ant", "2": "cow"}}
    left = data.train.take(np.array([1, 2]))
    fewer = with_splits(data, left, data.holdout, data.test, drop_empty_classes=True)
    assert fewer.class_names == ["cow"] and fewer.lists == {"columns": None, "labels": {"2": "cow"}}
