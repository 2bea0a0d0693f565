"""Checkpoints, weights, records and released files that are damaged or do not fit: one line that names what."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.robustness.fuzz_inputs.material import STAGE1_RUN as STAGE1
from benchmarks.robustness.fuzz_inputs.material import STAGE2_RUN as STAGE2
from evaluation.run_rows import read_run
from models import build_model
from runs.checkpoint import load_checkpoint
from tests.helpers import (
    contents,
    folder_of,
    is_refusal,
    read,
    refused,
    run,
    same,
    stage2,
    succeed,
    weights,
)
from tests.image_runs import PIXELS, train_on_images
from utils.errors import UserError

# Checkpoints


DIGITS = ("--dataset", "digits")


Edit = Callable[[dict[str, Any]], object]
State = dict[str, Tensor]
Writer = Callable[[Path, Path], object]


def text(content: bytes) -> Writer:
    """What writes bytes; like the other writers it takes the file to write and the last.pth of a stage 1."""
    return lambda path, good: path.write_bytes(content)


def saved(content: Callable[[], object]) -> Writer:
    return lambda path, good: torch.save(content(), path)


def edited(change: Edit) -> Writer:
    """What writes the stage 1's checkpoint after a change."""

    def write(path: Path, good: Path) -> None:
        content = torch.load(good, weights_only=True)
        change(content)
        torch.save(content, path)

    return write


def resnet8(classes: int = 10) -> State:
    return build_model("resnet8", classes).state_dict()


def without(state: State, key: str) -> State:
    return {name: tensor for name, tensor in state.items() if name != key}


def bias(value: object) -> Writer:
    return edited(lambda content: content["model"].update({"fc.bias": value}))


def setting(name: str, value: object) -> Writer:
    return edited(lambda content: content["config"]["settings"].update({name: value}))


