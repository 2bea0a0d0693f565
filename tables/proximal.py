"""Proximal LOS over its weight lambda and the smoothing, beside published LOS, and both on features of other scales.

Where stage 1 held images out, the lambda that does best on them is named: no test image has a part in it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from engine.frozen_features import FrozenFeatures
from engine.many_heads import HeadTrainer, train_heads
from evaluation.measure import evaluate_test
from evaluation.plots import COLOURS
from evaluation.run_rows import GROUPS, csv_row, refuse_mixed
from evaluation.shown_tables import Line, report_tables
from methods.plan import Plan
from models.linear_head import Linear
from settings.command_line import parse_command
from settings.declare import STAGE2
from settings.stage2_plan import plan_of
from tables.request import Request, write_results
from tables.rows import Measured, Row, TableContext, file_name, measure_rows, open_context
from utils.errors import UserError

ANCHORS = tuple(float(f"{value:.2g}") for value in np.logspace(-4.5, 1, 12))
SMOOTHINGS = (0.98, 0.8)
SCALES = (0.1, 1.0, 10.0)
FACTORS = (0.1, 1.0, 10.0)  # of lambda and of the learning rate
SHOWN = (*GROUPS, "harmonic")


def make_table(request: Request) -> None:
    """Write `results/proximal_<experiment>.*`: the grid, and features of other scales."""
    names = ("kind", "smoothing", "anchor")
    rows = [Row(dict(zip(names, label, strict=True)), flags) for label, flags in grid()]
    for ratio in request.ratios():
        measured: list[Measured] = []
        scales: list[dict[str, Any]] = []
        for seed in request.seeds:
            flags = request.starting_point(seed, **ratio)
            context = open_context(flags, __doc__ or "")
            measured += measure_rows(context, flags, rows)
            scales += [{"seed": seed, **row} for row in scale_rows(context, flags)]
        failed = [f"{words(row['label'])}: {row['failure']}." for row in measured if row["failure"]]
        if len(failed) == len(measured):
            raise UserError(f"no row of the table has a number: {' '.join(failed)}")
        found = [row for row in measured if row["metrics"] is not None]
        table = pd.DataFrame([{**row["label"], **csv_row(row["metrics"], row["config"])} for row in found])
        refuse_mixed(table)
        by_row = table.groupby(["kind", "smoothing", "anchor"], sort=False, dropna=False)
        lines = [Line({"method": words(dict(runs.iloc[0]))}, runs) for _, runs in by_row]
        shown = {**report_tables(lines, [("last", "plain")]), "Features of other scales, all in percent": pivot(scales)}
        notes = "\n".join([*failed, *chosen(table)])
        name = file_name("proximal", context)
        write_results(request, name, table, shown, {"": draw(table)}, notes)


def grid() -> list[tuple[tuple[str, float, float], tuple[str, ...]]]:
    """Return ((kind, smoothing, lambda), flags) of each row: stage 1's loss and published LOS first."""
    found: list[tuple[tuple[str, float, float], tuple[str, ...]]] = []
    found.append((("cross-entropy", 0.0, np.nan), ("--method", "ce")))
    for smoothing in SMOOTHINGS:
        flags: tuple[str, ...] = ("--method", "los", "--label_smooth", f"{smoothing:g}")
        found.append((("published LOS", smoothing, np.nan), flags))
    for smoothing in SMOOTHINGS:
        for anchor in ANCHORS:
            flags = ("--method", "proximal_los", "--label_smooth", f"{smoothing:g}", "--anchor", f"{anchor:g}")
            found.append((("proximal LOS", smoothing, anchor), flags))
    return found


def words(label: dict[str, Any]) -> str:
    """Return what a row is of."""
    smoothing = f", s {label['smoothing']:g}" if label["smoothing"] else ""
    anchor = f", lambda {label['anchor']:g}" if label["kind"] == "proximal LOS" else ""
    return f"{label['kind']}{smoothing}{anchor}"


