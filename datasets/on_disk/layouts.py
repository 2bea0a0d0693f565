"""Where the lists of a data set lie: ImageNet-LT, Places-LT, iNaturalist 2018, and anyone's.

Lists come from Liu et al. (OLTR, CVPR 2019: ImageNet-LT, Places-LT) and Van Horn et al. ("The iNaturalist Species
Classification and Detection Dataset", CVPR 2018), whose JSON Kang et al. (ICLR 2020) turned into the field's text
files, row by row.
"""

from dataclasses import astuple, dataclass
from pathlib import Path

from utils.errors import UserError


@dataclass(frozen=True)
class Facts:
    """What the field's lists hold: images, the largest and the smallest training class, many-medium-few classes."""

    train: int
    test: int
    largest: int
    smallest: int
    shots: tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Where the lists of a data set lie: below `folder` of the data sets' folder, the first of the names that is there.

    `num_classes` is None where the training list decides, `facts` None where nothing is known beforehand.
    """

    name: str
    folder: str
    num_classes: int | None
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    facts: Facts | None = None


IMAGENET_LT = Layout(
    name="imagenet_lt",
    folder="imagenet_lt",
    num_classes=1000,
    train=("ImageNet_LT_train.txt",),
    val=("ImageNet_LT_val.txt",),
    test=("ImageNet_LT_test.txt",),
    facts=Facts(train=115846, test=50000, largest=1280, smallest=5, shots=(385, 479, 136)),
)


PLACES_LT = Layout(
    name="places_lt",
    folder="places_lt",
    num_classes=365,
    train=("Places_LT_train.txt",),
    val=("Places_LT_val.txt",),
    test=("Places_LT_test.txt",),
    facts=Facts(train=62500, test=36500, largest=4980, smallest=5, shots=(131, 163, 71)),
)


INATURALIST_2018 = Layout(
    name="inaturalist2018",
    folder="inaturalist2018",
    num_classes=8142,
    train=("iNaturalist18_train.txt", "train2018.json"),
    val=(),
    test=("iNaturalist18_val.txt", "val2018.json"),  # what the field tests on: the 3 validation images of each class
    facts=Facts(train=437513, test=24426, largest=1000, smallest=2, shots=(842, 4076, 3224)),
)


GIVEN_LISTS = Layout(
    name="list",
    folder=".",
    num_classes=None,
    train=("train.txt", "train.json", "train.csv", "train.tsv"),
    val=("val.txt", "val.json", "val.csv", "val.tsv"),
    test=("test.txt", "test.json", "test.csv", "test.tsv"),
)


TABLES = (".csv", ".tsv", ".tab", ".psv")  # endings of their names


LAYOUTS = {layout.name: layout for layout in (IMAGENET_LT, PLACES_LT, INATURALIST_2018, GIVEN_LISTS)}


@dataclass(frozen=True)
class ListFiles:
    """What a user names instead of a layout's own: list files, the folder that their paths are relative to, and how
    they are to be read: columns of tables, the ending that paths lack, a file with the names of the classes."""

    train: str | None = None
    val: str | None = None
    test: str | None = None
    image_root: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    image_suffix: str | None = None
    class_names: str | None = None

    def as_flags(self) -> list[str]:
        """Return the flags that a user would have named these with, each with its value."""
        return [f"{flag} {value}" for flag, value in zip(LIST_FLAGS, astuple(self), strict=True) if value is not None]

    def names_columns(self) -> bool:
        """Tell whether columns of tables are named."""
        return any(name is not None for name in (self.path_column, self.label_column, self.split_column))


# Of the fields of `ListFiles`, in order.
LIST_FLAGS = ["--train_list", "--val_list", "--test_list", "--image_root", "--path_column", "--label_column"]
LIST_FLAGS += ["--split_column", "--image_suffix", "--class_names"]


def list_files(values: object) -> ListFiles:
    """Return what flags name: `values` has each flag's value as an attribute of the flag's name."""
    return ListFiles(*(getattr(values, flag.removeprefix("--")) for flag in LIST_FLAGS))


NO_FILES = ListFiles()


def find_lists(layout: Layout, data_dir: str, files: ListFiles) -> dict[str, Path]:
    """Return the list files "train", "test" and, where there is one, "val".

    The layout's own validation list goes with the layout's own training list alone: another one may hold its images.
    "test" may be missing where the training list is a table, which can hold all splits; where `files` name its column
    that says the split, no other list is looked for.
    """
    folder = Path(data_dir) / layout.folder
    found: dict[str, Path] = {}
    for part in ("train", "val", "test"):
        given, names = getattr(files, part), getattr(layout, part)
        own = next((folder / name for name in names if (folder / name).is_file()), None)
        if given is not None:
            found[part] = Path(given)
        elif part != "train" and files.split_column is not None:
            continue
        elif own is not None and (part != "val" or files.train is None):
            found[part] = own
        elif part == "train" or (part == "test" and not may_hold_all(found["train"], files)):
            raise missing_list(layout, data_dir, part)
    return found


def may_hold_all(train: Path, files: ListFiles) -> bool:
    """Tell whether a training list can be a table, which may hold all splits."""
    return train.suffix.lower() in TABLES or files.names_columns()


def missing_list(layout: Layout, data_dir: str, part: str) -> UserError:
    """Return the error of a list that is neither named nor there."""
    names = " or ".join(getattr(layout, part))
    return UserError(f"{Path(data_dir) / layout.folder} has no {names}; put it there or name a list with --{part}_list")
