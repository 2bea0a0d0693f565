"""Losses that say their gradient in the logits, so that linear heads are trained without autograd.

A loss of the cross-entropy family is that of a softmax, whose gradient in the logits is the softmax minus the target.
Its class says so with a static method `logit_gradient`, a `LogitGradient`, beside `forward`. Both are computed for H
losses at once, logits (B, H, K) with the classes last, as one product of all heads leaves them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# (constants (H, ...) by the names of the losses' buffers, logits (B, H, K), labels (B,) of 0 .. K - 1) -> the losses
# (H,) and their gradient (B, H, K) in the logits, both times B: whoever multiplies by the gradient divides at no cost.
# The logits may be overwritten.
LogitGradient = Callable[[Mapping[str, Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]

LOWEST = -60.0  # the log of a probability that keeps its digits in float32


def logit_gradient_of(loss: object) -> LogitGradient | None:
    """Return the closed gradient of a loss, None where it has none.

    That of a parent class counts only together with its `forward`: a loss that computes something else has another one.
    """
    for kind in type(loss).__mro__:
        if "forward" in vars(kind):
            found = vars(kind).get("logit_gradient")
            return None if found is None else found.__func__
    return None


def soft_target_gradient(logits: Tensor, labels: Tensor, true: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy (B, H) of logits (B, H, K) for labels (B,), in nats, and its gradient (B, H, K).

    The target of a sample is `true` for its class and `other` for each other one, which broadcast to (B, H).
    """
    at = labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
    probability = logits.softmax(dim=2)
    log_true = probability.gather(2, at).squeeze(2).log_()
    if float(log_true.min()) < LOWEST:  # digits of the softmax are lost
        log_true = logits.log_softmax(dim=2).gather(2, at).squeeze(2)
    less = (other - true).expand_as(log_true)
    losses = less * log_true
    gradient = probability.scatter_add_(2, at, less.unsqueeze(2))
    if bool(other.any()):
        log_partition = logits.gather(2, at).squeeze(2) - log_true
        everything = torch.sub(logits.sum(dim=2), log_partition, alpha=logits.shape[2])  # sum_j log p_j
        # One-hot labels leave it out: for a logit of minus infinity it is infinite, and 0 * inf would be NaN.
        losses.sub_(torch.where(other > 0, other * everything, 0))
        gradient.sub_(other.unsqueeze(-1))
    return losses, gradient
