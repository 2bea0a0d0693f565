"""Reports against scikit-learn, calibration and LoMa / RSD against plain loops, and what does not exist is None."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from torch import Tensor

from evaluation.logits_magnitude import logits_magnitude, summarise
from evaluation.measure import logits_summary
from evaluation.metrics import (
    calibration_error,
    class_balanced_accuracy,
    class_wise_column_means,
    classification_report,
    column_means,
    feature_variance_ratio,
    fit_temperature,
    rebalance,
    shot_groups,
    why_no_temperature,
)
from tests.formulas import loop_magnitude

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


def assert_agrees_with_loop(logits: Tensor, labels: Tensor) -> None:
    result = logits_magnitude(logits, labels)
    assert list(result) == ["column", "row", "uncentred"]
    for reading in result:
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
    assert not np.allclose(before["uncentred"]["loma"], after["uncentred"]["loma"], rtol=1e-2)
    assert min(after["uncentred"]["sigma_other"]) > 5 * max(before["uncentred"]["sigma_other"])


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
    result = logits_magnitude(logits, labels)
    for reading in (result["column"], result["row"]):
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


# Summaries


def test_summarise_gives_mean_deviation_and_their_ratio() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    found = summarise([1.0, None, 2.0, 4.0, None, 9.0])
    assert found["mean"] == pytest.approx(4.0)
    assert found["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert found["variation"] == pytest.approx(np.std(values, ddof=1) / 4.0)


def test_summarise_has_none_for_what_does_not_exist() -> None:
    nothing = {"mean": None, "deviation": None, "variation": None, "median": None, "count": 0}
    assert summarise([]) == summarise([None, None]) == nothing
    assert summarise([3.0]) == {"mean": 3.0, "deviation": None, "variation": None, "median": 3.0, "count": 1}
    assert summarise([2.0, 2.0]) == {"mean": 2.0, "deviation": 0.0, "variation": 0.0, "median": 2.0, "count": 2}
    assert summarise([1.0, None, 2.0, 9.0])["median"] == 2.0
    for values in ([-1.0, 1.0], [-3.0, -4.0]):  # a spread has no size relative to nothing
        found = summarise(list(values))
        assert found["variation"] is None and found["deviation"] is not None


def test_the_summary_of_a_report_is_that_of_each_list() -> None:
    report = {split: logits_magnitude(*random_logits(seed=seed)) for split, seed in (("train", 0), ("test", 1))}
    summary = logits_summary(report)
    assert list(summary) == ["train", "test"]
    for split, readings in report.items():
        assert list(summary[split]) == ["column", "row", "uncentred"]
        for reading, of_reading in readings.items():
            assert summary[split][reading] == {name: summarise(values) for name, values in of_reading.items()}
    assert summary["test"]["column"]["loma"]["mean"] == pytest.approx(np.mean(report["test"]["column"]["loma"]))
    json.dumps(summary, allow_nan=False)


# Re-balanced predictions


def loop_rebalanced(logits: Tensor, means: list[float], tau: float) -> list[int]:
    """GALA's prediction re-balancing, image after image: argmax_j p_ij / m_j ** tau."""
    predictions = []
    for row in logits.double().tolist():
        powers = [math.exp(value - max(row)) for value in row]
        scores = [power / sum(powers) / mean**tau for power, mean in zip(powers, means, strict=True)]
        predictions.append(scores.index(max(scores)))
    return predictions


