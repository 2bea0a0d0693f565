"""The pieces of work whose growth `benchmarks.speed.scaling` measures: over batch, classes and images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.cifar import AUGMENTATION
from datasets.device_images import DeviceImages
from datasets.image_source import steps_per_epoch
from datasets.long_tail import Split, long_tail_counts, select_subset, split_holdout
from datasets.names import SAMPLERS
from engine.epoch import train_epoch
from engine.fit import make_sgd
from engine.frozen_features import feature_batches
from evaluation.logits_magnitude import logits_magnitude
from evaluation.metrics import (
    calibration_error,
    class_wise_column_means,
    classification_report,
    column_means,
    fit_temperature,
    rebalanced_predictions,
)
from losses import LOSSES, build_loss
from losses.los import torch_target
from methods.closed_form import CLOSED_FORM, build_closed_form
from methods.plan import Plan, build_losses, start_head, visiting_order
from models import build_model
from models.heads import HEADS, build_head
from utils.device import Execution

SMOOTHING = 0.98
IMBALANCE = 100.0
STAGE2_EPOCHS = 20
TIMED_EPOCH = 10  # there progressive sampling is halfway between its two ends
STEPS = 10  # of an epoch whose steps are timed over the number of classes


@dataclass(frozen=True)
class Sizes:
    """What is swept, and what is held fixed meanwhile.

    `budget` is the time in seconds set aside for the repeats of one item at one size. The parts of the report see
    `test_images` logits, the fit of a temperature, which takes 50 passes, `temperature_images`.
    """

    batches: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    stage1_images: int = 1024
    classes: tuple[int, ...] = (10, 100, 365, 1000, 8142)
    width: int = 512
    batch: int = 64
    test_images: int = 10_000
    temperature_images: int = 1_000
    cut_images: int = 100_000
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    row_width: int = 128
    row_classes: int = 100
    budget: float = 0.5


FULL = Sizes()
QUICK = Sizes(
    batches=(16, 32, 64),
    stage1_images=64,
    classes=(10, 100, 365),
    test_images=2_000,
    temperature_images=200,
    cut_images=20_000,
    rows=(10_000, 40_000),
    budget=0.05,
)


class Case(NamedTuple):
    """One piece of work at one size: `call` does it `units` times, over `images` images where they are what counts.

    `expected` is the exponent that the work itself has. Items of one `group` share a line of the short table.
    """

    sweep: str
    group: str
    item: str
    size: int
    expected: float
    call: Callable[[], object]
    units: int = 1
    images: int | None = None


def momentum_sgd(module: nn.Module) -> Optimizer:
    """Return the optimiser of both stages at a small learning rate."""
    optimizer = make_sgd(module, 0.9, 5e-4, False)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    return optimizer


def stage1_cases(sizes: Sizes, execution: Execution, network: str, width: int | None) -> Iterator[Case]:
    """Yield an epoch of stage 1 for each batch size, on images of CIFAR's shape and number of classes."""
    # A GPU takes milliseconds a step: more of them, so that reading the counters at an epoch's end does not count.
    count = sizes.stage1_images * (16 if execution.device.type == "cuda" else 1)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    split = Split(pixels, generator.integers(0, 100, count), np.arange(count))
    images = DeviceImages(split, AUGMENTATION, execution.device)
    model = execution.place(build_model(network, 100, width=width)).train()
    loss = build_loss("ce", long_tail_counts(500, 100, IMBALANCE)).to(execution.device)
    optimizer = momentum_sgd(model)
    for batch in sizes.batches:

        def epoch(batch: int = batch) -> None:
            batches = images.training_batches(batch, seed=0, epoch=0)
            train_epoch(model, batches, steps_per_epoch(count, batch), optimizer, loss, execution)

        group = f"stage 1, step, {network}"
        yield Case("batch", group, group, batch, 1.0, epoch, steps_per_epoch(count, batch), batch)


def class_cases(sizes: Sizes, execution: Execution) -> Iterator[Case]:
    """Yield all that depends on the number of classes K, for each K."""
    for num_classes in sizes.classes:
        yield from head_cases(num_classes, sizes, execution)
        yield from loss_cases(num_classes, sizes, execution.device)
        yield from closed_form_cases(num_classes, sizes, execution.device)
        yield from report_cases(num_classes, sizes, execution.device)
        yield from cut_cases(num_classes, sizes)


def head_cases(num_classes: int, sizes: Sizes, execution: Execution) -> Iterator[Case]:
    """Yield an epoch of `STEPS` steps of every head that is trained, against LOS's target."""
    device = execution.device
    features, labels = random_rows(STEPS * sizes.batch, sizes.width, num_classes, device)
    order = torch.arange(len(labels), device=device)
    counts = long_tail_counts(1000, num_classes, IMBALANCE)
    loss = build_loss("ce", counts, torch_target(SMOOTHING, num_classes)).to(device)
    for name in HEADS:
        head = build_head(name, nn.Linear(sizes.width, num_classes, device=device))
        if not any(parameter.requires_grad for parameter in head.parameters()):
            continue
        optimizer = momentum_sgd(head)

        def epoch(head: nn.Module = head, optimizer: Optimizer = optimizer) -> None:
            batches = feature_batches(features, labels, order, sizes.batch)
            train_epoch(head, batches, STEPS, optimizer, loss, execution.full_precision())

        group = "step of LOS, linear head" if name == "linear" else "step of LOS, other heads"
        yield Case("classes", group, f"head {name}", num_classes, 1.0, epoch, STEPS)


