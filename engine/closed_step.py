"""Training steps of linear heads by the closed gradient of their losses, without autograd.

Of a loss that says which cross-entropy it is (`losses.closed_gradient`) the gradient in the weights of a linear head
is that in the logits times the features. So a step is one product forward and one back, for one head or a stack of
them, and the product back adds to the momentum in place. A stack is taken some heads at a time, whose logits stay in a
core's cache. Weights, momentum and averages are those of the optimiser, and equal to those of its own steps but for
rounding: a run may go on with either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from engine.averaging import update_averages
from engine.stacked_heads import StackedModules, StackedSGD
from engine.steps import EagerSteps, Step
from losses.closed_gradient import NATS, ClosedGradient, SoftmaxForm, Terms, softmax_form_of, step_losses
from losses.functional import check_labels
from models.linear_head import Linear

BLOCK = 1 << 17  # logits that are computed at once: half a MiB in single precision
KEPT = 1 << 20  # samples times heads whose losses are still to be computed
BITS = 1 / NATS  # in a nat


@dataclass(frozen=True)
class Moved:
    """A parameter of H heads and its momentum, (H, ...), with the numbers of its steps: one for all, or (H, 1, ...)."""

    values: Tensor
    momentum: Tensor
    rate: float | Tensor
    decay: float | Tensor

    def of_heads(self, heads: slice) -> "Moved":
        """Return some of the H heads."""
        rate, decay = (n[heads] if isinstance(n, Tensor) else n for n in (self.rate, self.decay))
        return Moved(self.values[heads], self.momentum[heads], rate, decay)

    def move(self) -> None:
        """Take a step along the momentum, to which the gradient of the loss was added."""
        if isinstance(self.decay, Tensor):
            self.momentum.addcmul_(self.values, self.decay)
        elif self.decay:
            self.momentum.add_(self.values, alpha=self.decay)
        if isinstance(self.rate, Tensor):
            self.values.addcmul_(self.momentum, self.rate, value=-1)
        else:
            self.values.add_(self.momentum, alpha=-self.rate)


class HeadBlock:
    """The step of H heads whose logits are computed at once. `keep` is the share of the momentum that stays."""

    def __init__(self, weight: Moved, bias: Moved, keep: float, form: SoftmaxForm) -> None:
        self.moved, self.keep = (weight, bias), keep
        self.heads, self.classes, width = weight.values.shape
        self.rows = weight.values.view(-1, width).T
        self.row_momentum = weight.momentum.view(-1, width)
        self.bias, self.bias_momentum = bias.values.view(-1), bias.momentum.view(-1)
        self.form, self.gradient = form, ClosedGradient(form)
        self.logits = self.ones = self.rows.new_empty(0)

    def __call__(self, features: Tensor, labels: Tensor) -> Terms:
        """Step on features (B, d) with labels (B,). RuntimeError, and no step, for one that is no class."""
        size = labels.shape[0]
        if self.ones.shape[0] != size:
            self.logits, self.ones = features.new_empty(size, self.heads * self.classes), features.new_ones(size)
        logits = torch.addmm(self.bias, features, self.rows, beta=BITS, alpha=BITS, out=self.logits)
        terms = self.gradient(logits.view(size, self.heads, self.classes), labels)
        back, mean = logits.T, 1 / size
        self.row_momentum.addmm_(back, features, beta=self.keep, alpha=mean)
        self.bias_momentum.addmv_(back, self.ones, beta=self.keep, alpha=mean)
        for moved in self.moved:
            moved.move()
        return terms


class ClosedSteps(EagerSteps):
    """Runs the steps of an epoch by the closed gradient, with the rates that the optimiser has when it is made.

    A batch with a sample to leave out is left to the step that it is given. Losses are computed many steps at once.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, form: SoftmaxForm) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.stacked = isinstance(module, StackedModules)
        weight, bias = moved_parameters(optimizer, linear_parameters(module), self.stacked)
        self.heads, self.classes, _ = weight.values.shape
        self.average: float | Tensor | None = getattr(optimizer, "average", None)
        self.parameters, self.form = (weight, bias), form
        self.blocks: list[HeadBlock] = []
        self._kept: list[list[Terms]] = []
        self._size = self._room = 0  # of the batches whose terms are kept; how many more steps are

    def run(self, step: Step, inputs: Tensor, labels: Tensor, share: Tensor | None) -> None:
        """Run a step on features (B, d) with labels (B,)."""
        size = labels.shape[0]
        if size != self._size or self._room == 0:
            self._flush()
            self._size, self._room = size, max(KEPT // max(size * self.heads, 1), 1)
        try:
            self._kept.append(self.step(inputs, labels))
            self._room -= 1
        except RuntimeError:
            if check_labels(labels, self.classes):
                raise
            self._flush()
            super().run(step, inputs, labels, share)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor) -> list[Terms]:
        """Step on features (B, d) with labels (B,); return what the losses of each block are computed from."""
        if not self.blocks:
            self.blocks = self._blocks(len(labels))
        terms = [block(features, labels) for block in self.blocks]
        if self.average is not None:
            update_averages(self.optimizer, self.average)
        return terms

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return the losses (steps,) times their images and the right answers (); of H heads (steps, H) and (H,)."""
        self._flush()
        return super().totals()

    def _blocks(self, size: int) -> list[HeadBlock]:
        """Cut the heads into blocks for batches of a size."""
        (weight, bias), keep = self.parameters, self.optimizer.param_groups[0]["momentum"]
        count = max(BLOCK // max(size * self.classes, 1), 1)
        cuts = [slice(start, start + count) for start in range(0, len(weight.values), count)]
        return [HeadBlock(weight.of_heads(cut), bias.of_heads(cut), keep, self.form.of_heads(cut)) for cut in cuts]

    @torch.no_grad()
    def _flush(self) -> None:
        """Compute the losses of the steps whose terms are kept, all of one size of batch."""
        if not self._kept:
            return
        found = [
            step_losses(block.form, terms, self.classes)
            for block, terms in zip(self.blocks, zip(*self._kept, strict=True), strict=True)
        ]
        losses, right = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
        self._kept.clear()
        if not self.stacked:
            losses, right = losses[:, 0], right[0]
        self._losses.extend(losses)
        self._correct = self._correct + right


def closed_steps(module: nn.Module, optimizer: Optimizer, loss: object) -> ClosedSteps | None:
    """Return the steps of linear heads on the CPU whose loss says its gradient; None for all else.

    On a CUDA device the steps that can be captured stay as they are.
    """
    own = loss.template[0] if isinstance(loss, StackedModules) else loss
    form_of = softmax_form_of(own)
    parameters = linear_parameters(module)
    if form_of is None or not parameters or isinstance(loss, StackedModules) != isinstance(module, StackedModules):
        return None
    if not all(p.requires_grad and p.is_contiguous() and p.device.type == "cpu" for p in parameters):
        return None
    groups = optimizer.param_groups
    if not isinstance(optimizer, SGD | StackedSGD) or any(group.get("nesterov") for group in groups):
        return None
    if {id(p) for group in groups for p in group["params"]} != {id(p) for p in parameters}:
        return None
    assert isinstance(loss, nn.Module)
    buffers = (
        loss.stacked_buffers if isinstance(loss, StackedModules) else {k: b[None] for k, b in loss.named_buffers()}
    )
    constants = {name: buffer.to(parameters[0].dtype) for name, buffer in buffers.items()}
    return ClosedSteps(module, optimizer, form_of(constants))


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
        numbers = (step_number(group[name], values) for name in ("lr", "weight_decay"))
        found.append(Moved(values, momentum, *numbers))
    return found


def step_number(number: float | Tensor, values: Tensor) -> float | Tensor:
    """Return a rate or a decay as steps of values (H, ...) use it: one for all, or (H, 1, ...)."""
    if not isinstance(number, Tensor):
        return number
    if number.ndim == 0 or bool((number == number[0]).all()):
        return float(number.reshape(-1)[0])
    return number.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
