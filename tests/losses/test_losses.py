"""Label over-smoothing against explicit soft targets, PyTorch's own loss and its optimum in closed form; the
other losses against the formulas of their papers, one sample at a time. GALA has a file of its own."""

import itertools
import math
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import LOSSES, build_loss, loss_parameters
from losses.class_balanced import effective_number_weights, inverse_frequency_weights
from losses.los import ONE_HOT, CrossEntropy, Target, optimal_gap, rest_target, smoothing_for_gap, torch_target
from methods.closed_form import CLOSED_FORM, closed_form_parameters
from methods.plan import resolve_smoothing, resolve_target
from methods.recipes import RECIPES, find_recipe
from tests.formulas import FORMULAS, ce_formula, effective_weights, ldam_formula, value_and_gradient
from utils.errors import UserError
from utils.parameters import HYPERPARAMETERS, Range, check_parameter

BATCH, CLASSES = 12, 100


def random_batch(classes: int = CLASSES, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(BATCH, classes, generator=generator, dtype=dtype)
    return logits, torch.randint(classes, (BATCH,), generator=generator)


def soft_target_loss(target: Target) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy with every probability written out."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        wanted = torch.full_like(logits, target[1]).scatter(1, labels[:, None], target[0])
        return -(wanted * (logits - logits.logsumexp(dim=1, keepdim=True))).sum(dim=1).mean()

    return loss


def assert_same_loss(ours: nn.Module, theirs: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    batch = random_batch(dtype=dtype)
    for got, expected in zip(value_and_gradient(ours, *batch), value_and_gradient(theirs, *batch), strict=True):
        torch.testing.assert_close(got, expected)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


# Targets


def test_torch_target_of_the_paper() -> None:
    assert torch_target(0.98, 100) == pytest.approx((0.0298, 0.0098))
    assert torch_target(0.0, 100) == ONE_HOT


def test_rest_target_of_the_paper() -> None:
    assert rest_target(0.98, 100) == pytest.approx((0.02, 0.98 / 99))
    assert rest_target(0.0, 100) == ONE_HOT


@pytest.mark.parametrize("classes", [2, 10, 100, 8142])
@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_targets_are_distributions(smoothing: float, classes: int) -> None:
    for true, other in (torch_target(smoothing, classes), rest_target(smoothing, classes)):
        assert true + (classes - 1) * other == pytest.approx(1)
        assert true > other > 0


@pytest.mark.parametrize("delta", [0.1, 0.5, 0.9, 0.98])
def test_conventions_convert(delta: float) -> None:
    assert rest_target(delta, 100) == pytest.approx(torch_target(delta * 100 / 99, 100))
    assert rest_target(delta, 100) != pytest.approx(torch_target(delta, 100), rel=1e-3)


@pytest.mark.parametrize(("delta", "classes"), [(0.98, 10), (0.9, 10), (0.98, 49), (0.98, 50), (0.5, 2), (-0.1, 10)])
def test_rest_is_refused_where_the_true_class_would_not_lead(delta: float, classes: int) -> None:
    message = refusal(lambda: rest_target(delta, classes))
    assert "--label_smooth" in message and "0 <= d <" in message


@pytest.mark.parametrize(("delta", "classes"), [(0.98, 51), (0.899, 10), (0.499, 2)])
def test_rest_is_accepted_below_its_limit(delta: float, classes: int) -> None:
    true, other = rest_target(delta, classes)
    assert true > other


@pytest.mark.parametrize("smoothing", [-0.01, 1.0, 1.5, math.nan, math.inf])
def test_smoothing_outside_its_domain(smoothing: float) -> None:
    assert "--label_smooth" in refusal(lambda: torch_target(smoothing, 100))
    assert "--label_smooth" in refusal(lambda: rest_target(smoothing, 100))


# The published optimal gaps (s = 0.98): facts of the paper, in nats.
@pytest.mark.parametrize(("classes", "gap"), [(100, 1.112), (1000, 3.064), (8142, 5.119)])
def test_optimal_gap_of_los(classes: int, gap: float) -> None:
    assert optimal_gap(torch_target(0.98, classes)) == pytest.approx(gap, abs=6e-4)
    assert smoothing_for_gap(gap, classes) == pytest.approx(0.98, abs=2e-5)


@pytest.mark.parametrize(("classes", "gap"), [(100, 0.70), (1000, 3.01), (8142, 5.11)])
def test_optimal_gap_of_lort(classes: int, gap: float) -> None:
    assert optimal_gap(rest_target(0.98, classes)) == pytest.approx(gap, abs=6e-3)


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_smoothing_for_gap_inverts_optimal_gap(smoothing: float, classes: int) -> None:
    gap = optimal_gap(torch_target(smoothing, classes))
    assert smoothing_for_gap(gap, classes) == pytest.approx(smoothing)
    delta = smoothing * (classes - 1) / classes
    assert smoothing_for_gap(optimal_gap(rest_target(delta, classes)), classes, "rest") == pytest.approx(delta)


@pytest.mark.parametrize("gap", [1e-6, 0.01, 100.0])
def test_extreme_gaps_are_reached(gap: float) -> None:
    assert optimal_gap(torch_target(smoothing_for_gap(gap, 100), 100)) == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("gap", [0.0, -1.0, 101.0, math.nan, math.inf])
def test_gap_outside_its_domain(gap: float) -> None:
    assert "--loma_target" in refusal(lambda: smoothing_for_gap(gap, 100))


def test_one_hot_wants_an_infinite_gap() -> None:
    assert optimal_gap(ONE_HOT) == math.inf


# The loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.98])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_los_is_pytorchs_label_smoothing(smoothing: float, dtype: torch.dtype) -> None:
    ours = build_loss("ce", [5] * CLASSES, torch_target(smoothing, CLASSES))
    assert_same_loss(ours, nn.CrossEntropyLoss(label_smoothing=smoothing), dtype)


@pytest.mark.parametrize("target", [torch_target(0.98, CLASSES), rest_target(0.98, CLASSES), ONE_HOT])
def test_loss_is_cross_entropy_with_the_soft_target(target: Target) -> None:
    assert_same_loss(CrossEntropy(target), soft_target_loss(target), torch.float64)


def test_gradient_is_softmax_minus_target() -> None:
    logits, labels = random_batch()
    true, other = torch_target(0.98, CLASSES)
    _, gradient = value_and_gradient(CrossEntropy((true, other)), logits, labels)
    wanted = torch.full_like(logits, other).scatter(1, labels[:, None], true)
    torch.testing.assert_close(gradient, (logits.softmax(dim=1) - wanted) / BATCH)


@pytest.mark.parametrize("target", [ONE_HOT, torch_target(0.98, 7), rest_target(0.8, 7)])
def test_gradcheck(target: Target) -> None:
    logits, labels = random_batch(classes=7)
    assert torch.autograd.gradcheck(lambda z: CrossEntropy(target)(z, labels), logits.requires_grad_())


@pytest.mark.parametrize("target", [ONE_HOT, torch_target(0.98, CLASSES), rest_target(0.98, CLASSES)])
def test_shift_of_a_sample_changes_nothing(target: Target) -> None:
    logits, labels = random_batch()
    shifted = logits + torch.linspace(-50, 50, BATCH, dtype=torch.float64)[:, None]
    before, after = (value_and_gradient(CrossEntropy(target), z, labels) for z in (logits, shifted))
    torch.testing.assert_close(after[0], before[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "target", [torch_target(0.98, CLASSES), rest_target(0.98, CLASSES), torch_target(0.5, CLASSES)]
)
def test_optimum_is_at_the_optimal_gap(target: Target) -> None:
    labels = torch.arange(CLASSES)
    loss, gap = CrossEntropy(target), optimal_gap(target)
    gradients = {}
    for change in (-0.1, 0.0, 0.1):
        logits = (gap + change) * F.one_hot(labels, CLASSES).double()
        gradients[change] = value_and_gradient(loss, logits, labels)[1]
    assert gradients[0.0].abs().max() < 1e-12
    assert (gradients[-0.1].diagonal() < -1e-6).all()  # descent raises a true logit that leads by too little
    assert (gradients[0.1].diagonal() > 1e-6).all()  # and lowers one that leads by too much


def test_hard_labels_survive_infinite_certainty() -> None:
    """A logit of minus infinity for another class is no NaN under one-hot labels."""
    logits = torch.tensor([[2.0, -math.inf, 0.0]], requires_grad=True)
    loss = CrossEntropy(ONE_HOT)(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2)))
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert CrossEntropy(torch_target(0.98, 3))(logits, torch.tensor([1])).isfinite()


def test_build_loss_errors() -> None:
    message = refusal(lambda: build_loss("focal_point", [3, 2]))
    assert "focal_point" in message and all(name in message for name in LOSSES)
    for class_counts in ([3], [3, 0], []):
        assert "class_counts" in refusal(lambda counts=class_counts: build_loss("ce", counts))


# The long-tailed losses: each against its paper's formula, one sample at a time, in float64

COUNTS = [500, 120, 37, 9, 2]
EVEN = [40] * 5
DETERMINISTIC = [name for name in LOSSES if name not in ("gcl", "gala")]
SHIFT_INVARIANT = [name for name in DETERMINISTIC if name != "vs"]  # vs multiplies each logit by its own factor
SOFT = ["ce", "logit_adjust", "balanced_softmax"]


CASES = [(name, formula, parameters) for name, formula, choices in FORMULAS for parameters in choices]


@pytest.mark.parametrize(("name", "formula", "parameters"), CASES, ids=lambda case: getattr(case, "__name__", None))
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_mean_of_its_formula(
    name: str, formula: Callable[..., float], parameters: dict[str, float], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    classes = int(draw.integers(2, 9))
    counts = np.sort(draw.integers(1, 1000, classes))[::-1].copy()
    counts[0] += 1  # never balanced
    logits, labels = 2 * draw.standard_normal((BATCH, classes)), draw.integers(0, classes, BATCH)
    expected = np.mean([formula(z, y, counts, **parameters) for z, y in zip(logits, labels, strict=True)])
    loss = build_loss(name, counts.tolist(), **parameters)
    assert loss(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-11)


def test_ldam_weighted_is_the_weighted_mean() -> None:
    logits, labels = random_batch(len(COUNTS))
    n, weights = np.array(COUNTS), effective_weights(COUNTS, 0.99)
    losses = [ldam_formula(z, y, n, 0.3, 8.0) for z, y in zip(logits.numpy(), labels, strict=True)]
    expected = sum(weights[y] * loss for y, loss in zip(labels, losses, strict=True)) / weights[labels].sum()
    loss = build_loss("ldam_weighted", COUNTS, beta=0.99, max_margin=0.3, scale=8.0)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-11)
    even = build_loss("ldam_weighted", COUNTS, beta=0.0), build_loss("ldam", COUNTS)
    assert even[0](logits, labels).item() == pytest.approx(even[1](logits, labels).item())


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0, 1.2])
def test_reweighted_ce_is_the_weighted_mean(rho: float) -> None:
    """DisAlign's generalised re-weighting: w_j = K (1 / n_j)^rho / sum_k (1 / n_k)^rho."""
    logits, labels = random_batch(len(COUNTS))
    inverse = [(1 / count) ** rho for count in COUNTS]
    weights = [len(COUNTS) * value / sum(inverse) for value in inverse]
    total = sum(weights[y] * ce_formula(z, y, np.array(COUNTS)) for z, y in zip(logits.numpy(), labels, strict=True))
    expected = total / sum(weights[y] for y in labels)
    assert build_loss("reweighted_ce", COUNTS, rho=rho)(logits, labels).item() == pytest.approx(expected, rel=1e-11)
    torchs = nn.CrossEntropyLoss(weight=torch.tensor(weights, dtype=torch.float64))
    assert torchs(logits, labels).item() == pytest.approx(expected, rel=1e-11)


