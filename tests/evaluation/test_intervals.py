"""Intervals and paired tests: oracles, known answers, and how often an interval covers what it should."""

import numpy as np
import pytest
import scipy.stats

from evaluation.intervals.bootstrap import SCORES, bootstrap, class_accuracies, interval, resampled_accuracies, scores
from evaluation.intervals.correct import pack_correct, unpack_correct
from evaluation.intervals.paired import bootstrap_p, holm, mcnemar
from utils.errors import UserError

COUNTS = np.array([500, 120, 60, 15, 6])  # training images: two many, one medium, two few
IMAGES = np.full(5, 40)


def draw_correct(rates: list[float], seed: int, images: np.ndarray = IMAGES) -> np.ndarray:
    """Images predicted right, in the order of their classes, each class with its own rate."""
    generator = np.random.default_rng(seed)
    return generator.random(images.sum()) < np.repeat(rates, images)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_what_is_packed_is_unpacked_in_the_order_of_the_classes(count: int) -> None:
    generator = np.random.default_rng(count)
    labels, correct = generator.integers(3, size=count), generator.random(count) < 0.5
    found = unpack_correct(pack_correct(correct, labels), np.bincount(labels, minlength=3).tolist())
    assert found.tolist() == [value for label in range(3) for value in correct[labels == label]]


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!", "A" * 400])
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="damaged"):
        unpack_correct(text, [10, 10, 20])


def test_scores_are_those_of_the_report() -> None:
    correct = draw_correct([0.9, 0.8, 0.5, 0.2, 0.0], 1)
    accuracy = class_accuracies(correct[None], IMAGES)
    found = {name: float(value[0]) for name, value in scores(accuracy, IMAGES, COUNTS).items()}
    per_class = [100 * part.mean() for part in np.split(correct, 5)]
    assert found["all"] == pytest.approx(100 * correct.mean())
    assert found["many"] == pytest.approx(np.mean(per_class[:2])) and found["medium"] == pytest.approx(per_class[2])
    assert found["few"] == pytest.approx(np.mean(per_class[3:]))
    assert found["harmonic"] == pytest.approx(scipy.stats.hmean([max(value, 0.1) for value in per_class]))


def test_a_class_without_test_images_is_in_no_score() -> None:
    images = np.array([40, 0, 40, 40, 40])
    correct = draw_correct([1.0, 1.0, 1.0, 1.0, 1.0], 0, images)
    found = scores(class_accuracies(correct[None], images), images, COUNTS)
    assert all(float(value[0]) == pytest.approx(100) for value in found.values())
    (drawn,) = resampled_accuracies(correct[None], images, draws=3)
    assert np.isnan(drawn[:, 0, 1]).all() and (drawn[:, 0, [0, 2, 3, 4]] == 100).all()
    empty = scores(class_accuracies(correct[None], images), images, np.array([500, 120, 600, 150, 200]))
    assert np.isnan(empty["few"]).all()


def test_the_draws_spread_as_the_binomial_law_says() -> None:
    correct = draw_correct([0.9, 0.8, 0.5, 0.2, 0.1], 2)
    drawn = bootstrap(correct[None], IMAGES, COUNTS, {"a": [0]}, draws=4000)["a"]["all"]
    rates = class_accuracies(correct[None], IMAGES)[0] / 100
    expected = 100 * np.sqrt((rates * (1 - rates) / IMAGES).mean() / len(IMAGES))
    assert drawn.std() == pytest.approx(expected, rel=0.05)
    assert drawn.mean() == pytest.approx(100 * correct.mean(), abs=4 * expected / np.sqrt(4000))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rates = [0.9, 0.7, 0.5, 0.3, 0.2]
    truth, covered, trials = 100 * float(np.mean(rates)), 0, 300
    for seed in range(trials):
        correct = draw_correct(rates, seed)[None]
        found = interval(0.0, bootstrap(correct, IMAGES, COUNTS, {"a": [0]}, draws=400, seed=seed)["a"]["all"])
        covered += found.low <= truth <= found.high
    # 95 %, less a little for percentile intervals of 40 images a class; four deviations of the simulation either way
    assert 0.94 - 4 * np.sqrt(0.95 * 0.05 / trials) <= covered / trials <= 0.95 + 4 * np.sqrt(0.95 * 0.05 / trials)


