"""The path of LOS: what happens between the warm start and convergence, beside cross-entropy and balanced softmax.

Every classifier starts from stage 1's and takes steps of a constant size; it is measured at step counts that grow
geometrically. L-BFGS on the same images gives the end point. Cross-entropy has none on features that are linearly
separable: its loss goes to 0 and its weights grow without bound.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from datasets.features import in_memory
from datasets.image_source import steps_per_epoch
from engine.epoch import EpochOptions, train_epoch
from engine.fit import rate_groups
from engine.frozen_features import feature_batches
from engine.stacked_heads import StackedSGD, stack_heads, stack_losses
from evaluation.logits_magnitude import logits_magnitude, summarise
from evaluation.measure import SplitLogits, logits_by_way, training_fit
from evaluation.metrics import classification_report, feature_variance_ratio
from evaluation.text_tables import MEASURES
from losses.los import ONE_HOT
from methods.optimizers import LBFGS
from methods.plan import build_losses, start_head
from methods.recipes import Recipe, find_recipe
from runs.run_record import git_revision
from tables.path_report import claims_of_path, draw, interval_ends, samples_of, short_tables
from tables.request import Request, write_results
from tables.rows import TableContext, data_of, file_name, kept_place, open_context, report_changes
from tables.selection import plan_for
from utils.device import device_name
from utils.errors import UserError
from utils.files import make_folder, read_json, write_json
from utils.hashing import epoch_order
from utils.text import tell

METHODS = ("los", "ce", "balanced_softmax")
LEARNING_RATES = (5e-4, 5e-3, 5e-2)
EPOCHS = 200
LBFGS_STEPS = 600
LBFGS_GRADIENT = 1e-7


def make_table(request: Request) -> None:
    """Write `results/path_<stage 1>.*`, a row a method, learning rate and step count."""
    methods = request.methods or list(METHODS)
    for method in methods:
        refuse_constrained(method)
    if len(request.seeds) > 1:
        raise UserError("path follows classifiers on one stage 1: give one seed")
    for ratio in request.ratios():
        flags = request.starting_point(request.seeds[0], **ratio)
        context = open_context(flags, __doc__ or "")
        rows = [line for method in methods for line in path_of(context, method)]
        fit = describe_features(context)
        correct = [str(row.pop("correct")) for row in rows]
        table = pd.DataFrame(rows).assign(**fit, **provenance(request, context))
        labels, counts = context.images["test"].labels.cpu(), context.data.class_counts
        found = samples_of(table, correct, np.bincount(labels.numpy(), minlength=len(counts)), counts)
        table = pd.concat([table, interval_ends(found)], axis=1)
        notes = (
            f"Stage 1 fits {fit['train_accuracy']:.1f} % of its training images; within-class over between-class "
            f"variance of its features {fit['feature_variance_ratio']:.2f}. Steps of a constant size: the published 20 "
            "epochs at 0.0005 follow a cosine to 0, about half the distance. Objective: the loss over all cached "
            "views, which the steps and L-BFGS minimise."
        )
        name = file_name("path", context, request.seeds, request.methods)
        claims = claims_of_path(table, found)
        write_results(request, name, table, short_tables(table), {"": draw(table)}, notes, claims)


def path_of(context: TableContext, method: str) -> list[dict[str, Any]]:
    """Return the rows of a method, measured now or kept from an earlier start."""
    trainer, settings = context.trainer, context.command.settings
    place = kept_place(
        context,
        f"path_{method}",
        views=settings.views,
        batch_size=trainer.batch_size,
        momentum=trainer.momentum,
        seed=trainer.seed,
        rates=LEARNING_RATES,
        epochs=EPOCHS,
        lbfgs=(LBFGS_STEPS, LBFGS_GRADIENT),
        ends=3,
        **({} if context.unit == 1 else {"unit": context.unit}),
    )
    if place.path.exists():
        kept = read_json(place.path)
        if not isinstance(kept.get("rows"), list) or not all(isinstance(row, dict) for row in kept["rows"]):
            raise UserError(f"{place.path} is damaged; delete it, and the path is measured again")
        return kept["rows"]
    report_changes(place, f"path_{method}")
    made = {
        "device": device_name(trainer.execution.device),
        "torch": str(torch.__version__),
        "git_revision": git_revision(),
    }
    ends = (end_point(context, method, collapsed=False), end_point(context, method, collapsed=True))
    rows = [{**line, **made} for line in (*walk(context, method), *ends)]
    make_folder(place.path.parent)
    write_json(place.path, {"rows": rows, "depends": place.depends})
    return rows


def refuse_constrained(method: str) -> None:
    """Raise UserError for a method that is more than the minimum of a loss: its path would be another one."""
    row, plain = find_recipe(method), Recipe("", "")
    own = [
        name
        for name in ("closed_form", "sampler", "max_norm", "weight_decay", "late_loss", "fresh")
        if getattr(row, name) != getattr(plain, name)
    ]
    if own or row.loss in ("gala", "gcl"):
        reason = ", ".join(own) or "a loss that changes as it is used"
        raise UserError(f"path follows the minimisation of a fixed loss; --methods {method} has {reason}")


def provenance(request: Request, context: TableContext) -> dict[str, Any]:
    """Return what the table was made for; every row says what made it."""
    trainer = context.trainer
    return {
        "seed": trainer.seed,
        "steps_per_epoch": steps_per_epoch(len(trainer.labels), trainer.batch_size),
        "stage1": context.checkpoint.identity,
        "subset_content_sha256": context.data.subset["content_sha256"],
        "data_sha256": data_of(context),
        "command": request.command,
    }


def describe_features(context: TableContext) -> dict[str, Any]:
    """Return how well stage 1 fits its training images, and how far their features have collapsed."""
    return {
        "train_accuracy": training_fit(context.logits_of(context.trainer.linear), context.images).accuracy,
        "feature_variance_ratio": feature_variance_ratio(context.trainer.frozen.plain("train"), context.trainer.labels),
    }


def measured_epochs() -> set[int]:
    """Return the epochs after which the path is measured: close at first, then in steps of about 40 %; 5, 20, last."""
    chosen = [1]
    while chosen[-1] < EPOCHS:
        chosen.append(min(EPOCHS, max(chosen[-1] + 1, round(chosen[-1] * 1.4))))
    return {*chosen, 5, 20}


def walk(context: TableContext, method: str) -> list[dict[str, Any]]:
    """Train a method at every learning rate and measure it along the way, up to the step where it diverges."""
    trainer = context.trainer
    steps = steps_per_epoch(len(trainer.labels), trainer.batch_size)
    plan = plan_for(("--method", method), context)
    heads = [start_head(plan, trainer.linear, trainer.seed, trainer.class_counts) for _ in LEARNING_RATES]
    stacked = stack_heads(heads)
    losses = [build_losses(plan, trainer.class_counts)[0].to(trainer.labels.device) for _ in LEARNING_RATES]
    together = stack_losses(losses)
    rates = torch.tensor(LEARNING_RATES, device=trainer.labels.device)
    optimizer = StackedSGD(rate_groups(stacked, plan.unit), trainer.momentum, torch.zeros_like(rates))
    optimizer.lr = rates
    going = dict(zip(LEARNING_RATES, heads, strict=True))
    rows = [measure_head(context, method, rate, 0, head, losses[0]) for rate, head in going.items()]
    for epoch in range(EPOCHS):
        order = epoch_order(len(trainer.labels), trainer.draws, epoch)
        batches = feature_batches(trainer.frozen.training_view(epoch), trainer.labels, order, trainer.batch_size)
        result = train_epoch(
            stacked,
            batches,
            steps,
            optimizer,
            together,
            trainer.execution.full_precision(),
            EpochOptions(message=f"{method}, epoch {epoch + 1}/{EPOCHS}"),
        )
        for rate, step in zip(LEARNING_RATES, result.diverged_at, strict=True):
            if step and rate in going:
                tell(f"{method} at {rate:g} diverged at step {step} of epoch {epoch + 1}", flush=True)
                del going[rate]
        if epoch + 1 in measured_epochs():
            stacked.write_back(heads)
            walked = (epoch + 1) * steps
            rows += [measure_head(context, method, rate, walked, head, losses[0]) for rate, head in going.items()]
    tell(f"{method}: {EPOCHS} epochs at {len(LEARNING_RATES)} learning rates", flush=True)
    return rows


def all_views(context: TableContext) -> tuple[Tensor, Tensor]:
    """Return the features (V N, d) of all cached views of the training images, and their labels (V N,)."""
    features, labels = context.trainer.frozen.rows_to_fit(context.trainer.labels, views=True)
    return in_memory(features), labels


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Return features (N, d) with every row replaced by the mean of its class: perfectly collapsed ones."""
    classes = int(labels.max()) + 1
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, labels, features)
    return (sums / torch.bincount(labels, minlength=classes)[:, None].clamp(min=1))[labels]


