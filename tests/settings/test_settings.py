"""No dead setting: each one is read by the scripts that say so, and by no other; presets name settings that exist.

A setting counts as read where a line outside `settings/` reads it by its name. What looks at all settings alike, in
order to check or record them or to name a folder, takes them from `vars(settings)` or lies in `settings/`: no use.
A hyper-parameter of losses and heads counts as read where it has a value, which it has for the methods that own it;
test_recipes.py says that another value has an effect.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import runs.run_record
import utils.files
from datasets import DATASETS
from losses import LOSSES, loss_parameters
from methods.closed_form import CLOSED_FORM, closed_form_parameters
from methods.declared import takes_plain_logits
from methods.recipes import RECIPES
from models import build_model
from models.heads import HEADS, head_parameters
from settings.checks import check_domains
from settings.declare import EVERYWHERE, Facet
from settings.fields import FLAGS, PROTOCOL_SWITCHES, STAGE1_LOSSES, Settings, with_facet
from settings.presets import LOSS_PRESETS, METHOD_PRESETS, PRESETS, PROTOCOLS, STAGE2_PRESETS
from tests.helpers import ROOT, SCRIPTS, folder_of, image_tree, is_refusal, run, stage1, stage2, succeed
from utils.errors import UserError
from utils.parameters import HYPERPARAMETERS, keyword_parameters

# Hyper-parameters that stage 1 knows only in order to refuse them.
NO_LOSS = set(HYPERPARAMETERS) - {name for loss in STAGE1_LOSSES for name in loss_parameters(loss)}
# Stage 1 refuses another --cur_stage; a report finds by --weights the run whose folder names them.
# Stage 1 trusts the file of --weights, and maps that of --features, which these runs do without.
OF_FILES = {"trust_pickle"}
OTHER_USES = {"main_stage1": NO_LOSS | {"cur_stage"} | OF_FILES, "main_stage2": set(), "evaluate": {"weights"}}


def is_use(file: Path) -> bool:
    """Tell whether a line of `file` that reads a setting uses it."""
    within = file.is_relative_to(ROOT) and ".venv" not in file.parts and "tests" not in file.parts
    return within and (file.parent != ROOT / "settings" or file.name == "stage2_plan.py")


def note(used: set[str], name: str, value: Any, file: str) -> None:
    if name in FLAGS and (name not in HYPERPARAMETERS or value is not None) and is_use(Path(file)):
        used.add(name)


def run_noting(used: set[str], script: str, *arguments: object) -> None:
    """Run a command and note the settings that it uses: as attributes, and from the record that a run keeps of them."""

    class Record(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            value = super().__getitem__(name)
            note(used, name, value, sys._getframe(1).f_code.co_filename)
            return value

    def read(settings: Settings, name: str) -> Any:
        value = object.__getattribute__(settings, name)
        note(used, name, value, sys._getframe(1).f_code.co_filename)
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "__getattribute__", read, raising=False)
        patch.setattr(runs.run_record, "asdict", lambda settings: Record(dataclasses.asdict(settings)))
        succeed(script, *arguments)


def owners(table: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Names of a table that have all its hyper-parameters between them."""
    return sorted({next(name for name in table if own in table[name]) for names in table.values() for own in names})


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What each script uses, found by running it in several ways."""
    out = tmp_path_factory.mktemp("uses")
    plain = out / "plain.pth"
    torch.save(build_model("resnet8", 10, width=2).state_dict(), plain)
    small = ("--dataset", "digits", "--width", 2, "--out", out)
    losses = owners({loss: loss_parameters(loss) for loss in STAGE1_LOSSES})
    methods = owners({method: recipe.own_parameters() for method, recipe in RECIPES.items()})
    tree = image_tree(out / "tree", classes=3, train=4)
    on_disk = ("--dataset", "folder", "--data_dir", tree, "--stem", "cifar", "--network", "resnet8", "--width", 2)
    on_disk += ("--image_size", 8, "--resize", 8, "--workers", 0, "--out", out)
    given = ("--finetune_epoch", 1, "--pretrained_pth", plain)
    lines: list[tuple[str, tuple[object, ...]]] = [
        ("main_stage1", (*on_disk, "--epochs", 1)),
        ("main_stage2", (*on_disk, "--finetune_epoch", 1)),
        *(("main_stage1", (*small, "--epochs", 1, "--loss", loss, "--out", out / loss)) for loss in losses),
        ("main_stage1", (*small, "--epochs", 1)),
        ("main_stage2", (*small, "--finetune_epoch", 1)),
        *(("main_stage2", (*small, *given, "--method", method)) for method in methods),
        ("evaluate", (*small, "--cur_stage", "stage2")),
        ("evaluate", ("--dataset", "digits", "--width", 2, "--pretrained_pth", plain, "--json", out / "report.json")),
    ]
    found: dict[str, set[str]] = {script: set() for script in SCRIPTS}
    for script, arguments in lines:
        run_noting(found[script], script, *arguments)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_uses_the_settings_that_say_so_and_no_others(script: str, used: dict[str, set[str]]) -> None:
    claimed = {name for name, flag in FLAGS.items() if script in flag.read_by}
    assert claimed - used[script] == OTHER_USES[script]
    assert used[script] - claimed == set()


def test_every_number_says_which_values_it_takes() -> None:
    """What a flag alone can judge is refused with the command line, and not after the data are loaded."""
    numbers = {name for name, flag in FLAGS.items() if flag.kind in (int, float)} - set(HYPERPARAMETERS)
    assert {name for name in numbers if FLAGS[name].bounds is None} == set()
    assert {"holdout", "imb_ratio", "test_share"} <= numbers


@pytest.mark.parametrize("script", ["main_stage1", "main_stage2", "evaluate"])
@pytest.mark.parametrize(
    ("flag", "value"), [("holdout", 1), ("holdout", -0.1), ("imb_ratio", 0.5), ("imb_ratio", "inf")]
)
def test_a_share_that_no_data_can_have_is_refused_alike_by_all(script: str, flag: str, value: object) -> None:
    """Stage 2 does not ask for a stage 1 that would be refused."""
    may = {"holdout": "at least 0 and below 1", "imb_ratio": "a finite number at least 1"}[flag]
    assert is_refusal(run(script, "--dataset", "digits", f"--{flag}={value}"), f"--{flag} must be {may}, not {value}")


def test_a_parameter_that_no_loss_of_stage_1_has_is_refused_there(tmp_path: Path) -> None:
    numbers, words = {"anchor", "max_margin", "noise", "scale", "start_tau"}, {"gcl_loss": "paper", "norm_bias": "keep"}
    words |= {"distance": "logits", "fit_on": "views"}
    assert numbers | set(words) == NO_LOSS
    for name in NO_LOSS:
        value = words.get(name, 0.5)
        outcome = run("main_stage1", "--dataset", "digits", "--out", tmp_path, f"--{name}", value)
        assert outcome.status == 2 and "it belongs to no loss of stage 1" in outcome.err


def test_every_hyper_parameter_is_one_of_a_loss_a_head_or_a_closed_form() -> None:
    owned = {name for loss in LOSSES for name in loss_parameters(loss)}
    owned |= {name for head in HEADS for name in head_parameters(head)}
    owned |= {name for closed_form in CLOSED_FORM for name in closed_form_parameters(closed_form)}
    assert owned == set(HYPERPARAMETERS) == set(with_facet(Facet.HYPERPARAMETER))


def test_a_hyper_parameter_that_no_flag_can_set_is_named() -> None:
    def undeclared(*, sharpness: float = 1.0) -> None: ...

    def without_default(*, tau: float) -> None: ...

    def positional(tau: float = 1.0) -> None: ...

    with pytest.raises(UserError, match="'sharpness' that utils"):
        keyword_parameters("loss", "toy", {"toy": undeclared})
    with pytest.raises(UserError, match="'tau' of the loss 'toy' needs a default value"):
        keyword_parameters("loss", "toy", {"toy": without_default})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="'toy' takes 'tau', which is neither"):
        patch.setitem(LOSSES, "toy", positional)
        loss_parameters("toy")


def test_a_loss_says_whether_it_takes_plain_logits() -> None:
    assert not {"ldam", "ldam_weighted", "gcl"} & set(STAGE1_LOSSES)  # those of a cosine head
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="'toy' must say whether it takes plain"):
        patch.setitem(LOSSES, "toy", torch.nn.CrossEntropyLoss)
        takes_plain_logits("toy")


def test_every_setting_is_declared_whole() -> None:
    for name, flag in FLAGS.items():
        assert flag.read_by and set(flag.read_by) <= set(EVERYWHERE), name
        assert set(flag.named_by) <= set(flag.read_by), name
        assert flag.help, name
        assert flag.kind in (bool, int, float, str), name


def test_presets_and_protocols_name_settings_that_exist() -> None:
    assert set(PRESETS) <= set(DATASETS)
    assert all(dataset in DATASETS and loss in STAGE1_LOSSES for dataset, loss in LOSS_PRESETS)
    every = (*PRESETS.values(), *LOSS_PRESETS.values(), *METHOD_PRESETS.values(), *STAGE2_PRESETS.values())
    for preset in every:
        assert set(preset) <= set(FLAGS)
        assert not set(preset) & {"dataset", "protocol", "start", "bn_mode"}
    assert set(PROTOCOLS) == set(FLAGS["protocol"].choices or ())
    for switches in PROTOCOLS.values():
        assert set(switches) <= set(PROTOCOL_SWITCHES)


def test_presets_hold_values_in_their_domain() -> None:
    presets = [*PRESETS.items(), *((dataset, preset) for (dataset, _), preset in LOSS_PRESETS.items())]
    for dataset, preset in presets:
        settings = Settings(**preset, dataset=dataset)
        check_domains(dataclasses.replace(settings, device="cpu"))


@pytest.mark.parametrize(
    "flag", [name for name in FLAGS if name not in ("pretrained_pth", "json", "html", "data_dir", "out")]
)
def test_every_setting_is_a_flag_of_every_script(flag: str) -> None:
    """A bad value of each is refused by name, so that no script can take a flag and forget it."""
    bad = f"--{flag}=nosuch" if FLAGS[flag].kind is bool else f"--{flag}"
    for script in SCRIPTS:
        outcome = run(script, "--dataset", "digits", bad, *([] if "=" in bad else ["nosuch"]))
        assert outcome.status == 2
        assert flag.removeprefix("dataset") in outcome.err and "nosuch" in outcome.err


def test_a_flag_on_the_command_line_wins_over_preset_and_protocol(tmp_path: Path) -> None:
    stage1(tmp_path, "--lr", 0.2, "--batch_size", 100)
    config = utils.files.read_json(folder_of(tmp_path, "stage1_epochs2_batch_size100_lr0.2") / "config.json")
    assert (config["settings"]["lr"], config["settings"]["batch_size"]) == (0.2, 100)
    assert config["settings"]["wd"] == PRESETS["digits"]["wd"]
    stage2(tmp_path, "--protocol", "released", "--start", "last", "--bn_mode", "eval", "--views", 2)
    config = utils.files.read_json(next(tmp_path.rglob("stage2*/config.json")))
    values = {name: config["settings"][name] for name in ("protocol", *PROTOCOL_SWITCHES)}
    assert values == {"protocol": "released", "start": "last", "bn_mode": "eval", "views": "2"}
