"""How often the true class is in the prediction set, and how large the sets are: over all images and by shot."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import FIELD_BOUNDS, ShotBounds
from evaluation.blocks import Rows, row_blocks
from evaluation.metrics import SHOTS, Report, shot_groups
from evaluation.prediction_sets.kinds import KINDS
from evaluation.prediction_sets.record import HeldOut
from evaluation.prediction_sets.thresholds import class_thresholds, have, without_threshold
from evaluation.priors.correction import Prior
from evaluation.text_tables import to_text
from utils.text import counted


@torch.no_grad()
def in_sets(logits: Tensor, thresholds: np.ndarray, temperature: float) -> Tensor:
    """Return which classes are in the set of each image, (N, K) bool, by softmax(z / T) of logits z and the thresholds
    (K,). A class of the threshold 0 is in every set."""
    probability = (logits.double() / temperature).softmax(dim=1).float()
    limit = torch.from_numpy(thresholds).to(logits.device, torch.float32)
    return probability >= limit


def set_report(
    logits: Rows,
    labels: Tensor,
    class_counts: np.ndarray,
    thresholds: np.ndarray,
    temperature: float,
    bounds: ShotBounds = FIELD_BOUNDS,
) -> Report:
    """Return `coverage` in percent and mean `size` of the sets of images with logits (N, K) and labels (N,).

    Each has `all` over the images, `many`, `medium` and `few` over the classes of a group (None where it is empty, or
    has no image), and `per_class`. `empty` is the share of the images without any class, in percent.
    """
    labels = labels.to(logits.device)
    covered, size = torch.empty(len(labels)), torch.empty(len(labels))
    for rows in row_blocks(logits):
        members = in_sets(logits[rows], thresholds, temperature)
        covered[rows] = members.gather(1, labels[rows, None])[:, 0].float().cpu()
        size[rows] = members.sum(dim=1).float().cpu()
    labels = labels.cpu()
    return {
        "coverage": by_group(100 * covered, labels, class_counts, bounds),
        "size": by_group(size, labels, class_counts, bounds),
        "empty": 100 * float((size == 0).double().mean()),
    }


def by_group(
    values: Tensor, labels: Tensor, class_counts: np.ndarray, bounds: ShotBounds = FIELD_BOUNDS
) -> dict[str, Any]:
    """Return the mean of values (N,) of images with labels (N,): over all, the groups, and each class."""
    images = torch.bincount(labels, minlength=len(class_counts)).double()
    sums = torch.zeros_like(images).index_add_(0, labels, values.double())
    means = torch.where(images > 0, sums / images, torch.nan).numpy()
    found: dict[str, Any] = {"all": float(values.double().mean())}
    for name, members in shot_groups(class_counts, bounds).items():
        known = means[members & ~np.isnan(means)]
        found[name] = float(known.mean()) if len(known) else None
    return {**found, "per_class": [None if np.isnan(value) else float(value) for value in means]}


def sets_report(
    logits: Rows,
    labels: Tensor,
    class_counts: np.ndarray,
    held_out: HeldOut,
    coverage: float,
    prior: Prior | None = None,
    bounds: ShotBounds = FIELD_BOUNDS,
) -> dict[str, Any]:
    """Return the `set_report` of every kind of threshold, for images that follow the `prior` where it is known, and
    what the thresholds are from."""
    own, classes = held_out, len(class_counts)
    report: dict[str, Any] = {
        "asked": 100 * coverage,
        "held_out_images": len(own.labels),
        "classes_in_every_set": without_threshold(own.labels, classes, coverage),
        "temperature": own.temperature,
        "prior": None if prior is None else prior.words,
    }
    shares = None if prior is None else prior.shares.numpy()
    for kind in KINDS:
        limits = class_thresholds(own.probabilities, own.labels, classes, coverage, kind, shares)
        report[kind] = set_report(logits, labels, class_counts, limits, own.temperature, bounds)
    return report


def sets_text(report: dict[str, Any]) -> str:
    """Return the table of `sets_report`, with what has to be known to read it."""
    rows = [
        {"": f"{words}, {group}", **{kind: report[kind][measure][group] for kind in KINDS}}
        for measure, words in (("coverage", "covered"), ("size", "size"))
        for group in ("all", *SHOTS)
    ]
    always = report["classes_in_every_set"]
    few = f"; {have(always)} too few of them for an own threshold: in every classwise set" if always else ""
    holds = "whose classes are as frequent as theirs" if report["prior"] is None else "that follow the test prior"
    return (
        f"prediction sets, coverage {report['asked']:g} % asked, plain test images:\n{to_text(rows)}\n"
        f"(thresholds from {counted(report['held_out_images'], 'held-out image')} at temperature "
        f"{report['temperature']:.4g}; "
        f"marginal holds for images {holds}, classwise for each class{few})"
    )
