"""Names in files of strangers never become paths outside, and nothing is deleted that is not this project's."""

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.robustness.fuzz_inputs.material import STAGE1_RUN as STAGE1
from datasets.cifar import read_pickle
from datasets.decode import decode_rgb
from datasets.on_disk.coco import read_json_list
from datasets.on_disk.text_lists import read_list
from evaluation.csv_files import read_csv
from evaluation.run_rows import read_run
from runs.checkpoint import load_checkpoint
from runs.feature_files import read_features
from tests.helpers import contents, run, succeed
from utils.errors import UserError
from utils.files import LOCK, lock_folder, read_json, remove_leftovers, sha256_file
from utils.outside import NAME, is_name, open_plain, within

BAD_NAMES = ["../../x", "a/b", "/etc/x", "..", ".", "", ".hidden", "a\\b", "a\0b", "a\x1b[2Jb", "a b", "x" * 300]
ENTRIES = ["tags", "imb_type", "dataset", "network", "subset", "stem"]
ON_DIGITS = ("--dataset", "digits", "--width", 4, "--epochs", 1, "--out", "runs")
FLAGS = ("--finetune_epoch", 1, "--out", "new/deep/out", "--overwrite")


def with_entry(content: dict[str, Any], entry: str, name: str) -> dict[str, Any]:
    config = content["config"]
    if entry == "tags":
        return {**content, "config": {**config, "tags": [name]}}
    return {**content, "config": {**config, "settings": {**config["settings"], entry: name}}}


def rewritten(source: str, file: str, entry: str, name: str) -> None:
    with safe_open(source, framework="pt") as opened:
        header = json.loads(opened.metadata()["checkpoint"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # no dictionary
    save_file(tensors, file, {"checkpoint": json.dumps(with_entry(header, entry, name))})


def refused_without_a_trace(home: Path, *flags: object) -> str:
    before = contents(home)
    outcome = run("main_stage2", *flags)
    assert outcome.status == 2, outcome
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].isprintable(), outcome.err
    assert contents(home) == before
    return lines[0]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_in_a_checkpoint_writes_nothing_outside(entry: str, name: str, home: Path) -> None:
    content = torch.load(STAGE1 / "last.pth", weights_only=True)
    torch.save(with_entry(content, entry, name), "crafted.pth")
    line = refused_without_a_trace(home, "--pretrained_pth", "crafted.pth", *FLAGS)
    assert "crafted.pth" in line and entry in line


@pytest.mark.parametrize("entry", ENTRIES[:4])
@pytest.mark.parametrize("name", ["../../x", "a/b"])
@pytest.mark.parametrize("source", ["exported.safetensors", "released.safetensors"])
def test_a_name_in_a_released_file_writes_nothing_outside(source: str, name: str, entry: str, home: Path) -> None:
    rewritten(source, "crafted.safetensors", entry, name)
    line = refused_without_a_trace(home, "--pretrained_pth", "crafted.safetensors", *FLAGS)
    assert "crafted.safetensors" in line and entry in line


def test_a_run_folder_whose_plots_lead_elsewhere_is_refused(home: Path) -> None:
    outside = home / "pictures"
    outside.mkdir()
    (outside / "mine.png").write_text("mine")
    shutil.rmtree(STAGE1 / "plots")
    (STAGE1 / "plots").symlink_to(outside)
    before = contents(home)
    for flags in (("--overwrite",), ("--resume",)):
        outcome = run("main_stage1", *ON_DIGITS, *flags)
        assert outcome.status == 2 and "leads out of" in outcome.err
        assert contents(home) == before


def test_overwrite_deletes_nothing_of_somebody_else(home: Path) -> None:
    (STAGE1 / "config.json").write_text('{"model_type": "resnet"}')
    before = contents(home)
    outcome = run("main_stage1", *ON_DIGITS, "--overwrite")
    assert outcome.status == 2 and "is of no run of this project" in outcome.err
    assert contents(home) == before


@pytest.mark.parametrize("damaged", [None, b"", b"[]", b"{"])
def test_overwrite_replaces_a_run_whose_record_is_lost(damaged: bytes | None, home: Path) -> None:
    (STAGE1 / "notes.txt").write_text("mine")
    (STAGE1 / "config.json").unlink()
    if damaged is not None:
        (STAGE1 / "config.json").write_bytes(damaged)
    succeed("main_stage1", *ON_DIGITS, "--overwrite")
    assert (STAGE1 / "notes.txt").read_text() == "mine"


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with contextlib.suppress(UserError):
        lock_folder(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_path_below_a_root_stays_there(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    assert within(tmp_path / "link", tmp_path / "root" / "a") == tmp_path / "root" / "a"
    assert within(Path(), Path("a/../b")) == Path("a/../b")
    for path in ("root/../a", "root/out/a", "rootbeside", "root/a/../../b"):
        with pytest.raises(UserError, match="leads out of"):
            within(tmp_path / "root", tmp_path / path)


@given(st.text(max_size=250) | st.from_regex(NAME, fullmatch=True))
def test_a_name_that_passes_the_gate_is_one_part_of_a_path(name: str) -> None:
    if is_name(name):
        assert Path("root", name).parts == ("root", name) and os.path.normpath(f"root/{name}") == f"root/{name}"
        assert name.isprintable() and not name.startswith((".", "-", "~")) and "\\" not in name and ":" not in name


READERS: dict[str, Any] = {
    "file.pth": load_checkpoint,
    "file.npz": read_features,
    "file.safetensors": load_checkpoint,
    "file.json": read_json,
    "file.txt": lambda path: read_list(path, path.parent),
    "coco.json": lambda path: read_json_list(path, path.parent),
    "train": read_pickle,
    "a.jpg": lambda path: decode_rgb(str(path)),
    "a.png": lambda path: decode_rgb(str(path)),
    "rows.csv": read_csv,
    "hashed": sha256_file,
}


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [put_pipe, put_socket, put_device])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_plain_file_is_refused_at_once(name: str, put: Any, tmp_path: Path) -> None:
    put(tmp_path / name)
    with pytest.raises(UserError, match="no regular file") as caught:
        READERS[name](tmp_path / name)
    assert name in str(caught.value)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    """Between the look at a name and its opening anything may happen: the opened file is asked again."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    plain = os.stat(tmp_path / "file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", lambda *_, **__: plain)
        with pytest.raises(UserError, match="no regular file"):
            open_plain(tmp_path / "pipe")


def test_a_card_or_a_record_that_is_a_pipe_is_refused(home: Path) -> None:
    for path in (Path("released.json"), STAGE1 / "config.json", STAGE1 / "metrics.json"):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(UserError):
        read_run(STAGE1)
    for flags in (("--reuse",), ("--resume",)):
        assert run("main_stage1", *ON_DIGITS, *flags).status == 2


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    """A link, a pipe or a folder of such a name was left by nobody of this project."""
    (tmp_path / ".a.json.1-ab.tmp").write_text("left over")
    (tmp_path / ".a.json.2-ab.tmp").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("precious")
    os.mkfifo(tmp_path / ".a.json.3-ab.tmp")
    (tmp_path / ".a.json.4-ab.tmp").mkdir()
    (tmp_path / ".b.json.1-ab.tmp").write_text("another file's")
    (tmp_path / "a.json.tmp").write_text("mine")
    remove_leftovers(tmp_path, ["a.json"])
    kept = {".a.json.2-ab.tmp", ".a.json.3-ab.tmp", ".a.json.4-ab.tmp", ".b.json.1-ab.tmp", "a.json.tmp", "precious"}
    assert {path.name for path in tmp_path.iterdir()} == kept
