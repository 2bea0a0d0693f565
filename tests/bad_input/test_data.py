"""Images and lists that are wrong: one line that names what; what is merely odd is trained on."""

import http.client
import json
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from datasets.decode import decode_rgb
from datasets.long_tail import Profile
from datasets.on_disk.folder_splits import load_folder
from tests.helpers import (
    SMALL_CIFAR,
    contents,
    is_refusal,
    read,
    refused,
    run,
    succeed,
    use_small_cifar,
    weights,
)
from tests.image_runs import train_on_images
from tools import check_dataset as check
from tools import image_files

# CIFAR


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the dictionary in one of CIFAR's files."""
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))


def blank_first_image(content: dict[str, Any]) -> None:
    content["data"][0] = 0


DATA_DAMAGE: dict[str, Callable[[Path], object]] = {
    "train is missing": lambda folder: (folder / "train").unlink(),
    "meta is missing": lambda folder: (folder / "meta").unlink(),
    "train is cut off": lambda folder: (folder / "train").write_bytes((folder / "train").read_bytes()[:-5000]),
    "test is empty": lambda folder: (folder / "test").write_bytes(b""),
    "test is text": lambda folder: (folder / "test").write_text("404: not found\n"),
    "train is a list": lambda folder: (folder / "train").write_bytes(pickle.dumps([1, 2])),
    "train is a module": lambda folder: (folder / "train").write_bytes(pickle.dumps(nn.Identity())),
    "images are too small": lambda folder: rewrite(folder / "train", lambda c: c.update(data=c["data"][:, :1024])),
    "images are floats": lambda folder: rewrite(folder / "test", lambda c: c.update(data=c["data"].astype(float))),
    "a label too many": lambda folder: rewrite(folder / "train", lambda c: c["fine_labels"].append(0)),
    "a label out of range": lambda folder: rewrite(folder / "test", lambda c: c["fine_labels"].__setitem__(0, 100)),
    "classes out of balance": lambda folder: rewrite(folder / "train", lambda c: c["fine_labels"].__setitem__(0, 1)),
    "labels by another name": lambda folder: rewrite(folder / "train", lambda c: c.update(labels=c.pop("fine_labels"))),
    "a name too few": lambda folder: rewrite(folder / "meta", lambda c: c["fine_label_names"].pop()),
    "no data": lambda folder: rewrite(folder / "train", lambda c: c.pop("data")),
    "a blank image": lambda folder: rewrite(folder / "train", blank_first_image),
    "a blank test image": lambda folder: rewrite(folder / "test", blank_first_image),
}


def test_the_data_are_fine_when_nothing_is_done_to_them(cifar: Path, tmp_path: Path) -> None:
    outcome = succeed("main_stage1", "--data_dir", cifar, "--out", tmp_path / "runs", "--imb_ratio", 100)
    assert outcome.err == ""
    assert read(next(tmp_path.rglob("metrics.json")))["dataset"] == "cifar100"


@pytest.mark.parametrize("damage", list(DATA_DAMAGE))
def test_damaged_data_are_refused_by_name(damage: str, cifar: Path, tmp_path: Path) -> None:
    DATA_DAMAGE[damage](cifar / "cifar100" / SMALL_CIFAR.folder)
    message = refused("main_stage1", "--data_dir", cifar, "--out", tmp_path / "runs", "--imb_ratio", 100)
    assert str(cifar) in message or "index 0" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "error",
    [URLError("no route to host"), RuntimeError("File not found or corrupted."), http.client.IncompleteRead(b"")],
)
def test_data_that_cannot_be_downloaded(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*arguments: object) -> None:
        raise error

    use_small_cifar(monkeypatch)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)  # CIFAR100 inherits it
    message = refused("main_stage1", "--data_dir", tmp_path / "data", "--out", tmp_path / "runs")
    assert str(tmp_path / "data" / "cifar100" / SMALL_CIFAR.folder) in message
    assert "--dataset digits" in message


def test_other_training_images_are_refused_by_stage_2_and_warned_of_by_the_report(cifar: Path, tmp_path: Path) -> None:
    arguments = ("--data_dir", cifar, "--out", tmp_path / "runs", "--imb_ratio", 100)
    succeed("main_stage1", *arguments)
    train = cifar / "cifar100" / SMALL_CIFAR.folder / "train"
    rewrite(train, lambda content: content.update(data=content["data"][:, ::-1].copy()))
    assert "other training images" in refused("main_stage2", *arguments)
    outcome = succeed("evaluate", *arguments)
    assert outcome.err.startswith("warning: ") and "other training images" in outcome.err


