"""The forms of a method that its paper and its released code differ in, and runs of before there was a choice."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.fit import make_sgd
from losses import build_loss
from losses.gcl import FOCUS, MARGIN
from methods.plan import attach_head
from methods.recipes import RECIPES
from models import build_model
from models.heads import Linear, ScaledLinear, build_head
from tables.unified import form_of, has_earlier_form, shared_flags, without_earlier_forms
from tests.formulas import effective_weights, value_and_gradient
from tests.helpers import read, run, stage1, succeed
from utils.schedules import SCHEDULES

COUNTS = [60, 20, 7, 3, 1]
CORRECTED = ["wb_cb", "wb_wd", "wb_maxnorm", "wb", "las", "gcl", "tau_norm", "l2_norm"]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor(COUNTS).double(), 12, replacement=True, generator=generator)
    return 3 * torch.randn(12, len(COUNTS), generator=generator, dtype=torch.float64), labels


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_weight_balancings_schedule_is_pytorchs_stepped_before_each_epoch() -> None:
    recipe = RECIPES["wb"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs, eta_min=0.0)
    expected = []
    for _ in range(recipe.epochs):
        scheduler.step()
        expected.append(optimizer.param_groups[0]["lr"])
    found = [SCHEDULES[recipe.schedule](recipe.lr, epoch, recipe.epochs) for epoch in range(recipe.epochs)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert found[0] == pytest.approx(0.00976, abs=5e-6) and found[-1] == 0
    assert {name for name, row in RECIPES.items() if row.schedule != "cosine"} == set(CORRECTED[:4])


def test_the_released_loss_of_gcl_is_its_loop() -> None:
    """Cloud off every logit, 0.1 of the scale off the true one, cross-entropy times (1 - p)^1, which is a constant."""
    (logits, labels), scale = batch(), 20.0
    torch.manual_seed(0)
    draws = (torch.randn(logits.shape, dtype=logits.dtype) / 3).clamp(-1, 1).abs().numpy()
    n = np.array(COUNTS)
    sizes = np.log(n.max() / n) / np.log(n.max() / n.min())
    total, gradient = 0.0, np.zeros(logits.shape)
    for i, y in enumerate(labels.tolist()):
        z = logits[i].numpy() - scale * 0.5 * sizes * draws[i]
        z[y] -= scale * 0.1
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        total += (1 - p[y]) * -np.log(p[y]) / len(labels)
        gradient[i] = (1 - p[y]) * (p - np.eye(len(n))[y]) / len(labels)
    torch.manual_seed(0)
    value, found = value_and_gradient(build_loss("gcl", COUNTS, scale=scale, gcl_loss="released"), logits, labels)
    assert (MARGIN, FOCUS) == (0.1, 1.0)
    assert value.item() == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(found, gradient, rtol=1e-10, atol=1e-14)


def test_the_released_loss_of_gcl_on_single_images() -> None:
    """It has one for each image: an image that is surely right counts nothing, and its gradient is finite."""
    logits = torch.tensor([[200.0, 0, 0, 0, 0]], requires_grad=True)
    value = build_loss("gcl", COUNTS, gcl_loss="released")(logits, torch.tensor([0]))
    value.backward()
    assert value.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_the_released_target_of_label_aware_smoothing_gives_the_true_class_its_share() -> None:
    logits, labels = batch()
    n, classes = torch.tensor(COUNTS, dtype=torch.float64), len(COUNTS)
    smoothing = (0.1 + 0.3 * torch.sin(torch.pi / 2 * (n - n.min()) / (n.max() - n.min())))[labels]
    wanted = (1 - smoothing)[:, None] * F.one_hot(labels, classes) + (smoothing / classes)[:, None]
    found = build_loss("las", COUNTS, las_target="released")(logits, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, wanted))
    assert not torch.isclose(build_loss("las", COUNTS)(logits, labels), found)


def test_class_balanced_cross_entropy_has_two_means() -> None:
    logits, labels = batch()
    weights = torch.tensor(effective_weights(COUNTS, 0.99))
    weighted = F.cross_entropy(logits, labels, weights, reduction="none")
    of_batch, of_weights = (build_loss("cb_ce", COUNTS, beta=0.99, cb_mean=mean) for mean in ("batch", "weight"))
    torch.testing.assert_close(of_batch(logits, labels), weighted.mean())
    torch.testing.assert_close(of_weights(logits, labels), F.cross_entropy(logits, labels, weights))


def test_the_scale_of_las_trains_beside_the_classifier_at_five_times_its_rate() -> None:
    head = build_head(RECIPES["las"].head, nn.Linear(3, 4))
    assert isinstance(head, ScaledLinear) and all(parameter.requires_grad for parameter in head.parameters())
    optimizer = make_sgd(head, 0.0, 0.0, False)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["rate_factor"]
    F.cross_entropy(head(torch.randn(6, 3)), torch.arange(6) % 4).backward()
    optimizer.step()
    for name, parameter in head.named_parameters():
        rate = 0.05 if name == "scale" else 0.01
        assert parameter.grad is not None and parameter.grad.any()
        torch.testing.assert_close(parameter.detach(), before[name] - rate * parameter.grad)


def test_a_checkpoint_of_las_from_before_its_scale_has_the_classifier_of_then() -> None:
    model = build_model("resnet8", 10, width=2)
    earlier = set(model.state_dict())
    attach_head(model, "las", earlier)
    assert type(model.fc) is Linear and set(model.state_dict()) == earlier
    attach_head(model, "las", {*earlier, "fc.scale"})
    assert type(model.fc) is ScaledLinear
    for method in ("las", "lws"):  # without a checkpoint to go by, the row's own
        attach_head(model, method)
        assert "scale" in model.fc.state_dict()


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("wb", "finetune_schedule", "--finetune_schedule cosine there, cosine_to_zero now"),
        ("tau_norm", "norm_bias", "--norm_bias drop there, keep now"),
        ("gcl", "gcl_loss", "--gcl_loss paper there, released now"),
        ("cb_ce", "cb_mean", None),
        ("ce", "finetune_schedule", None),
    ],
)
def test_a_run_of_before_a_choice_is_told_from_one_of_today(
    method: str, setting: str, words: str | None, start: Path
) -> None:
    """With the numbers of today's row it would be mistaken for it; where nothing changed it is taken as it is."""
    epochs = () if method == "tau_norm" else ("--finetune_epoch", 1)
    line = ("--dataset", "digits", "--width", 2, "--device", "cpu", "--out", start, "--method", method, *epochs)
    succeed("main_stage2", *line)
    (path,) = start.rglob(f"stage2_{method}*/config.json")
    config = read(path)
    del config["settings"][setting]
    path.write_text(json.dumps(config))
    outcome = run("main_stage2", *line, "--reuse")
    assert outcome.status == (0 if words is None else 2)
    assert words is None or words in outcome.err


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a stage 1 is."""
    out = tmp_path_factory.mktemp("start")
    stage1(out, "--width", 2)
    return out


# Tables


def test_the_shared_budget_has_one_schedule() -> None:
    for method, recipe in RECIPES.items():
        flags = shared_flags(method, "cifar100")
        assert ("--finetune_schedule" in flags) == (recipe.schedule != "cosine")
    assert shared_flags("wb", "cifar100")[-4:] == ("--finetune_schedule", "cosine", "--finetune_wd", "0.1")


def test_numbers_that_were_chosen_for_an_earlier_form_are_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert [method for method in RECIPES if has_earlier_form(method)] == CORRECTED
    methods = ["las", "ce", "shared budget: las", "shared budget: ce", "wb"]
    known = pd.DataFrame({"method": methods, "mean": 50.0, "conditions": ["views 5", None, None, None, None]})
    kept = without_earlier_forms(Path("selection.csv"), known, ["las", "ce"])
    assert kept is not None and kept["method"].tolist() == ["ce", "shared budget: ce"]
    assert kept["conditions"].iloc[0] == "views 5" and "earlier forms of las: not used" in capsys.readouterr().out
    assert without_earlier_forms(Path("selection.csv"), known[known["method"] == "las"], ["las"]) is None
    forms = [form_of(method.removeprefix("shared budget: ")) for method in methods]
    assert without_earlier_forms(Path(""), known.assign(form=forms), methods)["method"].tolist() == methods  # type: ignore[index]
    other = without_earlier_forms(Path(""), known.assign(form="linear, cosine"), methods)
    assert other is not None and other["method"].tolist() == ["ce", "shared budget: ce"]
