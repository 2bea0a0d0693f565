"""The features of a finished file as a table of Parquet: a row an image, for other tools and for `--features`."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from torch import Tensor

from utils.errors import UserError
from utils.files import check_file, write_atomically

SUFFIX = ".parquet"
ROWS = 4096  # of a row group: what a reader holds at once


def require_pyarrow() -> ModuleType:
    """Import pyarrow. Raises UserError, with the line that installs it, where it is missing."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise UserError("--parquet needs the package pyarrow: pip install pyarrow") from error


def refuse_place(file: Path, overwrite: bool) -> None:
    """Raise UserError where a table cannot be written, or something stands there that is not to be replaced."""
    if file.suffix != SUFFIX:
        raise UserError(f"--parquet {file} must end in {SUFFIX}")
    check_file("--parquet", file, overwrite=overwrite)
    require_pyarrow()


def write_parquet(file: Path, tensors: dict[str, Tensor], class_names: Sequence[str]) -> None:
    """Write the features (N, d) and labels (N,) of all splits of `tensors` as one table.

    Its columns are `features`, lists of d numbers in the precision that they have, `label`, from 0, and `split`. The
    names of the classes stand where Hugging Face's `datasets` has them. Mirrored features and a classifier are left
    out.
    """
    arrow = require_pyarrow()
    parquet = importlib.import_module("pyarrow.parquet")
    tables = []
    for split in ("train", "holdout", "test"):
        if f"{split}_features" not in tensors:
            continue
        features, labels = tensors[f"{split}_features"].numpy(), tensors[f"{split}_labels"].numpy()
        lists = arrow.FixedSizeListArray.from_arrays(arrow.array(features.ravel()), features.shape[1])
        columns = {"features": lists, "label": arrow.array(labels), "split": arrow.array([split] * len(labels))}
        tables.append(arrow.table(columns))
    record = {"info": {"features": {"label": {"names": list(class_names), "_type": "ClassLabel"}}}}
    whole = arrow.concat_tables(tables).replace_schema_metadata({"huggingface": json.dumps(record)})
    write_atomically(file, lambda opened: parquet.write_table(whole, opened, row_group_size=ROWS))
