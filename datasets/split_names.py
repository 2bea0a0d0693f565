"""The names that people give their splits: of folders, in columns of tables, of arrays of features."""

# In lower case. No word that may as well be a class, or a word of a path: fit, learn, tune.
SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development", "heldout", "holdout"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}


def split_named(word: str) -> str | None:
    """Return the split, "train", "val" or "test", that a word in lower case names; None for none."""
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)