# Files that are no checkpoint of a resnet8 on ten classes, and what is said of each.
WRONG: dict[str, tuple[Writer, list[str]]] = {
    # No checkpoint of anything.
    "empty": (text(b""), []),
    "words": (text(b"hello world\n"), []),
    "a log": (text(b"epoch,loss\n1,2.3\n"), []),
    "a page that an archive sent": (text(b"<!DOCTYPE html><html>404</html>"), []),
    "JSON": (text(b'{"message": "Not Found"}'), []),
    "a pointer of git-lfs": (text(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"), []),
    "a broken pickle": (text(b"\x80\x02garbage"), []),
    "a broken archive": (text(b"PK\x03\x04junk"), []),
    "an empty pickle": (text(b"]q\x00."), []),
    "an image": (text(b"\x89PNG\r\n\x1a\n" + bytes(100)), []),
    "a number": (saved(lambda: {"accuracy": 3.0}), ["accuracy"]),
    "nothing in it": (saved(dict), ["empty"]),
    "a list": (saved(lambda: [1, 2, 3]), ["list"]),
    "a tensor": (saved(lambda: torch.zeros(3)), ["Tensor"]),
    "None": (saved(lambda: None), ["None"]),
    # Another network's.
    "a key too few": (saved(lambda: without(resnet8(), "bn1.bias")), ["missing keys (1): bn1.bias"]),
    "the first key too few": (saved(lambda: without(resnet8(), "conv1.weight")), ["conv1.weight"]),
    "a key too many": (saved(lambda: resnet8() | {"fc2.weight": torch.zeros(3)}), ["unexpected keys (1): fc2.weight"]),
    "other classes": (
        saved(lambda: resnet8(7)),
        ["fc.weight: (7, 64) here, (10, 64) expected", "fc.bias: (7,) here, (10,) expected"],
    ),
    "a deeper network": (
        saved(lambda: build_model("resnet20", 10).state_dict()),
        ["unexpected keys", "layer1.1.conv1.weight"],
    ),
    "a network of another kind": (
        saved(lambda: build_model("resnet18", 10, width=4).state_dict()),
        ["unexpected keys", "conv1.weight: (4, 3, 3, 3) here, (16, 3, 3, 3) expected"],
    ),
    "a list for a tensor": (saved(lambda: resnet8() | {"fc.bias": [0.0] * 10}), ["fc.bias"]),
    # What no run writes.
    "another format": (
        saved(lambda: {"format": 99, "model": resnet8(), "config": {}, "stage": "stage1", "epoch": 1}),
        ["format"],
    ),
    "half a record": (saved(lambda: {"format": 1, "model": resnet8(), "config": {}}), []),
    "a record without settings": (
        saved(
            lambda: {
                "format": 1,
                "stage": "stage1",
                "epoch": 1,
                "model": resnet8(),
                "config": {"settings": {"dataset": "digits"}, "tags": []},
            }
        ),
        [],
    ),
    "a tensor that is text": (bias("text"), ["not a checkpoint of format"]),
    "a key that is a number": (
        edited(lambda content: content["model"].update({3: torch.zeros(2)})),
        ["not a checkpoint of format"],
    ),
    "a stage that moves the cursor": (
        edited(lambda content: content.update(stage="stage\x1b[2J")),
        ["not a checkpoint of format"],
    ),
    "a subset_seed that is a path": (setting("subset_seed", "../x"), ["its subset_seed cannot be"]),
    "a negative holdout": (setting("holdout", -1.0), ["its holdout cannot be"]),
    "a width that is none": (setting("width", True), ["its width cannot be"]),
    "an imb_ratio that is NaN": (setting("imb_ratio", float("nan")), ["its imb_ratio cannot be"]),
    "an infinite temperature": (
        edited(lambda content: content.update(temperature=float("inf"))),
        ["its temperature cannot be"],
    ),
    "a sparse tensor": (bias(torch.zeros(10).to_sparse()), ["sparse, quantised or nested"]),
    "a tensor without numbers": (bias(torch.zeros(10, device="meta")), ["without numbers"]),
    "a tensor without room": (bias(torch.zeros(1).expand(10**9)), ["more numbers than the file"]),
    "complex numbers": (bias(torch.zeros(10, dtype=torch.complex64)), ["torch.complex64 here"]),
    "truths": (bias(torch.zeros(10, dtype=torch.bool)), ["torch.bool here"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_no_checkpoint_of_this_network(case: str, trained: Path, tmp_path: Path) -> None:
    write, words = WRONG[case]
    path = tmp_path / "file.pth"
    write(path, folder_of(trained, "stage1_epochs2") / "last.pth")
    message = refused("evaluate", *DIGITS, "--pretrained_pth", path)
    assert [word for word in (str(path), *words) if word not in message] == []
    assert "trust_pickle" not in message  # trusting it would not help, and must not be advised lightly


@pytest.mark.parametrize("case", ["words", "a key too few", "a deeper network", "half a record"])
def test_stage_2_leaves_nothing_that_looks_like_a_run(case: str, trained: Path, tmp_path: Path) -> None:
    WRONG[case][0](tmp_path / "file.pth", folder_of(trained, "stage1_epochs2") / "last.pth")
    message = refused("main_stage2", *DIGITS, "--pretrained_pth", tmp_path / "file.pth", "--out", tmp_path / "runs")
    assert [word for word in WRONG[case][1] if word not in message] == [] and "file.pth" in message
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize("script", ["main_stage2", "evaluate"])
def test_a_missing_or_truncated_checkpoint(script: str, runs: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nosuch.pth", tmp_path / "nosuch" / "folder"):
        assert str(path) in refused(script, *DIGITS, "--pretrained_pth", path)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty" / "last.pth") in refused(script, *DIGITS, "--pretrained_pth", tmp_path / "empty")
    last = folder_of(runs, "stage1_epochs2") / "last.pth"
    whole = last.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        last.write_bytes(whole[:size])
        message = refused(script, *DIGITS, "--out", runs)
        assert str(last) in message and "trust_pickle" not in message


def test_overwrite_loses_nothing_where_stage_1_turns_out_not_to_fit(runs: Path) -> None:
    last = folder_of(runs, "stage1_epochs2") / "last.pth"
    content = torch.load(last, weights_only=True)
    del content["model"]["bn1.bias"]
    torch.save(content, last)
    before = contents(runs)
    message = refused("main_stage2", *DIGITS, "--out", runs, "--finetune_epoch", 2, "--overwrite")
    assert "bn1.bias" in message
    assert contents(runs) == before


def test_stage_2_does_not_start_from_stage_2(trained: Path) -> None:
    folder = folder_of(trained, "stage2_los_epochs2_finetune_epoch2")
    for path in (folder, folder / "best.pth"):
        assert "stage2 checkpoint" in refused("main_stage2", *DIGITS, "--pretrained_pth", path)


def test_a_pickled_module_needs_trust(trained: Path, tmp_path: Path) -> None:
    source, path = folder_of(trained, "stage1_epochs2") / "last.pth", tmp_path / "module.pth"
    model = build_model("resnet8", 10)
    model.load_state_dict(weights(source))
    torch.save(model, path)
    for script in ("main_stage2", "evaluate"):
        assert "--trust_pickle" in refused(script, *DIGITS, "--pretrained_pth", path)
    reports = {}
    for file, trust in ((source, ()), (path, ("--trust_pickle",))):
        succeed("evaluate", *DIGITS, "--pretrained_pth", file, "--json", tmp_path / "report.json", *trust)
        (reports[file],) = read(tmp_path / "report.json")["checkpoints"].values()
    assert reports[source]["plain"] == reports[path]["plain"]
    stage2(tmp_path / "runs", "--pretrained_pth", path, "--trust_pickle")
    made = next((tmp_path / "runs").rglob("last.pth"))
    assert same(weights(made), weights(source), head=False)


@pytest.mark.parametrize("damage", ["cut off", "best.pth in its place", "another network", "plain state dict"])
def test_a_damaged_last_checkpoint_on_resuming(damage: str, runs: Path) -> None:
    folder = folder_of(runs, "stage1_epochs2")
    last = folder / "last.pth"
    if damage == "cut off":
        last.write_bytes(last.read_bytes()[:-1000])
    elif damage == "best.pth in its place":
        shutil.copy(folder / "best.pth", last)
    elif damage == "another network":
        torch.save(torch.load(last, weights_only=True) | {"model": resnet8(7)}, last)
    else:
        torch.save(weights(last), last)
    before = contents(runs)
    message = refused("main_stage1", *DIGITS, "--out", runs, "--epochs", 2, "--resume")
    assert str(last) in message
    assert contents(runs) == before


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--network", "resnet32"),
        ("--width", 8),
        ("--image_size", 12),
        ("--resize", 20),
        ("--stem", "imagenet"),
        ("--dataset", "list"),
        ("--imb_ratio", 2),
        ("--holdout", 0.3),
    ],
)
@pytest.mark.parametrize("script", ["main_stage2", "evaluate"])
def test_a_checkpoint_of_something_else(
    script: str,
    flag: str,
    value: object,
    shades: Path,
    shades_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = {"--dataset": "folder", "--stem": "cifar", "--image_size": PIXELS} | {flag: value}
    arguments = [word for pair in usual.items() for word in pair]
    outcome = run(script, "--data_dir", shades, "--pretrained_pth", shades_run, *arguments, "--workers", 0)
    # Of images on disk the imbalance is their own: the checkpoint was trained without the flag.
    words = (f"without {flag}", f"leave {flag} {value}") if flag == "--imb_ratio" else (f"with {flag} ", f"not {value}")
    assert is_refusal(outcome, "last.pth was trained", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_flipped_bit_in_a_checkpoint_of_a_run_is_refused(share: float, home: Path) -> None:
    data = bytearray((STAGE1 / "best.pth").read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename]
        largest = max(tensors, key=lambda entry: entry.file_size)
    data[largest.header_offset + 200 + int(share * largest.file_size)] ^= 4
    (STAGE1 / "best.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"best\.pth is damaged or not a checkpoint .*CRC"):
        load_checkpoint(STAGE1 / "best.pth")


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(1, 3, 1, 1)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(load_checkpoint(tmp_path / "plain.pth").state["conv1.weight"], state["conv1.weight"])


# Weights


def save_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object], width: int = 4) -> Path:
    state = build_model("resnet8", 5, "cifar", width).state_dict()
    edit(state)
    torch.save(state, path)
    return path


WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], int, tuple[str, ...]]] = {
    "NaN": (lambda state: state["bn1.weight"].fill_(float("nan")), 4, ("bn1.weight",)),
    "infinity": (lambda state: state["bn1.weight"][:1].fill_(float("inf")), 4, ("bn1.weight",)),
    "another width": (lambda state: None, 8, ("backbone is not this network's", "conv1.weight")),
    "one tensor too few": (lambda state: state.pop("conv1.weight"), 4, ("conv1.weight",)),
    "nothing": (lambda state: state.clear(), 4, ()),
}


@pytest.mark.parametrize(("case", "epochs"), [*((case, 1) for case in WEIGHTS), ("NaN", 0), ("nothing", 0)])
def test_weights_that_do_not_fit_are_refused(case: str, epochs: int, shades: Path, tmp_path: Path) -> None:
    edit, width, words = WEIGHTS[case]
    file = save_weights(tmp_path / "w.pth", edit, width)
    assert is_refusal(train_on_images(shades, tmp_path / "out", "--weights", file, "--epochs", epochs), "w.pth", *words)
    assert not (tmp_path / "out").exists()


# Records


def test_a_damaged_config_is_named(runs: Path) -> None:
    config = folder_of(runs, "stage1_epochs2") / "config.json"
    for text in ('{"stage": "sta', "", "[1, 2]"):
        config.write_text(text)
        assert str(config) in refused("main_stage2", *DIGITS, "--out", runs)
        assert str(config) in refused("main_stage1", *DIGITS, "--out", runs, "--epochs", 2, "--resume")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("metrics.json", key) for key in ("dataset", "last", "seed", "logits", "stage1")),
        *(("config.json", key) for key in ("tags", "settings", "environment", "stage1")),
    ],
)
def test_a_record_of_another_kind_is_named(name: str, key: str, home: Path) -> None:
    content = json.loads((STAGE2 / name).read_text())
    for value in ([1], True):
        (STAGE2 / name).write_text(json.dumps({**content, key: value}))
        with pytest.raises(UserError, match=f"{STAGE2.name} is damaged"):
            read_run(STAGE2)


