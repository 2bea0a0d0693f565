"""What a known test prior changes on the test images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import FIELD_BOUNDS, ShotBounds
from evaluation.blocks import Rows
from evaluation.metrics import predicted_classes, prediction_report
from evaluation.priors.correction import Prior, corrected_predictions, prior_offsets
from evaluation.priors.shifted import weighted_accuracy
from evaluation.text_tables import MEASURES, measure_table

EXPECTED = "expected"
SHOWN = {EXPECTED: "under the prior", **{name: MEASURES[name] for name in ("all", "many", "medium", "few")}}


def prior_report(
    logits: Mapping[str, Rows],
    labels: Tensor,
    class_counts: np.ndarray,
    source: Prior,
    target: Prior,
    temperature: float = 1.0,
    bounds: ShotBounds = FIELD_BOUNDS,
) -> dict[str, Any]:
    """Return, for each way of testing, the report on the predictions `before` and `after` the prior is put in.

    `logits` (N, K) are by way, with labels (N,); `source` is what the classifier's probabilities stand for, `target`
    what the images follow. `expected` in each report is the accuracy where the classes have the shares of `target`; the
    rest is on the test images as they are.
    """
    offsets = prior_offsets(source, target)
    report: dict[str, Any] = {
        "prior": target.words,
        "shares": target.shares.tolist(),
        "classifier_prior": source.words,
        "classifier_shares": source.shares.tolist(),
        "temperature": temperature,
        "plain": None,
        "flip": None,
    }
    for way, values in logits.items():
        before = predicted_classes(values)
        after = corrected_predictions(values, offsets, temperature)
        report[way] = {
            when: {
                EXPECTED: weighted_accuracy(predictions, labels, target.shares),
                **prediction_report(predictions, labels, class_counts, bounds),
            }
            for when, predictions in (("before", before), ("after", after))
        }
    return report


def prior_text(report: dict[str, Any]) -> str:
    """Return the table of `prior_report`, with what was taken for the classifier's own prior."""
    columns = {
        f"{way}, {when}": report[way][when]
        for way in ("plain", "flip")
        if report[way] is not None
        for when in ("before", "after")
    }
    return (
        f"with the test prior ({report['prior']}):\n{measure_table(columns, SHOWN)}\n"
        f"(the classifier's probabilities are taken to stand for this prior: {report['classifier_prior']}; temperature "
        f"{report['temperature']:.4g}; 'under the prior' weights the classes by it, the other rows by the test images)"
    )


def ruled_out(prior: Prior) -> int:
    """Return how many classes a prior gives the share 0."""
    return int(torch.count_nonzero(prior.shares == 0))
