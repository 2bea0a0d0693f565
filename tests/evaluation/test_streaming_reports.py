"""Reports a block of rows at a time: the numbers of the whole, without ever holding it, wherever the features are."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from datasets.long_tail import FIELD_BOUNDS, Augmentation
from evaluation import blocks
from evaluation import measure as evaluation
from evaluation.blocks import row_blocks
from evaluation.logits_magnitude import MagnitudeStatistics, logits_magnitude
from evaluation.measure import SplitLogits, logits_report, rebalanced_report, training_fit
from evaluation.metrics import (
    calibration_error,
    class_wise_column_means,
    classification_report,
    column_means,
    feature_variance_ratio,
    fit_temperature,
    prediction_report,
    rebalance,
    rebalanced_predictions,
)
from evaluation.plots import accuracy_per_class, draw_plots, logits_per_class, training_curves
from evaluation.probabilities import SCORES, probability_scores, top_accuracy
from evaluation.text_tables import END_CLASSES, logits_table, per_class_table, report_table
from models.heads import Cosine

CLASSES = 12
KEYS = ("loma", "sigma_true", "sigma_other", "rsd_true", "rsd_other")


def unbalanced(count: int = 500, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of which some are right, of classes of very different sizes; class 3 is absent, class 7 has one row."""
    generator = torch.Generator().manual_seed(seed)
    labels = (classes * torch.rand(count, generator=generator) ** 2).long()
    labels[(labels == 3) | (labels == 7)] = 0
    labels[count // 2] = 7
    logits = 1.5 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += torch.linspace(-1, 3, classes)[labels]
    return logits, labels


def two_pass(logits: Tensor, labels: Tensor) -> dict[str, dict[str, list[float | None]]]:
    """LoMa, deviations and RSD from all logits at once in NumPy's float64: mean first, then the distances to it."""
    raw, y = logits.double().numpy(), labels.numpy()
    classes = raw.shape[1]
    centred = raw - raw.mean(axis=1, keepdims=True)
    row = centred * classes / (classes - 1)
    readings: dict[str, dict[str, list[float | None]]] = {}
    for name, values in (("column", centred), ("row", row), ("uncentred", raw)):
        found: dict[str, list[float | None]] = {key: [] for key in KEYS}
        for k in range(classes):
            own, others = values[y == k, k], values[y != k, k]
            loma = own.mean() if len(own) else None
            if name != "row" and loma is not None:
                loma = loma - others.mean() if len(others) else None
            sigmas = [float(part.std(ddof=1)) if len(part) > 1 else None for part in (own, others)]
            divisor = loma if loma is not None and loma > 1e-6 else None
            ratios = [None if sigma is None or divisor is None else sigma / divisor for sigma in sigmas]
            for key, value in zip(KEYS, (loma, *sigmas, *ratios), strict=True):
                found[key].append(value)
        readings[name] = found
    return readings


def assert_same(found: Any, expected: Any, rel: float = 1e-9) -> None:
    assert list(found) == ["column", "row", "uncentred"]
    for name, of_reading in expected.items():
        assert list(found[name]) == list(KEYS)
        for key, values in of_reading.items():
            assert len(found[name][key]) == len(values)
            for k, (got, value) in enumerate(zip(found[name][key], values, strict=True)):
                if value is None:
                    assert got is None, (name, key, k)
                else:
                    assert got == pytest.approx(value, rel=rel, abs=1e-11), (name, key, k)


def small_blocks(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK", numbers)


# LoMa and RSD in one pass


@pytest.mark.parametrize("rows", [1, 2, 7, 499, 500, 10_000])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_blocks_of_any_size_give_the_two_pass_result(monkeypatch: pytest.MonkeyPatch, rows: int, offset: float) -> None:
    small_blocks(monkeypatch, rows * CLASSES)
    logits, labels = unbalanced()
    logits = logits.double() + offset  # sums of squares would lose 12 of their digits to it
    assert_same(logits_magnitude(logits, labels), two_pass(logits, labels), rel=1e-9 if offset == 0 else 1e-7)


@pytest.mark.parametrize("order", ["drawn", "sorted", "reversed"])
def test_parts_may_be_added_one_after_the_other(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    """Sorted labels make blocks of one class alone, whose columns have no other row in them."""
    small_blocks(monkeypatch, 16 * CLASSES)
    logits, labels = unbalanced()
    if order != "drawn":
        rows = labels.argsort(descending=order == "reversed", stable=True)
        logits, labels = logits[rows], labels[rows]
    statistics = MagnitudeStatistics(CLASSES)
    for start, end in ((0, 0), (0, 1), (1, 250), (250, 500)):
        statistics.add(logits[start:end], labels[start:end])
    assert_same(statistics.result(), two_pass(logits, labels))


def test_of_no_rows_there_is_nothing() -> None:
    result = MagnitudeStatistics(4).result()
    assert all(values == [None] * 4 for of_reading in result.values() for values in of_reading.values())


@pytest.mark.parametrize("order", ["sorted", "mixed"])
@pytest.mark.parametrize("rows", [3, 11, 100])
def test_equal_logits_have_deviation_zero_exactly(monkeypatch: pytest.MonkeyPatch, order: str, rows: int) -> None:
    small_blocks(monkeypatch, rows * 5)
    labels = torch.arange(33) % 3
    labels = labels.sort().values if order == "sorted" else labels
    values = torch.tensor([0.1, -0.7, 1 / 3, 1e5, 2.3], dtype=torch.float64)  # three times 0.1 is not 0.3
    logits = values.repeat(33, 1)
    result = logits_magnitude(logits, labels)
    for reading in result.values():
        assert reading["sigma_true"] == [0.0, 0.0, 0.0, None, None]
        assert reading["sigma_other"] == [0.0] * 5
    assert result["column"]["loma"] == [0.0, 0.0, 0.0, None, None]

    own = torch.rand(33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(33), labels] = own  # what a class's own rows hold says nothing of the others
    uncentred = logits_magnitude(logits, labels)["uncentred"]
    assert uncentred["sigma_other"] == [0.0] * 5
    assert uncentred["sigma_true"][:3] == pytest.approx([float(own[labels == k].std()) for k in range(3)], rel=1e-12)


def test_logits_given_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 40)
    logits, labels = unbalanced(count=40)
    logits, features = logits.double(), torch.randn(40, 6, dtype=torch.float64)
    before = (logits.clone(), features.clone())
    classification_report(logits, labels, np.ones(CLASSES, dtype=np.int64))
    logits_magnitude(logits, labels)
    fit_temperature(logits, labels)
    rebalanced_predictions(logits, column_means(logits), 1.0)
    class_wise_column_means(logits, labels)
    feature_variance_ratio(features, labels)
    assert torch.equal(logits, before[0]) and torch.equal(features, before[1])


# The other measures


def test_rows_are_cut_into_blocks_that_cover_them(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 25)
    assert list(row_blocks(torch.zeros(5, 10))) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(row_blocks(torch.zeros(2, 100))) == [slice(0, 1), slice(1, 2)]  # a row at least
    assert list(row_blocks(torch.zeros(0, 3))) == []
    assert list(row_blocks(torch.zeros(3, 10), torch.device("cuda"))) == [slice(0, 3)]


@pytest.mark.parametrize("numbers", [1, 100, 1000])
def test_measures_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    logits, labels = unbalanced()
    features = torch.randn(500, 9, generator=torch.Generator().manual_seed(1))

    def measured() -> list[Any]:
        means = column_means(logits)
        return [
            calibration_error(logits, labels),
            fit_temperature(logits, labels),
            means.tolist(),
            class_wise_column_means(logits, labels).tolist(),
            feature_variance_ratio(features, labels),
            rebalanced_predictions(logits, means, 1.0).tolist(),
        ]

    whole = measured()
    assert whole[5] == rebalance(logits, logits.double().softmax(dim=1).mean(dim=0), 1.0).argmax(dim=1).tolist()
    assert whole[2] == pytest.approx(logits.double().softmax(dim=1).mean(dim=0).tolist(), rel=1e-12)
    small_blocks(monkeypatch, numbers)
    for found, expected in zip(measured(), whole, strict=True):
        assert found == pytest.approx(expected, rel=1e-11)


def test_a_temperature_divides_the_logits_before_the_calibration_error() -> None:
    logits, labels = unbalanced()
    for temperature in (0.3, 1.0, 4.0):
        expected = calibration_error(logits.double() / temperature, labels)
        assert calibration_error(logits, labels, temperature=temperature) == pytest.approx(expected, rel=1e-12)


def test_a_report_of_predictions_is_that_of_logits_without_calibration() -> None:
    logits, labels = unbalanced()
    counts = np.array([500, 200, 101, 100, 60, 20, 20, 19, 5, 2, 2, 1])
    report = classification_report(logits, labels, counts)
    assert {name: report.pop(name) for name in SCORES} == probability_scores(logits, labels)
    assert report.pop("top_5") == top_accuracy(logits, labels)
    assert prediction_report(logits.argmax(dim=1), labels, counts) == report
    assert report["all"] == pytest.approx(100 * float((logits.argmax(dim=1) == labels).double().mean()))


def test_large_numbers_leave_the_variance_ratio_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 64)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    features = torch.randn(300, 8, generator=generator, dtype=torch.float64) + labels[:, None]
    assert feature_variance_ratio(features + 1e6, labels) == pytest.approx(feature_variance_ratio(features, labels))


# Training images: a block at a time


class Watched(nn.Linear):
    """A classifier that remembers how many rows it was given at once."""

    def __init__(self, width: int) -> None:
        super().__init__(width, CLASSES)
        self.rows: list[int] = []

    def forward(self, features: Tensor) -> Tensor:
        self.rows.append(len(features))
        return super().forward(features)


@dataclasses.dataclass
class Setting:
    """A classifier and three splits of features, those of the training images in a file."""

    features: dict[str, Tensor]
    images: Any
    data: Any
    classifier: Watched

    @property
    def logits_of(self) -> SplitLogits:
        return SplitLogits(
            lambda split, mirrored: self.features[split].flip(1) if mirrored else self.features[split], self.classifier
        )


class Images(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.labels)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    torch.manual_seed(0)
    labels = {split: unbalanced(count, seed=i)[1] for i, (split, count) in enumerate(SPLITS.items())}
    features = {split: torch.randn(len(own), 10) + own[:, None] / 6 for split, own in labels.items()}
    np.save(tmp_path / "train.npy", features["train"].numpy())
    # Copy on write, like a file that is opened for reading only, but PyTorch does not warn of it.
    features["train"] = torch.from_numpy(np.load(tmp_path / "train.npy", mmap_mode="c"))
    data = SimpleNamespace(
        num_classes=CLASSES,
        class_counts=np.bincount(labels["train"].numpy(), minlength=CLASSES),
        shot_bounds=FIELD_BOUNDS,
        augmentation=Augmentation(padding=0, mirror=True, mean=(0.0,) * 3, std=(1.0,) * 3),
    )
    return Setting(features, {split: Images(labels=own) for split, own in labels.items()}, data, Watched(10))


SPLITS = {"train": 400, "holdout": 90, "test": 130}


def test_no_pass_over_the_training_images_holds_many_of_their_logits(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "CPU_CHUNK", 16 * CLASSES)
    join = SplitLogits._whole

    def only_others(logits_of: SplitLogits, split: str, mirrored: bool) -> Tensor:
        assert split != "train"
        return join(logits_of, split, mirrored)

    monkeypatch.setattr(SplitLogits, "_whole", only_others)
    labels = setting.images["train"].labels
    fit = training_fit(setting.logits_of, setting.images)
    assert setting.classifier.rows == [16] * 25
    with torch.no_grad():
        whole = setting.classifier(setting.features["train"])
    assert fit.accuracy == pytest.approx(100 * float((whole.argmax(dim=1) == labels).double().mean()), rel=1e-12)
    assert_same(fit.magnitude, two_pass(whole, labels), rel=1e-4)  # float32 logits of other batch shapes

    setting.classifier.rows.clear()
    logits_of = setting.logits_of
    report = logits_report(logits_of, setting.images)
    assert max(setting.classifier.rows) == 16
    assert report["train"] == fit.magnitude
    assert_same(report["test"], two_pass(logits_of("test"), setting.images["test"].labels))
    setting.classifier.rows.clear()
    logits_report(logits_of, setting.images, fit)  # nothing is computed that is known
    assert setting.classifier.rows == []


def test_all_logits_of_a_split_are_its_blocks_joined(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        expected = {split: setting.classifier(own) for split, own in setting.features.items()}
    for block in (7 * CLASSES, 1 << 20):
        monkeypatch.setattr(evaluation, "CPU_CHUNK", block)
        logits_of = setting.logits_of
        for split, values in expected.items():
            torch.testing.assert_close(logits_of(split), values)
            assert logits_of(split) is logits_of(split)
            assert not logits_of(split).requires_grad
            rows = torch.cat([torch.arange(SPLITS[split])[own] for own, _ in logits_of.blocks(split)])
            assert rows.tolist() == list(range(SPLITS[split]))
    torch.testing.assert_close(logits_of("test", True), setting.classifier(setting.features["test"].flip(1)).detach())


def test_features_of_half_precision_meet_the_classifier_in_its_own(setting: Setting) -> None:
    setting.features["test"] = setting.features["test"].half()
    logits = setting.logits_of("test")
    assert logits.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(logits, setting.classifier(setting.features["test"].float()))


def test_blocks_go_to_the_device_of_the_classifier(setting: Setting) -> None:
    """The meta device stands in for a GPU: features stay on the CPU, logits come out on the device."""
    logits_of = SplitLogits(lambda split, _: setting.features[split], Cosine(nn.Linear(10, CLASSES)).to("meta"))
    blocks = list(logits_of.blocks("train"))
    assert {logits.device.type for _, logits in blocks} == {"meta"}
    assert logits_of("test").shape == (SPLITS["test"], CLASSES) and logits_of("test").device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_on_the_cpu_and_a_classifier_on_a_gpu(setting: Setting) -> None:
    expected = logits_report(setting.logits_of, setting.images)
    labels, features = setting.images["train"].labels, setting.features["train"]
    ratio = feature_variance_ratio(features, labels)
    setting.classifier.cuda()
    for split, images in setting.images.items():
        images.labels = images.labels.cuda()
        assert setting.features[split].device.type == "cpu" and setting.logits_of(split).is_cuda
    found = logits_report(setting.logits_of, setting.images)
    for split in ("train", "test"):
        assert_same(found[split], expected[split], rel=1e-3)
    for own in (labels, labels.cuda()):
        assert feature_variance_ratio(features, own) == pytest.approx(ratio, rel=1e-9)
        assert feature_variance_ratio(features.cuda(), own) == pytest.approx(ratio, rel=1e-9)


def test_rebalanced_report_is_of_the_largest_scores(setting: Setting) -> None:
    logits_of, labels = setting.logits_of, setting.images["test"].labels
    report = rebalanced_report(logits_of, setting.images, setting.data, 0.7)
    logits = {"plain": logits_of("test"), "flip": (logits_of("test") + logits_of("test", True)) / 2}
    held_out = class_wise_column_means(logits_of("holdout"), setting.images["holdout"].labels)
    for way, values in logits.items():
        for form, means in (("transductive", column_means(values)), ("inductive", held_out)):
            expected = classification_report(rebalance(values, means, 0.7), labels, setting.data.class_counts)
            for name in ("top_5", *SCORES):  # of probabilities, which scores are not
                del expected[name]
            assert report[form][way] == expected
    assert report["transductive"]["plain"] != report["inductive"]["plain"]


# On the screen


def accuracies(**more: Any) -> dict[str, Any]:
    return {"all": 50.0, "many": None, "medium": 61.234, "few": None, "macro_f1": 40.0, "ece": 3.0, **more}


def test_an_empty_shot_group_is_a_dash() -> None:
    record = {"epoch": 3, "plain": accuracies(), "flip": None}
    text = report_table({"last": record}, "honest")
    assert [line.split() for line in text.splitlines()] == [
        ["last,", "plain*"],
        ["epoch", "3"],
        ["all", "50.00"],
        ["many", "-"],
        ["medium", "61.23"],
        ["few", "-"],
        ["macro", "F1", "40.00"],
        ["ECE", "3.00"],
        ["*", "the", "headline", "of", "the", "honest", "protocol"],
    ]
    both = report_table({"last": record, "best": {**record, "epoch": None, "plain": accuracies(few=1.0)}}, "honest")
    assert "None" not in both and "nan" not in both.lower()
    assert ["few", "-", "1.00"] in [line.split() for line in both.splitlines()]
    nothing = {"mean": None, "deviation": None, "variation": None, "median": None, "count": 0}
    table = logits_table({"test": {"column": dict.fromkeys(("loma", "rsd_true", "rsd_other"), nothing)}})
    assert table.splitlines()[1].split() == ["test", "column", *["-"] * 7]


def classes_of(count: int) -> tuple[dict[str, Any], Any]:
    """A record and the data of `count` classes, whose sizes are not in their order."""
    generator = np.random.default_rng(0)
    sizes = generator.permutation(count) + 1
    values = [None if k == 1 else float(k) for k in range(count)]
    record = {
        "plain": {"per_class_accuracy": values},
        "flip": None,
        "logits": {"test": {"column": {"loma": values, "rsd_true": values}}},
    }
    names = [f"class{k}" for k in range(count)]
    return {"last": record}, SimpleNamespace(class_names=names, class_counts=sizes, num_classes=count)


def test_few_classes_are_all_in_the_table() -> None:
    records, data = classes_of(2 * END_CLASSES)
    lines = per_class_table(records, data).splitlines()
    assert [line.split()[0] for line in lines[1:]] == data.class_names
    assert lines[2].split() == ["class1", str(data.class_counts[1]), "-", "-", "-"]


def test_of_many_classes_the_largest_and_the_smallest_are_in_the_table() -> None:
    records, data = classes_of(8142)
    lines = per_class_table(records, data).splitlines()
    assert len(lines) == 2 + 2 * END_CLASSES
    sizes = [int(line.split()[1]) for line in (*lines[1 : 1 + END_CLASSES], *lines[2 + END_CLASSES :])]
    assert sizes == [*range(8142, 8142 - END_CLASSES, -1), *range(END_CLASSES, 0, -1)]
    assert f"{8142 - 2 * END_CLASSES} more" in lines[1 + END_CLASSES] and "--json" in lines[1 + END_CLASSES]
    k = int(np.argmax(data.class_counts))
    assert lines[1].split() == [f"class{k}", "8142", *[f"{k:.2f}"] * 3]


# Pictures


def measured(counts: list[int], known: bool = True) -> dict[str, Any]:
    """What the pictures are drawn from, without any LoMa and weight norm unless they are `known`."""
    classes = len(counts)
    labels = torch.arange(4 * classes) % classes
    logits = torch.randn(4 * classes, classes, generator=torch.Generator().manual_seed(0))
    nothing = {"column": {"loma": [None] * classes}}
    magnitude = logits_magnitude(logits, labels) if known else nothing
    return {
        "class_counts": counts,
        "last": {"plain": classification_report(logits, labels, np.array(counts))},
        "logits": {"train": magnitude, "test": magnitude},
        "weight_norm": [1.0 if known else None] * classes,
    }


def log_of(epochs: int) -> list[dict[str, Any]]:
    row = {"plain_all": 40.0, "plain_many": 60.0, "plain_medium": None, "plain_few": 20.0}
    if epochs == 0:
        return [{"epoch": 0, "loss": None, "lr": None, "train_accuracy": None, **row}]
    return [{"epoch": e + 1, "loss": 2 / (e + 1), "lr": 0.1, "train_accuracy": 50.0, **row} for e in range(epochs)]


def ticks(figure: Figure) -> list[list[float]]:
    """The ticks below each panel, as far as they are in it."""
    return [[x for x in axes.get_xticks() if axes.get_xlim()[0] <= x <= axes.get_xlim()[1]] for axes in figure.axes]


@pytest.mark.parametrize("classes", [2, 3, 5, 100])
def test_classes_and_epochs_are_counted_in_whole_numbers(classes: int) -> None:
    figure = logits_per_class(measured([50] * classes))
    for panel in ticks(figure):
        assert panel and all(x == round(x) and 0 <= x < classes for x in panel)
        assert len(panel) == classes or classes > 5
    for epochs in (1, 2, 5):
        for panel in ticks(training_curves(pd.DataFrame(log_of(epochs)))):
            assert panel and all(x == round(x) for x in panel)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def test_a_panel_without_any_number_says_so() -> None:
    assert texts(logits_per_class(measured([50, 3], known=False))) == [
        "no class has a LoMa",
        "this classifier has no row norms",
    ]
    assert texts(logits_per_class(measured([50, 3]))) == []
    assert texts(training_curves(pd.DataFrame(log_of(0)))) == ["no epoch was trained: the classifier is computed"]
    assert texts(training_curves(pd.DataFrame(log_of(1)))) == []


def test_sizes_within_one_decade_are_named() -> None:
    figure = accuracy_per_class(measured([60, 40]))
    names = [label.get_text() for label in figure.axes[0].get_xticklabels(minor=True)]
    assert any(text.isdigit() for text in names)


def test_pictures_of_thousands_of_classes_stay_small(tmp_path: Path) -> None:
    counts = [int(1000 * 500 ** (-k / 2999)) for k in range(3000)]
    record = measured(counts)
    draw_plots(tmp_path / "plots", record, log_of(90))
    assert all(0 < path.stat().st_size < 300_000 for path in (tmp_path / "plots").iterdir())
    left = logits_per_class(record).axes[0]
    points, median = left.lines[:2]
    assert points.get_linestyle() == "None" and 0 < (points.get_alpha() or 1) < 1
    loma = np.array(record["logits"]["train"]["column"]["loma"])
    assert np.asarray(median.get_ydata())[1500] == pytest.approx(np.median(loma[1470:1530]))
