"""What goes wrong with images of one's own ends in one line that names it; what is merely odd is trained on."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import LIST_FLAGS
from datasets.decode import decode_rgb
from datasets.listed import load_folder
from datasets.long_tail import Profile
from models import build_model
from tests.helpers import Outcome, contents, image_tree, read, run, weights
from tools import check_dataset as check

PIXELS = 16
RESNET = ("--network", "resnet8", "--stem", "cifar", "--width", 4)
SIZES = ("--image_size", PIXELS, "--resize", PIXELS)
FIRST = "train/class0/0.png"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 4, 3 and 2 training images and 2 test images, with lists and JSON of the same beside them."""
    tree = image_tree(tmp_path_factory.mktemp("good") / "shades", 3, 4)
    for part in ("train", "test"):
        rows = [
            (file.relative_to(tree).as_posix(), int(file.parent.name[-1])) for file in sorted(tree.glob(f"{part}/*/*"))
        ]
        (tree / f"{part}.txt").write_text("".join(f"{name} {label}\n" for name, label in rows))
        coco = {
            "images": [{"id": i, "file_name": name} for i, (name, _) in enumerate(rows)],
            "annotations": [{"image_id": i, "category_id": label} for i, (_, label) in enumerate(rows)],
            "categories": [{"id": label, "name": f"class{label}"} for label in range(3)],
        }
        (tree / f"{part}.json").write_text(json.dumps(coco))
    return tree


@pytest.fixture
def tree(good: Path, tmp_path: Path) -> Path:
    """A copy of `good` that a test may damage."""
    return Path(shutil.copytree(good, tmp_path / "shades"))


def start(
    tree: Path, out: Path, *arguments: object, form: str = "folder", network: tuple[object, ...] = RESNET
) -> Outcome:
    """Run one epoch of stage 1 on a tree, read by this process unless the arguments say otherwise."""
    sizes = () if form == "cifar100" else SIZES
    used = ("--dataset", form, "--data_dir", tree, *network, *sizes, "--workers", 0, "--epochs", 1, "--out", out)
    return run("main_stage1", *used, *arguments)


def refused(outcome: Outcome, *words: str) -> bool:
    """Check that a command ended with status 2 and one line that has these words."""
    assert outcome.status == 2, outcome.out
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err
    return True


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


# Lists and folders: refused before anything is written


