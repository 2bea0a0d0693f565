"""Folders of images as people have them: nested, under other names, with litter, without a test, with empty classes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.decode import decode_rgb
from datasets.decoding.pil import FORMATS
from datasets.identity.content import with_identity
from datasets.long_tail import LongTailedData, Profile
from datasets.names import SPLIT_NAMES
from datasets.on_disk.folder_splits import find_splits, load_folder, split_of, with_written_lists
from datasets.on_disk.layouts import LAYOUTS, ListFiles
from datasets.on_disk.listed_split import ListedSplit
from datasets.on_disk.load import load_listed
from datasets.on_disk.long_tailed import with_splits
from datasets.on_disk.tables.splits import split_of as in_tables
from datasets.on_disk.walk import (
    EMPTY,
    ENDING,
    HIDDEN,
    IMAGE_EXTENSIONS,
    LITTER,
    LOOP,
    LOOSE,
    NO_ENDING,
    OF_TOOLS,
    ONE,
    UNUSED,
    LeftOut,
    walk,
)
from runs.feature_files.names import split_of as in_features
from tools import check_dataset
from utils.errors import UserError

NATURAL = Profile(imb_ratio=None)
DROPPING = Profile(imb_ratio=None, drop_empty_classes=True)
FLOWERS = {"daisy": 12, "rose": 8, "tulip": 5}


def touch(*paths: Path) -> None:
    """Make empty files: who is where needs no pixels."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def flowers(root: Path, *splits: str) -> Path:
    """Make class folders of empty files: 12, 8 and 5 in a split for training or in `root` itself, else 3 of each."""
    for split in splits:
        for name, count in FLOWERS.items():
            small = split_of(split) in ("val", "test")
            touch(*(root / split / name / f"{number:03}.jpg" for number in range(3 if small else count)))
    return root


def load(root: Path, profile: Profile = NATURAL) -> LongTailedData:
    return load_folder(str(root), profile)


def names_of(split: object) -> list[str]:
    assert isinstance(split, ListedSplit)
    return [os.fsdecode(path) for path in split.images.tolist()]


def refusal(root: Path, profile: Profile = NATURAL) -> str:
    with pytest.raises(UserError) as caught:
        load(root, profile)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Walking


def test_every_ending_that_the_decoder_reads_is_an_image(tmp_path: Path) -> None:
    """The endings that this Pillow has for the formats are those of the list; the two more are read as well."""
    Image.init()
    registered = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert registered - set(IMAGE_EXTENSIONS) <= {".pfm"}  # a later Pillow may have more: read them, or say why not
    assert set(IMAGE_EXTENSIONS) - registered == {".mpo", ".dib"}
    pixels = np.full((4, 6, 3), 200, np.uint8)
    for ending, kind in ((".mpo", "MPO"), (".dib", "BMP"), (".jfif", "JPEG"), (".pbm", "PPM")):
        path = tmp_path / f"a{ending}"
        Image.fromarray(pixels).convert("1" if ending == ".pbm" else "RGB").save(path, kind)
        assert decode_rgb(str(path)).shape == (3, 4, 6)
    Image.fromarray(np.zeros((4, 6), np.float32)).save(tmp_path / "a.pfm")
    with pytest.raises(UserError, match="floating-point"):
        decode_rgb(str(tmp_path / "a.pfm"))


def test_class_folders_are_walked_to_the_bottom(tmp_path: Path) -> None:
    root = flowers(tmp_path, "train", "test")
    touch(root / "train/rose/b/2.JFIF", root / "train/rose/b/10.png", root / "train/rose/b/deep/er/x.Apng")
    touch(root / "train/rose/a b/1.dib", root / "test/rose/b/t.pbm")
    data = load(root)
    rose = [name for name in names_of(data.train) if name.startswith("train/rose/")]
    inside = ["a b/1.dib", "b/10.png", "b/2.JFIF", "b/deep/er/x.Apng"]
    assert rose[8:] == [f"train/rose/{name}" for name in inside]
    assert data.class_counts.tolist() == [12, 12, 5] and data.imbalance_factor == 2.4
    assert data.class_names == list(FLOWERS) and len(data.test) == 10
    assert data.notes == (
        "5 images lie in folders inside class folders, and are of these classes (train/rose/a b/1.dib)",
    )
    assert with_identity(data, "content", tmp_path / "kept").identity == with_identity(load(root), "content").identity


