"""Label over-smoothing: against explicit soft targets, PyTorch's own loss, and its optimum in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import LOSSES, build_loss
from losses.cross_entropy import CrossEntropy
from losses.los import ONE_HOT, Target, optimal_gap, rest_target, smoothing_for_gap, torch_target
from utils.errors import UserError
from utils.recipes import RECIPES, find_recipe, resolve_smoothing, resolve_target

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


def value_and_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


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
