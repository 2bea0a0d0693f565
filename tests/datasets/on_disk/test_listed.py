"""Data sets of image files: the three forms agree, every wrong line is named, and the check tells what it finds."""

import json
import os
import pickle
import runpy
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.decoding.pil import read_rgb
from datasets.long_tail import LongTailedData, Profile, long_tail_counts
from datasets.on_disk.coco import read_json_list
from datasets.on_disk.folder_splits import load_folder
from datasets.on_disk.folders import read_folder
from datasets.on_disk.layouts import LAYOUTS, Facts, Layout, ListFiles
from datasets.on_disk.listed_split import ListedSplit, join, pack, path_identity
from datasets.on_disk.load import load_listed
from datasets.on_disk.long_tailed import largest_profile
from datasets.on_disk.text_lists import read_list
from evaluation.metrics import shot_groups
from tools import check_dataset as check
from tools import image_files
from utils.command import run_command
from utils.errors import UserError

CLASSES = {"ant": 9, "bee": 6, "cat": 4, "dog": 2}
NATURAL = Profile(imb_ratio=None)  # type: ignore[arg-type]  # until Profile says so
LIST = LAYOUTS["list"]
FIRST_FRAME = (250, 10, 90)  # of the animated image


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    """Write random RGB pixels as PNG or JPEG, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)).save(path)


def write_tree(root: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """Write a folder a class: in train as many images as CLASSES says, elsewhere 2 of each; PNG and JPEG in turn."""
    for part in parts:
        for name, count in CLASSES.items():
            for i in range(count if part == "train" else 2):
                write_image(root / part / name / f"{part} {i}.{('png', 'jpg')[i % 2]}", seed=len(name) + i)
    return root


def rows_of(root: Path, part: str) -> list[tuple[str, int]]:
    """Return (relative path, label) of the images of a tree, in a shuffled order."""
    rows = [
        (file.relative_to(root).as_posix(), label)
        for label, name in enumerate(CLASSES)
        for file in (root / part / name).iterdir()
    ]
    return [rows[i] for i in np.random.RandomState(1).permutation(len(rows))]


def write_list(path: Path, rows: list[tuple[str, int]]) -> Path:
    path.write_text("".join(f"{name} {label}\n" for name, label in rows))
    return path


def coco(rows: list[tuple[str, int]]) -> dict[str, Any]:
    """Return rows in the form of iNaturalist's JSON; the category ids are not the labels, and not in their order."""
    ids = dict(enumerate((10, 20, 40, 70)))
    return {
        "info": {"year": 2018},
        "images": [{"id": 100 + i, "file_name": name, "license": 3} for i, (name, _) in enumerate(rows)],
        "licenses": [],
        "annotations": [{"id": i, "image_id": 100 + i, "category_id": ids[y]} for i, (_, y) in enumerate(rows)][::-1],
        "categories": [{"id": ids[label], "name": name} for label, name in enumerate(CLASSES)][::-1],
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of class folders with lists and JSON of the same images beside it."""
    write_tree(tmp_path)
    for part in ("train", "test"):
        rows = rows_of(tmp_path, part)
        write_list(tmp_path / f"{part}.txt", rows)
        (tmp_path / f"{part}.json").write_text(json.dumps(coco(rows)))
    return tmp_path


def load_list(folder: Path, profile: Profile = NATURAL, **files: Any) -> LongTailedData:
    return load_listed(LIST, str(folder), profile, ListFiles(**{name: str(path) for name, path in files.items()}))


def refusal(action: Callable[[], object]) -> str:
    """The message of the UserError that `action` must raise."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert message == " ".join(message.split())  # one line
    return message


def pairs(split: ListedSplit) -> list[tuple[bytes, int]]:
    return sorted(zip(split.images.tolist(), split.labels.tolist(), strict=True))


# The three forms


def test_list_json_and_folder_hold_the_same(tree: Path) -> None:
    folder = load_folder(str(tree), NATURAL)
    text = load_list(tree)
    coco_form = load_list(tree, train=tree / "train.json", test=tree / "test.json")
    for data in (text, coco_form):
        assert data.class_counts.tolist() == folder.class_counts.tolist() == list(CLASSES.values())
        assert pairs(data.train) == pairs(folder.train)  # type: ignore[arg-type]
        assert pairs(data.test) == pairs(folder.test)  # type: ignore[arg-type]
        assert data.subset == folder.subset
        assert len(data.holdout) == 0
    assert folder.class_names == coco_form.class_names == list(CLASSES)
    assert text.class_names == ["0", "1", "2", "3"]
    assert text.train.images.tolist() == coco_form.train.images.tolist()  # the order is the file's


def test_rows_of_a_split(tree: Path) -> None:
    train = load_list(tree).train
    assert isinstance(train, ListedSplit)
    assert train.ids.tolist() == list(range(21)) and train.labels.dtype == np.int64
    some = train.take(np.array([7, 2]))
    assert len(some) == 2 and some.ids.tolist() == [7, 2]
    assert some.labels.tolist() == train.labels[[7, 2]].tolist()
    first = rows_of(tree, "train")[7]
    assert some.path(0) == str(tree / first[0]) and some.labels[0] == first[1]
    assert np.array_equal(np.asarray(read_rgb(some.path(0))), np.asarray(Image.open(some.path(0))))
    again = pickle.loads(pickle.dumps(some))
    assert again.path(1) == some.path(1)


def test_marks_line_ends_and_odd_names_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa/my photo.jpg 0\r\n\r\nb/\xff.png\t1  \r\n  \nc/..hidden..jpg 2")
    split = read_list(path, tmp_path, 3)
    assert split.images.tolist() == [b"a/my photo.jpg", b"b/\xff.png", b"c/..hidden..jpg"]
    assert split.labels.tolist() == [0, 1, 2]
    assert os.fsencode(split.path(1)) == os.fsencode(tmp_path) + b"/b/\xff.png"


def test_file_names_of_any_bytes_in_folders(tmp_path: Path) -> None:
    name = os.fsdecode(b"train/\xe4/\xff.png")
    try:
        write_image(tmp_path / name)
    except (OSError, UnicodeError):
        pytest.skip("the file system wants UTF-8")
    split, names = read_folder(tmp_path, "train")
    assert split.images.tolist() == [b"train/\xe4/\xff.png"] and os.path.isfile(split.path(0))
    assert check.shown(names[0]) == "\\udce4"


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    split = read_list(write_list(tmp_path / "list.txt", [("link/a.png", 0)]), tmp_path / "root", 1)
    assert read_rgb(split.path(0)).size == (8, 8)


# Wrong lists


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"a.jpg", "'a.jpg' has no label"),
        (b"a.jpg cat", "the label 'cat' is not an integer from 0 to 4"),
        (b"a.jpg 1.0", "the label '1.0'"),
        (b"a.jpg -1", "the label '-1'"),
        (b"a.jpg 5", "the label '5' is not an integer from 0 to 4"),
        (b"a.jpg 1_0", "the label '1_0'"),
        ("a.jpg \u0663".encode(), "the label '\u0663'"),
        (b"a.jpg " + b"9" * 5000, "the label '999"),
        (b"../a.jpg 0", "the path '../a.jpg' leaves the image folder"),
        (b"b/../../a.jpg 0", "leaves the image folder"),
        (b"b/.. 0", "leaves the image folder"),
        (b"b\\..\\a.jpg 0", "leaves the image folder"),
        (b"/etc/passwd 0", "leaves the image folder"),
        (b"\\\\host\\a.jpg 0", "leaves the image folder"),
        (b"C:\\a.jpg 0", "leaves the image folder"),
        (b"a\0.jpg 0", "no UTF-8 text"),
        (b"a.jpg 0" * 1000 + b" 0", "has more than 1000 characters"),
        ("a.jpg 0".encode("utf-16"), "no UTF-8 text"),
    ],
)
def test_wrong_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"fine.jpg 0\n" + line + b"\nfine.jpg 1\n")
    message = refusal(lambda: read_list(path, tmp_path, 5))
    assert f"{path}, line 2: " in message and words in message
    assert len(message) < 600


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot read the list" in refusal(lambda: read_list(tmp_path / "none.txt", tmp_path))
    assert "cannot read the list" in refusal(lambda: read_list(tmp_path, tmp_path))
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "names no images" in refusal(lambda: read_list(tmp_path / "empty.txt", tmp_path))


