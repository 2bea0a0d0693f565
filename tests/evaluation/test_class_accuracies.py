"""Means of class accuracies and the worst classes, against SciPy and scikit-learn; what does not exist is None."""

import numpy as np
import pytest
import torch
from scipy.stats import gmean, hmean
from sklearn.metrics import balanced_accuracy_score, recall_score
from torch import Tensor

from evaluation.class_accuracies import MEASURES, ZERO_AS, class_measures
from evaluation.metrics import classification_report, prediction_report
from evaluation.text_tables import report_table

COUNTS = np.array([300, 101, 100, 60, 20, 19, 5, 2, 2, 2, 1, 1])


def drawn(seed: int = 0, absent: int | None = None, images: int = 600) -> tuple[Tensor, Tensor]:
    """Logits of a poor classifier and unbalanced labels (N,) of twelve classes, one of which may be absent."""
    generator = torch.Generator().manual_seed(seed)
    labels = (12 * torch.rand(images, generator=generator) ** 1.5).long()
    logits = torch.randn(images, 12, generator=generator, dtype=torch.float64)
    logits[torch.arange(images), labels] += torch.linspace(1.5, 3, 12, dtype=torch.float64)[labels]
    keep = labels != (-1 if absent is None else absent)
    return logits[keep], labels[keep]


@pytest.mark.parametrize("absent", [None, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_measures_agree_with_scipy_and_scikit_learn(seed: int, absent: int | None) -> None:
    logits, labels = drawn(seed, absent)
    report = classification_report(logits, labels, COUNTS)
    true, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
    present = [label for label in range(12) if label != absent]
    recall = 100 * recall_score(true, predicted, labels=present, average=None)
    assert recall.min() > 0 and (report["per_class_accuracy"][3] is None) == (absent == 3)
    assert report["class_balanced"] == pytest.approx(recall.mean())
    if absent is None:  # scikit-learn warns of predicted classes that have no image
        assert report["class_balanced"] == pytest.approx(100 * balanced_accuracy_score(true, predicted))
    assert report["harmonic"] == pytest.approx(hmean(recall))
    assert report["geometric"] == pytest.approx(gmean(recall))
    lowest = np.sort(recall)
    assert report["worst"] == pytest.approx(lowest[0])
    assert report["worst_10"] == pytest.approx(lowest[:10].mean())
    assert report["worst_10_percent"] == pytest.approx(lowest[:2].mean())  # 1.1 or 1.2 classes, rounded up
    assert report["class_balanced"] != pytest.approx(report["all"], abs=0.5)


def test_a_lost_class_counts_as_a_tenth_of_a_percent_in_two_of_the_means() -> None:
    accuracy = np.array([80.0, 0.0, 40.0, 0.0])
    measures = class_measures(accuracy)
    assert ZERO_AS == 0.1
    assert measures["harmonic"] == pytest.approx(hmean([80, 0.1, 40, 0.1]))
    assert measures["geometric"] == pytest.approx(gmean([80, 0.1, 40, 0.1]))
    assert (measures["class_balanced"], measures["worst"], measures["worst_10_percent"]) == (30, 0, 0)
    assert measures["worst_10"] is None  # of four classes
    tiny = class_measures(np.array([80.0, 0.01]))["harmonic"]  # one image of ten thousand is no lost class
    assert tiny == pytest.approx(hmean([80, 0.01]))


def test_all_right_and_all_wrong() -> None:
    labels = torch.arange(36) % 12
    right = class_measures(np.array(prediction_report(labels, labels, COUNTS)["per_class_accuracy"], dtype=float))
    assert right == pytest.approx(dict.fromkeys(MEASURES, 100.0))
    wrong = prediction_report((labels + 1) % 12, labels, COUNTS)
    assert wrong["class_balanced"] == wrong["worst"] == wrong["worst_10"] == wrong["macro_f1"] == 0
    assert wrong["harmonic"] == pytest.approx(0.1) and wrong["geometric"] == pytest.approx(0.1)


def test_of_no_class_there_is_nothing() -> None:
    assert class_measures(np.full(3, np.nan)) == dict.fromkeys(MEASURES)
    one = class_measures(np.array([np.nan, 25.0]))
    assert one["class_balanced"] == one["harmonic"] == one["worst_10_percent"] == pytest.approx(25)


def test_a_report_says_which_accuracy_is_which_where_the_test_images_are_not_balanced() -> None:
    logits, labels = drawn(absent=3)
    report = classification_report(logits, labels, COUNTS)
    images = torch.bincount(labels, minlength=12)
    smallest, largest = int(images[images > 0].min()), int(images.max())
    assert report["test_images"] == {
        "images": len(labels),
        "smallest_class": smallest,
        "largest_class": largest,
        "absent_classes": 1,
    }
    text = report_table({"last": {"epoch": 1, "plain": report, "flip": None}}, "honest")
    assert f"not balanced, {smallest} to {largest} of a class" in text and "'class-balanced' every class" in text
    assert "1 class has no test image" in text
    assert f"class-balanced {report['class_balanced']:.2f}".split() in [line.split() for line in text.splitlines()]

    labels = torch.arange(36) % 12
    balanced = classification_report(logits[:36], labels, COUNTS)
    assert balanced["class_balanced"] == pytest.approx(balanced["all"])
    text = report_table({"last": {"epoch": 1, "plain": balanced, "flip": None}}, "honest")
    assert "not balanced" not in text and "no test image" not in text
