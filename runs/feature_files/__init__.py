"""Files of features that any model made, in the place of images and of a network.

FILE is `.npz` (never unpickled), `.safetensors`, whole or in shards, `.pt` or `.pth` (a dictionary), `.parquet` (one
row an image), or a folder of such files or of `.npy`. It holds `train_features` (N, d) and `train_labels` (N,),
`test_features` and `test_labels`, by these names or by others that people give them (`runs.feature_files.names`), and,
if wanted:

- `test_features_mirrored`, `holdout_features` and `holdout_labels`;
- `class_names` (an array or a list of strings; safetensors: a JSON list in the metadata);
- a linear classifier `fc.weight` (K, d) with `fc.bias` (K,), which is 0 where it is left out.

What is read becomes the content of a stage-1 checkpoint (`runs.feature_files.content`).
"""

import os
import sys
from pathlib import Path
from typing import Any

from datasets.features import FileRows
from datasets.names import user_dataset_name
from runs.feature_files.content import USER_FEATURES, USER_NETWORK, content_of
from runs.feature_files.folder import READERS, SUFFIXES, read_folder
from runs.feature_files.names import taken_words
from runs.feature_files.source import READS_PARTS, Source, Stay
from runs.shards import find_shards
from utils.errors import UserError, is_out_of_memory, no_memory
from utils.text import shown, tell

__all__ = ["USER_FEATURES", "USER_NETWORK", "read_features"]
WARNING = "warning: "  # how a note begins that is for standard error
# What people have beside, and how it is made into what can be read.
ADVICE = {
    ".pkl": "reading a pickle can run any code; save its arrays with numpy.savez",
    ".pickle": "reading a pickle can run any code; save its arrays with numpy.savez",
    ".mat": "numpy.savez('FILE.npz', **scipy.io.loadmat(...)) with images as rows makes one",
    ".h5": "numpy.savez('FILE.npz', ...) of its data sets makes one",
    ".hdf5": "numpy.savez('FILE.npz', ...) of its data sets makes one",
    ".csv": "pandas.read_csv('FILE.csv').to_parquet('FILE.parquet') makes one",
    ".feather": "pandas.read_feather('FILE.feather').to_parquet('FILE.parquet') makes one",
}


def read_features(path: Path, quiet: bool = False, mmap: str = "auto") -> tuple[str, dict[str, Any]]:
    """Return the sha256 of a file of anyone's features and what it holds, as the content of a stage-1 checkpoint.

    `mmap` says whether the features stay in the file until their rows are needed (`--mmap`). Says what was taken for
    what and what was not used, unless `quiet`. Raises UserError, which names the file, for
    whatever is wrong with it.
    """
    try:
        source = read_source(path, Stay(mmap))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"--features {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read the features {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive can raise nearly anything
        if is_out_of_memory(error):
            raise no_memory(f"the features {path}", "what else runs on this machine, or float16") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"--features {path}: damaged, or not a {path.suffix} file ({reason})") from error
    try:
        content, notes = content_of(user_dataset_name(path), source)
    except UserError as error:
        raise UserError(f"--features {path}: {error}") from error
    if not quiet:
        report(path, source, notes)
    return source.digest, content


def read_source(path: Path, stay: Stay = Stay.NEVER) -> Source:
    """Return what a file or a folder holds, by this project's names."""
    if stay is Stay.ALWAYS and not READS_PARTS:
        raise UserError("--mmap on: this system cannot read parts of a file; leave it out")
    if path.is_dir():
        return read_folder(path, asked=stay)
    if path.suffix not in SUFFIXES:
        advice = f"; {ADVICE[path.suffix.lower()]}" if path.suffix.lower() in ADVICE else ""
        raise UserError(f"the name must end in {', '.join(SUFFIXES)}, or be that of a folder{advice}")
    if path.suffix != ".npy":
        return READERS[path.suffix](path, None, stay.settled(find_shards(path)))
    os.stat(path)  # says what is missing
    return read_folder(path.parent, path, stay)


def report(path: Path, source: Source, notes: list[str]) -> None:
    """Say which names were taken for which, what was done to arrays, and what was not used."""
    words = taken_words(source.taken)
    stay = any(isinstance(values, FileRows) for values in source.arrays.values())
    there = ["features stay in the file, and are read batch by batch (--mmap)"] if stay else []
    for line in [*([f"taken: {words}"] if words else []), *notes, *there]:
        tell(f"{path}: {line}", file=sys.stderr if line.startswith(WARNING) else None)
    if source.unused:
        tell(f"not used of {path}: {shown(', '.join(sorted(source.unused)))}", file=sys.stderr)
