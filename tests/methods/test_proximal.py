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
from methods.proximal import DISTANCES, Anchored, Parts
from utils.errors import UserError

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


def log_prior(counts: list[int]) -> Tensor:
    return (torch.tensor(counts, dtype=torch.float64) / sum(counts)).log()


def standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The features as they are seen, their mean and their scale."""
    mean = features.mean(dim=0)
    scale = (features - mean).square().sum(dim=1).mean() ** -0.5
    return (features - mean) * scale, mean, scale


def direct_distance(name: str, weight: Tensor, bias: Tensor, start: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
    """The squared distances as they are defined, a row and an entry at a time."""
    if name == "weights":
        return (weight - start[0]).square().sum() + (bias - start[1]).square().sum()
    before, now = seen @ start[0].T + start[1], seen @ weight.T + bias
    if name == "logits":
        return (now - before).square().sum(dim=1).mean()
    total = torch.zeros((), dtype=torch.float64)
    spread = before.softmax(dim=1) * (1 - before.softmax(dim=1))
    for k in range(K):
        for j in range(D):
            total = total + (weight[k, j] - start[0][k, j]) ** 2 * (spread[:, k] * seen[:, j] ** 2).mean()
        total = total + (bias[k] - start[1][k]) ** 2 * spread[:, k].mean()
    return total


PARTS: list[dict[str, float | str]] = [
    {"tau": 1.0},
    {"rho": 1.0},
    {"start_tau": 0.5},
    {"distance": "logits"},
    {"distance": "fisher"},
    {"tau": 0.5, "rho": 0.7, "start_tau": 0.3, "distance": "logits"},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("target", [TARGET, torch_target(0.0, K)], ids=["los", "one-hot"])
def test_every_part_is_the_minimum_that_scipy_finds(parts: dict[str, float | str], target: tuple[float, float]) -> None:
    linear, features, labels, counts = problem()
    seen, mean, scale = standardised(features)
    tau, rho, start_tau = (float(parts.get(name, 0.0)) for name in ("tau", "rho", "start_tau"))
    start = ((linear.weight / scale).detach(), (linear.bias + linear.weight @ mean).detach())
    start = (start[0], start[1] - start_tau * log_prior(counts))
    weights = torch.tensor(counts, dtype=torch.float64)[labels] ** -rho
    wanted = torch.full((len(labels), K), target[1], dtype=torch.float64)
    wanted[torch.arange(len(labels)), labels] = target[0]
    anchor = 0.05

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = torch.tensor(flat.reshape(K, D + 1), requires_grad=True)
        weight, bias = both[:, :D], both[:, D]
        log_share = (seen @ weight.T + bias + tau * log_prior(counts)).log_softmax(dim=1)
        loss = -(weights * (wanted * log_share).sum(dim=1)).sum() / weights.sum()
        name = str(parts.get("distance", "weights"))
        value = loss + anchor / 2 * direct_distance(name, weight, bias, start, seen)
        value.backward()
        assert both.grad is not None
        return float(value), both.grad.numpy().ravel()

    expected = scipy.optimize.minimize(objective, np.zeros(K * (D + 1)), jac=True, method="L-BFGS-B", tol=1e-13)
    head = build_closed_form("proximal_los", linear, features, labels, counts, target, anchor=anchor, **parts)
    found = torch.column_stack([head.weight / scale, head.bias + head.weight @ mean]).detach()
    value = objective(found.numpy().ravel())[0]
    assert value == pytest.approx(expected.fun, abs=1e-7)  # the distances have a floor of a millionth
    logits = head(features).detach()
    other = torch.tensor(expected.x.reshape(K, D + 1))
    torch.testing.assert_close(
        logits.softmax(dim=1), (seen @ other[:, :D].T + other[:, D]).softmax(dim=1), rtol=0, atol=2e-3
    )


def test_a_path_from_the_largest_lambda_ends_where_each_alone_does() -> None:
    linear, features, labels, counts = problem()
    anchored = Anchored.of(linear, (features, labels), counts, TARGET)
    anchors = [1e-3, 1.0, 0.03]
    found = dict(anchored.path(anchors))
    assert list(found) == [1.0, 0.03, 1e-3]
    for anchor in anchors:
        for along, alone in zip(found[anchor], anchored.solve(anchor), strict=True):
            torch.testing.assert_close(along, alone, rtol=0, atol=1e-4)
    moved = [anchored.moved_by(found[anchor]) for anchor in (1.0, 0.03, 1e-3)]
    assert moved == sorted(moved) and moved[0] > 0
    assert anchored.moved_by(anchored.start) == 0


def test_a_distance_in_its_variables_is_a_sum_of_squares() -> None:
    linear, features, labels, counts = problem()
    seen, *_ = standardised(features)
    for name in DISTANCES:
        anchored = Anchored.of(linear, (features, labels), counts, TARGET, Parts(distance=name))
        draw = torch.Generator().manual_seed(1)
        change = tuple(torch.randn(part.shape, generator=draw, dtype=torch.float64) for part in anchored.start)
        variables = anchored.distance.variables((change[0], change[1]))
        direct = direct_distance(
            name, anchored.start[0] + change[0], anchored.start[1] + change[1], anchored.start, seen
        )
        torch.testing.assert_close(sum(part.square().sum() for part in variables), direct, rtol=1e-4, atol=0)
        for back, part in zip(anchored.distance.change(variables), change, strict=True):
            torch.testing.assert_close(back, part)


def test_features_without_spread_leave_a_distance_positive() -> None:
    linear, features, labels, counts = problem()
    features = torch.cat([features[:, :-1], features[:, :1]], dim=1)  # the last one is the first one again
    for name in ("logits", "fisher"):
        found = build_closed_form("proximal_los", linear, features, labels, counts, TARGET, anchor=0.1, distance=name)
        assert bool(found.weight.isfinite().all())


def test_the_bregman_distance_of_the_loss_is_another_target() -> None:
    """KL(p0 || p) with a weight of lambda is cross-entropy against the mixture, up to a constant."""
    linear, features, labels, _ = problem()
    other = nn.Linear(D, K, dtype=torch.float64)
    before, weight = linear(features).detach().softmax(dim=1), 0.7
    wanted = torch.full((len(labels), K), TARGET[1], dtype=torch.float64)
    wanted[torch.arange(len(labels)), labels] = TARGET[0]
    mixture = (wanted + weight * before) / (1 + weight)
    gradients = []
    for loss in (
        lambda logs: -(wanted * logs).sum(dim=1).mean() + weight * (before * (before.log() - logs)).sum(dim=1).mean(),
        lambda logs: -(1 + weight) * (mixture * logs).sum(dim=1).mean(),
    ):
        other.zero_grad()
        loss(other(features).log_softmax(dim=1)).backward()
        assert other.weight.grad is not None
        gradients.append(other.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_an_unknown_distance_is_refused() -> None:
    linear, features, labels, counts = problem()
    with pytest.raises(UserError, match="unknown distance 'far'; known: weights, logits, fisher"):
        Anchored.of(linear, (features, labels), counts, TARGET, Parts(distance="far"))
