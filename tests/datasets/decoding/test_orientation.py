"""Photos that are stored turned are shown upright: as PIL does it, whatever the format and whichever the decoder."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datasets import decode
from datasets.decode import JpegDecoder, decode_rgb
from datasets.decoding.jpeg import EXIF as EXIF_NAME
from datasets.decoding.options import EXIF, IGNORE, DecodeOptions
from datasets.long_tail import Augmentation
from datasets.on_disk.listed_split import pack
from datasets.streamed import StreamedImages
from datasets.workers import Reading
from tools.image_files import TURNED, examine

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

UPRIGHT, STORED = DecodeOptions(EXIF), DecodeOptions(IGNORE)
FORMS = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF, packed": {"compression": "tiff_lzw"},
}
HEIGHT, WIDTH = 30, 44
# What was done to an upright photo that is to be shown by the tag's value, in the words of PIL.
STORED_BY = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def photo(seed: int = 0) -> Image.Image:
    """Return smooth noise that no turn leaves as it is."""
    small = np.random.RandomState(seed).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def stored(orientation: int, seed: int = 0) -> Image.Image:
    """Return the photo as a camera that was held so stores it."""
    method = STORED_BY[orientation]
    return photo(seed) if method is None else photo(seed).transpose(method)


def tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def save(path: Path, form: str, orientation: int, seed: int = 0) -> str:
    stored(orientation, seed).save(path, form.split(",")[0], exif=tag(orientation), **FORMS[form])
    return str(path)


def xmp(orientation: int) -> bytes:
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


def tensor_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def as_pil_shows(path: str) -> Tensor:
    with Image.open(path) as image:
        return tensor_of(ImageOps.exif_transpose(image))


def by_torchcodec() -> JpegDecoder:
    """Return a stand-in for TorchCodec, which turns photos unasked."""

    def turning(data: Tensor) -> Tensor:
        return torchvision.io.decode_jpeg(data, torchvision.io.ImageReadMode.RGB, apply_exif_orientation=True)

    return JpegDecoder("TorchCodec", turning)


def nowhere() -> JpegDecoder:
    raise ImportError


FINDERS: dict[str, tuple[Callable[[], JpegDecoder], Callable[[], JpegDecoder]]] = {
    "torchvision": (decode.of_torchvision, nowhere),
    "a decoder that turns": (nowhere, by_torchcodec),
    "PIL": (nowhere, nowhere),
}


@pytest.fixture(params=FINDERS)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each of the decoders of JPEG in turn."""
    for name, find in zip(("of_torchvision", "of_torchcodec"), FINDERS[request.param], strict=True):
        monkeypatch.setattr(decode, name, find)
    decode.jpeg_decoder.cache_clear()
    yield request.param
    decode.jpeg_decoder.cache_clear()