# Lists and folders: refused before anything is written


FIRST = "train/class0/0.png"


def replace(tree: Path, name: str, content: str | bytes) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def appended(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Return what adds to the end of a file."""
    added = content.encode() if isinstance(content, str) else content
    return lambda tree: replace(tree, name, (tree / name).read_bytes() + added)


def both_lists(content: str) -> Callable[[Path], None]:
    """Return what replaces the training and the test list."""

    def action(tree: Path) -> None:
        for part in ("train", "test"):
            replace(tree, f"{part}.txt", content)

    return action


def removed(*names: str) -> Callable[[Path], None]:
    """Return what removes files and folders."""

    def action(tree: Path) -> None:
        for path in (tree / name for name in names):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    return action


def emptied(folder: str) -> Callable[[Path], None]:
    def action(tree: Path) -> None:
        for file in (tree / folder).iterdir():
            file.unlink()

    return action


def edited_json(name: str, edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def action(tree: Path) -> None:
        content = json.loads((tree / name).read_text())
        edit(content)
        (tree / name).write_text(json.dumps(content))

    return action


# What is done to the tree, the form that is read, further flags, and the words of the answer; what a line of a list or
# an entry of JSON can be, tests/datasets/test_listed.py has.
LISTS: dict[str, tuple[Callable[[Path], object], str, tuple[object, ...], tuple[str, ...]]] = {
    "a word as label": (appended("train.txt", "a.png cat\n"), "list", (), ("train.txt, line 10", "'cat' is not")),
    "a test label out of range": (
        appended("test.txt", f"{FIRST} 3\n"),
        "list",
        (),
        ("test.txt, line 7", "'3'", "from 0 to 2"),
    ),
    "a training label that leaves a gap": (
        appended("train.txt", f"{FIRST} 4\n"),
        "list",
        (),
        ("1 of 5 classes", "no training image", "class 3"),
    ),
    "a huge label": (
        appended("train.txt", f"{FIRST} 999999999\n"),
        "list",
        (),
        ("no training image", "first: class 3"),
    ),
    "upwards": (appended("train.txt", "../a.png 1\n"), "list", (), ("train.txt, line 10", "'../a.png' leaves")),
    "an empty list": (lambda tree: replace(tree, "train.txt", "\n \n"), "list", (), ("train.txt", "names no images")),
    "UTF-16": (
        lambda tree: replace(tree, "train.txt", f"{FIRST} 0\n".encode("utf-16")),
        "list",
        (),
        ("train.txt, line 1", "UTF-8"),
    ),
    "no list": (removed("test.txt", "test.json"), "list", (), ("has no test.txt or test.json", "--test_list")),
    "a list that is not there": (lambda tree: None, "list", ("--train_list", "nowhere.txt"), ("nowhere.txt",)),
    "a list that is a folder": (lambda tree: None, "list", ("--train_list", "."), ("cannot read the list",)),
    "no image folder": (lambda tree: None, "list", ("--image_root", "nowhere"), ("there is no folder nowhere",)),
    "a list of one class": (
        both_lists(f"{FIRST} 0\n"),
        "list",
        (),
        ("of one class", "two are needed"),
    ),
    "JSON that is none": (lambda tree: replace(tree, "train.json", "{"), "COCO", (), ("train.json", "valid JSON")),
    "two images of one id": (
        edited_json("train.json", lambda content: content["images"][4].update(id=content["images"][3]["id"])),
        "COCO",
        (),
        ("images[4]", "an 'id' of its own"),
    ),
    "an annotation of no image": (
        edited_json("train.json", lambda content: content["images"].pop(4)),
        "COCO",
        (),
        ("1 annotations are of images that it does not list",),
    ),
    "another category in the test": (
        edited_json("test.json", lambda content: content["categories"][1].update(name="zebra")),
        "COCO",
        (),
        ("test.json", "'zebra' is of no image of the training list"),
    ),
    "a training class without image": (
        emptied("train/class1"),
        "folder",
        (),
        ("1 of 3 classes", "no training image", "class 1 'class1'"),
    ),
    "a class in the test alone": (
        lambda tree: (tree / "test/zebra").mkdir(),
        "folder",
        (),
        ("1 of 4 classes", "no training image", "class 3 'zebra'", "--drop_empty_classes"),
    ),
    "a class in val alone": (
        lambda tree: shutil.copytree(tree / "train/class0", tree / "val/zebra"),
        "folder",
        (),
        ("no training image", "class 3 'zebra'"),
    ),
    "a val without images": (lambda tree: (tree / "val/zebra").mkdir(parents=True), "folder", (), ("val holds no",)),
    "no training folder": (removed("train"), "folder", (), ("no folder of training images", "found 'test'")),
    "no test folder": (removed("test"), "folder", (), ("nothing to test on beside 'train'", "--test_share")),
    "no test image at all": (removed("test/class0", "test/class1", "test/class2"), "folder", (), ("test holds no",)),
    "two test folders": (lambda tree: (tree / "Eval").mkdir(), "folder", (), ("'Eval' and 'test'", "rename")),
    "a share for the test of a list": (
        lambda tree: None,
        "list",
        ("--test_share", 0.2),
        ("--test_share splits the images of --dataset folder",),
    ),
    "all images for the test": (lambda tree: None, "folder", ("--test_share", 1), ("--test_share must be",)),
    "one class": (
        removed("train/class1", "train/class2", "test/class1", "test/class2"),
        "folder",
        (),
        ("of one class, 'class0'", "two are needed"),
    ),
    "no data folder": (lambda tree: None, "folder", ("--data_dir", "nowhere"), ("nowhere", "No such file")),
    "a file as data folder": (lambda tree: replace(tree, "x", ""), "folder", ("--data_dir", "shades/x"), ("shades/x",)),
    "lists for a folder": (lambda tree: None, "folder", ("--train_list", "a.txt"), ("--train_list a.txt", "'folder'")),
    "lists for CIFAR": (
        lambda tree: None,
        "cifar100",
        ("--train_list", "a.txt", "--workers", 1),
        ("--train_list a.txt", "'cifar100'"),
    ),
    "a number of classes": (lambda tree: None, "folder", ("--num_class", 4), ("--num_class 4", "which has 3 classes")),
    "an imbalance of its own": (lambda tree: None, "imagenet_lt", ("--imb_ratio", 10), ("long-tailed as it is",)),
    "too much imbalance": (lambda tree: None, "folder", ("--imb_ratio", 50), ("2 of 3 classes", "at most 4")),
}


@pytest.mark.parametrize("case", LISTS)
def test_wrong_lists_and_folders_are_named(case: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, form, arguments, words = LISTS[case]
    spoil(tree)
    monkeypatch.chdir(tree.parent)
    if form == "COCO":
        form, arguments = "list", ("--train_list", tree / "train.json", "--test_list", tree / "test.json", *arguments)
    before = contents(tree.parent)
    assert is_refusal(train_on_images(tree, tree.parent / "out", *arguments, form=form), *words)
    assert contents(tree.parent) == before


def test_byte_order_marks_line_ends_and_blank_lines_are_accepted(tree: Path) -> None:
    outcome = train_on_images(tree, tree.parent / "plain", form="list")
    assert outcome.status == 0, outcome.err
    for name in ("train.txt", "test.txt"):
        text = (tree / name).read_text().replace("\n", "  \r\n\r\n").replace(" ", "\t", 1)
        replace(tree, name, b"\xef\xbb\xbf" + text.encode())
    outcome = train_on_images(tree, tree.parent / "odd", form="list")
    assert outcome.status == 0, outcome.err
    configs = [read(next((tree.parent / out).rglob("config.json"))) for out in ("plain", "odd")]
    assert configs[0]["subset"] == configs[1]["subset"] and configs[1]["class_counts"] == [4, 3, 2]


# Files that are no images


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header announces so many pixels and whose data are empty."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def cut(path: Path, kind: str) -> None:
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero bytes": (lambda path: path.write_bytes(b""), "it is empty"),
    "a cut JPEG": (lambda path: cut(path, "JPEG"), "truncated"),
    "a cut PNG": (lambda path: cut(path, "PNG"), "truncated"),
    "a text": (lambda path: path.write_bytes(b"an image, honestly"), "it is no image"),
    "a page that an archive sent": (lambda path: path.write_bytes(b"<html>404</html>"), "it is no image"),
    "a link to nowhere": (lambda path: link(path, "nowhere"), "No such file"),
    "a link to itself": (lambda path: link(path, path.name), "symbolic links"),
    "a bomb": (lambda path: path.write_bytes(png_of(60000, 60000)), "pixels, the limit"),
    "a bomb that PIL would only warn of": (lambda path: path.write_bytes(png_of(12000, 10000)), "pixels, the limit"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_image_is_named(case: str, tree: Path) -> None:
    spoil, words = FILES[case]
    spoil(tree / FIRST)
    assert is_refusal(train_on_images(tree, tree.parent / "out"), f"cannot read the image {tree / FIRST}: ", words)


@pytest.mark.parametrize("name", [FIRST, "test/class2/1.png"])
@pytest.mark.parametrize("case", ["a cut JPEG", "zero bytes"])
def test_worker_processes_say_the_same(case: str, name: str, tree: Path) -> None:
    FILES[case][0](tree / name)
    alone, beside = (train_on_images(tree, tree.parent / f"out{workers}", "--workers", workers) for workers in (0, 2))
    assert is_refusal(alone, str(tree / name), FILES[case][1])
    assert beside.err == alone.err and beside.status == alone.status


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train/gone.png", "No such file"),
        ("train/class0", "directory"),
        ("train/class0/x.jpg", "directory"),
    ],
)
def test_a_list_that_names_no_file(name: str, words: str, tree: Path) -> None:
    (tree / "train/class0/x.jpg").mkdir()
    appended("train.txt", f"{name} 1\n")(tree)
    assert is_refusal(
        train_on_images(tree, tree.parent / "out", form="list"), f"cannot read the image {tree / name}", words
    )


def test_what_is_no_image_in_a_class_folder_is_passed_over(shades: Path, shades_run: Path, tree: Path) -> None:
    (tree / "train/class0/x.jpg").mkdir()
    for name in ("train/class1/.hidden.png", "train/class1/notes.txt", "train/README", "train/.cache/a.png"):
        replace(tree, name, "no image")
    outcome = train_on_images(tree, tree.parent / "out")
    assert outcome.status == 0, outcome.err
    state = weights(next((tree.parent / "out").rglob("last.pth")))
    assert all(torch.equal(tensor, state[key]) for key, tensor in weights(shades_run / "last.pth").items())


def test_an_image_that_cannot_be_read_leaves_the_run_to_be_gone_on_with(tree: Path, shades_run: Path) -> None:
    kept = (tree / FIRST).read_bytes()
    (tree / FIRST).write_bytes(b"")
    assert is_refusal(train_on_images(tree, tree.parent / "out"), FIRST)
    (tree / FIRST).write_bytes(kept)
    outcome = train_on_images(tree, tree.parent / "out", "--resume")
    assert outcome.status == 0, outcome.err
    state = weights(next((tree.parent / "out").rglob("last.pth")))
    assert all(torch.equal(tensor, state[key]) for key, tensor in weights(shades_run / "last.pth").items())


# Images that are odd


NOISE = np.random.RandomState(3).randint(0, 256, (20, 30, 3)).astype(np.uint8)


def save(array: np.ndarray, kind: str, mode: str | None = None, **options: object) -> Callable[[Path], None]:
    """Return what saves an array, converted to a mode of PIL, as a file of some kind under whatever name."""

    def action(path: Path) -> None:
        image = Image.fromarray(array)
        (image if mode is None else image.convert(mode)).save(path, kind, **options)

    return action


def save_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(NOISE).save(path, "JPEG", exif=exif)


ODD: dict[str, Callable[[Path], None]] = {
    "grayscale PNG": save(NOISE[..., 0], "PNG"),
    "grayscale JPEG": save(NOISE[..., 0], "JPEG"),
    "grayscale with alpha": save(NOISE, "PNG", "LA"),
    "one bit": save(NOISE, "PNG", "1"),
    "CMYK": save(NOISE, "JPEG", "CMYK"),
    "16 bits": save(NOISE[..., 0].astype(np.uint16) * 257, "PNG"),
    "TIFF": save(NOISE, "TIFF"),
    "WebP": save(NOISE, "WEBP"),
    "animation": save(NOISE, "GIF", "P", save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
    "palette with transparency": save(NOISE, "PNG", "P", transparency=bytes(range(256))),
    "alpha": save(NOISE, "PNG", "RGBA"),
    "turned by its EXIF": save_rotated,
    "progressive": save(NOISE, "JPEG", progressive=True),
    "a pixel": save(NOISE[:1, :1], "PNG"),
    "a line": save(np.tile(NOISE[:3], (1, 34, 1))[:, :1000], "PNG"),
    "a column": save(np.tile(NOISE[:3], (1, 34, 1))[:, :1000].transpose(1, 0, 2).copy(), "JPEG"),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_images_are_trained_on(workers: int, tree: Path) -> None:
    """In both splits, with no word of theirs on standard error, as this process and as worker processes read them."""
    for part in ("train", "test"):
        for case, write in ODD.items():
            write(tree / part / "class1" / f"{case}.png")
    outcome = train_on_images(tree, tree.parent / "out", "--workers", workers)
    [line] = outcome.err.splitlines()  # these test images are training images
    assert outcome.status == 0 and line.startswith(f"warning: {len(ODD)} test images are training images too")
    config = read(next((tree.parent / "out").rglob("config.json")))
    assert config["class_counts"] == [4, 3 + len(ODD), 2]


def looked_at(tree: Path) -> tuple[int, dict[str, dict]]:
    """Let `tools.check_dataset` decode a whole tree; return its exit status and what it says of each kind of file."""
    report = tree.parent / "check.json"
    status = 0
    try:
        check.main(["--dataset", "folder", "--data_dir", str(tree), "--decode", "all", "--json", str(report)])
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, read(report)["files"]["kinds"]


def test_the_check_finds_what_training_refuses(tree: Path) -> None:
    names = {f"train/class0/{case}.png" for case in FILES}
    for case, (spoil, _) in FILES.items():
        (tree / f"train/class0/{case}.png").touch()
        spoil(tree / f"train/class0/{case}.png")
    status, kinds = looked_at(tree)
    assert status == 1
    unusable = [found["first"] for kind, found in kinds.items() if image_files.KINDS[kind] is None]
    assert {name for first in unusable for name in first} == names
    outcome = train_on_images(tree, tree.parent / "out", "--skip_bad", len(FILES))
    assert outcome.status == 0, outcome.err
    assert f"{len(FILES)} images skipped" in outcome.out
    assert all(f"cannot read the image {tree / name}: " in outcome.out for name in names)


def test_the_check_passes_what_training_takes(tree: Path) -> None:
    for case, write in ODD.items():
        write(tree / "train" / "class1" / f"{case}.png")
    status, kinds = looked_at(tree)
    assert status == 0
    assert {"grayscale", "CMYK", "16-bit", "animated"} < set(kinds)


def test_a_damaged_later_frame_does_no_harm(tmp_path: Path) -> None:
    """The first frame is what training sees: the check, which counts the others, must not judge otherwise."""
    frames = [Image.fromarray(np.full((9, 9, 3), shade, np.uint8)) for shade in (50, 150)]
    path = tmp_path / "two.tif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert image.n_frames == 2
        second = image._frame_pos[1] if len(image._frame_pos) > 1 else image._TiffImageFile__next
    content = bytearray(path.read_bytes())
    content[second : second + 2] = (0).to_bytes(2, "little")  # the second directory has no entries: no sizes
    path.write_bytes(content)
    assert int(decode_rgb(str(path)).float().mean()) == 50
    assert all(image_files.KINDS[kind] for kind in image_files.examine(str(path)))


# Names of classes


def test_class_names_of_any_bytes_can_be_printed(tree: Path) -> None:
    for part in ("train", "test"):
        (tree / part / "class1").rename(tree / part / "caf\udce9\n")
    data = load_folder(str(tree), Profile(imb_ratio=None))
    assert data.class_names == ["caf\\udce9\\n", "class0", "class2"]
    assert Path(data.train.path(0)).is_file()  # type: ignore[attr-defined]  # the file keeps its own
    assert train_on_images(tree, tree.parent / "out").status == 0
    report = run(
        "evaluate",
        "--data_dir",
        tree,
        "--pretrained_pth",
        next((tree.parent / "out").rglob("last.pth")),
        "--json",
        tree.parent / "report.json",
    )
    assert report.status == 0, report.err
    assert "caf\\udce9\\n" in report.out.encode().decode()


def test_usual_class_names_stay_as_they_are(tree: Path) -> None:
    for part in ("train", "test"):
        (tree / part / "class1").rename(tree / part / "Müller's ワシ (2)")
    assert load_folder(str(tree), Profile(imb_ratio=None)).class_names[0] == "Müller's ワシ (2)"
