"""What a recipe's columns mean: starts, losses that change, constraints; and every method from the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.device_images import DeviceImages
from datasets.names import SAMPLERS
from engine.many_heads import train_heads
from losses import loss_parameters
from losses.ldam import LDAM, WeightedLDAM
from methods.plan import Plan, build_losses, describe_parameters, in_late_phase, row_norm_limit, start_head
from methods.recipes import RECIPES
from models import build_model
from models.heads import Normed
from settings.command_line import parse_command
from settings.fields import EVALUATE, STAGE1_LOSSES, STAGE2
from settings.stage2_plan import plan_of
from stages.commands import stage2 as stage2_command
from stages.data import load_data
from tables.rows import open_context
from tests.helpers import folder_of, not_used, read, run, same, stage1, stage2, succeed, weights
from utils.parameters import HYPERPARAMETERS

TRAINED = [name for name, recipe in RECIPES.items() if recipe.trains]
COMPUTED = [name for name in RECIPES if name not in TRAINED]
SMALL = ("--dataset", "digits", "--width", 2)
# The published smoothing of lort leaves the true one of ten classes less than the others.
NEEDED: dict[str, tuple[object, ...]] = {"lort": ("--label_smooth", 0.5)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 with held-out images, two channels wide."""
    out = tmp_path_factory.mktemp("trained")
    stage1(out, "--width", 2, "--holdout", 0.2)
    return folder_of(out, "stage1_epochs2_holdout0.2_width2")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 without held-out images."""
    out = tmp_path_factory.mktemp("plain")
    stage1(out, "--width", 2)
    return folder_of(out, "stage1_epochs2_width2")


def parsed_plan(*arguments: object) -> Plan:
    return plan_of(parse_command(STAGE2, "", [str(word) for word in arguments]).settings, 10)


def retrained_by(source: Path, out: Path, *arguments: object) -> Path:
    """Run stage 2, one epoch unless the arguments say otherwise, and return its folder."""
    epochs = () if "--finetune_epoch" in arguments else ("--finetune_epoch", 1)
    stage2(out, "--pretrained_pth", source, "--width", 2, *epochs, *arguments)
    return next(out.rglob("stage2*/metrics.json")).parent


# Starts


def linear(width: int = 6, classes: int = 10) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, classes)


@pytest.mark.parametrize("method", TRAINED)
def test_a_head_starts_warm_or_fresh_as_its_row_says(method: str) -> None:
    source = linear()
    head = start_head(parsed_plan("--method", method), source, seed=3)
    assert torch.equal(head.weight, source.weight) != (method == "crt")
    if method == "crt":
        again, other = (start_head(parsed_plan("--method", method), linear(classes=10), seed) for seed in (3, 4))
        assert torch.equal(head.weight, again.weight) and not torch.equal(head.weight, other.weight)
        assert max(float(value.detach().abs().max()) for value in (head.weight, head.bias)) <= 6**-0.5


def test_reinit_classifier_is_the_fresh_start_of_crt() -> None:
    crt, ce = parsed_plan("--method", "crt"), parsed_plan("--method", "ce", "--reinit_classifier")
    heads = [start_head(plan, linear(), seed=3) for plan in (crt, ce)]
    assert torch.equal(heads[0].weight, heads[1].weight) and torch.equal(heads[0].bias, heads[1].bias)
    cosine = start_head(parsed_plan("--method", "cosine", "--reinit_classifier"), linear(), seed=3)
    assert torch.equal(cosine.weight, heads[0].weight)


def test_the_row_norm_limit_is_that_of_stage_1() -> None:
    source = linear()
    norms = source.weight.detach().norm(dim=1)
    assert row_norm_limit(parsed_plan("--method", "ce"), source) is None
    for share in (0.0, 0.1, 1.0):
        limit = row_norm_limit(parsed_plan("--method", "ce", "--max_norm", share), source)
        assert limit is not None
        assert float(limit) == pytest.approx(float(norms.min() + share * (norms.max() - norms.min())))


def test_a_plan_in_words() -> None:
    words = describe_parameters(parsed_plan("--method", "wb", "--sampler", "sqrt"))
    assert words == "beta 0.9999, sqrt sampling, MaxNorm 0.1, schedule cosine_to_zero"
    assert describe_parameters(parsed_plan("--method", "ce")) == ""


# Losses that take turns


@pytest.mark.parametrize(("epochs", "first"), [(20, 16), (5, 4), (200, 160), (1, 1), (3, 3), (10, 8)])
def test_the_last_fifth_of_the_epochs_is_late(epochs: int, first: int) -> None:
    assert [in_late_phase(epoch, epochs) for epoch in range(epochs)] == [epoch >= first for epoch in range(epochs)]


def test_only_ldam_drw_has_a_late_loss() -> None:
    counts = [50, 20, 8, 3, 3, 3, 3, 3, 3, 3]
    for method in TRAINED:
        early, late = build_losses(parsed_plan("--method", method, *NEEDED.get(method, ())), counts)
        assert (early is late) == (method != "ldam_drw")
    early, late = build_losses(parsed_plan("--method", "ldam_drw", "--beta", 0.9, "--max_margin", 0.3), counts)
    assert type(early) is LDAM and type(late) is WeightedLDAM
    assert torch.equal(early.margins, late.margins) and float(early.margins.max()) == pytest.approx(30 * 0.3)


def test_ldam_drw_changes_its_loss_after_four_fifths_of_the_epochs(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[type] = []
    original = stage2_command.train_epoch

    def noting(module: nn.Module, batches: Any, steps: int, optimizer: Any, loss: nn.Module, *rest: Any) -> Any:
        used.append(type(loss))
        assert isinstance(module, Normed)
        return original(module, batches, steps, optimizer, loss, *rest)

    monkeypatch.setattr(stage2_command, "train_epoch", noting)
    stage2(tmp_path / "drw", *SMALL, "--pretrained_pth", plain, "--method", "ldam_drw", "--finetune_epoch", 5)
    assert used == [LDAM] * 4 + [WeightedLDAM]
    used.clear()
    stage2(tmp_path / "ldam", *SMALL, "--pretrained_pth", plain, "--method", "ldam", "--finetune_epoch", 5)
    assert used == [LDAM] * 5
    heads = [weights(next((tmp_path / name).rglob("last.pth")))["fc.weight"] for name in ("drw", "ldam")]
    assert not torch.equal(*heads)


# From the command line


@pytest.mark.parametrize("method", RECIPES)
def test_every_method_runs_and_is_evaluated_as_it_was_measured(method: str, trained: Path, tmp_path: Path) -> None:
    recipe = RECIPES[method]
    folder = retrained_by(trained, tmp_path, "--method", method, *NEEDED.get(method, ()))
    metrics, config = read(folder / "metrics.json"), read(folder / "config.json")
    assert metrics["method"] == config["method"] == method
    assert metrics["last"]["epoch"] == config["settings"]["finetune_epoch"] == int(recipe.trains)
    for name, value in recipe.own_parameters().items():
        assert config["settings"][name] == value
    expected = {"finetune_wd": recipe.weight_decay, "sampler": recipe.sampler, "max_norm": recipe.max_norm}
    assert {name: config["settings"][name] for name in expected} == expected
    if recipe.own_budget:
        assert config["settings"]["finetune_lr"] == recipe.lr

    report = tmp_path / "report.json"
    succeed("evaluate", "--pretrained_pth", folder, "--json", report)
    records = read(report)["checkpoints"]
    for record in ("last", "best"):
        ours, theirs = records[record]["plain"], metrics[record]["plain"]
        assert ours["per_class_accuracy"] == theirs["per_class_accuracy"]
        assert ours["ece"] == pytest.approx(theirs["ece"], abs=1e-3)
    found, wanted = records["last"]["calibration"], metrics["calibration"]
    assert (found is None) == (wanted is None)
    if wanted:
        assert found["temperature"] == pytest.approx(wanted["temperature"])
    for form in ("transductive", "inductive"):
        ours, theirs = (report["rebalanced"][form]["plain"] for report in (records["last"], metrics))
        assert ours["per_class_accuracy"] == theirs["per_class_accuracy"]

    before, after = (weights(path / "last.pth") for path in (trained, folder))
    assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith("fc."))
    assert len(metrics["weight_norm"]) == 10


@pytest.mark.parametrize("method", COMPUTED)
def test_a_computed_classifier_says_what_it_does_not_use(
    method: str, plain: Path, trained: Path, tmp_path: Path
) -> None:
    plain = trained if RECIPES[method].needs_held_out else plain
    flags = (
        "--sampler",
        "sqrt",
        "--max_norm",
        0.2,
        "--reinit_classifier",
        "--finetune_lr",
        0.3,
        "--finetune_wd",
        0.1,
        "--momentum",
        0.5,
        "--nesterov",
        "--finetune_ema",
        0.9,
    )
    outcome = run(
        "main_stage2",
        *SMALL,
        "--out",
        tmp_path / "b",
        "--pretrained_pth",
        plain,
        "--method",
        method,
        "--finetune_epoch",
        3,
        *flags,
    )
    assert outcome.status == 0
    assert not_used(outcome.err, "main_stage2") == {"--finetune_epoch", *(f for f in flags if str(f)[:2] == "--")}
    succeed("main_stage2", *SMALL, "--out", tmp_path / "a", "--pretrained_pth", plain, "--method", method)
    one, other = (next((tmp_path / out).rglob("last.pth")) for out in "ab")
    assert one.parent.name == other.parent.name and same(weights(one), weights(other))
    log = (one.parent / "log.csv").read_text().splitlines()
    assert len(log) == 2 and log[1].startswith("0,")


@pytest.fixture(scope="module")
def features(plain: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Features (N, d) of the images as they are, and their labels, of both splits."""
    data = load_data(parse_command(EVALUATE, "", ["--dataset", "digits"]).settings, 0)
    model = build_model("resnet8", 10, width=2).eval()
    model.load_state_dict(weights(plain / "last.pth"))
    found = {}
    for name, split in (("train", data.train), ("test", data.test)):
        images = DeviceImages(split, data.augmentation, torch.device("cpu"))
        with torch.no_grad():
            found[name] = model.features(images.plain(slice(None))), images.labels
    return found


