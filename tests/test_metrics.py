"""Reports against scikit-learn, calibration and LoMa / RSD against plain loops, and what does not exist is None."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score
from torch import Tensor

from utils.metrics import (
    calibration_error,
    class_balanced_accuracy,
    classification_report,
    confusion_counts,
    feature_variance_ratio,
    logits_magnitude,
    shot_groups,
)

CLASSES = 8


def random_logits(count: int = 400, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a poor classifier, and unbalanced labels that contain every class."""
    generator = torch.Generator().manual_seed(seed)
    labels = (classes * torch.rand(count, generator=generator) ** 2).long()
    labels[:classes] = torch.arange(classes)
    logits = 1.5 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(count), labels] += 1.0
    return logits, labels


# Accuracy


def test_shot_boundaries() -> None:
    groups = shot_groups(np.array([500, 101, 100, 99, 21, 20, 19, 1]))
    assert groups["many"].tolist() == [True, True, False, False, False, False, False, False]
    assert groups["medium"].tolist() == [False, False, True, True, True, True, False, False]
    assert groups["few"].tolist() == [False, False, False, False, False, False, True, True]


@pytest.mark.parametrize("seed", [0, 1])
def test_report_agrees_with_scikit_learn(seed: int) -> None:
    logits, labels = random_logits(seed=seed)
    counts = np.array([300, 101, 100, 60, 20, 19, 5, 2])
    report = classification_report(logits, labels, counts)
    true, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
    recall = 100 * recall_score(true, predicted, average=None)
    assert report["all"] == pytest.approx(100 * accuracy_score(true, predicted))
    assert report["per_class_accuracy"] == pytest.approx(recall)
    assert report["macro_f1"] == pytest.approx(100 * f1_score(true, predicted, average="macro"))
    assert report["many"] == pytest.approx(recall[:2].mean())  # a mean over classes, not over images
    assert report["medium"] == pytest.approx(recall[2:5].mean())
    assert report["few"] == pytest.approx(recall[5:].mean())
    assert report["ece"] == pytest.approx(calibration_error(logits, labels))
    assert class_balanced_accuracy(logits, labels) == pytest.approx(100 * balanced_accuracy_score(true, predicted))


def test_confusion_has_true_rows() -> None:
    logits, labels = random_logits()
    predicted = logits.argmax(dim=1)
    expected = confusion_matrix(labels.numpy(), predicted.numpy())
    assert (expected != expected.T).any()
    np.testing.assert_array_equal(confusion_counts(predicted, labels, CLASSES).numpy(), expected)


def test_empty_group_is_none() -> None:
    logits, labels = random_logits()
    report = classification_report(logits, labels, np.full(CLASSES, 50))
    assert report["many"] is None and report["few"] is None
    assert report["medium"] == pytest.approx(np.mean(report["per_class_accuracy"]))


def test_class_without_an_image_is_in_no_mean() -> None:
    logits, labels = random_logits()
    keep = labels != 3
    logits, labels = logits[keep], labels[keep]
    assert (logits.argmax(dim=1) == 3).any()  # it is predicted, though
    report = classification_report(logits, labels, np.full(CLASSES, 5))
    present = [c for c in range(CLASSES) if c != 3]
    true, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
    recall = 100 * recall_score(true, predicted, labels=present, average=None)
    assert report["per_class_accuracy"][3] is None
    assert report["few"] == pytest.approx(recall.mean()) == pytest.approx(class_balanced_accuracy(logits, labels))
    assert report["macro_f1"] == pytest.approx(100 * f1_score(true, predicted, labels=present, average="macro"))
    alone = np.where(np.arange(CLASSES) == 3, 500, 50)
    assert classification_report(logits, labels, alone)["many"] is None
    json.dumps(report, allow_nan=False)


def test_class_that_is_never_predicted_counts_as_zero() -> None:
    logits, labels = random_logits()
    logits[:, 2] = -100
    report = classification_report(logits, labels, np.full(CLASSES, 5))
    true, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
    assert report["per_class_accuracy"][2] == 0
    assert report["macro_f1"] == pytest.approx(100 * f1_score(true, predicted, average="macro", zero_division=0))


