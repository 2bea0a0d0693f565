"""The lists of a data set, of whatever form each is: text, COCO's JSON, a table, or one table with all splits."""

from dataclasses import dataclass, replace
from pathlib import Path

from datasets.on_disk.coco import read_coco
from datasets.on_disk.layouts import ListFiles
from datasets.on_disk.rows import Listing
from datasets.on_disk.tables.columns import Columns, choose_columns
from datasets.on_disk.tables.table import Table, count_splits, is_table, open_table, read_table, with_split
from datasets.on_disk.text_lists import read_text
from utils.errors import UserError
from utils.text import shown


@dataclass(frozen=True)
class Listings:
    """The lists of a data set by split, and which columns of the training table are read, None for no table."""

    of: dict[str, Listing]
    columns: dict[str, str | int] | None


def read_listings(lists: dict[str, Path], root: Path, files: ListFiles) -> Listings:
    """Read the lists "train", "val", "test" that are there; a training table gives the splits that no list is named
    for, where a column says the split of each row.

    Of "test" there may be none in the end. Raises UserError for whatever cannot be read, and for names of columns where
    no list is a table.
    """
    tables = {part: is_table(path, files) for part, path in lists.items()}
    if files.names_columns() and not any(tables.values()):
        raise UserError("--path_column, --label_column and --split_column name columns of tables, and no list is one")
    if not tables["train"]:
        found = {part: read_other(path, root, files, tables[part], part) for part, path in lists.items()}
        return Listings(found, None)
    table = open_table(lists["train"])
    columns = choose_columns(str(table.path), table.header, table.sample, files)
    others = {part: path for part, path in lists.items() if path != table.path}
    if "test" not in others:
        columns = with_split(table, columns)
    if columns.split is None:
        found = {"train": noted(read_table(table, columns, root, suffix_of(files)), columns)}
        others = {part: path for part, path in lists.items() if part != "train"}
    else:
        found = read_parts(table, columns, root, files, set(others))
    names = following(files, columns)
    for part, path in others.items():
        found[part] = read_other(path, root, names, tables[part], part)
    return Listings({part: found[part] for part in ("train", "val", "test") if part in found}, columns.named())


def suffix_of(files: ListFiles) -> str:
    """Return the ending that paths lack."""
    return files.image_suffix or ""


def noted(listing: Listing, columns: Columns, more: str = "") -> Listing:
    """Return a list that says which columns were read."""
    return replace(listing, notes=(f"{listing.path}: {columns.text()}{more}", *listing.notes))


def following(files: ListFiles, columns: Columns) -> ListFiles:
    """Return flags for the tables beside a training table: its columns, unless they are named."""
    label = files.label_column or (None if columns.one_hot else columns.header[columns.labels[0]])
    return replace(files, path_column=files.path_column or columns.header[columns.path], label_column=label)


def read_parts(table: Table, columns: Columns, root: Path, files: ListFiles, elsewhere: set[str]) -> dict[str, Listing]:
    """Return the splits of one table but those that have a list of their own; a lone "val" is the test."""
    counts = count_splits(table, columns)
    if not counts["train"]:
        raise UserError(f"{table.path}: no row is of the training split; {columns.text()}")
    words = ", ".join(f"{count} {part}" for part, count in sorted(counts.items()))
    found = {}
    for part in ("train", "val", "test"):
        if counts[part] and part not in elsewhere:
            found[part] = read_table(table, columns, root, suffix_of(files), part)
    left = sum(counts[part] for part in elsewhere)
    more = f"; {left} rows are left out, whose split has a list of its own" if left else ""
    found["train"] = noted(found["train"], columns, f"; {words}{more}")
    if "val" in found and "test" not in (*found, *elsewhere):
        found["test"] = found.pop("val")
        note = f"{table.path}: there is no test split, so that the {counts['val']} images of 'val' are the test"
        found["train"] = replace(found["train"], notes=(*found["train"].notes, note))
    return found


def read_other(path: Path, root: Path, files: ListFiles, table: bool, part: str) -> Listing:
    """Return a list that has one split alone, of any form."""
    if path.suffix.lower() == ".json":
        return read_coco(path, root, suffix_of(files))
    if not table:
        return read_text(path, root, suffix_of(files))
    opened = open_table(path)
    names = {name: getattr(files, name) for name in ("path_column", "label_column", "split_column")}
    known = {name: value for name, value in names.items() if value in opened.header}
    chosen = replace(files, **{**dict.fromkeys(names), **known})
    columns = choose_columns(str(path), opened.header, opened.sample, chosen)
    wanted = None
    if columns.split is not None:
        counts = count_splits(opened, columns)
        if counts[part]:
            wanted = part
        elif len(counts) > 1:
            raise UserError(f"{path}: no row is of the split {part}; {columns.text()}")
    return noted(read_table(opened, columns, root, suffix_of(files), wanted), columns)


def split_hint(listing: Listing) -> str:
    """Return what to do where a table was to give all splits and does not say them."""
    return f"; or say with --split_column which column of {shown(str(listing.path))} says the split of each row"
