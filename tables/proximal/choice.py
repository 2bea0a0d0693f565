"""Which lambda and gap: chosen on held-out images, and what is left of the accuracy then, beside other families.

Held-out images are those that the table's stage 1 kept out; or, with --select, those of other stage 1s, whose choice is
carried over. Where there are neither, halves of the test images stand for them: one chooses, the other reports. Every
family has stage 1 itself among its candidates, so that no choice is below it on the images that choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from evaluation.intervals.bootstrap import interval
from evaluation.intervals.comparison import Resampled, Sample
from tables.proximal.families import FIXED, PATH, PROXIMAL, STAGE1, Families, families_of
from tables.proximal.shared import origin
from tables.request import Request, write_results
from tables.rows import TableContext, file_name, open_context
from tables.selection import refuse_other_recipe, refuse_seen, stage1_recipe
from utils.errors import UserError

ACCURACY, LIKELIHOOD, BALANCE, FIX, MOST = "accuracy", "likelihood", "balance of LoMa", "none: fixed", "most on test"
CRITERIA = (ACCURACY, LIKELIHOOD)
TEMPERATURES = np.geomspace(0.05, 5, 20)
DRAWS = 20  # times the test images are halved
HOLDOUT = 0.2  # share of a class's training images that a stage 1 holds out
BALANCED, LONG_TAILED, OWN, SPLITS = "halves, all classes alike", "halves, long-tailed", "held out", "splits"
Choice = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """What candidates (C) make of images (N): `right` (C, N), `loss` (C, T, N) in nats at each temperature, and the
    labels (N,)."""

    right: np.ndarray
    loss: np.ndarray
    labels: np.ndarray

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return, by criterion, a score (C,) of each candidate for what each image weighs (N,): the accuracy, or the
        log-likelihood at the candidate's best temperature."""
        rows = np.flatnonzero(weights)
        own = weights[rows].astype(np.float32)
        return {ACCURACY: self.right[:, rows] @ own, LIKELIHOOD: -(self.loss[:, :, rows] @ own).min(axis=1)}


def class_weights(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return what each image weighs (N,) where the classes of those in `rows` weigh the same, the others nothing."""
    images = np.bincount(labels[rows])
    weights = np.zeros(len(labels))
    weights[rows] = 1 / (images[labels[rows]] * (images > 0).sum())
    return weights


@torch.no_grad()
def score(context: TableContext, families: Families, split: str) -> Scored:
    """Return what the candidates make of the images of a split."""
    labels = context.images[split].labels
    right = np.empty((len(families.candidates), len(labels)), dtype=np.float32)
    loss = np.empty((len(families.candidates), len(TEMPERATURES), len(labels)), dtype=np.float32)
    for place, candidate in enumerate(families.candidates):
        logits = context.logits_of(candidate.head)(split)
        right[place] = (logits.argmax(dim=1) == labels).cpu().numpy()
        for i, temperature in enumerate(TEMPERATURES):
            cold = logits / float(temperature)
            loss[place, i] = torch.nn.functional.cross_entropy(cold, labels, reduction="none").cpu().numpy()
    return Scored(right, loss, labels.cpu().numpy())


def halves(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return two halves of the rows of each class, drawn anew: places of images."""
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[], []]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        for half in (0, 1):
            parts[half].append(rows[half::2])
    return [np.concatenate(part) for part in parts]


def long_tailed(labels: np.ndarray, rows: np.ndarray, class_counts: np.ndarray, share: float = HOLDOUT) -> np.ndarray:
    """Return of the `rows`, which are in random order, as many of each class as a stage 1 holds out: a `share` of its
    training images, at least one; fewer where there are not as many."""
    wanted = np.maximum(1, np.round(share * class_counts)).astype(int)
    return np.concatenate([rows[labels[rows] == label][: wanted[label]] for label in np.unique(labels[rows])])


def choose(families: Families, scores: dict[str, np.ndarray]) -> dict[tuple[str, str], int]:
    """Return the place of the best candidate of each family by each criterion; of equal ones the nearest to stage 1."""
    chosen = {}
    for family, members in families.members.items():
        for criterion, values in scores.items():
            chosen[family, criterion] = members[int(np.argmax(values[members].round(6)))]
    return chosen


