"""Training steps of linear heads by the closed gradient of their losses, without autograd.

Of a loss that says its gradient in the logits (`losses.closed_gradient`) the gradient in the weights of a linear head
is that times the features. So a step is one product forward and one back, for one head or a stack of them, and the
product back adds to the momentum in place. Weights, momentum and averages are those of the optimiser, and equal to
those of its own steps but for rounding: a run may go on with either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from engine.averaging import update_averages
from engine.stacked_heads import StackedModules, StackedSGD
from losses.closed_gradient import LogitGradient, logit_gradient_of
from losses.functional import check_labels
from models.linear_head import Linear


@dataclass(frozen=True)
class Moved:
    """A parameter of H heads and its momentum, (H, ...), with the numbers of its steps, (H, 1, ...)."""

    values: Tensor
    momentum: Tensor
    rate: Tensor
    decay: Tensor | None

    def move(self) -> None:
        """Take a step along the momentum, to which the gradient of the loss was added."""
        if self.decay is not None:
            self.momentum.addcmul_(self.values, self.decay)
        self.values.addcmul_(self.momentum, self.rate, value=-1)


class ClosedStep:
    """A step of H linear heads, with the rates that the optimiser has when it is made."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, loss: nn.Module, gradient: LogitGradient) -> None:
        self.optimizer, self.gradient = optimizer, gradient
        self.stacked = isinstance(module, StackedModules)
        self.weight, self.bias = moved_parameters(optimizer, linear_parameters(module), self.stacked)
        self.keep: float = optimizer.param_groups[0]["momentum"]
        self.average: float | Tensor | None = getattr(optimizer, "average", None)
        buffers = loss.stacked_buffers if isinstance(loss, StackedModules) else dict(loss.named_buffers())
        dtype = self.weight.values.dtype
        self.constants = {name: (b if self.stacked else b[None]).to(dtype) for name, b in buffers.items()}

    def takes(self, labels: Tensor) -> bool:
        """Tell whether all samples count; raises LabelError for labels (B,) that are no class."""
        return check_labels(labels, self.weight.values.shape[1])

    @torch.no_grad()
    def __call__(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Step on features (B, d) with labels (B,); return B times the losses and the right answers, (H,) or ().

        A true class that shares the largest logit with others is right.
        """
        heads, classes, width = self.weight.values.shape
        rows = self.weight.values.view(heads * classes, width)
        logits = torch.addmm(self.bias.values.view(-1), features, rows.T).view(-1, heads, classes)
        at = labels.view(-1, 1, 1).expand(-1, heads, 1)
        right = (logits.gather(2, at).squeeze(2) == logits.amax(dim=2)).sum(dim=0)
        loss, gradient = self.gradient(self.constants, logits, labels)
        back, mean = gradient.view(len(labels), heads * classes).T, 1 / len(labels)
        self.weight.momentum.view_as(rows).addmm_(back, features, beta=self.keep, alpha=mean)
        self.bias.momentum.view(-1).addmv_(back, features.new_ones(len(labels)), beta=self.keep, alpha=mean)
        for moved in (self.weight, self.bias):
            moved.move()
        if self.average is not None:
            update_averages(self.optimizer, self.average)
        return (loss, right) if self.stacked else (loss[0], right[0])


def closed_step(module: nn.Module, optimizer: Optimizer, loss: object) -> ClosedStep | None:
    """Return the step of linear heads on the CPU whose loss says its gradient; None for all else.

    On a CUDA device the steps that can be captured stay as they are.
    """
    own = loss.template[0] if isinstance(loss, StackedModules) else loss
    gradient = logit_gradient_of(own)
    parameters = linear_parameters(module)
    if gradient is None or not parameters or isinstance(loss, StackedModules) != isinstance(module, StackedModules):
        return None
    if not all(p.requires_grad and p.is_contiguous() and p.device.type == "cpu" for p in parameters):
        return None
    groups = optimizer.param_groups
    if not isinstance(optimizer, SGD | StackedSGD) or any(group.get("nesterov") for group in groups):
        return None
    if {id(p) for group in groups for p in group["params"]} != {id(p) for p in parameters}:
        return None
    assert isinstance(loss, nn.Module)
    return ClosedStep(module, optimizer, loss, gradient)


def linear_parameters(module: nn.Module) -> Sequence[nn.Parameter]:
    """Return weight and bias of a linear classifier, or of a stack of such; nothing of other modules."""
    kind = type(module.template[0] if isinstance(module, StackedModules) else module)
    if kind not in (nn.Linear, Linear) or len(list(module.parameters())) != 2:
        return ()
    return module.get_parameter("weight"), module.get_parameter("bias")


def moved_parameters(optimizer: Optimizer, parameters: Sequence[nn.Parameter], stacked: bool) -> list[Moved]:
    """Return parameters as the steps of their optimiser move them, each with a first dimension of heads.

    The momentum is that in the optimiser's state, zeros before the first step.
    """
    found = []
    for parameter in parameters:
        group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
        state = optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        values, momentum = parameter.detach(), state["momentum_buffer"]
        if not stacked:
            values, momentum = values[None], momentum[None]
        shape = (-1, *[1] * (values.ndim - 1))
        rate, decay = (torch.as_tensor(group[name], dtype=values.dtype) for name in ("lr", "weight_decay"))
        found.append(Moved(values, momentum, rate.view(shape), decay.view(shape) if bool(decay.any()) else None))
    return found
