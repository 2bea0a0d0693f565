"""Linear classifiers in closed form: class-weighted ridge regression, and a simplex on the class means."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.features import Features
from methods.class_sums import class_means, class_sums
from methods.convex_fit import PART, Standardised
from models.heads import Linear


def ridge(
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    *,
    anchor: float = 0.1,
) -> Linear:
    """Return the linear head (K, d) of least squares onto one-hot labels, every class weighing the same (Hoerl and
    Kennard, "Ridge Regression", Technometrics 12, 1970; for long-tailed features Fang et al., AIR, 2024, arXiv
    2408.10349).

    It minimises mean_k mean_{i of class k} |W f_i + b - e_k|^2 + anchor |W|^2 for the standardised features f
    (`methods.convex_fit`); the bias is free. One solution of d equations, in double precision. Raises UserError for a
    class without an image.
    """
    data = Standardised.of(features, labels, torch.float64)
    head = Linear(linear)
    classes, width = head.weight.shape
    counts = class_sums("ridge", features, labels, classes)[1].double()
    gram = torch.zeros(width, width, dtype=torch.float64, device=labels.device)
    onto = torch.zeros(classes, width, dtype=torch.float64, device=labels.device)  # mean features of each class
    for part, of_part in data.blocks(PART):
        weighted = part / counts[of_part, None]
        gram += weighted.T @ part / classes
        onto.index_add_(0, of_part, weighted)
    mean = onto.mean(dim=0)
    covariance = gram - mean[:, None] * mean
    penalised = covariance + anchor * torch.eye(width, dtype=torch.float64, device=labels.device)
    weight = torch.linalg.solve(penalised, (onto - mean) / classes, left=False)
    return filled(head, data, weight, 1 / classes - weight @ mean)


def simplex(
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    *,
    scale: float = 30.0,
) -> Linear:
    """Return a classifier (K, d) fixed to a simplex equiangular tight frame: all rows of length `scale`, every two at
    the same angle, cosine -1 / (K - 1) (Yang et al., "Inducing Neural Collapse in Imbalanced Learning", NeurIPS 2022,
    arXiv 2203.09081, after Papyan, Han and Donoho, PNAS 117, 2020).

    Of all rotations of the frame it is the one that lies nearest to the directions of the class means of the features
    from their centre (Procrustes alignment), which neural collapse makes a simplex of that kind. The frame needs
    d >= K - 1; with fewer dimensions the rows are the nearest ones of orthonormal columns, brought to one length, and
    their angles differ. `scale` decides no prediction, only confidences. Raises UserError for a class without an image.
    """
    data = Standardised.of(features, labels, torch.float64)
    head = Linear(linear)
    classes, width = head.weight.shape
    means = (class_means("simplex", features, labels, classes) - data.mean) * data.scale
    centre = means.mean(dim=0)
    directions = F.normalize(means - centre, dim=1)
    if classes - 1 > width:
        rows = nearest_orthogonal(directions - directions.mean(dim=0))
    else:
        # In an orthonormal basis (K, K - 1) of what is orthogonal to (1, ..., 1) the frame is any orthogonal matrix.
        basis = torch.linalg.qr(torch.eye(classes, dtype=torch.float64, device=means.device) - 1 / classes)[0][:, :-1]
        rows = basis @ nearest_orthogonal(basis.T @ directions)
    rows = F.normalize(rows, dim=1) * scale
    return filled(head, data, rows, -rows @ centre)


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix (n, d) of orthonormal rows or columns that lies nearest to another, by least squares."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def filled(head: Linear, data: Standardised, weight: Tensor, bias: Tensor) -> Linear:
    """Return `head` with a classifier, (K, d) and (K,), of the standardised features."""
    found = data.carry_out(weight, bias)
    with torch.no_grad():
        head.weight.copy_(found[0])
        head.bias.copy_(found[1])
    return head
