"""Data sets, one file each, and the one function that loads them."""

from collections.abc import Callable
from functools import partial

from datasets.cifar import CIFAR10, CIFAR100, load_cifar
from datasets.digits import load_digits
from datasets.long_tail import LongTailedData
from utils.errors import UserError

DATASETS: dict[str, Callable[..., LongTailedData]] = {
    "cifar100": partial(load_cifar, CIFAR100, "cifar100"),
    "cifar10": partial(load_cifar, CIFAR10, "cifar10"),
    "digits": lambda data_dir, *profile: load_digits(*profile),  # embedded in scikit-learn: no folder
}


def load_dataset(
    name: str,
    *,
    data_dir: str = "data",
    imb_ratio: float = 100,
    imb_type: str = "exp",
    subset: str = "first",
    subset_seed: int = 0,
    holdout: float = 0.0,
    holdout_seed: int = 0,
) -> LongTailedData:
    """Load the data set `name`, long-tailed.

    `imb_ratio` is the imbalance factor (largest over smallest class), `imb_type` the profile (`long_tail_counts`),
    `subset` how a class's images are chosen (`select_subset`), `holdout` the share of every class kept out of training
    for tuning. Raises UserError for an unknown name, a profile that cannot be had, and missing or wrong files.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}'; known: {', '.join(DATASETS)}")
    return DATASETS[name](data_dir, imb_ratio, imb_type, subset, subset_seed, holdout, holdout_seed)
