"""Intervals and paired tests: oracles, known answers, and how often an interval covers what it should."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from evaluation.class_accuracies import ZERO_AS
from evaluation.intervals import findings
from evaluation.intervals.bootstrap import SCORES, bootstrap, class_accuracies, interval, resampled_accuracies, scores
from evaluation.intervals.comparison import Resampled, Sample, differences, intervals, sample
from evaluation.intervals.correct import pack_correct, unpack_correct
from evaluation.intervals.findings import Group, compare_groups, headline_text, p_text
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
    drawn = dict(resampled_accuracies(correct[None], images, draws=3))
    assert list(drawn) == [0, 2, 3, 4] and all((values == 100).all() for values in drawn.values())
    empty = scores(class_accuracies(correct[None], images), images, np.array([500, 120, 600, 150, 200]))
    assert np.isnan(empty["few"]).all()


@pytest.mark.parametrize("count", [2, 40])
def test_the_draws_spread_as_the_binomial_law_says(count: int) -> None:
    """With the unbiased variance of a class, over n - 1, however few images it has."""
    images = np.full(5, count)
    correct = draw_correct([0.9, 0.8, 0.5, 0.2, 0.1], 2, images)
    drawn = bootstrap(correct[None], images, COUNTS, {"a": [0]}, draws=4000)["a"]["all"]
    rates = class_accuracies(correct[None], images)[0] / 100
    expected = 100 * np.sqrt((rates * (1 - rates) / (count - 1)).mean() / len(images))
    assert drawn.std() == pytest.approx(expected, rel=0.05)
    assert drawn.mean() == pytest.approx(100 * correct.mean(), abs=4 * expected / np.sqrt(4000))


def test_the_draws_are_those_of_images_drawn_one_by_one() -> None:
    correct = np.stack([draw_correct([0.7] * 5, seed) for seed in (0, 1)])
    for label, found in resampled_accuracies(correct, IMAGES, draws=7):
        drawn = np.random.default_rng([0, label]).integers(40, size=(7, 39), dtype=np.int32)
        own = correct[:, 40 * label : 40 * (label + 1)]
        assert found == pytest.approx(100 * own[:, drawn].mean(axis=2).T)


def test_a_method_has_the_draws_it_has_alone() -> None:
    correct = np.stack([draw_correct([0.6] * 5, seed) for seed in range(3)])
    together = bootstrap(correct, IMAGES, COUNTS, {name: [row] for row, name in enumerate("abc")}, draws=50)
    alone = bootstrap(correct[1:2], IMAGES, COUNTS, {"b": [0]}, draws=50)
    assert all(np.array_equal(together["b"][score], alone["b"][score]) for score in SCORES)


# How often an interval of 95 % has the truth in it; four deviations of the simulation on either side.
RATES = np.linspace(0.75, 0.15, 30)


def coverage(score: str, rates: np.ndarray, count: int, basic: bool = True, trials: int = 200) -> float:
    """The share of simulated test sets of `count` images a class whose interval has the true score in it."""
    images, counts = np.full(len(rates), count), np.repeat([500, 60, 5], len(rates) // 3)
    truth = float(scores(100 * rates[None], images, counts)[score][0])
    covered = 0
    for seed in range(trials):
        correct = draw_correct(rates.tolist(), seed, images)[None]
        value = float(scores(class_accuracies(correct, images), images, counts)[score][0])
        drawn = bootstrap(correct, images, counts, {"a": [0]}, draws=300, seed=seed)["a"][score]
        low, high = interval(value, drawn)[1:] if basic else np.quantile(drawn, [0.025, 0.975])
        covered += low <= truth <= high
    return covered / trials


@pytest.mark.parametrize(("score", "count"), [("all", 20), ("all", 3), ("few", 20), ("harmonic", 60)])
def test_intervals_cover_the_truth_as_often_as_they_say(score: str, count: int) -> None:
    deviation = np.sqrt(0.95 * 0.05 / 200)
    # a little less for few draws and for steps of one image; the harmonic mean's are too wide rather than too narrow
    high = 1.0 if score == "harmonic" else 0.95 + 4 * deviation
    assert 0.94 - 4 * deviation <= coverage(score, RATES, count) <= high


def test_percentile_intervals_of_the_harmonic_mean_would_not_cover() -> None:
    assert coverage("harmonic", RATES, 60, basic=False, trials=60) < 0.8


def test_differences_are_paired() -> None:
    """Two classifiers that differ on a few images differ surely, though their own intervals overlap."""
    first = draw_correct([0.6] * 5, 3)
    second = first.copy()
    second[np.flatnonzero(~first)[:12]] = True
    drawn = bootstrap(np.stack([first, second]), IMAGES, COUNTS, {"a": [0], "b": [1]}, draws=2000)
    own = [interval(100 * each.mean(), drawn[name]["all"]) for name, each in zip("ab", (first, second), strict=True)]
    assert own[0].high > own[1].low
    value = 100 * (second.mean() - first.mean())
    assert interval(value, drawn["b"]["all"] - drawn["a"]["all"]).low > 0
    assert bootstrap_p(value, drawn["b"]["all"] - drawn["a"]["all"]) < 0.01 and mcnemar(first, second) < 0.01


def test_seeds_widen_an_interval_by_what_they_differ() -> None:
    same, other = draw_correct([0.5] * 5, 4), draw_correct([0.8] * 5, 5)
    alike = bootstrap(np.stack([same, same]), IMAGES, COUNTS, {"a": [0, 1]}, draws=1000)["a"]["all"]
    alone = bootstrap(np.stack([same]), IMAGES, COUNTS, {"a": [0]}, draws=1000)["a"]["all"]
    apart = bootstrap(np.stack([same, other]), IMAGES, COUNTS, {"a": [0, 1]}, draws=1000)["a"]["all"]
    assert alike == pytest.approx(alone) and apart.std() > 2 * alike.std()


def test_draws_in_parts_and_draws_again_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = np.stack([draw_correct([0.5] * 5, seed) for seed in range(3)])
    whole = bootstrap(correct, IMAGES, COUNTS, {"a": [0]}, draws=500)
    again = bootstrap(correct, IMAGES, COUNTS, {"a": [0]}, draws=500)
    assert all(np.array_equal(whole["a"][score], again["a"][score]) for score in SCORES)
    monkeypatch.setattr("evaluation.intervals.bootstrap.CELLS", 40 * 64)
    parts = bootstrap(correct, IMAGES, COUNTS, {"a": [0]}, draws=500)
    assert all(np.array_equal(whole["a"][score], parts["a"][score]) for score in SCORES)


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
    p = bootstrap_p(100 * (second.mean() - first.mean()), drawn["b"]["all"] - drawn["a"]["all"])
    assert p == pytest.approx(mcnemar(first, second), abs=0.05)


def test_the_bootstrap_p_value_is_uniform_where_nothing_differs() -> None:
    generator = np.random.default_rng(1)
    found = [(value, generator.normal(value, 1, size=500)) for value in generator.normal(size=400)]
    values = [bootstrap_p(float(value), drawn) for value, drawn in found]
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.045)
    assert bootstrap_p(0.0, np.zeros(100)) == pytest.approx(1.0, abs=0.02)
    # the interval that ends at 0 is that of the level 1 - p
    value, drawn = 1.5, generator.normal(1.5, 1, size=4001)
    p = bootstrap_p(value, drawn)
    assert interval(value, drawn, 1 - p).low == pytest.approx(0, abs=0.02)


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


# Lines of a table


def report(correct: np.ndarray, images: np.ndarray = IMAGES) -> dict[str, object]:
    labels = np.repeat(np.arange(len(images)), images)
    return {"class_images": images.tolist(), "correct": pack_correct(correct, labels)}


def line(name: str, *rows: np.ndarray, test: str = "t") -> Sample:
    found = sample({"run": name}, [report(row) for row in rows], COUNTS.tolist(), [test] * len(rows))
    assert found is not None
    return found


def test_a_line_without_a_record_or_of_two_test_sets_is_no_sample() -> None:
    own = report(draw_correct([0.5] * 5, 0))
    counts = COUNTS.tolist()
    assert sample({"run": "a"}, [own, {"all": 3.0}], counts, ["t", "t"]) is None
    assert sample({"run": "a"}, [own, None], counts, ["t", "t"]) is None
    assert sample({"run": "a"}, [own, own], counts, ["t", "u"]) is None
    assert sample({"run": "a"}, [], counts, []) is None
    with pytest.raises(ValueError, match="same test images"):
        Resampled([line("a", draw_correct([0.5] * 5, 0)), line("b", draw_correct([0.5] * 5, 0), test="u")])


def test_holm_is_over_the_lines_and_only_what_can_be_told_is_ahead() -> None:
    first = draw_correct([0.6] * 5, 3)
    better, close = first.copy(), first.copy()
    better[np.flatnonzero(~first)[:20]] = True
    close[np.flatnonzero(~first)[0]] = True
    lines = [line("zero", first), line("better", better), line("close", close)]
    found = differences(Resampled(lines), lines, lines[0])
    of_all = found[found["measure"] == "all"].set_index("run")
    assert list(of_all.index) == ["better", "close"]
    assert of_all["verdict"].to_dict() == {"better": "ahead", "close": "not told apart"}
    assert of_all["value"].to_dict() == pytest.approx({"better": 10.0, "close": 0.5})
    assert of_all["p_holm"].tolist() == pytest.approx(holm(of_all["p"].tolist()))
    assert of_all.loc["better", "mcnemar_p"] == pytest.approx(2 * 0.5**20)
    turned = differences(Resampled(lines), lines, lines[1]).set_index("run")
    assert set(turned["verdict"]) == {"behind"} and list(turned.index) == ["zero", "close"] * 2


def test_the_best_is_bold_where_it_is_ahead_of_all() -> None:
    first = draw_correct([0.6] * 5, 3)
    better = first.copy()
    better[np.flatnonzero(~first)[:20]] = True
    sure, unsure = ([line("zero", first), line("other", other)] for other in (better, draw_correct([0.6] * 5, 4)))
    for lines, stars, words in ((sure, 1, "other is ahead of all others"), (unsure, 0, "cannot be told apart from")):
        found = compare_groups([Group("", lines, lines[0])], "here")
        table = next(iter(found.tables.values()))
        assert table["all"].str.startswith("**").sum() == stars and words in found.notes[0]
        assert all(len(table.columns) <= 6 for table in found.tables.values())
        assert len(found.long) == 2 * (2 + 1 + (1 if found.notes[0].startswith("other") else 0))


def test_a_group_is_named_once() -> None:
    """Its lines begin with the value that it is called by."""
    first = draw_correct([0.6] * 5, 3)
    better = first.copy()
    better[np.flatnonzero(~first)[:20]] = True
    rights = {"a": first, "b": better}
    lines = [replace(line(name, right), label={"IF": "100", "run": name}) for name, right in rights.items()]
    for name in ("IF 100", "100"):
        note = compare_groups([Group(name, lines, lines[0])], "here").notes[0]
        assert note.startswith(f"{name}: b is ahead of all")


def test_the_harmonic_mean_has_no_interval_where_a_class_has_no_image_right() -> None:
    lost = draw_correct([0.6] * 5, 3)
    lost[:40] = False
    lines = [line("lost", lost), line("kept", draw_correct([0.6] * 5, 3))]
    resampled = Resampled(lines)
    own = intervals(resampled, lines).set_index(["run", "measure"])
    assert np.isnan(own.loc[("lost", "harmonic"), "low"]) and own.loc[("lost", "all"), "low"] > 0
    assert own.loc[("kept", "harmonic"), "low"] > 0 and own.loc[("lost", "harmonic"), "value"] < 5 * ZERO_AS
    found = differences(resampled, lines, lines[0]).set_index("measure")
    assert np.isnan(found.loc["harmonic", "p_holm"]) and found.loc["harmonic", "verdict"] == "not told apart"
    assert found.loc["all", "verdict"] == "ahead"
    assert "(no interval: of 1 class no image is right)" in headline_text(report(lost), COUNTS)
    assert headline_text({"all": 3.0}, COUNTS) == ""


def test_an_accuracy_has_no_interval_beyond_its_bounds() -> None:
    drawn = np.linspace(0, 12, 100)
    assert interval(1.0, drawn).low < 0
    assert interval(1.0, drawn, within=(0, 100)).low == 0


def test_a_harmonic_mean_has_no_interval_above_that_of_the_mean() -> None:
    """With one class nearly lost the basic interval reaches far above; it is cut where a class weighs as another."""
    images = np.full(20, 50)
    nearly = np.concatenate([np.arange(50) < (2 if label == 0 else 25) for label in range(20)])
    lines = [Sample({"run": "equal"}, nearly[None], images, np.full(20, 9), "test")]
    drawn = Resampled(lines)
    mean, harmonic = (intervals(drawn, lines).set_index("measure").loc[name] for name in ("all", "harmonic"))
    basic = interval(harmonic["value"], drawn.draws[lines[0].key]["harmonic"], within=(0, 100))
    assert basic.high > mean["high"] == harmonic["high"] and harmonic["low"] == basic.low
    assert harmonic["value"] == pytest.approx(20 / (1 / 4 + 19 / 50)) and harmonic["value"] < mean["value"]
    for classes in range(1, 40):  # mean and harmonic mean are one, but for rounding
        every = np.full(classes, 3)
        same = Sample({"run": "same"}, np.ones((1, 3 * classes), bool), every, every, "test")
        of_same = intervals(Resampled([same]), [same])
        assert (of_same["high"] >= of_same["value"]).all()
    more = Sample(
        {"run": "more"}, np.append(nearly, True)[None], images + (np.arange(20) == 19), np.full(20, 9), "test"
    )
    drawn = Resampled([more])
    mean, harmonic = (intervals(drawn, [more]).set_index("measure").loc[name] for name in ("all", "harmonic"))
    assert harmonic["high"] > mean["high"]  # `all` is not the mean of the classes there


@pytest.mark.parametrize(("p", "text"), [(0.0002, "< 0.001"), (0.001, "0.001"), (0.0996, "0.100"), (np.nan, "-")])
def test_no_p_value_is_shown_as_0(p: float, text: str) -> None:
    assert p_text(p) == text


def test_rows_of_a_table_have_the_intervals_that_each_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two test sets, of other training images, of a class that is never right, and without a record."""
    other, shots = np.array([4, 9, 7, 5, 5]), [COUNTS.tolist(), COUNTS[::-1].tolist()]
    rights = [draw_correct([0.2 * i, 0.5, 0.9, 0.4, 0.7], i) for i in range(3)] + [draw_correct([0.5] * 5, 9, other)]
    reports = [report(right, images) for right, images in zip(rights, [IMAGES] * 3 + [other], strict=True)]
    every, counts = [reports[0], {}, reports[3], *reports[1:3]], [shots[0], [], shots[0], shots[1], shots[0]]
    for at_once in (64, 2, 1):
        monkeypatch.setattr(findings, "DRAWN_AT_ONCE", at_once)
        found = findings.interval_columns(every, counts)
        assert list(found) == ["all_low", "all_high", "harmonic_low", "harmonic_high"]
        assert found.iloc[1].isna().all() and np.isnan(found.loc[0, "harmonic_low"])
        for place in (0, 2, 3, 4):
            one = sample({"": ""}, [every[place]], counts[place], [""])
            assert one is not None
            for _, alone in intervals(Resampled([one]), [one]).iterrows():
                ends = [found.loc[place, f"{alone['measure']}_{end}"] for end in ("low", "high")]
                np.testing.assert_array_equal(ends, [alone["low"], alone["high"]])
