"""Which split a row of a table belongs to, in the words that people use."""

import re

from datasets.names import split_named

TRUE, FALSE = ("1", "1.0", "true", "t", "yes", "y"), ("0", "0.0", "false", "f", "no", "n")
# Columns that say yes or no, and what no means.
SWITCHES = {"train": "test", "val": "train", "test": "train"}
HEADERS = {
    *("split", "splits", "splitname", "datasplit", "dataset", "set", "subset", "partition", "phase", "usage"),
    *("traintest", "traintestsplit", "trainvaltest", "trainvaltestsplit", "whichset"),
}


def plain_word(text: str) -> str:
    """Return text in lower case without all that is neither letter nor digit."""
    return re.sub(r"[\W_]+", "", text.lower())


def switch_of(header: str) -> str | None:
    """Return the split that a column of yes and no says, as `is_valid` does; None where it is none."""
    word = plain_word(header).removesuffix("image").removesuffix("img")
    if not word.startswith("is"):
        return None
    return split_named(word[2:])


def is_split_header(header: str) -> bool:
    """Tell whether a column of this name says the split of a row."""
    return plain_word(header) in HEADERS or switch_of(header) is not None


def split_of(value: str, header: str) -> str | None:
    """Return the split that a value of a column means, None for none."""
    switch = switch_of(header)
    word = value.strip().lower()
    if switch is not None and word in (*TRUE, *FALSE):
        return switch if word in TRUE else SWITCHES[switch]
    word = plain_word(word)
    word = word.removesuffix("set") if len(word) > 3 else word
    return split_named(word)
