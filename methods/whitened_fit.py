"""Multinomial logistic regression of many rows and classes: L-BFGS in coordinates in which all directions are alike.

What makes L-BFGS slow on features is that they spread far more in some directions than in others. The curvature of
cross-entropy is bounded by the covariance C of the features (Boehning, "Multinomial logistic regression algorithm",
Annals of the Institute of Statistical Mathematics 44, 1992). So the weight is sought as U A, A = (C + r)^-1/2: then
the curvature is nearly that of a sphere, and a few dozen steps do what took hundreds. The minimum is the same one.

The gradient of cross-entropy is written out: softmax minus labels. Blocks of logits stay in a CPU's cache.
"""

import torch
from torch import Tensor

from methods.convex_fit import Fit, Standardised, Watch
from methods.optimizers import LBFGS

BLOCK = 1 << 20  # logits that are held at once
RIDGE = 0.1  # added to the variances, whose sum is 1, in all: directions without spread are left as they are
CHANGE = 3e-6  # nats: a step that gains less is the last


def whitening(data: Standardised) -> Tensor:
    """Return A = (C + r)^-1/2 (d, d), C the covariance of standardised features (N, d)."""
    width = data.features.shape[1]
    covariance = torch.zeros(width, width, device=data.mean.device, dtype=torch.float64)
    for rows, _ in data.blocks(max(BLOCK // width, 1)):
        covariance += (rows.T @ rows).double()
    variances, directions = torch.linalg.eigh(covariance / len(data.labels))
    scales = (variances.clamp(min=0) + RIDGE / width).rsqrt()
    return ((directions * scales) @ directions.T).to(data.mean)


def cross_entropy(data: Standardised, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return the mean cross-entropy of a classifier, (K, d) and (K,), and its gradients by both."""
    total = torch.zeros((), dtype=torch.float64, device=bias.device)
    by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for rows, labels in data.blocks(max(BLOCK // len(weight), 1)):
        logits = torch.addmm(bias, rows, weight.T)
        own = labels[:, None]
        log_total = logits.logsumexp(dim=1, keepdim=True)
        total += (log_total - logits.gather(1, own)).sum(dtype=torch.float64)
        error = logits.sub_(log_total).exp_()
        error.scatter_add_(1, own, torch.full_like(log_total, -1.0))
        by_weight.addmm_(error.T, rows)
        by_bias += error.sum(dim=0)
    count = len(data.labels)
    return float(total) / count, by_weight.div_(count), by_bias.div_(count)


def fit_whitened(
    data: Standardised,
    num_classes: int,
    decay: float,
    *,
    steps: int,
    tolerance: float,
    watch: Watch,
    change: float = CHANGE,
) -> tuple[Tensor, Tensor, Fit]:
    """Return weight (K, d) and bias (K,) of least cross-entropy + decay / 2 * |weight|^2, from zero, and how it went.

    It stops after `steps`, where no entry of the gradient is above `tolerance`, or where a step gains less than
    `change`. `watch` is told the number of evaluations and the objective after each of them.
    """
    whiten = whitening(data)
    inner = torch.zeros(num_classes, len(whiten), device=whiten.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=whiten.device, requires_grad=True)
    optimizer = LBFGS(
        [inner, bias],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=tolerance,
        tolerance_change=change,
    )
    evaluations = 0

    @torch.no_grad()
    def objective() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        weight = inner @ whiten
        loss, by_weight, by_bias = cross_entropy(data, weight, bias)
        inner.grad, bias.grad = by_weight.add_(weight, alpha=decay) @ whiten, by_bias
        total = loss + decay / 2 * float(weight.double().square().sum())
        watch(evaluations, total)
        return torch.tensor(total, dtype=torch.float64)

    optimizer.step(objective)
    total = float(objective())
    assert inner.grad is not None and bias.grad is not None
    gradient = max(float(inner.grad.abs().max()), float(bias.grad.abs().max()))
    return inner.detach() @ whiten, bias.detach(), Fit(total, evaluations, gradient)