def test_inverse_frequency_weights_sum_to_the_number_of_classes() -> None:
    weights = inverse_frequency_weights(COUNTS, 1.2)
    assert weights.dtype == torch.float64 and weights.sum().item() == pytest.approx(len(COUNTS))
    assert (weights[4] / weights[0]).item() == pytest.approx(250**1.2)
    extreme = inverse_frequency_weights([10**6, 1], 100.0)
    assert extreme.isfinite().all() and extreme.sum().item() == pytest.approx(2)
    assert loss_parameters("reweighted_ce") == {"rho": 1.2}


@pytest.mark.parametrize("name", ["logit_adjust", "balanced_softmax"])
@pytest.mark.parametrize("target", [torch_target(0.98, 5), rest_target(0.3, 5)])
def test_soft_targets_of_the_adjusted_logits(name: str, target: Target) -> None:
    logits, labels = random_batch(5)
    adjusted = logits + torch.tensor(COUNTS, dtype=torch.float64).log()
    ours, expected = build_loss(name, COUNTS, target)(logits, labels), soft_target_loss(target)(adjusted, labels)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1 - 1e-9, 1 - 1e-15])
def test_effective_number_weights_keep_their_digits(beta: float) -> None:
    with localcontext() as context:
        context.prec = 60
        inverse = [(1 - Decimal(beta)) / (1 - Decimal(beta) ** count) for count in COUNTS]
        expected = [float(len(COUNTS) * weight / sum(inverse)) for weight in inverse]
    weights = effective_number_weights(COUNTS, beta)
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)
    assert weights.sum().item() == pytest.approx(len(COUNTS))


