"""The header of a JPEG, and JPEGs too large to be decoded in full."""

import io
import struct
from dataclasses import dataclass, replace

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from datasets.decoding.errors import too_many_pixels
from datasets.decoding.memory import BYTES_OF_COEFFICIENTS, BYTES_OF_PIL, Claim
from datasets.decoding.options import SMALLEST_SCALE, DecodeOptions

START_OF_IMAGE = b"\xff\xd8"
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive; other frames are left to PIL
PROGRESSIVE = 0xC2
START_OF_SCAN, END_OF_IMAGE, APP1, APP15 = 0xDA, 0xD9, 0xE1, 0xEF
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class JpegHeader:
    """What stands before the first scan of a JPEG with a Huffman-coded frame.

    `exif` is the data of its EXIF segments behind one another, `exif_at` where in the file they begin, `xmp`
    the data of its last XMP segment: as PIL reads them. `scanned` are the components of its first scan, 0 without one.
    """

    frame: int
    precision: int
    height: int
    width: int
    components: int
    exif: bytes = b""
    exif_at: tuple[int, ...] = ()
    xmp: bytes = b""
    scanned: int = 0

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def is_plain(self) -> bool:
        """Whether it is of 8-bit gray or colour, which all decoders read alike."""
        return self.precision == 8 and self.components in (1, 3) and self.pixels > 0

    @property
    def keeps_coefficients(self) -> bool:
        """Whether libjpeg holds all of it at once, for it has more scans than one."""
        return self.frame == PROGRESSIVE or self.scanned != self.components

    def scale(self, limit: int | None) -> int:
        """Return 1, or by what number its sides are to be divided so that at most `limit` pixels are left."""
        scale = 1
        while limit is not None and self.reduced(scale) > limit and scale <= SMALLEST_SCALE:
            scale *= 2
        return scale

    def reduced(self, scale: int) -> int:
        """Return how many pixels there are at 1/scale of its sides."""
        return -(-self.height // scale) * -(-self.width // scale)


def read_header(data: bytes | bytearray) -> JpegHeader | None:
    """Return the header of a JPEG; None for any other data.

    Only the segments before the first scan are walked through; their order is free (ITU-T T.81, annex B).
    """
    if data[:2] != START_OF_IMAGE:
        return None
    found: JpegHeader | None = None
    exif, exif_at, xmp, scanned = b"", [], b"", 0
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, at + 1)
        if marker in HUFFMAN_FRAMES and found is None:
            found = JpegHeader(marker, *struct.unpack_from(">BHHB", data, at + 4))
        elif marker == APP1:
            segment = bytes(data[at + 4 : at + 2 + length])
            if segment.startswith(EXIF):
                exif += segment[len(EXIF) :] if exif else segment
                exif_at.append(at)
            elif segment.startswith(XMP):
                xmp = segment[len(XMP) :]
        elif marker in (START_OF_SCAN, END_OF_IMAGE):
            scanned = data[at + 4] if marker == START_OF_SCAN else 0
            break
        at += 1 if marker == 0xFF else 2 + length  # a marker may be preceded by any number of fill bytes
    return found and replace(found, exif=exif, exif_at=tuple(exif_at), xmp=xmp, scanned=scanned)


def without_exif(data: bytearray, header: JpegHeader) -> bytearray:
    """Return the data of a JPEG with its EXIF segments made unknown, for a decoder that would turn it unasked."""
    for at in header.exif_at:
        data[at + 1] = APP15
    return data


def decode_reduced(
    path: str, data: bytes | bytearray, header: JpegHeader, claim: Claim, options: DecodeOptions
) -> Image.Image:
    """Decode a JPEG above the limit at 1/2 or 1/4 of its sides, so that at most that many pixels are left.

    libjpeg makes each pixel of the coefficients of a block: near the mean of the 2 x 2 or 4 x 4 pixels that it stands
    for, not equal to it. Raises UserError for one that is too large even so, and what PIL does for a damaged file.
    """
    scale = header.scale(options.limit)
    if scale > SMALLEST_SCALE:
        raise too_many_pixels(path, options.limit and options.limit * SMALLEST_SCALE**2)
    kept = BYTES_OF_COEFFICIENTS * header.pixels if header.keeps_coefficients else 0
    reduced = header.reduced(scale)
    claim(path, reduced, BYTES_OF_PIL + -(-kept // reduced))
    image: ImageFile.ImageFile = JpegImageFile(io.BytesIO(data))  # without the limit of `Image.open`
    image.draft(None, (max(header.width // scale, 1), max(header.height // scale, 1)))
    return image.convert("RGB")
