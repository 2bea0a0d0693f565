"""A linear classifier on given features: multinomial logistic regression, to convergence."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.features import Features
from methods.convex_fit import CHUNK, Standardised, minimise_cross_entropy
from methods.whitened_fit import CHANGE, fit_whitened
from utils.progress import LineAMinute

STEPS = 500  # of L-BFGS at most
GRADIENT = 1e-6  # the largest entry of the gradient at which it stops
WORK = 1 << 30  # products of a pass over the images, from which on whitening costs less than it saves


@dataclass(frozen=True)
class Probe:
    """A fitted classifier: `weight` (K, d), `bias` (K,), and how the fit went."""

    weight: Tensor
    bias: Tensor
    loss: float
    evaluations: int
    seconds: float


def fit_probe(
    features: Features, labels: Tensor, num_classes: int, decay: float, steps: int = STEPS, message: str = ""
) -> Probe:
    """Minimise cross-entropy + decay / 2 * |weight|^2 over features (N, d) and labels (N,), by L-BFGS from zero.

    It is solved for features that are centred and divided by one number, the root of their mean squared distance to
    the mean, and the result is put in terms of the features as they are. So `decay` means the same for features of any
    scale, and so does the result: that of features times 1000 plus 5 predicts the same. Nothing is random. It computes
    where the labels are; features that lie elsewhere, in a mapped file, are fetched a part at a time.

    Where a pass over the images is much work it is solved in whitened coordinates (`methods.whitened_fit`), to the same
    gradient in fewer passes; with more logits than are held at once a step that gains next to nothing is the last. With
    a `message` a line a minute says how far it is.
    """
    started = time.perf_counter()
    data, line = Standardised.of(features, labels, torch.float32), LineAMinute()

    def watch(evaluations: int, objective: Tensor | float) -> None:
        if message:
            line(lambda: f"{message}: {evaluations} evaluations of at most {2 * steps}, loss {float(objective):.5f}")

    many = len(labels) * num_classes > CHUNK
    if many or features.numel() * num_classes > WORK:
        change = CHANGE if many else 0.0
        weight, bias, fit = fit_whitened(
            data, num_classes, decay, steps=steps, tolerance=GRADIENT, watch=watch, change=change
        )
        return Probe(*data.carry_out(weight, bias), fit.loss, fit.evaluations, time.perf_counter() - started)
    weight = torch.zeros(num_classes, features.shape[1], device=labels.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=labels.device, requires_grad=True)
    fit = minimise_cross_entropy(
        data, (weight, bias), lambda: decay / 2 * weight.square().sum(), steps=steps, tolerance=GRADIENT, watch=watch
    )
    found = data.carry_out(weight.detach(), bias.detach())
    return Probe(*found, fit.loss, fit.evaluations, time.perf_counter() - started)