# Their derivatives, and where they must stay finite


def cases(names: Sequence[str] = tuple(LOSSES)) -> list[tuple[str, dict[str, float | str]]]:
    """Each loss with its defaults, and with values of its own where a power or a choice could go wrong."""
    special: dict[str, list[dict[str, float | str]]] = {
        "focal": [{"gamma": 0.0}, {"gamma": 0.3}, {"gamma": 1.0}],
        "cb_ce": [{"beta": 0.0}],
        "wb_cb": [{"beta": 0.0}],
        "gala": [{"gala_margin": "released", "gala_accumulation": "double", "lambda1": 1.2}],
    }
    return [(name, parameters) for name in names for parameters in [{}, *special.get(name, [])]]


@pytest.mark.parametrize(("name", "parameters"), cases(DETERMINISTIC))
def test_gradcheck_of_every_loss(name: str, parameters: dict[str, float | str]) -> None:
    logits, labels = random_batch(len(COUNTS))
    loss = build_loss(name, COUNTS, **parameters)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())


def test_gradcheck_of_gcl() -> None:
    logits, labels = random_batch(len(COUNTS))
    loss = build_loss("gcl", COUNTS, scale=4.0)

    def same_clouds(z: Tensor) -> Tensor:
        torch.manual_seed(0)
        return loss(z, labels)

    assert torch.autograd.gradcheck(same_clouds, logits.requires_grad_())