@pytest.mark.parametrize("orientation", STORED_BY)
@pytest.mark.parametrize("form", FORMS)
def test_a_photo_is_upright_in_every_format(form: str, orientation: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.bin", form, orientation)
    pixels = decode_rgb(path, options=UPRIGHT)
    assert pixels.shape == (3, HEIGHT, WIDTH) and pixels.permute(1, 2, 0).is_contiguous()
    assert torch.equal(pixels, as_pil_shows(path))
    difference = (pixels.float() - tensor_of(photo()).float()).abs().mean()
    assert difference == 0 if form != "JPEG" else difference < 2
    assert (TURNED in examine(path)) == (orientation != 1)


@pytest.mark.parametrize("orientation", STORED_BY)
def test_every_decoder_gives_the_same_pixels(decoder: str, orientation: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", "JPEG", orientation)
    assert torch.equal(decode_rgb(path, options=UPRIGHT), as_pil_shows(path)), decoder
    with Image.open(path) as image:
        assert torch.equal(decode_rgb(path, options=STORED), tensor_of(image)), decoder


def test_ignored_it_is_what_pil_decodes(tmp_path: Path) -> None:
    """PIL turns TIFF, whose orientation is a tag of the image, by itself: nobody's loader has it otherwise."""
    for form in FORMS:
        path = save(tmp_path / "a.bin", form, 6)
        expected = photo() if form.startswith("TIFF") else stored(6)
        assert decode_rgb(path, options=STORED).shape[1:] == (expected.height, expected.width)
        with Image.open(path) as image:
            assert torch.equal(decode_rgb(path, options=STORED), tensor_of(image))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_xmp_says_it_where_exif_does_not(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    more = {"xmp": xmp(8)}
    if form == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp(8).decode())
        more = {"pnginfo": text}  # type: ignore[dict-item]
    stored(8).save(path, form, **more, **FORMS[form])
    assert decode_rgb(str(path), options=UPRIGHT).shape == (3, HEIGHT, WIDTH)
    assert torch.equal(decode_rgb(str(path), options=UPRIGHT), as_pil_shows(str(path)))
    if form != "PNG":
        stored(8).save(path, form, exif=tag(1), xmp=xmp(8), **FORMS[form])  # EXIF is asked first
        assert torch.equal(decode_rgb(str(path), options=UPRIGHT), decode_rgb(str(path), options=STORED))


def jpeg_with(segment: bytes) -> bytes:
    """Return the stored photo with a segment of EXIF data."""
    file = io.BytesIO()
    stored(6).save(file, "JPEG", **FORMS["JPEG"])
    content = file.getvalue()
    return content[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + content[2:]


def damaged_segments() -> list[bytes]:
    whole = tag(6).tobytes()
    assert whole.startswith(EXIF_NAME)
    return [
        EXIF_NAME,
        EXIF_NAME + b"no directory at all",
        whole[:12],
        whole[:-9],
        whole.replace(b"\x06\x00", b"\x09\x00"),
        whole.replace(b"\x06\x00", b"\x00\x00"),
        whole.replace(b"II*\0", b"XX*\0").replace(b"MM\0*", b"XX\0*"),
    ]


@pytest.mark.parametrize("number", range(len(damaged_segments())))
def test_with_damaged_exif_data_a_photo_is_as_it_is_stored(number: int, decoder: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_with(damaged_segments()[number]))
    pixels = decode_rgb(str(tmp_path / "a.jpg"), options=UPRIGHT)
    assert pixels.shape[1:] == (WIDTH, HEIGHT), decoder
    assert torch.equal(pixels, decode_rgb(str(tmp_path / "a.jpg"), options=STORED))


def test_a_segment_in_two_parts_is_one(tmp_path: Path) -> None:
    whole = jpeg_with(tag(6).tobytes() + bytes(60))
    second = b"\xff\xe1" + (60).to_bytes(2, "big") + EXIF_NAME + bytes(52)
    at = whole.index(b"\xff\xdb")
    (tmp_path / "a.jpg").write_bytes(whole[:at] + second + whole[at:])
    path = str(tmp_path / "a.jpg")
    assert decode_rgb(path, options=UPRIGHT).shape[1:] == (HEIGHT, WIDTH)
    assert torch.equal(decode_rgb(path, options=UPRIGHT), as_pil_shows(path))


@pytest.mark.parametrize("view", [(0, 3), None], ids=["training", "evaluation"])
def test_crops_of_turned_photos_are_those_of_upright_ones(view: tuple[int, int] | None, tmp_path: Path) -> None:
    batches = {}
    for kind in ("upright", "turned"):
        (tmp_path / kind).mkdir()
        for number in range(1, 9):
            save(tmp_path / kind / f"{number}.png", "PNG", number if kind == "turned" else 1, seed=number)
        split = pack(tmp_path / kind, [b"%d.png" % number for number in range(1, 9)], [0] * 8)
        for options in (UPRIGHT, STORED):
            images = StreamedImages(
                split,
                Augmentation(0, True, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
                torch.device("cpu"),
                size=16,
                resize=20,
                reading=Reading(0, options),
            )
            batches[kind, options.orientation] = torch.cat(list(images.view_batches([torch.arange(8)], view)))
    assert torch.equal(batches["upright", EXIF], batches["upright", IGNORE])
    assert torch.equal(batches["upright", EXIF], batches["turned", EXIF])
    differing = (batches["turned", IGNORE] != batches["upright", EXIF]).flatten(1).any(dim=1)
    assert differing.tolist() == [False] + [True] * 7
