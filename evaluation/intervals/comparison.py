"""What the lines of a table may claim: each number with its interval, and paired differences to a reference.

A line is a method or a run with its repeats. All lines that are compared have the same test images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.intervals.bootstrap import DRAWS, Interval, bootstrap, class_accuracies, interval, scores
from evaluation.intervals.correct import unpack_correct
from evaluation.intervals.paired import bootstrap_p, holm, mcnemar
from evaluation.metrics import Report

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("all", "harmonic")
AT = 0.05  # what is told apart: p-values below it, after Holm's correction
AHEAD, BEHIND, UNKNOWN = "ahead", "behind", "not told apart"


@dataclass(frozen=True)
class Sample:
    """What the repeats of a line get right.

    `label` names the line, `correct` (S, N) has a row a repeat, its images in the order of their classes of `images`
    (K,); `class_counts` (K,) are its training images. `test` tells its test images from others.
    """

    label: dict[str, str]
    correct: np.ndarray
    images: np.ndarray
    class_counts: np.ndarray
    test: str

    @property
    def name(self) -> str:
        """The line's label in a sentence."""
        return ", ".join(self.label.values())

    @property
    def key(self) -> tuple[str, ...]:
        """The line's label, to find it by."""
        return tuple(self.label.values())


def sample(
    label: Mapping[str, str], reports: Sequence[Report | None], class_counts: Sequence[int], tests: Sequence[str]
) -> Sample | None:
    """Return the sample of a line from the reports of its repeats (`prediction_report`), its training images and what
    tells the test images of each repeat from others.

    None where a report does not record its images, as those of earlier versions, or where their test images differ.
    """
    if not reports or any(report is None or "correct" not in report for report in reports) or len(set(tests)) > 1:
        return None
    known = [report for report in reports if report is not None]
    rows = [unpack_correct(report["correct"], report["class_images"]) for report in known]
    return Sample(dict(label), np.stack(rows), np.array(known[0]["class_images"]), np.array(class_counts), tests[0])


Draws = dict[str, np.ndarray]


class Resampled:
    """The values and the bootstrap draws of every line, all of the same draws of the test images."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        if len({each.test for each in samples}) > 1:
            raise ValueError("only lines of the same test images have paired draws")
        images = samples[0].images
        correct = np.concatenate([each.correct for each in samples])
        counts = np.concatenate([np.tile(each.class_counts, (len(each.correct), 1)) for each in samples])
        members: dict[str, list[int]] = {}
        for place, each in enumerate(samples):
            start = sum(len(before.correct) for before in samples[:place])
            members[str(place)] = list(range(start, start + len(each.correct)))
        found = bootstrap(correct, images, counts, members, DRAWS)
        self.draws: dict[tuple[str, ...], Draws] = {each.key: found[str(i)] for i, each in enumerate(samples)}
        self.values = {each.key: values_of(each) for each in samples}


def values_of(one: Sample) -> dict[str, float]:
    """Return the scores of a line, the mean over its repeats."""
    found = scores(class_accuracies(one.correct, one.images), one.images, one.class_counts)
    return {name: float(values.mean()) for name, values in found.items()}


def intervals(resampled: Resampled, samples: Sequence[Sample]) -> pd.DataFrame:
    """Return, a row a line and measure, its value and its 95 % interval in percent.

    A harmonic mean is never above the mean: where the classes have equally many test images, so that `all` is that
    mean, its interval ends where that of `all` does at the latest.
    """
    import pandas as pd

    rows = []
    for one in samples:
        values, drawn = resampled.values[one.key], resampled.draws[one.key]
        equal = len(set(one.images[one.images > 0].tolist())) == 1
        highest = interval(values["all"], drawn["all"], within=(0, 100)).high
        for measure in MEASURES:
            top = highest if measure == "harmonic" and equal else 100
            found = interval(values[measure], drawn[measure], within=(0, top))
            if is_guess(measure, one):
                found = Interval(found.value, math.nan, math.nan)
            rows.append({**about(one, measure, None), **found._asdict()})
    return pd.DataFrame(rows)


def differences(resampled: Resampled, samples: Sequence[Sample], reference: Sample) -> pd.DataFrame:
    """Return, a row a line and measure, its difference to a reference in points: 95 % interval, p-value by the
    bootstrap, the same after Holm's correction for the number of lines, and what it comes to.

    `mcnemar_p` is that of McNemar's test, of `all` and lines of one repeat. Numbers without an interval (`is_guess`)
    have no p-value and are not told apart.
    """
    import pandas as pd

    parts = []
    others = [one for one in samples if one.key != reference.key]
    for measure in MEASURES:
        rows: list[dict[str, Any]] = []
        for one in others:
            (value, drawn), (zero, its) = (
                (resampled.values[key][measure], resampled.draws[key][measure]) for key in (one.key, reference.key)
            )
            found = interval(value - zero, drawn - its)
            p = bootstrap_p(value - zero, drawn - its)
            if is_guess(measure, one, reference):
                found, p = Interval(found.value, math.nan, math.nan), math.nan
            single = measure == "all" and len(one.correct) == len(reference.correct) == 1
            rows.append(
                {
                    **about(one, measure, reference),
                    **found._asdict(),
                    "p": p,
                    "mcnemar_p": mcnemar(one.correct[0], reference.correct[0]) if single else None,
                }
            )
        table = pd.DataFrame(rows)
        if rows:
            known = table["p"].notna()
            table.loc[known, "p_holm"] = holm(table.loc[known, "p"].tolist())
            table["verdict"] = [verdict(value, p) for value, p in zip(table["value"], table["p_holm"], strict=True)]
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def about(one: Sample, measure: str, reference: Sample | None) -> dict[str, Any]:
    """Return what a row of numbers is of."""
    made = {"seeds": len(one.correct), "test_images": int(one.images.sum()), "draws": DRAWS}
    return {**one.label, "measure": measure, "reference": reference and reference.name, **made}


def is_guess(measure: str, *lines: Sample) -> bool:
    """Tell whether a measure has no interval: the harmonic mean where a line has a class of which no image is right.

    Of such a class the images say that it is rarely right, and not how rarely, which is what decides.
    """
    return measure == "harmonic" and any(lost_classes(one) for one in lines)


def lost_classes(one: Sample) -> int:
    """Return the number of classes of which a repeat of the line has no image right, the most of any repeat."""
    return int((class_accuracies(one.correct, one.images) == 0).sum(axis=1).max())


def verdict(difference: float, p: float) -> str:
    """Return what a difference comes to: ahead or behind only where it can be told from 0."""
    if math.isnan(p) or p >= AT:
        return UNKNOWN
    return AHEAD if difference > 0 else BEHIND