def test_labels_without_a_bound_take_no_memory(tmp_path: Path) -> None:
    write_list(tmp_path / "test.txt", [("a.jpg", 0)])
    write_list(tmp_path / "train.txt", [("a.jpg", 0), ("b.jpg", 999_999_998)])
    assert "999999997 of 999999999 classes have no training image (first: class 1)" in refusal(
        lambda: load_list(tmp_path)
    )


def test_test_label_that_training_lacks(tree: Path) -> None:
    write_list(tree / "test.txt", [("test/ant/test 0.png", 0), ("test/ant/test 1.jpg", 4)])
    assert f"{tree / 'test.txt'}, line 2: the label '4' is not an integer from 0 to 3" in refusal(
        lambda: load_list(tree)
    )


def test_class_without_training_images_is_named(tree: Path) -> None:
    write_list(tree / "train.txt", [row for row in rows_of(tree, "train") if row[1] != 1])
    for file in (tree / "train" / "bee").iterdir():
        file.unlink()
    assert "1 of 4 classes have no training image (first: class 1" in refusal(lambda: load_list(tree))
    assert "no training image (first: class 1 'bee')" in refusal(lambda: load_folder(str(tree), NATURAL))


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("images"), "not in COCO's form"),
        (without("annotations"), "not in COCO's form"),
        (lambda content: content.update(categories={"ant": 1}), "not in COCO's form"),
        (lambda content: content["categories"][0].pop("id"), "categories[0] has no integer 'id'"),
        (lambda content: content["categories"].append({"id": 10}), "categories[4] has no integer 'id' of its own"),
        (lambda content: content["categories"].insert(0, 5), "categories[0]"),
        (lambda content: content["annotations"][3].pop("category_id"), "annotations[3] needs"),
        (lambda content: content["annotations"][3].update(category_id=11), "annotations[3] needs"),
        (lambda content: content["annotations"][3].update(category_id=10.0), "annotations[3] needs"),
        (lambda content: content["annotations"][3].update(image_id=[1]), "annotations[3] needs"),
        (
            lambda content: (
                content["annotations"].append({"image_id": 100, "category_id": 10})
                or content["annotations"].append({"image_id": 100, "category_id": 20})
            ),
            "gives the image 100 a second category",
        ),
        (lambda content: content["annotations"].append({"image_id": 7, "category_id": 10}), "does not list (first: 7)"),
        (lambda content: content["images"].append({"id": 100, "file_name": "a"}), "images[21] needs"),
        (lambda content: content["images"][2].update(file_name=5), "images[2] needs"),
        (lambda content: content["images"][2].update(file_name="../a"), "images[2]: the path '../a' leaves"),
        (lambda content: content["images"][2].update(file_name=""), "images[2]: the path '' leaves"),
        (lambda content: content.update(images=[], annotations=[]), "names no images"),
    ],
)
def test_wrong_json_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    write_tree(tmp_path, ("train",))
    content = coco(rows_of(tmp_path, "train"))
    change(content)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    message = refusal(lambda: read_json_list(path, tmp_path))
    assert str(path) in message and words in message


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udcff"])
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(os.fsencode(text))
    assert f"{path} is not valid JSON" in refusal(lambda: read_json_list(path, tmp_path))