def test_flat_folders_are_read_as_before(tmp_path: Path) -> None:
    """The subset's hashes of this tree are those of the release before class folders were walked."""
    data = load(flowers(tmp_path, "train", "test"))
    assert names_of(data.train) == [f"train/{name}/{i:03}.jpg" for name, count in FLOWERS.items() for i in range(count)]
    assert data.subset["index_sha256"].startswith("2a0a16a7ce85c211")
    assert data.subset["content_sha256"].startswith("31c798987c8250f1")
    assert data.notes == () and data.test_share == 0


def test_loops_of_links_end(tmp_path: Path) -> None:
    root = flowers(tmp_path / "data", "train", "test")
    (root / "train/rose/in").mkdir()
    for place, target in {
        "train/rose/in/self": ".",
        "train/rose/up": root / "train",
        "train/tulip/root": root,
        "train/tulip/out": tmp_path,
        "train/daisy/one": root / "train/rose/in",
        "train/daisy/two": root / "train/rose/in",
    }.items():
        (root / place).symlink_to(target)
    touch(root / "train/rose/in/x.png")
    (root / "train/lily").symlink_to(tmp_path / "elsewhere")
    touch(tmp_path / "elsewhere/l.png", root / "test/lily/l.png")
    data = load(root)
    assert data.class_names == ["daisy", "lily", "rose", "tulip"]
    assert data.class_counts.tolist() == [13, 1, 9, 5]  # each folder once a class
    [warning] = [note for note in data.notes if LOOP in note]
    assert warning.startswith(f"warning: left out: 6 {LOOP} (")


def test_what_is_left_out_is_named_counted_and_reasoned(tmp_path: Path) -> None:
    root = flowers(tmp_path, "train", "test")
    touch(*(root / f"train/rose/{i}.heic" for i in range(4)), root / "train/tulip/b.TXT", root / "train/rose/noending")
    touch(root / "train/._daisy.jpg", root / "train/rose/.DS_Store", root / "train/tulip/Thumbs.db")
    touch(root / "train/loose.jpg", root / "loose.png", root / "extra/rose/1.jpg", root / "README.md")
    touch(root / "test/@eaDir/rose/x.jpg", root / "test/rose/__MACOSX/._x.jpg", root / "test/rose/lost+found/x.jpg")
    (root / "train/rose/empty").mkdir()
    data = load(root)
    assert data.class_counts.tolist() == [12, 8, 5] and len(data.test) == 9
    assert set(data.notes) == {
        f"warning: left out: 1 {ONE[UNUSED]} (extra)",
        f"warning: left out: 2 {LOOSE} (loose.png, train/loose.jpg)",
        f"warning: left out: 5 {ENDING}: .heic 4, .txt 1 "
        "(train/rose/0.heic, train/rose/1.heic, train/rose/2.heic, ...)",
        f"warning: left out: 1 {ONE[NO_ENDING]} (train/rose/noending)",
        f"left out: 2 {HIDDEN} (train/._daisy.jpg, train/rose/.DS_Store)",
        f"left out: 4 {OF_TOOLS} (train/tulip/Thumbs.db, test/@eaDir, test/rose/__MACOSX, ...)",
        f"left out: 1 {ONE[EMPTY]} (train/rose/empty)",
    }
    assert all(name == name.lower() and not name.endswith(IMAGE_EXTENSIONS) for name in LITTER)


