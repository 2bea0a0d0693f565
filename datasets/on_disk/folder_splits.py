"""A data set of class folders: the names that people give their splits, and a split made where there is none."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets.long_tail import LongTailedData, Profile, Split, split_holdout
from datasets.names import SPLIT_NAMES, split_named
from datasets.on_disk.folders import nested_images, read_folder
from datasets.on_disk.listed_split import ListedSplit
from datasets.on_disk.long_tailed import Notes, long_tailed
from datasets.on_disk.walk import (
    LOOSE,
    UNUSED,
    LeftOut,
    folders_in,
    is_folder,
    is_image_name,
    litter_reason,
    scan,
)
from utils.errors import UserError
from utils.files import make_folder, write_atomically
from utils.outside import read_plain, within
from utils.text import counted, plain_name, shown

WORDS = {"train": "training", "val": "held-out", "test": "test"}
# What may stand behind the name of a split in that of its folder.
ENDS = re.compile(r"(?<=.)[-_ ]?(set|images|imgs|data|split)$")
NAMES_FILE = "class_names.json"  # beside the lists of a split that was made
FOUND = 8  # folders that a message names


def split_of(name: str) -> str | None:
    """Return the split that a folder of this name, in any case, holds, None where it is none."""
    return split_named(ENDS.sub("", name.lower()).replace("_", "").replace("-", ""))


def find_splits(root: Path, left_out: LeftOut) -> dict[str, str]:
    """Return the names of the folders of `root` that hold the splits "train", "val" and "test", where they are there.

    A class can be called so too, as one of CIFAR-100 is "train": where other folders lie beside them, and all that fit
    hold images and no folders, there is no split. Raises UserError where two fit one split. Other folders beside a
    split for training are counted as left out.
    """
    named: list[tuple[str, str]] = []
    others, loose = [], []
    for entry in scan(root):
        name = entry.name
        if litter_reason(name) is not None:
            continue
        split = split_of(name) if is_folder(entry) else None
        if split is not None:
            named.append((split, name))
        elif is_folder(entry):
            others.append(name)
        elif is_image_name(name):
            loose.append(name)
    if others and all(is_class(root / name) for _, name in named):
        return {}
    found: dict[str, str] = {}
    for split, name in named:
        if split in found:
            raise UserError(
                f"{root}: the folders '{shown(found[split])}' and '{shown(name)}' both look like the {split} split; "
                "rename or move one"
            )
        found[split] = name
    if "train" in found:
        for reason, names in ((UNUSED, others), (LOOSE, loose)):
            for name in names:
                left_out.add(reason, name)
    return found


def is_class(folder: Path) -> bool:
    """Tell whether a folder holds images and no folders, as that of a class does."""
    entries = [entry for entry in scan(folder) if litter_reason(entry.name) is None]
    return not any(map(is_folder, entries)) and any(is_image_name(entry.name) for entry in entries)


def no_training_folder(root: Path) -> UserError:
    """Return the error of a folder that has no split for training: what was found, and what is wanted."""
    names = folders_in(root, LeftOut())
    found = ", ".join(f"'{shown(name)}'" for name in names[:FOUND]) + (", ..." if len(names) > FOUND else "")
    wanted = ", ".join(SPLIT_NAMES["train"][:2])
    hint = "name the folder that holds the splits with --data_dir"
    if len(names) > 1 and not find_splits(root, LeftOut()):
        hint = "where each of these folders is a class, --test_share 0.2 splits their images"
    return UserError(
        f"{root} has no folder of training images ({wanted}, ... in any case): found {found or 'no folders'}; {hint}"
    )


def nothing_to_test_on(root: Path, train: str) -> UserError:
    """Return the error of a folder that has a split for training alone."""
    wanted = ", ".join([*SPLIT_NAMES["test"][:2], *SPLIT_NAMES["val"][:3]])
    return UserError(
        f"{root} has nothing to test on beside '{shown(train)}': no folder {wanted}, ... in any case; add one, or take "
        "a share of the training images with --test_share 0.2"
    )


def load_folder(data_dir: str, profile: Profile) -> LongTailedData:
    """Load `<data_dir>/train/<class>/**` and `test/<class>/**`; `val/<class>/**` is held out or, alone, the test.

    The splits' folders go by the names of `SPLIT_NAMES`. Without a test split, `profile.test_share` of each class of
    the training images are the test; where there is no split at all, the class folders lie in `data_dir` itself. Labels
    are the positions of the sorted class names.
    """
    root, left_out = Path(data_dir), LeftOut()
    folders = find_splits(root, left_out)
    if "train" not in folders and (folders or profile.test_share == 0):
        raise no_training_folder(root)
    train, names = read_folder(root, folders.get("train", ""), None, left_out)
    others: dict[str, ListedSplit] = {}
    for split in ("test", "val"):
        if split in folders:
            others[split], names = read_folder(root, folders[split], names, left_out)
    notes = (*left_out.lines(), *nested_classes([train, *others.values()], "train" in folders))
    made = 0.0 if "test" in others else profile.test_share
    if made > 0:
        train, test = share_of_each_class(train, profile)
    elif others:
        test = others.pop("test") if "test" in others else others.pop("val")
    else:
        raise nothing_to_test_on(root, folders["train"])
    notes += split_notes(folders, profile, len(train), len(test))
    data = long_tailed("folder", train, others.get("val"), test, names, profile, notes)
    return replace(data, test_share=made)


def split_notes(folders: dict[str, str], profile: Profile, trained: int, tested: int) -> Notes:
    """Return notes of which folder is which split, where its name is not the usual one, and of a split that was made
    of `trained` + `tested` images."""
    notes = []
    made = "test" not in folders and profile.test_share > 0
    for split, folder in folders.items():
        alone = split == "val" and "test" not in folders and not made
        if alone or folder != split:
            notes.append(f"{shown(folder)}/ is the {'test' if alone else WORDS[split]} split")
    if made:
        words = f"no test split: {tested} of {trained + tested} images {'is' if tested == 1 else 'are'} tested on"
        notes.append(f"{words}, {profile.test_share:g} of each class, by --test_seed {profile.test_seed}")
    elif profile.test_share > 0:
        notes.append(f"--test_share is not used: {shown(folders['test'])}/ is the test split")
    return tuple(notes)


def share_of_each_class(split: ListedSplit, profile: Profile) -> tuple[ListedSplit, ListedSplit]:
    """Return (training, test) images: `profile.test_share` of each class is the test, chosen by `test_seed`.

    Of a class with two images or more at least one is tested on and one kept; a single image is kept.
    """
    kept, out = split_holdout(split.labels, profile.test_share, profile.test_seed)
    if len(out) == 0:
        raise UserError("--test_share takes an image of each class with two or more, and no class has two")
    return split.take(kept), split.take(out)


def nested_classes(splits: Sequence[ListedSplit], in_split: bool) -> Notes:
    """Return a note where images lie in folders inside class folders: their class is that of the first level."""
    found = [nested_images(split, 2 if in_split else 1) for split in splits]
    count = sum(number for number, _ in found)
    if count == 0:
        return ()
    first = next(name for number, name in found if number)
    lie = counted(count, "image lies in a folder", "images lie in folders")
    are = "is of its class" if count == 1 else "are of these classes"
    return (f"{lie} inside class folders, and {are} ({first})",)


def with_written_lists(data: LongTailedData, out: Path) -> LongTailedData:
    """Return a data set with a note that says where below `out` the lists of its split are, of one that was made.

    They are written there: lines of `path label`, the paths relative to the folder of the images, and beside them the
    names of the classes in the order of the labels, for `--class_names`. The name of their folder holds a hash of the
    lists, so that another split goes elsewhere; what stands there is never replaced.
    """
    root = getattr(data.train, "root", None)
    if data.test_share == 0 or root is None:
        return data
    splits = {"train": data.train, "val": data.holdout, "test": data.test}
    try:
        texts = {f"{name}.txt": list_text(split) for name, split in splits.items() if len(split)}
        digest = hashlib.sha256(b"\n".join(texts.values())).hexdigest()[:8]
        folder = within(out, out / "splits" / f"{plain_name(root.resolve().name)}-{digest}")
        make_folder(folder)
        texts[NAMES_FILE] = json.dumps(data.class_names, ensure_ascii=False, indent=0).encode() + b"\n"
        for name, text in texts.items():
            keep_text(folder / name, text)
    except UserError as error:
        return replace(data, notes=(*data.notes, f"warning: the lists of the split: {error}"))
    line = f"the lists of this split: {', '.join(texts)} in {folder}"
    return replace(data, notes=(*data.notes, line))


def list_text(split: Split) -> bytes:
    """Return the list of a split: a line `path label` an image, in order. Raises UserError for a path of two lines."""
    text = b"".join(b"%s %d\n" % row for row in zip(split.images.tolist(), split.labels.tolist(), strict=True))
    if text.count(b"\n") > len(split) or b"\r" in text:
        raise UserError("not written: a file's name has a line break, which a list cannot hold")
    return text


def keep_text(path: Path, text: bytes) -> None:
    """Write a file unless it is there; a UserError says where it holds something else."""
    if os.path.lexists(path):
        try:
            same = read_plain(path) == text
        except OSError:
            same = False
        if not same:
            raise UserError(f"{path} holds something else, and is left as it is")
    else:
        write_atomically(path, lambda file: file.write(text))
