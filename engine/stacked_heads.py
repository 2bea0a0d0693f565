"""Many classifiers trained at once on the same features: one module, one loss, one optimiser for all of them.

Heads of one kind differ in numbers only (weights, hyper-parameters, learning rate), so their parameters are stacked
along a first dimension H and `torch.vmap` runs them side by side, as the linear evaluation of DINOv2 does (Oquab et
al., 2023). Each head ends where it would have ended alone, up to rounding.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from engine.averaging import update_averages
from methods.optimizers import Eager


class StackedModules(nn.Module):
    """H modules of one structure as one: `forward(inputs..., shared...)` maps each over its own state.

    The stacked parameters are `stacked_parameters` (name -> (H, ...)), those of frozen ones without gradient.
    """

    def __init__(self, modules: Sequence[nn.Module], input_dims: tuple[int | None, ...]) -> None:
        super().__init__()
        parameters, buffers = stack_module_state(list(modules))
        frozen = {name for name, value in modules[0].named_parameters() if not value.requires_grad}
        self.stacked_parameters = {
            name: nn.Parameter(value.detach().clone(), requires_grad=name not in frozen)
            for name, value in parameters.items()
        }
        for name, value in self.stacked_parameters.items():
            self.register_parameter(name.replace(".", "_"), value)
        self.stacked_buffers = buffers
        self.template = [copy.deepcopy(modules[0]).to("meta")]  # in a list: its parameters are not the stack's
        self.input_dims = input_dims
        self.rate_factors = getattr(modules[0], "rate_factors", {})
        self.feature_powers = getattr(modules[0], "feature_powers", {})

    def forward(self, *inputs: Tensor) -> Tensor:
        def one(state: dict[str, Tensor], *own: Tensor) -> Tensor:
            return functional_call(self.template[0], state, own)

        state = {**self.stacked_parameters, **self.stacked_buffers}
        return vmap(one, in_dims=(0, *self.input_dims), randomness="same")(state, *inputs)

    def write_back(self, modules: Sequence[nn.Module]) -> None:
        """Copy the stacked parameters into the modules that the stack was made of."""
        with torch.no_grad():
            for name, values in self.stacked_parameters.items():
                for module, value in zip(modules, values, strict=True):
                    module.get_parameter(name).copy_(value)


def stack_heads(heads: Sequence[nn.Module]) -> StackedModules:
    """Return a module that maps features (B, d) to logits (H, B, K)."""
    return StackedModules(heads, (None,))


def stack_losses(losses: Sequence[nn.Module]) -> StackedModules:
    """Return a loss that maps logits (H, B, K) and labels (B,) to losses (H,)."""
    return StackedModules(losses, (0, None))


class StackedSGD(Eager):
    """`torch.optim.SGD` with momentum for stacked parameters, with a learning rate and a weight decay (H,) a head.

    A group of parameters trains at `rate_factor` times the rate and decays `decay_factor` times as fast. With `average`
    (H,), the decay of each head, weights are averaged over the steps (`engine.averaging`); a decay of 0 leaves them as
    they are.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        momentum: float,
        weight_decay: Tensor,
        average: Tensor | None = None,
    ) -> None:
        super().__init__(parameters, {"rate_factor": 1.0, "decay_factor": 1.0, "momentum": momentum})
        for group in self.param_groups:
            group["weight_decay"] = group["decay_factor"] * weight_decay
        self.average = average
        self.lr = torch.zeros_like(weight_decay)

    @property
    def lr(self) -> Tensor:
        """The learning rate (H,) of a group whose `rate_factor` is 1."""
        return self._lr

    @lr.setter
    def lr(self, rates: Tensor) -> None:
        self._lr = rates
        for group in self.param_groups:
            group["lr"] = group["rate_factor"] * rates

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; state and groups have the names of `torch.optim.SGD`."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                each_head = (-1, *[1] * (parameter.ndim - 1))
                gradient = parameter.grad.addcmul(parameter, group["weight_decay"].view(each_head))
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = gradient
                else:
                    state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                parameter.addcmul_(state["momentum_buffer"], group["lr"].view(each_head), value=-1)
        if self.average is not None:
            update_averages(self, self.average)
