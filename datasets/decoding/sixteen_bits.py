"""Pixels of 16 bits become 8: of how many bits are in use, the upper 8.

Cameras and scanners store 10, 12 or 14 bits in files of 16, from 0 upwards; the upper 8 bits of such pixels are almost
black. A rule by the largest value of each file would make equal light unequal from file to file. So the number of bits
comes from `--bits` or from what the file declares; where neither is there, pixels that reach the upper quarter of the
range have 16, and others are refused with the flag that says what they are.

What declares it: TIFF's BitsPerSample, the largest value of a PGM or PPM (PIL scales by it), and PNG's sBIT chunk. By
the specification of PNG the samples are scaled to 16 bits whatever sBIT says; writers that leave them unscaled are
told by values that no scaling makes. TIFF's MaxSampleValue is not looked at: it is the largest value of one image.
"""

import struct

import numpy as np
from PIL import Image

from datasets.decoding.errors import BeyondRange, UnknownRange, unreadable
from datasets.decoding.options import FULL
from utils.outside import open_plain

SURELY_FULL = 1 << 14  # no format has 15 bits: a pixel of this value or more is of 16
USUAL = (8, 10, 12, 14)  # bits of cameras and scanners
BITS_PER_SAMPLE = 258  # TIFF 6.0, section 8
PNG_HEADER = 8  # bytes before the first chunk
# The raw modes in which PIL's decoder keeps the upper bytes of 16-bit colours, with those that keep the lower ones.
OTHER_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B",  # the machine's own order, which is little-endian wherever this project is tested
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B",
}


def raw_mode(image: Image.Image) -> str:
    """Return how the pixels of an opened image lie in its file, in PIL's words; "" where that is not known."""
    for tile in getattr(image, "tile", []):
        arguments = tile[3]
        return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    return ""


def is_deep(image: Image.Image) -> bool:
    """Tell whether an opened image that is not decoded yet has samples of more than 8 bits."""
    return image.mode.startswith("I") or raw_mode(image).endswith((";16B", ";16L", ";16N"))


def eight_bits(path: str, image: Image.Image, values: np.ndarray, given: int | None) -> np.ndarray:
    """Return integers (H, W) or (H, W, 3) of an opened image as uint8; `given` is `--bits`.

    Raises UnknownRange where it is not known how many bits are in use, BeyondRange for values that do not fit.
    """
    highest = int(values.max(initial=0))
    if highest >= 1 << FULL:
        raise unreadable(path, f"its pixels are integers up to {highest:,}, of an unknown range beyond 16 bits")
    bits = bits_in_use(path, image, values, highest, given)
    if highest >= 1 << bits:
        why = f"its pixels go up to {highest:,}, beyond the {bits} bits that they are said to have"
        raise unreadable(path, why, BeyondRange)
    return (values.clip(0, None) >> (bits - 8)).astype(np.uint8)


def bits_in_use(path: str, image: Image.Image, values: np.ndarray, highest: int, given: int | None) -> int:
    """Return of how many bits, 8 to 16, the values of an image are; raises UnknownRange where that is not known."""
    if image.format == "PPM":
        return FULL  # PIL has scaled them
    if given is not None:
        return given
    declared = declared_bits(path, image)
    if 8 <= declared < FULL and image.format == "PNG" and (highest >= 1 << declared or is_scaled(values, declared)):
        return FULL
    if 8 <= declared <= FULL:
        return declared
    if highest >= SURELY_FULL or highest == 0:
        return FULL
    guess = next(bits for bits in USUAL if highest < 1 << bits)
    raise unreadable(
        path,
        f"its 16-bit pixels go up to {highest:,} alone, and nothing says how many bits are in use: give --bits {guess} "
        "or what it is, --bits 16 if it is that dark",
        UnknownRange,
    )


def declared_bits(path: str, image: Image.Image) -> int:
    """Return how many bits a file says are in use, 0 where it does not: 16 of TIFF and PNG are the usual container."""
    if image.format == "TIFF":
        [bits, *_] = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (0,))
        return int(bits) if bits < FULL else 0
    return significant_bits(path) if image.format == "PNG" else 0


def significant_bits(path: str) -> int:
    """Return the largest number in the sBIT chunk of a PNG, which stands before its pixels; 0 without one."""
    with open_plain(path, "the image") as file:
        file.seek(PNG_HEADER)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"sBIT":
                bits = file.read(min(length, 4))
                return max(bits[:1] if len(bits) < 3 else bits[:3], default=0)  # not that of alpha
            if name == b"IDAT":
                break
            file.seek(length + 4, 1)
    return 0


def is_scaled(values: np.ndarray, bits: int) -> bool:
    """Tell whether 16-bit values are those of fewer bits shifted up, with zeros or their own upper bits below."""
    low = FULL - bits
    below = values & ((1 << low) - 1)
    return bool((below == 0).all() or (below == values >> bits).all())


def colour_values(image: Image.Image, again: Image.Image, raw: str) -> np.ndarray:
    """Return the 16-bit colours (H, W, 3) uint16 of an image that PIL has decoded to their upper bytes.

    `again` is the same file, opened and not decoded; `raw` is its raw mode, one of `OTHER_BYTES`.
    """
    codec, extents, offset, arguments = again.tile[0]  # type: ignore[attr-defined]
    other = OTHER_BYTES[raw]
    arguments = (other, *arguments[1:]) if isinstance(arguments, tuple) else other
    again.tile = [type(again.tile[0])(codec, extents, offset, arguments)]  # type: ignore[attr-defined]
    upper, lower = (np.asarray(part.convert("RGB")) for part in (image, again))
    return upper.astype(np.uint16) << 8 | lower