def test_computed_classifiers_are_their_formulas(
    plain: Path, features: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    before = weights(plain / "last.pth")
    weight, bias = before["fc.weight"].double(), before["fc.bias"].double()
    norms = weight.norm(dim=1, keepdim=True)
    (train, labels), (test, wanted) = features["train"], features["test"]
    counts = torch.bincount(labels).double()
    means = torch.stack([train[labels == k].double().mean(dim=0) for k in range(10)])
    effective = (train.double() @ weight.T + bias).softmax(dim=1).mean(dim=0)
    logits = {
        "tau_norm": test.double() @ (weight / norms**0.7).T + bias,
        "l2_norm": test.double() @ (weight / norms).T + bias,
        "logit_adjust_posthoc": test.double() @ weight.T + bias - 0.7 * (counts / counts.sum()).log(),
        "ncm": torch.nn.functional.cosine_similarity(test.double()[:, None], means[None], dim=2),
        "tau_norm_centred": (test.double() - train.double().mean(dim=0)) @ (weight / norms**0.7).T,
        "prior2posterior": test.double() @ weight.T + bias - 0.7 * effective.log(),
    }
    for method in logits:
        tau = ("--tau", 0.7) if method not in ("l2_norm", "ncm") else ()
        folder = retrained_by(plain, tmp_path / method, "--method", method, *tau)
        accuracy = read(folder / "metrics.json")["last"]["plain"]["all"]
        expected = 100 * float((logits[method].argmax(dim=1) == wanted).double().mean())
        assert accuracy == pytest.approx(expected, abs=100.1 / len(wanted))  # one image may tie


def test_max_norm_holds_in_stage_2(plain: Path, tmp_path: Path) -> None:
    norms = weights(plain / "last.pth")["fc.weight"].norm(dim=1)
    limit = float(norms.min() + 0.5 * (norms.max() - norms.min()))
    arguments = ("--method", "ce", "--finetune_epoch", 2, "--finetune_lr", 0.3)
    free, held = (
        retrained_by(plain, tmp_path / name, *arguments, *flags)
        for name, flags in (("free", ()), ("held", ("--max_norm", 0.5)))
    )
    assert max(read(held / "metrics.json")["weight_norm"]) <= limit * (1 + 1e-6)
    assert max(read(free / "metrics.json")["weight_norm"]) > limit
    assert held.name.endswith("_max_norm0.5")
    assert same(weights(held / "last.pth"), weights(plain / "last.pth"), head=False)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_decides_which_images_stage_2_sees(sampler: str, plain: Path, tmp_path: Path) -> None:
    folder = retrained_by(plain, tmp_path / "given", "--method", "ce", "--sampler", sampler, "--finetune_lr", 0.01)
    assert read(folder / "config.json")["settings"]["sampler"] == sampler
    usual = retrained_by(plain, tmp_path / "usual", "--method", "ce", "--finetune_lr", 0.01)
    equal = same(weights(folder / "last.pth"), weights(usual / "last.pth"))
    assert equal == (sampler == "instance")
    assert (folder.name == usual.name) == (sampler == "instance")


def test_the_two_margins_of_gala_are_two_runs(plain: Path, tmp_path: Path) -> None:
    arguments = ("--method", "gala", "--lambda2", 0.9, "--finetune_lr", 0.05)
    made = [
        retrained_by(plain, tmp_path / margin, *arguments, "--gala_margin", margin) for margin in ("paper", "released")
    ]
    assert [path.name.endswith("_gala_marginreleased") for path in made] == [False, True]
    assert not same(*(weights(path / "last.pth") for path in made))
    for path in made:
        assert read(path / "config.json")["settings"]["lambda2"] == 0.9


@pytest.mark.parametrize("loss", STAGE1_LOSSES)
def test_stage_1_learns_with_each_of_its_losses(loss: str, tmp_path: Path) -> None:
    stage1(tmp_path, "--width", 2, "--epochs", 1, "--loss", loss)
    folder = next(tmp_path.rglob("metrics.json")).parent
    assert folder.name == ("stage1_epochs1_width2" if loss == "ce" else f"stage1_epochs1_width2_loss{loss}")
    settings = read(folder / "config.json")["settings"]
    assert {name: settings[name] for name in loss_parameters(loss)} == loss_parameters(loss)
    assert all(settings[name] is None for name in set(HYPERPARAMETERS) - set(loss_parameters(loss)))
    assert np.isfinite(read(folder / "metrics.json")["last"]["plain"]["all"])


def test_stage_2_goes_on_from_a_stage_1_of_another_loss(tmp_path: Path) -> None:
    stage1(tmp_path, "--width", 2, "--epochs", 1, "--loss", "gala", "--gala_accumulation", "double")
    stage2(tmp_path, "--width", 2, "--finetune_epoch", 1, "--method", "los")
    folder = next(tmp_path.rglob("stage2*/metrics.json")).parent
    assert folder.name == "stage2_los_epochs1_width2_lossgala_stage1_gala_accumulationdouble_finetune_epoch1"
    settings = read(folder / "config.json")["settings"]
    assert settings["gala_accumulation"] is None and settings["label_smooth"] == 0.98


def test_stacked_heads_are_the_classifiers_that_stage_2_gives_alone(plain: Path, tmp_path: Path) -> None:
    """The same plans through `train_heads` and through main_stage2.py, on the same cached features."""
    shared = [*map(str, SMALL), "--out", str(tmp_path), "--pretrained_pth", str(plain), "--finetune_epoch", "5"]
    context = open_context(shared, "")
    lines = {
        "los": ("--finetune_lr", "0.02"),
        "ce": ("--finetune_wd", "0.1"),
        "gala": ("--finetune_lr", "0.05"),
        "wb": (),
        "crt": (),
        "ldam_drw": (),
        "disalign": ("--sampler", "progressive"),
        "cosine_los": (),
    }
    plans = [parsed_plan(*shared, "--method", method, *flags) for method, flags in lines.items()]
    for result, (method, flags) in zip(train_heads(context.trainer, plans), lines.items(), strict=True):
        folder = retrained_by(plain, tmp_path / method, "--finetune_epoch", 5, "--method", method, *flags)
        found = weights(folder / "last.pth")
        for name, value in result.head.state_dict().items():
            torch.testing.assert_close(value, found[f"fc.{name}"], rtol=1e-3, atol=1e-4)
        assert result.loss == pytest.approx(
            float((folder / "log.csv").read_text().splitlines()[-1].split(",")[1]), 1e-4
        )
