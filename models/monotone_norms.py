"""Monotone row norms: a classifier whose rows may only grow shorter with the size of their class (SAMN)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linear_head import Linear, nonzero_norms


def isotonic(values: Tensor) -> Tensor:
    """Return the non-decreasing numbers (K,) that lie nearest to `values` (K,), by least squares.

    What the pool-adjacent-violators algorithm finds (Ayer et al., 1955), by the max-min formula instead: z_i is the
    largest over j <= i of the smallest over k >= i of the mean of values j..k. It takes K^2 numbers, but no step of it
    depends on values, and its gradient is the mean over each block of equal numbers, as that of the projection is.
    """
    count = values.shape[-1]
    total = F.pad(values.double().cumsum(dim=-1), (1, 0))
    place = torch.arange(count, device=values.device)
    length = place[None, :] - place[:, None] + 1
    means = (total[None, 1:] - total[:-1, None]) / length.clamp(min=1)  # (first, last)
    means = torch.where(length >= 1, means, torch.inf)
    smallest = means.flip(-1).cummin(dim=-1).values.flip(-1)  # over last >= i, for each first
    return torch.where(length >= 1, smallest, -torch.inf).amax(dim=0).to(values.dtype)


class MonotoneNorms(Linear):
    """z_k = exp(1 / softplus(u_k)) w_k / ||w_k|| f + exp(1 / softplus(v_k)) + b_k, with u and v (K,) the isotonic fits,
    non-decreasing in class size, of two learnt vectors (Zhang et al., "A Monotonic Adaptive Norm Rescaling Approach for
    Long-Tailed Recognition" (SAMN), CVPR 2026, arXiv 2606.02526, in the form of its released code).

    So no class has a longer row than a smaller one. Both vectors start at the class sizes, scaled to 0..1: the rarest
    class's row is exp(1 / ln 2) = 4.2 long, the largest one's 2.1. Directions and b start at the linear classifier's.
    Without `class_counts` (K,) the order of the classes is that of a state that is loaded later.

    Such lengths are for features of the published scale: `set_unit` gives the number that others are divided by, which
    the state then keeps, and their logits are those of the features divided by it.
    """

    order: Tensor
    unit: Tensor | None

    def __init__(self, linear: nn.Linear, class_counts: Tensor | None = None) -> None:
        super().__init__(linear)
        counts = self.full(0.0, self.out_features) if class_counts is None else class_counts.to(self.weight)
        spread = counts.amax() - counts.amin()
        start = (counts - counts.amin()) / torch.where(spread > 0, spread, 1)
        self.norm_raw = nn.Parameter(start.clone())
        self.shift_raw = nn.Parameter(start.clone())
        self.register_buffer("order", counts.argsort(stable=True))
        self.register_buffer("unit", None)

    def set_unit(self, unit: float) -> None:
        """Take the rows' lengths as those for features divided by `unit`."""
        self.unit = self.full(unit)

    def monotone(self, raw: Tensor) -> Tensor:
        """Return exp(1 / softplus(u)) (K,) for the isotonic fit u of `raw` in the order of the class sizes."""
        fitted = torch.empty_like(raw).scatter(0, self.order, isotonic(raw.gather(0, self.order)))
        return (1 / F.softplus(fitted)).exp()

    def rows(self) -> Tensor:
        """Return the rows (K, d), each of its own length."""
        rows = self.monotone(self.norm_raw)[:, None] * self.weight / nonzero_norms(self.weight)
        return rows if self.unit is None else rows / self.unit

    def effective_weight(self) -> Tensor | None:
        """Return the rows (K, d) that features are multiplied by."""
        return self.rows()

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        return F.linear(features, self.rows(), self.monotone(self.shift_raw) + self.bias)
