"""Which formats are decoded, and how much memory decoding may take."""

import threading
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from datasets.decode import decode_rgb
from datasets.decoding import memory
from datasets.decoding.memory import BYTES_OF_JPEG, BYTES_OF_PIL, UNIT, DecodingMemory
from datasets.decoding.options import DecodeOptions
from datasets.decoding.pil import FORMATS
from datasets.on_disk.listed_split import pack
from datasets.workers import find_unreadable
from tools.image_files import NO_IMAGE, REDUCED, TOO_LARGE, examine
from utils.errors import UserError

SIDE = 2000
PIXELS = SIDE * SIDE


def picture(path: Path, form: str, side: int = 8) -> str:
    """Write a gray picture in a format, under a name that says nothing of it."""
    Image.fromarray(np.full((side, side, 3), 90, dtype=np.uint8)).save(path, form)
    return str(path)


@pytest.mark.parametrize("form", FORMATS)
def test_formats_that_are_meant_are_decoded(form: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.bin", form)
    assert decode_rgb(path).shape == (3, 8, 8) and "smaller than 224" in examine(path)


def test_a_jpeg_of_several_pictures_is_decoded(tmp_path: Path) -> None:
    """Phones write such files under the names of JPEG; PIL tells them apart behind the door of JPEG."""
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    assert decode_rgb(str(tmp_path / "a.jpg"))[0].min() > 200
    assert "animated" in examine(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("form", ["EPS", "PDF", "TGA", "PCX", "ICNS", "ICO", "SGI", "DDS", "MSP", "JPEG2000"])
def test_no_other_plug_in_sees_a_file(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    try:
        Image.new("1" if form == "MSP" else "RGB", (32, 32)).save(path, form)
    except (OSError, KeyError):
        pytest.skip(f"this build of PIL writes no {form}")
    with pytest.raises(UserError, match="none of JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM"):
        decode_rgb(str(path))
    assert examine(str(path)) == [NO_IMAGE]


@pytest.mark.parametrize(("form", "each"), [("PNG", BYTES_OF_PIL), ("JPEG", BYTES_OF_JPEG)])
def test_an_image_above_the_limit_is_named_with_it(form: str, each: int, tmp_path: Path) -> None:
    path = picture(tmp_path / "large.bin", form, SIDE)
    enough, little = (-(-PIXELS * each // UNIT) * UNIT / 2**20 - less for less in (0, 8))
    with DecodingMemory(mib=enough).claims() as claim:
        assert decode_rgb(path, claim).shape == (3, SIDE, SIDE)
    with DecodingMemory(mib=little).claims() as claim, pytest.raises(UserError) as caught:
        decode_rgb(path, claim)
    assert path in str(caught.value) and f"more than the {little:,.0f} MiB that decoding may take" in str(caught.value)


def test_workers_and_checks_hold_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "large.png", "PNG", SIDE)
    split = pack(tmp_path, [b"large.png"] * 3, [0] * 3)
    assert find_unreadable(split, 0, 3) == []
    monkeypatch.setattr(memory, "MEMORY_MIB", 16)
    for workers in (0, 2):
        assert [row for row, line in find_unreadable(split, workers, 3) if "MiB of memory" in line] == [0, 1, 2]
    assert examine(path) == [TOO_LARGE]


def test_the_limit_is_that_of_pil() -> None:
    """An image that PIL takes is decoded even in its most expensive form, alone."""
    assert Image.MAX_IMAGE_PIXELS is not None
    with DecodingMemory(4).claims() as claim:
        claim("largest", Image.MAX_IMAGE_PIXELS, BYTES_OF_PIL)


@pytest.mark.parametrize("mib", [8, 24, 64])
def test_what_is_held_at_one_time_never_exceeds_the_limit(mib: int) -> None:
    memory, guard = DecodingMemory(8, mib), threading.Lock()
    held, most, done = [0], [0], [0]

    def read(units: int) -> None:
        units = min(units, mib // 8)
        with memory.claims() as claim:
            claim("a", 1, 1)  # first as a plain JPEG, then as whatever PIL makes of it
            claim("a", units * UNIT, 1)
            with guard:
                held[0] += units
                most[0] = max(most[0], held[0])
            time.sleep(0.001)
            with guard:
                held[0] -= units
                done[0] += 1

    with ThreadPool(8) as pool:
        pool.map_async(read, [1, 2, 3, 8, 1, 5] * 20).get(timeout=30)
    assert done == [120] and held == [0] and 0 < most[0] <= mib // 8


def test_what_fails_gives_its_memory_back(tmp_path: Path) -> None:
    memory = DecodingMemory(2, 16)
    data = Path(picture(tmp_path / "cut.png", "PNG", 1000)).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for _ in range(5):
        with memory.claims() as claim, pytest.raises(UserError, match=r"cut\.png"):
            decode_rgb(str(tmp_path / "cut.png"), claim)


# JPEGs above the limit


def noisy_jpeg(path: Path, height: int, width: int, **more: Any) -> np.ndarray:
    """Write smooth noise as a JPEG; return what PIL decodes of it (height, width, 3)."""
    small = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95, **more)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("more", [{}, {"progressive": True}, {"exif": True}], ids=str)
@pytest.mark.parametrize(("limit", "scale"), [(99 * 141, 1), (99 * 141 - 1, 2), (2000, 4)])
def test_a_jpeg_above_the_limit_is_reduced(limit: int, scale: int, more: dict[str, Any], tmp_path: Path) -> None:
    turned = "exif" in more
    if turned:
        more = {"exif": Image.Exif()}
        more["exif"][ExifTags.Base.Orientation] = 3
    whole = noisy_jpeg(tmp_path / "a.jpg", 99, 141, **more)
    options = DecodeOptions("exif", max_pixels=limit)
    found = decode_rgb(str(tmp_path / "a.jpg"), options=options).permute(1, 2, 0).numpy()
    if turned:
        found = found[::-1, ::-1]
    assert found.shape == (-(-99 // scale), -(-141 // scale), 3)
    if scale == 1:
        assert (found == whole).all()
    else:  # each pixel stands for a block: near its mean
        rows, columns = 99 // scale, 141 // scale
        blocks = whole[: rows * scale, : columns * scale].reshape(rows, scale, columns, scale, 3)
        difference = np.abs(blocks.mean((1, 3)) - found[:rows, :columns])
        assert difference.mean() < 2 and difference.max() < 20


def test_above_what_can_be_reduced_the_flag_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy_jpeg(tmp_path / "a.jpg", 99, 141)
    with pytest.raises(UserError, match=r"more than 11,200 pixels.*--max_pixels N"):
        decode_rgb(str(tmp_path / "a.jpg"), options=DecodeOptions(max_pixels=700))
    path = picture(tmp_path / "a.png", "PNG", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(UserError, match=r"more than 4,000 pixels.*--max_pixels N"):
        decode_rgb(path)
    assert decode_rgb(path, options=DecodeOptions(max_pixels=10_000)).shape == (3, 100, 100)
    assert Image.MAX_IMAGE_PIXELS == 4000
    assert examine(path) == [TOO_LARGE]
    assert examine(str(tmp_path / "a.jpg")) == [REDUCED]


def test_a_progressive_jpeg_claims_the_memory_of_its_coefficients(tmp_path: Path) -> None:
    options, claimed = DecodeOptions(max_pixels=4000), []
    for more in ({}, {"progressive": True}):
        noisy_jpeg(tmp_path / "a.jpg", 99, 141, **more)
        decode_rgb(str(tmp_path / "a.jpg"), lambda _, pixels, each: claimed.append(pixels * each), options)
    plain, progressive = claimed
    assert plain == 50 * 71 * BYTES_OF_PIL and progressive >= plain + 99 * 141 * 6


def test_memory_grows_with_the_limit() -> None:
    assert memory.memory_for(DecodeOptions()).units == DecodingMemory().units
    assert memory.memory_for(DecodeOptions(max_pixels=1000)).units == DecodingMemory().units
    with memory.memory_for(DecodeOptions(max_pixels=200_000_000)).claims() as claim:
        claim("largest", 200_000_000, BYTES_OF_PIL)
