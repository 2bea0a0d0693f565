"""The path of LOS: what happens between the warm start and convergence, beside cross-entropy and balanced softmax.

Every classifier starts from stage 1's and takes steps of a constant size; it is measured at step counts that grow
geometrically. L-BFGS on the same images gives the end point. Cross-entropy has none on features that are linearly
separable: its loss goes to 0 and its weights grow without bound.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from datasets.device import epoch_order, mix64, steps_per_epoch
from losses.los import ONE_HOT
from tables.request import Request, write_results
from tables.rows import Laboratory, open_laboratory
from tables.selection import plan_for
from utils.bank import BankSGD, head_bank, loss_bank
from utils.compare import GROUPS
from utils.engine import train_epoch
from utils.errors import UserError
from utils.evaluation import logits_by_way
from utils.execution import device_name
from utils.features import feature_batches
from utils.metrics import classification_report, feature_variance_ratio, logits_magnitude, summarise
from utils.plots import COLOURS
from utils.recipes import Recipe, find_recipe
from utils.retraining import build_losses, start_head
from utils.runs import experiment_name, git_revision

METHODS = ("los", "ce", "balanced_softmax")
LEARNING_RATES = (5e-4, 5e-3, 5e-2)
EPOCHS = 200
LBFGS_STEPS = 1000
LBFGS_GRADIENT = 1e-7


def make_table(request: Request) -> None:
    """Write `results/path_<experiment>[_<stage 1>].*`, a row a method, learning rate and step count."""
    methods = request.methods or list(METHODS)
    for method in methods:
        refuse_constrained(method)
    for seed in request.seeds:
        for ratio in request.ratios():
            flags = request.starting_point(seed, **ratio)
            lab = open_laboratory(flags, __doc__ or "")
            rows = walk(lab, methods) + end_points(lab, methods)
            fit = describe_features(lab)
            table = pd.DataFrame(rows).assign(**fit, **provenance(request, lab))
            name = f"path_{experiment_name(lab.command.settings)}_{lab.checkpoint.sha256[:8]}"
            notes = (
                f"Stage 1 fits {fit['train_accuracy']:.1f} % of its training images; within-class over between-class "
                f"variance of its features {fit['feature_variance_ratio']:.2f}."
            )
            write_results(request, name, table, [short(table)], {"": draw(table)}, notes)


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


def provenance(request: Request, lab: Laboratory) -> dict[str, Any]:
    """Return what made the table."""
    return {
        "seed": lab.bench.seed, "stage1": lab.checkpoint.sha256, "command": request.command,
        "device": device_name(lab.bench.execution.device), "torch": str(torch.__version__),
        "git_revision": git_revision(), "subset_content_sha256": lab.data.subset["content_sha256"],
    }  # fmt: skip


def describe_features(lab: Laboratory) -> dict[str, Any]:
    """Return how well stage 1 fits its training images, and how far their features have collapsed."""
    features, labels = lab.bench.frozen.plain("train"), lab.bench.labels
    with torch.no_grad():
        hits = lab.bench.linear(features).argmax(dim=1) == labels
    return {
        "train_accuracy": 100 * float(hits.double().mean()),
        "feature_variance_ratio": feature_variance_ratio(features, labels),
    }


def measured_epochs() -> list[int]:
    """Return the epochs after which the path is measured: 1, 2, 3, 5, 7, 10, 15, 20, ... and the last."""
    chosen = [1]
    while chosen[-1] < EPOCHS:
        chosen.append(min(EPOCHS, max(chosen[-1] + 1, round(chosen[-1] * 1.4))))
    return sorted({*chosen, 5, 20})


def walk(lab: Laboratory, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Train every method at every learning rate and measure it along the way."""
    bench, rows = lab.bench, []
    steps = steps_per_epoch(len(bench.labels), bench.batch_size)
    for method in methods:
        plan = plan_for(("--method", method), lab)
        heads = [start_head(plan, bench.linear, bench.seed) for _ in LEARNING_RATES]
        bank = head_bank(heads)
        losses = [build_losses(plan, bench.class_counts)[0].to(bench.labels.device) for _ in LEARNING_RATES]
        rates = torch.tensor(LEARNING_RATES, device=bench.labels.device)
        optimizer = BankSGD([p for p in bank.parameters() if p.requires_grad], bench.momentum, torch.zeros_like(rates))
        optimizer.lr = rates
        rows += [row(lab, method, rate, 0, head, losses[0]) for rate, head in zip(LEARNING_RATES, heads, strict=True)]
        for epoch in range(EPOCHS):
            torch.manual_seed(mix64(bench.seed) ^ epoch)
            order = epoch_order(len(bench.labels), bench.draws, epoch).to(bench.labels.device)
            batches = feature_batches(bench.frozen.training_view(epoch), bench.labels, order, bench.batch_size)
            train_epoch(
                bank, batches, steps, optimizer, loss_bank(losses), bench.execution.full_precision(),
                message=f"{method}, epoch {epoch + 1}/{EPOCHS}",
            )  # fmt: skip
            if epoch + 1 in measured_epochs():
                bank.write_back(heads)
                rows += [
                    row(lab, method, rate, (epoch + 1) * steps, head, losses[0])
                    for rate, head in zip(LEARNING_RATES, heads, strict=True)
                ]
        print(f"{method}: {EPOCHS} epochs at {len(LEARNING_RATES)} learning rates", flush=True)
    return rows


