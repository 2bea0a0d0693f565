"""An image file as the pixels that training sees, from the fastest decoder that is here, or one line why not.

Plain JPEG, which nearly all large images are, goes through the libjpeg-turbo of torchvision or TorchCodec; everything
else through PIL, as `read_rgb` says. All give the same pixels. EXIF orientation is ignored, as the field's loaders do.

Two faster ways were left out. libjpeg can decode at 1/2, 1/4 or 1/8 of the size (PIL's `draft`), but what it averages
are blocks, not the triangle of an antialiased resize, so the crops would show other pixels; and a random crop of an
image of ImageNet's size rarely leaves room for even 1/2. torchvision's PNG decoder is a tenth faster than PIL's, but
some damaged files end the process that reads them (a segmentation fault) instead of raising an error.
"""

import contextlib
import functools
import importlib
import io
import multiprocessing
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import PIL
import torch
import torchvision.io
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from utils.errors import UserError, no_memory
from utils.outside import open_plain

START_OF_IMAGE = b"\xff\xd8"
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive; other frames are left to PIL
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9

# The formats whose decoders of PIL see the bytes of a file; with JPEG come the JPEGs of many pictures (MPO) of phones.
# PIL knows dozens of others, some of them rarely looked after, and one that hands the file to another program.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
MEMORY_MIB = 1024  # what the images that are being decoded at one time may take, in all workers together
# Bytes a pixel: PIL's own image, its copy in RGB, and the array; the bare decoder has the array and rows of the file.
BYTES_OF_PIL, BYTES_OF_JPEG = 12, 6
UNIT = 1 << 23  # bytes that memory is counted in

# Says of a file how many pixels it has and how many bytes each will take, before it is decoded.
Claim = Callable[[str, int, int], None]


