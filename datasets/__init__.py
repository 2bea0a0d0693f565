"""Data sets, one file each, and the one function that loads them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from datasets.cifar import CIFAR10, CIFAR100, load_cifar
from datasets.digits import load_digits
from datasets.long_tail import LongTailedData, Profile
from datasets.namesake import missing_name, refuse_other_calls
from datasets.on_disk.folder_splits import load_folder
from datasets.on_disk.layouts import LAYOUTS, LIST_FLAGS, NO_FILES, ListFiles
from datasets.on_disk.load import load_listed
from utils.errors import UserError

__all__ = ["DATASETS", "IN_MEMORY", "LIST_FLAGS", "ON_DISK", "ListFiles", "LongTailedData", "Profile", "load_dataset"]

# Small balanced images that are held in memory and made long-tailed. Each takes the folder of the data sets and a
# profile.
IN_MEMORY: dict[str, Callable[[str, Profile], LongTailedData]] = {
    "cifar100": partial(load_cifar, CIFAR100, "cifar100"),
    "cifar10": partial(load_cifar, CIFAR10, "cifar10"),
    "digits": lambda data_dir, profile: load_digits(profile),  # embedded in scikit-learn: no folder
}
# Images on disk: lists in the layouts of the field or in anyone's own, and a folder a class.
ON_DISK = [*LAYOUTS, "folder"]
DATASETS = [*IN_MEMORY, *ON_DISK]


@refuse_other_calls
def load_dataset(name: str, profile: Profile, data_dir: str = "data", files: ListFiles = NO_FILES) -> LongTailedData:
    """Load the data set `name`, made long-tailed as `profile` says, from its folder below `data_dir`.

    `files` names lists and a folder of images in the place of a layout's own. Images in memory are (N, H, W, 3) uint8,
    those on disk their paths; labels are (N,) int64.
    Raises UserError for an unknown name, a profile that cannot be had, missing or wrong files, and a call that was
    meant for Hugging Face's function of that name.
    """
    if profile.test_share > 0 and name != "folder":
        raise UserError(f"--test_share splits the images of --dataset folder, not those of '{name}'; leave it out")
    if name in LAYOUTS:
        return load_listed(LAYOUTS[name], data_dir, profile, files)
    if files != NO_FILES:
        given = ", ".join(files.as_flags())
        raise UserError(f"{given}: lists are for {', '.join(LAYOUTS)}, not for '{name}'; leave it out")
    if name == "folder":
        return load_folder(data_dir, profile)
    if name not in IN_MEMORY:
        raise UserError(f"unknown data set '{name}'; known: {', '.join(DATASETS)}")
    return IN_MEMORY[name](data_dir, profile)


if not TYPE_CHECKING:  # a type checker would take every name for one of this package

    def __getattr__(name: str) -> NoReturn:
        missing_name(name)
