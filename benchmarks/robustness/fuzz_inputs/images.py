"""Image files of every format that is read."""

import contextlib
import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

import tools.image_files
from benchmarks.robustness.fuzz_inputs.cases import ACCEPTED, Material, refusal, time_limit
from benchmarks.robustness.fuzz_inputs.damage import damage, damages
from datasets.decode import decode_rgb

PICTURES = {
    "JPEG": {},
    "progressive JPEG": {"progressive": True},
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {},
    "PPM": {},
}
MODES = ["RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F", "LA"]
NAMES = ["a.jpg", "a.png", "a.gif", "\x1b[31m.jpg", "a\nb.jpg", "\udcff.jpg"]


def image_bytes(form: str, mode: str) -> bytes:
    """Return a small picture in a format and a mode; in RGB where the format has no such mode."""
    pixels = Image.fromarray(np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3))
    for wanted in (mode, "RGB"):
        file = io.BytesIO()
        with contextlib.suppress(OSError, ValueError, KeyError):
            pixels.convert(wanted).save(file, form.removeprefix("progressive "), **PICTURES.get(form, {}))
            return file.getvalue()
    raise AssertionError(form)


# What PIL could read as well, and is not to be given.
OTHERS = ["TGA", "PCX", "SGI", "DDS", "ICO", "EPS", "PDF"]


def image_cases(material: Material) -> SearchStrategy[Any]:
    """Draw a format, a mode, a file's name (which may be another format's), sizes in the header, damage to bytes."""
    sizes = st.none() | st.sampled_from([0, 1, 65535, 30000, 2**31 - 1])
    return st.tuples(
        st.sampled_from([*PICTURES, *PICTURES, *OTHERS]),
        st.sampled_from(MODES),
        st.sampled_from(NAMES),
        sizes,
        st.just([]) | damages(),
    )


def with_size(data: bytes, size: int) -> bytes:
    """Return a picture whose header says another size, for the formats where that is easy to find."""
    if data[:2] == b"\xff\xd8":
        frame = re.search(rb"\xff[\xc0\xc2]..\x08", data, re.DOTALL)
        if frame:
            return data[: frame.end()] + struct.pack(">HH", size % 65536, size % 65536) + data[frame.end() + 4 :]
    if data[:4] == b"\x89PNG":
        header = data[12:16] + struct.pack(">II", size, size) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if data[:3] == b"GIF":
        return data[:6] + struct.pack("<HH", size % 65536, size % 65536) + data[10:]
    if data[:2] == b"BM":
        return data[:18] + struct.pack("<ii", size, size) + data[26:]
    return data


def try_image(material: Material, folder: Path, case: Any) -> str:
    """Decode an image: the pixels are of the size that the header says, and the check of data sets judges alike."""
    form, mode, name, size, broken = case
    data = image_bytes(form, mode)
    data = damage(data if size is None else with_size(data, size), broken)
    path = os.path.join(folder, name)
    Path(path).write_bytes(data)
    printable = "" if not name.isprintable() else path
    outcome, pixels = refusal(lambda: decode_rgb(path), printable)
    with time_limit(), contextlib.redirect_stderr(io.StringIO()):
        kinds = tools.image_files.present(path) or tools.image_files.examine(path)
    usable = all(tools.image_files.KINDS[kind] for kind in kinds)
    assert usable == (outcome == ACCEPTED), (kinds, outcome)
    assert form in PICTURES or broken or outcome != ACCEPTED
    if outcome == ACCEPTED:
        assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3
        with Image.open(path) as image:
            assert (image.height, image.width) == tuple(pixels.shape[1:])
    assert Path(path).read_bytes() == data
    return outcome
