"""Proximal LOS: one minimum, whatever the solver, its start or the features' scale."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

from losses.los import CrossEntropy, rest_target, torch_target
from methods.closed_form import build_closed_form
from methods.convex_fit import Standardised
from methods.plan import Plan, compute_head

K, D = 4, 6
TARGET = torch_target(0.9, K)


def problem(seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor, list[int]]:
    """A linear classifier in double precision, features of a long-tailed set, their labels and the class counts."""
    draw = torch.Generator().manual_seed(seed)
    counts = [40, 20, 8, 3]
    labels = torch.repeat_interleave(torch.arange(K), torch.tensor(counts))
    centres = torch.randn(K, D, generator=draw, dtype=torch.float64)
    features = centres[labels] + 0.7 * torch.randn(len(labels), D, generator=draw, dtype=torch.float64) + 3
    linear = nn.Linear(D, K, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(K, D, generator=draw, dtype=torch.float64))
        linear.bias.copy_(torch.randn(K, generator=draw, dtype=torch.float64))
    return linear, features, labels, counts


def solve(anchor: float, scale: float = 1.0, shift: float = 0.0) -> nn.Linear:
    linear, features, labels, counts = problem()
    with torch.no_grad():  # the same classifier of the features that were moved
        linear.weight.div_(scale)
        linear.bias.sub_(linear.weight.sum(dim=1) * shift)
    return build_closed_form("proximal_los", linear, features * scale + shift, labels, counts, TARGET, anchor=anchor)


@pytest.mark.parametrize("anchor", [1e-2, 1.0])
def test_it_is_the_minimum_that_scipy_finds(anchor: float) -> None:
    linear, features, labels, _ = problem()
    mean = features.mean(dim=0)
    scale = (features - mean).square().sum(dim=1).mean() ** -0.5
    seen = ((features - mean) * scale).numpy()
    start = np.column_stack([(linear.weight / scale).detach(), (linear.bias + linear.weight @ mean).detach()])
    wanted = np.full((len(labels), K), TARGET[1])
    wanted[np.arange(len(labels)), labels] = TARGET[0]

    def objective(flat: np.ndarray) -> float:
        both = flat.reshape(K, D + 1)
        logits = seen @ both[:, :D].T + both[:, D]
        log_share = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return float(-(wanted * log_share).sum(axis=1).mean() + anchor / 2 * ((both - start) ** 2).sum())

    expected = scipy.optimize.minimize(objective, np.zeros(start.size), method="L-BFGS-B", tol=1e-13).x
    head = solve(anchor)
    found = np.column_stack([(head.weight / scale).detach(), (head.bias + head.weight @ mean).detach()])
    assert np.abs(found - expected.reshape(K, D + 1)).max() < 1e-4 * max(1, 0.1 / anchor)
    assert objective(found.ravel()) <= objective(expected) + 1e-12


def test_features_of_any_scale_and_place_give_the_same_predictions() -> None:
    features = problem()[1]
    expected = solve(1e-3)(features).softmax(dim=1)
    for scale, shift in ((0.1, 0.0), (10.0, 0.0), (1e6, 0.0), (1.0, 50.0)):
        found = solve(1e-3, scale, shift)(features * scale + shift).softmax(dim=1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_large_anchor_keeps_stage_1() -> None:
    linear, features, *_ = problem()
    torch.testing.assert_close(solve(1e9)(features), linear(features), rtol=0, atol=1e-6)


def test_without_an_anchor_it_tends_to_the_nearest_minimum_of_the_loss() -> None:
    _, features, labels, _ = problem()
    losses = [CrossEntropy(TARGET)(solve(anchor)(features), labels).item() for anchor in (1.0, 1e-2, 1e-4, 1e-8)]
    assert losses == sorted(losses, reverse=True)
    free = solve(1e-8)
    loss = CrossEntropy(TARGET)(free(features), labels)
    loss.backward()
    assert free.weight.grad is not None and free.weight.grad.abs().max() < 1e-5


def test_both_conventions_of_the_target_are_one_solution() -> None:
    linear, features, labels, counts = problem()
    smoothing = 0.9 * (K - 1) / K
    found = build_closed_form("proximal_los", linear, features, labels, counts, rest_target(smoothing, K))
    expected = build_closed_form("proximal_los", linear, features, labels, counts, TARGET)
    torch.testing.assert_close(found.weight, expected.weight)


def test_a_plan_gives_its_target() -> None:
    linear, features, labels, counts = problem()
    plan = Plan("proximal_los", 0, 0.0, 0.0, 0.9, "instance", None, False, {"anchor": 0.1})
    expected = build_closed_form("proximal_los", linear, features, labels, counts, TARGET, anchor=0.1)
    assert torch.equal(compute_head(plan, linear, features, labels, counts).weight, expected.weight)


def test_classifiers_are_carried_in_and_out_exactly() -> None:
    linear, features, labels, _ = problem()
    data = Standardised.of(features, labels, torch.float64)
    weight, bias = data.carry_in(linear.weight.detach(), linear.bias.detach())
    (seen, _), *rest = data.blocks(len(labels))
    assert not rest
    torch.testing.assert_close(seen @ weight.T + bias, linear(features))
    torch.testing.assert_close(data.carry_out(weight, bias)[0], linear.weight.detach())