def without_choice(families: Families, test: Scored) -> dict[tuple[str, str], int]:
    """Return the places of the candidates that no held-out image chooses: stage 1, fixed numbers, the first one whose
    LoMa is balanced on the training images, and, as a bound, the one with the highest test accuracy."""
    chosen = {(STAGE1, FIX): 0}
    accuracy = test.right @ class_weights(test.labels, np.arange(len(test.labels)))
    for family, members in families.members.items():
        if family == STAGE1:
            continue
        numbers = [families.candidates[place].number for place in members]
        if family == PATH:
            chosen[family, FIX] = members[-1]
        elif FIXED.get(family) in numbers:
            chosen[family, FIX] = members[numbers.index(FIXED[family])]
        if family in (PROXIMAL, PATH):
            usual = [place for place in members if family == PATH or "gap 1.11" in families.candidates[place].number]
            balanced = [place for place in usual if families.candidates[place].balanced]
            chosen[family, BALANCE] = balanced[0] if balanced else usual[-1]
        chosen[family, MOST] = members[int(np.argmax(accuracy[members]))]
    return chosen


class Outcome:
    """How often each test image is predicted right by what was chosen, over the draws, and which numbers these were."""

    def __init__(self, families: Families, test: Scored) -> None:
        self.families, self.test = families, test
        self.right: dict[tuple[str, str], np.ndarray] = {}
        self.numbers: dict[tuple[str, str], list[str]] = {}

    def add(self, chosen: dict[tuple[str, str], int], rows: np.ndarray, times: int = 1) -> None:
        """Add a choice, of `times` of such, that reports on the test images `rows`."""
        for key, place in chosen.items():
            right = self.right.setdefault(key, np.zeros(len(self.test.labels)))
            right[rows] += self.test.right[place][rows] / times
            self.numbers.setdefault(key, []).append(self.families.candidates[place].number)

    def rows(self, class_counts: np.ndarray, images: str) -> list[dict[str, Any]]:
        """Return a row a family and criterion: accuracies, and paired differences with the ends of their 95 % intervals
        over the test images, the choices given: to stage 1, to published LOS, and to LOS stopped by that criterion."""
        order = np.argsort(self.test.labels, kind="stable")
        counts = np.bincount(self.test.labels, minlength=len(class_counts))
        samples = {
            key: Sample({"family": key[0], "criterion": key[1]}, right[order][None], counts, class_counts, "")
            for key, right in self.right.items()
        }
        made = Resampled(list(samples.values()))
        found = []
        for key, one in samples.items():
            values = made.values[one.key]
            row: Choice = {"family": key[0], "criterion": key[1], "images": images, "number": most(self.numbers[key])}
            row |= {"distinct_numbers": len(set(self.numbers[key])), **values}
            references = {"stage1": (STAGE1, FIX), "published": (PATH, FIX), "stopped": (PATH, key[1])}
            for name, other in references.items():
                if other not in samples:
                    continue
                zero = samples[other].key
                of = interval(
                    values["all"] - made.values[zero]["all"], made.draws[one.key]["all"] - made.draws[zero]["all"]
                )
                row |= {f"to_{name}": of.value, f"to_{name}_low": of.low, f"to_{name}_high": of.high}
            found.append(row)
        return found


def most(numbers: Sequence[str]) -> str:
    """Return what was chosen most often, of equal ones the first."""
    return max(dict.fromkeys(numbers), key=numbers.count)


def choices_of(context: TableContext, splits: Sequence[TableContext]) -> list[dict[str, Any]]:
    """Return the rows of a stage 1: chosen on its own held-out images, on those of `splits`, or on test halves."""
    families = families_of(context)
    test = score(context, families, "test")
    counts, everything = np.asarray(context.data.class_counts), np.arange(len(test.labels))
    fixed = without_choice(families, test)
    if splits or len(context.data.holdout):
        totals: dict[str, np.ndarray] = {}
        for split in splits or [context]:
            own = families if split is context else families_of(split)
            refuse_other_candidates(own, families, split)
            held_out = score(split, own, "holdout")
            scores = held_out.scores(class_weights(held_out.labels, np.arange(len(held_out.labels))))
            totals = {name: totals.get(name, 0) + values for name, values in scores.items()}
        outcome = Outcome(families, test)
        outcome.add({**fixed, **choose(families, totals)}, everything)
        return outcome.rows(counts, SPLITS if splits else OWN)
    rows = []
    for images in (BALANCED, LONG_TAILED):
        outcome = Outcome(families, test)
        for draw in range(DRAWS):
            parts = halves(test.labels, draw)
            for choosing, reporting in (parts, parts[::-1]):
                chosen_on = choosing if images == BALANCED else long_tailed(test.labels, choosing, counts)
                chosen = choose(families, test.scores(class_weights(test.labels, chosen_on)))
                outcome.add({**fixed, **chosen}, reporting, DRAWS)
        rows += outcome.rows(counts, images)
    return rows