@pytest.mark.parametrize("text", ["[]", "5", "null", '"images"'])
def test_json_of_another_kind(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    assert "not in COCO's form" in refusal(lambda: read_json_list(path, tmp_path))


def test_json_lists_share_their_categories_by_name(tree: Path) -> None:
    content = coco(rows_of(tree, "test"))
    content["categories"].append({"id": 5, "name": "elk"})  # of no image: no class
    (tree / "other.json").write_text(json.dumps(content))
    files = {"train": tree / "train.json", "test": tree / "other.json"}
    assert pairs(load_list(tree, **files).test) == pairs(load_list(tree).test)  # type: ignore[arg-type]
    content["categories"][0]["name"] = "wolf"
    (tree / "other.json").write_text(json.dumps(content))
    assert "the label 'wolf' is of no image of the training list" in refusal(lambda: load_list(tree, **files))


def test_a_json_list_beside_a_text_of_numbers_has_as_many_categories(tree: Path) -> None:
    content = coco(rows_of(tree, "test"))
    (tree / "other.json").write_text(json.dumps(content))
    files = {"train": tree / "train.txt", "test": tree / "other.json"}
    assert load_list(tree, **files).class_names == list(CLASSES)
    content["categories"].append({"id": 99, "name": "elk"})
    (tree / "other.json").write_text(json.dumps(content))
    assert "has 5 categories where 4 classes are expected" in refusal(lambda: load_list(tree, **files))


# Wrong folders


def test_class_in_test_alone_is_named(tree: Path) -> None:
    write_image(tree / "test" / "elk" / "a.png")
    message = refusal(lambda: load_folder(str(tree), NATURAL))
    assert "1 of 5 classes have no training image (first: class 4 'elk')" in message


def test_trees_without_images(tmp_path: Path) -> None:
    assert "cannot read the folder" in refusal(lambda: load_folder(str(tmp_path / "none"), NATURAL))
    assert "found no folders" in refusal(lambda: load_folder(str(tmp_path), NATURAL))
    (tmp_path / "train").mkdir()
    assert "holds no images" in refusal(lambda: load_folder(str(tmp_path), NATURAL))
    write_image(tmp_path / "train" / "loose.png")
    assert "train/<class>/*" in refusal(lambda: load_folder(str(tmp_path), NATURAL))
    write_tree(tmp_path, ("train",))
    assert "nothing to test on beside 'train'" in refusal(lambda: load_folder(str(tmp_path), NATURAL))


# What is made of them


def test_validation_images_are_held_out(tmp_path: Path) -> None:
    write_tree(tmp_path, ("train", "val", "test"))
    for part in ("train", "val", "test"):
        write_list(tmp_path / f"{part}.txt", rows_of(tmp_path, part))
    for data in (load_folder(str(tmp_path), NATURAL), load_list(tmp_path)):
        assert len(data.train) == 21 and len(data.test) == 8
        assert data.holdout.ids.tolist() == list(range(21, 29))  # an id names one image
        assert all(name.startswith(b"val/") for name in data.holdout.images)
    shared = load_list(tmp_path, replace(NATURAL, holdout=0.25))
    assert all(name.startswith(b"train/") for name in shared.holdout.images)
    assert sorted([*shared.train.ids, *shared.holdout.ids]) == list(range(21))
    # Another training list may hold the images of the layout's own validation list.
    other = load_list(tmp_path, train=tmp_path / "train.txt")
    assert len(other.holdout) == 0
    (tmp_path / "test").rename(tmp_path / "unused")
    assert len(load_folder(str(tmp_path), NATURAL).holdout) == 0


def test_made_long_tailed(tree: Path) -> None:
    data = load_list(tree, Profile(imb_ratio=4))
    expected = long_tail_counts(9, 4, 4)
    assert expected == [9, 5, 3, 2] and data.class_counts.tolist() == expected
    rows = rows_of(tree, "train")
    for label, count in enumerate(expected):
        of_class = [i for i, row in enumerate(rows) if row[1] == label]
        assert data.train.ids[data.train.labels == label].tolist() == of_class[:count]
    shuffled = load_list(tree, Profile(imb_ratio=4, subset="shuffle"))
    assert shuffled.class_counts.tolist() == expected
    assert shuffled.subset["content_sha256"] != data.subset["content_sha256"]
    assert load_folder(str(tree), Profile(imb_ratio=4)).class_counts.tolist() == expected
    assert "--imb_ratio" in refusal(lambda: load_list(tree, Profile(imb_ratio=0.5)))
    assert "without an image" in refusal(lambda: load_list(tree, Profile(imb_ratio=50)))


@pytest.mark.parametrize("imb_type", ["exp", "step"])
@pytest.mark.parametrize("imb_ratio", [1, 3, 10, 100])
def test_largest_profile_is_the_largest(imb_ratio: float, imb_type: str) -> None:
    profile = Profile(imb_ratio, imb_type)
    assert largest_profile(np.full(7, 500), profile) == profile.counts(500, 7)
    generator = np.random.RandomState(0)
    for _ in range(20):
        sizes = generator.randint(120, 900, 7)
        counts = largest_profile(sizes, profile)
        assert (np.array(counts) <= sizes).all()
        assert (np.array(profile.counts(counts[0] + 1, 7)) > sizes).any()


def test_identity_sees_labels_and_paths_alone() -> None:
    root = Path("root")
    split = pack(root, [b"b", b"a", b"c"], [0, 1, 1])
    identity = path_identity(split)
    assert identity == path_identity(replace(split, root=Path("elsewhere"))) and len(identity["content_sha256"]) == 64
    reordered = path_identity(pack(root, [b"c", b"b", b"a"], [1, 0, 1]))
    assert reordered["content_sha256"] == identity["content_sha256"]
    swapped, renamed = pack(root, [b"b", b"a", b"c"], [1, 0, 1]), pack(root, [b"b", b"a", b"d"], [0, 1, 1])
    contents = {path_identity(other)["content_sha256"] for other in (split, swapped, renamed)}
    assert len(contents) == 3
    assert path_identity(split.take(np.array([0, 1])))["index_sha256"] != identity["index_sha256"]


# The field's data sets


def small(name: str, num_classes: int = 4) -> Layout:
    return replace(LAYOUTS[name], num_classes=num_classes)


@pytest.mark.parametrize("name", ["imagenet_lt", "places_lt", "inaturalist2018"])
def test_field_layouts(tmp_path: Path, name: str) -> None:
    layout = small(name)
    root = write_tree(tmp_path / name)
    assert layout.train[0] in refusal(lambda: load_listed(layout, str(tmp_path), NATURAL))
    write_list(root / layout.train[0], rows_of(root, "train"))
    assert f"{layout.test[0]}" in refusal(lambda: load_listed(layout, str(tmp_path), NATURAL))
    write_list(root / layout.test[0], rows_of(root, "test"))
    data = load_listed(layout, str(tmp_path), NATURAL)
    assert data.name == name and data.num_classes == 4
    assert data.class_counts.tolist() == list(CLASSES.values())
    assert all(Path(data.train.path(row)).is_file() for row in range(21))  # type: ignore[attr-defined]
    assert "long-tailed as it is" in refusal(lambda: load_listed(layout, str(tmp_path), Profile(imb_ratio=4)))
    assert "from 0 to 1" in refusal(lambda: load_listed(small(name, 2), str(tmp_path), NATURAL))
    assert "(first: class 4)" in refusal(lambda: load_listed(small(name, 5), str(tmp_path), NATURAL))
    elsewhere = ListFiles(image_root=str(tmp_path / "none"))
    assert "there is no folder" in refusal(lambda: load_listed(layout, str(tmp_path), NATURAL, elsewhere))


def test_inaturalist_reads_its_json_where_there_is_no_list(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "inaturalist2018")
    (root / "train2018.json").write_text(json.dumps(coco(rows_of(root, "train"))))
    (root / "val2018.json").write_text(json.dumps(coco(rows_of(root, "test"))))
    data = load_listed(small("inaturalist2018"), str(tmp_path), NATURAL)
    assert data.class_counts.tolist() == list(CLASSES.values()) and data.class_names == list(CLASSES)


def test_facts_agree_with_themselves() -> None:
    for layout in LAYOUTS.values():
        if layout.facts is not None:
            assert sum(layout.facts.shots) == layout.num_classes
            assert layout.facts.smallest * layout.facts.shots[2] < layout.facts.train


def inaturalist_counts() -> np.ndarray:
    """Class sizes (8142,) with all that is known of iNaturalist 2018's: sum, ends and shots."""
    facts = LAYOUTS["inaturalist2018"].facts
    assert facts is not None
    many, medium, few = facts.shots
    tail = np.concatenate([np.linspace(100, 20, medium), np.linspace(19, 2, few)]).astype(int)
    head = np.full(many, 101)
    head[0] = 1000
    missing = facts.train - tail.sum() - head.sum()
    head[1:] += missing // (many - 1)
    head[1 : 1 + missing % (many - 1)] += 1
    return np.concatenate([head, tail])


def peak_memory(action: Callable[[], Any]) -> tuple[Any, float | None]:
    """Return what `action` does and by how many MB it raised the peak of this process; None where none can tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, result = resident("VmRSS"), action()
        return result, resident("VmHWM") - before
    except OSError:
        return action(), None


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1000


def test_a_list_of_the_size_of_inaturalist(tmp_path: Path) -> None:
    counts, root = inaturalist_counts(), tmp_path / "inaturalist2018"
    root.mkdir()
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(8142), counts))
    name = "train_val2018/Actinopterygii/%d/%032x.jpg"
    write_list(root / "iNaturalist18_train.txt", [(name % (y, i), y) for i, y in enumerate(labels.tolist())])
    tests = enumerate(np.repeat(np.arange(8142), 3).tolist(), len(labels))
    write_list(root / "iNaturalist18_val.txt", [(name % (y, i), y) for i, y in tests])
    data, peak = peak_memory(lambda: load_listed(LAYOUTS["inaturalist2018"], str(tmp_path), NATURAL))
    assert len(data.train) == 437_513 and np.array_equal(data.class_counts, counts)
    assert data.train.images.nbytes < 35e6
    assert peak is None or peak < 300
    facts = LAYOUTS["inaturalist2018"].facts
    assert facts is not None
    parts = {part: check.part_counts(getattr(data, part).labels, 8142) for part in ("train", "test")}
    assert check.compare_facts(facts, parts, check.shot_counts(data.class_counts)) == []
    one_less = {**parts, "train": {**parts["train"], "images": 437_512}}
    assert check.compare_facts(facts, one_less, check.shot_counts(data.class_counts)) == [
        "437512 training images, where the field's lists have 437513"
    ]


# Images


def png16(colours: bool) -> bytes:
    """A 16-bit PNG of 8 x 8 pixels whose value is 0x9234, gray or RGB; PIL writes no such colours."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = (b"\0" + b"\x92\x34" * 8 * (3 if colours else 1)) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2 if colours else 0, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def write_odd_images(folder: Path) -> dict[str, set[str]]:
    """Write an image of every kind; return the kinds of each file, that of its size apart."""
    folder.mkdir(exist_ok=True)
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    rgb = Image.fromarray(noise)
    for mode, file in {
        "RGB": "rgb.png",
        "L": "l.png",
        "LA": "la.png",
        "1": "1.png",
        "P": "p.png",
        "RGBA": "rgba.png",
        "CMYK": "cmyk.jpg",
    }.items():
        rgb.convert(mode).save(folder / file)
    rgb.convert("F").save(folder / "f.tif")
    frames = [Image.new("RGB", (64, 64), colour) for colour in (FIRST_FRAME, (10, 200, 30))]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    (folder / "gray16.png").write_bytes(png16(colours=False))
    (folder / "rgb16.png").write_bytes(png16(colours=True))
    rgb.save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-600])
    (folder / "text.jpg").write_text("this is a text\n" * 100)
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
    (folder / "broken_link.jpg").symlink_to("nowhere")
    palette = image_files.PALETTE
    return {
        "rgb.png": set(),
        "whole.jpg": set(),
        "l.png": {"grayscale"},
        "la.png": {"grayscale"},
        "1.png": {"grayscale"},
        "p.png": {palette},
        "rgba.png": {palette},
        "cmyk.jpg": {"CMYK"},
        "gray16.png": {"grayscale", "16-bit"},
        "rgb16.png": {"16-bit"},
        "animated.gif": {palette, "animated"},
        "f.tif": {image_files.DAMAGED},
        "truncated.jpg": {image_files.DAMAGED},
        "text.jpg": {image_files.NO_IMAGE},
        "zero.jpg": {image_files.EMPTY},
        "folder.jpg": {image_files.MISSING},
        "broken_link.jpg": {image_files.MISSING},
        "none.jpg": {image_files.MISSING},
    }