def loop_probabilities(logits: Tensor) -> np.ndarray:
    powers = np.exp(logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transductive_rebalancing_agrees_with_a_loop(tau: float, dtype: torch.dtype) -> None:
    logits, _ = random_logits()
    logits = (logits + torch.linspace(1, -1, CLASSES, dtype=torch.float64)).to(dtype)
    sums = loop_probabilities(logits).sum(axis=0)  # the published form: sums, which differ from means by a constant
    scores = rebalance(logits, column_means(logits), tau)
    assert scores.argmax(dim=1).tolist() == loop_rebalanced(logits, sums.tolist(), tau)
    assert (scores.argmax(dim=1) != logits.argmax(dim=1)).any()
    assert scores.dtype == torch.float64


def test_inductive_rebalancing_agrees_with_a_loop() -> None:
    logits, _ = random_logits(seed=1)
    held_out, labels = random_logits(count=90, seed=2)
    probability = loop_probabilities(held_out)
    of_class = [probability[labels.numpy() == k].mean(axis=0) for k in range(CLASSES)]
    means = np.mean(of_class, axis=0)
    found = class_wise_column_means(held_out, labels)
    np.testing.assert_allclose(found.numpy(), means, rtol=1e-12)
    assert not np.allclose(column_means(held_out).numpy(), means, rtol=1e-2)  # the labels are not balanced
    assert rebalance(logits, found, 1.0).argmax(dim=1).tolist() == loop_rebalanced(logits, means.tolist(), 1.0)


def test_a_class_without_held_out_images_has_no_share_in_the_means() -> None:
    held_out, labels = random_logits(count=90)
    keep = labels != 3
    found = class_wise_column_means(held_out[keep], labels[keep])
    probability, rest = loop_probabilities(held_out), [k for k in range(CLASSES) if k != 3]
    expected = np.mean([probability[labels.numpy() == k].mean(axis=0) for k in rest], axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_tau_zero_changes_no_prediction_and_no_probability() -> None:
    logits, _ = random_logits()
    scores = rebalance(logits, column_means(logits), 0.0)
    assert torch.equal(scores.argmax(dim=1), logits.argmax(dim=1))
    torch.testing.assert_close(scores, logits.log_softmax(dim=1))


def test_on_balanced_images_both_forms_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40 * CLASSES) % CLASSES
    logits = torch.randn(len(labels), CLASSES, generator=generator, dtype=torch.float64)
    transductive, inductive = column_means(logits), class_wise_column_means(logits, labels)
    torch.testing.assert_close(inductive, transductive, rtol=1e-12, atol=0)
    for tau in (0.5, 1.0, 2.0):
        one, other = rebalance(logits, transductive, tau), rebalance(logits, inductive, tau)
        assert torch.equal(one.argmax(dim=1), other.argmax(dim=1))


def test_one_image_alone_is_classified_as_within_a_batch() -> None:
    logits, _ = random_logits()
    means = class_wise_column_means(*random_logits(count=90, seed=2))
    whole = rebalance(logits, means, 1.0)
    for i in range(0, len(logits), 7):
        torch.testing.assert_close(rebalance(logits[i : i + 1], means, 1.0)[0], whole[i])
    # The transductive form cannot do that: over one image its means are its own probabilities, and all scores equal.
    alone = rebalance(logits[:1], column_means(logits[:1]), 1.0)
    torch.testing.assert_close(alone, torch.zeros_like(alone), atol=1e-12, rtol=0)


def test_rebalancing_evens_out_the_predictions() -> None:
    logits, _ = random_logits(count=800)
    logits = logits + torch.linspace(2, -2, CLASSES, dtype=torch.float64)
    before, after = logits.log_softmax(dim=1), rebalance(logits, column_means(logits), 1.0)
    counts = [torch.bincount(scores.argmax(dim=1), minlength=CLASSES).double().std() for scores in (before, after)]
    assert counts[1] < counts[0] / 2


def test_a_probability_that_is_nearly_zero_stays_finite() -> None:
    logits = torch.tensor([[0.0, -600.0], [1.0, -500.0]])
    scores = rebalance(logits, column_means(logits), 1.0)
    assert scores.isfinite().all()


# Temperature


def calibrated_logits(count: int = 6000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits whose softmax is the distribution that the labels were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = calibrated_logits()
    base = fit_temperature(logits, labels)
    assert base == pytest.approx(1.0, abs=0.06)
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature * base, rel=1e-6)
    assert fit_temperature((temperature * logits).float(), labels) == pytest.approx(temperature * base, rel=1e-4)


def test_the_temperature_is_the_minimum_of_the_class_balanced_loss() -> None:
    logits, labels = random_logits()
    labels = torch.cat([labels, torch.zeros(300, dtype=torch.int64)])  # class 0 outweighs the others by far
    generator = torch.Generator().manual_seed(5)
    logits = torch.cat([logits, 4 * torch.randn(300, CLASSES, generator=generator, dtype=torch.float64)])
    found = fit_temperature(logits, labels)
    assert found is not None

    def loss(temperature: float) -> float:
        each = torch.nn.functional.cross_entropy(logits / temperature, labels, reduction="none")
        return float(torch.stack([each[labels == k].mean() for k in range(CLASSES)]).mean())

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))
    # Every image of a class counted three times leaves it as it is.
    repeated = torch.arange(len(labels)).repeat_interleave(torch.where(labels == 0, 3, 1))
    assert fit_temperature(logits[repeated], labels[repeated]) == pytest.approx(found, rel=1e-9)


def test_no_temperature_is_best_where_all_are_right_or_the_logits_mislead() -> None:
    labels = torch.arange(30) % CLASSES
    right = torch.nn.functional.one_hot(labels, CLASSES).double()
    assert fit_temperature(3 * right, labels) is None
    assert fit_temperature(-3 * right, labels) is None
    assert fit_temperature(torch.zeros(30, CLASSES), labels) is None
    assert "all 30 held-out images are right" in why_no_temperature(3 * right, labels)
    assert "mislead" in why_no_temperature(-3 * right, labels)
    wrong = right.clone()
    wrong[0] = right[1]
    assert fit_temperature(3 * wrong, labels) is not None
    assert fit_temperature(1e-6 * wrong, labels) is None
    assert "is not at least 0.0001 and at most 10000" in why_no_temperature(1e-6 * wrong, labels)


def test_a_fitted_temperature_lowers_the_calibration_error() -> None:
    logits, labels = calibrated_logits()
    flat = 0.05 * logits
    temperature = fit_temperature(flat, labels)
    assert temperature is not None and temperature < 0.1
    assert calibration_error(flat / temperature, labels) < 3 < calibration_error(flat, labels)
