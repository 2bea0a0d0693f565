"""The real TorchCodec gives the pixels of torchvision and PIL, whole files and damaged ones, turned photos too."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from datasets import decode
from datasets.decode import JpegDecoder, decode_plain_jpeg, decode_rgb
from datasets.decoding.jpeg import read_header
from datasets.decoding.options import EXIF, DecodeOptions

pytest.importorskip("torchcodec", reason="TorchCodec is not installed")

FORMS = [("RGB", 0, 90, False), ("RGB", 2, 50, True), ("L", 0, 75, False), ("RGB", 1, 95, False)]


def jpeg(mode: str, subsampling: int, quality: int, progressive: bool, orientation: int = 1) -> bytes:
    """A JPEG of noise, 56 x 40 pixels."""
    pixels = np.random.default_rng(quality).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    how = {"subsampling": subsampling, "quality": quality, "progressive": progressive}
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", exif=exif, **how)
    return file.getvalue()


def decoders() -> tuple[JpegDecoder, JpegDecoder]:
    """torchvision's, which turns no photo, and TorchCodec's, which does."""
    found = [decode.tried(find) for find in (decode.of_torchvision, decode.of_torchcodec)]
    assert all(found)
    return found[0], found[1]


def test_it_turns_photos_and_is_known_to() -> None:
    """So the orientation is hidden from it; a release that no longer turns is noticed here."""
    torchvision, torchcodec = decoders()
    assert torchcodec.turns and not torchvision.turns
    assert not torchcodec.deprecated


def test_it_comes_first_where_torchvision_says_that_it_gives_up() -> None:
    torchvision, torchcodec = decoders()
    decode.jpeg_decoder.cache_clear()
    found = decode.jpeg_decoder()
    assert found is not None
    assert found.name == (torchcodec.name if torchvision.deprecated else torchvision.name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_those_of_torchvision_and_pil(
    form: tuple[str, int, int, bool], orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, torchcodec = tmp_path / "a.jpg", decoders()[1]
    path.write_bytes(jpeg(*form, orientation))
    monkeypatch.setattr(decode, "jpeg_decoder", lambda: torchcodec)
    for upright in (True, False):
        options = DecodeOptions(orientation=EXIF) if upright else DecodeOptions()
        with Image.open(path) as image:
            shown = np.array((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
        assert torch.equal(decode_rgb(str(path), options=options), torch.from_numpy(shown).permute(2, 0, 1))


def test_damaged_files_are_judged_as_by_torchvision() -> None:
    """Cut off, with bytes changed and bytes left out: the same pixels, or up to PIL by both."""
    generator, both = np.random.default_rng(0), decoders()
    refused = equal = 0
    for number in range(400):
        data = bytearray(jpeg(*FORMS[number % len(FORMS)]))
        place = int(generator.integers(2, len(data)))
        if number % 3 == 0:
            data = data[:place]
        elif number % 3 == 1:
            data[place] = int(generator.integers(0, 256))
        else:
            del data[place : place + 3]
        header = read_header(bytes(data))
        if header is None or not header.is_plain or header.pixels > 1e6:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, its = (decode_plain_jpeg(bytearray(data), header, decoder) for decoder in both)
        assert (ours is None) == (its is None)
        refused += ours is None
        if ours is not None and its is not None:
            assert torch.equal(ours, its)
            equal += 1
    assert refused > 20 and equal > 20
