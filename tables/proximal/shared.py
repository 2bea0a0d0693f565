"""What the views of proximal LOS have in common: its problem on a stage 1, reports, paired differences, origins."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.intervals.bootstrap import interval
from evaluation.intervals.comparison import Resampled, Sample
from evaluation.logits_magnitude import summarise
from evaluation.measure import training_fit
from evaluation.metrics import Report, prediction_report
from methods.proximal import Anchored, Pair, Parts
from models.heads import Linear
from runs.run_record import git_revision
from tables.request import Request
from tables.rows import TableContext, data_of
from tables.selection import Flags, plan_for
from utils.device import device_name

SHOWN = ("all", "many", "medium", "few", "harmonic")
PROXIMAL: Flags = ("--method", "proximal_los")


def problem_of(context: TableContext, flags: Flags = ()) -> Anchored:
    """Return the objective of `proximal_los` with these flags more, on the training images of a stage 1."""
    plan, trainer = plan_for((*PROXIMAL, *flags), context), context.trainer
    own: dict[str, Any] = {name: value for name, value in plan.parameters.items() if name not in ("anchor", "fit_on")}
    rows = trainer.frozen.rows_to_fit(trainer.labels, plan.fits_views)
    target = plan.target(trainer.num_classes)
    return Anchored.of(trainer.linear, rows, trainer.class_counts, target, Parts(**own))


def head_of(problem: Anchored, found: Pair) -> nn.Linear:
    """Return a classifier of the standardised features as a head of the features as they are."""
    classes, width = problem.start[0].shape
    head = Linear(nn.Linear(width, classes, device=problem.start[0].device))
    problem.fill(head, found)
    return head


@torch.no_grad()
def report_on(context: TableContext, head: nn.Module) -> tuple[Report, Tensor]:
    """Return the report of a head on the plain test images, and its predictions (N,)."""
    predictions = context.logits_of(head)("test").argmax(dim=1)
    return prediction_report(predictions, context.images["test"].labels, context.data.class_counts), predictions


@torch.no_grad()
def training_loma(context: TableContext, head: nn.Module) -> float:
    """Return the mean over the classes of LoMa on the training images (`evaluation.logits_magnitude`)."""
    return float(summarise(training_fit(context.logits_of(head), context.images).magnitude["column"]["loma"])["mean"])


def paired(first: np.ndarray, second: np.ndarray, context: TableContext) -> dict[str, float]:
    """Return how much more accurate, in points, the first of two classifiers is, with the ends of the 95 % interval of
    the paired difference; each as whether it is right (N,), the test images in the order of their classes."""
    images = torch.bincount(context.images["test"].labels.cpu(), minlength=context.data.num_classes).numpy()
    counts = np.asarray(context.data.class_counts)
    samples = [Sample({"": name}, right[None], images, counts, "") for name, right in (("a", first), ("b", second))]
    made = Resampled(samples)
    value = made.values[("a",)]["all"] - made.values[("b",)]["all"]
    found = interval(value, made.draws[("a",)]["all"] - made.draws[("b",)]["all"])
    return {"difference": found.value, "difference_low": found.low, "difference_high": found.high}


def right_by_class(predictions: Tensor, labels: Tensor) -> np.ndarray:
    """Return whether each image is predicted right, (N,) bool, in the order of their classes."""
    return (predictions == labels).cpu().numpy()[np.argsort(labels.cpu().numpy(), kind="stable")]


def origin(request: Request, context: TableContext) -> dict[str, Any]:
    """Return the last columns of a row: of what data and stage 1 it is, and what made it."""
    return {
        "views": context.command.settings.views,
        "data_sha256": data_of(context),
        "stage1_sha256": context.checkpoint.sha256,
        "command": request.command,
        "device": device_name(context.trainer.execution.device),
        "torch": str(torch.__version__),
        "git_revision": git_revision(),
    }
