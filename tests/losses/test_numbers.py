"""Numbers stay right where they matter: every loss, head and measure at its limits (two classes, one image a class, a
batch of one class, balanced and extreme counts, equal and huge logits), in every precision, and compiled.

What each one computes elsewhere is checked in test_losses.py, test_gala.py, test_heads.py and test_metrics.py.
"""

import copy
import dataclasses
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import Tensor, nn

from datasets.device_images import DeviceImages
from datasets.digits import load_digits
from datasets.long_tail import Profile
from engine.epoch import predict, train_epoch
from evaluation.intervals.correct import unpack_correct
from evaluation.logits_magnitude import logits_magnitude
from evaluation.metrics import (
    calibration_error,
    class_balanced_accuracy,
    class_wise_column_means,
    classification_report,
    column_means,
    feature_variance_ratio,
    fit_temperature,
    rebalance,
)
from losses import LOSSES, build_loss
from losses.class_balanced import inverse_frequency_weights
from losses.los import ONE_HOT, Target, torch_target
from methods.closed_form import CLOSED_FORM, build_closed_form
from models import build_model
from models.heads import HEADS, build_head
from tests.formulas import FORMULAS, effective_weights, ldam_formula, loop_magnitude, value_and_gradient
from tests.helpers import image_tree, read, run, succeed
from utils.device import Execution

SOFT = {"ce", "logit_adjust", "balanced_softmax"}
SHIFTED = [name for name in LOSSES if name != "vs"]  # those that know logits up to a constant of each sample
every_loss = pytest.mark.parametrize("name", LOSSES)

# Class counts and labels at the limits.
LIMITS: dict[str, tuple[list[int], list[int]]] = {
    "two classes": ([90, 4], [0, 1, 1, 0, 0]),
    "one image a class": ([1, 1, 1], [0, 1, 2]),
    "one class in the batch": ([300, 40, 2], [0, 0, 0, 0]),
    "the rarest class alone": ([300, 40, 2], [2, 2]),
    "one image in the batch": ([300, 40, 2], [1]),
    "balanced": ([70, 70, 70], [2, 0, 1, 1]),
    "a million to one": ([10**6, 1], [0, 1, 0]),
}
every_limit = pytest.mark.parametrize(("counts", "labels"), LIMITS.values(), ids=LIMITS)


