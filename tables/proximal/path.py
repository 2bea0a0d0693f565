"""Proximal LOS beside the path of LOS: at the same distance from stage 1, at the same LoMa, and at lambda = 1 / time.

SGD as published walks from stage 1's classifier, on the features as they are. Gradient descent on the
standardised features follows the gradient flow; at time t it stands beside the minimum for lambda = 1 / t (Suggala,
Prasad and Ravikumar, "Connecting Optimization and Regularization Paths", NeurIPS 2018; for least squares Ali, Kolter
and Tibshirani, AISTATS 2019).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from engine.many_heads import Trained, train_heads
from evaluation.plots import COLOURS
from evaluation.run_rows import GROUPS
from methods.proximal import Anchored, Pair
from tables.proximal.shared import (
    SHOWN,
    head_of,
    origin,
    paired,
    problem_of,
    report_on,
    right_by_class,
    training_loma,
)
from tables.request import Request, write_results
from tables.rows import TableContext, file_name, open_context
from tables.selection import plan_for

EPOCHS = (1, 2, 3, 5, 8, 12)  # and the last one
TIMES = (10.0, 30.0, 100.0, 300.0, 1000.0)
STEP = 1.0  # of gradient descent; the gradient's Lipschitz constant is at most a half
SEARCH = np.logspace(1.5, -4, 12)  # lambdas between which that of a distance or LoMa is looked for
REFINED = 3  # times the interval that holds it is halved or cut
DISTANCE, LOMA, TIME = "same distance", "same LoMa", "lambda = 1 / t"


def make_table(request: Request) -> None:
    """Write `results/proximal_path_<experiment>.*`: a pair of rows a point, of the path and of proximal LOS."""
    for ratio in request.ratios():
        rows: list[dict[str, Any]] = []
        for seed in request.seeds:
            context = open_context(request.starting_point(seed, **ratio), __doc__ or "")
            rows += [{"seed": seed, **row, **origin(request, context)} for row in Comparison(context).rows()]
        table = pd.DataFrame(rows)
        shown = {
            f"Accuracy of proximal LOS and of the path, {match}": short(table[table["match"] == match])
            for match in (DISTANCE, LOMA, TIME)
        }
        notes = (
            "Differences: proximal LOS less the path, in points, with the 95 % interval of the first seed. Cosine: "
            "between the ways that both have gone from stage 1. Agree: test images of which both say the same."
        )
        write_results(
            request, file_name("proximal_path", context, request.seeds), table, shown, {"": draw(table)}, notes
        )


class Comparison:
    """The path of LOS on one stage 1 and the minima that its points are compared with."""

    def __init__(self, context: TableContext) -> None:
        self.context = context
        self.problem = problem_of(context)
        self.known = [(anchor, found) for anchor, found in self.problem.path(list(SEARCH))]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the row of each point of a path beside the minimum that matches it."""
        for epoch, head in walk(self.context):
            point = self.problem.data.carry_in(head.weight.detach(), head.bias.detach())
            for match, measure in ((DISTANCE, self.problem.moved_by), (LOMA, self.loma)):
                anchor, found = self.matching(measure, measure(point))
                yield self.pair({"match": match, "path": "SGD", "epochs": epoch}, point, anchor, found)
        for time, point in flow(self.problem):
            warm = min(self.known, key=lambda one: abs(math.log(one[0] * time)))[1]
            about = {"match": TIME, "path": "gradient descent", "time": time}
            yield self.pair(about, point, 1 / time, self.problem.solve(1 / time, warm))

    def loma(self, found: Pair) -> float:
        """Return LoMa on the training images."""
        return training_loma(self.context, head_of(self.problem, found))

    def matching(self, measure: Callable[[Pair], float], wanted: float) -> tuple[float, Pair]:
        """Return the lambda, and its minimum, of which a measure that is monotone in lambda is `wanted`; the nearest
        end of the search where there is none."""
        values = [measure(found) for _, found in self.known]
        signs = [value >= wanted for value in values]
        place = next((i for i in range(1, len(signs)) if signs[i] != signs[i - 1]), None)
        if place is None:
            nearest = int(np.argmin([abs(value - wanted) for value in values]))
            return self.known[nearest]
        (high, warm), (low, _) = self.known[place - 1], self.known[place]
        ends = [(math.log(high), values[place - 1]), (math.log(low), values[place])]
        best = (high, warm)
        for _ in range(REFINED):
            (left, above), (right, below) = ends
            middle = left + (right - left) * (wanted - above) / (below - above)
            best = (math.exp(middle), self.problem.solve(math.exp(middle), best[1]))
            value = measure(best[1])
            ends = [(middle, value), ends[1]] if (value >= wanted) == (above >= wanted) else [ends[0], (middle, value)]
        return best

    def pair(self, about: dict[str, Any], point: Pair, anchor: float, found: Pair) -> dict[str, Any]:
        """Return the row of a point of a path and of the minimum beside it."""
        labels = self.context.images["test"].labels
        row: dict[str, Any] = {**about, "anchor": anchor}
        right, said = [], []
        for name, one in (("path", point), ("proximal", found)):
            head = head_of(self.problem, one)
            report, predictions = report_on(self.context, head)
            row |= {f"{name}_{measure}": report[measure] for measure in SHOWN}
            row |= {f"{name}_distance": self.problem.moved_by(one), f"{name}_loma": training_loma(self.context, head)}
            right.append(right_by_class(predictions, labels))
            said.append(predictions)
        row["agree"] = 100 * float((said[0] == said[1]).double().mean())
        row["cosine"] = cosine(self.problem, point, found)
        return {**row, **paired(right[1], right[0], self.context)}


