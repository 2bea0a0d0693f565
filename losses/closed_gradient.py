"""Losses that are a softmax cross-entropy in numbers, so that linear heads are trained without autograd.

A loss of the cross-entropy family is that of a softmax, whose gradient in the logits is the softmax minus the target.
Its class says with a static method `softmax_form`, beside `forward`, which cross-entropy it is. All of H losses are
computed at once, on logits (B, H, K) with the classes last, as one product of all heads leaves them.

Logits are in bits here, nats over ln 2: a product scales them at no cost, and on a CPU 2^u is much faster than e^u.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

NATS = math.log(2)  # of a bit
LEAST = -1e30  # a logit below all others


@dataclass(frozen=True)
class SoftmaxForm:
    """H losses of one kind, each a cross-entropy in numbers: (H, K) for those of a class, (H, 1) for all classes alike.

    The loss of a sample of class y is w_y times the cross-entropy of the softmax of u, in nats, against `true` for y
    and `other` for each other class; u_j = factor_j z_j + shift_j, of which margin_y is taken off for y. A batch has
    the mean, over its size or, where `by_weights` (H, 1) is not 0, over its sum of w_y. What a kind leaves out is None.
    `binary` takes the K probabilities for yes-or-no answers instead, and the mean of their K cross-entropies.
    """

    true: Tensor
    other: Tensor
    factor: Tensor | None = None
    shift: Tensor | None = None
    margin: Tensor | None = None
    weights: Tensor | None = None
    by_weights: Tensor | None = None
    binary: bool = False

    def of_heads(self, heads: slice) -> "SoftmaxForm":
        """Return the form of some of the H losses."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        own: dict[str, Any] = {name: value[heads] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **own)


def one_hot_form(like: Tensor, **numbers: Any) -> SoftmaxForm:
    """Return the form of losses (H, ...) whose targets are one-hot labels, in the dtype of `like` (H, K)."""
    return SoftmaxForm(like.new_ones(len(like), 1), like.new_zeros(len(like), 1), **numbers)


# The losses' buffers by their names, each (H, ...) -> their form.
FormOf = Callable[[Mapping[str, Tensor]], SoftmaxForm]


class Terms(NamedTuple):
    """What the losses of a batch are computed from, when they are wanted: (B, H) each, in bits.

    `lead` is by how much the true class's logit exceeds the largest one, 0 where it is the largest; `adjusted` the same
    of the logits u that the loss shifts; `partition` the sum of 2^(u - largest u); `everything` the sum of
    u - largest u over the classes, where some target has a share for other classes; `losses` in nats, where they are
    known already, but for the weights.
    """

    lead: Tensor
    adjusted: Tensor
    partition: Tensor
    everything: Tensor | None
    labels: Tensor  # (B,)
    losses: Tensor | None = None


def softmax_form_of(loss: object) -> FormOf | None:
    """Return what tells the form of losses of the kind of `loss`, None where it has none.

    That of a parent class counts only together with its `forward`: a loss that computes something else has another one.
    """
    for kind in type(loss).__mro__:
        if "forward" in vars(kind):
            found = vars(kind).get("softmax_form")
            return None if found is None else found.__func__
    return None


class ClosedGradient:
    """The gradient of H losses of one form, with everything that steps share computed once."""

    def __init__(self, form: SoftmaxForm) -> None:
        self.form = form
        self.spreads = bool(form.other.any())
        self.plain = form.factor is None and form.shift is None and form.margin is None
        self.shift = None if form.shift is None else form.shift / NATS
        self.margin = None if form.margin is None else -form.margin / NATS
        self.less = form.other - form.true

    def __call__(self, bits: Tensor, labels: Tensor) -> Terms:
        """Turn logits (B, H, K) in bits into B times the gradient in the logits in nats, in place.

        Raises RuntimeError for labels (B,) that are no class, before anything but the logits is changed.
        """
        at = labels.view(-1, 1, 1).expand(-1, bits.shape[1], 1)
        lead = None
        if not self.plain:
            lead = bits.gather(2, at).sub_(bits.amax(dim=2, keepdim=True)).squeeze(2)
            self.adjust(bits, labels, at)
        bits.sub_(bits.amax(dim=2, keepdim=True))
        adjusted = bits.gather(2, at)
        everything = bits.sum(dim=2) if self.spreads else None
        partition = bits.exp2_().sum(dim=2, keepdim=True)
        weights = sample_weights(self.form, labels)
        share = partition.reciprocal()
        bits.mul_(share if weights is None else share.mul_(weights))
        if self.spreads:
            other = of_labels(self.form.other, labels)
            bits.sub_(other if weights is None else weights * other)
        less = of_labels(self.less, labels)
        bits.scatter_add_(2, at, less.expand_as(at) if weights is None else weights * less)
        if self.form.factor is not None:
            bits.mul_(self.form.factor)
        adjusted = adjusted.squeeze(2)
        return Terms(adjusted if lead is None else lead, adjusted, partition.squeeze(2), everything, labels)

    def adjust(self, bits: Tensor, labels: Tensor, at: Tensor) -> None:
        """Turn the logits (B, H, K) into those that the loss takes the softmax of, in place; `at` (B, H, 1) is true."""
        if self.form.factor is not None:
            bits.mul_(self.form.factor)
        if self.shift is not None:
            bits.add_(self.shift)
        if self.margin is not None:
            bits.scatter_add_(2, at, of_labels(self.margin, labels).expand_as(at))


