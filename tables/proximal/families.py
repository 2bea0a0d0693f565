"""Families of classifiers on one stage 1 among which a held-out choice is made: each a number or two, stage 1 first."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from engine.many_heads import Trained, train_heads
from evaluation.measure import training_fit
from losses.los import smoothing_for_gap
from tables.proximal.shared import head_of, problem_of
from tables.rows import TableContext
from tables.selection import Flags, plan_for

GAPS = (0.5, 1.11, 2.0, 3.26, 5.0)  # 1.11 and 3.26 are s = 0.98 and s = 0.8 of 100 classes
USUAL_GAP = 1.11
ANCHORS = tuple(float(f"{value:.2g}") for value in np.logspace(0, -4.5, 10))
SMALL_ANCHORS = tuple(float(f"{value:.2g}") for value in np.logspace(-2, -6, 9))
TAUS = tuple(0.125 * i for i in range(1, 21))
STAGE1, PROXIMAL, PATH = "stage 1", "proximal LOS", "LOS, path"
FIXED = {PROXIMAL: f"lambda 0.001, gap {USUAL_GAP:g}"}  # of the path it is the last epoch


@dataclass(frozen=True)
class Candidate:
    """A classifier and its numbers in words. `balanced`: whether LoMa on its training images does not grow with the
    size of the class."""

    number: str
    head: nn.Module
    balanced: bool


@dataclass(frozen=True)
class Families:
    """All candidates, stage 1 the first, and the places of those of each family, from stage 1 outwards."""

    candidates: list[Candidate] = field(default_factory=list)
    members: dict[str, list[int]] = field(default_factory=dict)

    def add(self, family: str, context: TableContext, found: Iterator[tuple[str, nn.Module]]) -> None:
        """Add the candidates of a family."""
        places = self.members.setdefault(family, [0])
        for number, head in found:
            places.append(len(self.candidates))
            self.candidates.append(Candidate(number, head, is_balanced(context, head)))


@torch.no_grad()
def is_balanced(context: TableContext, head: nn.Module) -> bool:
    """Tell whether LoMa on the training images does not grow with the class: no positive slope over log n."""
    loma = training_fit(context.logits_of(head), context.images).magnitude["column"]["loma"]
    size = np.log(np.asarray(context.data.class_counts, dtype=float))
    known = np.array([value is not None for value in loma])
    values = np.array([value for value in loma if value is not None], dtype=float)
    return bool(((size[known] - size[known].mean()) * values).sum() <= 0)


def families_of(context: TableContext) -> Families:
    """Return all families on a stage 1."""
    linear = copy.deepcopy(context.trainer.linear)
    found = Families([Candidate(STAGE1, linear, is_balanced(context, linear))], {STAGE1: [0]})
    classes = context.data.num_classes
    for gap in GAPS:
        flags = ("--label_smooth", f"{smoothing_for_gap(gap, classes):.12g}")
        found.add(PROXIMAL, context, anchored(context, flags, ANCHORS, f", gap {gap:g}"))
    usual = ("--label_smooth", f"{smoothing_for_gap(USUAL_GAP, classes):.12g}")
    found.add(
        "proximal LOS, start half adjusted", context, anchored(context, (*usual, "--start_tau", "0.5"), ANCHORS, "")
    )
    one_hot = ("--label_smooth", "0", "--tau", "1")
    found.add("balanced softmax, anchored", context, anchored(context, one_hot, SMALL_ANCHORS, ""))
    found.add(PATH, context, path_heads(context))
    for method, words in (
        ("tau_norm", "tau-norm"),
        ("tau_norm_centred", "tau-norm, centred"),
        ("logit_adjust_posthoc", "logit adjustment, post hoc"),
    ):
        found.add(words, context, computed(context, method))
    return found


def anchored(
    context: TableContext, flags: Flags, anchors: Sequence[float], words: str
) -> Iterator[tuple[str, nn.Module]]:
    """Yield proximal LOS with some flags over lambda, from the largest on, each solution started at the one before."""
    problem = problem_of(context, flags)
    for anchor, found in problem.path(anchors):
        yield f"lambda {anchor:g}{words}", head_of(problem, found)


def path_heads(context: TableContext) -> Iterator[tuple[str, nn.Module]]:
    """Yield published LOS after each of its epochs."""
    found: list[tuple[str, nn.Module]] = []

    def after_epoch(epoch: int, trained: Sequence[Trained]) -> None:
        if trained[0].diverged is None:
            found.append((f"epoch {epoch}", copy.deepcopy(trained[0].head)))

    train_heads(context.trainer, [plan_for(("--method", "los"), context)], after_epoch)
    yield from found


def computed(context: TableContext, method: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield a computed classifier for each tau."""
    plans = [plan_for(("--method", method, "--tau", f"{tau:g}"), context) for tau in TAUS]
    for tau, made in zip(TAUS, train_heads(context.trainer, plans), strict=True):
        yield f"tau {tau:g}", made.head
