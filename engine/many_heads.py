"""Re-train many classifiers on the same cached features, those of one kind together (`engine.stacked_heads`)."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from datasets.features import Features
from datasets.image_source import steps_per_epoch
from engine.averaging import swap_averages
from engine.epoch import EpochOptions, EpochResult, train_epoch
from engine.fit import rate_groups
from engine.frozen_features import feature_batches
from engine.stacked_heads import StackedSGD, stack_heads, stack_losses
from methods.offsets import HeldOut
from methods.plan import Plan, build_losses, compute_head, in_late_phase, row_norm_limit, start_head, visiting_order
from models.heads import max_norm_
from utils.device import Execution
from utils.hashing import mix64

MOST_STACKED = 96  # heads: more gain no speed, and their logits on a batch take memory


class TrainingFeatures(Protocol):
    """What is asked of features: `engine.frozen_features.FrozenFeatures`, or arrays that a program has (`api`)."""

    @property
    def seed(self) -> int:
        """The seed of the order of batches."""

    @property
    def execution(self) -> Execution:
        """Where and how the features were computed."""

    def plain(self, split: str, mirrored: bool = False) -> Features:
        """Return the features (N, d) of a split's images as they are, or mirrored."""

    def held_out(self) -> HeldOut | None:
        """Return the features (M, d) and labels (M,) of held-out images, None where there are none."""

    def training_view(self, epoch: int) -> Features:
        """Return the features (N, d) of the training images that `epoch` (from 0) trains on."""


Frozen = TypeVar("Frozen", bound=TrainingFeatures)


@dataclass(frozen=True)
class HeadTrainer(Generic[Frozen]):
    """What all classifiers of a table share: the frozen features, stage 1's classifier `linear`, how steps are made.

    `labels` (N,) are those of the training images, `seed` that of stage 2. A `quiet` training shows no progress.
    """

    frozen: Frozen
    linear: nn.Linear
    labels: Tensor
    class_counts: list[int]
    batch_size: int
    momentum: float
    seed: int
    quiet: bool = False

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_counts)

    @property
    def execution(self) -> Execution:
        """Where and how the features were computed."""
        return self.frozen.execution

    @property
    def draws(self) -> int:
        """The seed of views and of the order of batches."""
        return self.frozen.seed


@dataclass
class Trained:
    """A re-trained classifier; `diverged` says in which epoch and step its loss stopped being finite."""

    plan: Plan
    head: nn.Linear
    seconds: float = 0.0
    images: int = 0
    loss: float | None = None
    accuracy: float | None = None
    diverged: str | None = None


# Called after every epoch (from 1) with the heads that were trained in it; once, with epoch 0, for those that are not.
AfterEpoch = Callable[[int, Sequence[Trained]], None]


def train_heads(
    trainer: HeadTrainer, plans: Sequence[Plan], after_epoch: AfterEpoch = lambda epoch, trained: None
) -> list[Trained]:
    """Re-train a classifier for each plan, from the same start, on the same batches as it would see alone."""
    results: dict[int, Trained] = {}
    for chunk in chunks(plans):
        own = [plans[i] for i in chunk]
        trains = own[0].recipe.trains
        made = _train_stacked(trainer, own, after_epoch) if trains else [_computed(trainer, own[0], after_epoch)]
        results |= zip(chunk, made, strict=True)
    return [results[i] for i in range(len(plans))]


def chunks(plans: Sequence[Plan]) -> list[list[int]]:
    """Return which plans are trained together, by their places; each that is computed is alone, and first."""
    alone = [[i] for i, plan in enumerate(plans) if not plan.recipe.trains]
    groups: dict[Hashable, list[int]] = {}
    for i, plan in enumerate(plans):
        if plan.recipe.trains:
            groups.setdefault(_kind(plan), []).append(i)
    stacked = [
        members[start : start + MOST_STACKED]
        for members in groups.values()
        for start in range(0, len(members), MOST_STACKED)
    ]
    return alone + stacked