# Calibration


def loop_calibration_error(logits: Tensor, labels: Tensor, bins: int) -> float:
    """Guo et al., 2017, equation 3, bin after bin: (lower, upper]."""
    shifted = logits.numpy() - logits.numpy().max(axis=1, keepdims=True)
    probability = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    confidence, correct = probability.max(axis=1), probability.argmax(axis=1) == labels.numpy()
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return 100 * total


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_calibration_error_agrees_with_a_loop(scale: float) -> None:
    logits, labels = random_logits()
    for bins in (15, 4):
        expected = loop_calibration_error(scale * logits, labels, bins)
        assert calibration_error(scale * logits, labels, bins) == pytest.approx(expected)


def test_calibration_error_of_certain_predictions() -> None:
    logits = 1000 * torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 2]), 3).double()
    assert calibration_error(logits, torch.tensor([0, 1, 2, 2])) == pytest.approx(0)
    assert calibration_error(logits, torch.tensor([0, 1, 2, 0])) == pytest.approx(25)
    assert calibration_error(logits, torch.tensor([1, 2, 0, 1])) == pytest.approx(100)


# LoMa and RSD


def loop_magnitude(logits: Tensor, labels: Tensor, reading: str, k: int) -> dict[str, float | None]:
    """The definitions of LoMa and RSD, sample after sample, in Python's own numbers."""
    rows = logits.double().tolist()
    classes = len(rows[0])
    of_class, of_others = [], []
    for z, label in zip(rows, labels.tolist(), strict=True):
        if reading == "column":
            value = z[k] - sum(z) / classes
        else:
            value = z[k] - sum(z[j] for j in range(classes) if j != k) / (classes - 1)
        (of_class if label == k else of_others).append(value)

    def deviation(values: list[float]) -> float | None:
        if len(values) < 2:
            return None
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    loma: float | None = None
    if of_class and (reading == "row" or of_others):
        loma = sum(of_class) / len(of_class)
        if reading == "column":
            loma -= sum(of_others) / len(of_others)
    sigmas = {"sigma_true": deviation(of_class), "sigma_other": deviation(of_others)}
    rsd = {
        name.replace("sigma", "rsd"): sigma / loma if sigma is not None and loma is not None and loma > 1e-6 else None
        for name, sigma in sigmas.items()
    }
    return {"loma": loma, **sigmas, **rsd}


