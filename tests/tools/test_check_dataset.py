"""The check decodes as training would with the same flags, and says what it does with each kind of file."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.helpers import refused
from tools import image_files
from tools.check_dataset import main

TWELVE = np.arange(64, dtype=np.uint16).reshape(8, 8) * 65  # up to 4,095


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes: gray PNGs of 12 bits in 16, a photo that is stored turned, an image of 90,000 pixels."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for number, folder in enumerate(("train/ant", "train/bee", "test/ant", "test/bee")):
        place = tmp_path / folder
        place.mkdir(parents=True)
        Image.fromarray(TWELVE + number).save(place / "deep.png") if number == 0 else None
        pixels = np.full((300, 300, 3), 60 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(place / "large.png")
        Image.fromarray(pixels[:8]).save(place / "turned.jpg", exif=exif)
    return tmp_path


def check(tree: Path, *flags: object) -> tuple[int, dict[str, int]]:
    """Return the exit status of the check, and how many files of each kind it found."""
    status, out = 0, tree / "report.json"
    words = ["--dataset", "folder", "--data_dir", tree, "--out", tree / "runs", "--json", out, *flags]
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        status = int(end.code or 0)
    return status, {kind: entry["files"] for kind, entry in json.loads(out.read_text())["files"]["kinds"].items()}


def test_bits(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, kinds = check(tree)
    assert status == 1 and kinds[image_files.UNKNOWN_RANGE] == 1
    assert "of the first: its 16-bit pixels go up to 4,095 alone" in (out := capsys.readouterr().out)
    assert "give --bits 12" in out
    status, kinds = check(tree, "--bits", 12)
    out = capsys.readouterr().out
    assert status == 0 and kinds[image_files.DEEP] == 1
    assert "the upper 8 of 12 bits" in out and "16-bit images of 12 bits" in out
    status, kinds = check(tree, "--bits", 10)
    assert status == 1 and kinds[image_files.BEYOND_RANGE] == 1


def test_largest_image(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Image.MAX_IMAGE_PIXELS
    status, kinds = check(tree, "--bits", 12, "--max_pixels", 80_000)
    assert status == 1 and kinds[image_files.TOO_LARGE] == 4
    assert "at most 80,000 pixels in full" in capsys.readouterr().out
    assert check(tree, "--bits", 12, "--max_pixels", 90_000)[0] == 0 and before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("flags", "words"), [((), "upright"), (("--orientation", "ignore"), "as stored")])
def test_orientation(tree: Path, flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, kinds = check(tree, "--bits", 12, *flags)
    [line] = [line for line in capsys.readouterr().out.splitlines() if " stored turned " in line]
    assert kinds[image_files.TURNED] == 4 and words in line


def test_values_that_cannot_be(tree: Path) -> None:
    assert "--bits must be" in refused("tools/check_dataset", "--dataset", "folder", "--data_dir", tree, "--bits", 7)
