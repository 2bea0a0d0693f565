"""What the result depends on beside the data: published and proximal LOS on features of other scales, with their one
number times 0.1, 1 and 10, and proximal LOS by other solvers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from datasets.features import in_memory
from engine.frozen_features import FrozenFeatures
from engine.many_heads import HeadTrainer, train_heads
from evaluation.measure import evaluate_test
from evaluation.run_rows import GROUPS, mean_cell
from methods.plan import Plan
from methods.proximal import Anchored, Pair
from models.heads import Linear
from settings.command_line import parse_command
from settings.declare import STAGE2
from settings.stage2_plan import plan_of
from tables.proximal.shared import origin, problem_of
from tables.request import Request, write_results
from tables.rows import TableContext, file_name, open_context

SCALES = (0.1, 1.0, 10.0)
FACTORS = (0.1, 1.0, 10.0)  # of lambda and of the learning rate
ANCHOR = 1e-3
GRADIENT_STEPS = 3000  # of the accelerated gradient method at most
NEAR = 1e-6  # the largest entry of the gradient at which it stops
SHOWN = (*GROUPS, "harmonic")


def make_table(request: Request) -> None:
    """Write `results/proximal_sensitivity_<experiment>.*`."""
    for ratio in request.ratios():
        rows: list[dict[str, Any]] = []
        for seed in request.seeds:
            flags = request.starting_point(seed, **ratio)
            context = open_context(flags, __doc__ or "")
            made = {"seed": seed, **origin(request, context)}
            rows += [{**row, **made} for row in (*scale_rows(context, flags), *solver_rows(context))]
        table = pd.DataFrame(rows)
        shown = {"Features of other scales, all in percent": pivot(table), "Solvers of one problem": solvers(table)}
        write_results(
            request,
            file_name("proximal_sensitivity", context, request.seeds),
            table,
            shown,
            {"": draw(table)},
            ranges(table),
        )


class ScaledFeatures:
    """Frozen features times a number, in the place of `FrozenFeatures` for a `HeadTrainer`."""

    def __init__(self, frozen: FrozenFeatures, factor: float) -> None:
        self.frozen = frozen
        self.factor = factor
        self.execution, self.seed, self.views = frozen.execution, frozen.seed, frozen.views

    def plain(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the features (N, d) of a split, times the factor."""
        return in_memory(self.frozen.plain(split, mirrored)).float() * self.factor

    def training_view(self, epoch: int) -> Tensor:
        """Return the features (N, d) that an epoch trains on, times the factor."""
        return in_memory(self.frozen.training_view(epoch)).float() * self.factor

    def rows_to_fit(self, labels: Tensor, views: bool) -> tuple[Tensor, Tensor]:
        """Return the features (M, d) that a computed classifier is fitted on, times the factor, and labels (M,)."""
        features, own = self.frozen.rows_to_fit(labels, views)
        return in_memory(features).float() * self.factor, own


def scaled(trainer: HeadTrainer, factor: float) -> HeadTrainer:
    """Return what trains on the features times a factor, from the same classifier of them."""
    linear = Linear(trainer.linear)
    with torch.no_grad():
        linear.weight.div_(factor)
    return replace(trainer, frozen=cast(FrozenFeatures, ScaledFeatures(trainer.frozen, factor)), linear=linear)


def scale_rows(context: TableContext, shared: Sequence[str]) -> list[dict[str, Any]]:
    """Return the test accuracies of published and proximal LOS where features, and their one number, are scaled."""
    found = []
    for method, number, usual in (("los", "finetune_lr", 5e-4), ("proximal_los", "anchor", ANCHOR)):
        for factor in FACTORS:
            own = ["--method", method, f"--{number}", f"{usual * factor:g}"]
            plan = plan_of(parse_command(STAGE2, "", [*shared, *own], quiet=True).settings, context.data.num_classes)
            for scale in SCALES:
                about = {"kind": "scale", "method": method, "number": f"{number} x {factor:g}", "features": scale}
                found.append({**about, **scaled_accuracies(context, plan, scale)})
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


def from_zero(problem: Anchored, anchor: float) -> Pair:
    """Return what L-BFGS finds when it starts at a classifier of zeros."""
    return problem.solve(anchor, (torch.zeros_like(problem.start[0]), torch.zeros_like(problem.start[1])))


