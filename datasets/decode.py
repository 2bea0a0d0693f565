"""An image file as the pixels that training sees, from the fastest decoder that is here, or one line why not.

Plain JPEG, which nearly all large images are, goes through the libjpeg-turbo of torchvision or TorchCodec; everything
else through PIL, as `datasets.decoding.pil` says. All give the same pixels, turned as EXIF data say or as they are
stored (`DecodeOptions`).

Two faster ways were left out. libjpeg can decode at 1/2, 1/4 or 1/8 of the size (PIL's `draft`), but what it averages
are blocks, not the triangle of an antialiased resize, so the crops would show other pixels; and a random crop of an
image of ImageNet's size rarely leaves room for even 1/2. It serves JPEGs above the limit of pixels alone. torchvision's
PNG decoder is a tenth faster than PIL's, but some damaged files end the process that reads them (a segmentation fault)
instead of raising an error.
"""

import functools
import importlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image
from torch import Tensor

from datasets.decoding.errors import unreadable
from datasets.decoding.jpeg import START_OF_IMAGE, JpegHeader, decode_reduced, read_header, without_exif
from datasets.decoding.memory import BYTES_OF_JPEG, Claim, no_claim
from datasets.decoding.options import EXIF, PLAIN, DecodeOptions
from datasets.decoding.orientation import orientation_in, turned
from datasets.decoding.pil import decode_with_pil, faults_in_a_line
from utils.outside import open_plain

SIDES = (8, 16)  # height and width of the sample by which a decoder is tried
TURNED = 6  # its orientation, which swaps the sides


def decode_rgb(path: str, claim: Claim = no_claim, options: DecodeOptions = PLAIN) -> Tensor:
    """Return the image of a file, its first frame as 8-bit RGB: (3, H, W) uint8, channels last in memory.

    A JPEG above the limit of pixels is decoded at 1/2 or 1/4 of its sides. Raises UserError, `cannot read the image
    PATH: why`, for a file that is missing, empty, cut off or no image, no regular file, of another format than
    `FORMATS`, for 16-bit pixels of unknown range, and for a file whose header announces more pixels than the limit or
    than there is memory for (`claim`), before decoding it.
    """
    data = read_jpeg(path)
    header = read_header(data)
    if header is not None:
        if header.scale(options.limit) > 1:
            with faults_in_a_line(path, options.limit):
                reduced = torch.from_numpy(np.array(decode_reduced(path, data, header, claim, options)))
            return turned(reduced.permute(2, 0, 1), shown_orientation(header, options))
        decoder = jpeg_decoder()
        if decoder is not None and header.is_plain:
            claim(path, header.pixels, BYTES_OF_JPEG)
            fast = decode_plain_jpeg(data, header, decoder)
            if fast is not None:
                return turned(fast, shown_orientation(header, options))
    return decode_with_pil(path, claim, options)


def shown_orientation(header: JpegHeader, options: DecodeOptions) -> int:
    """Return the orientation, 1 to 8, in which a JPEG is to be shown."""
    return orientation_in(header.exif, header.xmp) if options.orientation == EXIF else 1


def read_jpeg(path: str) -> bytearray:
    """Return the content of a file that begins as a JPEG does, else its first two bytes: a list may name a film."""
    try:
        with open_plain(path, "the image") as file:
            data = bytearray(file.read(len(START_OF_IMAGE)))
            return data + file.read() if data == START_OF_IMAGE else data
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error


def decode_plain_jpeg(data: bytearray, header: JpegHeader, decoder: "JpegDecoder") -> Tensor | None:
    """Decode a plain JPEG as it is stored: (3, H, W) uint8; None for what the decoder refuses.

    That is up to PIL then, so that there is one judge of damaged files.
    """
    try:
        content = without_exif(data, header) if decoder.turns else data
        return decoder.decode(torch.frombuffer(content, dtype=torch.uint8))
    except RuntimeError:
        return None


def decoder_reason() -> str:
    """Return a line for the log: which decoder is used, and why."""
    decoder = jpeg_decoder()
    if decoder is None:
        return f"images are decoded by PIL {PIL.__version__}: neither torchvision nor TorchCodec here decodes JPEG"
    return (
        f"JPEG is decoded by {decoder.name} (faster than PIL, the same pixels), other images by PIL {PIL.__version__}"
    )


@dataclass(frozen=True)
class JpegDecoder:
    """What makes (3, H, W) uint8 of the bytes of a JPEG (n,) uint8, with its name and version."""

    name: str
    decode: Callable[[Tensor], Tensor]
    turns: bool = False  # as EXIF data say, unasked
    deprecated: bool = False  # as it says itself


@functools.cache
def jpeg_decoder() -> JpegDecoder | None:
    """Return torchvision's decoder unless it is deprecated, then TorchCodec's, else torchvision's after all, each where
    it works; None where there is none.

    They are equally fast. Some builds of torchvision are without libjpeg, and from 0.29 on it gives its decoders up in
    favour of TorchCodec, which is not installed with it.
    """
    deprecated = None
    for find in (of_torchvision, of_torchcodec):
        decoder = tried(find)
        if decoder is not None and not decoder.deprecated:
            return decoder
        deprecated = deprecated or decoder
    return deprecated


def tried(find: Callable[[], JpegDecoder]) -> JpegDecoder | None:
    """Return the decoder that `find` finds, with what a sample tells of it; None where it does not work.

    Whether it turns photos by itself, as TorchCodec does and torchvision does not, shows in the sides of a turned one.
    """
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = TURNED
    Image.new("RGB", SIDES[::-1]).save(file, "JPEG", exif=exif)
    sample = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            decoder = find()
            found = tuple(decoder.decode(sample).shape[1:])
        except (ImportError, AttributeError, RuntimeError, OSError):
            return None
    deprecated = any(issubclass(warning.category, DeprecationWarning) for warning in told)
    return replace(decoder, turns=found != SIDES, deprecated=deprecated)


def of_torchvision() -> JpegDecoder:
    """Return torchvision's decoder of JPEG; an AttributeError where it has none."""
    import torchvision.io

    decode = functools.partial(torchvision.io.decode_jpeg, mode=torchvision.io.ImageReadMode.RGB)
    return JpegDecoder(f"torchvision {torchvision.__version__}", decode)


def of_torchcodec() -> JpegDecoder:
    """Return TorchCodec's decoder of JPEG, of release 0.16 or newer; an ImportError where it is not installed."""
    torchcodec = importlib.import_module("torchcodec")
    decoders = importlib.import_module("torchcodec.decoders")
    decode = functools.partial(decoders.decode_jpeg, mode=decoders.ImageReadMode.RGB)
    return JpegDecoder(f"TorchCodec {torchcodec.__version__}", decode)
