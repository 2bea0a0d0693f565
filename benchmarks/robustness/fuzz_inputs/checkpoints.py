"""Checkpoints: PyTorch's files, old and new, and released safetensors."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors import safe_open
from safetensors.torch import save_file

import evaluate
from benchmarks.robustness.fuzz_inputs.cases import (
    ACCEPTED,
    REFUSED,
    Material,
    check_ending,
    file_states,
    refusal,
    shell,
)
from benchmarks.robustness.fuzz_inputs.damage import PLAIN_JUNK, TENSOR_JUNK, Edit, damage, damages, edited, edits
from benchmarks.robustness.fuzz_inputs.material import STAGE1_RUN
from runs.checkpoint import Checkpoint, load_checkpoint, with_backbone
from runs.run_names import inherited_tags
from utils.outside import is_name

RELEASED = ("released.safetensors", "classifier.safetensors", "exported.safetensors")
PICKLED = ("last.pth", "best.pth", "weights.pth", "legacy.pth")


def checkpoint_cases(material: Material) -> SearchStrategy[Any]:
    """Draw a file, edits of its content or of its header, or damage to its bytes."""
    names = st.sampled_from([*PICKLED, *PICKLED, *RELEASED])
    both: SearchStrategy[Any] = st.tuples(edits(list(TENSOR_JUNK)), st.just([]))
    return st.tuples(names, both | both | st.tuples(st.just([]), damages()))


def try_checkpoint(material: Material, folder: Path, case: Any) -> str:
    """Read a checkpoint and, where that works, report on it: what is accepted has the numbers of a real report.

    Damage to bytes that a checksum covers is noticed, or what was read is what was there before.
    """
    name, (done, broken) = case
    for other in (*RELEASED, "weights.pth", "mine.npz"):
        shutil.copy(material.home / other, folder / other)
        card = material.home / Path(other).with_suffix(".json")
        if card.exists():
            shutil.copy(card, folder)
    source = material.home / (STAGE1_RUN / name if name in ("last.pth", "best.pth") else name)
    file = folder / name
    if done and name in PICKLED:
        content = edited(torch.load(source, weights_only=True), done, TENSOR_JUNK)
        try:
            torch.save(content, file, _use_new_zipfile_serialization=name != "legacy.pth")
        except (RuntimeError, NotImplementedError, AttributeError):
            return REFUSED  # nobody can write such a file
    elif done:
        rewrite_released(source, file, done)
    else:
        file.write_bytes(damage(source.read_bytes(), broken))
    before = file_states(folder)
    outcome, checkpoint = refusal(lambda: with_backbone(load_checkpoint(file)), str(folder))
    if outcome == ACCEPTED:
        if broken and name not in ("legacy.pth",):
            check_same(checkpoint, load_checkpoint(source))
        check_names(checkpoint)
        outcome = try_report(file)
    assert file_states(folder) == before
    return outcome


def check_names(read: Checkpoint) -> None:
    """Assert that what becomes part of a path is a plain name, of a file that was accepted."""
    settings = read.settings()
    names = [settings[name] for name in ("dataset", "imb_type", "network") if name in settings]
    assert all(map(is_name, [*names, *inherited_tags(read)])), names


def check_same(read: Checkpoint, original: Checkpoint) -> None:
    """Assert that a damaged file that was accepted gave what stood in it before."""
    assert all(torch.equal(read.state[key], value) for key, value in original.state.items())
    assert json.dumps(read.config, sort_keys=True) == json.dumps(original.config, sort_keys=True)


def rewrite_released(source: Path, file: Path, done: Sequence[Edit]) -> None:
    """Write a released file with edits of its header and tensors, without its card, which would tell at once."""
    with safe_open(source, framework="pt") as opened:
        header = json.loads(opened.metadata()["checkpoint"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # no dictionary
    flat = [edit for edit in done if edit[1] % 2]
    header = edited(header, [edit for edit in done if not edit[1] % 2], {**TENSOR_JUNK, **PLAIN_JUNK})
    tensors = edited(tensors, flat, TENSOR_JUNK)
    tensors = {
        key: value.contiguous().clone()
        for key, value in (tensors.items() if isinstance(tensors, dict) else ())
        if isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.numel() < 10**6
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
        and not value.is_complex()
    }
    file.with_suffix(".json").unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    text = re.sub(r'"@([^"@]*)@"', r"\1", json.dumps(header, default=str))
    save_file(tensors, file, {"checkpoint": text})


def try_report(file: Path) -> str:
    """Report on a checkpoint to the end; an accepted one has accuracies from 0 to 100, a number for every class."""
    place = file.parent.parent / f"{file.parent.name}.report.json"
    known = ["--dataset", "digits", "--width", "4"]
    ending = shell(evaluate.main, [*known, "--pretrained_pth", str(file), "--json", str(place)])
    outcome = check_ending(ending)
    if outcome == ACCEPTED:
        assert ending.status == 0
        (report,) = strict_json(place)["checkpoints"].values()
        assert 0 <= report["plain"]["all"] <= 100
        place.unlink()
    return outcome


def strict_json(path: Path) -> Any:
    """Read JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
