"""Re-train many classifiers on the same cached features, those of one kind together (`engine.stacked_heads`)."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.image_source import steps_per_epoch
from engine.epoch import EpochResult, train_epoch
from engine.frozen_features import FrozenFeatures, feature_batches
from engine.stacked_heads import BankSGD, head_bank, loss_bank
from methods.plan import Plan, build_losses, compute_head, is_late, order_of, row_norm_limit, start_head
from models.heads import max_norm_
from utils.device import Execution
from utils.hashing import mix64
from utils.schedules import cosine_lr

LARGEST_BANK = 96  # heads: more gain no speed, and their logits on a batch take memory


@dataclass(frozen=True)
class Bench:
    """What all classifiers of a table share: the frozen features, stage 1's classifier, and how steps are made."""

    frozen: FrozenFeatures
    linear: nn.Linear
    labels: Tensor
    class_counts: list[int]
    execution: Execution
    batch_size: int
    momentum: float
    seed: int
    draws: int

    @property
    def num_classes(self) -> int:
        return len(self.class_counts)


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
    bench: Bench, plans: Sequence[Plan], after_epoch: AfterEpoch = lambda epoch, trained: None
) -> list[Trained]:
    """Re-train a classifier for each plan, from the same start, on the same batches as it would see alone."""
    results: list[Trained | None] = [None] * len(plans)
    groups: dict[Hashable, list[int]] = {}
    for i, plan in enumerate(plans):
        if plan.recipe.trains:
            groups.setdefault(_kind(plan), []).append(i)
        else:
            results[i] = _computed(bench, plan, after_epoch)
    for members in groups.values():
        for start in range(0, len(members), LARGEST_BANK):
            chunk = members[start : start + LARGEST_BANK]
            for i, result in zip(chunk, _train_bank(bench, [plans[i] for i in chunk], after_epoch), strict=True):
                results[i] = result
    return [result for result in results if result is not None]


def _kind(plan: Plan) -> Hashable:
    """Return what heads must share to be trained as one bank: everything but numbers."""
    recipe = plan.recipe
    words = tuple(sorted((name, value) for name, value in plan.parameters.items() if isinstance(value, str)))
    return recipe.head, recipe.loss, recipe.late_loss, words, plan.epochs, plan.sampler


def _computed(bench: Bench, plan: Plan, after_epoch: AfterEpoch) -> Trained:
    started = time.perf_counter()
    features = bench.frozen.plain("train")
    head = compute_head(plan, bench.linear, features, bench.labels, bench.class_counts)
    result = Trained(plan, head, time.perf_counter() - started)
    after_epoch(0, [result])
    return result


def _train_bank(bench: Bench, plans: Sequence[Plan], after_epoch: AfterEpoch) -> list[Trained]:
    device = bench.labels.device
    first = plans[0]
    results = [Trained(plan, start_head(plan, bench.linear, bench.seed)) for plan in plans]
    heads = [result.head for result in results]
    bank = head_bank(heads)
    early, late = zip(*(build_losses(plan, bench.class_counts) for plan in plans), strict=True)
    losses = [loss_bank([loss.to(device) for loss in phase]) for phase in (early, late)]
    if first.recipe.late_loss is None:
        losses[1] = losses[0]  # one loss, which goes on with what it has gathered
    trained = [parameter for parameter in bank.parameters() if parameter.requires_grad]
    decay, rates = (
        torch.tensor(values, device=device) for values in zip(*((p.weight_decay, p.lr) for p in plans), strict=True)
    )
    optimizer = BankSGD(trained, bench.momentum, decay)
    limits = [row_norm_limit(plan, bench.linear) for plan in plans]
    unlimited = torch.tensor(torch.inf, device=device)
    limit = torch.stack([unlimited if value is None else value for value in limits])
    steps = steps_per_epoch(len(bench.labels), bench.batch_size)
    for epoch in range(first.epochs):
        optimizer.lr = rates * cosine_lr(1.0, epoch, first.epochs)
        torch.manual_seed(mix64(bench.seed) ^ epoch)  # for losses that draw
        view = bench.frozen.training_view(epoch)
        started = time.perf_counter()
        order = order_of(first, bench.labels, bench.num_classes, bench.draws, epoch)
        batches = feature_batches(view, bench.labels, order, bench.batch_size)
        loss = losses[is_late(epoch, first.epochs)]
        message = f"{len(plans)} heads, epoch {epoch + 1}/{first.epochs}"
        counts = train_epoch(bank, batches, steps, optimizer, loss, bench.execution.full_precision(), message=message)
        if any(value is not None for value in limits):
            max_norm_(bank, limit)
        bank.write_back(heads)
        seconds = (time.perf_counter() - started) / len(plans)
        _record(results, counts, epoch, seconds)
        after_epoch(epoch + 1, results)
    return results


def _record(results: Sequence[Trained], counts: EpochResult, epoch: int, seconds: float) -> None:
    for i, result in enumerate(results):
        result.seconds += seconds
        result.images += counts.images
        if result.diverged is None and counts.diverged_at[i]:
            result.diverged = f"step {counts.diverged_at[i]} of epoch {epoch + 1}"
        result.loss, result.accuracy = float(counts.loss[i]), float(counts.accuracy[i])