def assert_agrees_with_loop(logits: Tensor, labels: Tensor) -> None:
    result = logits_magnitude(logits, labels)
    for reading in ("column", "row"):
        for k in range(logits.shape[1]):
            for key, expected in loop_magnitude(logits, labels, reading, k).items():
                got = result[reading][key][k]
                if expected is None:
                    assert got is None, (reading, k, key)
                else:
                    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12), (reading, k, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loma_and_rsd_agree_with_a_loop(dtype: torch.dtype) -> None:
    logits, labels = random_logits(count=120)
    assert_agrees_with_loop(logits.to(dtype), labels)


def test_the_two_readings_differ() -> None:
    result = logits_magnitude(*random_logits())
    assert not np.allclose(result["column"]["loma"], result["row"]["loma"], rtol=1e-2)


def test_loma_knows_logits_up_to_a_constant_of_each_sample() -> None:
    logits, labels = random_logits()
    shifted = logits + 30 * torch.randn(len(logits), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, after = logits_magnitude(logits, labels), logits_magnitude(shifted, labels)
    for reading in ("column", "row"):
        for key, values in before[reading].items():
            compared = [(a, b) for a, b in zip(values, after[reading][key], strict=True) if a is not None]
            assert compared
            for a, b in compared:
                assert b == pytest.approx(a, rel=1e-9, abs=1e-10)


def test_scaling_the_logits_scales_loma_and_leaves_rsd() -> None:
    logits, labels = random_logits()
    once, twice = logits_magnitude(logits, labels), logits_magnitude(2 * logits, labels)
    for reading in ("column", "row"):
        assert twice[reading]["loma"] == pytest.approx([2 * value for value in once[reading]["loma"]])
        for key in ("rsd_true", "rsd_other"):
            assert twice[reading][key] == pytest.approx(once[reading][key])


def test_absent_class_has_no_loma() -> None:
    logits, labels = random_logits()
    keep = labels != 5
    assert_agrees_with_loop(logits[keep], labels[keep])
    result = logits_magnitude(logits[keep], labels[keep])
    for reading in ("column", "row"):
        assert all(result[reading][key][5] is None for key in ("loma", "sigma_true", "rsd_true", "rsd_other"))
        assert result[reading]["sigma_other"][5] is not None  # a deviation over the others does exist
    json.dumps(result, allow_nan=False)


def test_single_sample_has_loma_but_no_deviation() -> None:
    logits, labels = random_logits()
    keep = labels != 5
    keep[5] = True
    assert int((labels[keep] == 5).sum()) == 1
    assert_agrees_with_loop(logits[keep], labels[keep])
    result = logits_magnitude(logits[keep], labels[keep])
    for reading in ("column", "row"):
        assert result[reading]["loma"][5] is not None
        assert result[reading]["sigma_true"][5] is None and result[reading]["rsd_true"][5] is None


def test_only_one_class_present() -> None:
    logits, _ = random_logits(count=10)
    labels = torch.full((10,), 2)
    assert_agrees_with_loop(logits, labels)
    result = logits_magnitude(logits, labels)
    assert result["column"]["loma"][2] is None and result["row"]["loma"][2] is not None


@pytest.mark.parametrize("loma", [-2.0, 0.0, 1e-7, 1e-5])
def test_rsd_needs_a_positive_loma(loma: float) -> None:
    labels = torch.arange(6) % 3
    noise = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    logits = loma * torch.nn.functional.one_hot(labels, 3).double()
    logits = logits + noise * torch.tensor([1.0, -0.5, -0.5], dtype=torch.float64)
    for reading in logits_magnitude(logits, labels).values():
        assert reading["loma"][0] == pytest.approx(loma, abs=1e-12)
        for key in ("rsd_true", "rsd_other"):
            sigma = reading[key.replace("rsd", "sigma")][0]
            if loma > 1e-6:
                assert reading[key][0] == pytest.approx(sigma / loma, rel=1e-6)
            else:
                assert reading[key][0] is None and sigma is not None


@pytest.mark.parametrize(("classes", "smoothing"), [(100, 0.98), (1000, 0.98), (10, 0.5)])
def test_both_readings_at_the_optimum_of_los(classes: int, smoothing: float) -> None:
    gap = math.log(1 + classes * (1 - smoothing) / smoothing)
    labels = torch.arange(2 * classes) % classes
    logits = gap * torch.nn.functional.one_hot(labels, classes).double() + torch.linspace(-3, 3, 2 * classes)[:, None]
    for reading in logits_magnitude(logits, labels).values():
        assert reading["loma"] == pytest.approx([gap] * classes)
        assert reading["sigma_true"] == pytest.approx([0.0] * classes, abs=1e-9)


# Features


def test_feature_variance_ratio_agrees_with_a_loop() -> None:
    generator = np.random.RandomState(0)
    labels = np.repeat([0, 1, 2, 5], [50, 9, 3, 1])  # classes 3 and 4 have no image
    features = generator.randn(63, 6) + 2 * generator.randn(6, 6)[labels]
    means, within = [], []
    for label in (0, 1, 2, 5):
        members = features[labels == label]
        means.append(members.mean(axis=0))
        within.append(np.mean([np.sum((x - means[-1]) ** 2) for x in members]))
    centre = np.mean(means, axis=0)  # of the class means: every class weighs the same
    between = np.mean([np.sum((mean - centre) ** 2) for mean in means])
    order = generator.permutation(63)
    ratio = feature_variance_ratio(torch.from_numpy(features)[order], torch.from_numpy(labels)[order])
    assert ratio == pytest.approx(np.mean(within) / between)


def test_collapsed_features_have_ratio_zero() -> None:
    labels = torch.arange(12) % 3
    assert feature_variance_ratio(torch.eye(3)[labels], labels) == pytest.approx(0, abs=1e-12)
