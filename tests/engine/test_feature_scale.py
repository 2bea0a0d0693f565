"""Steps for features of any scale: features times a number end at the same logits, and at those of features divided."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.feature_scale import REFERENCE_NORM, feature_unit, mean_squared_norm
from engine.fit import make_sgd
from engine.many_heads import HeadTrainer, train_heads
from methods.plan import Plan, build_losses, compute_head, start_head
from methods.recipes import RECIPES
from settings.command_line import parse_command
from settings.fields import STAGE2
from tests.helpers import read, refused, succeed
from utils.device import Execution

COUNTS = [30, 14, 8, 5, 3]
CLASSES, WIDTH, EPOCHS = len(COUNTS), 6, 3
TRAINED = [name for name, recipe in RECIPES.items() if recipe.trains]
# Computed from the classifier's own numbers: of the others some standardise the features themselves.
OF_ANY_SCALE = [name for name, recipe in RECIPES.items() if not recipe.trains and not recipe.needs_held_out]


class Frozen:
    """Stands in for the cached features of a backbone."""

    seed = 4

    def __init__(self, features: Tensor, execution: Execution) -> None:
        self.features, self.execution = features, execution

    def plain(self, split: str) -> Tensor:
        return self.features

    def training_view(self, epoch: int) -> Tensor:
        return self.features


def problem() -> tuple[Tensor, Tensor, nn.Linear]:
    """Features (N, d) that no unit norm has, their labels, and a classifier of them."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(COUNTS))
    features = (2 * torch.randn(CLASSES, WIDTH, generator=draw)[labels] + torch.randn(60, WIDTH, generator=draw)).relu()
    linear = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(0.4 * torch.randn(CLASSES, WIDTH, generator=draw))
        linear.bias.copy_(torch.randn(CLASSES, generator=draw))
    return features, labels, linear


def times(linear: nn.Linear, factor: float) -> nn.Linear:
    """The classifier whose logits of features times `factor` are those of the features."""
    scaled = nn.Linear(WIDTH, CLASSES)
    scaled.load_state_dict({"weight": linear.weight.detach() / factor, "bias": linear.bias.detach()})
    return scaled


def plan(method: str, unit: float) -> Plan:
    """A plan of the method's own numbers, without clouds, but for a decay that every trained number undergoes."""
    recipe = RECIPES[method]
    own = dict(recipe.own_parameters()) | ({"noise": 0.0} if "noise" in recipe.own_parameters() else {})
    own |= {"norm_bias": "centre"} if "norm_bias" in own else {}
    smoothing = 0.5 if recipe.target else None
    return Plan(
        method, EPOCHS, 0.05, 0.1, smoothing, recipe.sampler, recipe.max_norm, recipe.fresh, own, recipe.schedule,
        unit=unit,
    )  # fmt: skip


def ends(method: str, factor: float, execution: Execution) -> Tensor:
    """The logits of a method on features times `factor`."""
    features, labels, linear = problem()
    scaled = factor * features
    frozen: Any = Frozen(scaled, execution)
    trainer = HeadTrainer(frozen, times(linear, factor), labels, COUNTS, 16, momentum=0.9, seed=3)
    (result,) = train_heads(trainer, [plan(method, feature_unit(scaled, "features"))])
    return result.head(scaled).detach()


