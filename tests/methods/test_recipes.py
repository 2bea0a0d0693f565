"""Every row of RECIPES names things that exist, with values that they take, and says where it comes from."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from datasets.names import SAMPLERS
from losses import LOSSES, loss_parameters
from losses.los import ONE_HOT, TARGETS, torch_target
from methods.closed_form import CLOSED_FORM, closed_form_parameters
from methods.plan import Plan, build_losses, compute_head, plan_key, resolve_target, start_head
from methods.recipes import RECIPES, Recipe, find_recipe, resolve_parameters
from models.heads import FROZEN_WEIGHT, HEADS, head_parameters
from settings.command_line import parse_command
from settings.fields import STAGE1, STAGE1_LOSSES, STAGE2
from settings.presets import PRESETS
from settings.stage2_plan import plan_of
from utils.errors import UserError
from utils.parameters import HYPERPARAMETERS, check_parameter

# What a row's `tuned` is called on the command line, where it is called otherwise.
COUNTS = [50, 20, 8, 3]
PLUG_INS = {"logit_adjust_los": "logit_adjust", "lws_los": "lws", "cosine_los": "cosine", "disalign_los": "disalign"}
PLUG_INS["samn_los"] = "samn"
# The methods that the project promises; more may come.
PROMISED = {
    "ce",
    "label_smooth",
    "los",
    "lort",
    "focal",
    "cb_ce",
    "wb_cb",
    "balanced_softmax",
    "logit_adjust",
    "ldam",
    "ldam_drw",
    "las",
    "vs",
    "gcl",
    "gala",
    "lws",
    "disalign",
    "marc",
    "cosine",
    "crt",
    "wb",
    "tau_norm",
    "l2_norm",
    "ncm",
    "logit_adjust_posthoc",
    "proximal_los",
    "tau_norm_centred",
    "prior2posterior",
    "offsets",
    "gml",
    "ridge",
    "simplex",
    "knn",
    *PLUG_INS,
}


def parsed_plan(*arguments: object) -> Plan:
    """The plan that a command line of stage 2 describes; nothing is read but the line."""
    return plan_of(parse_command(STAGE2, "", [str(word) for word in arguments]).settings, 100)


def test_every_promised_method_is_a_row() -> None:
    assert set(RECIPES) >= PROMISED


@pytest.mark.parametrize("method", RECIPES)
def test_a_row_names_what_exists(method: str) -> None:
    recipe = RECIPES[method]
    assert recipe.loss in LOSSES and (recipe.late_loss is None or recipe.late_loss in LOSSES)
    assert recipe.head in HEADS and recipe.sampler in SAMPLERS
    assert recipe.closed_form is None or recipe.closed_form in CLOSED_FORM
    assert recipe.target is None or recipe.target in TARGETS
    assert (recipe.target is None) == (recipe.label_smooth is None)
    assert recipe.trains == (recipe.closed_form is None)
    assert recipe.epochs >= 1 and recipe.lr > 0 and recipe.weight_decay >= 0
    assert recipe.max_norm is None or 0 <= recipe.max_norm <= 1
    assert recipe.title and recipe.title != method


@pytest.mark.parametrize("method", RECIPES)
def test_a_row_says_where_it_comes_from(method: str) -> None:
    citation = RECIPES[method].citation
    assert (citation == "-") == (method == "ce")
    assert method == "ce" or re.search(r"arXiv \d{4}\.\d{5}$", citation)


@pytest.mark.parametrize("method", RECIPES)
def test_own_parameters_are_settings_with_values_in_their_range(method: str) -> None:
    recipe = RECIPES[method]
    own = recipe.own_parameters()
    assert set(recipe.parameters) <= set(own) <= set(HYPERPARAMETERS)
    for name, value in own.items():
        check_parameter(name, value)
    if recipe.trains:
        known = {**head_parameters(recipe.head), **loss_parameters(recipe.loss)}
        known |= loss_parameters(recipe.late_loss) if recipe.late_loss else {}
    else:
        known = closed_form_parameters(str(recipe.closed_form))
    assert set(own) == set(known)
    assert resolve_parameters(method, {}) == own


def test_a_scale_that_head_and_loss_share_is_one_number() -> None:
    """The margins of LDAM and the clouds of GCL are given before the scale of the cosine head."""
    for method, recipe in RECIPES.items():
        if not (recipe.trains and {"scale"} <= set(head_parameters(recipe.head)) & set(loss_parameters(recipe.loss))):
            continue
        for plan in (parsed_plan("--method", method), parsed_plan("--method", method, "--scale", 7)):
            scale = float(plan.parameters["scale"])
            head, (loss, late) = start_head(plan, nn.Linear(3, 4), 0), build_losses(plan, COUNTS)
            assert float(head.scale) == scale
            for phase in (loss, late):
                constant = phase.clouds if method == "gcl" else phase.margins
                width = plan.parameters["noise" if method == "gcl" else "max_margin"]
                assert float(constant.max()) == pytest.approx(scale * float(width))
    assert parsed_plan("--method", "gcl").parameters["scale"] == 20
    assert parsed_plan("--method", "ldam").parameters["scale"] == 30


@pytest.mark.parametrize("method", [name for name, recipe in RECIPES.items() if recipe.tuned])
def test_the_tuned_parameter_is_a_flag_that_changes_the_plan(method: str) -> None:
    tuned = RECIPES[method].tuned
    assert tuned is not None
    name, values = tuned
    assert len(set(values)) == len(values) > 1
    plans = [parsed_plan("--method", method, f"--{name}", value) for value in values]
    for plan, value in zip(plans, values, strict=True):
        field = {"finetune_wd": "weight_decay"}.get(name, name)
        assert (plan.parameters[name] if name in plan.parameters else getattr(plan, field)) == value
    for plan in plans:
        plan.target(100)
    usual = parsed_plan("--method", method)
    assert len(
        {(plan.label_smooth, plan.weight_decay, plan.max_norm, *plan.parameters.values()) for plan in plans}
    ) == len(values)
    assert {plan.method for plan in plans} == {usual.method}


@pytest.mark.parametrize("method", RECIPES)
def test_the_defaults_of_a_row_are_those_of_a_bare_command_line(method: str) -> None:
    recipe, settings = RECIPES[method], parse_command(STAGE2, "", ["--method", method]).settings
    plan = plan_of(settings, 100)
    assert (plan.sampler, plan.max_norm, plan.reinit) == (recipe.sampler, recipe.max_norm, recipe.fresh)
    assert plan.schedule == recipe.schedule
    assert settings.finetune_schedule == (recipe.schedule if recipe.trains else None)
    assert plan.label_smooth == recipe.label_smooth and plan.parameters == recipe.own_parameters()
    assert (plan.epochs, plan.lr, plan.weight_decay) == (
        recipe.epochs if recipe.trains else 0,
        recipe.lr,
        recipe.weight_decay,
    )
    assert plan.recipe is recipe and settings.label_smooth == recipe.label_smooth


def test_rows_that_are_kept_know_a_plan_by_names_that_stay() -> None:
    assert plan_key(parsed_plan("--method", "los")) == {
        "method": "los",
        "epochs": 20,
        "lr": 5e-4,
        "weight_decay": 0.0,
        "smoothing": 0.98,
        "sampler": "instance",
        "max_norm": None,
        "reinit": False,
        "parameters": {},
    }


@pytest.mark.parametrize(("method", "base"), PLUG_INS.items())
def test_a_plug_in_is_its_base_with_the_target_of_los(method: str, base: str) -> None:
    recipe, los = RECIPES[method], RECIPES["los"]
    assert (recipe.target, recipe.label_smooth) == (los.target, los.label_smooth) == ("torch", 0.98)
    assert recipe.head == RECIPES[base].head
    if base != "disalign":  # whose own loss, re-weighted, takes no soft target: LOS replaces it
        assert recipe.loss == RECIPES[base].loss
    assert "target" in LOSSES[recipe.loss].__init__.__annotations__
    assert parsed_plan("--method", method).target(100) == pytest.approx(torch_target(0.98, 100))
    assert parsed_plan("--method", base).target(100) == ONE_HOT


def test_only_a_method_with_a_budget_of_its_own_ignores_the_data_sets() -> None:
    assert not RECIPES["los"].own_budget and not RECIPES["ce"].own_budget and RECIPES["crt"].own_budget
    digits = ("--dataset", "digits")
    assert parsed_plan(*digits, "--method", "ce").lr == PRESETS["digits"]["finetune_lr"]
    for method, recipe in RECIPES.items():
        plan = parsed_plan(*digits, "--method", method)
        assert plan.lr == (recipe.lr if recipe.own_budget else PRESETS["digits"]["finetune_lr"])
        if recipe.trains:
            assert parsed_plan(*digits, "--method", method, "--finetune_lr", 0.3).lr == 0.3


def test_samplers_constraints_and_starts_go_with_any_method_that_trains() -> None:
    for method, recipe in RECIPES.items():
        if recipe.trains:
            for sampler in SAMPLERS:
                assert parsed_plan("--method", method, "--sampler", sampler).sampler == sampler
            assert parsed_plan("--method", method, "--finetune_wd", 0.5).weight_decay == 0.5
            if recipe.head == "linear":
                assert parsed_plan("--method", method, "--max_norm", 0.25).max_norm == 0.25
            else:
                with pytest.raises(UserError, match="no trained row norms"):
                    parsed_plan("--method", method, "--max_norm", 0.25)
            if recipe.head in FROZEN_WEIGHT:
                with pytest.raises(UserError, match="keeps stage 1's weights"):
                    parsed_plan("--method", method, "--reinit_classifier")
            else:
                assert parsed_plan("--method", method, "--reinit_classifier").reinit


def test_every_parameter_of_the_command_line_is_one_of_a_method() -> None:
    used = {name for recipe in RECIPES.values() for name in recipe.own_parameters()}
    assert used == set(HYPERPARAMETERS)
    assert set(STAGE1_LOSSES) <= set(LOSSES)


# Of each parameter that is a word, one that no row has.
WORDS = {
    "gala_margin": "released",
    "gala_accumulation": "double",
    "cb_mean": "weight",
    "las_target": "paper",
    "gcl_loss": "paper",
    "norm_bias": "drop",
    "distance": "logits",
    "fit_on": "views",
}


@pytest.mark.parametrize("method", RECIPES)
def test_a_parameter_of_another_method_is_refused(method: str) -> None:
    own = RECIPES[method].own_parameters()
    for name in HYPERPARAMETERS:
        value: Any = WORDS.get(name, 0.5)
        if name in own:
            assert resolve_parameters(method, {name: value})[name] == value
            continue
        with pytest.raises(UserError) as caught:
            resolve_parameters(method, {name: value})
        users = [other for other, recipe in RECIPES.items() if name in recipe.own_parameters()]
        assert str(caught.value).endswith(f"it belongs to {', '.join(users)}") and f"--{name}" in str(caught.value)


OTHER: dict[str, Any] = {**WORDS, "tau": 0.3, "scale": 3.0}


@pytest.mark.parametrize(
    ("method", "name"),
    [  # `fit_on` decides whose features a classifier is computed from: tests/engine/test_frozen_features.py
        (method, name) for method in RECIPES for name in RECIPES[method].own_parameters() if name != "fit_on"
    ],
)
def test_every_own_parameter_has_an_effect(method: str, name: str) -> None:
    """Another value gives another head, or another loss after a few steps (GALA's margins begin at nothing)."""
    recipe = RECIPES[method]
    generator = torch.Generator().manual_seed(0)
    features, labels = (
        torch.randn(24, 6, generator=generator),
        torch.arange(4).repeat_interleave(torch.tensor([10, 8, 4, 2])),
    )
    linear = nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(4, 6, generator=generator))
    value = OTHER.get(name, 0.3)
    given = {"lambda1": 0.5} if name == "gala_margin" else {}  # equal lambdas make both margins one
    found = []
    for changed in (given, {**given, name: value}):
        own = resolve_parameters(method, changed)
        plan = Plan(method, 1, 0.1, 0.0, recipe.label_smooth, recipe.sampler, None, False, own)
        if not recipe.trains:
            found.append(compute_head(plan, linear, features, labels, COUNTS, (features, labels))(features).detach())
            continue
        head = start_head(plan, linear, 0)
        values = []
        for phase in build_losses(plan, COUNTS):
            torch.manual_seed(0)
            values += [phase(head(features), labels).detach() for _ in range(3)]
        found.append(torch.stack(values))
    assert not torch.allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize("method", [name for name, recipe in RECIPES.items() if recipe.target])