class WithDraws:
    """PyTorch as `losses.gcl` sees it, but for the numbers that it draws."""

    def __init__(self, draws: Tensor | None = None) -> None:
        self.draws = draws

    def randn(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.draws is None:
            generator = torch.Generator().manual_seed(7)
            return torch.randn(tuple(shape), dtype=torch.float64, generator=generator).to(device, dtype)
        return self.draws.to(device, dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def fixed_clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the clouds of GCL, whose draws differ with the dtype, the same for all calls of one shape."""
    monkeypatch.setattr("losses.gcl.torch", WithDraws())


def logits_for(labels: Sequence[int], classes: int, size: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(len(labels) + classes)
    return (size * torch.randn(len(labels), classes, generator=generator, dtype=torch.float64)).to(dtype)


def of_the_second_step(name: str, counts: Sequence[int], **parameters: float | str) -> nn.Module:
    """The loss, where GALA has gathered margins in a step before."""
    loss = build_loss(name, counts, **parameters)
    generator = torch.Generator().manual_seed(1)
    loss(torch.randn(6, len(counts), generator=generator), torch.arange(6) % len(counts))
    return loss


def once(loss: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as a function: what GALA gathers is forgotten again."""
    return lambda logits, labels: copy.deepcopy(loss)(logits, labels)


# Losses at their limits: derivatives, values, precision


@every_loss
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    for (limit, (counts, labels)), size in itertools.product(LIMITS.items(), (0.0, 3.0)):
        loss, logits = once(of_the_second_step(name, counts)), logits_for(labels, len(counts), size)
        targets = torch.tensor(labels)
        agrees = torch.autograd.gradcheck(
            lambda z, loss=loss, targets=targets: loss(z, targets), logits.requires_grad_(), raise_exception=False
        )
        assert agrees, f"{limit}, logits of size {size}"


@pytest.mark.parametrize("margin", ["paper", "released"])
def test_derivatives_of_gala_are_those_of_finite_differences(margin: str) -> None:
    loss = once(of_the_second_step("gala", [9, 3, 1], gala_margin=margin, gala_accumulation="double", lambda1=1.3))
    labels = torch.tensor([2, 0, 1, 1])
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits_for(labels, 3).requires_grad_())


@pytest.mark.parametrize(("name", "formula"), [(name, formula) for name, formula, _ in FORMULAS if name != "las"])
def test_formulas_hold_at_the_limits(name: str, formula: Callable[..., float]) -> None:
    own = {
        "focal": {"gamma": 2.0},
        "cb_ce": {"beta": 0.9999},
        "wb_cb": {"beta": 0.9999},
        "logit_adjust": {"tau": 1.0},
        "ldam": {"max_margin": 0.5, "scale": 30.0},
        "vs": {"gamma": 0.05, "tau": 0.75},
    }.get(name, {})
    for (limit, (counts, labels)), size in itertools.product(LIMITS.items(), (0.0, 3.0)):
        logits, n = logits_for(labels, len(counts), size), np.array(counts)
        expected = np.mean([formula(z, y, n, **own) for z, y in zip(logits.numpy(), labels, strict=True)])
        found = build_loss(name, counts)(logits, torch.tensor(labels)).item()
        assert found == pytest.approx(expected, rel=1e-10), f"{limit}, logits of size {size}"


@every_limit
def test_weighted_means_at_the_limits(counts: list[int], labels: list[int]) -> None:
    """With one class in the batch its weight cancels, however small."""
    logits, n = logits_for(labels, len(counts)), np.array(counts)
    inverse, effective = (1 / n) ** 1.2, effective_weights(counts, 0.9999)
    ce = -logits.log_softmax(dim=1).numpy()[range(len(labels)), labels]
    expected = (inverse[labels] * ce).sum() / inverse[labels].sum()
    assert build_loss("reweighted_ce", counts)(logits, torch.tensor(labels)).item() == pytest.approx(expected)
    margins = [ldam_formula(z, y, n, 0.5, 30.0) for z, y in zip(logits.numpy(), labels, strict=True)]
    expected = (effective[labels] * margins).sum() / effective[labels].sum()
    assert build_loss("ldam_weighted", counts)(logits, torch.tensor(labels)).item() == pytest.approx(expected)


@pytest.mark.parametrize("rho", [1.2, 30.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_large_classes_has_a_weighted_mean(rho: float, dtype: torch.dtype) -> None:
    """Weights that would be 0 in float32, and 0 / 0 their mean."""
    counts, labels = [10**6, 1000, 1], torch.tensor([0, 0, 0])
    logits = logits_for([0, 0, 0], 3, dtype=dtype)
    value, gradient = value_and_gradient(build_loss("reweighted_ce", counts, rho=rho), logits, labels)
    assert value.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert gradient.isfinite().all() and gradient.abs().max() > 1e-3
    assert inverse_frequency_weights(counts, rho).float().min() > 0
    mixed = build_loss("reweighted_ce", counts, rho=100.0)(logits, torch.tensor([0, 1, 2]))
    assert mixed.item() == pytest.approx(F.cross_entropy(logits[2:], torch.tensor([2])).item(), rel=1e-6)


def losses_of_equal_logits(counts: list[int], labels: list[int]) -> dict[str, float]:
    """What each loss is where all logits of a sample are equal, in closed form."""
    n, k = np.array(counts, dtype=float), len(counts)
    y = np.array(labels)
    prior, weights = n / n.sum(), effective_weights(counts, 0.9999)
    margins = 30 * 0.5 * (n / n.min()) ** -0.25
    ldam = np.log1p((k - 1) * np.exp(margins[y]))
    factor = prior**0.75
    return {
        "ce": math.log(k),
        "focal": (1 - 1 / k) ** 2 * math.log(k),
        "cb_ce": float(weights[y].mean()) * math.log(k),
        "wb_cb": float(weights[y].mean()) * (math.log(k) - (k - 1) * math.log(1 - 1 / k)) / k,
        "reweighted_ce": math.log(k),
        "logit_adjust": -float(np.log(prior[y]).mean()),
        "balanced_softmax": -float(np.log(prior[y]).mean()),
        "ldam": float(ldam.mean()),
        "ldam_weighted": float((weights[y] * ldam).sum() / weights[y].sum()),
        "las": math.log(k),  # whatever the target
        "vs": -float(np.log(factor[y] / factor.sum()).mean()),
        "gala": math.log(k),  # the first step has one margin for all
        "gml": -float(np.log(prior[np.unique(y)]).mean()),
    }


@every_limit
@pytest.mark.parametrize("level", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_equal_logits(counts: list[int], labels: list[int], level: float, dtype: torch.dtype) -> None:
    """A level of 1e4 leaves float32 three digits after the point to add the priors to."""
    logits = torch.full((len(labels), len(counts)), level, dtype=dtype)
    expected = losses_of_equal_logits(counts, labels)
    absolute = 2e-3 if dtype == torch.float32 and level else 1e-5
    assert set(expected) == set(LOSSES) - {"gcl"}
    for name, value in expected.items():
        if name == "vs" and level:  # multiplies each logit by its own factor
            continue
        found = build_loss(name, counts)(logits, torch.tensor(labels)).item()
        assert found == pytest.approx(value, rel=1e-5, abs=absolute), name
    for smoothing in (0.1, 0.98):
        target = torch_target(smoothing, len(counts))
        found = build_loss("ce", counts, target)(logits, torch.tensor(labels)).item()
        assert found == pytest.approx(math.log(len(counts)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10])
@every_loss
def test_huge_logits_cost_what_they_cost_in_float64(name: str, classes: int, dtype: torch.dtype) -> None:
    """Logits of +-1e4: each class wins and loses each label."""
    counts = [max(500 >> k, 1) for k in range(classes)]
    winners, labels = (grid.flatten() for grid in torch.meshgrid(*[torch.arange(classes)] * 2, indexing="ij"))
    logits = 1e4 * (2 * F.one_hot(winners, classes).double() - 1)
    loss = of_the_second_step(name, counts)
    exact, slope = value_and_gradient(once(loss), logits.to(dtype).double(), labels)
    value, gradient = value_and_gradient(once(loss), logits.to(dtype), labels)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6 if dtype == torch.float32 else 0.02)
    assert gradient.isfinite().all()
    # Between equal logits the priors, a few nats, decide; in bf16 they are lost beside 1e4, which stops at 64.
    if dtype == torch.float32:
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=2e-3 / classes)


@pytest.mark.parametrize("classes", [2, 100, 8142])
@every_loss
def test_float32_agrees_with_float64(name: str, classes: int) -> None:
    """To five digits, and the gradients to six of the largest, also where thousands of classes are added up."""
    counts = [max(int(500 * 0.01 ** (k / (classes - 1))), 1) for k in range(classes)]
    generator = torch.Generator().manual_seed(classes)
    logits = (3 * torch.randn(32, classes, generator=generator)).double()
    labels = torch.randint(classes, (32,), generator=generator)
    for target in [ONE_HOT, torch_target(0.98, classes)] if name in SOFT else [ONE_HOT]:
        loss = build_loss(name, counts, target)
        exact, slope = value_and_gradient(once(loss), logits, labels)
        value, gradient = value_and_gradient(once(loss), logits.float(), labels)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=2e-6 * slope.abs().max().item())


@every_loss
def test_bfloat16_agrees_with_float64(name: str) -> None:
    """To two digits, which is what bf16 has. Training never does it: logits become float32 before the loss."""
    counts = [500, 120, 37, 9, 2]
    labels = torch.arange(40) % 5
    logits = logits_for(labels.tolist(), 5, dtype=torch.bfloat16)
    loss = of_the_second_step(name, counts)
    exact, slope = value_and_gradient(once(loss), logits.double(), labels)
    value, gradient = value_and_gradient(once(loss), logits, labels)
    assert value.dtype == torch.bfloat16 and value.item() == pytest.approx(exact.item(), rel=0.03)
    torch.testing.assert_close(gradient.double(), slope, rtol=0.1, atol=0.03 * slope.abs().max().item())


@pytest.mark.parametrize("name", ["logit_adjust", "wb_cb", "gala"])
def test_compiled_losses_agree(name: str) -> None:
    """Traced forwards and backwards as a compiler does it, but not translated to machine code: that takes minutes."""
    loss, labels = of_the_second_step(name, [500, 120, 37, 9, 2]), torch.arange(40) % 5
    logits = logits_for(labels.tolist(), 5, dtype=torch.float32)
    plain = value_and_gradient(once(loss), logits, labels)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(loss), backend="aot_eager")
    for ours, theirs in zip(value_and_gradient(compiled, logits, labels), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


# What leaves a loss alone


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shift_of_all_logits_changes_nothing(name: str, dtype: torch.dtype) -> None:
    """The loss stays, and so the gradients of a sample sum to zero."""
    labels = torch.tensor([0, 1, 2, 2, 0])
    logits, loss = logits_for(labels.tolist(), 3, dtype=dtype), of_the_second_step(name, [40, 7, 1])
    value, gradient = value_and_gradient(once(loss), logits, labels)
    shifted, _ = value_and_gradient(once(loss), logits + 32, labels)
    accuracy = 1e-5 if dtype == torch.float32 else 1e-12
    assert shifted.item() == pytest.approx(value.item(), rel=accuracy)
    assert gradient.sum(dim=1).abs().max() < accuracy


@pytest.mark.parametrize("target", [torch_target(0.98, 4), torch_target(0.5, 4)])
def test_los_is_that_of_its_classes_in_any_order(target: Target) -> None:
    logits, labels = logits_for(range(8), 4), torch.arange(8) % 4
    order = torch.tensor([2, 0, 3, 1])
    loss = build_loss("ce", [9, 5, 2, 1], target)
    value, gradient = value_and_gradient(loss, logits, labels)
    permuted, slope = value_and_gradient(loss, logits[:, order], order.argsort()[labels])
    assert permuted.item() == pytest.approx(value.item(), rel=1e-13)
    torch.testing.assert_close(slope, gradient[:, order], rtol=1e-12, atol=1e-14)


def test_the_order_of_the_classes_is_of_no_matter_to_gala_and_gcl(monkeypatch: pytest.MonkeyPatch) -> None:
    order, counts, labels = torch.tensor([2, 0, 3, 1]), [90, 31, 7, 2], torch.arange(8) % 4
    reordered = [counts[old] for old in order], order.argsort()[labels]
    clouds = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for name in ("gala", "gcl"):
        one, other = build_loss(name, counts), build_loss(name, reordered[0])
        for step in range(3):
            logits = logits_for(range(8), 4, size=1 + step)
            monkeypatch.setattr("losses.gcl.torch", WithDraws(clouds))
            value = one(logits, labels).item()
            monkeypatch.setattr("losses.gcl.torch", WithDraws(clouds[:, order]))
            # GALA gathers in float32.
            assert other(logits[:, order], reordered[1]).item() == pytest.approx(value, rel=1e-6)


@every_loss
def test_the_order_of_the_samples_is_of_no_matter(name: str) -> None:
    labels = torch.tensor([0, 1, 2, 2, 0, 0])
    logits, loss = logits_for(labels.tolist(), 3), of_the_second_step(name, [40, 7, 1] if name != "gcl" else [5, 5, 5])
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    assert once(loss)(logits[order], labels[order]).item() == pytest.approx(once(loss)(logits, labels).item())


@pytest.mark.parametrize("counts", [[1, 1], [40] * 7])
def test_with_balanced_counts_the_margins_and_shifts_are_gone(counts: list[int]) -> None:
    """Balanced softmax and logit adjustment are cross-entropy; LDAM is, with its largest margin off the target."""
    labels = torch.arange(14) % len(counts)
    logits = logits_for(labels.tolist(), len(counts))
    plain = value_and_gradient(F.cross_entropy, logits, labels)
    for name in ("balanced_softmax", "logit_adjust"):
        ours = value_and_gradient(build_loss(name, counts), logits, labels)
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-13)
    lowered = logits - 0.5 * 30 * F.one_hot(labels, len(counts))
    for name in ("ldam", "ldam_weighted"):
        ours = value_and_gradient(build_loss(name, counts), logits, labels)
        torch.testing.assert_close(ours, value_and_gradient(F.cross_entropy, lowered, labels), rtol=1e-12, atol=1e-13)


