"""Logits that are computed as they are looked at: the report of the whole matrix, whatever is kept of it."""

import gc
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.long_tail import FIELD_BOUNDS, Augmentation
from evaluation import blocks
from evaluation import measure as measured
from evaluation.blocks import ComputedRows, largest, row_blocks
from evaluation.logits_magnitude import logits_magnitude
from evaluation.measure import SplitLogits, calibration_report, evaluate_test, logits_report, rebalanced_report
from evaluation.metrics import (
    class_balanced_accuracy,
    class_wise_column_means,
    column_means,
    excess,
    fit_temperature,
    predicted_classes,
    prediction_report,
    rebalance,
    rebalanced_predictions,
    why_no_temperature,
)
from evaluation.per_class.confusion import most_certain_mistakes
from evaluation.prediction_sets.record import true_probabilities
from evaluation.probabilities import probability_scores, score_logits, top_accuracy
from utils.parameters import TEMPERATURES

CLASSES, COUNT = 11, 160
KINDS = ("drawn", "ties", "absent classes", "all right", "all wrong", "one class", "far apart")


def drawn(kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and labels (N,) of a kind that a report could stumble over."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (COUNT,), generator=generator)
    logits = torch.randn(COUNT, CLASSES, generator=generator)
    own = torch.arange(COUNT)
    if kind == "ties":
        logits = logits.round()
    elif kind == "absent classes":
        labels %= 4
    elif kind == "all right":
        logits[own, labels] = 9.0
    elif kind == "all wrong":
        logits[own, labels] = -9.0
    elif kind == "one class":
        labels[:] = 3
    elif kind == "far apart":
        logits = 300 * logits + 1000
    return logits, labels


def computed(logits: Tensor, chunk: int) -> ComputedRows:
    """Return a matrix as rows that are handed out a chunk at a time."""
    return ComputedRows(lambda rows: logits[rows].clone(), tuple(logits.shape), logits.device, chunk)  # type: ignore[arg-type]


def keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "KEPT", 0)
    monkeypatch.setattr(blocks, "CPU_BLOCK", 7 * CLASSES)


def test_rows_are_those_of_the_matrix_whatever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, _ = drawn("drawn")
    for kept in (0, 1 << 20):
        monkeypatch.setattr(blocks, "KEPT", kept)
        rows = computed(logits, 13)
        for asked in (slice(0, 5), slice(0, 40), slice(12, 14), slice(150, 200), slice(7, 7), slice(None)):
            assert torch.equal(rows[asked], logits[asked])
        assert torch.equal(rows.whole(), logits) and rows.whole() is rows.whole()


