"""What all losses share: the rule for labels, the mean over samples, constants as buffers, a few log-probabilities.

The rule is that of `torch.nn.functional.cross_entropy`: a sample with the label -100 counts in no sum and no mean, and
any other label outside 0 .. K - 1 is an error. `Loss` holds it for every loss; `mean_of` leaves the samples out.

A loss keeps every number it was built with in a buffer, so that instances with different values can be stacked
(`torch.func.stack_module_state`) and called as one under `torch.func.vmap`. The buffers are float64, cast to the dtype
of the logits where they are used, and stay out of the state_dict: they are rebuilt from the class counts.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from utils.errors import UserError

IGNORED = -100  # the label of a sample that is left out, as in `torch.nn.functional.cross_entropy`


class LabelError(UserError, IndexError):
    """A label that is no class. `torch.nn.functional.cross_entropy` raises IndexError, and so do all losses here."""


class Loss(nn.Module):
    """The base of all losses: maps logits (B, K) and labels (B,) of integers to a scalar, the mean over the samples.

    A sample labelled -100 leaves the mean, and its logits get no gradient; where all are, the mean is NaN. A loss with
    `soft_labels` takes probabilities (B, K) for labels too. Raises LabelError for a label that is no class, and
    UserError for labels of another form. On CUDA, where a look at the labels would make the host wait, and in compiled
    code, the kernel that indexes with such a label stops the program, as it does for PyTorch's own losses. So every
    loss indexes with its labels.
    """

    plain_logits: ClassVar[bool]
    soft_labels: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(check_batch)


def check_batch(loss: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise UserError for labels that a loss cannot take with its logits (B, K); LabelError names one that is no class.

    Shapes and dtypes are known to the host. Values are looked at on the CPU alone: on CUDA that would wait for the
    device at every step.
    """
    logits, labels = inputs
    shape = " x ".join(map(str, labels.shape)) or "none"
    if logits.ndim != 2:
        raise UserError(f"a loss takes logits of two dimensions, samples x classes, not {logits.ndim}")
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise UserError(f"labels of shape {shape} are neither integers (B,) nor probabilities (B, K)")
        if not getattr(loss, "soft_labels", False):
            raise UserError(f"{type(loss).__name__} takes labels (B,), one class a sample, not probabilities (B, K)")
        return
    if labels.dtype != torch.long or labels.shape != logits.shape[:1]:
        raise UserError(f"labels must be {logits.shape[0]} integers of 64 bits, not {labels.dtype} of shape {shape}")
    if labels.device.type == "cpu" and len(labels) > 0 and not torch.compiler.is_compiling():
        check_labels(labels, logits.shape[1])


def check_labels(labels: Tensor, num_classes: int) -> bool:
    """Tell whether labels (B,) on the CPU are all of 0 .. K - 1.

    Raises LabelError, which names the value, where they hold another than these and -100.
    """
    try:
        low, high = (int(value) for value in labels.aminmax())
    except RuntimeError:  # labels that `vmap` maps over have no value of their own: what indexes with them refuses them
        return False
    if low >= 0 and high < num_classes:
        return True
    for label in labels.unique().tolist():
        if label != IGNORED and not 0 <= label < num_classes:
            raise LabelError(
                f"label {label} is no class: the logits have the classes 0 .. {num_classes - 1}, and {IGNORED} marks a "
                "sample to leave out"
            )
    return False


def known_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which samples have a label, (B,) bool, and labels (B,) to index with: 0 for those that have none."""
    known = labels != IGNORED
    return known, labels.masked_fill(~known, 0)


def mean_of(losses: Tensor, known: Tensor) -> Tensor:
    """Return the mean of the samples' losses (B,) over those that `known` (B,) marks, NaN where there is none."""
    return torch.where(known, losses, 0).sum() / known.sum()


def add_constants(module: nn.Module, **values: float | Sequence[float] | Tensor) -> None:
    """Register each value as a float64 buffer of `module` that its state_dict leaves out."""
    for name, value in values.items():
        module.register_buffer(name, torch.as_tensor(value, dtype=torch.float64), persistent=False)


def true_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mask (B, K) that is true at each sample's label, for logits (B, K) and labels (B,).

    It is false everywhere for a sample that is left out.
    """
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


def of_label(values: Tensor, labels: Tensor) -> Tensor:
    """Return the entry of `values` (K,) at each label, (B, 1), for labels (B,) of `known_labels`."""
    return values.gather(0, labels)[:, None]


def log_rest(log_probability: Tensor, chosen: Tensor) -> Tensor:
    """Return log(1 - p) (B, 1) of the one class a sample that the mask `chosen` (B, K) marks.

    It is the log of the other classes' sum, which keeps its digits, and a finite gradient, where p rounds to 1.
    """
    return log_probability.masked_fill(chosen, -math.inf).logsumexp(dim=1, keepdim=True)