def test_a_refusal_says_what_was_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "train/rose/a.heic", tmp_path / "train/tulip/b.heic")
    assert ".heic 2" in refusal(tmp_path)


def test_too_long_paths_are_refused(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 200] * 6)
    touch(deep / "x.jpg")
    with pytest.raises(UserError, match="more than 1000 characters"):
        walk(tmp_path, "", LeftOut())


# Splits


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "valid", "TEST"), ("training", "Validation", "eval"), ("train_set", "dev", "Test Images")],
)
def test_splits_by_the_names_that_people_give_them(tmp_path: Path, train: str, val: str, test: str) -> None:
    data = load(flowers(tmp_path, train, val, test))
    assert (len(data.train), len(data.holdout), len(data.test)) == (25, 9, 9)
    assert names_of(data.holdout)[0] == f"{val}/daisy/000.jpg"
    roles = ((train, "training"), (val, "held-out"), (test, "test"))
    assert set(data.notes) == {f"{name}/ is the {words} split" for name, words in roles}


def test_names_of_splits_are_of_one_split_each() -> None:
    names = [name for group in SPLIT_NAMES.values() for name in group]
    assert len(set(names)) == len(names) and all(split_of(name.upper()) for name in names)
    assert split_of("set") is None and split_of("images") is None and split_of("rose") is None
    assert split_of("trainset") == "train" and split_of("val-data") == "val" and split_of("Held-out_images") == "val"
    for split, words in SPLIT_NAMES.items():  # one list for folders, tables and features
        for word in words:
            assert split_of(word) == in_tables(word, "split") == split and in_tables("1", f"is_{word}") == split
            assert in_features(word) == split.replace("val", "holdout")


def test_a_validation_split_alone_is_the_test(tmp_path: Path) -> None:
    data = load(flowers(tmp_path, "train", "valid"))
    assert len(data.holdout) == 0 and len(data.test) == 9
    assert data.notes == ("valid/ is the test split",)
    shared = load(flowers(tmp_path, "test"), Profile(imb_ratio=None, holdout=0.25))
    assert "the 9 images of the validation split are unused beside --holdout" in shared.notes


