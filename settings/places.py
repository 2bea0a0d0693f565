"""Whether what a command line names can be read and written, asked before anything large is imported."""

import glob
import os
from pathlib import Path
from typing import Any

from datasets import ON_DISK
from settings.declare import EVALUATE, STAGE1, STAGE2, TRAINING
from settings.fields import Settings
from settings.resolve import Command
from utils.errors import UserError
from utils.files import check_file, check_folder
from utils.text import shown

# What is read where it is named, the words for it, and by which scripts. Stage 2 and a report look a run up by the name
# of --weights, which need not be there any more.
READ = {
    "pretrained_pth": ("the checkpoint", (STAGE2, EVALUATE)),
    "features": ("the features", (STAGE1, STAGE2, EVALUATE)),
    "weights": ("the checkpoint", (STAGE1,)),
}
LISTS = {**dict.fromkeys(("train_list", "val_list", "test_list"), "the list"), "class_names": "the class names"}
WRITTEN = ("json", "html")
FOLDER = "folder"  # the data set whose images lie below --data_dir itself


def check_places(command: Command) -> None:
    """Raise UserError where a command would find at its end, or after its imports, that a path is of no use."""
    settings, given = command.settings, command.given
    for name, (_, readers) in READ.items():
        if name in given and command.script in readers:
            check_readable(name, given[name])
    if command.script == STAGE1:
        check_images(settings, given)
    if command.script in TRAINING:
        check_folder("--out", settings.out)
    for name in WRITTEN:
        if name in given:
            check_file(f"--{name}", given[name])


def check_images(settings: Settings, given: dict[str, Any]) -> None:
    """Raise UserError where the lists of a data set, or the folder that it is, are not there."""
    if settings.dataset == FOLDER and "data_dir" in given:
        refuse_missing("the folder", given["data_dir"])
    elif settings.dataset in ON_DISK and settings.dataset != FOLDER:
        for name, what in LISTS.items():
            if name in given:
                refuse_missing(what, given[name])


def check_readable(name: str, path: str) -> None:
    """Raise UserError where nothing stands at the path of a flag of `READ`, nor shards of a file of that name."""
    place = Path(path)
    shards = f"{glob.escape(place.stem)}-*-of-*{glob.escape(place.suffix)}"
    if "\0" not in path and not os.path.lexists(path) and place.name and any(glob.iglob(shards, root_dir=place.parent)):
        return
    words = "" if name != "weights" else f"--weights {shown(path)}: "
    refuse_missing(READ[name][0], path, words)


def no_images(path: str) -> UserError:
    """Return the error of a path of `predict.py --images` at which there is neither a file nor a folder."""
    return UserError(f"--images {shown(path)}: there is no such file or folder")


def refuse_missing(what: str, path: str, before: str = "") -> None:
    """Raise UserError where nothing stands at a path; what cannot be a path is for its reader to refuse."""
    try:
        os.stat(path)
    except OSError as error:
        raise UserError(f"{before}cannot read {what} {shown(path)}: {error.strerror}") from error
    except ValueError:
        return