def _kind(plan: Plan) -> Hashable:
    """Return what heads must share to be stacked with others: everything but numbers."""
    recipe = plan.recipe
    words = tuple(sorted((name, value) for name, value in plan.parameters.items() if isinstance(value, str)))
    return recipe.head, recipe.loss, recipe.late_loss, words, plan.epochs, plan.sampler, plan.unit


def _computed(trainer: HeadTrainer, plan: Plan, after_epoch: AfterEpoch) -> Trained:
    started = time.perf_counter()
    frozen, labels = trainer.frozen, trainer.labels
    features, labels = frozen.rows_to_fit(labels, True) if plan.fits_views else (frozen.plain("train"), labels)
    held_out = trainer.frozen.held_out() if plan.needs_held_out else None
    head = compute_head(plan, trainer.linear, features, labels, trainer.class_counts, held_out)
    result = Trained(plan, head, time.perf_counter() - started)
    after_epoch(0, [result])
    return result


def _train_stacked(trainer: HeadTrainer, plans: Sequence[Plan], after_epoch: AfterEpoch) -> list[Trained]:
    device = trainer.labels.device
    first = plans[0]
    results = [Trained(plan, start_head(plan, trainer.linear, trainer.seed, trainer.class_counts)) for plan in plans]
    heads = [result.head for result in results]
    stacked = stack_heads(heads)
    early, late = zip(*(build_losses(plan, trainer.class_counts) for plan in plans), strict=True)
    losses = [stack_losses([loss.to(device) for loss in phase]) for phase in (early, late)]
    if first.recipe.late_loss is None:
        losses[1] = losses[0]  # one loss, which goes on with what it has gathered
    decay = torch.tensor([plan.weight_decay for plan in plans], device=device)
    optimizer = StackedSGD(rate_groups(stacked, first.unit), trainer.momentum, decay, _averages(plans, device))
    limits = [row_norm_limit(plan, trainer.linear) for plan in plans]
    unlimited = torch.tensor(torch.inf, device=device)
    limit = torch.stack([unlimited if value is None else value for value in limits])
    steps = steps_per_epoch(len(trainer.labels), trainer.batch_size)
    labels = trainer.labels.cpu()
    for epoch in range(first.epochs):
        optimizer.lr = torch.tensor([plan.rate(epoch) for plan in plans], device=device)
        torch.manual_seed(mix64(trainer.seed) ^ epoch)  # for losses that draw
        view = trainer.frozen.training_view(epoch)
        started = time.perf_counter()
        order = visiting_order(first, labels, trainer.num_classes, trainer.draws, epoch)
        batches = feature_batches(view, trainer.labels, order, trainer.batch_size)
        loss = losses[in_late_phase(epoch, first.epochs)]
        swap_averages(optimizer)  # the trained weights come back
        message = "" if trainer.quiet else f"{len(plans)} heads, epoch {epoch + 1}/{first.epochs}"
        counts = train_epoch(
            stacked, batches, steps, optimizer, loss, trainer.execution.full_precision(), EpochOptions(message=message)
        )
        if any(value is not None for value in limits):
            max_norm_(stacked, limit)
        swap_averages(optimizer)  # what is evaluated are the averages, where there are any
        stacked.write_back(heads)
        seconds = (time.perf_counter() - started) / len(plans)
        _record(results, counts, epoch, seconds)
        after_epoch(epoch + 1, results)
    return results


def _averages(plans: Sequence[Plan], device: torch.device) -> Tensor | None:
    """Return the decay (H,) of each plan's averages, 0 for one without, None where no plan has any."""
    if all(plan.ema is None for plan in plans):
        return None
    return torch.tensor([plan.ema or 0.0 for plan in plans], device=device)


def _record(results: Sequence[Trained], counts: EpochResult, epoch: int, seconds: float) -> None:
    for i, result in enumerate(results):
        result.seconds += seconds
        result.images += counts.images
        if result.diverged is None and counts.diverged_at[i]:
            result.diverged = f"step {counts.diverged_at[i]} of epoch {epoch + 1}"
        result.loss, result.accuracy = float(counts.loss[i]), float(counts.accuracy[i])