def test_every_kind_of_image_is_told(tmp_path: Path) -> None:
    expected = write_odd_images(tmp_path / "odd")
    files = pack(tmp_path / "odd", [name.encode() for name in expected], [0] * len(expected))
    found = image_files.check_files(files, None)
    kinds: dict[str, set[str]] = {name: set() for name in expected}
    for kind, entry in found["kinds"].items():
        assert entry["files"] == len(entry["first"]) or entry["files"] > image_files.FIRST
        for name in entry["first"]:
            kinds[name].add(kind)
    size = f"smaller than {image_files.SMALL}"
    assert found["kinds"][size]["files"] == 11
    assert {name: found - {size} for name, found in kinds.items()} == expected
    assert found["listed"] == len(expected) and found["decoded"] == len(expected) - 4
    refused = {name for name, of in expected.items() if not all(image_files.KINDS[kind] for kind in of)}
    for name in expected:
        if name in refused:
            with pytest.raises((OSError, ValueError)):
                read_rgb(str(tmp_path / "odd" / name))
        else:
            assert read_rgb(str(tmp_path / "odd" / name)).mode == "RGB"


def test_what_training_sees_of_odd_images(tmp_path: Path) -> None:
    write_odd_images(tmp_path)
    for name in ("gray16.png", "rgb16.png"):
        assert (np.asarray(read_rgb(str(tmp_path / name))) == 0x92).all()
    assert (np.asarray(read_rgb(str(tmp_path / "animated.gif"))) == FIRST_FRAME).all()
    gray = np.asarray(read_rgb(str(tmp_path / "l.png")))
    assert gray.shape == (64, 64, 3) and (gray == gray[..., :1]).all()