def all_views(lab: Laboratory) -> tuple[Tensor, Tensor]:
    """Return the features (V N, d) of all cached views of the training images, and their labels (V N,)."""
    frozen = lab.bench.frozen
    views = 1 if frozen.views == "plain" else int(frozen.views)
    return torch.cat([frozen.training_view(view) for view in range(views)]), lab.bench.labels.repeat(views)


def end_points(lab: Laboratory, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Minimise each method's loss over all cached views with L-BFGS, in float64.

    `end` says how that ended: at a minimum, at the last step allowed, or on the way to infinity, where one-hot labels
    are all met, so that larger weights always lower the loss.
    """
    features, labels = all_views(lab)
    features = features.double()
    rows = []
    for method in methods:
        plan = plan_for(("--method", method), lab)
        head = start_head(plan, lab.bench.linear, lab.bench.seed).double()
        loss = build_losses(plan, lab.bench.class_counts)[0].to(labels.device)
        optimizer = torch.optim.LBFGS(
            head.parameters(), max_iter=LBFGS_STEPS, max_eval=2 * LBFGS_STEPS, tolerance_grad=LBFGS_GRADIENT,
            tolerance_change=0, history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(head: nn.Linear = head, loss: nn.Module = loss, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(head(features), labels)
            value.backward()
            return value

        optimizer.step(closure)
        closure()
        gradient = max(
            float(parameter.grad.abs().max()) for parameter in head.parameters() if parameter.grad is not None
        )
        iterations = optimizer.state[next(iter(head.parameters()))]["n_iter"]
        with torch.no_grad():
            met = bool((head(features).argmax(dim=1) == labels).all())
        end = "converged" if gradient <= 1e-5 else f"stopped after {iterations}"
        if met and plan.target(lab.data.num_classes) == ONE_HOT:
            end = "no minimum: separable"
        measured = row(lab, method, None, None, head.float(), loss)
        rows.append({**measured, "lbfgs_iterations": iterations, "largest_gradient": gradient, "end": end})
        print(
            f"{method}: L-BFGS, {iterations} iterations, loss {measured['training_loss']:.5f}, gradient {gradient:.1e}",
            flush=True,
        )
    return rows


@torch.no_grad()
def row(
    lab: Laboratory, method: str, rate: float | None, steps: int | None, head: nn.Linear, loss: nn.Module
) -> dict[str, Any]:
    """Measure a head: accuracy on test images, loss on the un-augmented training images, LoMa on both."""
    logits_of = lab.logits_of(head)
    logits, labels = logits_by_way(logits_of, lab.data), lab.images["test"].labels
    values: dict[str, Any] = {"method": method, "learning_rate": rate, "steps": steps}
    for way, own in logits.items():
        report = classification_report(own, labels, lab.data.class_counts)
        values |= {f"{way}_{group}": report[group] for group in GROUPS}
    train = logits_of("train")
    values["training_loss"] = float(loss(train, lab.bench.labels))
    values["training_accuracy"] = 100 * float((train.argmax(dim=1) == lab.bench.labels).double().mean())
    for split, own, own_labels in (("train", train, lab.bench.labels), ("test", logits["plain"], labels)):
        summary = summarise(logits_magnitude(own, own_labels)["column"]["loma"])
        values |= {f"{split}_loma": summary["mean"], f"{split}_loma_variation": summary["variation"]}
    return values


def short(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table that people read: a few step counts of every path and its end point."""
    last = table["steps"].max()
    per_epoch = last / EPOCHS
    lines = []
    first = table["learning_rate"].isna() | (table["learning_rate"] == LEARNING_RATES[0])  # one start, not one a rate
    for _, own in table[
        table["steps"].isin([epoch * per_epoch for epoch in (5, 20, EPOCHS)])
        | table["steps"].isna()
        | ((table["steps"] == 0) & first)
    ].iterrows():
        end = f"L-BFGS, {own['end']}"
        lines.append(
            {
                "method": own["method"],
                "learning rate": "-" if pd.isna(own["learning_rate"]) else f"{own['learning_rate']:g}",
                "steps": end
                if pd.isna(own["steps"])
                else f"{own['steps']:.0f} ({own['steps'] / per_epoch:.0f} epochs)",
                "all / many / medium / few": " / ".join(f"{own[f'plain_{group}']:.1f}" for group in GROUPS),
                "training loss": f"{own['training_loss']:.4f}",
                "training accuracy": f"{own['training_accuracy']:.1f}",
                "LoMa, training": f"{own['train_loma']:.2f}",
                "LoMa, test": f"{own['test_loma']:.2f}",
            }
        )
    return pd.DataFrame(lines)


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy by shot over steps x learning rate, a panel a method; the end point at the right border."""
    methods = list(dict.fromkeys(table["method"]))
    figure = Figure(figsize=(4.6 * len(methods), 7.5), layout="constrained")
    upper, lower = figure.subplots(2, len(methods), squeeze=False)
    styles = {rate: style for rate, style in zip(LEARNING_RATES, ("-", "--", ":"), strict=True)}
    for axes, below, method in zip(upper, lower, methods, strict=True):
        own = table[table["method"] == method]
        end = own[own["steps"].isna()].iloc[0]
        for rate, style in styles.items():
            walked = own[(own["learning_rate"] == rate) & (own["steps"] > 0)]
            distance = walked["steps"] * rate
            for group in GROUPS:
                label = group if rate == LEARNING_RATES[0] else None
                axes.plot(distance, walked[f"plain_{group}"], style, color=COLOURS[group], label=label)
            below.plot(distance, walked["train_loma"], style, color="grey", label=f"learning rate {rate:g}")
            below.plot(distance, walked["test_loma"], style, color="tab:blue")
        right = 2 * own["steps"].max() * LEARNING_RATES[-1]
        for group in GROUPS:
            axes.plot([right], [end[f"plain_{group}"]], "*", color=COLOURS[group], markersize=9)
        below.plot([right], [end["train_loma"]], "*", color="grey", markersize=9)
        below.plot([right], [end["test_loma"]], "*", color="tab:blue", markersize=9)
        axes.set(xscale="log", title=method, ylim=(0, 102), ylabel="test accuracy (%), plain")
        below.set(
            xscale="log", xlabel="steps x learning rate (star: L-BFGS)", ylabel="LoMa: training (grey), test (blue)"
        )
    upper[0].legend(fontsize=8)
    lower[0].legend(fontsize=8)
    return figure