def test_what_fits_no_split_is_said(tmp_path: Path) -> None:
    flowers(tmp_path / "two", "train", "Train")
    assert "'Train' and 'train' both look like the train split" in refusal(tmp_path / "two")
    message = refusal(flowers(tmp_path / "one", ""))
    assert "found 'daisy', 'rose', 'tulip'" in message and "--test_share 0.2" in message and "training" in message
    flowers(tmp_path / "outer" / "inner", "train", "test")
    assert "found 'inner'; name the folder that holds the splits with --data_dir" in refusal(tmp_path / "outer")
    flowers(tmp_path / "half", "test")
    assert "found 'test'" in refusal(tmp_path / "half", Profile(imb_ratio=None, test_share=0.2))
    assert find_splits(tmp_path / "half", LeftOut()) == {"test": "test"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """As one of CIFAR-100's is; a folder of that name that holds class folders is the split all the same."""
    root = tmp_path / "classes"
    touch(*(root / name / f"{i}.png" for name in ("bus", "train", "training", "valid") for i in range(5)))
    assert "--test_share 0.2" in refusal(root)
    data = load(root, Profile(imb_ratio=None, test_share=0.2))
    assert data.class_names == ["bus", "train", "training", "valid"] and data.class_counts.tolist() == [4] * 4
    assert find_splits(flowers(tmp_path / "split", "train", "test"), LeftOut()) == {"train": "train", "test": "test"}
    touch(tmp_path / "split" / "bus" / "0.png")
    assert find_splits(tmp_path / "split", LeftOut()) == {"train": "train", "test": "test"}
    touch(tmp_path / "loose" / "train" / "0.png")
    assert find_splits(tmp_path / "loose", LeftOut()) == {"train": "train"}


def test_a_share_of_each_class_is_tested_on(tmp_path: Path) -> None:
    root = flowers(tmp_path / "flowers", "")
    touch(root / "aster/only.jpg", root / "lily/1.jpg", root / "lily/2.jpg")
    profile = Profile(imb_ratio=None, test_share=0.2)
    data = load(root, profile)
    assert data.class_names == ["aster", "daisy", "lily", "rose", "tulip"] and data.test_share == 0.2
    assert data.class_counts.tolist() == [1, 10, 1, 6, 4]
    assert np.bincount(data.test.labels).tolist() == [0, 2, 1, 2, 1]
    assert sorted(names_of(data.train) + names_of(data.test)) == sorted(
        str(path.relative_to(root)) for path in root.glob("*/*.jpg")
    )
    assert "no test split: 6 of 28 images are tested on, 0.2 of each class, by --test_seed 0" in data.notes
    assert any("1 of 5 classes have no test image" in note and "aster" in note for note in data.notes)
    again = load(root, Profile(imb_ratio=None, test_share=0.2, holdout_seed=7))  # every run has the same test
    other = load(root, Profile(imb_ratio=None, test_share=0.2, test_seed=1))
    assert names_of(again.test) == names_of(data.test) != names_of(other.test)
    held = load(root, Profile(imb_ratio=None, test_share=0.2, holdout=0.2))
    assert names_of(held.test) == names_of(data.test)
    assert sorted(names_of(held.train) + names_of(held.holdout)) == names_of(data.train)


def test_a_share_goes_to_the_test_only_where_there_is_none(tmp_path: Path) -> None:
    root, profile = flowers(tmp_path, "train", "val"), Profile(imb_ratio=None, test_share=0.2)
    data = load(root, profile)
    assert (len(data.train), len(data.holdout), len(data.test)) == (20, 9, 5)
    assert len({*data.train.ids, *data.test.ids}) == 25 and not {*data.train.ids} & {*data.holdout.ids}
    flowers(root, "test")
    data = load(root, profile)
    assert (len(data.train), len(data.test), data.test_share) == (25, 9, 0)
    assert data.notes == ("--test_share is not used: test/ is the test split",)
    touch(tmp_path / "single/rose/1.jpg", tmp_path / "single/tulip/1.jpg")
    assert "no class has two" in refusal(tmp_path / "single", profile)


def test_lists_of_a_made_split_are_written_once(tmp_path: Path) -> None:
    root, profile = flowers(tmp_path / "flowers", ""), Profile(imb_ratio=None, test_share=0.2)
    data = load(root, profile)
    assert with_written_lists(load(flowers(tmp_path / "whole", "train", "test")), tmp_path / "out").notes == ()
    told = with_written_lists(data, tmp_path / "out")
    [folder] = (tmp_path / "out" / "splits").iterdir()
    assert told.notes[-1] == f"the lists of this split: train.txt, test.txt, class_names.json in {folder}"
    assert (folder / "test.txt").read_text().splitlines()[0] == f"{names_of(data.test)[0]} 0"
    files = ListFiles(str(folder / "train.txt"), None, str(folder / "test.txt"), str(root))
    listed = load_listed(LAYOUTS["list"], ".", NATURAL, files)
    assert listed.subset["content_sha256"] == data.subset["content_sha256"]
    assert names_of(listed.test) == names_of(data.test) and listed.test.labels.tolist() == data.test.labels.tolist()
    stamp = (folder / "train.txt").stat().st_mtime_ns
    assert with_written_lists(load(root, profile), tmp_path / "out").notes == told.notes
    assert (folder / "train.txt").stat().st_mtime_ns == stamp
    touch(root / "rose/new.jpg")  # another split goes to another folder
    with_written_lists(load(root, profile), tmp_path / "out")
    assert len(list((tmp_path / "out" / "splits").iterdir())) == 2
    (root / "rose/new.jpg").unlink()
    (folder / "train.txt").write_text("mine")
    note = with_written_lists(load(root, profile), tmp_path / "out").notes[-1]
    assert note.startswith("warning: ") and "holds something else, and is left as it is" in note
    assert (folder / "train.txt").read_text() == "mine"
    touch(root / "rose/two\nlines.jpg")
    assert "has a line break" in with_written_lists(load(root, profile), tmp_path / "out").notes[-1]


@pytest.mark.parametrize(
    "names", [("10", "9", "sea lion"), ("2", "10", "0"), (" a", "a ", "a"), ("1 b", "0 a", "Ä\udcff"), ("rose", "Rose")]
)
def test_written_lists_give_the_same_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Whatever the class folders are called: labels and names are those of the folder that was split."""
    root = tmp_path / "images"
    touch(*(root / name / f"{number}.jpg" for name in names for number in range(5)))
    data = with_written_lists(load(root, Profile(imb_ratio=None, test_share=0.2, holdout=0.3)), tmp_path)
    [folder] = (tmp_path / "splits").iterdir()
    lists = [str(folder / f"{part}.txt") for part in ("train", "val", "test")]
    files = ListFiles(*lists, str(root), class_names=str(folder / "class_names.json"))
    listed = load_listed(LAYOUTS["list"], ".", NATURAL, files)
    assert listed.class_names == data.class_names
    for one, other in zip(
        (listed.train, listed.holdout, listed.test), (data.train, data.holdout, data.test), strict=True
    ):
        assert one.images.tolist() == other.images.tolist() and one.labels.tolist() == other.labels.tolist()
    assert json.loads((folder / "class_names.json").read_bytes()) == data.class_names


# Classes without images


def test_a_class_without_test_images_stays_with_a_warning(tmp_path: Path) -> None:
    root = flowers(tmp_path, "train", "test")
    for path in (root / "test/tulip").iterdir():
        path.unlink()
    data = load(root)
    assert data.class_names == list(FLOWERS) and len(data.test) == 6
    [warning] = data.notes
    assert warning == ("warning: 1 of 3 classes have no test image, so no accuracy, and are in no mean: tulip")


def test_classes_without_training_images_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    root = flowers(tmp_path, "train", "test", "val")
    (root / "train/lily").mkdir()
    touch(root / "train/@eaDir/x.jpg", root / "test/lily/1.jpg", root / "test/aster/1.jpg", root / "val/lily/1.jpg")
    message = refusal(root)
    assert "2 of 5 classes have no training image (first: class 1 'lily')" in message
    assert "--drop_empty_classes" in message
    data = load(root, DROPPING)
    assert data.class_names == list(FLOWERS) and data.class_counts.tolist() == [12, 8, 5]
    assert (len(data.holdout), len(data.test)) == (9, 9)
    assert all(
        Path(name).parts[1] == data.class_names[y]
        for name, y in zip(names_of(data.test), data.test.labels, strict=True)
    )
    assert data.notes[1:] == (
        "2 of 5 classes have no training image and are left out: lily, aster",
        "1 held-out image is of these classes and is left out too",
        "2 test images are of these classes and are left out too",
    )
    for name in ("lily", "aster"):
        (root / "test" / name / "1.jpg").unlink()
        (root / "test" / name).rmdir()
    (root / "val/lily/1.jpg").unlink()
    (root / "train/lily").rmdir()
    assert load(root, DROPPING).subset == data.subset


def test_no_test_image_of_a_class_that_is_left(tmp_path: Path) -> None:
    flowers(tmp_path, "train")
    touch(tmp_path / "test/lily/1.jpg")
    assert "no test image is of a class that has training images" in refusal(tmp_path, DROPPING)


def test_categories_without_images_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    """Lists obey the flag too: a category that no training image has goes, with its images in the test."""
    flowers(tmp_path, "train", "test")
    for split, without in (("train", "rose"), ("test", "tulip")):
        found = [path for path in sorted(tmp_path.glob(f"{split}/*/*")) if path.parent.name != without]
        labels = [list(FLOWERS).index(path.parent.name) for path in found]
        content = {
            "images": [{"id": i, "file_name": str(path.relative_to(tmp_path))} for i, path in enumerate(found)],
            "annotations": [{"image_id": i, "category_id": label} for i, label in enumerate(labels)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(FLOWERS)],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    files = ListFiles(str(tmp_path / "train.json"), None, str(tmp_path / "test.json"), str(tmp_path))
    with pytest.raises(UserError, match=r"no training image \(first: class 1 'rose'\).*--drop_empty_classes"):
        load_listed(LAYOUTS["list"], ".", NATURAL, files)
    data = load_listed(LAYOUTS["list"], ".", DROPPING, files)
    assert data.class_names == ["daisy", "tulip"] and data.class_counts.tolist() == [12, 5]
    assert names_of(data.test) == [f"test/daisy/{number:03}.jpg" for number in range(3)]
    assert "3 test images are of these classes and are left out too" in data.notes
    assert any("1 of 2 classes have no test image" in note for note in data.notes)


@pytest.mark.parametrize("other", ["Rose", " rose", "ro\N{FULLWIDTH LATIN SMALL LETTER S}e"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_another_spelling_of_a_class_is_refused_whatever_may_be_left_out(
    other: str, split: str, tmp_path: Path
) -> None:
    root = flowers(tmp_path, "train", "test", "val")
    (root / split / "rose").rename(root / split / other)
    for profile in (NATURAL, DROPPING):
        message = refusal(root, profile)
        assert f"class '{other}' has no training image, and 'rose', which looks like another spelling" in message
        assert "--drop_empty_classes" not in message


def test_images_that_cannot_be_read_may_empty_a_class(tmp_path: Path) -> None:
    """`--skip_bad` leaves images out after a data set was read."""
    data = load(flowers(tmp_path, "train", "test"))
    assert isinstance(data.train, ListedSplit) and isinstance(data.holdout, ListedSplit)
    assert isinstance(data.test, ListedSplit)
    train = data.train.take(np.flatnonzero(data.train.labels != 1))
    with pytest.raises(UserError, match="first: class 1 'rose'"):
        with_splits(data, train, data.holdout, data.test)
    made = with_splits(data, train, data.holdout, data.test, drop_empty_classes=True)
    assert made.class_names == ["daisy", "tulip"] and made.class_counts.tolist() == [12, 5] and len(made.test) == 6
    untested = with_splits(data, data.train, data.holdout, data.test.take(np.flatnonzero(data.test.labels)))
    assert any(note.endswith("in no mean: daisy") for note in untested.notes)
    with pytest.raises(UserError, match="no test image is left"):
        with_splits(data, data.train, data.holdout, data.test.take(np.arange(0)))


def test_the_check_says_what_training_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = flowers(tmp_path / "flowers", "")
    touch(root / "rose/a.heic", root / "rose/desktop.ini")
    words = ["--dataset", "folder", "--data_dir", str(root), "--out", str(tmp_path / "out"), "--identity", "names"]
    words += ["--test_share", "0.2", "--decode", "0", "--json", str(tmp_path / "report.json")]
    with pytest.raises(SystemExit):  # the files are empty
        check_dataset.main(words)
    out, report = capsys.readouterr().out, json.loads((tmp_path / "report.json").read_text())
    assert report["parts"]["train"]["images"] == 20 and report["parts"]["test"]["images"] == 5
    assert f"warning: left out: 1 {ONE[ENDING]}: .heic 1 (rose/a.heic)" in out
    assert any(line.startswith("left out: 1 left behind") for line in report["reading"])
    assert report["warnings"][0].startswith("left out: 1 file ") and "train.txt, test.txt, class_names.json in " in out
    with pytest.raises(UserError, match="--test_share must be"):
        check_dataset.main([*words, "--test_share", "1.5"])
