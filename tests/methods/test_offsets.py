"""Class offsets: the prior that a classifier has itself, and those that held-out images ask for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

from methods.closed_form import build_closed_form, needs_held_out
from methods.convex_fit import Standardised, minimise_cross_entropy
from methods.offsets import fit_offsets
from methods.recipes import RECIPES
from tables.rows import TableContext
from tables.selection import possible
from tests.helpers import folder_of, is_refusal, read, run, stage1, succeed
from utils.errors import UserError

COUNTS = [40, 20, 8, 3]


def problem(seed: int = 0, counts: list[int] | None = None) -> tuple[nn.Linear, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts or COUNTS))
    features = torch.randn(len(labels), 5, generator=draw, dtype=torch.float64) + labels[:, None] % 2
    linear = nn.Linear(5, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(4, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    return linear, features, labels


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_effective_prior_is_the_mean_posterior(tau: float) -> None:
    linear, features, labels = problem()
    prior = linear(features).softmax(dim=1).mean(dim=0)
    found = build_closed_form("prior2posterior", linear, features, labels, COUNTS, tau=tau)
    torch.testing.assert_close(found.bias, linear.bias - tau * prior.log())
    assert torch.equal(found.weight, linear.weight)


def test_of_a_converged_classifier_it_is_logit_adjustment() -> None:
    """The gradient of cross-entropy in the bias is the mean posterior minus the class shares."""
    linear, features, labels = problem()
    data = Standardised.of(features, labels, torch.float64)
    parameters = [
        value.clone().requires_grad_() for value in data.carry_in(linear.weight.detach(), linear.bias.detach())
    ]
    minimise_cross_entropy(data, parameters, lambda: 1e-3 * parameters[0].square().sum(), steps=500, tolerance=1e-10)
    with torch.no_grad():
        for value, found in zip(linear.parameters(), data.carry_out(*parameters), strict=True):
            value.copy_(found)
    one, other = (
        build_closed_form(name, linear, features, labels, COUNTS)
        for name in ("prior2posterior", "logit_adjust_posthoc")
    )
    torch.testing.assert_close(one(features), other(features), rtol=0, atol=1e-6)


def test_a_class_that_is_never_predicted_keeps_a_finite_offset() -> None:
    linear, features, labels = problem()
    with torch.no_grad():
        linear.bias[3] = -2000
    assert build_closed_form("prior2posterior", linear, features, labels, COUNTS).bias.isfinite().all()


@pytest.mark.parametrize("anchor", [0.01, 1.0])
def test_offsets_are_the_minimum_that_scipy_finds(anchor: float) -> None:
    linear, features, labels = problem()
    _, held, of_held = problem(1, [9, 5, 2, 1])
    logits = linear(held).detach().numpy()

    def objective(offsets: np.ndarray) -> float:
        seen = logits + offsets
        losses = np.logaddexp.reduce(seen, axis=1) - seen[np.arange(len(seen)), of_held]
        means = [losses[of_held.numpy() == k].mean() for k in range(4)]
        return float(np.mean(means) + anchor / 2 * np.mean(offsets**2))

    expected = scipy.optimize.minimize(objective, np.zeros(4), tol=1e-12).x
    head = build_closed_form("offsets", linear, features, labels, COUNTS, held_out=(held, of_held), anchor=anchor)
    np.testing.assert_allclose((head.bias - linear.bias).detach().numpy(), expected, atol=2e-5)
    assert torch.equal(head.weight, linear.weight)


def test_held_out_logits_that_are_balanced_already_ask_for_no_offset() -> None:
    logits = torch.cat([5 * torch.eye(4, dtype=torch.float64)] * 3)
    found = fit_offsets(logits, torch.arange(12) % 4, torch.full((4,), 1 / 12, dtype=torch.float64), 0.1)
    torch.testing.assert_close(found, torch.zeros(4, dtype=torch.float64))


def test_without_a_held_out_image_of_each_class_it_is_refused() -> None:
    linear, features, labels = problem()
    with pytest.raises(UserError, match=r"there are none; train stage 1 with --holdout 0\.2"):
        build_closed_form("offsets", linear, features, labels, COUNTS)
    with pytest.raises(UserError, match=r"1 of 4 have none .the first is class 3.; train stage 1 with --holdout"):
        build_closed_form("offsets", linear, features, labels, COUNTS, held_out=(features[:-3], labels[:-3]))
    assert [name for name, row in RECIPES.items() if row.needs_held_out] == ["offsets"]
    assert needs_held_out("offsets") and not needs_held_out("tau_norm")


# The commands


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 that has seen all images."""
    out = tmp_path_factory.mktemp("plain")
    stage1(out, "--width", 2, "--epochs", 1)
    return folder_of(out, "stage1_epochs1_width2")


def test_stage_2_refuses_a_stage_1_without_held_out_images(plain: Path, tmp_path: Path) -> None:
    outcome = run(
        "main_stage2", "--dataset", "digits", "--out", tmp_path, "--pretrained_pth", plain, "--method", "offsets"
    )
    assert is_refusal(outcome, "--method offsets is fitted on held-out images", "--holdout 0.2")
    assert not list(tmp_path.rglob("config.json"))


def test_a_table_leaves_the_method_out_with_a_line(plain: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    succeed(
        "reproduce", "unified", "--dataset", "digits", "--out", tmp_path, "--results", results,
        "--pretrained_pth", plain, "--methods", "l2_norm", "offsets",
    )  # fmt: skip
    text = next(results.glob("*.md")).read_text()
    assert "offsets, shared budget: refused: --method offsets is fitted on held-out images" in text


def test_the_offsets_of_stage_2_are_those_of_its_held_out_images(tmp_path: Path) -> None:
    stage1(tmp_path, "--width", 4, "--epochs", 6, "--holdout", 0.2)
    source = folder_of(tmp_path, "stage1_epochs6_holdout0.2_width4")
    line = ("--dataset", "digits", "--out", tmp_path / "two", "--pretrained_pth", source)
    before, after = (
        succeed("main_stage2", *line, "--method", method, *flags)
        and read(next((tmp_path / "two").rglob(f"stage2_{method}*/metrics.json")))["holdout"]["class_balanced_accuracy"]
        for method, flags in (("ce", ("--finetune_epoch", 1, "--finetune_lr", 1e-9)), ("offsets", ()))
    )
    assert after > before


def test_a_selection_does_not_choose_for_what_is_fitted_on_its_held_out_images() -> None:
    command = SimpleNamespace(settings=SimpleNamespace(features=None, rate_scale="published"))
    loaded: Any = SimpleNamespace(data=SimpleNamespace(name="digits", num_classes=10), command=command)
    nothing: Any = None
    context = TableContext(loaded, nothing, nothing)
    assert possible(("--method", "tau_norm"), context) and not possible(("--method", "offsets"), context)
