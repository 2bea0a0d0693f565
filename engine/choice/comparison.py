"""`--method auto`: a fixed set of classifiers compared on held-out images, and the best one fitted on all.

Held-out images are those of the run. Features without any, on which no classifier has been trained, are split in
folds (`engine.choice.folds`): in each, a linear probe on the other rows takes the place of stage 1. Every candidate is
a command line of stage 2, fitted in each fold and measured on the rows that it has not seen. An ensemble of two adds
their logits, each divided by its spread over the training rows.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.features import in_memory
from engine.choice.folds import fold_numbers
from engine.frozen_features import FrozenFeatures
from engine.many_heads import HeadTrainer, train_heads
from evaluation.intervals.criteria import CRITERIA, Compared, best_of, compare_classifiers
from evaluation.metrics import fit_temperature
from methods import priors
from methods.linear_probe import fit_probe
from methods.offsets import fit_offsets
from methods.plan import Plan
from models.heads import Cosine, Linear
from models.linear_cosine import LinearCosine, empty_linear_cosine
from models.monotone_norms import MonotoneNorms
from utils.device import Execution
from utils.text import tell

STAGE1 = priors.STAGE1  # the first candidate, which all others are compared with
OFFSETS = "stage 1, offsets fitted on held-out images"
BATCH = 256  # images a step, with rates in proportion: four times those of 64
# Command lines of stage 2 that are tried: rates in the published unit.
TRIED: tuple[tuple[str, ...], ...] = (
    *(("--method", "logit_adjust_posthoc", "--tau", tau) for tau in ("0.5", "1", "1.5")),
    *(("--method", "tau_norm", "--norm_bias", "centre", "--tau", tau) for tau in ("0.5", "0.75", "1", "1.5")),
    ("--method", "tau_norm_centred", "--tau", "0.5"),
    ("--method", "ncm"),
    *(("--method", "ridge", "--anchor", anchor) for anchor in ("0.01", "0.1")),
    *(("--method", "proximal_los", "--anchor", anchor) for anchor in ("0.001", "0.01")),
    *(("--method", "los", "--finetune_lr", rate) for rate in ("0.0005", "0.002", "0.008")),
    *(("--method", "balanced_softmax", "--finetune_lr", rate) for rate in ("0.002", "0.02", "0.2")),
    *(("--method", "cosine_los", "--finetune_lr", rate) for rate in ("0.002", "0.02", "0.2")),
    *(("--method", "samn", "--finetune_lr", rate) for rate in ("0.002", "0.02")),
)
# Pairs of a linear classifier and a cosine one, which err on other images.
PARTNERS = (
    ("--method", "logit_adjust_posthoc", "--tau", "1"),
    ("--method", "proximal_los", "--anchor", "0.001"),
    ("--method", "los", "--finetune_lr", "0.002"),
    ("--method", "balanced_softmax", "--finetune_lr", "0.02"),
)
COSINES = tuple(line for line in TRIED if line[1] == "cosine_los")
FOLDS = 5
FOLD_SIZE = 4e9  # images x features x classes that are fitted at most, so that a comparison takes minutes
SEED = 0
MEMORISED = 99.0  # percent on held-out rows, above which a probe has probably seen them

MakePlan = Callable[[Sequence[str]], Plan]
Pair = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Rows:
    """Stands in for the cached features (N, d) of training images as they are."""

    features: Tensor
    execution: Execution
    seed: int

    def plain(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the features, of whatever split."""
        return self.features

    def training_view(self, epoch: int) -> Tensor:
        """Return the features: there is one view."""
        return self.features

    def held_out(self) -> None:
        """Return nothing: no candidate that is trained here is fitted on held-out images."""
        return None


