"""Cross-entropy of a linear classifier on given features, minimised by L-BFGS to convergence: nothing is random.

Features are centred and divided by the root of their mean squared distance to the mean, so that no result depends on
their scale; `Standardised` carries classifiers from one form to the other without an error but rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.features import Features
from methods.optimizers import LBFGS

CHUNK = 1 << 24  # logits that are held at once
PART = 4096  # rows of features that are brought to double precision at once
Watch = Callable[[int, Tensor | float], None]  # is told the evaluations of an objective so far, and its value


def unwatched(evaluations: int, objective: Tensor | float) -> None:
    """Watch nothing."""


def centre_and_scale(features: Features) -> tuple[Tensor, float]:
    """Return the mean (d,) of features (N, d), in double precision, and what makes their mean squared distance to it 1.

    In double precision, in which the squares of no float32 overflow, a part at a time.
    """
    mean = sum((part.double().sum(dim=0) for part in features.split(PART)), torch.zeros(())) / len(features)
    variance = sum(float((part.double() - mean).square().sum()) for part in features.split(PART)) / len(features)
    return mean, variance**-0.5 if variance > 0 else 1.0


@dataclass(frozen=True)
class Standardised:
    """Features (N, d) with their mean (d,) and scale; `blocks` brings them to a device and dtype a part at a time."""

    features: Features
    labels: Tensor
    mean: Tensor
    scale: float

    @classmethod
    def of(cls, features: Features, labels: Tensor, dtype: torch.dtype) -> "Standardised":
        """Return features with what standardises them, for arithmetic of `dtype` where the labels (N,) are."""
        mean, scale = centre_and_scale(features)
        return cls(features, labels, mean.to(labels.device, dtype), scale)

    def blocks(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (features, labels) of `rows` images at a time, the features centred and scaled."""
        for part, of_part in zip(self.features.split(rows), self.labels.split(rows), strict=True):
            # Centred first: the difference of two large numbers would lose digits.
            yield (part.to(self.mean) - self.mean) * self.scale, of_part

    def carry_in(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return a classifier of the features as they are, (K, d) and (K,), as one of the standardised features."""
        weight, bias = weight.to(self.mean), bias.to(self.mean)
        return weight / self.scale, bias + weight @ self.mean

    def carry_out(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return a classifier of the standardised features as one of the features as they are."""
        weight = weight * self.scale
        return weight, bias - weight @ self.mean


@dataclass(frozen=True)
class Fit:
    """A minimum: the value of the objective, its evaluations, the largest entry of the gradient there."""

    loss: float
    evaluations: int
    gradient: float


def minimise_cross_entropy(
    data: Standardised,
    parameters: Sequence[Tensor],
    penalty: Callable[[], Tensor],
    *,
    smoothing: float = 0.0,
    steps: int,
    tolerance: float,
    watch: Watch = unwatched,
) -> Fit:
    """Minimise mean cross-entropy + `penalty()` in place over `parameters`, the weight (K, d) and bias (K,).

    `smoothing` is PyTorch's label smoothing: 1 - s + s / K for the true class, s / K for each other one. It stops as
    `minimise` does.
    """
    weight, bias = parameters

    def losses() -> Iterator[Tensor]:
        for part, of_part in data.blocks(max(CHUNK // len(weight), 1)):
            logits = F.linear(part, weight, bias)
            yield F.cross_entropy(logits, of_part, reduction="sum", label_smoothing=smoothing) / len(data.labels)

    return minimise(parameters, penalty, losses, steps=steps, tolerance=tolerance, watch=watch)


def minimise(
    parameters: Sequence[Tensor],
    penalty: Callable[[], Tensor],
    losses: Callable[[], Iterator[Tensor]],
    *,
    steps: int,
    tolerance: float,
    watch: Watch = unwatched,
) -> Fit:
    """Minimise `penalty()` + the sum of `losses()` in place over `parameters`; each loss, of a block of rows, is
    differentiated before the next one is made.

    L-BFGS stops after `steps`, or where no entry of the gradient is above `tolerance`. `watch` is told the number of
    evaluations and the objective after each of them.
    """
    optimizer = LBFGS(
        parameters,
        max_iter=steps,
        max_eval=2 * steps,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=tolerance,
        tolerance_change=0,
    )
    evaluations = 0

    def objective() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        total = penalty()
        total.backward()
        total = total.detach()
        for loss in losses():
            loss.backward()
            total = total + loss.detach()
        watch(evaluations, total)
        return total

    optimizer.step(objective)
    loss = float(objective())
    gradient = max(float(parameter.grad.abs().max()) for parameter in parameters if parameter.grad is not None)
    return Fit(loss, evaluations, gradient)
