"""Photos as people have them, from training to predictions: stored turned, of 12 bits, and some that are no images."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from runs.checkpoint import save_checkpoint
from tests.helpers import Outcome, run, succeed

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

SIDE = 16
SMALL = ("--network", "resnet8", "--stem", "cifar", "--width", 4, "--image_size", SIDE, "--resize", SIDE)
FAST = ("--workers", 0, "--batch_size", 8, "--augment", "crop")


def halves(kind: str, seed: int) -> Image.Image:
    """Return a picture whose upper ("top") or left ("side") half is red: a quarter turn makes one of the other."""
    pixels = np.random.default_rng(seed).integers(0, 30, (SIDE, SIDE, 3))
    red = pixels[: SIDE // 2] if kind == "top" else pixels[:, : SIDE // 2]
    red[..., 0] += 200
    return Image.fromarray(pixels.astype(np.uint8))


def save(image: Image.Image, path: Path, orientation: int = 1) -> None:
    """Save a picture as it is, or stored turned by a quarter (6)."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (image.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else image).save(path, exif=exif)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of two classes; half of the test photos are stored turned."""
    folder = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 16), ("test", 4)):
        for kind in ("side", "top"):
            (folder / part / kind).mkdir(parents=True)
            for number in range(count):
                turned = 6 if part == "test" and number % 2 else 1
                save(halves(kind, number + 50 * (part == "test")), folder / part / kind / f"{number}.png", turned)
    return folder