@pytest.mark.parametrize("method", [*TRAINED, *OF_ANY_SCALE])
def test_features_times_a_number_end_at_the_same_logits(method: str, cpu: Execution) -> None:
    usual = ends(method, 1.0, cpu)
    for factor in (10.0, 0.1):
        if method == "tau_norm_centred":  # without a bias its logits all grow alike: predictions are what stays
            assert torch.equal(ends(method, factor, cpu).argmax(dim=1), usual.argmax(dim=1))
            continue
        torch.testing.assert_close(ends(method, factor, cpu), usual, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", ["los", "lws", "marc", "disalign", "crt", "cosine_los"])
def test_steps_are_those_of_divided_features(method: str, cpu: Execution) -> None:
    """The oracle divides the features, and trains on them as published."""
    features, labels, linear = problem()
    unit = feature_unit(features, "features")
    assert unit != 1
    frozen: Any = Frozen(features / unit, cpu)
    trainer = HeadTrainer(frozen, times(linear, 1 / unit), labels, COUNTS, 16, momentum=0.9, seed=3)
    (expected,) = train_heads(trainer, [plan(method, 1.0)])
    torch.testing.assert_close(ends(method, 1.0, cpu), expected.head(features / unit).detach(), rtol=1e-3, atol=1e-3)


def test_without_a_unit_the_optimiser_is_what_it_was() -> None:
    head = start_head(plan("marc", 1.0), problem()[2], 0, COUNTS)
    groups = make_sgd(head, 0.9, 0.1, False).param_groups
    assert [len(group["params"]) for group in groups] == [2] and groups[0]["weight_decay"] == 0.1
    groups = make_sgd(head, 0.9, 0.1, False, None, 2.0).param_groups
    assert sorted((group["rate_factor"], group["weight_decay"]) for group in groups) == [(1.0, 0.1), (4.0, 0.025)]


def test_units() -> None:
    features = torch.full((9, 4), 3.0)
    features[0] = 0
    assert mean_squared_norm(features) == 32.0
    assert feature_unit(features, "features") == pytest.approx((32 / REFERENCE_NORM) ** 0.5)
    assert feature_unit(features, "published") == 1.0 and feature_unit(torch.zeros(3, 2), "features") == 1.0
    assert mean_squared_norm(torch.full((2, 2), 1e30)) == pytest.approx(2e60)


def test_the_lengths_of_monotone_norms_are_saved_with_their_unit() -> None:
    features, labels, linear = problem()
    head = compute_head(plan("samn_start", 2.0), linear, features, labels, COUNTS)
    plain = compute_head(plan("samn_start", 1.0), linear, features, labels, COUNTS)
    torch.testing.assert_close(head(2 * features), plain(features))
    assert "unit" in head.state_dict() and "unit" not in plain.state_dict()
    assert set(build_losses(plan("samn", 2.0), COUNTS)[0].state_dict()) == set()


def resolved(*flags: str) -> Any:
    return parse_command(STAGE2, "", flags).settings


def test_which_rates_are_for_which_data() -> None:
    assert {resolved("--dataset", name).rate_scale for name in ("cifar100", "digits", "imagenet_lt")} == {"published"}
    assert {resolved("--dataset", name).rate_scale for name in ("folder", "list")} == {"features"}
    assert resolved("--features", "x.npz").rate_scale == "features"
    assert resolved("--features", "x.npz", "--rate_scale", "published").rate_scale == "published"
    own = resolved("--features", "x.npz", "--method", "tau_norm")
    assert (own.tau, own.norm_bias) == (1.0, "centre")
    published = resolved("--features", "x.npz", "--method", "tau_norm", "--rate_scale", "published")
    assert (published.tau, published.norm_bias) == (resolved("--method", "tau_norm").tau, "keep")
    assert "--rate_scale" in refused("main_stage2", "--features", "x.npz", "--rate_scale", "none")


@pytest.mark.parametrize("method", ["los", "samn"])
def test_runs_on_features_of_any_scale(method: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features, labels, _ = problem()
    curves, words = [], []
    for factor in (1.0, 10.0, 0.1):
        arrays = {f"{split}_features": (factor * features).numpy() for split in ("train", "test")}
        np.savez("mine.npz", **arrays, train_labels=labels.numpy(), test_labels=labels.numpy())
        out = f"x{factor:g}"
        told = succeed("main_stage2", "--features", "mine.npz", "--method", method, "--out", out, "--finetune_epoch", 2)
        words.append(told.out.count("mean squared norm"))
        folder = next((tmp_path / out).rglob(f"stage2_{method}_*"))
        curves.append(read(folder / "metrics.json")["logits"]["test"]["column"]["loma"])
        assert "(--rate_scale published: at 0.0005)" in told.out
        assert "classes" in succeed("evaluate", "--pretrained_pth", folder).out
    assert words == [1, 1, 1]
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=0.02, abs=0.02)
