"""Files of images, looked at as training would decode them: which are missing, damaged, or of odd kinds."""

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.decode import decode_rgb
from datasets.decoding.errors import BeyondRange, TooLarge, UnknownRange, reason_alone
from datasets.decoding.memory import Claim, DecodingMemory
from datasets.decoding.options import EXIF, PLAIN, DecodeOptions
from datasets.decoding.orientation import UPRIGHT, orientation_of
from datasets.decoding.pil import open_image, opened_rgb, pixel_limit
from datasets.decoding.sixteen_bits import is_deep
from datasets.on_disk.listed_split import ListedSplit
from utils.errors import UserError
from utils.progress import show_progress
from utils.text import shown

SMALL = 224  # pixels of the usual crop
FIRST = 10  # files that are named
THREADS = 8  # PIL decodes, and a network disk answers, without holding the others up

MISSING, EMPTY, NO_IMAGE = "missing", "zero bytes", "not an image"
DAMAGED, TOO_LARGE = "damaged or of an unknown form", "too large"
UNKNOWN_RANGE = "16-bit, of which few are used: see --bits"
BEYOND_RANGE = "16-bit, beyond the bits that they are said to have: see --bits"
TURNED, REDUCED, DEEP = "stored turned", "large JPEG", "16-bit"
PALETTE = "palette, alpha or other colours"
SMALLER = f"smaller than {SMALL}"
# What training does with a file of each kind; None: it cannot use it.
KINDS: dict[str, str | None] = {
    MISSING: None,
    EMPTY: None,
    NO_IMAGE: None,
    DAMAGED: None,
    TOO_LARGE: None,
    UNKNOWN_RANGE: None,
    BEYOND_RANGE: None,
    TURNED: "as stored (--orientation exif turns them)",
    REDUCED: "at 1/2 or 1/4 of its sides",
    "grayscale": "as RGB",
    PALETTE: "as RGB",
    "CMYK": "as RGB",
    DEEP: "the upper 8 of the bits in use",
    "animated": "the first frame",
    SMALLER: "enlarged",
}


def use_of(kind: str, options: DecodeOptions) -> str:
    """Return in words what training does with a file of a kind, decoded with these options."""
    if kind == TURNED and options.orientation == EXIF:
        return "upright (--orientation ignore leaves them so)"
    if kind == DEEP and options.bits is not None:
        return f"the upper 8 of {options.bits} bits"
    return KINDS[kind] or "cannot use it"


def present(path: str) -> list[str]:
    """Return what is wrong with a file before it is opened."""
    try:
        status = os.stat(path)
    except OSError:
        return [MISSING]
    if stat.S_ISREG(status.st_mode):
        return [] if status.st_size else [EMPTY]
    return [MISSING]  # a folder, or no file that could be read to its end


def examine(
    path: str,
    memory: DecodingMemory | None = None,
    options: DecodeOptions = PLAIN,
    sides: list[int] | None = None,
) -> list[str]:
    """Decode an image as training does; return which of `KINDS` it is, none for a plain RGB one. The shorter side
    of one that PIL decodes, in pixels, is added to `sides`.

    The limit of pixels is PIL's: `check_files` sets it for all threads.
    """
    try:
        with (memory or DecodingMemory()).claims() as claim:
            try:
                kinds = examine_with_pil(path, claim, options, sides)
            except (Image.DecompressionBombError, Image.DecompressionBombWarning):
                decode_rgb(path, claim, options)  # a JPEG is decoded at a part of its size
                kinds = [REDUCED]
    except UnidentifiedImageError:
        return [NO_IMAGE]
    except TooLarge:
        return [TOO_LARGE]
    except UnknownRange:
        return [UNKNOWN_RANGE]
    except BeyondRange:
        return [BEYOND_RANGE]
    except Exception:  # a damaged file can raise nearly anything
        return [DAMAGED]
    return kinds


def examine_with_pil(path: str, claim: Claim, options: DecodeOptions, sides: list[int] | None = None) -> list[str]:
    """Decode an image of which PIL takes all pixels; return which of `KINDS` it is; add its shorter side to `sides`."""
    with open_image(path) as image:
        kinds = header_kinds(image)
        told_before = image.format == "TIFF"  # PIL turns it as it decodes; others may tell it behind their pixels
        orientation = orientation_of(image) if told_before else UPRIGHT
        opened_rgb(path, image, claim, options)
        orientation = orientation if told_before else orientation_of(image)
        if sides is not None:
            sides.append(min(image.size))
        return kinds if orientation == UPRIGHT else [*kinds, TURNED]