def test_smoothing_softens_the_target_of_its_convention(method: str) -> None:
    recipe: Recipe = find_recipe(method)
    assert resolve_target(recipe, 0.5, 100) == TARGETS[str(recipe.target)](0.5, 100)
    loss, late = build_losses(parsed_plan("--method", method, "--label_smooth", 0.5), COUNTS)
    assert loss is late
    assert (float(loss.true), float(loss.other)) == TARGETS[str(recipe.target)](0.5, 4)


# Stage 1 with a loss of its own


def test_gala_brings_its_recipe_to_stage_1() -> None:
    settings = parse_command(STAGE1, "", ["--imb_ratio", "100", "--loss", "gala"]).settings
    found = {
        name: getattr(settings, name)
        for name in ("network", "lr", "wd", "augment", "schedule", "drop_last", "epochs", "batch_size", "momentum")
    }
    assert found == {
        "network": "resnet32",
        "lr": 0.1,
        "wd": 5e-4,
        "augment": "autoaugment",
        "schedule": "warmup_cosine",
        "drop_last": True,
        "epochs": 200,
        "batch_size": 64,
        "momentum": 0.9,
    }
    own = (settings.lambda1, settings.lambda2, settings.gala_margin, settings.gala_accumulation)
    assert own == (1.0, 1.0, "paper", "single")
    assert not settings.nesterov and settings.label_smooth == 0