def test_size_of_the_crop_is_large_enough(tmp_path: Path) -> None:
    write_image(tmp_path / "fits.png", size=(224, 224))
    write_image(tmp_path / "low.png", size=(223, 400))
    assert image_files.examine(str(tmp_path / "fits.png")) == []
    assert image_files.examine(str(tmp_path / "low.png")) == ["smaller than 224"]


@pytest.mark.parametrize("limit", [60, 20])  # of 64 pixels: PIL warns above it and refuses above twice it
def test_bombs_are_not_decoded(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    found = image_files.check_files(pack(tmp_path, [b"bomb.png"], [0]), None)
    assert found["kinds"] == {image_files.TOO_LARGE: {"files": 1, "first": ["bomb.png"]}}


# The command


def run_check(*arguments: object) -> int:
    """Run `python -m tools.check_dataset`, in this process; return the exit status."""
    try:
        run_command(lambda: check.main([str(argument) for argument in arguments]))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def test_check_of_a_good_tree(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--plot", tree / "sizes.png", "--json", tree / "report.json")
    assert run_check("--dataset", "list", "--data_dir", tree, *files) == 0
    out = capsys.readouterr().out
    report = json.loads((tree / "report.json").read_text())
    assert report["class_counts"] == [9, 6, 4, 2] and report["shots"] == {"many": 0, "medium": 0, "few": 4}
    assert report["parts"]["train"] == {"images": 21, "classes": 4, "largest": 9, "smallest": 2}
    sides = report["files"]["shorter_sides"]
    assert sides["smallest"] <= sides["median"] <= sides["largest"] < 224
    [overlap] = report["warnings"]  # all images of this tree hold the same
    assert report["imbalance_factor"] == 4.5 and overlap.startswith("8 test images are training images too, by content")
    assert report["files"]["listed"] == report["files"]["decoded"] == 29
    assert set(report["lists"]) == {str(tree / "train.txt"), str(tree / "test.txt")}
    for words in (
        "list: 4 classes",
        "imbalance factor 4.5 (9 / 2)",
        "0 many (> 100), 0 medium (20 to 100), 4 few (< 20)",
        report["subset"]["content_sha256"],
        *report["lists"].values(),
        "29 files looked for",
        "smaller than 224",
        "--shots thirds",
        "--image_size {} --resize {} --stem {}".format(*image_files.suggested_size(sides["median"])),
        "training can use every file that was looked at",
    ):
        assert words in out
    assert (tree / "sizes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("median", "wanted"),
    [
        (500, (224, 256, "imagenet")),
        (224, (224, 256, "imagenet")),
        (223, (216, 223, "imagenet")),
        (96, (96, 96, "imagenet")),
        (64, (64, 64, "cifar")),
        (35, (32, 35, "cifar")),
        (3, (8, 8, "cifar")),
    ],
)
def test_the_suggested_size_is_that_of_the_images(median: int, wanted: tuple[int, int, str]) -> None:
    assert image_files.suggested_size(median) == wanted


def test_check_names_what_is_missing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*rows_of(tree, "train"), *((f"train/ant/gone{i:02}.png", 0) for i in range(12))]
    write_list(tree / "train.txt", rows)
    assert run_check("--dataset", "list", "--data_dir", tree, "--decode", 0, "--json", tree / "report.json") == 1
    missing = json.loads((tree / "report.json").read_text())["files"]["kinds"]["missing"]
    assert missing == {"files": 12, "first": [f"train/ant/gone{i:02}.png" for i in range(10)]}
    out = capsys.readouterr().out
    assert "gone09" in out and "gone10" not in out and "and 2 more" in out and "cannot use it" in out
    assert "12 files cannot be used: mend or remove, or train with --skip_bad 12" in out


def test_check_decodes_a_sample_or_all(tree: Path) -> None:
    (tree / "train" / "ant" / "train 0.png").write_text("this is no image")
    where = ("--dataset", "folder", "--data_dir", tree, "--json", tree / "report.json")
    for decode, decoded in ((0, 0), (5, 5), ("all", 29)):
        status = run_check(*where, "--decode", decode)
        found = json.loads((tree / "report.json").read_text())["files"]
        assert found["decoded"] == decoded
        assert status == (1 if image_files.NO_IMAGE in found["kinds"] else 0)
    assert status == 1 and found["kinds"][image_files.NO_IMAGE]["first"] == ["train/ant/train 0.png"]


def test_check_warns_of_repeats_leaks_and_what_it_passed_over(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, tests = rows_of(tree, "train"), rows_of(tree, "test")
    write_list(tree / "train.txt", [*rows, rows[0], tests[0]])
    assert run_check("--dataset", "list", "--data_dir", tree) == 0
    out = capsys.readouterr().out
    assert f"1 path stands more than once among the training (and held-out) images (first: {rows[0][0]})" in out
    assert f"1 path is among training and test images (first: {tests[0][0]})" in out
    (tree / "train" / "ant" / "notes.txt").write_text("no image")
    assert run_check("--dataset", "folder", "--data_dir", tree) == 0
    words = "warning: left out: 1 file whose ending is of no image that can be read: .txt 1 (train/ant/notes.txt)"
    assert words in capsys.readouterr().out


def test_check_warns_of_a_path_under_two_labels(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(tree, "train")
    write_list(tree / "train.txt", [*rows, (rows[0][0], 1)])
    for how in ("content", "names"):
        assert run_check("--dataset", "list", "--data_dir", tree, "--identity", how) == 0
        out = capsys.readouterr().out
        assert f"warning: 1 training image stands under two labels (first: {rows[0][0]})" in out
        assert ("are training images too, by content" in out) == (how == "content")


def test_check_compares_with_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = replace(small("imagenet_lt"), facts=Facts(20, 8, 9, 2, (0, 0, 4)))
    monkeypatch.setitem(LAYOUTS, "imagenet_lt", layout)
    root = write_tree(tmp_path / "imagenet_lt")
    write_list(root / layout.train[0], rows_of(root, "train"))
    write_list(root / layout.test[0], rows_of(root, "test"))
    assert run_check("--dataset", "imagenet_lt", "--data_dir", tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("warning: ") == 2  # the other one: all images of this tree hold the same
    assert "warning: 21 training images, where the field's lists have 20" in out


def test_check_of_the_embedded_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check("--dataset", "digits", "--imb_ratio", 25, "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["class_counts"][0] == 124 and report["files"] is None
    assert report["subset"]["content_sha256"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "imagenet"], "unknown data set 'imagenet'; known: cifar100, cifar10, digits, "),
        (
            ["--dataset", "digits", "--train_list", "a.txt"],
            "--train_list a.txt: lists are for imagenet_lt",
        ),
        (["--dataset", "list", "--decode", "some"], "'some' is neither a number of images nor 'all'"),
        (["--dataset", "list", "--decode", "-1"], "'-1' is neither"),
        (["--dataset", "list", "--train_lists", "a"], "unrecognized arguments"),
        (["--dataset", "list", "--data_dir", "/nowhere"], "there is no folder /nowhere"),
        (["--dataset", "folder", "--data_dir", "/nowhere"], "cannot read the folder /nowhere:"),
        ([], "--dataset"),
    ],
)
def test_check_refuses_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_module_is_a_command(tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check", "--dataset", "folder", "--data_dir", str(tree)])
    monkeypatch.delitem(sys.modules, "tools.check_dataset")
    runpy.run_module("tools.check_dataset", run_name="__main__")
    assert "folder: 4 classes" in capsys.readouterr().out


def test_shots_are_those_of_the_report() -> None:
    counts = np.array([1, 19, 20, 21, 99, 100, 101, 5000])
    ours = check.shot_counts(counts)
    assert ours == {name: int(members.sum()) for name, members in shot_groups(counts).items()}


def test_join_keeps_rows_in_order() -> None:
    one, two = pack(Path("root"), [b"a"], [0]), pack(Path("root"), [b"longer", b"b"], [1, 0])
    both = join([one, two])
    assert both.images.tolist() == [b"a", b"longer", b"b"] and both.labels.tolist() == [0, 1, 0]
    assert join([one, two.take(np.arange(0))]).images.tolist() == [b"a"]
