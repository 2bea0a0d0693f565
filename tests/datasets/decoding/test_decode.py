"""Image files become the pixels that PIL gives, whichever decoder reads them, and a damaged one is named in a line."""

import io
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image
from torch import Tensor

from datasets import decode
from datasets.decode import decode_rgb, decoder_reason
from datasets.decoding.jpeg import read_header
from datasets.decoding.pil import decode_with_pil
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

HEIGHT, WIDTH = 53, 75


def photo(height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> np.ndarray:
    """Return smooth noise (height, width, channels) uint8."""
    small = np.random.RandomState(height).randint(0, 256, (6, 8, channels)).astype(np.uint8)
    bands = [Image.fromarray(small[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(channels)]
    return np.stack([np.asarray(band) for band in bands], axis=2)


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(photo()).convert(mode)


def save(path: Path, mode: str = "RGB", **options: Any) -> str:
    picture(mode).save(path, **options)
    return str(path)


def pil_pixels(path: str) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def reason(path: str) -> str:
    with pytest.raises(UserError) as caught:
        decode_rgb(path)
    text = str(caught.value)
    start = f"cannot read the image {path}: "
    assert text.startswith(start) and "\n" not in text
    return text.removeprefix(start)


JPEGS: dict[str, tuple[str, dict[str, Any]]] = {
    "full chroma": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "progressive": ("RGB", {"progressive": True}),
    "restart markers": ("RGB", {"restart_marker_blocks": 3}),
    "gray": ("L", {}),
    "stored as RGB": ("RGB", {"keep_rgb": True}),
}


@pytest.mark.parametrize("name", JPEGS)
def test_the_fast_decoder_gives_the_pixels_of_pil(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mode, options = JPEGS[name]
    path = save(tmp_path / "a.jpg", mode, **options)
    expected = pil_pixels(path)
    monkeypatch.setattr(decode, "decode_with_pil", None)  # it must not be needed
    pixels = decode_rgb(path)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(pixels, expected)


OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "PNG": ("a.png", "RGB", {}),
    "palette": ("a.png", "P", {}),
    "alpha": ("a.png", "RGBA", {}),
    "bitmap": ("a.png", "1", {}),
    "CMYK": ("a.jpg", "CMYK", {}),
    "WebP": ("a.webp", "RGB", {"lossless": True}),
    "TIFF": ("a.tif", "RGB", {}),
    "GIF": ("a.gif", "P", {"save_all": True, "append_images": [Image.new("P", (WIDTH, HEIGHT))]}),
    "PNG named as JPEG": ("a.jpg", "RGB", {"format": "PNG"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_images_are_those_of_pil(name: str, tmp_path: Path) -> None:
    file, mode, options = OTHERS[name]
    path = save(tmp_path / file, mode, **options)
    pixels = decode_rgb(path)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(pixels, pil_pixels(path))


def test_of_16_bits_the_upper_8_are_kept(tmp_path: Path) -> None:
    gray = photo()[..., 0].astype(np.uint16) * 256 + 77
    assert gray.max() >= 2**14
    Image.fromarray(gray).save(tmp_path / "a.png")
    assert torch.equal(decode_rgb(str(tmp_path / "a.png")), torch.from_numpy(photo()[..., 0]).expand(3, -1, -1))


@pytest.mark.parametrize("file", ["a.jpg", "a.png"])
def test_memory_is_channels_last(file: str, tmp_path: Path) -> None:
    assert decode_rgb(save(tmp_path / file)).permute(1, 2, 0).is_contiguous()


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = save(tmp_path / "a.jpg", exif=exif)
    pixels = decode_rgb(path)
    assert pixels.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(pixels, decode_with_pil(path))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str)
def test_both_decoders_refuse_a_jpeg_that_is_cut_off_anywhere(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(save(tmp_path / "whole.jpg", **options)).read_bytes()
    path = tmp_path / "cut.jpg"
    for length in np.random.RandomState(0).randint(1, len(content), 40).tolist():
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.jpg: "):
            decode_with_pil(str(path))
        with monkeypatch.context() as patch:
            patch.setattr(decode, "decode_with_pil", lambda path, claim, options: None)
            assert decode_rgb(str(path)) is None  # the fast one gave it up too


def test_damage_is_judged_alike_with_and_without_the_fast_decoder(tmp_path: Path) -> None:
    content = Path(save(tmp_path / "whole.jpg")).read_bytes()
    path, random, outcomes = tmp_path / "damaged.jpg", np.random.RandomState(1), set()
    for at in random.randint(2, len(content), 60).tolist():
        damaged = bytearray(content)
        damaged[at : at + 8] = random.bytes(len(damaged[at : at + 8]))
        path.write_bytes(damaged)
        found: list[Tensor | str] = []
        for read in (decode_rgb, decode_with_pil):
            try:
                found.append(read(str(path)))
            except UserError as error:
                found.append(str(error))
        fast, slow = found
        outcomes.add(type(slow))
        assert fast == slow if isinstance(fast, str) or isinstance(slow, str) else torch.equal(fast, slow)
    assert outcomes == {Tensor, str}


def test_the_reason_of_each_bad_file_is_one_line(tmp_path: Path) -> None:
    whole = Path(save(tmp_path / "whole.png")).read_bytes()
    files = {
        "empty.jpg": b"",
        "cut.png": whole[: len(whole) // 2],
        "text.jpg": b"not\nan image",
        "soi.jpg": b"\xff\xd8",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert reason(str(tmp_path / "missing.jpg")) == "No such file or directory"
    assert reason(str(tmp_path)) == "Is a directory"
    assert reason(str(tmp_path / "empty.jpg")) == "it is empty"
    assert "truncated" in reason(str(tmp_path / "cut.png"))
    assert reason(str(tmp_path / "text.jpg")) == "it is no image, or none of JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM"
    assert reason(str(tmp_path / "soi.jpg"))
    floating = str(tmp_path / "float.tif")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(floating)
    assert reason(floating) == "it has floating-point pixels"
    if os.geteuid() != 0:
        os.chmod(tmp_path / "whole.png", 0)
        assert reason(str(tmp_path / "whole.png")) == "Permission denied"


def test_a_name_of_any_bytes_can_be_printed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image .*\\udcff\.jpg: No such file"):
        decode_rgb(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))


@pytest.mark.parametrize("file", ["a.png", "a.webp"])
@pytest.mark.parametrize("share", [0.9, 0.4])  # of the pixels: PIL warns above the limit, and raises above its double
def test_more_pixels_than_pils_limit_are_refused_before_decoding(
    file: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH)
    assert decode_rgb(path).shape == (3, HEIGHT, WIDTH)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(share * HEIGHT * WIDTH))
    monkeypatch.setattr(Image.Image, "convert", None)
    assert f"more than {int(share * HEIGHT * WIDTH):,} pixels" in reason(path)


def test_a_header_alone_decides_about_a_bomb(tmp_path: Path) -> None:
    content = bytearray(Path(save(tmp_path / "a.jpg")).read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.jpg").write_bytes(content)
    assert "more than 1,431,655,760 pixels" in reason(str(tmp_path / "a.jpg"))


def test_headers_of_jpegs() -> None:
    file = io.BytesIO()
    picture().save(file, "JPEG", comment=b"\xff\xc0" * 50, icc_profile=bytes(70000))
    content = file.getvalue()
    for data in (content, content[:2] + b"\xff\xff" + content[2:]):  # fill bytes
        header = read_header(data)
        assert header is not None and header.is_plain and (header.height, header.width) == (HEIGHT, WIDTH)
    frame = content.index(b"\xff\xc0\x00\x11")
    changed = bytearray(content)
    for offset, value in ((1, 0xC9), (1, 0xC3), (4, 12), (9, 4)):  # arithmetic, lossless, 12 bits, 4 components
        changed[:] = content
        changed[frame + offset] = value
        header = read_header(changed)
        assert header is None or not header.is_plain
    for other in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        content[:frame],
        b"\x89PNG" + content[4:],
        b"\xff\xd8" + bytes(99),
    ):
        assert read_header(other) is None


def refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError("decode_jpeg: torchvision not compiled with libjpeg support")


@pytest.mark.parametrize("present", [True, False])
def test_without_torchvisions_decoder_pil_reads_everything(
    present: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.jpg")
    decode.jpeg_decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # as if it were not installed
    assert "JPEG is decoded by torchvision" in decoder_reason()
    decode.jpeg_decoder.cache_clear()
    if present:
        monkeypatch.setattr(torchvision.io, "decode_jpeg", refuse)
    else:
        monkeypatch.delattr(torchvision.io, "decode_jpeg")
    try:
        assert "images are decoded by PIL" in decoder_reason()
        assert torch.equal(decode_rgb(path), pil_pixels(path))
        (tmp_path / "empty.jpg").write_bytes(b"")
        assert reason(str(tmp_path / "empty.jpg")) == "it is empty"
    finally:
        decode.jpeg_decoder.cache_clear()


@pytest.mark.parametrize("state", ["gone", "deprecated", "current"])
def test_torchcodec_comes_first_where_torchvision_gives_up(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its function has torchvision's name and arguments; a stand-in notes that it was asked."""
    path, asked = save(tmp_path / "a.jpg"), []
    original = torchvision.io.decode_jpeg

    def current(data: torch.Tensor, mode: object) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return original(data, mode=mode)

    def deprecated(data: torch.Tensor, mode: object) -> torch.Tensor:
        warnings.warn("superseded by TorchCodec", DeprecationWarning, stacklevel=2)
        return current(data, mode)

    def decode_jpeg(data: torch.Tensor, mode: object) -> torch.Tensor:
        asked.append(mode)
        return current(data, torchvision.io.ImageReadMode.RGB)

    decoders = types.SimpleNamespace(decode_jpeg=decode_jpeg, ImageReadMode=types.SimpleNamespace(RGB="rgb"))
    monkeypatch.setitem(sys.modules, "torchcodec", types.SimpleNamespace(__version__="0.16.0", decoders=decoders))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    if state == "gone":
        monkeypatch.delattr(torchvision.io, "decode_jpeg")
    else:
        monkeypatch.setattr(torchvision.io, "decode_jpeg", {"deprecated": deprecated, "current": current}[state])
    decode.jpeg_decoder.cache_clear()
    first = "torchvision" if state == "current" else "TorchCodec 0.16.0"
    try:
        assert decoder_reason().startswith(f"JPEG is decoded by {first}")
        assert torch.equal(decode_rgb(path), pil_pixels(path))
        assert asked == ([] if state == "current" else ["rgb", "rgb"])
    finally:
        decode.jpeg_decoder.cache_clear()