class DecodingMemory:
    """The memory that decoding takes, shared by `workers` processes or threads: who finds too little left, waits.

    An image that alone would take more than all of it is refused. Without other workers nobody waits.
    """

    def __init__(self, workers: int = 0, mib: float | None = None) -> None:
        self.units = max(int((MEMORY_MIB if mib is None else mib) * 2**20) // UNIT, 1)
        self._free = multiprocessing.Semaphore(self.units) if workers else None
        self._turn = multiprocessing.Lock() if workers else None

    @contextlib.contextmanager
    def claims(self) -> Iterator[Claim]:
        """Yield what an image is announced to; what it claimed is given back at the end."""
        held = 0

        def claim(path: str, pixels: int, bytes_of_pixel: int) -> None:
            nonlocal held
            needed = -(-pixels * bytes_of_pixel // UNIT)
            if needed > self.units:
                raise unreadable(
                    path,
                    f"its {pixels:,} pixels would take {needed * UNIT >> 20:,} MiB of memory, more than the "
                    f"{self.units * UNIT >> 20:,} MiB that decoding may take",
                )
            if self._free is not None and self._turn is not None:
                give_back()  # who waits holds nothing, or two could wait for one another
                with self._turn:
                    for _ in range(needed):
                        self._free.acquire()
                        held += 1

        def give_back() -> None:
            nonlocal held
            for _ in range(held):
                assert self._free is not None
                self._free.release()
            held = 0

        try:
            yield claim
        finally:
            give_back()


def no_claim(path: str, pixels: int, bytes_of_pixel: int) -> None:
    """Let an image take the memory that PIL's limit of pixels leaves to it."""


def decode_rgb(path: str, claim: Claim = no_claim) -> Tensor:
    """Return the image of a file, its first frame as 8-bit RGB: (3, H, W) uint8, channels last in memory.

    Raises UserError, `cannot read the image PATH: why`, for a file that is missing, empty, cut off or no image, no
    regular file, of another format than `FORMATS`, and for one whose header announces more pixels than PIL's limit
    (`PIL.Image.MAX_IMAGE_PIXELS`) or than there is memory for (`claim`), before decoding it.
    """
    decoder = jpeg_decoder()
    fast = None if decoder is None else decode_plain_jpeg(path, decoder.decode, claim)
    return decode_with_pil(path, claim) if fast is None else fast


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


@functools.cache
def jpeg_decoder() -> JpegDecoder | None:
    """Return torchvision's decoder, else TorchCodec's, where it works; None where there is none.

    They are equally fast. Some builds of torchvision are without libjpeg, and releases after 0.29 may drop it in favour
    of TorchCodec, which is not installed with it.
    """
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    sample = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    for find in (of_torchvision, of_torchcodec):
        try:
            decoder = find()
            decoder.decode(sample)
        except (ImportError, AttributeError, RuntimeError, OSError):
            continue
        return decoder
    return None


def of_torchvision() -> JpegDecoder:
    """Return torchvision's decoder of JPEG; an AttributeError where it has none."""
    decode = functools.partial(torchvision.io.decode_jpeg, mode=torchvision.io.ImageReadMode.RGB)
    return JpegDecoder(f"torchvision {torchvision.__version__}", decode)


def of_torchcodec() -> JpegDecoder:
    """Return TorchCodec's decoder of JPEG, of release 0.16 or newer; an ImportError where it is not installed."""
    torchcodec = importlib.import_module("torchcodec")
    decoders = importlib.import_module("torchcodec.decoders")
    decode = functools.partial(decoders.decode_jpeg, mode=decoders.ImageReadMode.RGB)
    return JpegDecoder(f"TorchCodec {torchcodec.__version__}", decode)


def unreadable(path: str, why: str) -> UserError:
    """Return the error that names an image file and what is wrong with it, whatever bytes its name is made of."""
    return UserError(f"cannot read the image {path.encode('utf-8', 'backslashreplace').decode()}: {why}")


def too_many_pixels() -> str:
    """Return what is wrong with an image above PIL's limit."""
    return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels, PIL's limit for files that can be trusted"


def decode_plain_jpeg(path: str, decoder: Callable[[Tensor], Tensor], claim: Claim = no_claim) -> Tensor | None:
    """Decode a JPEG of 8-bit gray or colour with `decoder`: (3, H, W) uint8; None where that is up to PIL.

    That includes what the decoder refuses, so that there is one judge of damaged files.
    """
    try:
        with open_plain(path, "the image") as file:
            data = bytearray(file.read(len(START_OF_IMAGE)))
            if data == START_OF_IMAGE:  # nothing else is read: a list may name a film
                data += file.read()
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    pixels = plain_jpeg_pixels(data)
    if pixels is None:
        return None
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise unreadable(path, too_many_pixels())
    claim(path, pixels, BYTES_OF_JPEG)
    try:
        return decoder(torch.frombuffer(data, dtype=torch.uint8))
    except RuntimeError:
        return None


def plain_jpeg_pixels(data: bytes | bytearray) -> int | None:
    """Return height x width of a JPEG with 8-bit gray or colour in a Huffman-coded frame; None for any other data.

    Only the segments before the first scan are walked through; their order is free (ITU-T T.81, annex B).
    """
    if data[:2] != START_OF_IMAGE:
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, at + 1)
        if marker in HUFFMAN_FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            return height * width or None if precision == 8 and components in (1, 3) else None
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            return None
        at += 1 if marker == 0xFF else 2 + length  # a marker may be preceded by any number of fill bytes
    return None


def decode_with_pil(path: str, claim: Claim = no_claim) -> Tensor:
    """Decode an image of `FORMATS`: (3, H, W) uint8. Raises UserError as `decode_rgb` does."""
    try:
        with warnings.catch_warnings():  # of files that PIL decodes nevertheless; images above its limit are refused
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return torch.from_numpy(np.array(read_rgb(path, claim))).permute(2, 0, 1)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        why = f"it is no image, or none of {', '.join(FORMATS)}" if os.path.getsize(path) else "it is empty"
        raise unreadable(path, why) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise unreadable(path, too_many_pixels()) from error
    except MemoryError as error:
        raise no_memory(f"the pixels of {path}", "--workers, or leave the image out") from error
    except Exception as error:  # a damaged file can raise nearly anything
        why = getattr(error, "strerror", None) or str(error).replace(path, "it") or type(error).__name__
        raise unreadable(path, " ".join(why.split())) from error


@contextlib.contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Open an image of `FORMATS`, without decoding it; raises as PIL does, and UserError for no regular file."""
    with open_plain(path, "the image") as file, Image.open(file, formats=FORMATS) as image:
        yield image


def read_rgb(path: str, claim: Claim = no_claim) -> Image.Image:
    """Decode what training sees of an image file: its first frame as 8-bit RGB.

    Of 16 bits the upper 8 are kept, where PIL's own conversion cuts everything above 255 off. Raises ValueError for
    floating-point pixels, whose range is unknown, and what PIL does for a file that is damaged or no image.
    """
    with open_image(path) as image:
        claim(path, image.width * image.height, BYTES_OF_PIL)
        if image.mode.startswith("F"):
            raise ValueError(f"{path} has floating-point pixels")
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
