"""The orientation in which a photo is to be shown: read as PIL reads it, applied to pixels.

The measure is PIL's `ImageOps.exif_transpose`. It reads the tag Orientation (0x0112) of the first directory of the EXIF
data or, where that lacks it, `tiff:Orientation` of XMP: in JPEG's APP1 segments, PNG's eXIf chunk (and the older "Raw
profile type exif"), WebP's chunks. Of TIFF it is a tag of the image itself, which PIL applies unasked. A value other
than 1 to 8, and data too damaged to be read, leave an image as it is stored.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

UPRIGHT = 1
# How the pixels (H, W, 3) are turned, by the value of the tag (EXIF 2.32, section 4.6.5); 5 to 8 swap the sides.
TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda pixels: pixels.flip(1),
    3: lambda pixels: pixels.flip(0, 1),
    4: lambda pixels: pixels.flip(0),
    5: lambda pixels: transposed(pixels),
    6: lambda pixels: transposed(pixels.flip(0)),
    7: lambda pixels: transposed(pixels.flip(0, 1)),
    8: lambda pixels: transposed(pixels.flip(1)),
}


def transposed(pixels: Tensor) -> Tensor:
    """Return pixels (H, W, 3) as (W, H, 3): channel by channel, which is the fastest way that was found on a CPU."""
    height, width, channels = pixels.shape
    array, found = pixels.numpy(), np.empty((width, height, channels), dtype=np.uint8)
    for channel in range(channels):
        found[..., channel] = array[..., channel].T
    return torch.from_numpy(found)


def turned(pixels: Tensor, orientation: int) -> Tensor:
    """Return pixels (3, H, W) as the orientation, 1 to 8, shows them, channels last in memory."""
    if orientation not in TURNS:
        return pixels
    return TURNS[orientation](pixels.permute(1, 2, 0)).permute(2, 0, 1)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, of an image of PIL; PNG tells it when it is decoded, TIFF until then."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return int(value) if value in TURNS else UPRIGHT
    except Exception:  # damaged EXIF data can raise nearly anything
        return UPRIGHT


def orientation_in(exif: bytes, xmp: bytes) -> int:
    """Return the orientation that the EXIF and XMP data of a JPEG name, as PIL would of the file."""
    if not exif and not xmp:
        return UPRIGHT
    image = Image.Image()
    image.info = {name: block for name, block in (("exif", exif), ("xmp", xmp)) if block}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return orientation_of(image)
