"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), long-tailed, read from torchvision's extracted layout.

The content is checked, not the files' md5: mirrors reorder images inside a class and are as good.
"""

import contextlib
import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets.long_tail import Augmentation, BalancedData, LongTailedData, Profile, Split, make_long_tailed
from datasets.numpy_pickles import Array, PlainType, from_buffer, latin1
from utils.errors import UserError
from utils.outside import read_plain
from utils.text import tell

# The released code pads raw pixels with zeros and normalises with CIFAR-10's constants on both data sets.
AUGMENTATION = Augmentation(padding=4, mirror=True, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


@dataclass(frozen=True)
class Layout:
    """File names and keys of one of the two data sets, and what they must hold."""

    folder: str
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    label_key: str
    names_key: str
    num_classes: int
    train_per_class: int
    test_per_class: int
    download: str  # the class of torchvision.datasets that downloads it


CIFAR10 = Layout(
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_file="test_batch",
    meta_file="batches.meta",
    label_key="labels",
    names_key="label_names",
    num_classes=10,
    train_per_class=5000,
    test_per_class=1000,
    download="CIFAR10",
)
CIFAR100 = Layout(
    folder="cifar-100-python",
    train_files=("train",),
    test_file="test",
    meta_file="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
    num_classes=100,
    train_per_class=500,
    test_per_class=100,
    download="CIFAR100",
)


class NotCalled:
    """numpy's ndarray, which pickles name and do not call."""

    def __new__(cls, *_: object) -> Any:
        """Refuse to make one."""
        raise pickle.UnpicklingError("it makes a numpy array as numpy does not write it")


class PlainUnpickler(pickle.Unpickler):
    """Unpickles plain values and, as `Array`s, numpy's arrays, by stand-ins of ours (`datasets.numpy_pickles`).

    Any other global, which is how a pickle runs code, is refused.
    """

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("_codecs", "encode"): latin1,
        ("numpy", "dtype"): PlainType,
        ("numpy", "ndarray"): NotCalled,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is neither a numpy array nor a plain value"
            )
        return self.ALLOWED[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """Read one of the pickled dictionaries without running what a stranger put into it."""
    try:
        content = PlainUnpickler(io.BytesIO(read_plain(path)), encoding="latin1").load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path} is damaged or not a CIFAR file ({error}); put an intact copy there") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not the dictionary of a CIFAR file")
    return {key: value.array if isinstance(value, Array) else value for key, value in content.items()}


def read_split(paths: list[Path], layout: Layout, per_class: int) -> Split:
    """Read images and labels and check shapes, dtype and the number of images of every class."""
    images, labels = [], []
    for path in paths:
        content = read_pickle(path)
        data, label_list = content.get("data"), content.get(layout.label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise UserError(
                f"{path}: 'data' must be a uint8 array of 3072 columns; this is not a file of {layout.folder}"
            )
        if not isinstance(label_list, list) or len(label_list) != len(data):
            raise UserError(f"{path}: '{layout.label_key}' must be a list of {len(data)} labels, one an image")
        if not all(isinstance(label, int) and 0 <= label < layout.num_classes for label in label_list):
            raise UserError(
                f"{path}: '{layout.label_key}' holds something else than labels 0 to {layout.num_classes - 1}"
            )
        images.append(data)
        labels += label_list
    label_array = np.array(labels, dtype=np.int64)
    counts = np.bincount(label_array, minlength=layout.num_classes)
    if (counts != per_class).any():
        wrong = int(np.flatnonzero(counts != per_class)[0])
        raise UserError(
            f"{paths[0].parent}: class {wrong} has {counts[wrong]} images in {paths[0].name}, not {per_class}"
        )
    pixels = np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(pixels), label_array, np.arange(len(label_array)))


def find_files(root: Path, layout: Layout) -> Path:
    """Return the folder of the files below `root`, downloaded through torchvision where none of them is there."""
    folder = root / layout.folder
    names = [*layout.train_files, layout.test_file, layout.meta_file]
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if not missing:
        return folder
    if len(missing) < len(names):
        raise UserError(f"{folder} lacks {', '.join(missing)}; put the missing files there or remove the folder")
    tell(f"{folder} is not there; downloading the data set through torchvision")
    from http.client import HTTPException

    import torchvision.datasets  # seconds, for a download alone

    made = [path for path in (root, *root.parents) if not path.exists()]  # by the download, which leaves them
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(torchvision.datasets, layout.download)(str(root), download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        for path in made:
            with contextlib.suppress(OSError):  # something is in it, or it was not made
                path.rmdir()
        raise UserError(
            f"the data set is not in {folder} and the download failed ({error}); put {', '.join(names)} there (the "
            "official python version, extracted), name another folder with --data_dir, or use --dataset digits, which "
            "needs no files"
        ) from error
    return folder


def load_cifar(layout: Layout, name: str, data_dir: str, profile: Profile) -> LongTailedData:
    """Load CIFAR from `<data_dir>/<name>/<layout.folder>` and cut it down to its long-tailed profile."""
    counts = profile.counts(layout.train_per_class, layout.num_classes)
    folder = find_files(Path(data_dir) / name, layout)
    names = read_pickle(folder / layout.meta_file).get(layout.names_key)
    if not isinstance(names, list) or len(names) != layout.num_classes:
        raise UserError(f"{folder / layout.meta_file}: '{layout.names_key}' must list {layout.num_classes} names")
    train = read_split([folder / file for file in layout.train_files], layout, layout.train_per_class)
    test = read_split([folder / layout.test_file], layout, layout.test_per_class)
    class_names = [str(class_name) for class_name in names]
    return make_long_tailed(BalancedData(name, train, test, class_names, AUGMENTATION), profile, counts)