# What is done to the tree, the form that is read, further flags, and the words of the answer.
LISTS: dict[str, tuple[Callable[[Path], object], str, tuple[object, ...], tuple[str, ...]]] = {
    "no label": (appended("train.txt", "train/class0/9.png\n"), "list", (), ("train.txt, line 10", "has no label")),
    "a word as label": (appended("train.txt", "a.png cat\n"), "list", (), ("train.txt, line 10", "'cat' is not")),
    "a negative label": (appended("train.txt", "a.png -1\n"), "list", (), ("train.txt, line 10", "'-1' is not")),
    "a test label out of range": (
        appended("test.txt", f"{FIRST} 3\n"), "list", (), ("test.txt, line 7", "'3'", "from 0 to 2")
    ),
    "a training label that leaves a gap": (
        appended("train.txt", f"{FIRST} 4\n"), "list", (), ("1 of 5 classes", "no training image", "class 3")
    ),
    "a huge label": (
        appended("train.txt", f"{FIRST} 999999999\n"), "list", (), ("no training image", "first: class 3")
    ),
    "upwards": (appended("train.txt", "../a.png 1\n"), "list", (), ("train.txt, line 10", "'../a.png' leaves")),
    "upwards within": (appended("train.txt", "train/../../a.png 1\n"), "list", (), ("train.txt, line 10", "leaves")),
    "absolute": (appended("test.txt", "/etc/passwd 1\n"), "list", (), ("test.txt, line 7", "'/etc/passwd' leaves")),
    "a drive of Windows": (appended("test.txt", "C:\\a.png 1\n"), "list", (), ("test.txt, line 7", "leaves")),
    "an empty list": (lambda tree: replace(tree, "train.txt", "\n \n"), "list", (), ("train.txt", "names no images")),
    "UTF-16": (
        lambda tree: replace(tree, "train.txt", f"{FIRST} 0\n".encode("utf-16")), "list", (),
        ("train.txt, line 1", "UTF-8"),
    ),
    "no list": (removed("test.txt", "test.json"), "list", (),
                ("has no test.txt or test.json", "--test_list")),
    "a list that is not there": (lambda tree: None, "list", ("--train_list", "nowhere.txt"), ("nowhere.txt",)),
    "a list that is a folder": (lambda tree: None, "list", ("--train_list", "."), ("cannot read the list",)),
    "no image folder": (lambda tree: None, "list", ("--image_root", "nowhere"), ("there is no folder nowhere",)),
    "a list of one class": (
        both_lists(f"{FIRST} 0\n"), "list", (), ("of one class", "two are needed"),
    ),
    "JSON that is none": (lambda tree: replace(tree, "train.json", "{"), "COCO", (), ("train.json", "valid JSON")),
    "another JSON": (lambda tree: replace(tree, "train.json", "[]"), "COCO", (), ("train.json", "COCO's form")),
    "an image without annotation": (
        edited_json("train.json", lambda content: content["annotations"].pop(4)), "COCO", (), ("images[4]", "annotated")
    ),
    "an annotation without image": (
        edited_json("train.json", lambda content: content["images"].pop(4)), "COCO", (), ("1 annotations", "first: 4")
    ),
    "an unknown category": (
        edited_json("train.json", lambda content: content["annotations"][2].update(category_id=9)), "COCO", (),
        ("annotations[2]", "of the categories"),
    ),
    "two categories": (
        edited_json("train.json", lambda content: content["annotations"].append({"image_id": 0, "category_id": 2})),
        "COCO", (), ("annotations[9]", "second category"),
    ),
    "a path of JSON that leaves": (
        edited_json("train.json", lambda content: content["images"][5].update(file_name="../a.png")), "COCO", (),
        ("images[5]", "leaves the image folder"),
    ),
    "other categories in the test": (
        edited_json("test.json", lambda content: content["categories"][1].update(name="zebra")), "COCO", (),
        ("differ in their categories",),
    ),
    "a category more in the test": (
        edited_json("test.json", lambda content: content["categories"].append({"id": 9, "name": "zebra"})), "COCO", (),
        ("test.json", "4 categories", "3 classes"),
    ),
    "a training class without image": (
        emptied("train/class1"), "folder", (), ("1 of 3 classes", "no training image", "class 1 'class1'")
    ),
    "a test class without image": (
        emptied("test/class1"), "folder", (), ("1 of 3 classes", "no test image", "class 1 'class1'")
    ),
    "a test class that is no folder": (
        removed("test/class2"), "folder", (), ("no test image", "class 2 'class2'")
    ),
    "a class in the test alone": (
        lambda tree: (tree / "test/zebra").mkdir(), "folder", (), ("test has 1 class folders", "'zebra'")
    ),
    "a class in val alone": (
        lambda tree: (tree / "val/zebra").mkdir(parents=True), "folder", (), ("val has 1 class folders", "'zebra'")
    ),
    "no training folder": (removed("train"), "folder", (), ("shades/train", "No such file")),
    "no test folder": (removed("test"), "folder", (), ("neither a folder test nor val",)),
    "one class": (
        removed("train/class1", "train/class2", "test/class1", "test/class2"), "folder", (),
        ("of one class, 'class0'", "two are needed"),
    ),
    "no data folder": (lambda tree: None, "folder", ("--data_dir", "nowhere"), ("nowhere/train", "No such file")),
    "a file as data folder": (lambda tree: replace(tree, "x", ""), "folder", ("--data_dir", "shades/x"), ("shades/x",)),
    "lists for a folder": (lambda tree: None, "folder", ("--train_list", "a.txt"), ("--train_list a.txt", "'folder'")),
    "lists for CIFAR": (
        lambda tree: None, "cifar100", ("--train_list", "a.txt", "--workers", 1), ("--train_list a.txt", "'cifar100'")
    ),
    "a number of classes": (lambda tree: None, "folder", ("--num_class", 4), ("--num_class 4", "which has 3 classes")),
    "an imbalance of its own": (lambda tree: None, "imagenet_lt", ("--imb_ratio", 10), ("long-tailed as it is",)),
    "too much imbalance": (lambda tree: None, "folder", ("--imb_ratio", 50), ("2 of 3 classes", "at most 4")),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_wrong_lists_and_folders_are_named(case: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, form, arguments, words = LISTS[case]
    spoil(tree)
    monkeypatch.chdir(tree.parent)
    if form == "COCO":
        form, arguments = "list", ("--train_list", tree / "train.json", "--test_list", tree / "test.json", *arguments)
    before = contents(tree.parent)
    assert refused(start(tree, tree.parent / "out", *arguments, form=form), *words)
    assert contents(tree.parent) == before


def test_byte_order_marks_line_ends_and_blank_lines_are_accepted(tree: Path) -> None:
    outcome = start(tree, tree.parent / "plain", form="list")
    assert outcome.status == 0, outcome.err
    for name in ("train.txt", "test.txt"):
        text = (tree / name).read_text().replace("\n", "  \r\n\r\n").replace(" ", "\t", 1)
        replace(tree, name, b"\xef\xbb\xbf" + text.encode())
    outcome = start(tree, tree.parent / "odd", form="list")
    assert outcome.status == 0, outcome.err
    configs = [read(next((tree.parent / out).rglob("config.json"))) for out in ("plain", "odd")]
    assert configs[0]["subset"] == configs[1]["subset"] and configs[1]["class_counts"] == [4, 3, 2]


# Flags


FLAGS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "a crop beyond the image": (("--resize", 8), ("--resize 8", "--image_size 16")),
    "a negative number of workers": (("--workers", -1), ("--workers", "-1")),
    "a size of 0": (("--image_size", 0), ("--image_size", "not 0")),
    "a skip below 0": (("--skip_bad", -1), ("--skip_bad", "not -1")),
    "a policy of CIFAR": (("--augment", "autoaugment"), ("--augment autoaugment", "CIFAR's policy")),
    "no epoch": (("--epochs", 0), ("--epochs 0", "--weights")),
    "a clip of 0": (("--clip_grad", 0), ("--clip_grad", "not 0")),
    "an infinite clip": (("--clip_grad", "inf"), ("--clip_grad", "finite")),
    "a clip that is no number": (("--clip_grad", "nan"), ("--clip_grad", "nan")),
    "features beside images": (("--features", "x.npz"), ("--dataset folder", "--features x.npz")),
    "a network with a typing error": (("--network", "resnt8"), ("unknown --network 'resnt8'", "close to it: resnet8")),
    "a network of the other stem": (("--network", "resnet8", "--stem", "imagenet"), ("the cifar stem has it",)),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAGS)
def test_wrong_flags_are_named(case: str, good: Path, tmp_path: Path) -> None:
    arguments, words = FLAGS[case]
    assert refused(start(good, tmp_path / "out", *arguments), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--weights", *LIST_FLAGS])
@pytest.mark.parametrize("script", ["main_stage1", "main_stage2", "evaluate"])
def test_features_need_no_weights_and_lists(script: str, flag: str, tmp_path: Path) -> None:
    assert refused(
        run(script, "--features", "x.npz", flag, "y", "--out", tmp_path), f"{flag} y", "no use with --features"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("network", "words"), [
    ("alexnet", ("no images of 16 x 16 pixels",)),
    ("vit_b_32", ("no images of 16 x 16 pixels", "224")),
    ("resnet5", ("unknown --network 'resnet5'", "close to it", "resnet50")),
])  # fmt: skip
def test_images_too_small_for_a_network(network: str, words: tuple[str, ...], good: Path, tmp_path: Path) -> None:
    assert refused(start(good, tmp_path / "out", network=("--network", network)), *words)
    assert not (tmp_path / "out").exists()


# Weights and checkpoints


def save_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object], width: int = 4) -> Path:
    state = build_model("resnet8", 5, "cifar", width).state_dict()
    edit(state)
    torch.save(state, path)
    return path


WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], int, tuple[str, ...]]] = {
    "NaN": (lambda state: state["bn1.weight"].fill_(float("nan")), 4, ("bn1.weight",)),
    "infinity": (lambda state: state["bn1.weight"][:1].fill_(float("inf")), 4, ("bn1.weight",)),
    "another width": (lambda state: None, 8, ("backbone is not this network's", "conv1.weight")),
    "one tensor too few": (lambda state: state.pop("conv1.weight"), 4, ("conv1.weight",)),
    "nothing": (lambda state: state.clear(), 4, ()),
}  # fmt: skip


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit_are_refused(case: str, epochs: int, good: Path, tmp_path: Path) -> None:
    edit, width, words = WEIGHTS[case]
    file = save_weights(tmp_path / "w.pth", edit, width)
    assert refused(start(good, tmp_path / "out", "--weights", file, "--epochs", epochs), "w.pth", *words)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished stage 1, not to be changed."""
    out = tmp_path_factory.mktemp("trained")
    outcome = start(good, out)
    assert outcome.status == 0, outcome.err
    return next(out.rglob("metrics.json")).parent


@pytest.mark.parametrize(("flag", "value"), [
    ("--network", "resnet32"), ("--width", 8), ("--image_size", 12), ("--resize", 20), ("--stem", "imagenet"),
    ("--dataset", "list"), ("--imb_ratio", 2), ("--holdout", 0.3),
])  # fmt: skip
@pytest.mark.parametrize("script", ["main_stage2", "evaluate"])
def test_a_checkpoint_of_something_else(
    script: str, flag: str, value: object, good: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = {"--dataset": "folder", "--stem": "cifar", "--image_size": PIXELS} | {flag: value}
    arguments = [word for pair in usual.items() for word in pair]
    outcome = run(script, "--data_dir", good, "--pretrained_pth", trained, *arguments, "--workers", 0)
    assert refused(outcome, "last.pth was trained", f"with {flag} ", f"not {value}")
    assert list(tmp_path.iterdir()) == []


def test_both_names_of_a_start_are_refused(good: Path, trained: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", "folder", "--data_dir", good, "--weights", trained / "last.pth", "--out", tmp_path)
    assert refused(
        run("main_stage2", *arguments, "--pretrained_pth", trained, *RESNET), "--weights and --pretrained_pth"
    )
    assert list(tmp_path.iterdir()) == []


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
    "a bomb": (lambda path: path.write_bytes(png_of(60000, 60000)), "pixels, PIL's limit"),
    "a bomb that PIL would only warn of": (lambda path: path.write_bytes(png_of(12000, 10000)), "pixels, PIL's limit"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_image_is_named(case: str, tree: Path) -> None:
    spoil, words = FILES[case]
    spoil(tree / FIRST)
    assert refused(start(tree, tree.parent / "out"), f"cannot read the image {tree / FIRST}: ", words)


@pytest.mark.parametrize("name", [FIRST, "test/class2/1.png"])
@pytest.mark.parametrize("case", ["a cut JPEG", "zero bytes"])
def test_worker_processes_say_the_same(case: str, name: str, tree: Path) -> None:
    FILES[case][0](tree / name)
    alone, beside = (start(tree, tree.parent / f"out{workers}", "--workers", workers) for workers in (0, 2))
    assert refused(alone, str(tree / name), FILES[case][1])
    assert beside.err == alone.err and beside.status == alone.status


@pytest.mark.parametrize(("name", "words"), [
    ("train/gone.png", "No such file"), ("train/class0", "directory"), ("train/class0/x.jpg", "directory"),
])  # fmt: skip
def test_a_list_that_names_no_file(name: str, words: str, tree: Path) -> None:
    (tree / "train/class0/x.jpg").mkdir()
    appended("train.txt", f"{name} 1\n")(tree)
    assert refused(start(tree, tree.parent / "out", form="list"), f"cannot read the image {tree / name}", words)


def test_what_is_no_image_in_a_class_folder_is_passed_over(good: Path, trained: Path, tree: Path) -> None:
    (tree / "train/class0/x.jpg").mkdir()
    for name in ("train/class1/.hidden.png", "train/class1/notes.txt", "train/README", "train/.cache/a.png"):
        replace(tree, name, "no image")
    outcome = start(tree, tree.parent / "out")
    assert outcome.status == 0, outcome.err
    state = weights(next((tree.parent / "out").rglob("last.pth")))
    assert all(torch.equal(tensor, state[key]) for key, tensor in weights(trained / "last.pth").items())


def test_an_image_that_cannot_be_read_leaves_the_run_to_be_gone_on_with(tree: Path, trained: Path) -> None:
    kept = (tree / FIRST).read_bytes()
    (tree / FIRST).write_bytes(b"")
    assert refused(start(tree, tree.parent / "out"), FIRST)
    (tree / FIRST).write_bytes(kept)
    outcome = start(tree, tree.parent / "out", "--resume")
    assert outcome.status == 0, outcome.err
    state = weights(next((tree.parent / "out").rglob("last.pth")))
    assert all(torch.equal(tensor, state[key]) for key, tensor in weights(trained / "last.pth").items())


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
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_images_are_trained_on(workers: int, tree: Path) -> None:
    """In both splits, without a word on standard error, as this process and as worker processes read them."""
    for part in ("train", "test"):
        for case, write in ODD.items():
            write(tree / part / "class1" / f"{case}.png")
    outcome = start(tree, tree.parent / "out", "--workers", workers)
    assert (outcome.status, outcome.err) == (0, "")
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
    assert {name for kind, found in kinds.items() if check.KINDS[kind] is None for name in found["first"]} == names
    outcome = start(tree, tree.parent / "out", "--skip_bad", len(FILES))
    assert outcome.status == 0, outcome.err
    assert f"{len(FILES)} images skipped" in outcome.out
    assert all(f"cannot read the image {tree / name}: " in outcome.out for name in names)


def test_the_check_passes_what_training_takes(tree: Path) -> None:
    for case, write in ODD.items():
        write(tree / "train" / "class1" / f"{case}.png")
    status, kinds = looked_at(tree)
    assert status == 0
    assert {"grayscale", "CMYK", "16-bit", "animated"} < set(kinds)


# Names of classes and files


def test_class_names_of_any_bytes_can_be_printed(tree: Path) -> None:
    for part in ("train", "test"):
        (tree / part / "class1").rename(tree / part / "caf\udce9\n")
    data = load_folder(str(tree), Profile(imb_ratio=None))
    assert data.class_names == ["caf\\udce9\\n", "class0", "class2"]
    assert Path(data.train.path(0)).is_file()  # type: ignore[attr-defined]  # the file keeps its own
    assert start(tree, tree.parent / "out").status == 0
    report = run(
        "evaluate", "--data_dir", tree, "--pretrained_pth", next((tree.parent / "out").rglob("last.pth")),
        "--json", tree.parent / "report.json",
    )  # fmt: skip
    assert report.status == 0, report.err
    assert "caf\\udce9\\n" in report.out.encode().decode()


def test_usual_class_names_stay_as_they_are(tree: Path) -> None:
    for part in ("train", "test"):
        (tree / part / "class1").rename(tree / part / "Müller's ワシ (2)")
    assert load_folder(str(tree), Profile(imb_ratio=None)).class_names[0] == "Müller's ワシ (2)"


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
    assert all(check.KINDS[kind] for kind in check.examine(str(path)))
