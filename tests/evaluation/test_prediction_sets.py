"""Prediction sets: MAPIE as the oracle, coverage by simulation, what is kept of held-out images and read back."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.prediction_sets.kinds import KINDS
from evaluation.prediction_sets.record import is_sound, measure_held_out, pack_held_out, unpack_held_out
from evaluation.prediction_sets.report import in_sets, sets_report, sets_text
from evaluation.prediction_sets.thresholds import (
    WEIGHT,
    class_thresholds,
    shared_thresholds,
    threshold,
    without_threshold,
)
from utils.errors import UserError

# MAPIE 1.6.0 (scikit-learn 1.9.1): SplitConformalClassifier(model, confidence_level=coverage, conformity_score="lac",
# prefit=True), conformalize(x, y) and predict_set(x) on the images of `draw(5, 83)` and `draw(5, 12)`, whose logits are
# x: by coverage, its quantile of the scores 1 - p and the sets.
MAPIE: dict[float, tuple[float, str]] = {
    0.8: (0.77015933, "01000 11001 10000 00011 10100 10000 01001 00110 01000 11000 00011 00100"),
    0.9: (0.85990278, "11000 11001 10100 00111 10101 10000 01001 00110 01000 11010 11011 00100"),
    0.95: (0.88787301, "11000 11111 10100 01111 11111 10000 01001 01110 01000 11010 11011 00100"),
}


def draw(generator: np.random.Generator, classes: int, images: int) -> tuple[Tensor, Tensor]:
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1.5
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.mark.parametrize("coverage", MAPIE)
def test_marginal_sets_are_those_of_mapie(coverage: float) -> None:
    generator = np.random.default_rng(0)
    held_out = measure_held_out(*draw(generator, 5, 83), 1.0, [0.2] * 5)
    limits = class_thresholds(held_out.probabilities, held_out.labels, 5, coverage, "marginal")
    quantile, sets = MAPIE[coverage]
    assert limits == pytest.approx([1 - quantile] * 5, abs=1e-7)
    members = in_sets(draw(generator, 5, 12)[0], limits, 1.0)
    assert " ".join("".join(str(int(cell)) for cell in row) for row in members) == sets


def test_the_finite_sample_quantile_by_hand() -> None:
    nine = np.linspace(0.1, 0.9, 9)
    assert threshold(nine, 0.9) == pytest.approx(0.1)  # rank ceil(10 * 0.9) = 9 of 9: the smallest probability
    assert threshold(nine, 0.85) == pytest.approx(0.1) and threshold(nine, 0.8) == pytest.approx(0.2)
    assert threshold(nine, 0.91) == 0 and threshold(nine[:8], 0.9) == 0 and threshold(nine[:0], 0.5) == 0
    for count in (1, 7, 100, 101):
        values = np.random.default_rng(count).random(count)
        for coverage in (0.05, 0.5, 0.9):
            rank = math.ceil((count + 1) * coverage)
            wanted = 1 - np.sort(1 - values)[rank - 1] if rank <= count else 0.0
            assert threshold(values, coverage) == pytest.approx(wanted)


def test_kinds_of_thresholds_by_hand() -> None:
    probabilities = np.concatenate([np.linspace(0.5, 0.9, 19), np.linspace(0.05, 0.4, 19), [0.3]])
    labels = np.array([0] * 19 + [1] * 19 + [2])
    marginal, classwise, interpolated = (class_thresholds(probabilities, labels, 4, 0.9, kind) for kind in KINDS)
    assert len(set(marginal)) == 1 and classwise[0] > marginal[0] > classwise[1]
    assert classwise[2:].tolist() == [0, 0]  # one image, and none
    assert np.allclose(interpolated, WEIGHT * classwise + (1 - WEIGHT) * marginal)
    assert without_threshold(labels, 4, 0.9) == 2 and without_threshold(labels, 4, 0.5) == 1


def test_weighted_thresholds_are_the_plain_ones_for_the_held_out_images_own_shares() -> None:
    generator = np.random.default_rng(1)
    probabilities, labels = generator.random(200), generator.integers(0, 4, 200)
    own = np.bincount(labels) / 200
    assert np.allclose(shared_thresholds(probabilities, labels, 4, 0.9, own), threshold(probabilities, 0.9))
    none = shared_thresholds(probabilities, labels, 5, 0.9, np.array([0, 0, 0, 0.5, 0.5]))
    assert none[4] == 0 and none[3] == pytest.approx(threshold(probabilities[labels == 3], 0.9))


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_coverage_by_simulation(coverage: float) -> None:
    """Held-out images long-tailed, test images alike: each kind covers what it promises, and no other is promised."""
    generator = np.random.default_rng(2)
    shares = np.array([0.7, 0.2, 0.1])
    strength = np.array([3.0, 1.0, 0.2])  # rare classes are hard
    alike = np.full(3, 1 / 3)

    def images(count: int, of: np.ndarray) -> tuple[Tensor, Tensor]:
        labels = generator.choice(3, size=count, p=of)
        logits = generator.normal(size=(count, 3))
        logits[np.arange(count), labels] += strength[labels]
        return torch.from_numpy(logits), torch.from_numpy(labels)

    found: dict[str, list[float]] = {name: [] for name in (*KINDS, "weighted", "marginal, alike", "classwise, rare")}
    for _ in range(150):
        held_out = measure_held_out(*images(120, shares), 1.0, [1 / 3] * 3)
        known = (held_out.probabilities, held_out.labels, 3, coverage)
        limits = {kind: class_thresholds(*known, kind) for kind in KINDS}
        limits["weighted"] = shared_thresholds(*known, alike)
        like, alike_images = images(200, shares), images(200, alike)
        covered = {
            (name, which): in_sets(logits, own, 1.0)[torch.arange(200), labels].double()
            for name, own in limits.items()
            for which, (logits, labels) in (("like", like), ("alike", alike_images))
        }
        for kind in KINDS:
            found[kind].append(float(covered[kind, "like"].mean()))
        found["weighted"].append(float(covered["weighted", "alike"].mean()))
        found["marginal, alike"].append(float(covered["marginal", "alike"].mean()))
        found["classwise, rare"].append(float(covered["classwise", "alike"][alike_images[1] == 2].mean()))
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    noise = 0.01  # four standard errors of the mean of 150 repeats of 200 images
    assert coverage - noise < mean["marginal"] < coverage + 1 / 121 + noise
    assert min(mean["classwise"], mean["classwise, rare"], mean["weighted"]) > coverage - noise
    assert mean["interpolated"] > 1 - 2 * (1 - coverage) - noise
    assert mean["marginal, alike"] < coverage - 5 * noise  # why classes are asked for


def test_the_report_counts_by_group() -> None:
    logits = torch.tensor([[4.0, 0, 0], [0.0, 0, 0], [0.0, 4, 0], [0.0, 0, 4]])
    labels = torch.tensor([0, 0, 1, 1])
    counts = np.array([500, 50, 5])
    held_out = measure_held_out(logits.repeat(30, 1), torch.tensor([0, 0, 1, 2]).repeat(30), 1.0, [1 / 3] * 3)
    report = sets_report(logits, labels, counts, held_out, 0.7)
    marginal = report["marginal"]
    assert marginal["coverage"] == {"all": 50, "many": 50, "medium": 50, "few": None, "per_class": [50, 50, None]}
    assert marginal["size"]["all"] == 0.75 and marginal["empty"] == 25
    text = sets_text(report)
    assert "120 held-out images" in text and "as frequent as theirs" in text and "too few" not in text
    assert [line.split() for line in text.splitlines()[2:5]] == [
        ["covered,", name, *(f"{report[kind]['coverage'][name]:.2f}" for kind in KINDS)]
        for name in ("all", "many", "medium")
    ]
    assert max(map(len, text.splitlines()[1:10])) <= 80 and text.splitlines()[9].split()[:2] == ["size,", "few"]
    assert "2 classes have too few" in sets_text(sets_report(logits, labels, counts, held_out, 0.98))


def record(**changes: Any) -> dict[str, Any]:
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 0, 2] * 5)
    return {**pack_held_out(measure_held_out(logits, labels, 0.5, [0.5, 0.25, 0.25])), **changes}


def test_a_record_goes_through_json_and_comes_back() -> None:
    kept = json.loads(json.dumps(record()))
    found = unpack_held_out(kept)
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 0, 2] * 5)
    wanted = (logits.double() / 0.5).softmax(dim=1)[torch.arange(20), labels].float().numpy()
    assert found.labels.tolist() == [0] * 10 + [2] * 10 and found.temperature == 0.5
    assert found.probabilities.tolist() == [*wanted[labels == 0], *wanted[labels == 2]]
    assert found.prior == [0.5, 0.25, 0.25] and is_sound(kept) and len(json.dumps(kept)) < 300


@pytest.mark.parametrize(
    "changes",
    [
        {"images": [10, 10, 10]},
        {"images": [-10, 20, 10]},
        {"images": 20},
        {"prior": [0.5, 0.5]},
        {"prior": [0.5, 0.5, 0]},
        {"probabilities": "no base64!"},
        {"probabilities": "AADAfw==" * 20},
        {"temperature": 0},
        {"temperature": "1"},
    ],
)
def test_a_damaged_record_is_refused(changes: dict[str, Any]) -> None:
    assert not is_sound(record(**changes))
    with pytest.raises(UserError, match="damaged"):
        unpack_held_out(record(**changes))
