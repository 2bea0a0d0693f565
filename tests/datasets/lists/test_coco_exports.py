"""Files in COCO's form as annotation tools export them."""

import json
from pathlib import Path
from typing import Any

import pytest

from datasets.on_disk.coco import read_coco, read_json_list
from utils.errors import UserError


def content(count: int = 4) -> dict[str, Any]:
    """Images 0..count-1, of the categories `cat` (id 1) and `dog` (id 2) in turn, with what exports have beside."""
    return {
        "info": {"description": "export", "url": "", "version": "1"},
        "licenses": [{"id": 1, "name": "CC0", "url": ""}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 4, "license": 1} for i in range(count)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [0, 0, 1, 1], "segmentation": [], "iscrowd": 0}
            for i in range(count)
        ],
        "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}],
    }


def read(folder: Path, written: dict[str, Any]) -> tuple[list[bytes], list[int], list[str], tuple[str, ...]]:
    path = folder / "list.json"
    path.write_text(json.dumps(written))
    split, names = read_json_list(path, folder)
    return split.images.tolist(), split.labels.tolist(), names, read_coco(path, folder).notes


def test_images_without_annotation_are_left_out(tmp_path: Path) -> None:
    written = content()
    written["images"][1:1] = [{"id": 99, "file_name": "bare.jpg"}, {"id": "b", "file_name": "other.jpg"}]
    paths, labels, names, notes = read(tmp_path, written)
    assert paths == [f"{i}.jpg".encode() for i in range(4)] and labels == [0, 1, 0, 1] and names == ["cat", "dog"]
    assert notes == (f"{tmp_path / 'list.json'}: 2 images without annotation are left out (first: 'bare.jpg')",)
    written["annotations"] = []
    with pytest.raises(UserError, match="none of its 6 images has an annotation"):
        read(tmp_path, written)


def test_several_annotations_of_an_image(tmp_path: Path) -> None:
    written = content()
    written["annotations"] += [{"id": 9, "image_id": 0, "category_id": 1}] * 3
    assert read(tmp_path, written)[1] == [0, 1, 0, 1]
    written["annotations"].append({"id": 10, "image_id": 0, "category_id": 2})
    with pytest.raises(UserError, match=r"annotations\[7\] gives the image 0 a second category; an image has one"):
        read(tmp_path, written)


def test_a_group_of_categories_is_no_class(tmp_path: Path) -> None:
    """Roboflow puts the group of all categories before them, with the id 0 and no image."""
    written = content()
    group = {"id": 0, "name": "animals", "supercategory": "none"}
    written["categories"] = [group, *({**entry, "supercategory": "animals"} for entry in written["categories"])]
    _, labels, names, notes = read(tmp_path, written)
    assert labels == [0, 1, 0, 1] and names == ["cat", "dog"]
    assert len(notes) == 1 and "the category 'animals' has no image and is the group of others" in notes[0]
    written["annotations"][0]["category_id"] = 0  # it has an image: a class
    assert read(tmp_path, written)[2] == ["animals", "cat", "dog"]
    written = content()
    written["categories"].append({"id": 7, "name": "cow", "supercategory": "cow"})
    written["categories"].append({"id": 8, "name": "hen", "supercategory": "none"})
    assert read(tmp_path, written)[2] == ["cat", "dog", "cow", "hen"]


@pytest.mark.parametrize("parts", [("images",), ("annotations",), ("images", "annotations", "categories")])
def test_ids_as_strings(tmp_path: Path, parts: tuple[str, ...]) -> None:
    written = content(12)
    if "images" in parts:
        written["images"] = [{**entry, "id": str(entry["id"])} for entry in written["images"]]
    if "annotations" in parts:
        for entry in written["annotations"]:
            entry |= {"image_id": str(entry["image_id"]), "category_id": str(entry["category_id"])}
    if "categories" in parts:
        written["categories"] = [{**entry, "id": str(entry["id"])} for entry in written["categories"]]
    paths, labels, names, _ = read(tmp_path, written)
    assert len(paths) == 12 and labels == [0, 1] * 6 and names == ["cat", "dog"]


def test_the_order_of_ids_is_that_of_numbers(tmp_path: Path) -> None:
    written = content(2)
    written["categories"] = [{"id": key, "name": f"n{key}"} for key in ("10", "9", "x", "1", "2")]
    assert read(tmp_path, written)[2] == ["n1", "n2", "n9", "n10", "nx"]


def test_captions_are_left_out(tmp_path: Path) -> None:
    written = content()
    written["annotations"].append({"id": 70, "image_id": 1, "caption": "a dog"})
    _, labels, _, notes = read(tmp_path, written)
    assert labels == [0, 1, 0, 1] and "1 annotations are captions" in notes[0]


def test_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    written = content()
    written["categories"][0]["name"] = "cat"
    with pytest.raises(UserError, match="classes 0 and 1 are both named 'cat'"):
        read(tmp_path, written)
