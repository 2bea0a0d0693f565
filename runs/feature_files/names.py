"""What people call features, labels and splits in their files: one table of synonyms.

A name is compared by its letters and digits alone, in any case: `X_train`, `x.train`, `trainX` and `train/x` are one.
"""

import re
from collections.abc import Iterable, Mapping

from datasets.names import SPLIT_NAMES
from utils.errors import UserError
from utils.text import shown

# Those of folders and tables, and what is behind them in names of arrays: `trainset`, `X_tr`.
SPLITS: dict[str, tuple[str, ...]] = {
    "train": (*SPLIT_NAMES["train"], "trainset", "tr"),
    "test": (*SPLIT_NAMES["test"], "testset", "te"),
    "holdout": (*SPLIT_NAMES["val"], "valset"),
}
KINDS: dict[str, tuple[str, ...]] = {
    "features": (
        *("features", "feature", "feats", "feat", "embeddings", "embedding", "embeds", "embed", "embs", "emb"),
        *("representations", "representation", "vectors", "inputs", "data", "x", "xs"),
        *("imagefeatures", "imageembeddings", "imageembeds", "imgemb", "imgfeatures", "imgfeats"),
    ),
    "labels": (
        *("labels", "label", "targets", "target", "y", "ys", "classid", "classids", "classlabel", "classlabels"),
        *("classindex", "category", "categoryid", "class", "cls", "gt", "groundtruth"),
    ),
}
WHOLE: dict[str, tuple[str, ...]] = {  # of all splits
    **KINDS,
    "split": ("split", "splits", "subset", "partition"),
    "class_names": ("classnames", "classes", "labelnames", "targetnames"),
    "fc.weight": ("fcweight",),
    "fc.bias": ("fcbias",),
}
MIRRORED = ("mirrored", "flipped", "flip", "hflip")


def _roles() -> dict[str, str]:
    """Return every name that is known, in letters and digits, with the one that this project uses."""
    roles = {word: role for role, words in WHOLE.items() for word in words}
    for split, splits in SPLITS.items():
        for kind, kinds in KINDS.items():
            roles |= {name: f"{split}_{kind}" for s in splits for k in kinds for name in (s + k, k + s)}
    for mirrored in MIRRORED:
        test = [name for name, role in roles.items() if role == "test_features"]
        roles |= {name + mirrored: "test_features_mirrored" for name in test}
    return roles


ROLES = _roles()
SPLIT_WORDS = {word: split for split, words in SPLITS.items() for word in words}


def plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return re.sub(r"[\W_]+", "", name.lower())


def role_of(name: str, split: str | None = None) -> str | None:
    """Return what an array of this name is (`train_features`, `labels`, ...); None if unknown.

    Features and labels without a split of their own are those of `split`, where all is one split.
    """
    role = ROLES.get(plain(name))
    return f"{split}_{role}" if split is not None and role in KINDS else role


def split_of(name: str) -> str | None:
    """Return the split that a name stands for, as in a column of splits; None if unknown."""
    return SPLIT_WORDS.get(plain(name))


def split_in(path: str) -> tuple[str | None, str]:
    """Return the split that a word of a file's path names, None where none does or several do, and the other words."""
    words = words_of(path)
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    rest = " ".join(word for word in words if word not in SPLIT_WORDS)
    return (found.pop() if len(found) == 1 else None), rest


def role_in(path: str) -> tuple[str | None, str]:
    """Return what a file of one array is by the words of its path, and its other words, such as the network's name."""
    words = words_of(path)
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length + 1):
            role = ROLES.get("".join(words[start : start + length]))
            if role is not None:
                return role, " ".join(words[:start] + words[start + length :])
    return None, " ".join(words)


def words_of(path: str) -> list[str]:
    """Return the words of a path in lower case: runs of letters and digits."""
    return [word for word in re.split(r"[\W_]+", path.lower()) if word]


def assign(roles: Mapping[str, str | None]) -> dict[str, str]:
    """Return the name that stands for each role, given the role of every name; a UserError tells of two for one.

    Beside arrays that are of one split each, what would be of all splits is something else.
    """
    divided = any(role is not None and role.split("_")[0] in SPLITS for role in roles.values())
    taken: dict[str, str] = {}
    for name, role in roles.items():
        if role is None or (divided and role in (*KINDS, "split")):
            continue
        if role in taken:
            raise UserError(f"'{shown(taken[role])}' and '{shown(name)}' are both '{role}'; leave one out or rename it")
        taken[role] = name
    return taken


def taken_words(taken: Mapping[str, str]) -> str:
    """Return in words which names were taken for which others; nothing where all are this project's own."""
    return ", ".join(f"{shown(name)} as {role}" for role, name in taken.items() if name != role)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Return names in a line, of many the first ones."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more
