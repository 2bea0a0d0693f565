"""Lists of iNaturalist 2018's size and form, without its images."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from datasets.long_tail import LongTailedData
from datasets.on_disk.listed_split import ListedSplit
from datasets.on_disk.text_lists import read_list
from settings.command_line import parse_command
from settings.fields import STAGE1
from stages.data import load_data
from utils.errors import UserError
from utils.files import make_folder, write_text

ROWS, CLASSES = 437_513, 8142
MAX_IMAGES, MIN_IMAGES, TEST_IMAGES = 1000, 2, 3  # of a class
GROUPS = (
    *("Plantae", "Insecta", "Aves", "Reptilia", "Mammalia", "Fungi", "Amphibia", "Mollusca", "Animalia"),
    *("Arachnida", "Actinopterygii", "Chromista", "Protozoa", "Bacteria"),
)
TEXT, JSON = "text", "json"
NAMES = {TEXT: ("iNaturalist18_train.txt", "iNaturalist18_val.txt"), JSON: ("train2018.json", "val2018.json")}


def class_sizes(rows: int, classes: int) -> np.ndarray:
    """Return sizes (K,) that sum to `rows`, from 1,000 (or what so few rows allow) down to 2, largest class first.

    log n_k falls with (k / (K - 1))^p; p is what makes the sum.
    """
    if classes < 2 or rows < 4 * classes:
        raise UserError(f"{classes} classes from {MAX_IMAGES} images to {MIN_IMAGES} need at least {4 * classes} rows")
    largest = min(MAX_IMAGES, 20 * rows // classes, rows - MIN_IMAGES * classes)
    place = np.arange(classes) / (classes - 1)

    def sizes(power: float) -> np.ndarray:
        return (largest * (MIN_IMAGES / largest) ** place**power + 1e-9).astype(np.int64)

    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if sizes(middle).sum() <= rows else (low, middle)
    chosen = sizes(low)
    left = np.arange(rows - chosen.sum())  # fewer than there are classes, about
    np.add.at(chosen, classes // 4 + left % max(classes // 2, 1), 1)
    return chosen


def write_lists(folder: Path, rows: int, classes: int) -> None:
    """Write the training and test lists into `folder`, as text and as JSON, each where its data set looks for it."""
    random = np.random.RandomState(0)
    train = random.permutation(np.repeat(np.arange(classes), class_sizes(rows, classes)))
    test = random.permutation(np.repeat(np.arange(classes), TEST_IMAGES))
    first = 0
    for part, labels in enumerate((train, test)):
        numbers = range(first, first + len(labels))
        pairs = [(image_path(number, label), label) for number, label in zip(numbers, labels.tolist(), strict=True)]
        for form in (TEXT, JSON):
            make_folder(home(folder, form))
        write_text(home(folder, TEXT) / NAMES[TEXT][part], "".join(f"{path} {label}\n" for path, label in pairs))
        write_text(home(folder, JSON) / NAMES[JSON][part], json.dumps(coco(pairs, first, classes)))
        first += len(labels)


def home(folder: Path, form: str) -> Path:
    """Return where the lists of a form lie."""
    return folder / form / "inaturalist2018"


def image_path(number: int, label: int) -> str:
    """Return a path like those of iNaturalist 2018."""
    name = hashlib.md5(str(number).encode()).hexdigest()
    return f"train_val2018/{GROUPS[label % len(GROUPS)]}/{label}/{name}.jpg"


def coco(pairs: list[tuple[str, int]], first: int, classes: int) -> dict[str, Any]:
    """Return a list in COCO's form, with the entries that iNaturalist's has."""
    extra = {"license": 3, "rights_holder": "a person on the web", "height": 600, "width": 800}
    return {
        "info": {"year": 2018},
        "images": [{**extra, "id": first + row, "file_name": path} for row, (path, _) in enumerate(pairs)],
        "annotations": [
            {"id": first + row, "image_id": first + row, "category_id": label} for row, (_, label) in enumerate(pairs)
        ],
        "categories": [{"id": label, "name": str(label), "supercategory": ""} for label in range(classes)],
    }


def data_flags(folder: Path, form: str, classes: int) -> list[str]:
    """Return the flags of main_stage1.py for the lists; those of another number of classes are anyone's lists."""
    names = ["--identity", "names"]  # there are no images whose content could be read
    if classes == CLASSES:
        return ["--dataset", "inaturalist2018", "--data_dir", str(folder / form), *names]
    train, test = (str(home(folder, form) / name) for name in NAMES[form])
    flags = {"--dataset": "list", "--train_list": train, "--test_list": test, "--image_root": str(home(folder, form))}
    return [*(word for pair in flags.items() for word in pair), *names]


def load(folder: Path, form: str, classes: int) -> LongTailedData:
    """Load the data set as main_stage1.py does."""
    command = parse_command(STAGE1, "", data_flags(folder, form, classes))
    return load_data(command.settings, command.settings.seed)


def training_list(folder: Path) -> ListedSplit:
    return read_list(home(folder, TEXT) / NAMES[TEXT][0], folder)