@pytest.mark.parametrize(("name", "parameters"), cases())
def test_losses_and_gradients_stay_finite(name: str, parameters: dict[str, float | str]) -> None:
    """Every class wins and loses every label, by 2 * size: probabilities of exactly 0 and 1 among them."""
    grid = itertools.product((2, 5), (0.0, 1.0, 30.0, 1e4), (torch.float32, torch.float64))
    for classes, size, dtype in grid:
        case = f"{classes} classes, size {size}, {dtype}"
        loss = build_loss(name, COUNTS[:classes], **parameters)
        winners, labels = (grid.flatten() for grid in torch.meshgrid(*[torch.arange(classes)] * 2, indexing="ij"))
        logits = size * (2 * F.one_hot(winners, classes).to(dtype) - 1)
        for _ in range(3):  # gala has margins from its second step on
            value, gradient = value_and_gradient(loss, logits, labels)
            assert value.isfinite() and value >= 0 and value.dtype == dtype, case
            assert gradient.isfinite().all() and gradient.dtype == dtype, case


@pytest.mark.parametrize("gamma", [0.25, 0.5, 2.0])
def test_focal_is_flat_where_the_true_class_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]])
    value, gradient = value_and_gradient(build_loss("focal", [3, 2, 1], gamma=gamma), logits, torch.tensor([0]))
    assert value == 0 and gradient.abs().max() < 1e-20


def test_wb_cb_is_not_clamped() -> None:
    """Torch clamps a logarithm at -100; a class that is wrongly certain by 1000 nats costs 1000, twice, over K = 2."""
    logits, labels = torch.tensor([[0.0, 1000.0]]), torch.tensor([0])
    value, gradient = value_and_gradient(build_loss("wb_cb", [1, 1]), logits, labels)
    assert value == pytest.approx(1000)
    assert gradient[0].tolist() == pytest.approx([-1.0, 1.0])


# What they have in common