class BinaryGradient:
    """The gradient of H losses of one form that is `binary`, without shifts: `weights` are all that it has.

    With r_j = p_j / (1 - p_j) for j != y and r_y = -1 the gradient in z_i is (p_i - [i = y] - p_i sum_{j != i} r_j) / K
    times the weight. One probability may be so close to 1 that 1 - p has no digits: the largest is told by the others,
    which are computed relative to the largest of them.
    """

    def __init__(self, form: SoftmaxForm) -> None:
        self.form = form

    def __call__(self, bits: Tensor, labels: Tensor) -> Terms:
        """Turn logits (B, H, K) in bits into B times the gradient in the logits in nats, in place.

        Raises RuntimeError for labels (B,) that are no class, before anything but the logits is changed.
        """
        at = labels.view(-1, 1, 1).expand(-1, bits.shape[1], 1)
        bits.sub_(bits.amax(dim=2, keepdim=True))
        lead = bits.gather(2, at)
        is_true, is_top = lead == 0, bits == 0
        tops = is_top.sum(dim=2, keepdim=True).to(bits.dtype)
        # The others: 2^u is `scale` times `parts`, of which the largest is 1.
        bits.masked_fill_(is_top, -math.inf)
        second = bits.amax(dim=2, keepdim=True).clamp_(min=LEAST)
        parts, scale = bits.sub_(second).exp2_(), second.exp2()
        rest = parts.sum(dim=2, keepdim=True)
        above = tops - 1 + scale * rest  # the sum over all classes but one of the largest
        partition = above + 1
        share = scale / partition
        probability = parts * share
        ratios = probability / (1 - probability)
        logs = torch.log1p(-probability)
        true_ratio, true_log = ratios.gather(2, at), logs.gather(2, at)  # 0 for a true class that is the largest
        others = ratios.sum(dim=2, keepdim=True) - true_ratio
        wrong_tops = tops - is_true.to(tops.dtype)
        # Of the wrong largest: 2^u_i / partition * r, which is finite where r is not, and log(1 - p).
        alone = tops == 1
        pulled = wrong_tops * torch.where(alone, 1 / (rest * partition), share / above)
        log_above = torch.where(alone, (second + rest.log2()) * NATS, above.log())
        tied = torch.where(alone, 0, (tops - 1) / above)  # r of all but one of the largest
        top_ratio = torch.where(alone, 0, (wrong_tops - 1) / above)  # the same of the wrong ones
        assert self.form.weights is not None
        weights = of_labels(self.form.weights, labels) / bits.shape[2]
        true_part = parts.gather(2, at)
        at_true = -torch.where(is_true, (above + others) / partition + tied / partition,
                               1 - true_part * (share - share * others - pulled))  # fmt: skip
        gradient = ratios.mul_(share).add_((2 - others) * share - pulled).mul_(parts)
        at_top = (2 - others - top_ratio) / partition
        torch.where(is_top, at_top, gradient, out=bits)
        bits.scatter_(2, at, at_true).mul_(weights)
        log_partition = partition.log()
        log_no = logs.sum(dim=2, keepdim=True) - true_log + wrong_tops * (log_above - log_partition)
        losses = (log_partition - lead * NATS - log_no).div_(bits.shape[2]).squeeze(2)
        return Terms(lead.squeeze(2), lead.squeeze(2), partition.squeeze(2), None, labels, losses)


def gradient_of(form: SoftmaxForm) -> ClosedGradient | BinaryGradient:
    """Return the gradient of H losses of one form."""
    return BinaryGradient(form) if form.binary else ClosedGradient(form)


def of_labels(values: Tensor, labels: Tensor) -> Tensor:
    """Return the numbers (H, K) or (H, 1) of each label (B,), which broadcast to (B, H, 1)."""
    if values.shape[1] == 1:
        return values
    return values.index_select(1, labels).T.unsqueeze(2)


def sample_weights(form: SoftmaxForm, labels: Tensor) -> Tensor | None:
    """Return the weights (B, H, 1) of samples with labels (B,) in B times the loss of a batch, None where all are 1."""
    if form.weights is None:
        return None
    weights = of_labels(form.weights, labels)
    if form.by_weights is None:
        return weights
    return torch.where(form.by_weights > 0, len(labels) * weights / weights.sum(dim=0), weights)


def step_losses(form: SoftmaxForm, steps: Sequence[Terms], classes: int) -> tuple[Tensor, Tensor]:
    """Return the losses (S, H) of S batches of one size B, times B, in nats, and the right answers (H,) of all.

    A true class that shares the largest logit with others is right.
    """
    known = [terms.losses for terms in steps if terms.losses is not None]
    losses = torch.cat(known) if known else softmax_losses(form, steps, classes)
    if form.weights is not None:
        weights = [sample_weights(form, terms.labels) for terms in steps]
        losses.mul_(torch.cat([weight.squeeze(2) for weight in weights if weight is not None]))
    right = torch.cat([terms.lead for terms in steps]) == 0
    return losses.view(len(steps), len(steps[0].labels), -1).sum(dim=1), right.sum(dim=0)


def softmax_losses(form: SoftmaxForm, steps: Sequence[Terms], classes: int) -> Tensor:
    """Return the losses (S B, H) of the samples of S batches in nats, before they are weighted."""
    log_partition = torch.cat([terms.partition for terms in steps]).log2_()
    log_true = torch.cat([terms.adjusted for terms in steps]).sub_(log_partition)
    labels = torch.cat([terms.labels for terms in steps])
    true, other = (of_labels(values, labels).squeeze(-1) for values in (form.true, form.other))
    losses = (other - true) * log_true
    if steps[0].everything is not None:
        # One-hot labels leave it out: for a logit of minus infinity it is infinite, and 0 * inf would be NaN.
        everything = torch.cat([terms.everything for terms in steps if terms.everything is not None])
        everything.sub_(log_partition, alpha=classes)  # sum_j log p_j
        losses.sub_(torch.where(other > 0, other * everything, 0))
    return losses.mul_(NATS)
