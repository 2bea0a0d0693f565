"""Images in memory written as files in every form are the same data set again, whichever form is read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.robustness import image_trees as trees
from benchmarks.robustness import layouts
from datasets import load_dataset
from datasets.decode import decode_rgb
from datasets.long_tail import Augmentation, LongTailedData, Profile, Split, subset_identity
from datasets.on_disk.layouts import ListFiles
from datasets.on_disk.listed_split import ListedSplit
from models import build_model
from tests.helpers import run

CLASSES, SIZE = 4, 8
NATURAL = Profile(imb_ratio=None)


def smooth_split(counts: list[int], first: int) -> Split:
    """Return images whose brightness tells their class, in a shuffled order."""
    labels = np.repeat(np.arange(len(counts)), counts)
    order = np.random.RandomState(first).permutation(len(labels))
    labels = labels[order]
    shades = (40 * labels + 20).astype(np.uint8)[:, None, None, None]
    return Split(np.tile(shades, (1, SIZE, SIZE, 3)), labels, first + np.arange(len(labels)))


@pytest.fixture(scope="module")
def data() -> LongTailedData:
    train, holdout, test = smooth_split([12, 6, 3, 2], 0), smooth_split([2, 1, 1, 1], 100), smooth_split([3] * 4, 0)
    augmentation = Augmentation(0, True, (0.5,) * 3, (0.25,) * 3)
    names, counts = [f"class {label}" for label in range(CLASSES)], np.bincount(train.labels)
    return LongTailedData("shades", train, holdout, test, names, counts, augmentation, subset_identity(train))


@pytest.fixture(scope="module")
def folder(data: LongTailedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trees")
    trees.write_trees(data, made)
    return made


def brightness(split: Split, row: int) -> int:
    assert isinstance(split, ListedSplit)
    return int(decode_rgb(split.path(row)).float().mean().round())


def forms(folder: Path) -> dict[str, LongTailedData]:
    """The data set, read through folders, text lists and JSON."""
    lists = folder / "list"
    as_json = ListFiles(*(str(lists / f"{part}.json") for part in ("train", "val", "test")), str(lists / "images"))
    return {
        "folder": load_dataset("folder", NATURAL, str(folder / "folder")),
        "list": load_dataset("list", NATURAL, str(lists), ListFiles(image_root=str(lists / "images"))),
        "json": load_dataset("list", NATURAL, str(lists), as_json),
    }


def test_every_form_names_the_same_images_in_the_same_order(folder: Path, data: LongTailedData) -> None:
    read = forms(folder)
    for form, found in read.items():
        assert found.class_counts.tolist() == data.class_counts.tolist(), form
        for name in ("train", "holdout", "test"):
            split, like = getattr(found, name), getattr(read["folder"], name)
            assert len(split) == len(getattr(data, name)) and np.array_equal(split.labels, like.labels), form
            assert np.array_equal(split.ids, like.ids) and np.array_equal(split.images, like.images), form
            shades = [brightness(split, row) for row in range(len(split))]
            assert np.abs(np.array(shades) - (40 * split.labels + 20)).max() <= 1, form
    assert read["folder"].class_names == data.class_names == read["json"].class_names
    identities = {found.subset["content_sha256"] for found in read.values()}
    assert len(identities) == 1


def test_images_are_jpeg_and_png_by_turns(folder: Path) -> None:
    files = sorted((folder / "folder" / "train").rglob("*.*"))
    kinds = [Image.open(path).format for path in files]
    assert {path.suffix for path in files} == {".jpg", ".png"} and set(kinds) == {"JPEG", "PNG"}


def test_a_thousand_classes_are_tenths_of_a_hundred() -> None:
    images = [trees.Entry(f"{number}.png", number % 2, np.zeros((1, 1, 3), np.uint8)) for number in range(44)]
    cut = trees.as_thousand(images)
    assert [entry.path for entry in cut] == [entry.path for entry in images]
    assert {entry.label for entry in cut} == set(range(20))
    assert all(entry.label // trees.SUBCLASSES == image.label for entry, image in zip(cut, images, strict=True))
    assert np.bincount([entry.label for entry in cut]).tolist() == [3, 3, *[2] * 8, 3, 3, *[2] * 8]


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(trees.UserError, match="is not empty"):
        trees.main([str(tmp_path)])
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_fewer_test_images(data: LongTailedData) -> None:
    assert np.bincount(trees.cut(data.test, 2).labels).tolist() == [2] * CLASSES
    assert trees.cut(data.test, None) is data.test


# benchmarks.robustness.layouts


def test_every_way_is_a_command_that_can_be_parsed(folder: Path, tmp_path: Path) -> None:
    ways = layouts.ways(folder)
    assert [way.processes for way in ways] == [1, 1, 1, 1, 2, 1, 2]
    assert {way.like for way in ways if way.like} <= {way.name for way in ways}
    for way in ways[:3]:  # with a network that nothing else fits, each gets as far as the data
        flags = (*way.flags, *layouts.NETWORK, *layouts.STAGE1, "--num_class", 99, "--out", tmp_path)
        assert "--num_class 99 does not fit" in run("main_stage1", *flags).err


def test_the_distance_of_weights(tmp_path: Path) -> None:
    model = build_model("resnet8", 3, width=2)
    for name in ("one", "two"):
        (tmp_path / name / "stage1_x").mkdir(parents=True)
        torch.save(model.state_dict(), tmp_path / name / "stage1_x" / "last.pth")
    assert layouts.distance(tmp_path / "one", tmp_path / "two", "stage1") == 0
    state = {key: 1.01 * tensor for key, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "two" / "stage1_x" / "last.pth")
    assert layouts.distance(tmp_path / "one", tmp_path / "two", "stage1") == pytest.approx(0.01, rel=1e-3)


def test_the_table_says_what_is_equal_and_what_is_near() -> None:
    common = {"classes": 4, "images_per_second": 5.4, "loss": 1.0, "stage1_all": 1, "stage2_all": 2, "evaluate_all": 2}
    rows = pd.DataFrame(
        [
            {"way": "a", "like": "", **common},
            {"way": "b", "like": "a", "stage1_distance": 0.0, "stage2_distance": 3e-5, **common},
        ]
    )
    lines = layouts.ways_table(rows).to_dict("records")
    assert lines[0]["stage1 weights"] == "" and lines[0]["images/s"] == "5"
    assert lines[1]["stage1 weights"] == "= a" and lines[1]["stage2 weights"] == "3.0e-05 from a"
