"""Records of runs: what no run can have written is refused in one line that names file and entry."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save_file

from benchmarks.robustness.fuzz_inputs.damage import PLAIN_JUNK, edited, edits
from datasets import DATASETS
from methods.recipes import RECIPES
from runs.checkpoint import load_checkpoint
from runs.records import checkpoint_faults, config_faults, read_config
from settings.command_line import parse_command
from settings.fields import EVALUATE, FLAGS, STAGE1, STAGE1_LOSSES, STAGE2
from settings.presets import PROTOCOLS
from tests.helpers import stage1, stage2
from utils.errors import UserError

JUNK: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of each stage; not to be changed."""
    folder = tmp_path_factory.mktemp("records")
    stage1(folder, "--epochs", 1, "--width", 4)
    stage2(folder, "--width", 4, "--finetune_epoch", 1)
    return folder


@pytest.fixture(scope="module")
def contents(out: Path) -> list[dict[str, Any]]:
    """What the last checkpoint of each run holds."""
    return [torch.load(path, weights_only=True) for path in sorted(out.rglob("last.pth"))]


def accepted(read: Any, path: Path) -> bool:
    """Read something: True where it is taken, False where one printable line that names the file refuses it."""
    try:
        read(path)
    except UserError as error:
        assert str(error).isprintable() and path.name in str(error)
        return False
    return True


def test_what_runs_write_is_sound(contents: list[dict[str, Any]], out: Path) -> None:
    assert len(contents) == 2
    assert [checkpoint_faults(content) for content in contents] == [[], []]
    assert all(accepted(read_config, path) for path in out.rglob("config.json"))


@pytest.mark.parametrize("name", FLAGS)
def test_every_default_is_a_value_that_a_record_can_have(name: str) -> None:
    flag = FLAGS[name]
    assert config_faults({"settings": {name: flag.default}}) == []
    for wrong in (float("nan"), float("inf"), [], {}, b"a", -1 if flag.kind is str else "\0"):
        if flag.kind is str and isinstance(wrong, str):
            continue
        assert config_faults({"settings": {name: wrong}}) == [name]
    for choice in flag.choices or ():
        assert config_faults({"settings": {name: choice}}) == []
    if flag.choices is not None and name != "dataset":
        assert config_faults({"settings": {name: "nosuch"}}) == [name]


RESOLVED = [
    *((STAGE2, "--method", method) for method in RECIPES),
    *((STAGE2, "--protocol", protocol) for protocol in PROTOCOLS),
    *((STAGE1, "--loss", loss) for loss in STAGE1_LOSSES),
    *((script, "--dataset", dataset) for script in (STAGE1, STAGE2, EVALUATE) for dataset in DATASETS),
    (STAGE1, "--weights", "a.pth", "--epochs", "0"),
]


@pytest.mark.parametrize("words", RESOLVED, ids=" ".join)
def test_what_every_command_line_comes_to_is_sound(words: tuple[str, ...]) -> None:
    command = parse_command(words[0], "", words[1:])
    assert config_faults({"settings": dataclasses.asdict(command.settings)}) == []


WRONG: dict[str, tuple[str, Any]] = {
    "protocol": ("settings.protocol", "nosuch"),
    "tags": ("tags", [1]),
    "stage": ("stage", "stage3"),
    "class_names (1 for 10 classes)": ("class_names", ["a"]),
    "class_counts (2 for 10 classes)": ("class_counts", [3, 4]),
    "num_class": ("num_class", -1),
    "method": ("method", "../x"),
    "stage1": ("stage1", {"tags": ["../x"]}),
    "subset": ("subset", {"index_sha256": 3}),
    "identity": ("identity.test.images", -1),
    "parts": ("parts", [3]),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_entry_is_named(words: str, contents: list[dict[str, Any]], tmp_path: Path) -> None:
    entry, value = WRONG[words]
    content = copy.deepcopy(contents[0])
    *way, last = entry.split(".")
    holder = content["config"]
    for step in way:
        holder = holder[step]
    holder[last] = value
    torch.save(content, tmp_path / "file.pth")
    (tmp_path / "config.json").write_text(json.dumps(content["config"]))
    for read, name in ((load_checkpoint, "file.pth"), (read_config, "config.json")):
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} is damaged: its {words} cannot be"


@pytest.mark.parametrize(
    "wrong",
    [
        7,
        {"how": "hearsay"},
        {"of": "sounds"},
        {"train": None},
        {"holdout": {"images": 2.5}},
        {"test": {"content_sha256": 3}},
        {"pool_sha256": None},
        {"classes": ["a"]},
        {"classes": {"train": [1]}},
    ],
)
def test_an_identity_that_no_run_can_have_is_noticed(wrong: Any, contents: list[dict[str, Any]]) -> None:
    identity = contents[0]["config"]["identity"]
    assert config_faults({"identity": wrong if wrong == 7 else {**identity, **wrong}}) == ["identity"]
    for older in (None, {}, identity, {name: identity[name] for name in ("how", "train")}):
        assert config_faults({"identity": older}) == []


@pytest.mark.parametrize("temperature", [float("nan"), 0, -1.0, float("inf"), True, "2", [1.0]])
def test_a_temperature_that_cannot_be_is_refused(
    temperature: Any, contents: list[dict[str, Any]], tmp_path: Path
) -> None:
    torch.save({**contents[0], "temperature": temperature}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"file\.pth is damaged: its temperature cannot be"):
        load_checkpoint(tmp_path / "file.pth")


@QUICK
@given(
    done=edits([name for name in PLAIN_JUNK if name not in ("more than huge", "deep")], most=4), which=st.integers(0, 1)
)
def test_edited_records_load_or_are_refused_in_a_line(
    done: Any, which: int, contents: list[dict[str, Any]], tmp_path: Path
) -> None:
    content = {key: value for key, value in contents[which].items() if key not in ("model", "optimizer")}
    changed = edited(content, done, PLAIN_JUNK)
    header = json.dumps(changed).encode("utf-8", "replace").decode()
    tensors = {key: value.contiguous() for key, value in contents[which]["model"].items()}
    save_file(tensors, tmp_path / "file.safetensors", {"checkpoint": header})
    accepted(load_checkpoint, tmp_path / "file.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(changed.get("config") if isinstance(changed, dict) else changed))
    accepted(read_config, tmp_path / "config.json")


@QUICK
@given(junk=JUNK, name=st.sampled_from(list(FLAGS)), entry=st.text(max_size=8))
def test_no_value_of_an_entry_is_a_traceback(
    junk: Any, name: str, entry: str, contents: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = contents[0]["config"]
    for changed in (
        {**config, "settings": {**config["settings"], name: junk}},
        *({**config, key: junk} for key in config),
        {**config, entry: junk},
    ):
        assert all(isinstance(fault, str) for fault in config_faults(changed))
