r"""Proximal LOS: label over-smoothing with an end.

Published LOS (Sun et al., ICLR 2025, arXiv 2403.00250) is a point on a path: it depends on the learning rate times the
number of steps, and its own minimum is unbalanced again. Here the same target gets a minimum of its own. With features
that are centred and divided by the root of their mean squared distance to the mean, and stage 1's classifier (W0, b0)
carried along exactly, the classifier (W, b) minimises

    J(W, b) = mean CE(W f + b, target) + lambda / 2 * (|W - W0|^2 + |b - b0|^2)

Uniqueness. Cross-entropy against a fixed target is convex in the logits, and these are linear in (W, b); the second
term is strongly convex with modulus lambda. So J is, and for lambda > 0 it has exactly one minimum, whatever the
solver, its start or its steps. A point whose gradient has norm g lies within g / lambda of it.

Limits. For lambda -> infinity the minimum is (W0, b0), stage 1 itself. For lambda -> 0 it tends to that minimum of the
cross-entropy alone which is nearest to (W0, b0): with a soft target there is one in every direction that the features
span, and none is at infinity, since every class gets a share of every image.

Features times any number, plus any vector, give the same predictions: what is solved does not see either.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losses.los import Target
from methods.convex_fit import Standardised, minimise_cross_entropy
from models.heads import Linear

STEPS = 500  # of L-BFGS at most
GRADIENT = 1e-7  # the largest entry of the gradient at which it stops


def proximal_los(
    linear: nn.Linear,
    features: Tensor,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    target: Target,
    *,
    anchor: float = 1e-3,
) -> Linear:
    """Return the linear head (K, d) that minimises J (above) for the target (y_true, y_other) of LOS (Sun et al., ICLR
    2025) and lambda = `anchor`. It is solved in double precision, where the labels are, from stage 1's classifier.
    """
    data = Standardised.of(features, labels, torch.float64)
    head = Linear(linear)
    start = data.carry_in(head.weight.detach(), head.bias.detach())
    weight, bias = (tensor.clone().requires_grad_() for tensor in start)

    def penalty() -> Tensor:
        return anchor / 2 * ((weight - start[0]).square().sum() + (bias - start[1]).square().sum())

    smoothing = target[1] * len(weight)  # PyTorch's s of this target: s / K for each other class
    minimise_cross_entropy(data, (weight, bias), penalty, smoothing=smoothing, steps=STEPS, tolerance=GRADIENT)
    found = data.carry_out(weight.detach(), bias.detach())
    with torch.no_grad():
        head.weight.copy_(found[0])
        head.bias.copy_(found[1])
    return head
