"""Several methods on the same features: fitted together, reported on the same test rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from api.arrays import Array, InputError, feature_rows, known_labels, label_row
from api.classifier import RetrainedClassifier, fit_together, in_python, make_classifier, read_rows
from evaluation.intervals.comparison import Resampled, Sample, differences, sample
from evaluation.metrics import Report

METHODS = ("ce", "los", "balanced_softmax", "logit_adjust_posthoc", "cosine_los")
COLUMNS = ("all", "many", "medium", "few", "class_balanced", "harmonic", "worst", "nll", "ece")


@dataclass(frozen=True)
class Comparison:
    """The fitted `classifiers` by name, and the `reports` on the test rows (`RetrainedClassifier.report`)."""

    classifiers: dict[str, RetrainedClassifier]
    reports: dict[str, Report]

    @property
    def table(self) -> pd.DataFrame:
        """A row a method: accuracies in percent, NaN where a group of classes is empty, and `nll` in nats."""
        rows = [[report[column] for column in COLUMNS] for report in self.reports.values()]
        return pd.DataFrame(rows, index=list(self.reports), columns=list(COLUMNS), dtype=float)

    def best(self, measure: str = "class_balanced") -> str:
        """Return the name of the method whose `measure` is largest, or smallest of `nll` and `ece`.

        Chosen on test rows it is too good: give `compare` held-out rows in their place to choose by.
        """
        if measure not in COLUMNS:
            raise InputError(f"unknown measure {measure!r}; known: {', '.join(COLUMNS)}")
        column = self.table[measure]
        if column.isna().all():
            raise InputError(f"no method has a value of {measure!r}: its group of classes is empty")
        return str(column.idxmin() if measure in ("nll", "ece") else column.idxmax())

    def differences(self, reference: str) -> pd.DataFrame:
        """Return the paired differences of all other methods to `reference`, in points.

        A row a method and measure (`all`, `harmonic`): `value`, the ends `low` and `high` of its 95 % interval by the
        bootstrap over the test rows, `p`, `p_holm` and `verdict` (`evaluation.intervals.comparison`). Raises InputError
        for an unknown reference.
        """
        if reference not in self.reports:
            raise InputError(f"unknown method {reference!r}; known: {', '.join(self.reports)}")
        samples: dict[str, Sample] = {}
        for name, report in self.reports.items():
            counts = self.classifiers[name].class_counts_.tolist()
            made = sample({"method": name}, [report], counts, ["the test rows"])
            assert made is not None, "a report of this version records its rows"
            samples[name] = made
        lines = list(samples.values())
        return differences(Resampled(lines), lines, samples[reference])


def compare(
    features: Array,
    labels: Array,
    test_features: Array,
    test_labels: Array,
    methods: Sequence[str] | Mapping[str, RetrainedClassifier] = METHODS,
    *,
    held_out: tuple[Array, Array] | None = None,
    **numbers: Any,
) -> Comparison:
    """Fit methods on features (N, d) with labels (N,) and report on test features (M, d) with labels (M,).

    `methods` are names of `methods.recipes.RECIPES`, or classifiers that are not fitted yet by names of your own;
    `held_out` is that of `RetrainedClassifier.fit`. `numbers`, as of `retrain`, go to every method that is given by its
    name. All start from one linear probe; heads of one kind are trained side by side. Raises InputError for what cannot
    be, before anything is fitted.
    """
    if isinstance(methods, str) or not methods:
        raise InputError("methods must be a list of names, or a dictionary of classifiers, one or more")
    if isinstance(methods, Mapping):
        if numbers:
            raise InputError(f"{next(iter(numbers))}: classifiers that are given have their own numbers")
        made = {name: RetrainedClassifier(**each.get_params()) for name, each in methods.items()}
    else:
        made = {name: make_classifier(name, numbers) for name in methods}
    with in_python():
        rows, classes = read_rows(features, labels, held_out, None)
        tested = feature_rows(test_features, "test_features")
        known_labels(label_row(test_labels, len(tested), "test_labels"), classes, "test_labels")
        fit_together(list(made.values()), rows, classes)
    for each in made.values():
        each._note_columns(features)
    return Comparison(made, {name: each.report(test_features, test_labels) for name, each in made.items()})