def test_flags_win_over_the_recipe_of_a_loss_and_other_losses_bring_none() -> None:
    given = ["--loss", "gala", "--network", "resnet34", "--lr", "0.02", "--schedule", "cosine", "--lambda1", "1.2"]
    settings = parse_command(STAGE1, "", given).settings
    assert (settings.network, settings.lr, settings.schedule, settings.lambda1) == ("resnet34", 0.02, "cosine", 1.2)
    assert settings.wd == 5e-4
    for loss in STAGE1_LOSSES:
        if loss != "gala":
            settings = parse_command(STAGE1, "", ["--loss", loss]).settings
            assert (settings.network, settings.lr, settings.wd, settings.augment, settings.drop_last) == (
                "resnet34",
                0.01,
                5e-3,
                "crop",
                False,
            )
    digits = parse_command(STAGE1, "", ["--dataset", "digits", "--loss", "gala"]).settings
    assert (digits.network, digits.augment, digits.lr) == ("resnet8", "crop", PRESETS["digits"]["lr"])


def test_stage_2_does_not_use_the_loss_of_stage_1(capsys: pytest.CaptureFixture[str]) -> None:
    command = parse_command(STAGE2, "", ["--imb_ratio", "100", "--loss", "gala"])
    assert capsys.readouterr().err == "not used by main_stage2: --loss\n"
    assert command.settings.network == "resnet34" and command.settings.method == "los"
    assert command.settings == parse_command(STAGE2, "", ["--imb_ratio", "100"]).settings
