"""CIFAR-100 as files on disk, in each of the forms that images come in.

    python -m benchmarks.robustness.image_trees cifar_trees
    python -m benchmarks.robustness.image_trees cifar_trees --imb_ratio 20 --test 20

Writes into the folder:

- `folder/{train,val,test}/<class>/*`, JPEG and PNG by turns, for `--dataset folder`;
- `list/{train,val,test}.txt` and the same as COCO's JSON, with images in `list/images`, for `--dataset list`;
- `data/imagenet_lt/ImageNet_LT_{train,val,test}.txt` with 1000 classes, each a tenth of one of CIFAR's, for
  `--dataset imagenet_lt`: so that the layout can be tried where no ImageNet is.

There is no ImageNet in a test, but the way from files to a report is the same for images of 32 pixels. Classes are made
long-tailed, so that the files have an imbalance of their own. `benchmarks.robustness.layouts` trains on them.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.command import make_own_parser
from datasets import load_dataset
from datasets.long_tail import LongTailedData, Profile, Split
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder, write_json, write_text

QUALITY = 95
SUBCLASSES = 10  # that a class is cut into, where a layout has 1000


@dataclass(frozen=True)
class Entry:
    """An image to be written: its path below the folder of images, its label, its pixels (H, W, 3) uint8."""

    path: str
    label: int
    pixels: np.ndarray


def entries(split: Split, part: str, class_names: Sequence[str]) -> list[Entry]:
    """Return the images of a split as `<part>/<class>/<index>.jpg`, every second one as PNG, in a folder's order."""
    rows = zip(split.images, split.labels.tolist(), split.ids.tolist(), strict=True)
    found = [
        Entry(f"{part}/{class_names[label]}/{number:05d}.{'png' if number % 2 else 'jpg'}", label, pixels)
        for pixels, label, number in rows
    ]
    return sorted(found, key=lambda entry: (entry.label, entry.path))


def write_images(folder: Path, images: Iterable[Entry]) -> None:
    """Write images below a folder, JPEG or PNG as their names say."""
    for image in images:
        path = folder / image.path
        make_folder(path.parent)
        try:
            Image.fromarray(image.pixels).save(path, quality=QUALITY)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_list(path: Path, images: Iterable[Entry]) -> None:
    """Write a list of `path label` lines."""
    write_text(path, "".join(f"{image.path} {image.label}\n" for image in images))


def write_coco(path: Path, images: Sequence[Entry], class_names: Sequence[str]) -> None:
    """Write a list in COCO's form, as iNaturalist has it."""
    content = {
        "images": [{"id": number, "file_name": image.path} for number, image in enumerate(images)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": image.label} for number, image in enumerate(images)
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names)],
    }
    write_json(path, content)


def as_thousand(images: Sequence[Entry]) -> list[Entry]:
    """Cut each class into `SUBCLASSES`: its images are dealt out in turn, label 10 c + j."""
    seen: dict[int, int] = {}
    result = []
    for image in images:
        turn = seen.get(image.label, 0)
        seen[image.label] = turn + 1
        result.append(Entry(image.path, SUBCLASSES * image.label + turn % SUBCLASSES, image.pixels))
    return result


def cut(split: Split, most: int | None) -> Split:
    """Return the first `most` images of every class; all of them for None."""
    if most is None:
        return split
    chosen = [np.flatnonzero(split.labels == label)[:most] for label in np.unique(split.labels)]
    return split.take(np.sort(np.concatenate(chosen)))


def write_trees(data: LongTailedData, folder: Path) -> None:
    """Write a data set that is held in memory in all forms; the held-out images become `val`."""
    names = data.class_names
    parts = {"train": data.train, "val": data.holdout, "test": data.test}
    images = {part: entries(split, part, names) for part, split in parts.items() if len(split)}
    for part, of_part in images.items():
        write_images(folder / "folder", of_part)
        write_images(folder / "list" / "images", of_part)
        write_list(folder / "list" / f"{part}.txt", of_part)
        write_coco(folder / "list" / f"{part}.json", of_part, names)
    layout = folder / "data" / "imagenet_lt"
    for part, of_part in images.items():
        write_images(layout, of_part)
        write_list(layout / f"ImageNet_LT_{part}.txt", as_thousand(of_part))


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_own_parser("robustness.image_trees", __doc__, results=False, words="FOLDER [flags]")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where the trees go")
    parser.add_argument("--data_dir", default="data", help="folder of the data sets [data]")
    parser.add_argument("--imb_ratio", type=float, default=20.0, help="imbalance factor of the training images [20]")
    parser.add_argument("--test", type=int, help="test images a class [all 100]")
    parser.add_argument("--holdout", type=float, default=0.1, help="share of each class that becomes val [0.1]")
    own = parser.parse_args(argv)
    if os.path.exists(own.folder) and not own.folder.is_dir():
        raise UserError(f"{own.folder} is no folder; name a new one")
    if os.path.exists(own.folder) and any(own.folder.iterdir()):
        raise UserError(f"{own.folder} is not empty; name a new folder")
    data = load_dataset("cifar100", Profile(own.imb_ratio, holdout=own.holdout), own.data_dir)
    data = replace(data, test=cut(data.test, own.test))
    write_trees(data, own.folder)
    counts = f"{len(data.train)} training, {len(data.holdout)} held-out, {len(data.test)} test images"
    print(f"{counts} in {own.folder}")


if __name__ == "__main__":
    run_command(main)
