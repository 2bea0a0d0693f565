"""Averages of weights over the steps of a training, kept in the state of the optimiser.

Of trained weights and their averages one stands in the module, the other in the optimiser's state: `swap_averages`
exchanges them. Averages are what is evaluated and saved; a run that goes on finds the trained weights in the saved
state. The average is that of `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`: the weights
after the first step, then decay * average + (1 - decay) * weights.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from methods.optimizers import SGD

OTHER = "other"  # the key in the state of a parameter: what does not stand in the module


@torch.no_grad()
def update_averages(optimizer: Optimizer, decay: float | Tensor) -> None:
    """Bring the averages up to date after a step; `decay` is a number or, of stacked parameters (H, ...), one each."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if OTHER not in state:
                state[OTHER] = parameter.detach().clone()
                continue
            share = 1 - decay
            if isinstance(share, Tensor):
                share = share.view(-1, *[1] * (parameter.ndim - 1))
            state[OTHER].lerp_(parameter, share)


@torch.no_grad()
def swap_averages(optimizer: Optimizer) -> None:
    """Exchange the weights in the module and those in the optimiser's state, where it has any."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            other = optimizer.state[parameter].get(OTHER) if parameter in optimizer.state else None
            if other is not None:
                before = parameter.detach().clone()
                parameter.copy_(other)
                other.copy_(before)


class AveragedSGD(SGD):
    """SGD that averages the weights after every step, with a decay."""

    def __init__(self, groups: list[dict[str, Any]], decay: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.average = decay

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step, and bring the averages up to date."""
        super().step(closure)
        update_averages(self, self.average)
