"""Names: of data sets that are files, of samplers and augmentations, and those that people give their splits."""

import os
import re
from pathlib import Path

SAMPLERS = ["instance", "class_balanced", "sqrt", "progressive"]  # of `datasets.sampling`
AUGMENTATIONS = ["crop", "jitter", "autoaugment"]  # of `datasets.augment`
USER_DATASET_PREFIX = "own_"  # how the names of data sets of features begin, so that none is that of a known one
FEATURE_FILES = (".npz", ".safetensors", ".pt", ".pth", ".parquet")  # of several arrays each

# Names of splits, of folders, in columns of tables, of arrays of features.
# In lower case. No word that may as well be a class, or a word of a path: fit, learn, tune.
SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development", "heldout", "holdout"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}


def split_named(word: str) -> str | None:
    """Return the split, "train", "val" or "test", that a word in lower case names; None for none."""
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def user_dataset_name(path: Path) -> str:
    """Return the name of the data set that a file or a folder of features is: its stem or name, after a prefix.

    A single array stands for all of its folder.
    """
    if path.suffix == ".npy":
        path = path.parent
    path = path if path.name.strip(".") else Path(os.path.abspath(path))
    name = path.stem if path.suffix in FEATURE_FILES else path.name
    return USER_DATASET_PREFIX + re.sub(r"[^\w.+-]+", "-", name)
