"""16-bit pixels of which fewer bits are in use become neither black nor what they are not."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.decode import decode_rgb
from datasets.decoding.options import DecodeOptions
from tools.image_files import UNKNOWN_RANGE, examine
from utils.errors import UserError

AS_DECLARED, OF_12 = DecodeOptions(), DecodeOptions(bits=12)
VALUES = np.random.RandomState(0).randint(0, 4096, (9, 12)).astype(np.uint16)  # a sensor of 12 bits
COLOURS = np.random.RandomState(1).randint(0, 4096, (9, 12, 3)).astype(np.uint16)


def png(values: np.ndarray, significant: int | None = None) -> bytes:
    """Return a 16-bit PNG, gray (H, W) or colour (H, W, 3 or 4), whose sBIT chunk says how many bits are in use."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    kind = {2: 0, 3: 2}[values.ndim] if values.ndim == 2 or values.shape[2] == 3 else 6
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    declared = b"" if significant is None else chunk(b"sBIT", bytes([significant] * {0: 1, 2: 3, 6: 4}[kind]))
    body = chunk(b"IHDR", header) + declared + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def twelve_bit_tiff(values: np.ndarray) -> bytes:
    """Return a TIFF of gray samples of 12 bits, two in three bytes."""
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12 | pairs[:, 1])[:, None] >> np.array([16, 8, 0]) & 255
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, packed.size))
    start = 8 + packed.size
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = packed.astype(np.uint8).tobytes()
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def gray_of(path: Path, options: DecodeOptions = AS_DECLARED) -> np.ndarray:
    pixels = decode_rgb(str(path), options=options)
    assert (pixels == pixels[:1]).all()
    return pixels[0].numpy()


def colours_of(path: Path, options: DecodeOptions = AS_DECLARED) -> np.ndarray:
    return decode_rgb(str(path), options=options).permute(1, 2, 0).numpy()


def refusal(path: Path, options: DecodeOptions = AS_DECLARED) -> str:
    with pytest.raises(UserError) as caught:
        decode_rgb(str(path), options=options)
    return str(caught.value)


def test_twelve_bits_are_refused_with_a_way_out_and_read_by_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for content in (png(VALUES), png(COLOURS), png(np.dstack([COLOURS, COLOURS[..., 0]]))):
        path.write_bytes(content)
        line = refusal(path)
        assert f"{path}: its 16-bit pixels go up to 4,0" in line and "--bits 12" in line and "--bits 16" in line
        assert examine(str(path)) == [UNKNOWN_RANGE]
    assert (colours_of(path, OF_12) == COLOURS >> 4).all()
    assert (colours_of(path, DecodeOptions(bits=16)) == COLOURS >> 8).all()
    path.write_bytes(png(VALUES))
    assert (gray_of(path, OF_12) == VALUES >> 4).all()
    assert (gray_of(path, DecodeOptions(bits=16)) == VALUES >> 8).all()
    Image.fromarray(VALUES).save(tmp_path / "a.tif")
    assert "--bits 12" in refusal(tmp_path / "a.tif") and (gray_of(tmp_path / "a.tif", OF_12) == VALUES >> 4).all()


@pytest.mark.parametrize("bits", [8, 10, 14])
def test_the_bits_that_are_named_are_the_fewest_usual_ones(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    values = np.full((4, 4), 2**bits - 1, dtype=np.uint16)
    path.write_bytes(png(values))
    assert f"--bits {bits} " in refusal(path)
    assert (gray_of(path, DecodeOptions(bits=bits)) == 255).all()
    assert bits == 8 or "beyond the 8 bits" in refusal(path, DecodeOptions(bits=8))


def test_pixels_of_all_16_bits_are_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for values in (VALUES * 16, COLOURS * 16 + 5, np.full((3, 3), 2**14, np.uint16), np.zeros((3, 3), np.uint16)):
        path.write_bytes(png(values))
        assert (colours_of(path) == (values >> 8 if values.ndim == 3 else (values >> 8)[..., None])).all()


def test_what_a_file_declares(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(VALUES, 12))  # against the specification, which wants them scaled; many writers do so
    assert (gray_of(path) == VALUES >> 4).all()
    path.write_bytes(png(COLOURS, 12))
    assert (colours_of(path) == COLOURS >> 4).all()
    dark = VALUES >> 4  # scaled as specified: dark, and meant so
    for scaled in (dark << 4, (dark << 4) | (dark >> 8)):
        path.write_bytes(png(scaled, 12))
        assert (gray_of(path) == scaled >> 8).all()
    path.write_bytes(png(VALUES, 16))
    assert (gray_of(path) == VALUES >> 8).all()
    path.write_bytes(png(VALUES, 12))
    assert (gray_of(path, DecodeOptions(bits=16)) == VALUES >> 8).all()  # the flag decides
    (tmp_path / "a.tif").write_bytes(twelve_bit_tiff(VALUES))
    assert (gray_of(tmp_path / "a.tif") == VALUES >> 4).all()
    (tmp_path / "a.pgm").write_bytes(b"P5 12 9 4095\n" + VALUES.astype(">u2").tobytes())
    assert abs(gray_of(tmp_path / "a.pgm").astype(int) - VALUES / 4095 * 255).max() < 1


def test_integers_beyond_16_bits_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(tmp_path / "a.tif")
    assert "beyond 16 bits" in refusal(tmp_path / "a.tif")