def assert_equal_losses(one: nn.Module, other: nn.Module, classes: int = len(COUNTS)) -> None:
    batch = random_batch(classes)
    for got, expected in zip(value_and_gradient(one, *batch), value_and_gradient(other, *batch), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("balanced_softmax", {}),
        ("logit_adjust", {}),
        ("logit_adjust", {"tau": 2.0}),
        ("vs", {}),
        ("cb_ce", {}),
        ("reweighted_ce", {}),
        ("gcl", {}),
        ("ldam", {"max_margin": 0.0}),
    ],
)
def test_with_balanced_counts_it_is_cross_entropy(name: str, parameters: dict[str, float]) -> None:
    ours = build_loss(name, EVEN, **parameters)
    assert_equal_losses(ours, CrossEntropy())
    assert not list(ours.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("focal", {"gamma": 0.0}),
        ("cb_ce", {"beta": 0.0}),
        ("reweighted_ce", {"rho": 0.0}),
        ("logit_adjust", {"tau": 0.0}),
        ("gcl", {"noise": 0.0}),
        ("ldam", {"max_margin": 0.0}),
        ("las", {"smooth_head": 0.0, "smooth_tail": 0.0}),
        ("vs", {"gamma": 0.0, "tau": 0.0}),
    ],
)
def test_switched_off_it_is_cross_entropy(name: str, parameters: dict[str, float]) -> None:
    ours = build_loss(name, COUNTS, **parameters)
    assert_equal_losses(ours, CrossEntropy())
    assert not list(ours.parameters())


@pytest.mark.parametrize("target", [ONE_HOT, torch_target(0.98, 5), rest_target(0.7, 5)])
def test_balanced_softmax_is_logit_adjustment_with_tau_1(target: Target) -> None:
    ours = build_loss("balanced_softmax", COUNTS, target)
    assert_equal_losses(ours, build_loss("logit_adjust", COUNTS, target))
    assert loss_parameters("logit_adjust") == {"tau": 1.0}


def test_vs_without_scaling_is_logit_adjustment() -> None:
    ours = build_loss("vs", COUNTS, gamma=0.0, tau=1.0)
    assert_equal_losses(ours, build_loss("logit_adjust", COUNTS))
    assert loss_parameters("vs") == {"gamma": 0.05, "tau": 0.75}


def test_las_with_balanced_counts_smooths_by_smooth_head() -> None:
    logits, labels = random_batch(5)
    expected = soft_target_loss((1 - 0.3, 0.3 / 4))(logits, labels)
    got = build_loss("las", EVEN, smooth_head=0.3, smooth_tail=0.1)(logits, labels)
    assert got.item() == pytest.approx(expected.item(), rel=1e-11)


def test_ldam_with_balanced_counts_takes_the_largest_margin_off_every_true_logit() -> None:
    logits, labels = random_batch(5)
    expected = F.cross_entropy(logits - 0.4 * 20 * F.one_hot(labels, 5), labels)
    got = build_loss("ldam", EVEN, max_margin=0.4, scale=20.0)(logits, labels)
    assert got.item() == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_order_of_the_classes_is_of_no_matter(name: str) -> None:
    logits, labels = random_batch(len(COUNTS))
    order = torch.tensor([3, 0, 4, 2, 1])
    loss = build_loss(name, COUNTS)(logits, labels)
    permuted = build_loss(name, [COUNTS[old] for old in order])(logits[:, order], order.argsort()[labels])
    assert permuted.item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_a_shift_of_a_sample_changes_no_loss(name: str) -> None:
    logits, labels = random_batch(len(COUNTS))
    loss = build_loss(name, COUNTS)
    shifted = logits + torch.linspace(-50, 50, BATCH, dtype=torch.float64)[:, None]
    assert loss(shifted, labels).item() == pytest.approx(loss(logits, labels).item(), rel=1e-10)


# Gaussian clouds