# Heads and computed classifiers


def linear_of(classes: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    generator = torch.Generator().manual_seed(classes)
    layer = nn.Linear(6, classes, dtype=dtype)
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return layer


def features_of(count: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(count, 6, generator=torch.Generator().manual_seed(count), dtype=torch.float64).relu()


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 2e-6), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("classes", [2, 12])
@pytest.mark.parametrize("name", [name for name in HEADS if name != "neighbours"])
def test_heads_agree_with_float64(name: str, classes: int, size: float, dtype: torch.dtype, relative: float) -> None:
    """Relative to the largest logit; features as small and as large as they come."""
    head = build_head(name, linear_of(classes))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in head.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    features = features_of(20, size).to(dtype)
    exact = head.to(dtype).double()(features.double())  # of the rounded weights
    found = head.to(dtype)(features)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=relative * exact.abs().max().item())


@pytest.mark.parametrize("name", CLOSED_FORM)
@pytest.mark.parametrize("classes", [2, 5])
def test_computed_classifiers_agree_with_float64(name: str, classes: int) -> None:
    """With one image of each class, too."""
    for images in (classes, 6 * classes):
        labels, features = torch.arange(images) % classes, features_of(images)
        counts = torch.bincount(labels).tolist()
        exact, found = (
            build_closed_form(name, linear_of(classes, dtype), rows, labels, counts, held_out=(rows, labels))
            for dtype, rows in ((torch.float64, features), (torch.float32, features.float()))
        )
        torch.testing.assert_close(found(features.float()).double(), exact(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_the_order_of_the_classes_is_of_no_matter_to_computed_classifiers(name: str) -> None:
    order, labels, features = torch.tensor([2, 0, 3, 1]), torch.tensor([0, 1, 2, 3, 0, 1, 0, 2]), features_of(8)
    linear, permuted = linear_of(4), linear_of(4)
    with torch.no_grad():
        permuted.weight.copy_(linear.weight[order])
        permuted.bias.copy_(linear.bias[order])
    counts = torch.bincount(labels)
    renamed = order.argsort()[labels]
    found = build_closed_form(name, permuted, features, renamed, counts[order].tolist(), held_out=(features, renamed))
    head = build_closed_form(name, linear, features, labels, counts.tolist(), held_out=(features, labels))
    torch.testing.assert_close(found(features), head(features)[:, order])


def test_balanced_counts_leave_the_posthoc_adjusted_classifier_a_shift() -> None:
    features, linear = features_of(9), linear_of(3)
    head = build_closed_form("logit_adjust_posthoc", linear, features, torch.arange(9) % 3, [3, 3, 3])
    torch.testing.assert_close(head(features), linear(features) + math.log(3))


def test_one_image_a_class_is_its_own_mean() -> None:
    features = features_of(5) + 0.1  # none is a vector of zeros
    head = build_closed_form("ncm", linear_of(5), features, torch.arange(5), [1] * 5)
    torch.testing.assert_close(head.weight.detach(), features)
    assert head(features).argmax(dim=1).tolist() == list(range(5))


# Networks: precision of a whole epoch


def epoch_of(execution: Execution) -> tuple[float, Tensor]:
    """Train the smallest network for one epoch on digits; return its loss, and its logits on the test images."""
    data = load_digits(Profile(imb_ratio=124))
    torch.manual_seed(0)
    model = execution.place(build_model("resnet8", 10, width=4))
    train, test = (DeviceImages(split, data.augmentation, execution.device) for split in (data.train, data.test))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    loss = build_loss("balanced_softmax", data.class_counts.tolist(), torch_target(0.98, 10))
    result = train_epoch(model.train(), train.training_batches(64, 0, 0), 5, optimizer, loss, execution)
    return float(result.loss), model.fc(predict(model.eval().features, test, execution)).detach()


def test_bfloat16_agrees_with_float32_over_an_epoch(cpu: Execution) -> None:
    """To a hundredth of the loss, and two of the largest logit; what leaves the network is float32."""
    loss, logits = epoch_of(cpu)
    half_loss, half = epoch_of(dataclasses.replace(cpu, bf16=True))
    assert half_loss == pytest.approx(loss, rel=0.01)
    torch.testing.assert_close(half, logits, rtol=0, atol=0.02 * logits.abs().max().item())
    assert not torch.equal(half, logits) and half.dtype == torch.float32


# Measures against scikit-learn, on anything


def random_case(seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Logits, labels and training counts of any number of classes from two, some of them without a test image."""
    draw = np.random.default_rng(seed)
    classes, images = int(draw.integers(2, 30)), int(draw.integers(1, 400))
    labels = draw.choice(classes, images, p=draw.dirichlet(np.full(classes, 0.5)))
    logits = draw.uniform(0.1, 5) * draw.standard_normal((images, classes))
    logits[np.arange(images), labels] += draw.uniform(0, 3)
    counts = draw.choice([1, 5, 19, 20, 50, 100, 101, 500], classes)
    return torch.from_numpy(logits), torch.from_numpy(labels), counts


@pytest.mark.parametrize("seed", range(40))
def test_reports_agree_with_scikit_learn(seed: int) -> None:
    logits, labels, counts = random_case(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no mean of nothing, no division by zero
        report = classification_report(logits, labels, counts)
    true, predicted, present = labels.numpy(), logits.argmax(dim=1).numpy(), labels.unique().numpy()
    recall = 100 * recall_score(true, predicted, labels=present, average=None)
    f1 = 100 * f1_score(true, predicted, labels=present, average="macro", zero_division=0)
    assert report["all"] == pytest.approx(100 * accuracy_score(true, predicted))
    assert report["macro_f1"] == pytest.approx(f1)
    assert [report["per_class_accuracy"][k] for k in present] == pytest.approx(list(recall))
    assert {k for k, value in enumerate(report["per_class_accuracy"]) if value is not None} == set(present)
    assert class_balanced_accuracy(logits, labels) == pytest.approx(recall.mean())
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    for name, members in groups.items():
        own = [value for k, value in zip(present, recall, strict=True) if members[k]]
        assert report[name] == (pytest.approx(np.mean(own)) if own else None)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("seed", range(40))
def test_calibration_agrees_with_scikit_learn(seed: int) -> None:
    logits, labels, _ = random_case(seed)
    confidence, predicted = (part.numpy() for part in logits.softmax(dim=1).max(dim=1))
    right = predicted == labels.numpy()
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy="uniform")
    rows = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    expected = 100 * (rows[rows > 0] / len(labels) * np.abs(accuracy - mean)).sum()
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-10)
    assert calibration_error(logits.float(), labels) == pytest.approx(expected, abs=100 / len(labels) + 1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_classes_and_images_is_of_no_matter_to_reports(seed: int) -> None:
    logits, labels, counts = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    order, images = (torch.randperm(n, generator=generator) for n in (len(counts), len(labels)))
    plain, moved = (logits, labels, counts), (logits[images][:, order], order.argsort()[labels[images]], counts[order])
    one, other = classification_report(*plain), classification_report(*moved)
    of_class, permuted = one.pop("per_class_accuracy"), other.pop("per_class_accuracy")
    assert [of_class[k] for k in order] == permuted
    of_class, permuted = one.pop("class_images"), other.pop("class_images")
    assert [of_class[k] for k in order] == permuted
    bits = [unpack_correct(each.pop("correct"), of).sum() for each, of in ((one, of_class), (other, permuted))]
    assert bits[0] == bits[1] == round(one["all"] * len(labels) / 100)
    assert other.pop("test_images") == one.pop("test_images")
    assert other == pytest.approx(one)
    readings, other_readings = logits_magnitude(*plain[:2]), logits_magnitude(*moved[:2])
    for reading, of_reading in readings.items():
        for key, values in of_reading.items():
            for k, found in zip(order.tolist(), other_readings[reading][key], strict=True):
                assert found == (None if values[k] is None else pytest.approx(values[k], rel=1e-8, abs=1e-10))


# Measures at their limits


@pytest.mark.parametrize(("counts", "name"), [([500, 101], "many"), ([100, 20], "medium"), ([19, 1], "few")])
def test_groups_without_a_class_are_none(counts: list[int], name: str) -> None:
    logits, labels = logits_for(range(6), 2), torch.arange(6) % 2
    report = classification_report(logits, labels, np.array(counts))
    assert {group for group in ("many", "medium", "few") if report[group] is not None} == {name}
    assert report[name] == pytest.approx(np.mean(report["per_class_accuracy"]))


@pytest.mark.parametrize("level", [0.0, -1e4, 1e4])
@pytest.mark.parametrize("classes", [2, 7])
def test_equal_logits_are_measured(classes: int, level: float) -> None:
    """The first class wins; nothing is known, and the measures say so."""
    labels = torch.arange(4 * classes) % classes
    logits = torch.full((len(labels), classes), level)
    report = classification_report(logits, labels, np.full(classes, 50))
    assert report["all"] == pytest.approx(100 / classes) and report["ece"] == pytest.approx(0, abs=1e-9)
    assert report["per_class_accuracy"] == [100.0] + [0.0] * (classes - 1)
    assert fit_temperature(logits, labels) is None
    assert calibration_error(logits, torch.zeros_like(labels)) == pytest.approx(100 * (1 - 1 / classes))
    for reading in logits_magnitude(logits, labels).values():
        assert reading["loma"] == reading["sigma_true"] == reading["sigma_other"] == [0.0] * classes
        assert reading["rsd_true"] == reading["rsd_other"] == [None] * classes
    for means in (column_means(logits), class_wise_column_means(logits, labels)):
        torch.testing.assert_close(means, torch.full_like(means, 1 / classes))
        torch.testing.assert_close(rebalance(logits, means, 1.0), torch.zeros(logits.shape, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 5])
def test_huge_logits_are_measured(classes: int, dtype: torch.dtype) -> None:
    """+-1e4, a tenth of them wrong: finite numbers, LoMa and RSD as a loop in float64 has them."""
    labels = torch.arange(10 * classes) % classes
    winners = torch.where(torch.arange(len(labels)) < classes, (labels + 1) % classes, labels)
    logits = (1e4 * (2 * F.one_hot(winners, classes) - 1)).to(dtype)
    report = classification_report(logits, labels, np.full(classes, 5))
    assert report["all"] == pytest.approx(90) and report["ece"] == pytest.approx(10)
    for name, reading in logits_magnitude(logits, labels).items():
        for key, values in reading.items():
            expected = [loop_magnitude(logits, labels, name, k)[key] for k in range(classes)]
            assert values == pytest.approx(expected, rel=1e-9)
    assert column_means(logits).sum().item() == pytest.approx(1)
    scores = rebalance(logits, class_wise_column_means(logits, labels), 1.0)
    assert scores.isfinite().all() and torch.equal(scores.argmax(dim=1), winners)
    temperature = fit_temperature(logits, labels)
    assert temperature is not None and calibration_error(logits, labels, temperature=temperature) < 0.1


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("size", [0.2, 1.0, 300.0])
def test_a_temperature_fitted_on_one_class_is_the_best_one(classes: int, size: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits, labels = size * torch.randn(50, classes, generator=generator).double(), torch.full((50,), classes - 1)
    logits[:, -1] += 0.5 * size
    found = fit_temperature(logits, labels)

    assert found is not None

    def loss(temperature: float) -> float:
        return F.cross_entropy(logits / temperature, labels).item()

    assert loss(found) < min(loss(found * 1.001), loss(found / 1.001), loss(found * 10), loss(found / 10))


def test_one_image_is_measured() -> None:
    logits, labels = torch.tensor([[1.0, 3.0]]), torch.tensor([1])
    report = classification_report(logits, labels, np.array([3, 1]))
    assert report["per_class_accuracy"] == [None, 100.0] and report["macro_f1"] == 100
    assert report["ece"] == pytest.approx(100 / (1 + math.exp(2)))
    readings = logits_magnitude(logits, labels)
    assert readings["row"]["loma"] == [None, 2.0] and readings["column"]["loma"] == [None, None]
    assert fit_temperature(logits, labels) is None  # no image is misclassified
    assert class_wise_column_means(logits, labels).sum().item() == pytest.approx(1)
    assert feature_variance_ratio(torch.ones(1, 3), labels) is None


# Data at their limits, through the commands


def numbers_in(value: Any) -> Iterator[float]:
    """Every number inside nested dictionaries and lists."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(item, dict | list):
            yield from numbers_in(item)
        elif isinstance(item, int | float):
            yield float(item)


def test_two_classes_of_one_image_pass_through_everything(tmp_path: Path) -> None:
    """Nothing can be held out of one image, so there is no temperature; every report is finite all the same."""
    tree = image_tree(tmp_path / "tree", classes=2, train=1)
    data = ("--dataset", "folder", "--data_dir", tree, "--stem", "cifar", "--network", "resnet8", "--width", 2)
    data += ("--image_size", 8, "--resize", 8, "--workers", 0, "--holdout", 0.5, "--out", tmp_path, "--device", "cpu")
    succeed("main_stage1", *data, "--epochs", 1)
    trained = ("los", "las", "gcl", "gala", "ldam_drw", "wb", "disalign")
    for method in (*trained, "ncm", "logit_adjust_posthoc"):
        succeed("main_stage2", *data, "--method", method, *(("--finetune_epoch", 2) if method in trained else ()))
        metrics = read(next(tmp_path.rglob(f"stage2_{method}*/metrics.json")))
        assert metrics["class_counts"] == [1, 1]
        last = metrics["last"]["plain"]
        assert last["many"] is None and last["medium"] is None and 0 <= last["few"] <= 100
        assert all(map(math.isfinite, numbers_in(metrics))) and metrics["calibration"] is None
    outcome = run("main_stage2", *data, "--method", "lort")
    assert outcome.status == 2 and "0 <= d < 0.5" in outcome.err


@pytest.mark.parametrize(
    ("flags", "counts", "empty"),
    [
        (("--imb_ratio", 1), [124] * 10, ["medium", "few"]),
        (("--imb_ratio", 124, "--imb_type", "step"), [124] * 5 + [1] * 5, ["medium"]),
        (("--imb_ratio", 124, "--holdout", 0.5), [62, 36, 21, 12, 7, 4, 2, 1, 1, 1], ["many"]),
    ],
)
def test_balanced_and_most_imbalanced_digits(
    flags: tuple[object, ...], counts: list[int], empty: list[str], tmp_path: Path
) -> None:
    common = ("--dataset", "digits", "--width", 2, "--out", tmp_path, "--device", "cpu", *flags)
    succeed("main_stage1", *common, "--epochs", 1)
    succeed("main_stage2", *common, "--finetune_epoch", 1, "--method", "las")
    for file in tmp_path.rglob("metrics.json"):
        metrics = read(file)
        assert metrics["class_counts"] == counts
        groups = metrics["last"]["plain"]
        assert [name for name in ("many", "medium", "few") if groups[name] is None] == empty
        assert all(map(math.isfinite, numbers_in(metrics)))
    assert len(list(tmp_path.rglob("metrics.json"))) == 2


@pytest.mark.parametrize("imb_type", ["exp", "step"])
def test_a_profile_without_an_image_of_some_class_is_refused(imb_type: str, tmp_path: Path) -> None:
    flags = ("--dataset", "digits", "--imb_type", imb_type, "--imb_ratio", 124.5, "--out", tmp_path)
    outcome = run("main_stage1", *flags)
    assert outcome.status == 2 and "classes without an image" in outcome.err and "at most 124" in outcome.err
    assert not list(tmp_path.iterdir())