@dataclass
class Outcomes:
    """What a candidate predicts of the held-out rows seen so far, fold after fold: right or not, and its NLL."""

    correct: list[np.ndarray]
    nll: list[np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """The candidates by name, what each came to, and which won; `rows` are the lines of the table.

    `seconds` is what comparing and fitting the winner took, `cpu_seconds` the same over all cores.
    """

    names: list[str]
    compared: list[Compared]
    criterion: str
    winner: int
    images: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One line a candidate: its scores, its difference to stage 1 with the ends of its interval."""
        return [
            {
                "candidate": name,
                **one.scores,
                "criterion": self.criterion,
                "difference": one.difference,
                "low": one.low,
                "high": one.high,
                "apart_from_best": one.apart,
                "chosen": place == self.winner,
                "held_out_images": self.images,
                "cpu_seconds": self.cpu_seconds,
            }
            for place, (name, one) in enumerate(zip(self.names, self.compared, strict=True))
        ]

    def text(self) -> str:
        """Return the best candidates and what they mean, in lines."""
        sign = -1 if self.criterion == "nll" else 1
        order = sorted(self.rows, key=lambda row: -sign * row[self.criterion])
        best = self.rows[self.winner]
        others = [row for row in order if row["candidate"] not in (STAGE1, best["candidate"])][: 6 - bool(self.winner)]
        shown = [row for row in order if row in (best, *others, self.rows[0])]
        lines = [
            f"{row[self.criterion]:8.2f}  {row['difference']:+6.2f} {ends_text(row['low'], row['high'])}  "
            f"{row['candidate']}"
            for row in shown
        ]
        if self.winner == 0:
            verdict = f"nothing helps: none of {len(self.names) - 1} candidates is better than stage 1, which stays"
        elif best["low"] > 0:
            verdict = f"chosen: {best['candidate']}{self._why(order[0])}"
        else:
            verdict = f"chosen: {best['candidate']}{self._why(order[0])}; not told apart from stage 1 on these images"
        head = f"{CRITERIA[self.criterion]} on {self.images} held-out images, difference to stage 1 with its interval:"
        return "\n".join([head, *lines, verdict])

    def _why(self, first: dict[str, Any]) -> str:
        """Return why the winner is chosen where it is not the `first` of the table."""
        if self.names[self.winner] == first["candidate"]:
            return ""
        return ", of those that are not told apart from the first the one with the least NLL"


def ends_text(low: float, high: float) -> str:
    """Return the ends of an interval as text, NaN as none."""
    return "[-, -]" if math.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"


def choose_classifier(
    trainer: HeadTrainer, held_out: tuple[Tensor, Tensor] | None, make_plan: MakePlan, criterion: str
) -> tuple[LinearCosine, Comparison]:
    """Return the classifier of the candidate that is best on held-out images, fitted on all training images, and the
    comparison.

    `held_out` are the features (M, d) and labels (M,) of held-out images, None to hold training rows out in folds;
    `make_plan` makes the plan of a candidate's flags. The first fold's stage 1 is the trainer's where images are held
    out already.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    features = in_memory(trainer.frozen.plain("train"))
    base = replace(trainer, frozen=rows_of(trainer, features), batch_size=BATCH)
    plans = {line: make_plan(line) for line in TRIED}
    outcomes: dict[str, Outcomes] = {}
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for fold, rows, index in splits(base, held_out):
        heads = fit_all(fold, plans)
        measure_fold(fold, heads, rows, index, outcomes)
        logits.append(logits_of(fold.linear, rows))
        labels.append(index)
        tell(f"compared on {sum(map(len, labels))} held-out images", flush=True)
    seen = torch.cat(labels).cpu().numpy()
    # One that diverged in a fold is left out: its other folds are not all rows.
    whole = {name: own for name, own in outcomes.items() if len(own.correct) == len(labels)}
    correct, nll = (
        np.stack([np.concatenate(getattr(own, name)) for own in whole.values()]) for name in ("correct", "nll")
    )
    compared = compare_classifiers(correct, nll, seen, trainer.num_classes, criterion)
    comparison = Comparison(list(whole), compared, criterion, best_of(compared, criterion), len(seen))
    if held_out is None and compared[0].scores["balanced"] > MEMORISED:
        tell("held-out rows are as easy as those learned from: the features may have been trained on them")
    winner = comparison.names[comparison.winner]
    head = refit(base, plans, winner, torch.cat(logits), torch.cat(labels))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return head, replace(comparison, seconds=seconds, cpu_seconds=cpu_seconds)


def rows_of(trainer: HeadTrainer, features: Tensor) -> FrozenFeatures:
    """Return features (N, d) as those that a trainer trains on."""
    return cast(FrozenFeatures, Rows(features, trainer.execution, trainer.draws))


def splits(base: HeadTrainer, held_out: tuple[Tensor, Tensor] | None) -> list[tuple[HeadTrainer, Tensor, Tensor]]:
    """Return what is fitted, with the features and labels that it is measured on: the images that are held out, or as
    many folds as `FOLD_SIZE` allows."""
    if held_out is not None:
        return [(base, *held_out)]
    features, labels = in_memory(base.frozen.plain("train")), base.labels
    numbers = torch.from_numpy(fold_numbers(labels.cpu().numpy(), FOLDS, SEED)).to(labels.device)
    count = min(max(int(FOLD_SIZE / (features.numel() * base.num_classes)), 1), FOLDS)
    return [one_fold(base, features, numbers == number) for number in range(count)]


def one_fold(base: HeadTrainer, features: Tensor, out: Tensor) -> tuple[HeadTrainer, Tensor, Tensor]:
    """Return the trainer of the rows that stay, from a probe on them, and the rows that are held `out` (N,)."""
    kept, labels = features[~out], base.labels[~out]
    probe = fit_probe(kept, labels, base.num_classes, PROBE_DECAY, PROBE_STEPS, "classifier")
    linear = Linear(base.linear)
    with torch.no_grad():
        linear.weight.copy_(probe.weight)
        linear.bias.copy_(probe.bias)
    counts = torch.bincount(labels, minlength=base.num_classes).tolist()
    fold = replace(base, frozen=rows_of(base, kept), linear=linear, labels=labels, class_counts=counts)
    return fold, features[out], base.labels[out]


PROBE_DECAY = 1e-5  # that of a stage 1 on features
PROBE_STEPS = 200


def fit_all(fold: HeadTrainer, plans: dict[tuple[str, ...], Plan]) -> dict[str, nn.Linear]:
    """Return the heads of a fold by the names of their candidates, stage 1 first."""
    trained = train_heads(fold, list(plans.values()))
    found: dict[str, nn.Linear] = {STAGE1: fold.linear}
    for line, result in zip(plans, trained, strict=True):
        if result.diverged is None:
            found[name_of(line)] = result.head
    return found


def name_of(line: Sequence[str]) -> str:
    """Return what a candidate is called: its method, and its numbers."""
    words = [f"{name.removeprefix('--')} {value}" for name, value in zip(line[2::2], line[3::2], strict=True)]
    return " ".join([line[1], *words])


def pairs(heads: dict[str, nn.Linear]) -> dict[str, tuple[str, str]]:
    """Return the ensembles by name, and their two members, of the heads that there are."""
    members = [(name_of(one), name_of(other)) for one in PARTNERS for other in COSINES]
    return {f"{one} + {other}": (one, other) for one, other in members if one in heads and other in heads}


@torch.no_grad()
def logits_of(head: nn.Module, features: Tensor) -> Tensor:
    """Return the logits (N, K) of features (N, d)."""
    return torch.cat([head(part.float()) for part in features.split(1 << 13)])


@torch.no_grad()
def spread(head: nn.Module, features: Tensor) -> float:
    """Return the root of the mean variance of an image's logits, over features (N, d)."""
    total = sum(float(head(part.float()).double().var(dim=1).sum()) for part in features.split(1 << 13))
    return max((total / len(features)) ** 0.5, 1e-12)


def measure_fold(
    fold: HeadTrainer, heads: dict[str, nn.Linear], rows: Tensor, labels: Tensor, outcomes: dict[str, Outcomes]
) -> None:
    """Add to `outcomes` what every candidate predicts of held-out features (M, d) with their labels (M,)."""
    features = in_memory(fold.frozen.plain("train"))
    found = {name: logits_of(head, rows) for name, head in heads.items()}
    spreads = {name: spread(heads[name], features) for both in pairs(heads).values() for name in both}
    for name, logits in found.items():
        record(outcomes, name, logits, labels)
    record(outcomes, OFFSETS, cross_fitted(found[STAGE1], labels), labels)
    for name, (one, other) in pairs(heads).items():
        record(outcomes, name, found[one] / spreads[one] + found[other] / spreads[other], labels)


def record(outcomes: dict[str, Outcomes], name: str, logits: Tensor, labels: Tensor) -> None:
    """Add what logits (M, K) say of their labels (M,), after a temperature that suits them."""
    own = outcomes.setdefault(name, Outcomes([], []))
    temperature = fit_temperature(logits, labels) or 1.0
    loss = F.cross_entropy(logits.double() / temperature, labels, reduction="none")
    own.correct.append((logits.argmax(dim=1) == labels).cpu().numpy())
    own.nll.append(loss.cpu().numpy())


def class_offsets(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the offsets (K,) that suit held-out logits (M, K), every class that is there weighing the same."""
    counts = torch.bincount(labels, minlength=logits.shape[1]).double()
    weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0) / (counts > 0).sum()
    return fit_offsets(logits.double(), labels, weights, OFFSETS_ANCHOR)


OFFSETS_ANCHOR = 0.01  # that of --method offsets


def cross_fitted(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (M, K) with offsets that are fitted, for each half of the images, on the other half."""
    half = torch.from_numpy(fold_numbers(labels.cpu().numpy(), 2, SEED)).to(labels.device)
    shifted = logits.double()
    for number in (0, 1):
        if bool((half != number).any()):
            found = class_offsets(logits[half != number], labels[half != number])
            shifted[half == number] += found
    return shifted


def refit(
    base: HeadTrainer, plans: dict[tuple[str, ...], Plan], winner: str, logits: Tensor, labels: Tensor
) -> LinearCosine:
    """Return the winner, fitted on all training images; `logits` (M, K) of stage 1 and `labels` (M,) are those of the
    held-out images, on which offsets are fitted."""
    head = empty_linear_cosine(base.linear)
    if winner in (STAGE1, OFFSETS):
        shift = class_offsets(logits, labels) if winner == OFFSETS else 0.0
        head.add_linear(base.linear.weight, base.linear.bias + shift)
        return head
    wanted = [line for line in plans if name_of(line) in winner.split(" + ")]
    members = [result.head for result in train_heads(base, [plans[line] for line in wanted])]
    features = in_memory(base.frozen.plain("train"))
    spreads = [spread(member, features) if len(members) > 1 else 1.0 for member in members]
    for member, width in zip(members, spreads, strict=True):
        put_in(head, member, float(np.prod(spreads)) ** 0.5 / width / len(members))
    return head


@torch.no_grad()
def put_in(head: LinearCosine, member: nn.Linear, share: float) -> None:
    """Add the logits of a linear, a cosine or a monotone-norm head, times `share`, to a head."""
    if isinstance(member, Cosine):
        head.set_cosine(member.weight, share * member.scale)
        return
    assert isinstance(member, Linear)
    rows = member.effective_weight()
    assert rows is not None, "no candidate weighs its rows anew for every image"
    shift = member.monotone(member.shift_raw) if isinstance(member, MonotoneNorms) else 0.0
    head.add_linear(share * rows, share * (member.bias + shift))
