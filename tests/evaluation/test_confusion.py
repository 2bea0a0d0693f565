"""What is taken for what, against scikit-learn's confusion matrix, and what the screen and the page say of it."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_score

from datasets.long_tail import ShotBounds
from evaluation.metrics import SHOTS, prediction_report, shot_groups, third_bounds, thirds_fill
from evaluation.per_class.confusion import (
    WORST_PAIRS,
    class_table,
    confusion_report,
    group_matrix,
    most_certain_mistakes,
    wrong_pairs,
)
from evaluation.per_class.page import Picture, Section, page_html
from evaluation.per_class.texts import classes_text
from evaluation.text_tables import rebalanced_table

COUNTS = np.array([500, 300, 90, 60, 20, 10, 5])  # 2 many, 3 medium, 2 few
NAMES = ["a" * 60, "<b>", "c", "d", "e", "f", "=g"]
CLASSES = len(COUNTS)


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels; no image is of class 6, and none is taken for class 5."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES - 1, (400,), generator=generator)
    predictions = torch.where(torch.rand(400, generator=generator) < 0.4, labels, labels.flip(0))
    predictions[predictions == 5] = 0
    return predictions, labels


def test_pairs_and_precision_are_those_of_the_confusion_matrix(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, labels = drawn
    matrix = confusion_matrix(labels, predictions, labels=range(CLASSES))
    report = confusion_report(predictions, labels, COUNTS)
    assert report["test_images"] == matrix.sum(axis=1).tolist() and report["predicted"] == matrix.sum(axis=0).tolist()
    wanted = 100 * precision_score(labels, predictions, labels=range(5), average=None)
    assert report["precision"][:5] == pytest.approx(wanted.tolist()) and report["precision"][5:] == [None, None]
    wrong = matrix - np.diag(np.diag(matrix))
    for pair in wrong_pairs(labels.numpy(), predictions.numpy(), CLASSES).to_dict("records"):
        assert pair["images"] == wrong[pair["true"], pair["predicted"]]
        wrong[pair["true"], pair["predicted"]] = 0
    assert not wrong.any()
    wrong = matrix - np.diag(np.diag(matrix))
    for k in range(CLASSES - 1):
        assert report["confused_with"][k] == wrong[k].argmax() and report["confused_images"][k] == wrong[k].max()
    assert report["confused_with"][6] is None and report["confused_images"][6] == 0
    images = [pair["images"] for pair in report["pairs"]]
    assert images == sorted(wrong[wrong > 0].tolist(), reverse=True)[:WORST_PAIRS] and len(images) == WORST_PAIRS
    first = report["pairs"][0]
    assert first["share"] == pytest.approx(100 * first["images"] / matrix[first["true"]].sum())


def test_the_matrix_by_shot_adds_up(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, labels = drawn
    matrix = confusion_matrix(labels, predictions, labels=range(CLASSES))
    groups = {"many": slice(0, 2), "medium": slice(2, 5), "few": slice(5, 7)}
    found = group_matrix(labels.numpy(), predictions.numpy(), COUNTS)
    for name, rows in groups.items():
        own = matrix[rows]
        right = np.diag(matrix)[rows].sum()
        assert found[name]["right"] == pytest.approx(100 * right / own.sum())
        for other, columns in groups.items():
            wrong = own[:, columns].sum() - (right if other == name else 0)
            assert found[name][other] == pytest.approx(100 * wrong / own.sum())
        assert sum(found[name].values()) == pytest.approx(100)


def test_groups_that_are_empty_or_without_test_images_are_left_out() -> None:
    labels = np.array([0, 0, 1])
    assert group_matrix(labels, np.array([0, 1, 1]), np.array([500, 400, 3])) == {
        "many": {"right": pytest.approx(200 / 3), "many": pytest.approx(100 / 3), "few": 0.0}
    }


def test_all_right_has_no_pairs() -> None:
    labels = torch.arange(CLASSES)
    report = confusion_report(labels, labels, COUNTS)
    assert report["pairs"] == [] and report["confused_with"] == [None] * CLASSES
    table = class_table(report, [100.0] * CLASSES, NAMES, COUNTS)
    assert table["most_confused_with"].isna().all() and "most confused" not in classes_text(report, table, "last")


def test_mistakes_are_the_surest_ones() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 5.0, 0], [0, 0, 7.0], [3.0, 0, 0]])
    found = most_certain_mistakes(logits, torch.tensor([0, 0, 0, 1]), 2)
    assert [(each["row"], each["true"], each["predicted"]) for each in found] == [(2, 0, 2), (1, 0, 1)]
    assert found[0]["probability"] == pytest.approx(float(logits[2].softmax(dim=0)[2]))
    assert most_certain_mistakes(logits, torch.tensor([0, 1, 2, 0]), 2) == []


def test_the_classes_fit_80_columns_and_the_table_has_their_names(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, labels = drawn
    report = confusion_report(predictions, labels, COUNTS)
    accuracy = [50.0, 40.0, 30.0, 20.0, 10.0, 0.0, None]
    table = class_table(report, accuracy, NAMES, COUNTS)
    assert table["name"].tolist() == NAMES and table["accuracy"].isna().tolist() == [False] * 6 + [True]
    assert table["shot"].tolist() == ["many"] * 2 + ["medium"] * 3 + ["few"] * 2
    lines = classes_text(report, table, "last epoch, plain").splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[2:8]] == ["f", "e", "d", "c", "<b>", "a" * 19 + "..."]


# Bounds of the shot groups


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ([90, 80, 70, 60, 50, 40], (2, 2, 2)),
        ([900, 800, 700, 650, 640, 630, 620], (2, 3, 2)),
        ([7, 7, 7], (0, 3, 0)),  # as large as one another: none is larger than the others
        ([9, 3], (1, 0, 1)),
        ([500, 5, 5, 5, 5, 5], (1, 5, 0)),
    ],
)
def test_thirds_group_the_classes_by_their_sizes(counts: list[int], wanted: tuple[int, int, int]) -> None:
    sizes = np.array(counts)
    groups = shot_groups(sizes, third_bounds(sizes))
    assert tuple(int(groups[name].sum()) for name in SHOTS) == wanted
    assert (np.stack(list(groups.values())).sum(axis=0) == 1).all()


def test_re_balanced_predictions_fit_and_say_what_is_there(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    own = prediction_report(*drawn, COUNTS)
    both = {"plain": own, "flip": own}
    text = rebalanced_table({"tau": 1.0, "transductive": both, "inductive": both})
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("transductive") == 3 and text.count("inductive") == 3 and text.count("macro F1") == 2
    once = {"plain": own, "flip": None}
    text = rebalanced_table({"tau": 1.0, "transductive": once, "inductive": once})
    assert max(map(len, text.splitlines())) <= 80 and text.count("macro F1") == 1
    text = rebalanced_table({"tau": 1.0, "transductive": once, "inductive": None})
    assert "inductive" not in text and text.endswith("supposed balanced)")


@pytest.mark.parametrize(
    ("counts", "helps"),
    [
        ([40, 15, 5], True),
        ([20, 20, 20], False),  # all alike
        ([40, 5], False),  # no third group
        ([20, 20, 20, 5], False),
        ([500, 50, 5], False),  # the field's bounds leave none empty
    ],
)
def test_thirds_are_advised_where_they_leave_no_group_empty(counts: list[int], helps: bool) -> None:
    assert thirds_fill(np.array(counts)) is helps


def test_reports_group_by_the_bounds_that_they_are_given(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, labels = drawn
    report = prediction_report(predictions, labels, COUNTS, ShotBounds(400, 100))
    accuracy = report["per_class_accuracy"]
    assert report["many"] == accuracy[0] and report["medium"] == accuracy[1]
    assert report["few"] == pytest.approx(np.mean(accuracy[2:6]))
    confusion = confusion_report(predictions, labels, COUNTS, ShotBounds(400, 100))
    assert confusion["groups"]["many"]["right"] == pytest.approx(accuracy[0])
    table = class_table(confusion, accuracy, NAMES, COUNTS, ShotBounds(400, 100))
    assert table["shot"].tolist() == ["many", "medium", *["few"] * 5]


# The page


class Page(HTMLParser):
    """Open tags, their attributes and the text of a page; whatever is not closed stays in `open`."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def small_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (255, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def test_a_page_is_well_formed_and_needs_nothing_beside_it() -> None:
    table = pd.DataFrame({"name": NAMES, "x": [1.5, None, 2, 3, 4, 5, 6], "n": range(CLASSES)})
    sections = [
        Section("A & B", ["1 < 2"], {"caption": table}, [Picture(small_picture(), "fig")]),
        Section("Folded", tables={"": table}, folded=True, pictures=[Picture(small_picture(), '"quoted"')]),
    ]
    page = Page(page_html("<script>alert(1)</script>", sections))
    assert page.open == [] and not page.of("script") and len(page.of("table")) == 2 and len(page.of("details")) == 1
    assert "<script>alert(1)</script>" in page.text and "A & B" in page.text and "<b>" in page.text
    assert "1.50" in page.text and "\n-\n" not in page.text and "nan" not in page.text.lower()
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")
    for image in page.of("img"):
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (4, 3)
    assert [image["alt"] for image in page.of("img")] == ["fig", '"quoted"']
    links = [name for _, attributes in page.tags for name in attributes if name in ("href", "srcset", "data")]
    assert not links and "url(" not in page.text
