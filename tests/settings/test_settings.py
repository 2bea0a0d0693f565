"""No dead setting: each one is read, by the scripts that say so; presets and protocols name settings that exist.

A hyper-parameter of losses and heads counts as read where it has a value, which it has for the methods that own it;
test_recipes.py says that another value has an effect.
"""

import ast
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import runs.run_record
import utils.files
from datasets import DATASETS
from losses import loss_parameters
from models import build_model
from runs.run_record import describe
from settings.checks import check_domains
from settings.fields import EVERYWHERE, FIELDS, PARAMETERS, STAGE1_LOSSES, Settings
from settings.presets import LOSS_PRESETS, PRESETS, PROTOCOL_SWITCHES, PROTOCOLS
from tests.helpers import ROOT, SCRIPTS, folder_of, image_tree, run, stage1, stage2, succeed

ROOMS = ("utils", "datasets", "models", "losses", "methods", "evaluation", "settings", "runs", "engine", "stages")
SOURCES = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))]


def recorded(node: ast.Subscript) -> list[str]:
    """The setting that `settings["NAME"]` names."""
    of_settings = isinstance(node.value, ast.Name) and node.value.id == "settings"
    return [node.slice.value] if of_settings and isinstance(node.slice, ast.Constant) else []


def reads(tree: ast.AST) -> Iterator[str]:
    """The settings that a module reads: as `settings.NAME`, as `settings["NAME"]` of a run's record, from a tuple or
    list of nothing but their names, or from the list of all hyper-parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id == "PARAMETERS":
            yield from PARAMETERS
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            yield from recorded(node)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name == "settings":
                yield node.attr
        if isinstance(node, ast.Tuple | ast.List):
            names = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            if names and all(name in FIELDS for name in names):
                yield from names


def test_every_setting_is_read_outside_the_configuration() -> None:
    readers = [path for path in SOURCES if path.parent.name != "settings" or path.name == "stage2_plan.py"]
    found = {name for path in readers for name in reads(ast.parse(path.read_text()))}
    assert set(FIELDS) - found - set(PROTOCOL_SWITCHES) == set()
    stage2_source = set(reads(ast.parse((ROOT / "main_stage2.py").read_text())))
    assert {"bn_mode", "views"} <= stage2_source
    assert "start" in set(reads(ast.parse((ROOT / "stages" / "checkpoints.py").read_text())))


def test_nothing_reads_a_setting_that_does_not_exist() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "settings":
                assert node.attr in FIELDS, f"{path.name}:{node.lineno}: settings.{node.attr}"
            if isinstance(node, ast.Subscript):
                assert set(recorded(node)) <= set(FIELDS), f"{path.name}:{node.lineno}"


# Where reading a setting does not make a script depend on it: naming a folder, checking a domain, filling in defaults,
# handing values on, quoting a command.
NOT_A_USE = {
    "stage1_tags", "stage2_tags", "_command_for", "adopt_checkpoint", "check_domains", "fill_stage_values",
    "parse_command", "replace", "asdict", "_asdict_inner", "describe", "given_parameters", "_refuse_other_settings",
}  # fmt: skip


# Hyper-parameters that stage 1 knows only in order to refuse them.
NO_LOSS = set(PARAMETERS) - {name for loss in STAGE1_LOSSES for name in loss_parameters(loss)}


class Spy:
    """Notes which settings are used while a command runs, and which a stage or a method is refused for."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.checked: set[str] = set()

    def __call__(self, settings: Settings, name: str) -> Any:
        value = object.__getattribute__(settings, name)
        if name in FIELDS and (name not in PARAMETERS or value is not None):
            self.note(name, sys._getframe(1))
        return value

    def recording(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the content of config.json with settings that note who reads them."""

        class Record(dict[str, Any]):
            def __getitem__(record, name: str) -> Any:
                self.note(name, sys._getframe(1))
                return super().__getitem__(name)

        return {**config, "settings": Record(config["settings"])}

    def note(self, name: str, frame: FrameType | None) -> None:
        while frame is not None:
            code = frame.f_code
            ours = ROOT in Path(code.co_filename).parents
            if ours and code.co_name == "check_stage":
                self.checked.add(name)
                return
            if code.co_name in NOT_A_USE and (ours or code.co_filename == dataclasses.__file__):
                return
            frame = frame.f_back
        self.used.add(name)


@pytest.fixture(scope="module")
def spies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Spy]:
    """What each script reads, found by running it in several ways."""
    out = tmp_path_factory.mktemp("uses")
    plain = out / "plain.pth"
    torch.save(build_model("resnet8", 10, width=2).state_dict(), plain)
    small = ("--dataset", "digits", "--width", 2, "--out", out)
    losses = ("focal", "cb_ce", "reweighted_ce", "logit_adjust", "las", "gala")
    methods = ("focal", "cb_ce", "vs", "las", "gcl", "ldam", "gala", "marc", "tau_norm")
    tree = image_tree(out / "tree", classes=3, train=4)
    on_disk = ("--dataset", "folder", "--data_dir", tree, "--stem", "cifar", "--network", "resnet8", "--width", 2)
    on_disk += ("--image_size", 8, "--resize", 8, "--workers", 0, "--out", out)
    lines: list[tuple[str, tuple[object, ...]]] = [
        ("main_stage1", (*on_disk, "--epochs", 1)),
        ("main_stage2", (*on_disk, "--finetune_epoch", 1, "--tensorboard")),
        ("main_stage1", (*small, "--epochs", 1, "--out", out / "events", "--tensorboard")),
        ("main_stage1", (*small, "--epochs", 1)),
        ("main_stage1", (*small, "--epochs", 1, "--resume")),
        *(("main_stage1", (*small, "--epochs", 1, "--loss", loss, "--out", out / loss)) for loss in losses),
        ("main_stage2", (*small, "--finetune_epoch", 1)),
        ("main_stage2", (*small, "--finetune_epoch", 1, "--protocol", "released")),
        ("main_stage2", (*small, "--finetune_epoch", 1, "--pretrained_pth", plain, "--method", "ce")),
        *(("main_stage2", (*small, "--finetune_epoch", 1, "--pretrained_pth", plain, "--method", m)) for m in methods),
        ("evaluate", (*small, "--cur_stage", "stage1")),
        ("evaluate", (*small, "--cur_stage", "stage2", "--method", "ce")),
        ("evaluate", ("--dataset", "digits", "--width", 2, "--pretrained_pth", plain, "--json", out / "report.json")),
    ]
    found = {script: Spy() for script in SCRIPTS}
    for script, arguments in lines:

        def reading(settings: Settings, name: str, spy: Spy = found[script]) -> Any:
            return spy(settings, name)

        def describing(*given: Any, spy: Spy = found[script], **named: Any) -> dict[str, Any]:
            return spy.recording(describe(*given, **named))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Settings, "__getattribute__", reading, raising=False)
            patch.setattr(runs.run_record, "describe", describing)
            succeed(script, *arguments)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_setting_that_claims_to_be_used_by_a_script_is(script: str, spies: dict[str, Spy]) -> None:
    claimed = {name for name, field in FIELDS.items() if script in field.metadata["used_by"]}
    assert claimed - spies[script].used - spies[script].checked == (NO_LOSS if script == "main_stage1" else set())


def test_a_parameter_that_no_loss_of_stage_1_has_is_refused_there(tmp_path: Path) -> None:
    assert {"max_margin", "noise", "scale"} == NO_LOSS
    for name in NO_LOSS:
        outcome = run("main_stage1", "--dataset", "digits", "--out", tmp_path, f"--{name}", 0.5)
        assert outcome.status == 2 and "it belongs to no loss of stage 1" in outcome.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_setting_that_is_said_not_to_be_used_by_a_script_is_not(script: str, spies: dict[str, Spy]) -> None:
    claimed = {name for name, field in FIELDS.items() if script in field.metadata["used_by"]}
    assert spies[script].used - claimed == set()


def test_every_setting_is_used_by_a_known_script() -> None:
    for name, field in FIELDS.items():
        assert field.metadata["used_by"], name
        assert set(field.metadata["used_by"]) <= set(EVERYWHERE), name
        assert set(field.metadata["folder"]) <= set(field.metadata["used_by"]), name
        assert field.metadata["help"], name


def test_presets_and_protocols_name_settings_that_exist() -> None:
    assert list(PRESETS) == list(DATASETS)
    assert all(dataset in DATASETS and loss in STAGE1_LOSSES for dataset, loss in LOSS_PRESETS)
    for preset in (*PRESETS.values(), *LOSS_PRESETS.values()):
        assert set(preset) <= set(FIELDS)
        assert not set(preset) & {"dataset", "protocol", "start", "bn_mode"}
    assert set(PROTOCOL_SWITCHES) <= set(FIELDS)
    assert set(PROTOCOLS) == set(FIELDS["protocol"].metadata["choices"])
    for switches in PROTOCOLS.values():
        assert set(switches) <= set(PROTOCOL_SWITCHES)


def test_presets_hold_values_in_their_domain() -> None:
    presets = [*PRESETS.items(), *((dataset, preset) for (dataset, _), preset in LOSS_PRESETS.items())]
    for dataset, preset in presets:
        settings = Settings(**preset, dataset=dataset)
        check_domains(dataclasses.replace(settings, device="cpu"))


@pytest.mark.parametrize("flag", [name for name in FIELDS if name not in ("pretrained_pth", "json", "data_dir", "out")])
def test_every_setting_is_a_flag_of_every_script(flag: str) -> None:
    """A bad value of each is refused by name, so that no script can take a flag and forget it."""
    if FIELDS[flag].metadata["kind"] is bool:
        for script in SCRIPTS:
            assert f"--{flag}" in succeed(script, "--help").out
        return
    for script in SCRIPTS:
        outcome = run(script, "--dataset", "digits", f"--{flag}", "nosuch")
        assert outcome.status == 2
        assert flag.removeprefix("dataset") in outcome.err and "nosuch" in outcome.err


def test_a_flag_on_the_command_line_wins_over_preset_and_protocol(tmp_path: Path) -> None:
    stage1(tmp_path, "--lr", 0.2, "--batch_size", 100)
    config = utils.files.read_json(folder_of(tmp_path, "stage1_epochs2_batch_size100_lr0.2") / "config.json")
    assert (config["settings"]["lr"], config["settings"]["batch_size"]) == (0.2, 100)
    assert config["settings"]["wd"] == PRESETS["digits"]["wd"]
    stage2(tmp_path, "--protocol", "released", "--start", "last", "--bn_mode", "eval", "--views", 2)
    config = utils.files.read_json(next(tmp_path.rglob("stage2*/config.json")))
    assert [config["settings"][name] for name in ("protocol", *PROTOCOL_SWITCHES)] == ["released", "last", "eval", "2"]
