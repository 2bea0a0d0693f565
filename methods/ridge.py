"""Class-weighted ridge regression onto the classes, in closed form."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.convex_fit import PART, Standardised
from models.heads import Linear


def ridge(
    linear: nn.Linear,
    features: Tensor,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    *,
    shrinkage: float = 0.1,
) -> Linear:
    """Return the linear head (K, d) of least squares onto one-hot labels, every class weighing the same, with
    `shrinkage` / 2 times the squared weights (Hoerl and Kennard, "Ridge Regression", Technometrics 12, 1970).

    It minimises mean_k mean_{i of class k} |W f_i + b - e_k|^2 / 2 + shrinkage / 2 |W|^2 for the standardised features
    f (`methods.convex_fit`); the bias is free. One solution of d equations, in double precision.
    """
    data = Standardised.of(features, labels, torch.float64)
    head = Linear(linear)
    classes, width = head.weight.shape
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device=labels.device)
    gram = torch.zeros(width, width, dtype=torch.float64, device=labels.device)
    onto = torch.zeros(classes, width, dtype=torch.float64, device=labels.device)  # mean features of each class
    for part, of_part in data.blocks(PART):
        weight = 1 / counts[of_part]
        gram += (part * weight[:, None]).T @ part / classes
        onto.index_add_(0, of_part, part * weight[:, None])
    mean = onto.mean(dim=0)
    covariance = gram - mean[:, None] * mean
    target = (onto - mean) / classes
    identity = torch.eye(width, dtype=torch.float64, device=labels.device)
    weight = torch.linalg.solve(covariance + shrinkage * identity, target, left=False)
    found = data.carry_out(weight, 1 / classes - weight @ mean)
    with torch.no_grad():
        head.weight.copy_(found[0])
        head.bias.copy_(found[1])
    return head


def simplex(
    linear: nn.Linear,
    features: Tensor,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    *,
    scale: float = 30.0,
) -> Linear:
    """Return a classifier (K, d) fixed to a simplex equiangular tight frame: all rows of length `scale`, every two at
    the same angle, cosine -1 / (K - 1) (Papyan, Han and Donoho, "Neural Collapse", PNAS 117, 2020, arXiv 2008.08186;
    fixed in advance by Yang et al., "Inducing Neural Collapse in Imbalanced Learning", NeurIPS 2022).

    Of all rotations of the frame it is the one that lies nearest to the centred class means of the features (Procrustes
    alignment), which neural collapse makes a simplex of that kind. With more classes than d + 1 it is the nearest frame
    of rank d. `scale` decides no prediction, only confidences.
    """
    data = Standardised.of(features, labels, torch.float64)
    head = Linear(linear)
    classes, width = head.weight.shape
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device=labels.device)
    means = torch.zeros(classes, width, dtype=torch.float64, device=labels.device)
    for part, of_part in data.blocks(PART):
        means.index_add_(0, of_part, part / counts[of_part][:, None])
    centre = means.mean(dim=0)
    left, _, right = torch.linalg.svd(F.normalize(means - centre, dim=1), full_matrices=False)
    rank = min(classes - 1, width)
    rows = F.normalize(left[:, :rank] @ right[:rank], dim=1) * scale
    found = data.carry_out(rows, -rows @ centre)
    with torch.no_grad():
        head.weight.copy_(found[0])
        head.bias.copy_(found[1])
    return head