def refuse_other_candidates(own: Families, families: Families, split: TableContext) -> None:
    """Raise UserError where a split has other candidates than the stage 1 that its choice is for: one diverged."""
    if [one.number for one in own.candidates] != [one.number for one in families.candidates]:
        raise UserError(
            f"LOS diverged on {split.checkpoint.path} or on the table's stage 1: they have other candidates"
        )


def make_table(request: Request) -> None:
    """Write `results/proximal_choice_<experiment>.*`."""
    if len(request.seeds) > 1:
        raise UserError("the view choice is of one stage 1: give one seed")
    for ratio in request.ratios():
        context = open_context(request.starting_point(request.seeds[0], **ratio), __doc__ or "")
        splits: list[TableContext] = []
        if request.select:
            splits = [open_context(flags, "") for flags in request.splits(**stage1_recipe(context))]
            for split in splits:
                refuse_seen(split)
                refuse_other_recipe(split, context)
        made = {"seed": request.seeds[0], "draws": DRAWS, **origin(request, context)}
        table = pd.DataFrame([{**row, **made} for row in choices_of(context, splits)])
        shown = {}
        for images, rows in table.groupby("images", sort=False):
            shown[f"Chosen on: {images}"] = accuracies(rows)
            for name, words in REFERENCES.items():
                shown[f"Accuracy, difference to {words} in points, chosen on: {images}"] = differences(rows, name)
        write_results(
            request, file_name("proximal_choice", context, request.seeds), table, shown, {"": draw(table)}, NOTES
        )


REFERENCES = {"stage1": "stage 1", "published": "published LOS", "stopped": "LOS stopped by the same criterion"}
NOTES = (
    "Accuracy and likelihood are those of the images that choose, every class weighing the same, the likelihood at "
    "each candidate's best temperature. Balance of LoMa: the first candidate from stage 1 on whose LoMa on training "
    "images does not grow with the class. Most on test: a bound, chosen on all test images. Halves: of 20 draws, "
    "either half chooses for the other; long-tailed, as many of a class as a fifth of its training images, at least "
    "one. Intervals: over the test images, the choices given. The number is the one chosen most often."
)


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table that people read: the number that was chosen most often, and what the choice reaches."""
    names = ("all", "few", "harmonic")
    return pd.DataFrame(
        {
            **{name: row[name] for name in ("family", "criterion", "number")},
            **{name: "-" if pd.isna(row[name]) else f"{row[name]:.1f}" for name in names},
        }
        for row in rows.to_dict("records")
    )


def differences(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the differences to a reference with the ends of their intervals."""
    columns = {"difference": f"to_{name}", "low": f"to_{name}_low", "high": f"to_{name}_high"}
    return pd.DataFrame(
        {
            **{label: row[label] for label in ("family", "criterion")},
            **{title: f"{row[column]:+.2f}" for title, column in columns.items()},
        }
        for row in rows[rows[f"to_{name}"].notna()].to_dict("records")
    )


def draw(table: pd.DataFrame) -> Figure:
    """Draw the accuracy of each family, a mark a criterion, a panel a kind of held-out images."""
    kinds = list(dict.fromkeys(table["images"]))
    figure = Figure(figsize=(6 * len(kinds), 4.4), layout="constrained")
    for axes, images in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        own = table[table["images"] == images]
        families = list(dict.fromkeys(own["family"]))
        for criterion, rows in own.groupby("criterion", sort=False):
            axes.plot(rows["all"], [families.index(family) for family in rows["family"]], "o", label=criterion)
        axes.set_yticks(range(len(families)), families)
        axes.set(xlabel="test accuracy (%)", title=f"chosen on: {images}")
    figure.axes[0].legend(fontsize=8)
    return figure
