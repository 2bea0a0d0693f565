"""What is taken for what: each class's precision and the class it is most confused with, the worst pairs of classes,
and the confusion matrix by shot.

The matrix of all classes (K, K) is never made: it would have 66 million cells at K = 8142.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datasets.long_tail import FIELD_BOUNDS, ShotBounds
from evaluation.blocks import Rows, row_blocks
from evaluation.metrics import SHOTS, shot_groups

if TYPE_CHECKING:
    import pandas as pd

WORST_PAIRS = 20
Confusion = dict[str, Any]


def confusion_report(
    predictions: Tensor, labels: Tensor, class_counts: np.ndarray, bounds: ShotBounds = FIELD_BOUNDS
) -> Confusion:
    """Return, as JSON can hold it, what predicted classes (N,) say of test images with labels (N,).

    `class_counts` (K,) are the training images of each class. A list a class: `test_images`, `predicted` (images that
    are taken for the class), `precision` in percent (None where nothing is), `confused_with` (the class that most of
    its wrong images are taken for, the first of equals; None where none is wrong) and `confused_images`. `pairs` are
    the `WORST_PAIRS` pairs of a class and another one that most of its images are taken for: `true`, `predicted`,
    `images` and their share of the class's test images in percent. `groups` is the confusion matrix by shot
    (`group_matrix`).
    """
    true, predicted = labels.cpu().numpy(), predictions.cpu().numpy()
    classes = len(class_counts)
    actual, taken = (np.bincount(values, minlength=classes) for values in (true, predicted))
    hits = np.bincount(true[true == predicted], minlength=classes)
    pairs = wrong_pairs(true, predicted, classes)
    first = pairs.drop_duplicates("true").set_index("true")
    worst = pairs.sort_values("images", ascending=False, kind="stable").head(WORST_PAIRS)
    share = 100 * worst["images"] / actual[worst["true"]]
    return {
        "test_images": actual.tolist(),
        "predicted": taken.tolist(),
        "precision": [100 * hit / count if count else None for hit, count in zip(hits.tolist(), taken, strict=True)],
        "confused_with": [int(first["predicted"][k]) if k in first.index else None for k in range(classes)],
        "confused_images": [int(first["images"][k]) if k in first.index else 0 for k in range(classes)],
        "pairs": worst.assign(share=share).to_dict("records"),
        "groups": group_matrix(true, predicted, class_counts, bounds),
    }


def wrong_pairs(true: np.ndarray, predicted: np.ndarray, classes: int) -> pd.DataFrame:
    """Return the pairs of a class and another that images of it are taken for, with the number of `images`: by class,
    and within a class most images first."""
    import pandas as pd

    wrong = true != predicted
    codes, images = np.unique(true[wrong].astype(np.int64) * classes + predicted[wrong], return_counts=True)
    pairs = pd.DataFrame({"true": codes // classes, "predicted": codes % classes, "images": images})
    return pairs.sort_values(["true", "images"], ascending=[True, False], kind="stable", ignore_index=True)


def group_matrix(
    true: np.ndarray, predicted: np.ndarray, class_counts: np.ndarray, bounds: ShotBounds = FIELD_BOUNDS
) -> dict[str, dict[str, float]]:
    """Return, for each shot group that has test images, the percent of them that are `right`, and that are taken for
    another class of the groups `many`, `medium` and `few`: together 100."""
    groups = shot_groups(class_counts, bounds)
    of_class = np.select([groups[name] for name in SHOTS], range(len(SHOTS)))
    matrix: dict[str, dict[str, float]] = {}
    for place, name in enumerate(SHOTS):
        own = of_class[true] == place
        if not own.any():
            continue
        right = (true == predicted) & own
        matrix[name] = {"right": 100 * float(right.sum() / own.sum())}
        for other, taken in enumerate(SHOTS):
            if groups[taken].any():
                wrong = own & ~right & (of_class[predicted] == other)
                matrix[name][taken] = 100 * float(wrong.sum() / own.sum())
    return matrix


def most_certain_mistakes(logits: Rows, labels: Tensor, most: int) -> list[dict[str, Any]]:
    """Return the misclassified of images with logits (N, K) and labels (N,), those of the highest probability first, at
    most `most`: `row`, `true`, `predicted` and `probability`."""
    labels = labels.to(logits.device)
    probability = torch.empty(len(labels), dtype=torch.float64, device=logits.device)  # in place, as in `score_logits`
    predicted = torch.empty_like(labels)
    for rows in row_blocks(logits):
        probability[rows], predicted[rows] = logits[rows].double().softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    order = wrong[torch.argsort(probability[wrong], descending=True, stable=True)][:most]
    return [
        {
            "row": int(row),
            "true": int(labels[row]),
            "predicted": int(predicted[row]),
            "probability": float(probability[row]),
        }
        for row in order
    ]


def class_table(
    confusion: Confusion,
    accuracy: Sequence[float | None],
    class_names: Sequence[str],
    class_counts: np.ndarray,
    bounds: ShotBounds = FIELD_BOUNDS,
) -> pd.DataFrame:
    """Return the rows of per_class.csv, a class each, in the order of the classes.

    `accuracy` (K,) in percent is None where a class has no test image.
    """
    import pandas as pd

    shots = shot_groups(class_counts, bounds)
    return pd.DataFrame(
        {
            "class": range(len(class_names)),
            "name": class_names,
            "shot": [next(name for name in SHOTS if shots[name][k]) for k in range(len(class_names))],
            "training_images": class_counts,
            "test_images": confusion["test_images"],
            "accuracy": pd.array(accuracy, dtype="Float64"),
            "precision": pd.array(confusion["precision"], dtype="Float64"),
            "predicted_images": confusion["predicted"],
            "most_confused_with": [None if k is None else class_names[k] for k in confusion["confused_with"]],
            "most_confused_images": confusion["confused_images"],
        }
    )
