"""Data sets, one file each, and the one function that loads them."""

from collections.abc import Callable
from functools import partial

from datasets.cifar import CIFAR10, CIFAR100, load_cifar
from datasets.digits import load_digits
from datasets.long_tail import LongTailedData, Profile
from utils.errors import UserError

# Each takes the folder of the data sets and a profile.
DATASETS: dict[str, Callable[[str, Profile], LongTailedData]] = {
    "cifar100": partial(load_cifar, CIFAR100, "cifar100"),
    "cifar10": partial(load_cifar, CIFAR10, "cifar10"),
    "digits": lambda data_dir, profile: load_digits(profile),  # embedded in scikit-learn: no folder
}


def load_dataset(name: str, profile: Profile, data_dir: str = "data") -> LongTailedData:
    """Load the data set `name`, made long-tailed as `profile` says, from its folder below `data_dir`.

    Raises UserError for an unknown name, a profile that cannot be had, and missing or wrong files.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}'; known: {', '.join(DATASETS)}")
    return DATASETS[name](data_dir, profile)
