"""Which columns of a table hold the paths, the labels and the split: named by flags, or guessed where unmistakable."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.on_disk.labels.writing import number_of
from datasets.on_disk.layouts import ListFiles
from datasets.on_disk.tables.splits import is_split_header, plain_word, split_of
from utils.errors import UserError
from utils.text import shown

PATHS = {
    *("path", "paths", "filepath", "filepaths", "fullpath", "relpath", "relativepath", "file", "files", "filename"),
    *(
        "filenames",
        "fname",
        "image",
        "images",
        "imagepath",
        "imagepaths",
        "imagefile",
        "imagefilename",
        "imagefilepath",
    ),
    *("imagename", "imageid", "imageids", "img", "imgs", "imgpath", "imgfile", "imgfilename", "imgname", "imgid", "id"),
    *("idcode", "isicid", "photo", "photoid", "picture"),
}
LABELS = {
    *("label", "labels", "labelname", "labelid", "imagelabel", "class", "classes", "classname", "classid", "classidx"),
    *("classindex", "classlabel", "category", "categories", "categoryname", "categoryid", "target", "targets", "y"),
    *("species", "speciesname", "breed", "diagnosis", "dx", "groundtruth"),
}
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ONES, ZEROS = ("1", "1.0"), ("0", "0.0")
SHOWN = 12  # columns that a message names


@dataclass(frozen=True)
class Columns:
    """Positions of columns: `path`, `split` (None for none), and `labels`: one, several that say the same (the first of
    them is read), or, with `one_hot`, a column a class."""

    header: tuple[str, ...]
    path: int
    labels: tuple[int, ...]
    split: int | None = None
    one_hot: bool = False

    def text(self) -> str:
        """Return in words which columns are read."""
        names = [f"'{shown(self.header[place])}'" for place in self.labels]
        labels = f"one-hot in {len(names)} columns, {names[0]} to {names[-1]}" if self.one_hot else f"in {names[0]}"
        split = "" if self.split is None else f", splits in '{shown(self.header[self.split])}'"
        return f"paths in column '{shown(self.header[self.path])}', labels {labels}{split}"

    def named(self) -> dict[str, str | int]:
        """Return which columns are read, for config.json: names, or the number of one-hot columns."""
        found: dict[str, str | int] = {"path": self.header[self.path]}
        found["label"] = len(self.labels) if self.one_hot else self.header[self.labels[0]]
        return found if self.split is None else {**found, "split": self.header[self.split]}


def choose_columns(where: str, header: Sequence[str], rows: list[list[str]], files: ListFiles) -> Columns:
    """Return the columns of a table by its header and first rows; flags go before guesses.

    Raises UserError, which names the columns and the flags, where a guess could be mistaken.
    """
    sample = [[row[place].strip() for row in rows] for place in range(len(header))]
    split = None if files.split_column is None else find(where, header, files.split_column, "--split_column")
    if files.path_column is not None:
        path = find(where, header, files.path_column, "--path_column")
    else:
        path = guess_path(where, header, sample)
    if files.label_column is not None:
        return Columns(tuple(header), path, (find(where, header, files.label_column, "--label_column"),), split)
    taken = {path, *([] if split is None else [split])}
    free = [place for place in range(len(header)) if place not in taken]
    named = [place for place in free if plain_word(header[place]) in LABELS]
    if named:
        first = next((place for place in named if any(number_of(word) is None for word in sample[place])), named[0])
        return Columns(tuple(header), path, (first, *(place for place in named if place != first)), split)
    free = [place for place in free if not is_split_header(header[place])]
    one_hot = [place for place in free if sample[place] and {*sample[place]} <= {*ONES, *ZEROS}]
    if len(one_hot) > 1 and all(sum(row[place].strip() in ONES for place in one_hot) == 1 for row in rows):
        return Columns(tuple(header), path, tuple(one_hot), split, one_hot=True)
    if len(header) - (split is not None) == 2 and len(free) == 1 and not all_differ(sample[free[0]]):
        return Columns(tuple(header), path, (free[0],), split)
    raise unclear(where, header, "labels", "--label_column")


def all_differ(words: list[str]) -> bool:
    """Tell whether a column has another value in each of many rows, as captions and ids have."""
    return len(words) > 20 and len(set(words)) == len(words)


def find(where: str, header: Sequence[str], name: str, flag: str) -> int:
    """Return the column of a name, or of the one name that differs in case and signs alone."""
    for fits in (lambda word: word == name, lambda word: plain_word(word) == plain_word(name)):
        found = [place for place, word in enumerate(header) if fits(word)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{where}: {flag} {shown(name)} fits {len(found)} columns; give them names of their own")
    raise UserError(f"{where}: there is no column {flag} {shown(name)}; it has {listed(header)}")


def guess_path(where: str, header: Sequence[str], sample: list[list[str]]) -> int:
    """Return the one column that holds names of image files, else the one that is called so."""
    files = [place for place, words in enumerate(sample) if words and all(map(is_file_name, words))]
    named = [place for place, word in enumerate(header) if plain_word(word) in PATHS]
    for candidates in (files, [place for place in files if place in named]):
        if len(candidates) == 1:
            return candidates[0]
    deep = [place for place in files if place in named and all("/" in word or "\\" in word for word in sample[place])]
    if len(deep) == 1:
        return deep[0]
    if not files and len(named) == 1:
        return named[0]
    raise unclear(where, header, "paths", "--path_column")


def is_file_name(word: str) -> bool:
    """Tell whether a value is the name of an image file."""
    return word.lower().endswith(ENDINGS)


def guess_split(columns: Columns, rows: list[list[str]]) -> int | None:
    """Return the one column that says the split of each row, None for none."""
    found = [
        place
        for place, word in enumerate(columns.header)
        if is_split_header(word)
        and place not in (columns.path, *columns.labels)
        and all(split_of(row[place], word) for row in rows)
    ]
    return found[0] if len(found) == 1 else None


def listed(header: Sequence[str]) -> str:
    """Return the names of the columns, of many the first ones."""
    names = [f"'{shown(word)[:40]}'" for word in header[:SHOWN]]
    more = f" and {len(header) - SHOWN} more" if len(header) > SHOWN else ""
    return f"the columns {', '.join(names)}{more}"


def unclear(where: str, header: Sequence[str], what: str, flag: str) -> UserError:
    """Return the error of a table of which nobody can tell which column is meant."""
    return UserError(f"{where}: which column holds the {what}? name it with {flag}; it has {listed(header)}")
