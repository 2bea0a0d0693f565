"""Losses and metrics written down a second time, plainly, as oracles."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def value_and_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def effective_weights(counts: Sequence[int], beta: float) -> np.ndarray:
    weights = np.array([(1 - beta) / (1 - beta**count) for count in counts])
    return weights * len(counts) / weights.sum()


def ce_formula(z: np.ndarray, y: int, n: np.ndarray) -> float:
    return -np.log(softmax(z)[y])


def focal_formula(z: np.ndarray, y: int, n: np.ndarray, gamma: float) -> float:
    p = softmax(z)[y]
    return -((1 - p) ** gamma) * np.log(p)


def cb_ce_formula(z: np.ndarray, y: int, n: np.ndarray, beta: float) -> float:
    return effective_weights(n, beta)[y] * ce_formula(z, y, n)


def wb_cb_formula(z: np.ndarray, y: int, n: np.ndarray, beta: float) -> float:
    p = softmax(z)
    answers = [-np.log(p[j]) if j == y else -np.log(1 - p[j]) for j in range(len(z))]
    return effective_weights(n, beta)[y] * float(np.mean(answers))


def logit_adjust_formula(z: np.ndarray, y: int, n: np.ndarray, tau: float) -> float:
    return -np.log(softmax(z + tau * np.log(n / n.sum()))[y])


def balanced_softmax_formula(z: np.ndarray, y: int, n: np.ndarray) -> float:
    shares = n * np.exp(z)
    return -np.log(shares[y] / shares.sum())


def ldam_formula(z: np.ndarray, y: int, n: np.ndarray, max_margin: float, scale: float) -> float:
    margins = 1 / n**0.25
    margins = margins * max_margin / max(margins)
    cosine = z / scale
    top = np.exp(scale * (cosine[y] - margins[y]))
    return -np.log(top / (top + sum(np.exp(scale * cosine[j]) for j in range(len(z)) if j != y)))


def las_formula(z: np.ndarray, y: int, n: np.ndarray, smooth_head: float, smooth_tail: float) -> float:
    rise = np.sin(np.pi * (n[y] - n.min()) / (2 * (n.max() - n.min())))
    epsilon = smooth_tail + (smooth_head - smooth_tail) * rise
    log_p = np.log(softmax(z))
    return -(1 - epsilon) * log_p[y] - epsilon / (len(z) - 1) * (log_p.sum() - log_p[y])


def vs_formula(z: np.ndarray, y: int, n: np.ndarray, gamma: float, tau: float) -> float:
    return -np.log(softmax((n / n.max()) ** gamma * z + tau * np.log(n / n.sum()))[y])


FORMULAS: list[tuple[str, Callable[..., float], list[dict[str, float]]]] = [
    ("ce", ce_formula, [{}]),
    ("focal", focal_formula, [{"gamma": gamma} for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)]),
    ("cb_ce", cb_ce_formula, [{"beta": beta} for beta in (0.0, 0.5, 0.99, 0.9999)]),
    ("wb_cb", wb_cb_formula, [{"beta": beta} for beta in (0.0, 0.5, 0.99, 0.9999)]),
    ("logit_adjust", logit_adjust_formula, [{"tau": tau} for tau in (0.0, 0.5, 1.0, 2.5)]),
    ("balanced_softmax", balanced_softmax_formula, [{}]),
    ("ldam", ldam_formula, [{"max_margin": 0.5, "scale": 30.0}, {"max_margin": 0.2, "scale": 4.0}]),
    ("las", las_formula, [{"smooth_head": 0.4, "smooth_tail": 0.1}, {"smooth_head": 0.2, "smooth_tail": 0.0}]),
    ("vs", vs_formula, [{"gamma": 0.05, "tau": 0.75}, {"gamma": 0.3, "tau": 1.5}, {"gamma": 0.0, "tau": 0.0}]),
]


def loop_magnitude(logits: Tensor, labels: Tensor, reading: str, k: int) -> dict[str, float | None]:
    """The definitions of LoMa and RSD, sample after sample, in Python's own numbers."""
    rows = logits.double().tolist()
    classes = len(rows[0])
    of_class, of_others = [], []
    for z, label in zip(rows, labels.tolist(), strict=True):
        if reading == "column":
            value = z[k] - sum(z) / classes
        elif reading == "uncentred":
            value = z[k]
        else:
            value = z[k] - sum(z[j] for j in range(classes) if j != k) / (classes - 1)
        (of_class if label == k else of_others).append(value)

    def deviation(values: list[float]) -> float | None:
        if len(values) < 2:
            return None
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    loma: float | None = None
    if of_class and (reading == "row" or of_others):
        loma = sum(of_class) / len(of_class)
        if reading != "row":
            loma -= sum(of_others) / len(of_others)
    sigmas = {"sigma_true": deviation(of_class), "sigma_other": deviation(of_others)}
    rsd = {
        name.replace("sigma", "rsd"): sigma / loma if sigma is not None and loma is not None and loma > 1e-6 else None
        for name, sigma in sigmas.items()
    }
    return {"loma": loma, **sigmas, **rsd}
