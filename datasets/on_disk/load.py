"""Data sets whose images lie on disk as files: from the field's lists and anyone's."""

from pathlib import Path

from datasets.long_tail import LongTailedData, Profile
from datasets.on_disk.coco import read_json_list
from datasets.on_disk.layouts import NO_FILES, Layout, ListFiles, find_lists
from datasets.on_disk.listed_split import ListedSplit
from datasets.on_disk.long_tailed import long_tailed, refuse_empty_classes
from datasets.on_disk.text_lists import read_list
from utils.errors import UserError

MOST_CLASSES = 10**6  # beyond which a label is a slip of the pen


def load_listed(layout: Layout, data_dir: str, profile: Profile, files: ListFiles = NO_FILES) -> LongTailedData:
    """Load a data set from its lists, with images below `files.image_root` or else beside the layout's lists.

    Its imbalance is its own (`profile.imb_ratio` None) or, for `list` alone, made (`long_tailed`). A validation list
    is held out where the profile holds out no share of the training list.
    """
    if layout.facts is not None and profile.imb_ratio is not None:
        raise UserError(f"{layout.name} is long-tailed as it is: leave --imb_ratio out, which is for balanced data")
    root = Path(data_dir) / layout.folder if files.image_root is None else Path(files.image_root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root} for the images of {layout.name}; see --data_dir and --image_root")
    lists = find_lists(layout, data_dir, files)
    train, names = read_any(lists["train"], root, layout.num_classes)
    num_classes = layout.num_classes or (len(names) if names else int(train.labels.max()) + 1)
    if not profile.drop_empty_classes or num_classes > MOST_CLASSES:  # first: a mistyped label is a billion classes
        refuse_empty_classes(train.labels, num_classes, "training", names)
    splits = {}
    for part, path in lists.items():
        if part != "train":
            splits[part], other_names = read_any(path, root, num_classes)
            if names and other_names and names != other_names:
                raise UserError(f"{path} and {lists['train']} differ in their categories")
            names = names or other_names
    names = names or [str(label) for label in range(num_classes)]
    return long_tailed(layout.name, train, splits.get("val"), splits["test"], names, profile)


def read_any(path: Path, root: Path, num_classes: int | None) -> tuple[ListedSplit, list[str] | None]:
    """Read a list, text or (its name ends in .json) COCO's JSON; return its images and the class names it gives."""
    if path.suffix.lower() != ".json":
        return read_list(path, root, num_classes), None
    split, names = read_json_list(path, root)
    if num_classes is not None and len(names) != num_classes:
        raise UserError(f"{path} has {len(names)} categories where {num_classes} classes are expected")
    return split, names
