"""What stands in the place of a file: pipes, sockets, devices, folders and links, where a plain file is expected."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from benchmarks.robustness.fuzz_inputs.cases import Material, file_states, inside, refusal
from benchmarks.robustness.fuzz_inputs.material import STAGE1_RUN, STAGE2_RUN
from datasets.decode import decode_rgb
from datasets.on_disk.coco import read_json_list
from datasets.on_disk.text_lists import read_list
from evaluation.csv_files import read_csv
from evaluation.run_rows import read_run
from runs.checkpoint import load_checkpoint
from runs.feature_files import read_features
from runs.records import read_config

# Each file, by what reads it.
FILES: dict[str, Callable[[Path], Any]] = {
    str(STAGE1_RUN / "last.pth"): load_checkpoint,
    str(STAGE1_RUN / "config.json"): read_config,
    str(STAGE1_RUN / "metrics.json"): lambda path: read_run(path.parent),
    str(STAGE1_RUN / "log.csv"): read_csv,
    str(STAGE2_RUN / "last.pth"): load_checkpoint,
    str(STAGE2_RUN / "config.json"): read_config,
    "weights.pth": load_checkpoint,
    "legacy.pth": load_checkpoint,
    "classifier.safetensors": load_checkpoint,
    "exported.safetensors": load_checkpoint,
    "released.safetensors": load_checkpoint,
    "released.json": lambda path: load_checkpoint(path.with_suffix(".safetensors")),
    "mine.npz": read_features,
    "tree/train.txt": lambda path: read_list(path, path.parent),
    "tree/test.json": lambda path: read_json_list(path, path.parent),
    "tree/train.json": lambda path: read_json_list(path, path.parent),
    "tree/train/ant/0.png": lambda path: decode_rgb(str(path)),
    "tree/train/ant/1.jpg": lambda path: decode_rgb(str(path)),
}


def put_socket(path: Path) -> None:
    """Bind a socket; its name is short, as a relative one must be."""
    with inside(path.parent), socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)


def put_linked_pipe(path: Path) -> None:
    """Put a link to a pipe there."""
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def put_linked_socket(path: Path) -> None:
    """Put a link to a socket there."""
    put_socket(path.with_name("socket"))
    path.symlink_to("socket")


THINGS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "link to a pipe": put_linked_pipe,
    "socket": put_socket,
    "link to a socket": put_linked_socket,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to(os.devnull),
    "folder": Path.mkdir,
    "link to a folder": lambda path: path.symlink_to(os.curdir),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
}
PLAIN = "plain file"


def place_cases(material: Material) -> SearchStrategy[Any]:
    """Draw a file and what stands in its place."""
    return st.tuples(st.sampled_from(list(FILES)), st.sampled_from([*THINGS, PLAIN]))


def try_place(material: Material, folder: Path, case: Any) -> str:
    """Read what is no plain file: it is refused at once, in one line that names it, and nothing changes."""
    name, thing = case
    home = folder / "home"
    shutil.copytree(material.home, home)
    path = home / name
    if thing != PLAIN:
        path.unlink()
        THINGS[thing](path)
    before = file_states(home)
    # A card is no part of a file: where none can be read, there is none.
    outcome, _ = refusal(lambda: FILES[name](path), str(path.parent))
    assert file_states(home) == before
    return outcome
