"""Paths in lists: the forms that are read, those that are told apart, and those that leave the image folder."""

import os
from pathlib import Path

import pytest

from datasets.on_disk.rows import Listing
from datasets.on_disk.text_lists import read_text
from utils.errors import UserError

FILES = ("train/daisy/0.jpg", "train/rose/1.jpg")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A folder of images; empty files do, since nothing is decoded."""
    for name in FILES:
        place(tmp_path / "flowers" / name)
    return tmp_path / "flowers"


def place(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def read(flowers: Path, *paths: str, suffix: str = "") -> Listing:
    path = flowers.parent / "list.txt"
    path.write_text("".join(f"{name} {label}\n" for label, name in enumerate(paths)))
    return read_text(path, flowers, suffix)


def found(listing: Listing) -> list[str]:
    return [os.fsdecode(path) for path in listing.images.images.tolist()]


def refusal(flowers: Path, *paths: str) -> str:
    with pytest.raises(UserError) as caught:
        read(flowers, *paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FORMS = {
    "with backslashes": (lambda root, path: path.replace("/", "\\"), "paths with \\ are read with /"),
    "with both": (lambda root, path: "train/" + path[6:].replace("/", "\\"), "paths with \\ are read with /"),
    "absolute": (lambda root, path: f"{root}/{path}", "absolute paths lie below"),
    "from the root, as Places365's": (lambda root, path: f"/{path}", "start from"),
    "with the folder before": (lambda root, path: f"flowers/{path}", "'flowers/' before its paths"),
    "with two folders before": (
        lambda root, path: f"{root.parent.name}/flowers/{path}",
        "/flowers/' before its paths",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_are_read(flowers: Path, form: str) -> None:
    write, words = FORMS[form]
    listing = read(flowers, *(write(flowers, path) for path in FILES))
    assert found(listing) == list(FILES)
    assert len(listing.notes) == 1 and words in listing.notes[0]


def test_forms_that_need_no_word(flowers: Path) -> None:
    assert read(flowers, *FILES).notes == ()
    dotted = [f"./{path}" for path in FILES]
    assert found(read(flowers, *dotted)) == dotted  # the system reads them


def test_absolute_paths_through_links(flowers: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(flowers)
    (tmp_path / "short").symlink_to(flowers / "train" / "daisy")
    assert found(read(flowers, f"{tmp_path}/link/{FILES[0]}")) == [FILES[0]]
    assert found(read(tmp_path / "link", f"{flowers}/{FILES[0]}")) == [FILES[0]]
    assert found(read(flowers, f"{tmp_path}/short/0.jpg")) == [FILES[0]]
    outside = tmp_path / "elsewhere" / "a.jpg"
    place(outside)
    assert "leaves the image folder" in refusal(flowers, str(outside))
    (flowers / "linked").symlink_to(outside.parent)  # the owner's own link
    assert found(read(flowers, f"{flowers}/linked/a.jpg")) == ["linked/a.jpg"]


def test_a_file_whose_name_has_a_backslash(flowers: Path) -> None:
    place(flowers / "odd\\name.jpg")
    listing = read(flowers, "odd\\name.jpg", FILES[0])
    assert found(listing) == ["odd\\name.jpg", FILES[0]] and listing.notes == ()


@pytest.mark.parametrize(
    "path",
    [
        "../flowers/train/daisy/0.jpg",
        "train/../../x.jpg",
        "..\\x.jpg",
        "train\\..\\..\\x.jpg",
        "/etc/passwd",
        "//etc/passwd",
        "\\\\host\\share\\x.jpg",
        "C:\\x.jpg",
        "C:/x.jpg",
        "/",
    ],
)
def test_paths_that_leave_the_folder(flowers: Path, path: str) -> None:
    assert "line 2: the path" in (said := refusal(flowers, FILES[0], path)) and "leaves the image folder" in said


def test_absolute_paths_that_leave_through_dots(flowers: Path) -> None:
    assert "leaves the image folder" in refusal(flowers, f"{flowers}/../elsewhere.jpg")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: f"/home/me/flowers/{path}", "it is there as 'train/daisy/0.jpg': cut '/home/me/flowers/' off"),
        (lambda path: path[:-4], "'train/daisy/0' is not below"),
        (lambda path: path[:-4], "but 'train/daisy/0.jpg' is: add --image_suffix .jpg"),
        (lambda path: path[6:], "but 'train/daisy/0.jpg' is: name {root}/train with --image_root"),
        (lambda path: path[6:-4], "name {root}/train with --image_root, or write train/ before the paths, and add"),
        (
            lambda path: f"data/{path}",
            "'data/train/daisy/0.jpg' is not below {root}, but 'train/daisy/0.jpg' is: write",
        ),
        (lambda path: f"{path[:-4]}.png", "but 'train/daisy/0.jpg' is: write the list so"),
        (str.upper, "but 'train/daisy/0.jpg' is: write the list so"),
    ],
)
def test_forms_that_are_told_apart(flowers: Path, write: object, words: str) -> None:
    assert callable(write)
    assert words.format(root=flowers) in refusal(flowers, *map(write, FILES))


def test_images_without_their_class_folder(flowers: Path) -> None:
    place(flowers / "val" / "v1.jpg")
    said = refusal(flowers, "val/n01/v1.jpg")
    assert "but 'val/v1.jpg' is: write the list so" in said and "a folder for each class" in said


def test_a_few_missing_files_are_no_other_form(flowers: Path) -> None:
    """Some are there as they are written: the others are missing, which the reading of images says."""
    place(flowers / "daisy" / "2.jpg")
    assert found(read(flowers, *FILES, "train/daisy/2.jpg")) == [*FILES, "train/daisy/2.jpg"]
    assert found(read(flowers, "no/1.jpg", "no/2.jpg")) == ["no/1.jpg", "no/2.jpg"]


def test_a_mixture_keeps_the_folder_before(flowers: Path) -> None:
    place(flowers / "flowers" / "train" / "a.jpg")
    paths = ("flowers/train/a.jpg", *FILES)
    assert found(read(flowers, *paths)) == list(paths)


def test_suffix_is_added_where_it_lacks(flowers: Path) -> None:
    listing = read(flowers, "train/daisy/0", "train/rose/1.jpg", suffix=".jpg")
    assert found(listing) == list(FILES)