@pytest.mark.parametrize(("kept", "passes"), [(0, 3), (1 << 20, 1)])
def test_a_pass_computes_each_chunk_once(monkeypatch: pytest.MonkeyPatch, kept: int, passes: int) -> None:
    monkeypatch.setattr(blocks, "KEPT", kept)
    monkeypatch.setattr(blocks, "CPU_BLOCK", 4 * CLASSES)
    logits, _ = drawn("drawn")
    asked: list[slice] = []
    rows = ComputedRows(lambda own: (asked.append(own), logits[own])[1], (COUNT, CLASSES), logits.device, 12)
    for _ in range(3):
        assert torch.equal(torch.cat([rows[own] for own in row_blocks(rows)]), logits)
    assert len(asked) == passes * math.ceil(COUNT / 12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_gives_what_each_measure_gives_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(kind)
    alone = probability_scores(logits, labels), top_accuracy(logits, labels), column_means(logits)
    keep_nothing(monkeypatch)
    scored = score_logits(computed(logits, 21), labels)
    assert torch.equal(scored.predictions, logits.argmax(dim=1))
    assert scored.scores == pytest.approx(alone[0], rel=1e-12, abs=1e-12)
    assert scored.top_5 == alone[1] and scored.finite
    torch.testing.assert_close(scored.means, alone[2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, COUNT // 2, COUNT - 1])
def test_a_logit_that_is_not_finite_is_noticed(wrong: float, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_nothing(monkeypatch)
    logits, labels = drawn("drawn")
    logits[place, 2] = wrong
    assert not score_logits(computed(logits, 14), labels).finite


@pytest.mark.parametrize("kind", KINDS)
def test_measures_of_computed_rows_are_those_of_the_tensor(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(kind)
    means = column_means(logits)

    def measures(rows: Any) -> list[Any]:
        return [
            predicted_classes(rows).tolist(),
            class_balanced_accuracy(rows, labels),
            class_wise_column_means(rows, labels).tolist(),
            rebalanced_predictions(rows, means, 0.7).tolist(),
            fit_temperature(rows, labels),
            why_no_temperature(rows, labels),
            most_certain_mistakes(rows, labels, 5),
            true_probabilities(rows, labels, 1.3).tolist(),
        ]

    whole, readings = measures(logits), logits_magnitude(logits, labels)
    keep_nothing(monkeypatch)
    assert_close(measures(computed(logits, 21)), whole)
    assert_close(logits_magnitude(computed(logits, 21), labels), readings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_a_row_is_the_first_of_equal_ones(kind: str, dtype: torch.dtype) -> None:
    logits = drawn(kind)[0].to(dtype)
    logits[3] = 1.0
    logits[4, 5:] = math.inf
    logits[5] = -math.inf
    logits[6, [2, 7]] = math.nan
    logits[7, 3:], logits[7, :3] = 0.0, -0.0
    order = [max(range(CLASSES), key=lambda k, row=row: (math.isnan(row[k]), row[k], -k)) for row in logits.tolist()]
    order[6] = 2  # of two that compare with nothing the first
    for values in (logits, logits.T.contiguous().T, logits.requires_grad_()):
        assert largest(values).tolist() == order == logits.argmax(dim=1).tolist()


@pytest.mark.parametrize(
    "measure",
    [
        score_logits,
        probability_scores,
        fit_temperature,
        class_wise_column_means,
        logits_magnitude,
        true_probabilities,
        lambda rows, _: rebalanced_predictions(rows, torch.ones(CLASSES).double(), 0.7),
        lambda rows, labels: most_certain_mistakes(rows, labels, 5),
    ],
)
def test_a_pass_keeps_nothing_of_its_blocks(
    measure: Callable[[Any, Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small results that stay between large temporaries keep the allocator from their place: memory grows with N K."""
    keep_nothing(monkeypatch)
    logits, labels = drawn("drawn")
    alive: list[int] = []

    def count_tensors(rows: slice) -> Tensor:
        alive.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
        return logits[rows].clone()

    gc.freeze()  # what was there before is looked at no more
    try:
        measure(ComputedRows(count_tensors, (COUNT, CLASSES), logits.device, 7), labels)
    finally:
        gc.unfreeze()
    blocks_of_a_pass = math.ceil(COUNT / 7)
    assert len(alive) >= blocks_of_a_pass
    assert max(alive[2:]) - alive[1] < blocks_of_a_pass // 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_rebalanced_predictions_need_no_softmax(kind: str, tau: float) -> None:
    logits, _ = drawn(kind)
    means = column_means(logits)
    scores = rebalance(logits, means, tau)
    found = scores.gather(1, rebalanced_predictions(logits, means, tau)[:, None])[:, 0]
    torch.testing.assert_close(found, scores.amax(dim=1), rtol=1e-12, atol=1e-9)


def bisected(logits: Tensor, labels: Tensor) -> float | None:
    """Return the best temperature by fifty halvings of the interval, from the sign of the derivative alone."""
    low, high = -math.log(TEMPERATURES.high), -math.log(TEMPERATURES.low)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(logits, labels, math.exp(middle)).value > 0 else (middle, high)
    found = math.exp(-(low + high) / 2)
    return found if 1.001 * TEMPERATURES.low < found < 0.999 * TEMPERATURES.high else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0, 1e3])
def test_newtons_temperature_is_the_bisected_one(kind: str, scale: float) -> None:
    for seed in range(3):
        logits, labels = drawn(kind, seed)
        logits = scale * logits
        logits[torch.arange(COUNT), labels] += 1.5 * scale * (kind in ("drawn", "ties", "absent classes"))
        expected, found = bisected(logits, labels), fit_temperature(logits, labels)
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-9))


def test_a_temperature_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(*arguments: Any) -> Any:
        passes.append(arguments[2])
        return excess(*arguments)

    monkeypatch.setattr("evaluation.metrics.excess", counted)
    for scale in (0.3, 1.0, 3.0):
        logits, labels = drawn("drawn")
        logits[torch.arange(COUNT), labels] += 1.5
        passes.clear()
        assert fit_temperature(scale * logits, labels) is not None
        assert len(passes) <= 8


def test_the_slope_of_the_excess_is_its_derivative() -> None:
    logits, labels = drawn("drawn")
    step = 1e-5
    above, below = (excess(logits, labels, 0.7 + side * step).value for side in (1, -1))
    assert excess(logits, labels, 0.7).slope == pytest.approx((above - below) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("kind", ["drawn", "ties", "all right"])
def test_a_report_that_keeps_no_logits_is_the_report(kind: str, mirror: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are the logits themselves, and the classifier is the identity."""
    splits = {name: drawn(kind, seed) for seed, name in enumerate(("train", "holdout", "test"))}
    images = {name: Split(labels=labels) for name, (_, labels) in splits.items()}
    data: Any = SimpleNamespace(
        class_counts=np.bincount(splits["train"][1].numpy(), minlength=CLASSES),
        shot_bounds=FIELD_BOUNDS,
        augmentation=Augmentation(padding=0, mirror=mirror, mean=(0.0,) * 3, std=(1.0,) * 3),
    )
    classifier = nn.Linear(CLASSES, CLASSES, bias=False)
    nn.init.eye_(classifier.weight)

    def report() -> dict[str, Any]:
        logits_of = SplitLogits(
            lambda split, flip: splits[split][0].roll(1, 0) if flip else splits[split][0], classifier
        )
        return {
            **evaluate_test(logits_of, images, data),  # type: ignore[arg-type]
            "logits": logits_report(logits_of, images),  # type: ignore[arg-type]
            "calibration": calibration_report(logits_of, images, data),  # type: ignore[arg-type]
            "rebalanced": rebalanced_report(logits_of, images, data, 1.0),  # type: ignore[arg-type]
        }

    whole = report()
    (logits, _), labels = splits["test"], splits["test"][1]
    expected = prediction_report(rebalance(logits, column_means(logits), 1.0).argmax(dim=1), labels, data.class_counts)
    assert whole["rebalanced"]["transductive"]["plain"] == expected
    keep_nothing(monkeypatch)
    monkeypatch.setattr(measured, "CPU_CHUNK", 21 * CLASSES)
    assert_close(report(), whole)


class Split(SimpleNamespace):
    """The labels of a split."""

    def __len__(self) -> int:
        return len(self.labels)


def assert_close(found: Any, expected: Any) -> None:
    """Compare nested reports number by number."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, list):
        for one, value in zip(found, expected, strict=True):
            assert_close(one, value)
    else:
        assert found == (pytest.approx(expected, rel=1e-7, abs=1e-9) if isinstance(expected, float) else expected)
