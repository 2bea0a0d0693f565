"""Likelihood, Brier score, class-wise calibration and top-5 against scikit-learn, pycalib and loops, in blocks too."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torch import Tensor

from evaluation import blocks
from evaluation.metrics import calibration_error
from evaluation.probabilities import SCORES, probability_scores, top_accuracy

CLASSES = 7
# pycalib 0.1.0.dev6, 100 * classwise_ECE(labels in one-hot rows, probabilities, bins=...) of `drawn()`, by bins.
# torch-uncertainty 0.13.0 gives the same numbers, 100 * ClasswiseCalibrationError(CLASSES, num_bins=...).
PYCALIB = {15: 14.84334023198604, 4: 13.370351318701815}


def drawn() -> tuple[Tensor, Tensor]:
    """Logits of a poor classifier and unbalanced labels; class 3 has no image. From NumPy's legacy generator, whose
    numbers never change."""
    generator = np.random.RandomState(0)
    logits = 2 * generator.randn(300, CLASSES)
    labels = (CLASSES * generator.rand(300) ** 2).astype(int)
    labels[labels == 3] = 0
    logits[np.arange(300), labels] += 1
    return torch.from_numpy(logits), torch.from_numpy(labels)


def probabilities(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    powers = np.exp((logits.numpy() - logits.numpy().max(axis=1, keepdims=True)) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def loop_classwise(probability: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Kull et al., 2019: class after class, bin after bin, (lower, upper] and 0 in the first."""
    total = 0.0
    for k in range(probability.shape[1]):
        which = np.clip(np.ceil(probability[:, k] * bins) - 1, 0, bins - 1)
        for b in range(bins):
            inside = which == b
            if inside.any():
                gap = abs((labels[inside] == k).mean() - probability[inside, k].mean())
                total += inside.mean() * gap
    return 100 * total / probability.shape[1]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_scores_agree_with_scikit_learn(monkeypatch: pytest.MonkeyPatch, rows: int, temperature: float) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK", rows * CLASSES)
    logits, labels = drawn()
    found, probability = probability_scores(logits, labels, temperature), probabilities(logits, temperature)
    names = list(range(CLASSES))
    assert list(found) == list(SCORES)
    assert found["nll"] == pytest.approx(log_loss(labels, probability, labels=names), rel=1e-12)
    brier = brier_score_loss(labels, probability, labels=names, scale_by_half=False)
    assert found["brier"] == pytest.approx(brier, rel=1e-12)
    assert found["ece"] == pytest.approx(calibration_error(logits, labels, temperature=temperature), rel=1e-12)
    assert found["classwise_ece"] == pytest.approx(loop_classwise(probability, labels.numpy(), 15), rel=1e-12)


@pytest.mark.parametrize("bins", [15, 4])
def test_class_wise_calibration_agrees_with_pycalib(bins: int) -> None:
    assert probability_scores(*drawn(), bins=bins)["classwise_ece"] == pytest.approx(PYCALIB[bins], rel=1e-12)


def test_half_precision_logits_are_scored_in_float64() -> None:
    logits, labels = drawn()
    found = probability_scores(logits.half(), labels)
    assert found == pytest.approx(probability_scores(logits.half().double(), labels), rel=1e-12)


def test_certain_predictions() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    right = 1000 * torch.nn.functional.one_hot(labels, 3).double()
    assert probability_scores(right, labels) == {"ece": 0, "classwise_ece": 0, "brier": 0, "nll": 0}
    wrong = probability_scores(right, (labels + 1) % 3)
    assert wrong["ece"] == pytest.approx(100) and wrong["brier"] == pytest.approx(2)
    assert wrong["nll"] == pytest.approx(1000)  # and not infinite: the probability underflows, its logarithm does not
    # Of class 0 one image of four is called it and another is it: in both bins a quarter is off.
    assert wrong["classwise_ece"] == pytest.approx(100 * (0.5 + 0.75 + 0.75) / 3)


def test_equal_logits() -> None:
    labels = torch.arange(30) % CLASSES
    logits = torch.zeros(30, CLASSES)
    found = probability_scores(logits, labels)
    assert found["nll"] == pytest.approx(np.log(CLASSES))
    assert found["brier"] == pytest.approx((1 - 1 / CLASSES) ** 2 + (CLASSES - 1) / CLASSES**2)
    assert found["classwise_ece"] == pytest.approx(
        100 * np.abs(np.bincount(labels, minlength=CLASSES) / 30 - 1 / CLASSES).mean()
    )


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_top_5_agrees_with_scikit_learn(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK", rows * CLASSES)
    logits, labels = drawn()
    for top in (1, 2, 5):
        expected = top_k_accuracy_score(labels, logits.numpy(), k=top, labels=range(CLASSES))
        assert top_accuracy(logits, labels, top) == pytest.approx(100 * expected)
    assert top_accuracy(logits, labels, 1) == pytest.approx(
        100 * float((logits.argmax(dim=1) == labels).double().mean())
    )


def test_of_equal_logits_the_lower_class_comes_first_as_in_the_prediction() -> None:
    logits = torch.tensor([[1.0, 1, 1, 1, 1, 1, 0], [2, 1, 1, 1, 1, 1, 1]])
    assert logits.argmax(dim=1).tolist() == [0, 0]
    for label, share in ((0, 100), (4, 100), (5, 0), (6, 0)):
        assert top_accuracy(logits, torch.tensor([label, label])) == share


def test_a_diverged_network_has_nothing_among_its_top_5() -> None:
    labels = torch.arange(6)
    assert top_accuracy(torch.full((6, 6), torch.nan), labels) == 0
    logits = torch.arange(6, 0, -1.0).repeat(6, 1)
    assert top_accuracy(logits, labels) == pytest.approx(500 / 6)
    logits[:, 5] = torch.nan  # the one class that was not among them, and now stands before the others
    assert top_accuracy(logits, labels) == pytest.approx(400 / 6)


def test_of_five_classes_no_top_5_exists() -> None:
    assert top_accuracy(torch.zeros(3, 5), torch.tensor([0, 1, 2])) is None
    assert top_accuracy(torch.zeros(3, 6), torch.tensor([0, 1, 5])) == pytest.approx(200 / 3)