def cosine(problem: Anchored, first: Pair, second: Pair) -> float:
    """Return the cosine between the changes of two classifiers from stage 1's."""
    moved = [torch.cat([(one[0] - problem.start[0]).flatten(), one[1] - problem.start[1]]) for one in (first, second)]
    return float(torch.cosine_similarity(moved[0], moved[1], dim=0))


def walk(context: TableContext) -> list[tuple[int, nn.Linear]]:
    """Return published LOS's classifier after each of `EPOCHS` and after the last one."""
    plan = plan_for(("--method", "los"), context)
    found: list[tuple[int, nn.Linear]] = []

    def after_epoch(epoch: int, trained: Sequence[Trained]) -> None:
        if (epoch in EPOCHS or epoch == plan.epochs) and trained[0].diverged is None:
            found.append((epoch, copy.deepcopy(trained[0].head)))

    train_heads(context.trainer, [plan], after_epoch)
    return found


def flow(problem: Anchored) -> Iterator[tuple[float, Pair]]:
    """Yield (time, classifier) of gradient descent on the loss alone at each of `TIMES`, steps times their size."""
    point = [tensor.clone().requires_grad_() for tensor in problem.start]
    for step in range(1, round(max(TIMES) / STEP) + 1):
        for variable in point:
            variable.grad = None
        for loss in problem.losses(lambda: (point[0], point[1])):
            loss.backward()
        with torch.no_grad():
            for variable in point:
                assert variable.grad is not None
                variable -= STEP * variable.grad
        if step * STEP in TIMES:
            yield step * STEP, (point[0].detach().clone(), point[1].detach().clone())


def short(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table that people read: time, lambda, both accuracies, the ends of their difference."""
    lines = []
    for point, runs in table.groupby("epochs" if table["time"].isna().all() else "time", sort=False):
        first = runs.iloc[0]
        lines.append(
            {
                "path at": f"{point:g} epochs" if pd.isna(first["time"]) else f"t = {point:g}",
                "lambda": f"{runs['anchor'].mean():.2g}",
                "path": f"{runs['path_all'].mean():.1f}",
                "proximal": f"{runs['proximal_all'].mean():.1f}",
                "low": f"{first['difference_low']:+.2f}",
                "high": f"{first['difference_high']:+.2f}",
            }
        )
    return pd.DataFrame(lines)


def draw(table: pd.DataFrame) -> Figure:
    """Draw accuracy by shot over the distance from stage 1, the path as lines and proximal LOS as crosses."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, match in zip(panels, (DISTANCE, TIME), strict=True):
        own = table[table["match"] == match].sort_values("path_distance")
        for group in GROUPS:
            axes.plot(own["path_distance"], own[f"path_{group}"], color=COLOURS[group], label=group)
            axes.plot(own["proximal_distance"], own[f"proximal_{group}"], "x", color=COLOURS[group])
        axes.set(xlabel="distance from stage 1", title=f"{match} (lines: the path, crosses: proximal LOS)")
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(fontsize=8)
    return figure