def accelerated(problem: Anchored, anchor: float) -> Pair:
    """Return what Nesterov's accelerated gradient method for strongly convex functions finds (Nesterov, "Introductory
    Lectures on Convex Optimization", 2004, scheme 2.2.11), from stage 1's classifier.

    The gradient's Lipschitz constant is at most lambda + max_k importance_k / 2 * (largest eigenvalue of the second
    moments of the features with a 1 appended), and that eigenvalue at most 1.
    """
    bound = anchor + 0.5 * float(problem.importance.max())
    momentum = (bound**0.5 - anchor**0.5) / (bound**0.5 + anchor**0.5)
    current = [tensor.clone() for tensor in problem.start]
    ahead = [tensor.clone().requires_grad_() for tensor in problem.start]
    for _ in range(GRADIENT_STEPS):
        for variable in ahead:
            variable.grad = None
        for loss in problem.losses(lambda: (ahead[0], ahead[1])):
            loss.backward()
        with torch.no_grad():
            largest = 0.0
            for place, (variable, start) in enumerate(zip(ahead, problem.start, strict=True)):
                assert variable.grad is not None
                gradient = variable.grad + anchor * (variable - start)
                largest = max(largest, float(gradient.abs().max()))
                step = variable - gradient / bound
                variable.copy_(step + momentum * (step - current[place]))
                current[place] = step
        if largest < NEAR:
            break
    return current[0], current[1]


SOLVERS: dict[str, Callable[[Anchored, float], Pair]] = {
    "L-BFGS from stage 1": lambda problem, anchor: problem.solve(anchor),
    "L-BFGS from zero": from_zero,
    "accelerated gradient": accelerated,
}


def solver_rows(context: TableContext) -> list[dict[str, Any]]:
    """Return the test accuracies of proximal LOS by each solver, and how far its logits on the test images are from the
    first one's at most."""
    problem, found, first = problem_of(context), [], None
    for name, solve in SOLVERS.items():
        head = Linear(context.trainer.linear)
        problem.fill(head, solve(problem, ANCHOR))
        logits_of = context.logits_of(head)
        logits = logits_of("test")
        first = logits if first is None else first
        report = evaluate_test(logits_of, context.images, context.data)["plain"]
        about = {"kind": "solver", "method": "proximal_los", "number": name, "features": 1.0}
        away = float((logits - first).abs().max())
        found.append({**about, **{measure: report[measure] for measure in SHOWN}, "largest_difference": away})
    return found


def pivot(table: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracies with a column for each scale of the features, the mean over the seeds."""
    rows = table[table["kind"] == "scale"]
    means = rows.groupby(["method", "number", "features"], sort=False)["all"].mean().unstack()
    wide = means.rename(columns=lambda scale: f"features x {scale:g}")
    return wide.round(1).astype(object).where(wide.notna(), "diverged").reset_index()


def solvers(table: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracies by each solver, and how far the logits are apart."""
    rows = table[table["kind"] == "solver"]
    return pd.DataFrame(
        {
            "solver": name,
            "all": mean_cell(runs["all"], 2),
            "few": mean_cell(runs["few"], 2),
            "harmonic": mean_cell(runs["harmonic"], 2),
            "logits apart by": f"{runs['largest_difference'].max():.1e}",
        }
        for name, runs in rows.groupby("number", sort=False)
    )


def ranges(table: pd.DataFrame) -> str:
    """Return in a line a method the lowest and the highest accuracy of the grid."""
    lines = []
    for method, rows in table[table["kind"] == "scale"].groupby("method", sort=False):
        means = rows.groupby(["number", "features"])["all"].mean()
        lines.append(f"{method}: {means.min():.1f} to {means.max():.1f} over the grid.")
    return "\n".join(lines)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the accuracy over the scale of the features, a line a number, a panel a method."""
    rows = table[table["kind"] == "scale"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (method, own) in zip(panels, rows.groupby("method", sort=False), strict=True):
        for number, runs in own.groupby("number", sort=False):
            means = runs.groupby("features")["all"].mean()
            axes.plot(means.index, means, marker="o", markersize=4, label=number)
        axes.set(xscale="log", xlabel="features times", title=method)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("test accuracy (%)")
    return figure