def header_kinds(image: Image.Image) -> list[str]:
    """Return which of `KINDS` an opened image is by its header."""
    kinds = []
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        kinds.append("grayscale")
    elif image.mode == "CMYK":
        kinds.append("CMYK")
    elif image.mode != "RGB":
        kinds.append(PALETTE)
    if is_deep(image):
        kinds.append(DEEP)
    if has_more_frames(image):
        kinds.append("animated")
    if min(image.size) < SMALL:
        kinds.append(SMALLER)
    return kinds


def has_more_frames(image: Image.Image) -> bool:
    """Tell whether an image has a second frame; one that is too damaged to be counted does no harm to the first."""
    try:
        return getattr(image, "n_frames", 1) > 1
    except Exception:  # PIL walks through all frames here, and a damaged one can raise nearly anything
        return True


def why_not(path: str, options: DecodeOptions) -> str:
    """Return why training cannot use an image, in its words; nothing where it can by now."""
    try:
        decode_rgb(path, options=options)
    except UserError as error:
        return reason_alone(path, str(error))
    return ""


def sort_files(
    files: ListedSplit, rows: np.ndarray, look: Callable[[str], list[str]], message: str
) -> dict[str, list[int]]:
    """Return the rows of each kind that `look` finds among those asked for."""
    found: dict[str, list[int]] = {}
    with ThreadPool(THREADS) as pool:
        answers = pool.imap(look, map(files.path, rows), chunksize=16)
        for row, kinds in zip(rows.tolist(), show_progress(answers, message, len(rows)), strict=True):
            for kind in kinds:
                found.setdefault(kind, []).append(row)
    return found


def summary_of_sides(sides: Sequence[int]) -> dict[str, int] | None:
    """Return the smallest, the median and the largest of the images' shorter sides in pixels, None without any."""
    if not sides:
        return None
    return {"smallest": min(sides), "median": int(np.median(sides)), "largest": max(sides)}


def suggested_size(median: int) -> tuple[int, int, str]:
    """Return the `--image_size`, the `--resize` and the `--stem` that suit images of a median shorter side in pixels.

    Of at least 224 pixels they are the usual ones. Smaller images are taken as they are, down to a multiple of 8: to
    enlarge them costs time and shows nothing more. Below 96 pixels the first layers of `--stem imagenet` would leave
    next to nothing of an image: they halve it twice before the first block.
    """
    if median >= SMALL:
        return SMALL, 256, "imagenet"
    size = max(median // 8 * 8, 8)
    return size, max(median, size), "cifar" if size < 96 else "imagenet"


def check_files(files: ListedSplit, decode: int | None, options: DecodeOptions = PLAIN) -> dict[str, Any]:
    """Look whether all `files` are there and decode a sample of `decode` (None: all) of those that are."""
    found, sides = sort_files(files, np.arange(len(files)), present, "looking for the files"), list[int]()
    there = np.setdiff1d(np.arange(len(files)), [row for rows in found.values() for row in rows])
    if decode is not None and decode < len(there):
        there = np.random.RandomState(0).choice(there, decode, replace=False)
    with warnings.catch_warnings(), pixel_limit(options.max_pixels):  # PIL warns of what it decodes, and of bombs
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        look = partial(examine, memory=DecodingMemory(THREADS), options=options, sides=sides)
        found |= sort_files(files, np.sort(there), look, "decoding")
    names = {kind: [shown(os.fsdecode(name)) for name in files.images[found[kind][:FIRST]]] for kind in found}
    why = {
        kind: {"why": f"of the first: {why_not(files.path(found[kind][0]), options)}"}
        for kind in (UNKNOWN_RANGE, BEYOND_RANGE)
        if kind in found
    }
    return {
        "root": str(files.root),
        "listed": len(files),
        "decoded": len(there),
        "options": vars(options),
        "shorter_sides": summary_of_sides(sides),
        "kinds": {
            kind: {"files": len(found[kind]), "first": names[kind], **why.get(kind, {})}
            for kind in KINDS
            if kind in found
        },
    }
