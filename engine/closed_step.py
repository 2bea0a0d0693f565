"""Training steps of heads by the closed gradient of their losses, those of linear heads without autograd.

Of a loss that says which cross-entropy it is (`losses.closed_gradient`) the gradient in the logits needs no autograd.
Heads of all kinds are differentiated from there. For linear ones that is the gradient times the features: a step is
one product forward and one back, for one head or a stack of them, and the product back adds to the momentum in place.
A stack is taken some heads at a time, whose logits stay in a core's cache. Weights, momentum and averages are those of
the optimiser, and equal to those of its own steps but for rounding: a run may go on with either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.averaging import update_averages
from engine.stacked_heads import StackedModules, StackedSGD
from engine.steps import EagerSteps, Step
from losses.closed_gradient import NATS, SoftmaxForm, Terms, gradient_of, softmax_form_of, step_losses
from losses.functional import check_labels
from models.linear_head import Linear

BLOCK = 2048  # logits of a sample that are computed at once: of a batch of 64, half a MiB
KEPT = 1 << 20  # samples times heads whose losses are still to be computed
STEPS_KEPT = 256  # at most, and of so many bytes of batches: what is kept of a step lies between the memory of batches,
BYTES_PASSED = 1 << 25  # which the allocator cannot use again meanwhile
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
        self.form, self.gradient = form, gradient_of(form)
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


class HeadStep:
    """The step of heads of any kind, or a stack of them: the loss by its gradient, the heads by autograd."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, form: SoftmaxForm) -> None:
        self.module, self.optimizer = module, optimizer
        self.form, self.gradient = form, gradient_of(form)

    def __call__(self, features: Tensor, labels: Tensor) -> Terms:
        """Step on features (B, d) with labels (B,). RuntimeError, and no step, for one that is no class."""
        with torch.enable_grad():
            logits = self.module(features)
        gradient = logits.detach() * BITS
        terms = self.gradient(gradient.transpose(0, 1) if gradient.ndim == 3 else gradient[:, None], labels)
        self.optimizer.zero_grad(set_to_none=True)
        logits.backward(gradient.div_(labels.shape[0]))
        self.optimizer.step()
        return terms


class ClosedSteps(EagerSteps):
    """Runs the steps of an epoch by the closed gradient, with the rates that the optimiser has when it is made.

    `blocks` step one after the other, each with heads of its own, `classes` is K. Of `averaged` the averages are
    brought up to date after a step. A batch with a sample to leave out is left to the step that `run` is given. Losses
    are computed many steps at once.
    """

    def __init__(
        self, blocks: Sequence[HeadBlock | HeadStep], classes: int, stacked: bool, averaged: Optimizer | None = None
    ) -> None:
        super().__init__()
        self.blocks, self.classes, self.stacked, self.averaged = blocks, classes, stacked, averaged
        self._heads = sum(len(block.form.true) for block in blocks)
        self._kept: list[list[Terms]] = []
        self._size = self._room = 0  # of the batches whose terms are kept; how many more steps are

    def run(self, step: Step, inputs: Tensor, labels: Tensor, share: Tensor | None) -> None:
        """Run a step on features (B, d) with labels (B,)."""
        size = labels.shape[0]
        if size != self._size or self._room == 0:
            self._flush()
            most = (KEPT // max(size * self._heads, 1), BYTES_PASSED // max(inputs.nbytes, 1), STEPS_KEPT)
            self._size, self._room = size, max(min(most), 1)
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
        terms = [block(features, labels) for block in self.blocks]
        if self.averaged is not None:
            update_averages(self.averaged, self.averaged.average)  # type: ignore[attr-defined]
        return terms

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return the losses (steps,) times their images and the right answers (); of H heads (steps, H) and (H,)."""
        self._flush()
        return super().totals()

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
    """Return the steps of heads on the CPU whose loss says which cross-entropy it is; None for all else.

    Linear heads go without autograd, others with it as far as their logits. On a CUDA device the steps that can be
    captured stay as they are.
    """
    stacked = isinstance(module, StackedModules)
    form_of = softmax_form_of(loss.template[0] if isinstance(loss, StackedModules) else loss)
    head = module.template[0] if isinstance(module, StackedModules) else module
    if form_of is None or stacked != isinstance(loss, StackedModules) or not isinstance(head, nn.Linear):
        return None
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters or not all(parameter.device.type == "cpu" for parameter in module.parameters()):
        return None
    assert isinstance(loss, nn.Module)
    buffers = loss.stacked_buffers if isinstance(loss, StackedModules) else dict(loss.named_buffers())
    dtype = parameters[0].dtype
    form = form_of({name: (buffer if stacked else buffer[None]).to(dtype) for name, buffer in buffers.items()})
    if not takes_linear_steps(head, parameters, optimizer):
        return ClosedSteps([HeadStep(module, optimizer, form)], head.out_features, stacked)
    weight, bias = moved_parameters(optimizer, [module.get_parameter(name) for name in ("weight", "bias")], stacked)
    count = max(BLOCK // head.out_features, 1)
    cuts = [slice(start, start + count) for start in range(0, len(weight.values), count)]
    keep = optimizer.param_groups[0]["momentum"]
    blocks = [HeadBlock(weight.of_heads(cut), bias.of_heads(cut), keep, form.of_heads(cut)) for cut in cuts]
    averaged = None if getattr(optimizer, "average", None) is None else optimizer
    return ClosedSteps(blocks, head.out_features, stacked, averaged)


def takes_linear_steps(head: nn.Linear, parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> bool:
    """Tell whether a head, alone or the first of a stack, is linear with a bias, all trained by plain momentum.

    `parameters` are those that are trained, of the head or of the stack.
    """
    if type(head) not in (nn.Linear, Linear) or len(parameters) != 2 or head.bias is None:
        return False
    groups = optimizer.param_groups
    if not isinstance(optimizer, torch.optim.SGD | StackedSGD) or any(group.get("nesterov") for group in groups):
        return False
    theirs = {id(parameter) for group in groups for parameter in group["params"]}
    return theirs == {id(p) for p in parameters} and all(p.is_contiguous() for p in parameters)


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
