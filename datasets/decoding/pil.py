"""Images of every format that is decoded, through PIL."""

import contextlib
import os
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from datasets.decoding.errors import too_many_pixels, unreadable
from datasets.decoding.memory import BYTES_OF_PIL, BYTES_OF_TWO_READS, Claim, no_claim
from datasets.decoding.options import EXIF, FULL, PLAIN, DecodeOptions
from datasets.decoding.orientation import orientation_of
from datasets.decoding.sixteen_bits import OTHER_BYTES, SURELY_FULL, colour_values, eight_bits, raw_mode
from utils.errors import UserError, no_memory
from utils.outside import open_plain

# The formats whose decoders of PIL see the bytes of a file; with JPEG come the JPEGs of many pictures (MPO) of phones.
# PIL knows dozens of others, some of them rarely looked after, and one that hands the file to another program.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_with_pil(path: str, claim: Claim = no_claim, options: DecodeOptions = PLAIN) -> Tensor:
    """Decode an image of `FORMATS`: (3, H, W) uint8. Raises UserError as `decode_rgb` does."""
    with faults_in_a_line(path, options.limit), pixel_limit(options.max_pixels):
        return torch.from_numpy(np.array(read_rgb(path, claim, options))).permute(2, 0, 1)


@contextlib.contextmanager
def faults_in_a_line(path: str, limit: int | None) -> Iterator[None]:
    """Raise UserError, `cannot read the image PATH: why`, for whatever PIL raises inside."""
    try:
        with warnings.catch_warnings():  # of files that PIL decodes nevertheless; images above its limit are refused
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        why = f"it is no image, or none of {', '.join(FORMATS)}" if os.path.getsize(path) else "it is empty"
        raise unreadable(path, why) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels(path, limit) from error
    except MemoryError as error:
        raise no_memory(f"the pixels of {path}", "--workers, or leave the image out") from error
    except Exception as error:  # a damaged file can raise nearly anything
        why = getattr(error, "strerror", None) or str(error).replace(path, "it") or type(error).__name__
        raise unreadable(path, " ".join(why.split())) from error


@contextlib.contextmanager
def pixel_limit(limit: int | None) -> Iterator[None]:
    """Let PIL take images up to another limit, where there is one: for processes in which one thread decodes."""
    before = Image.MAX_IMAGE_PIXELS
    if limit is not None:
        Image.MAX_IMAGE_PIXELS = limit
    try:
        yield
    finally:
        if limit is not None:
            Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Open an image of `FORMATS`, without decoding it; raises as PIL does, and UserError for no regular file."""
    with open_plain(path, "the image") as file, Image.open(file, formats=FORMATS) as image:
        yield image


def read_rgb(path: str, claim: Claim = no_claim, options: DecodeOptions = PLAIN) -> Image.Image:
    """Decode what training sees of an image file: its first frame as 8-bit RGB. Raises as `opened_rgb` does."""
    with open_image(path) as image:
        pixels = opened_rgb(path, image, claim, options)
        method = METHODS.get(orientation_of(image)) if options.orientation == EXIF else None
        return pixels if method is None else pixels.transpose(method)


def opened_rgb(path: str, image: Image.Image, claim: Claim, options: DecodeOptions) -> Image.Image:
    """Decode an opened image as it is stored: its first frame as 8-bit RGB.

    Raises ValueError for floating-point pixels, whose range is unknown, UserError for integers of unknown range, and
    what PIL does for a file that is damaged or no image.
    """
    claim(path, image.width * image.height, BYTES_OF_PIL)
    if image.mode.startswith("F"):
        raise ValueError(f"{path} has floating-point pixels")
    if image.mode.startswith("I"):
        return Image.fromarray(eight_bits(path, image, np.asarray(image), options.bits)).convert("RGB")
    if (raw := raw_mode(image)) in OTHER_BYTES:
        return read_deep_colours(path, image, raw, claim, options)
    return image.convert("RGB")


def read_deep_colours(path: str, image: Image.Image, raw: str, claim: Claim, options: DecodeOptions) -> Image.Image:
    """Decode an opened image of 16-bit colours, of which PIL keeps the upper bytes, to 8-bit RGB."""
    pixels = image.convert("RGB")
    if options.bits == FULL or (options.bits is None and int(np.asarray(pixels).max(initial=0)) >= SURELY_FULL >> 8):
        return pixels
    claim(path, image.width * image.height, BYTES_OF_TWO_READS)
    with open_image(path) as again:
        return Image.fromarray(eight_bits(path, image, colour_values(pixels, again, raw), options.bits))