def chosen(table: pd.DataFrame) -> list[str]:
    """Return the lambda of each smoothing that does best on held-out images, where stage 1 held some out."""
    lines = []
    for smoothing, rows in table[table["kind"] == "proximal LOS"].groupby("smoothing", sort=False):
        scores = rows.groupby("anchor")["holdout_class_balanced"].mean()
        if scores.notna().all():
            best = scores.idxmax()
            test = rows[rows["anchor"] == best]["last_plain_all"].mean()
            highest = rows.groupby("anchor")["last_plain_all"].mean().max()
            lines.append(
                f"s {smoothing:g}: lambda {best:g} is best on held-out images ({scores[best]:.1f} %, class-balanced). "
                f"It reaches {test:.1f} % of the test images; the most of the grid is {highest:.1f} %."
            )
    return lines


class ScaledFeatures:
    """Frozen features times a number, in the place of `FrozenFeatures` for a `HeadTrainer`."""

    def __init__(self, frozen: FrozenFeatures, factor: float) -> None:
        self.frozen = frozen
        self.factor = factor
        self.execution, self.seed, self.views = frozen.execution, frozen.seed, frozen.views

    def plain(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the features (N, d) of a split, times the factor."""
        return self.frozen.plain(split, mirrored) * self.factor

    def training_view(self, epoch: int) -> Tensor:
        """Return the features (N, d) that an epoch trains on, times the factor."""
        return self.frozen.training_view(epoch) * self.factor


def scaled(trainer: HeadTrainer, factor: float) -> HeadTrainer:
    """Return what trains on the features times a factor, from the same classifier of them."""
    linear = Linear(trainer.linear)
    with torch.no_grad():
        linear.weight.div_(factor)
    return replace(trainer, frozen=cast(FrozenFeatures, ScaledFeatures(trainer.frozen, factor)), linear=linear)


def scale_rows(context: TableContext, shared: Sequence[str]) -> list[dict[str, Any]]:
    """Return the test accuracies of published and proximal LOS where features, and their one number, are scaled."""
    found = []
    for method, number, usual in (("los", "finetune_lr", 5e-4), ("proximal_los", "anchor", 1e-3)):
        for factor in FACTORS:
            own = ["--method", method, f"--{number}", f"{usual * factor:g}"]
            plan = plan_of(parse_command(STAGE2, "", [*shared, *own]).settings, context.data.num_classes)
            for scale in SCALES:
                accuracies = scaled_accuracies(context, plan, scale)
                found.append({"method": method, "number": f"{number} x {factor:g}", "features": scale, **accuracies})
    return found


def scaled_accuracies(context: TableContext, plan: Plan, scale: float) -> dict[str, Any]:
    """Return all / many / medium / few and the harmonic mean of a classifier that was made on scaled features."""
    (trained,) = train_heads(scaled(context.trainer, scale), [plan])
    if trained.diverged is not None:
        return dict.fromkeys(SHOWN)
    head: nn.Linear = trained.head
    with torch.no_grad():
        head.weight.mul_(scale)  # a classifier of the features as they are
    report = evaluate_test(context.logits_of(head), context.images, context.data)["plain"]
    return {name: report[name] for name in SHOWN}


def pivot(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the accuracies with a column for each scale of the features, the mean over the seeds."""
    means = pd.DataFrame(rows).groupby(["method", "number", "features"], sort=False)["all"].mean().unstack()
    wide = means.rename(columns=lambda scale: f"features x {scale:g}")
    return wide.round(1).astype(object).where(wide.notna(), "diverged").reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy by shot over lambda, a panel a smoothing, with published LOS as dotted lines."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, smoothing in zip(figure.subplots(1, len(SMOOTHINGS), sharey=True), SMOOTHINGS, strict=True):
        rows = table[table["smoothing"] == smoothing]
        path = rows[rows["kind"] == "proximal LOS"].groupby("anchor").mean(numeric_only=True)
        published = rows[rows["kind"] == "published LOS"].mean(numeric_only=True)
        for group in [group for group in GROUPS if f"last_plain_{group}" in path]:
            axes.plot(
                path.index, path[f"last_plain_{group}"], marker="o", markersize=4, color=COLOURS[group], label=group
            )
            if f"last_plain_{group}" in published:
                axes.axhline(published[f"last_plain_{group}"], color=COLOURS[group], linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set(xlabel="lambda", title=f"s = {smoothing:g} (dotted: published LOS)")
    figure.axes[0].set_ylabel("test accuracy (%)")
    figure.axes[0].legend(fontsize=8)
    return figure
