"""Names in files of strangers never become paths outside, and nothing is deleted that is not this project's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.robustness.fuzz_inputs.material import STAGE1_RUN as STAGE1
from tests.helpers import contents, run

BAD_NAMES = ["../../x", "a/b", "/etc/x", "..", ".", "", ".hidden", "a\\b", "a\0b", "a\x1b[2Jb", "a b", "x" * 300]
ENTRIES = ["tags", "imb_type", "dataset", "network", "subset", "stem"]
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
