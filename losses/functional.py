"""What several losses share: constants as buffers, the mask of the true class, log-probabilities of the rest.

A loss keeps every number it was built with in a buffer, so that instances with different values can be stacked
(`torch.func.stack_module_state`) and called as one under `torch.func.vmap`. The buffers are float64, cast to the dtype
of the logits where they are used, and stay out of the state_dict: they are rebuilt from the class counts.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def add_constants(module: nn.Module, **values: float | Sequence[float] | Tensor) -> None:
    """Register each value as a float64 buffer of `module` that its state_dict leaves out."""
    for name, value in values.items():
        module.register_buffer(name, torch.as_tensor(value, dtype=torch.float64), persistent=False)


def true_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mask (B, K) that is true at each sample's label, for logits (B, K) and labels (B,)."""
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


def of_label(values: Tensor, true: Tensor) -> Tensor:
    """Return the entry of `values` (K,) at each sample's label, (B, 1), for the mask `true` (B, K) of `true_class`."""
    return (values * true).sum(dim=1, keepdim=True)


def log_rest(log_probability: Tensor, chosen: Tensor) -> Tensor:
    """Return log(1 - p) (B, 1) of the one class a sample that the mask `chosen` (B, K) marks.

    It is the log of the other classes' sum, which keeps its digits, and a finite gradient, where p rounds to 1.
    """
    return log_probability.masked_fill(chosen, -math.inf).logsumexp(dim=1, keepdim=True)
