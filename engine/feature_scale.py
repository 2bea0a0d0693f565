"""Steps that suit features of any scale.

A published learning rate is made for features of a certain length: what a step changes in the logits grows with their
squared norm. So a classifier is trained as if the features (N, d) were divided by one number, their `unit`, after which
their mean squared norm is `REFERENCE_NORM`. No feature is touched: for SGD the same comes out of other steps
(`engine.fit.rate_groups`). Weights, which are per unit of a feature, move at rate / unit^2 and decay unit^2 times as
fast; biases and scales, which know no unit, at the rate itself. Features times any number give the same logits.
"""

from datasets.features import Features
from evaluation.blocks import row_blocks

REFERENCE_NORM = 100.0  # mean squared norm of the features that the published rates are for, in round numbers
FEATURES, PUBLISHED = "features", "published"  # the values of --rate_scale


def mean_squared_norm(features: Features) -> float:
    """Return the mean over the rows of features (N, d) of their squared norm, in double precision."""
    return sum(float(features[rows].double().square().sum()) for rows in row_blocks(features)) / len(features)


def feature_unit(features: Features, rate_scale: str) -> float:
    """Return the number that features (N, d) divided by have the norm of published rates; 1 for `rate_scale` published,
    and for features that are all 0."""
    norm = mean_squared_norm(features) if rate_scale == FEATURES else 0.0
    return (norm / REFERENCE_NORM) ** 0.5 if norm > 0 else 1.0


def unit_line(unit: float, rate: float) -> str:
    """Return one line on the scale of the features of `unit` and the steps of a learning rate."""
    return (
        f"features: mean squared norm {unit**2 * REFERENCE_NORM:.3g}, so steps are those of features divided by "
        f"{unit:.3g}: weights move at {rate / unit**2:.3g} for --finetune_lr {rate:g} (--rate_scale published: at "
        f"{rate:g})"
    )