def loss_cases(num_classes: int, sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Yield every loss, forward and backward, on a batch of logits."""
    logits, labels = random_rows(sizes.batch, num_classes, num_classes, device)
    logits.requires_grad_()
    counts = long_tail_counts(1000, num_classes, IMBALANCE)
    for name in LOSSES:
        loss = build_loss(name, counts).to(device)

        def backward(loss: nn.Module = loss) -> None:
            logits.grad = None
            loss(logits, labels).backward()

        yield Case("classes", "losses, forward and backward", f"loss {name}", num_classes, 1.0, backward)


def closed_form_cases(num_classes: int, sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Yield every classifier that is computed, from features of every class."""
    features, _ = random_rows(max(sizes.test_images, num_classes), sizes.width, num_classes, device)
    labels = torch.arange(len(features), device=device) % num_classes
    linear = nn.Linear(sizes.width, num_classes, device=device)
    counts = torch.bincount(labels).tolist()
    for name in CLOSED_FORM:

        def compute(name: str = name) -> None:
            build_closed_form(name, linear, features, labels, counts, held_out=(features, labels))

        yield Case("classes", "computed classifiers", f"closed form {name}", num_classes, 1.0, compute)


def report_cases(num_classes: int, sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Yield the parts of the report on test images, a line of the short table each."""
    logits, labels = random_rows(sizes.test_images, num_classes, num_classes, device)
    few = slice(sizes.temperature_images)
    counts = np.array(long_tail_counts(1000, num_classes, IMBALANCE))
    parts: dict[str, Callable[[], object]] = {
        "accuracies, F1 (classification_report)": lambda: classification_report(logits, labels, counts),
        "calibration_error": lambda: calibration_error(logits, labels),
        "LoMa and RSD (logits_magnitude)": lambda: logits_magnitude(logits, labels),
        f"fit_temperature, {sizes.temperature_images:,} images": lambda: fit_temperature(logits[few], labels[few]),
        "re-balanced, transductive": lambda: rebalanced_predictions(logits, column_means(logits), 1.0),
        "re-balanced, inductive (class_wise_column_means)": lambda: class_wise_column_means(logits, labels),
    }
    for name, part in parts.items():
        yield Case("classes", f"report: {name}", f"report: {name}", num_classes, 1.0, part)


def cut_cases(num_classes: int, sizes: Sizes) -> Iterator[Case]:
    """Yield the cut of a fixed number of labels to a long tail: sorted once, it would not depend on K."""
    labels = np.random.default_rng(0).permutation(sizes.cut_images) % num_classes
    kept = [int(count) // 2 for count in np.bincount(labels)]
    parts: dict[str, Callable[[], object]] = {
        "select_subset": lambda: select_subset(labels, kept),
        "split_holdout": lambda: split_holdout(labels, 0.2, 0),
    }
    for name, part in parts.items():
        yield Case("classes", f"{name}, {sizes.cut_images:,} labels", name, num_classes, 0.0, part)


def row_cases(sizes: Sizes, execution: Execution) -> Iterator[Case]:
    """Yield an epoch of LOS on cached features for each number of rows, and the drawing of its order, by sampler."""
    for count in sizes.rows:
        labels = long_tailed_labels(count, sizes.row_classes).to(execution.device)
        features, _ = random_rows(count, sizes.row_width, sizes.row_classes, execution.device)
        for sampler in SAMPLERS:
            order, epoch = stage2_epoch(features, labels, sizes, execution, sampler)
            yield Case("images", "order of an epoch", f"order, {sampler}", count, 1.0, order, 1, count)
            yield Case("images", "stage 2, epoch of LOS", f"epoch, {sampler}", count, 1.0, epoch, 1, count)


def stage2_epoch(
    features: Tensor, labels: Tensor, sizes: Sizes, execution: Execution, sampler: str
) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """Return what draws the order of an epoch of stage 2, and what draws it and trains, as `main_stage2.py` does."""
    num_classes = sizes.row_classes
    plan = Plan("los", STAGE2_EPOCHS, 5e-4, 0.0, SMOOTHING, sampler, None, False)
    head = start_head(plan, nn.Linear(features.shape[1], num_classes, device=features.device), seed=0)
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    loss = build_losses(plan, counts)[0].to(features.device)
    optimizer = momentum_sgd(head)
    steps = steps_per_epoch(len(labels), sizes.batch)

    def order() -> Tensor:
        return visiting_order(plan, labels, num_classes, 0, TIMED_EPOCH)

    def epoch() -> None:
        batches = feature_batches(features, labels, order(), sizes.batch)
        train_epoch(head, batches, steps, optimizer, loss, execution.full_precision())

    return order, epoch


def random_rows(count: int, width: int, num_classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return normal numbers (count, width) and labels (count,), the same ones every time."""
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(count, width, generator=generator, device=device)
    return rows, torch.randint(num_classes, (count,), generator=generator, device=device)


def long_tailed_labels(count: int, num_classes: int, ratio: float = IMBALANCE) -> Tensor:
    """Return labels (count,) in the exponential profile; what rounding leaves over goes to the largest class."""
    share = sum(ratio ** (-c / (num_classes - 1)) for c in range(num_classes))
    counts = long_tail_counts(int(count / share), num_classes, ratio)
    counts[0] += count - sum(counts)
    return torch.arange(num_classes).repeat_interleave(torch.tensor(counts))