# Released files and their cards


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.9999])
@pytest.mark.parametrize("name", ["released", "classifier", "exported"])
def test_a_flipped_bit_in_released_weights_is_refused(name: str, share: float, home: Path) -> None:
    file = Path(f"{name}.safetensors")
    data = bytearray(file.read_bytes())
    data[int(share * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}\.safetensors is not what its card {name}\.json describes"):
        load_checkpoint(file)


def test_a_backbone_is_checked_without_its_card(home: Path) -> None:
    data = bytearray(Path("released.safetensors").read_bytes())
    data[-1] ^= 1
    Path("released.safetensors").write_bytes(data)
    Path("released.json").unlink()
    message = refused("evaluate", "--dataset", "digits", "--pretrained_pth", "classifier.safetensors")
    assert "released.safetensors is not the backbone of classifier.safetensors" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(sha256="0" * 64),
        lambda card: card.update(sha256=None),
        lambda card: card.update(parts=3),
        lambda card: card.update(parts=["x"]),
        lambda card: card.update(sha256=["x"]),
        lambda card: card.update(parts=[{"sha256": card["sha256"]}] * 2),
        lambda card: card.update(parts={"a": 1}),
    ],
)
def test_a_card_that_disagrees_is_refused(change: Callable[[dict[str, Any]], object], home: Path) -> None:
    card = json.loads(Path("released.json").read_text())
    change(card)
    Path("released.json").write_text(json.dumps(card))
    assert "released" in refused("evaluate", "--pretrained_pth", "released.safetensors", "--dataset", "digits")


def test_a_card_that_is_missing_leaves_the_file_as_it_is(home: Path) -> None:
    before = load_checkpoint(Path("released.safetensors"))
    Path("released.json").unlink()
    after = load_checkpoint(Path("released.safetensors"))
    assert after.sha256 == before.sha256 and after.config == before.config


def test_a_text_is_no_checkpoint_and_nobody_is_told_to_run_it(tmp_path: Path) -> None:
    """PyTorch's own words are that reading it with `weights_only=False` "will likely succeed"."""
    (tmp_path / "README.md").write_text("# A page of text")
    line = refused("evaluate", "--pretrained_pth", tmp_path / "README.md")
    assert "README.md is damaged or not a checkpoint (Unsupported operand 35)" in line and "weights_only" not in line