def end_point(context: TableContext, method: str, *, collapsed: bool) -> dict[str, Any]:
    """Minimise a method's loss over all cached views with L-BFGS, in float64; `collapsed`, on their class means.

    On class means every class is fitted alike, whatever its size: what is unbalanced there comes from the test images.

    `end` says how that ended: at a minimum, at the last step allowed, or on the way to infinity, where one-hot labels
    are all met, so that larger weights always lower the loss.
    """
    features, labels = all_views(context)
    features = features.double()
    if collapsed:
        once = len(context.trainer.labels)  # one view stands for all: they have the same means
        features, labels = class_means(features, labels)[:once], labels[:once]
    plan = plan_for(("--method", method), context)
    head = start_head(plan, context.trainer.linear, context.trainer.seed, context.trainer.class_counts).double()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    loss = build_losses(plan, context.trainer.class_counts)[0].to(labels.device)
    optimizer = LBFGS(
        trained,
        max_iter=LBFGS_STEPS,
        max_eval=2 * LBFGS_STEPS,
        tolerance_grad=LBFGS_GRADIENT,
        tolerance_change=0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(head(features), labels)
        value.backward()
        return value

    optimizer.step(closure)
    closure()
    gradient = max(float(parameter.grad.abs().max()) for parameter in trained if parameter.grad is not None)
    iterations = optimizer.state[trained[0]]["n_iter"]
    with torch.no_grad():
        met = bool((head(features).argmax(dim=1) == labels).all())
    end = "converged" if gradient <= LBFGS_GRADIENT else f"stopped after {iterations} iterations"
    if met and plan.target(context.data.num_classes) == ONE_HOT:
        end = "no minimum: separable"
    measured = measure_head(context, method, None, None, head.float(), loss)
    on = " on class means" if collapsed else ""
    tell(f"{method}: L-BFGS{on} {end}, gradient {gradient:.1e}", flush=True)
    if collapsed:
        end = f"on class means, {end}"
    return {**measured, "lbfgs_iterations": iterations, "largest_gradient": gradient, "end": end}


@torch.no_grad()
def measure_head(
    context: TableContext, method: str, rate: float | None, steps: int | None, head: nn.Linear, loss: nn.Module
) -> dict[str, Any]:
    """Measure a head: accuracy on test images; the loss over all cached views, and that on the un-augmented training
    images with the accuracy there; LoMa on training and test images."""
    logits_of = context.logits_of(head)
    logits, labels = logits_by_way(logits_of, context.data), context.images["test"].labels
    values: dict[str, Any] = {"method": method, "learning_rate": rate, "steps": steps}
    for way, own in logits.items():
        report = classification_report(own, labels, context.data.class_counts)
        values |= {f"{way}_{name}": report[name] for name in MEASURES}
        if way == "plain":
            values["correct"] = report["correct"]
    features, labels_of_views = all_views(context)
    views = SplitLogits(lambda split, mirrored: features, head)
    values["objective"] = mean_loss(loss, views.blocks("views"), labels_of_views)
    values["training_loss"] = mean_loss(loss, logits_of.blocks("train"), context.trainer.labels)
    fit = training_fit(logits_of, context.images)
    values["training_accuracy"] = fit.accuracy
    for split, magnitude in (("train", fit.magnitude), ("test", logits_magnitude(logits["plain"], labels))):
        summary = summarise(magnitude["column"]["loma"])
        values |= {f"{split}_loma": summary["mean"], f"{split}_loma_variation": summary["variation"]}
    return values


def mean_loss(loss: nn.Module, blocks: Iterable[tuple[slice, Tensor]], labels: Tensor) -> float:
    """Return the mean over images of a loss that is one, from blocks of logits and the labels (N,) of all rows."""
    return sum(len(logits) * float(loss(logits, labels[rows])) for rows, logits in blocks) / len(labels)
