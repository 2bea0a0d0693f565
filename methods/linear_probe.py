"""A linear classifier on given features: multinomial logistic regression, to convergence."""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 24  # logits that are held at once
PART = 4096  # rows of features that are brought to double precision at once
STEPS = 500  # of L-BFGS at most
GRADIENT = 1e-6  # the largest entry of the gradient at which it stops


@dataclass(frozen=True)
class Probe:
    """A fitted classifier: `weight` (K, d), `bias` (K,), and how the fit went."""

    weight: Tensor
    bias: Tensor
    loss: float
    evaluations: int
    seconds: float


def centre_and_scale(features: Tensor) -> tuple[Tensor, float]:
    """Return the mean (d,) of features (N, d) and what makes their mean squared distance to it 1.

    In double precision, in which the squares of no float32 overflow, a part at a time.
    """
    mean = sum((part.double().sum(dim=0) for part in features.split(PART)), torch.zeros(())) / len(features)
    variance = sum(float((part.double() - mean).square().sum()) for part in features.split(PART)) / len(features)
    return mean.float(), variance**-0.5 if variance > 0 else 1.0


def fit_probe(features: Tensor, labels: Tensor, num_classes: int, decay: float, steps: int = STEPS) -> Probe:
    """Minimise cross-entropy + decay / 2 * |weight|^2 over features (N, d) and labels (N,), by L-BFGS from zero.

    It is solved for features that are centred and divided by one number, the root of their mean squared distance to
    the mean, and the result is put in terms of the features as they are. So `decay` means the same for features of any
    scale, and so does the result: that of features times 1000 plus 5 predicts the same. Nothing is random. It computes
    where the labels are; features that lie elsewhere, in a mapped file, are fetched a part at a time.
    """
    started = time.perf_counter()
    device = labels.device
    mean, scale = centre_and_scale(features)
    mean = mean.to(device)
    weight = torch.zeros(num_classes, features.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    rows = max(CHUNK // num_classes, 1)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=GRADIENT,
        tolerance_change=0,
    )
    evaluations = 0

    def objective() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        total = decay / 2 * weight.square().sum()
        total.backward()
        total = total.detach()
        for part, of_part in zip(features.split(rows), labels.split(rows), strict=True):
            # Centred first: the difference of two large numbers would lose digits.
            logits = F.linear((part.to(device).float() - mean) * scale, weight, bias)
            loss = F.cross_entropy(logits, of_part, reduction="sum") / len(labels)
            loss.backward()
            total = total + loss.detach()
        return total

    optimizer.step(objective)
    loss = float(objective())
    weight, bias = weight.detach() * scale, bias.detach()
    return Probe(weight, bias - weight @ mean, loss, evaluations, time.perf_counter() - started)