def gcl_clouds(counts: Sequence[int], batch: int, **parameters: float) -> Tensor:
    """What the loss takes off logits of 0, one entry a sample and class, read off where the loss meets the logits."""
    seen = []
    original = F.cross_entropy

    def spy(logits: Tensor, labels: Tensor, **more: str) -> Tensor:
        seen.append(logits)
        return original(logits, labels, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", spy)
        logits = torch.zeros(batch, len(counts), dtype=torch.float64)
        build_loss("gcl", counts, **parameters)(logits, torch.zeros(batch, dtype=torch.long))
    return -seen[0]


def test_clouds_have_the_published_distribution() -> None:
    """|e| with e ~ N(0, 1/3) clamped to [-1, 1]: mean, second moment and share of the clamped, over 100,000 samples."""
    torch.manual_seed(0)
    clouds = gcl_clouds(COUNTS, 100_000, scale=20.0, noise=0.4)
    sizes = [math.log(max(COUNTS) / count) / math.log(max(COUNTS) / min(COUNTS)) for count in COUNTS]
    assert clouds[:, 0].abs().max() == 0  # the largest class has no cloud
    half, deviation = NormalDist(), 1 / 3
    tail = 2 * half.cdf(-3)
    mean = 2 * deviation * (half.pdf(0) - half.pdf(3)) + tail
    square = deviation**2 * (1 - tail - 6 * half.pdf(3)) + tail
    for cloud, size in zip(clouds.T[1:], sizes[1:], strict=True):
        draws = cloud / (20 * 0.4 * size)
        assert draws.min() >= 0 and draws.max() <= 1 + 1e-12
        assert draws.mean().item() == pytest.approx(mean, abs=5 * 0.2 / 100_000**0.5)
        assert draws.square().mean().item() == pytest.approx(square, abs=5 * 0.16 / 100_000**0.5)
        assert (draws > 1 - 1e-9).double().mean().item() == pytest.approx(tail, abs=5 * (tail / 100_000) ** 0.5)
    assert torch.corrcoef(clouds.T[1:]).fill_diagonal_(0).abs().max() < 5 / 100_000**0.5  # a draw for each class


def test_clouds_come_from_torchs_global_generator() -> None:
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(build_loss("gcl", COUNTS)(*random_batch(5)).item())
    assert losses[0] == losses[1] != losses[2]


def test_gcl_is_the_cross_entropy_of_its_clouded_logits() -> None:
    logits, labels = random_batch(5)
    torch.manual_seed(3)
    draws = (torch.randn(BATCH, 5, dtype=torch.float64) / 3).clamp(-1, 1).abs()
    sizes = torch.tensor([math.log(500 / count) / math.log(250) for count in COUNTS], dtype=torch.float64)
    expected = F.cross_entropy(logits - 30 * 0.5 * sizes * draws, labels)
    torch.manual_seed(3)
    assert build_loss("gcl", COUNTS)(logits, labels).item() == pytest.approx(expected.item(), rel=1e-11)


# Stacks of losses: one call for many values of a hyper-parameter

STACKS: dict[str, list[dict[str, float | str]]] = {
    "ce": [{}, {}, {}],
    "focal": [{"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 3.0}],
    "cb_ce": [{"beta": 0.0}, {"beta": 0.9}, {"beta": 0.9, "cb_mean": "weight"}],
    "wb_cb": [{"beta": 0.0}, {"beta": 0.9}, {"beta": 0.9999}],
    "reweighted_ce": [{"rho": 0.0}, {"rho": 0.8}, {}],
    "logit_adjust": [{"tau": 0.0}, {"tau": 1.0}, {"tau": 1.5}],
    "balanced_softmax": [{}, {}, {}],
    "ldam": [{"max_margin": 0.1}, {"scale": 5.0}, {"max_margin": 1.0}],
    "ldam_weighted": [{"beta": 0.0}, {"beta": 0.99}, {"max_margin": 0.1}],
    "las": [{"smooth_head": 0.2}, {"smooth_tail": 0.0, "las_target": "released"}, {}],
    "vs": [{"gamma": 0.0}, {"tau": 2.0}, {}],
    "gcl": [{"noise": 0.0}, {"noise": 1.0, "gcl_loss": "released"}, {"scale": 4.0}],
    "gala": [{"lambda1": 0.5}, {"gala_margin": "released"}, {"gala_accumulation": "double"}],
    "gml": [{}, {}, {}],
}


def stacked_call(losses: Sequence[nn.Module]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of logits (H, B, K) and labels (B,) that gives the H losses from one call."""
    _, buffers = torch.func.stack_module_state(list(losses))

    def one(state: dict[str, Tensor], logits: Tensor, labels: Tensor) -> Tensor:
        return torch.func.functional_call(losses[0], state, (logits, labels))

    every = torch.func.vmap(one, in_dims=(0, 0, None), randomness="same")
    return lambda logits, labels: every(buffers, logits, labels)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stack_of_losses_gives_the_single_losses(name: str, dtype: torch.dtype) -> None:
    """Values and gradients, over several steps: gala gathers in the stacked buffers as it does in its own."""
    targets = [ONE_HOT, torch_target(0.3, 5), torch_target(0.98, 5)] if name in SOFT else [ONE_HOT] * 3
    losses = [build_loss(name, COUNTS, target, **p) for target, p in zip(targets, STACKS[name], strict=True)]
    together = stacked_call(losses)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        logits = 3 * torch.randn(3, BATCH, 5, generator=generator, dtype=dtype)
        labels = torch.randint(5, (BATCH,), generator=generator)
        leaf = logits.clone().requires_grad_()
        torch.manual_seed(step)
        values = together(leaf, labels)
        (gradients,) = torch.autograd.grad(values.sum(), leaf)
        for index, loss in enumerate(losses):
            torch.manual_seed(step)
            value, gradient = value_and_gradient(loss, logits[index], labels)
            torch.testing.assert_close(values[index].detach(), value, rtol=2e-6, atol=1e-7)
            torch.testing.assert_close(gradients[index], gradient, rtol=2e-5, atol=1e-7)
        assert values.unique().numel() == 3


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_nothing_to_train_and_keep_no_constant(name: str) -> None:
    loss = build_loss(name, COUNTS)
    assert not list(loss.parameters())
    assert set(loss.state_dict()) == ({"theta", "phi", "theta_sum", "phi_sum"} if name == "gala" else set())


@pytest.mark.parametrize("name", LOSSES)
def test_logits_of_other_classes_than_the_counts_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"names {len(COUNTS)} classes, the logits have 7 columns"):
        build_loss(name, COUNTS)(*random_batch(7))


# Refusals


@pytest.mark.parametrize(
    "counts", [[], [3], [3, 0], [3, -1], [3, 2.5], [3.0, 2.0], [3, math.nan], [3, math.inf], [3, "2"]]
)
@pytest.mark.parametrize("name", ["ce", "las", "gala"])
def test_class_counts_that_are_none_are_refused(name: str, counts: list[Any]) -> None:
    message = refusal(lambda: build_loss(name, counts))
    assert message.startswith("class_counts must") and "\n" not in message


@pytest.mark.parametrize("counts", [np.array(COUNTS), torch.tensor(COUNTS), tuple(COUNTS)])
def test_class_counts_of_any_integer_type(counts: Any) -> None:
    loss = build_loss("ldam", counts)
    assert_equal_losses(loss, build_loss("ldam", COUNTS))
    assert not list(loss.parameters())


PARAMETER_RANGES = {name: own.values for name, own in HYPERPARAMETERS.items() if isinstance(own.values, Range)}
PARAMETER_CHOICES = {name: own.values for name, own in HYPERPARAMETERS.items() if not isinstance(own.values, Range)}


@pytest.mark.parametrize("name", LOSSES)
def test_a_parameter_of_another_loss_is_refused(name: str) -> None:
    for other in [*PARAMETER_RANGES, *PARAMETER_CHOICES, "no_such"]:
        if other not in loss_parameters(name):
            message = refusal(lambda other=other: build_loss(name, COUNTS, **{other: 0.5}))
            assert f"--{other}" in message and name in message and "\n" not in message
            assert all(f"--{own}" in message for own in loss_parameters(name))


def test_every_parameter_has_a_domain_that_its_default_is_in() -> None:
    used = {(name, *item) for name in LOSSES for item in loss_parameters(name).items()}
    used |= {(name, *item) for name in CLOSED_FORM for item in closed_form_parameters(name).items()}
    assert {parameter for _, parameter, _ in used} == {*PARAMETER_RANGES, *PARAMETER_CHOICES}
    for _, parameter, default in used:
        check_parameter(parameter, default)


OUTSIDE: dict[str, list[Any]] = {
    "gamma": [-0.1, 101],
    "beta": [-0.1, 1.0, 1.5],
    "rho": [-0.1, 101],
    "tau": [-0.1, 101],
    "max_margin": [-0.1, 101],
    "scale": [0.0, -1.0, 1001],
    "smooth_head": [-0.1, 1.0],
    "smooth_tail": [-0.1, 1.0],
    "noise": [-0.1, 101],
    "lambda1": [-0.1, 101],
    "lambda2": [-0.1, 101],
}


@pytest.mark.parametrize("parameter", [name for name in PARAMETER_RANGES if name != "anchor"])
def test_a_value_outside_its_range_is_refused(parameter: str) -> None:
    name = next((name for name in LOSSES if parameter in loss_parameters(name)), None)
    bounds = PARAMETER_RANGES[parameter]
    for value in [
        *OUTSIDE.get(parameter, []),
        bounds.low - 0.1,
        bounds.high + 1,
        math.nan,
        math.inf,
        -math.inf,
        "half",
        None,
        True,
    ]:
        message = refusal(
            lambda value=value: (
                check_parameter(parameter, value) if name is None else build_loss(name, COUNTS, **{parameter: value})
            )
        )
        assert message.startswith(f"--{parameter} must be at least") or message.startswith(
            f"--{parameter} must be above"
        )
        assert f"{bounds.low:g}" in message and f"{bounds.high:g}" in message and "\n" not in message


@pytest.mark.parametrize("parameter", PARAMETER_CHOICES)
def test_a_value_outside_its_choices_is_refused(parameter: str) -> None:
    for value in ("", "Paper", 1.0, math.nan, None):
        message = refusal(lambda value=value: check_parameter(parameter, value))
        assert message.startswith(f"--{parameter} must be one of")
        for name in LOSSES:
            if parameter in loss_parameters(name):
                assert message == refusal(lambda value=value, name=name: build_loss(name, COUNTS, **{parameter: value}))
        assert all(choice in message for choice in PARAMETER_CHOICES[parameter])


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in SOFT])
def test_a_soft_target_is_refused_where_the_loss_has_none(name: str) -> None:
    message = refusal(lambda: build_loss(name, COUNTS, torch_target(0.1, 5)))
    assert name in message and ", ".join(SOFT) in message
    assert build_loss(name, COUNTS, torch_target(0.0, 5)) is not None  # no smoothing is no soft target


def test_parameters_of_an_unknown_loss() -> None:
    assert all(name in refusal(lambda: loss_parameters("focal_point")) for name in LOSSES)


# The rules of --label_smooth and --loma_target


@pytest.mark.parametrize(("method", "smoothing"), [("los", 0.98), ("lort", 0.98), ("label_smooth", 0.1), ("ce", None)])
def test_default_smoothing(method: str, smoothing: float | None) -> None:
    assert resolve_smoothing(method, 100, None, None) == smoothing


@pytest.mark.parametrize("method", ["los", "lort", "label_smooth"])
def test_given_smoothing_wins(method: str) -> None:
    assert resolve_smoothing(method, 100, 0.5, None) == 0.5
    assert resolve_smoothing(method, 100, 0.0, None) == 0.0  # zero is a value, not an absence
    assert resolve_target(find_recipe(method), 0.0, 100) == ONE_HOT


@pytest.mark.parametrize("method", ["los", "lort", "label_smooth"])
@pytest.mark.parametrize("classes", [10, 100, 8142])
def test_loma_target_sets_the_gap_of_any_method(method: str, classes: int) -> None:
    smoothing = resolve_smoothing(method, classes, None, 1.3)
    assert optimal_gap(resolve_target(find_recipe(method), smoothing, classes)) == pytest.approx(1.3)


def test_methods_have_their_conventions() -> None:
    assert resolve_target(find_recipe("los"), 0.98, 100) == pytest.approx((0.0298, 0.0098))
    assert resolve_target(find_recipe("lort"), 0.98, 100) == pytest.approx((0.02, 0.98 / 99))
    assert resolve_target(find_recipe("ce"), None, 100) == ONE_HOT


@pytest.mark.parametrize(("label_smooth", "loma_target"), [(0.98, None), (0.0, None), (None, 1.0)])
def test_smoothing_is_refused_for_a_method_without(label_smooth: float | None, loma_target: float | None) -> None:
    message = refusal(lambda: resolve_smoothing("ce", 100, label_smooth, loma_target))
    assert ("--label_smooth" if loma_target is None else "--loma_target") in message
    assert "los, lort" in message


@pytest.mark.parametrize("method", ["los", "ce"])
def test_both_values_are_refused(method: str) -> None:
    message = refusal(lambda: resolve_smoothing(method, 100, 0.98, 1.0))
    assert "--label_smooth" in message and "--loma_target" in message


def test_unknown_method_lists_the_known_ones() -> None:
    message = refusal(lambda: find_recipe("lows"))
    assert all(name in message for name in RECIPES)