def test_differences_are_paired() -> None:
    """Two classifiers that differ on a few images differ surely, though their own intervals overlap."""
    first = draw_correct([0.6] * 5, 3)
    second = first.copy()
    second[np.flatnonzero(~first)[:12]] = True
    drawn = bootstrap(np.stack([first, second]), IMAGES, COUNTS, {"a": [0], "b": [1]}, draws=2000)
    own = [interval(0.0, drawn[name]["all"]) for name in "ab"]
    assert own[0].high > own[1].low
    assert interval(0.0, drawn["b"]["all"] - drawn["a"]["all"]).low > 0
    assert bootstrap_p(drawn["b"]["all"] - drawn["a"]["all"]) < 0.01 and mcnemar(first, second) < 0.01


def test_seeds_widen_an_interval_by_what_they_differ() -> None:
    same, other = draw_correct([0.5] * 5, 4), draw_correct([0.8] * 5, 5)
    alike = bootstrap(np.stack([same, same]), IMAGES, COUNTS, {"a": [0, 1]}, draws=1000)["a"]["all"]
    alone = bootstrap(np.stack([same]), IMAGES, COUNTS, {"a": [0]}, draws=1000)["a"]["all"]
    apart = bootstrap(np.stack([same, other]), IMAGES, COUNTS, {"a": [0, 1]}, draws=1000)["a"]["all"]
    assert np.array_equal(alike, alone) and apart.std() > 2 * alike.std()


def test_draws_in_parts_and_draws_again_are_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = np.stack([draw_correct([0.5] * 5, seed) for seed in range(3)])
    whole = bootstrap(correct, IMAGES, COUNTS, {"a": [0]}, draws=500)
    again = bootstrap(correct, IMAGES, COUNTS, {"a": [0]}, draws=500)
    assert all(np.array_equal(whole["a"][score], again["a"][score]) for score in SCORES)
    monkeypatch.setattr("evaluation.intervals.bootstrap.CELLS", 3 * 5 * 64)
    parts = bootstrap(correct, IMAGES, COUNTS, {"a": [0]}, draws=500)["a"]["all"]
    assert len(parts) == 500
    assert parts.std() == pytest.approx(whole["a"]["all"].std(), rel=0.2)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 5), (3, 14), (40, 20)])
def test_mcnemar_is_the_binomial_test(only_first: int, only_second: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True, False])
    second = np.array([False] * only_first + [True] * only_second + [True, False])
    together = only_first + only_second
    expected = scipy.stats.binomtest(only_first, together, 0.5).pvalue if together else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == pytest.approx(expected)


def test_the_bootstrap_agrees_with_mcnemar_on_many_images() -> None:
    images, generator = np.full(5, 400), np.random.default_rng(0)
    first = draw_correct([0.6] * 5, 6, images)
    second = np.where(generator.random(len(first)) < 0.1, generator.random(len(first)) < 0.67, first)
    drawn = bootstrap(np.stack([first, second]), images, COUNTS, {"a": [0], "b": [1]}, draws=4000)
    assert bootstrap_p(drawn["b"]["all"] - drawn["a"]["all"]) == pytest.approx(mcnemar(first, second), abs=0.05)


def test_the_bootstrap_p_value_is_uniform_where_nothing_differs() -> None:
    generator = np.random.default_rng(1)
    values = [bootstrap_p(generator.normal(generator.normal(), 1, size=500)) for _ in range(400)]
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.045)
    assert bootstrap_p(np.zeros(100)) == pytest.approx(1.0, abs=0.02)


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