@pytest.fixture(scope="module")
def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished stage 1."""
    out = tmp_path_factory.mktemp("runs")
    succeed("main_stage1", "--dataset", "folder", "--data_dir", photos, *SMALL, *FAST, "--out", out, "--epochs", 6,
            "--lr", 0.05)  # fmt: skip
    return out


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_of(out: Path) -> Path:
    return next(out.rglob("metrics.json")).parent


def accuracy(out: Path, *flags: object) -> float:
    """Return the accuracy that evaluate.py reports on the test images."""
    succeed("evaluate", "--pretrained_pth", run_of(out), *flags, "--workers", 0, "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    Path("report.json").unlink()
    return found(report, "all")


def found(report: Any, name: str) -> float:
    """Return the first number of a name anywhere in a report."""
    if isinstance(report, dict):
        if isinstance(report.get(name), int | float):
            return float(report[name])
        report = list(report.values())
    for part in report if isinstance(report, list) else []:
        try:
            return found(part, name)
        except KeyError:
            continue
    raise KeyError(name)


def predictions(out: Path, images: Path, *flags: object, status: int = 0) -> tuple[list[dict[str, str]], Outcome]:
    outcome = run("predict", "--pretrained_pth", run_of(out), "--images", images, "--csv", "-", "--workers", 0, *flags)
    assert outcome.status == status, outcome
    return list(csv.DictReader(io.StringIO(outcome.out, newline=""))), outcome


def as_before(out: Path, copy: Path) -> Path:
    """Return a copy of a run as it was before there were options: nothing of it names them."""
    shutil.copytree(out, copy)
    folder = run_of(copy)
    config = without_options(json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("last.pth", "best.pth"):
        content = torch.load(folder / name, weights_only=True)
        save_checkpoint(folder / name, {**content, "config": without_options(content["config"])})
    return copy


def without_options(config: dict[str, Any]) -> dict[str, Any]:
    names = ("orientation", "bits", "max_pixels")
    for part in ("settings", "images"):
        config[part] = {name: value for name, value in config[part].items() if name not in names}
    return config


def test_turned_photos_are_evaluated_and_predicted_upright(out: Path, photos: Path) -> None:
    config = json.loads((run_of(out) / "config.json").read_text())
    assert config["settings"]["orientation"] == config["images"]["orientation"] == "exif"
    assert accuracy(out) == 100
    for kind in ("side", "top"):
        rows, outcome = predictions(out, photos / "test" / kind)
        assert {row["class"] for row in rows} == {kind} and "turned upright" in outcome.err
    rows, outcome = predictions(out, photos / "test" / "top", "--orientation", "ignore")
    assert [row["class"] for row in rows] == ["top", "side"] * 2 and "taken as they are stored" in outcome.err
    named = ("--dataset", "folder", "--data_dir", photos, "--orientation", "ignore", "--workers", 0)
    refused = run("evaluate", "--pretrained_pth", run_of(out), *named)
    assert refused.status == 2 and "--orientation exif, not ignore" in refused.err


def test_a_run_from_before_keeps_its_pixels_and_its_number(out: Path, photos: Path, tmp_path: Path) -> None:
    old = as_before(out, tmp_path / "old")
    assert accuracy(old) == 75  # the turned ones of "top" are called "side", as they were then
    outcome = succeed("evaluate", "--pretrained_pth", run_of(old), "--workers", 0)
    assert "photos that are stored turned stay so (--orientation ignore)" in outcome.out
    rows, outcome = predictions(old, photos / "test" / "top")  # anyone's photos are shown upright nevertheless
    assert {row["class"] for row in rows} == {"top"} and "unlike the run's own images" in outcome.err
    flags = ("--dataset", "folder", "--data_dir", photos, *SMALL, *FAST, "--out", old, "--epochs", 6, "--lr", 0.05)
    folder = run_of(old)
    (folder / "metrics.json").unlink()
    refused = run("main_stage1", *flags, "--resume", "--orientation", "exif")
    assert refused.status == 2 and "was begun before there was --orientation" in refused.err
    outcome = succeed("main_stage1", *flags, "--resume")
    assert "stay so (--orientation ignore)" in outcome.out
    assert "orientation" not in json.loads((folder / "config.json").read_text())["settings"]
    assert accuracy(old) == 75
    outcome = succeed("main_stage2", *flags[:-4], "--finetune_epoch", 1)
    [stage2] = folder.parent.glob("stage2_*")
    assert "orientation" not in stage2.name and "bits" not in stage2.name
    settings = json.loads((stage2 / "config.json").read_text())["settings"]
    assert (settings["orientation"], settings["bits"]) == ("ignore", 16)


def test_the_other_way_is_a_run_of_its_own(photos: Path, tmp_path: Path) -> None:
    data = ("--dataset", "folder", "--data_dir", photos, *SMALL, *FAST, "--out", tmp_path / "runs", "--epochs", 1)
    succeed("main_stage1", *data, "--orientation", "ignore")
    folder = run_of(tmp_path / "runs")
    assert folder.name.endswith("_orientationignore")
    assert "orientation" not in json.loads((folder / "config.json").read_text())["images"]


def test_one_bad_file_never_ends_a_run_of_predictions(out: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some: of mine"
    shutil.copytree(photos / "test" / "top", folder)
    (folder / "1a.png").write_bytes(b"no: image")
    (folder / "2a.jpg").write_bytes(b"")
    whole = (folder / "2.png").read_bytes()
    (folder / "3a.png").write_bytes(whole[: len(whole) // 2])
    alone = {row["file"]: row for row in predictions(out, photos / "test" / "top")[0]}
    rows, outcome = predictions(out, folder, status=1)
    assert [row["file"] for row in rows] == ["0.png", "1.png", "1a.png", "2.png", "2a.jpg", "3.png", "3a.png"]
    bad = [row for row in rows if row["error"]]
    assert [row["error"] for row in bad][:2] == [
        "it is no image, or none of JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM",
        "it is empty",
    ]
    assert [row["file"] for row in bad] == ["1a.png", "2a.jpg", "3a.png"] and "truncated" in bad[2]["error"]
    assert all(row["class"] == row["probability"] == "" for row in bad)
    good = {row["file"]: row for row in rows if not row["error"]}
    assert good.keys() == alone.keys() and all(good[name]["class"] == alone[name]["class"] for name in good)
    assert outcome.err.splitlines()[-1].startswith("warning: 3 of 7 images could not be read")
    ranked, _ = predictions(out, folder, "--top", 2, status=1)
    assert len(ranked) == 4 * 2 + 3 and [row["rank"] for row in ranked if row["error"]] == [""] * 3
    for row in good:
        (folder / row).unlink()
    rows, _ = predictions(out, folder, status=1)
    assert len(rows) == 3 and all(row["error"] for row in rows)


def test_one_folder_of_everything(out: Path, photos: Path, tmp_path: Path) -> None:
    """A photo that is stored turned, two that are too large, 16-bit pixels of unknown range and a broken file."""
    folder, large = tmp_path / "mixed", halves("top", 60).resize((2 * SIDE, 2 * SIDE))
    folder.mkdir()
    save(halves("top", 61), folder / "a turned.jpg", 6)
    save(large, folder / "b large.jpg", 6)  # decoded at half of its sides, and turned
    save(large, folder / "c large.png")
    Image.fromarray(np.full((SIDE, SIDE), 4000, np.uint16)).save(folder / "d deep.png")
    (folder / "e broken.png").write_bytes((photos / "test" / "top" / "0.png").read_bytes()[:99])
    save(halves("side", 62), folder / "f plain.png")
    rows, outcome = predictions(out, folder, "--max_pixels", 2 * SIDE * SIDE - 1, status=1)
    assert [row["file"] for row in rows] == sorted(path.name for path in folder.iterdir())
    assert [row["class"] for row in rows] == ["top", "top", "", "", "", "side"]
    errors = [row["error"] for row in rows]
    assert errors[:2] == ["", ""] and "more than 511 pixels" in errors[2] and "--max_pixels" in errors[2]
    assert "--bits 12" in errors[3] and "truncated" in errors[4] and errors[5] == ""
    assert "warning: 3 of 6 images could not be read" in outcome.err.splitlines()[-1]
    rows, _ = predictions(out, folder, "--bits", 12, "--flip", "--workers", 2, status=1)
    assert [row["class"] for row in rows[:3]] == ["top"] * 3 and [bool(row["error"]) for row in rows[3:]] == [0, 1, 0]


def test_twelve_bits_go_from_training_to_predictions(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "deep"
    shutil.copytree(photos, data)
    for path in data.rglob("side/*.png"):
        gray = np.random.default_rng(0).integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)
        Image.fromarray(gray).save(path)
    flags = ("--dataset", "folder", "--data_dir", data, *SMALL, *FAST, "--epochs", 1, "--out", tmp_path / "runs")
    refused = run("main_stage1", *flags)
    assert refused.status == 2 and "give --bits 12" in refused.err
    succeed("main_stage1", *flags, "--bits", 12)
    folder = run_of(tmp_path / "runs")
    assert json.loads((folder / "config.json").read_text())["images"]["bits"] == 12
    rows, _ = predictions(tmp_path / "runs", data / "test" / "side")
    assert not any(row["error"] for row in rows)
    rows, _ = predictions(tmp_path / "runs", data / "test" / "side", "--bits", 10, status=1)
    assert all("beyond the 10 bits" in row["error"] for row in rows)
