"""Pictures whose pixels say their class, in folders and lists."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.files import make_folder

SIDE = 20
COLOURS = {"azurite": (30, 50, 220), "calcite": (235, 225, 150), "malachite": (20, 140, 60)}
NAMES = sorted(COLOURS)
TRAIN = {"azurite": 12, "calcite": 8, "malachite": 4}
TEST = dict.fromkeys(NAMES, 2)
ORIENTATION = 0x0112  # EXIF's tag
# How the pixels must be transposed to be stored under an orientation, so that a viewer sees the picture as it was.
STORED_AS = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 5: Image.Transpose.TRANSPOSE}
# Small commands: a network that learns these pictures in a second, and the check.
NETWORK = ("--network", "resnet8", "--stem", "cifar", "--width", "4", "--image_size", "16", "--resize", "16")
SOLO = ("--workers", "0", "--out", "{out}")
TRAINED = (*NETWORK, "--epochs", "20", "--batch_size", "6", "--lr", "0.02", "--augment", "crop", *SOLO)


def folder_at(path: Path) -> Path:
    """Make a folder, with those above it, and return it."""
    make_folder(path)
    return path


def noisy(pixels: np.ndarray, seed: int) -> Image.Image:
    """Return an image of pixels (height, width, 3) with noise that makes it one of its kind."""
    noise = np.random.default_rng(seed).normal(0, 8, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def colour(name: str, seed: int) -> Image.Image:
    """Return a picture of a mineral: its colour."""
    return noisy(np.full((SIDE, SIDE, 3), COLOURS[name], float), seed)


def stripes(upright: bool, seed: int) -> Image.Image:
    """Return stripes, which a quarter turn makes the other class."""
    lines = np.where(np.arange(SIDE) // 2 % 2, 220.0, 40.0)
    grey = np.broadcast_to(lines if upright else lines[:, None], (SIDE, SIDE))
    return noisy(np.repeat(grey[..., None], 3, axis=2), seed)


def saw(rising: bool, seed: int) -> Image.Image:
    """Return a saw that rises to the right or to the left, which a mirror makes the other class."""
    grey = np.broadcast_to(40.0 + 30 * (np.arange(SIDE) % 7), (SIDE, SIDE))
    return noisy(np.repeat((grey if rising else grey[:, ::-1])[..., None], 3, axis=2), seed)


def save_turned(image: Image.Image, path: Path, orientation: int) -> None:
    """Save a picture as a phone stores it: turned, with the tag that says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.transpose(STORED_AS[orientation]).save(path, exif=exif, quality=95)


def tree(folder: Path, train: str = "train", test: str | None = "test", end: str = ".png") -> None:
    """Write minerals as class folders of one split or two, under the names of these."""
    for number, (split, sizes) in enumerate(((train, TRAIN), (test, TEST))):
        if split is not None:
            for name, size in sizes.items():
                fill(folder / split / name, name, size, 1000 * number, end)


def fill(folder: Path, name: str, size: int, seed: int = 0, end: str = ".png") -> None:
    """Write `size` pictures of a mineral into a folder."""
    make_folder(folder)
    for i in range(size):
        colour(name, seed + 100 * NAMES.index(name) + i).save(folder / f"{name[:2]}{i}{end}")


def rows(folder: Path, split: str, end: str = ".png") -> list[tuple[str, str]]:
    """Return the (path below `folder`, class) of each image of a split, in order."""
    found = sorted((folder / split).rglob(f"*{end}"))
    return [(path.relative_to(folder).as_posix(), path.parent.name) for path in found]


def write_lists(folder: Path, lines: Sequence[str] = ("{path} {number}",), name: str = "{split}.txt") -> None:
    """Write the minerals' `images` and a list a split beside them: a line for each image after the header lines.

    The last of `lines` is filled with `path`, `name`, `number` (0 to K-1) and `stem` (the path without its ending).
    """
    images = folder / "images"
    tree(images)
    for split in ("train", "test"):
        text = [line + "\n" for line in lines[:-1]]
        for path, mineral in rows(images, split):
            filled = {"path": path, "name": mineral, "number": NAMES.index(mineral), "stem": path.removesuffix(".png")}
            filled |= {"split": split, "place": images.resolve()}
            text.append(lines[-1].format(**filled, **labels(mineral)) + "\n")
        (folder / name.format(split=split)).write_text("".join(text), encoding="utf-8")


def labels(name: str) -> dict[str, object]:
    """Return other ways to write a class: from 1, as ids of a catalogue, as hot columns."""
    place = NAMES.index(name)
    hot = [str(int(place == other)) for other in range(len(NAMES))]
    return {"from_one": place + 1, "catalogue": (7, 40, 2005)[place], "hot": ",".join(hot), "padded": f"{place:03d}"}


def save_deep(path: Path, grey: np.ndarray, significant: int | None = None) -> None:
    """Save values (height, width) as PNG of 16 bits, with an sBIT chunk where it says how many are significant."""
    Image.fromarray(grey.astype(np.uint16)).save(path)
    if significant is None:
        return
    content = path.read_bytes()
    chunk = b"sBIT" + bytes([significant])
    at = content.index(b"IDAT") - 4
    added = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:at] + added + content[at:])
