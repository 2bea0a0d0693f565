"""Two data sets that look alike: no command takes what was made of one for the other's in silence."""

import pandas as pd
import pytest

from benchmarks.robustness.look_alikes import (
    COMMANDS,
    LOOK_ALIKES,
    MAPPED,
    RECOMPUTED,
    REFUSED,
    RIGHT,
    SAME,
    SILENT,
    TOLD_APART,
    Experiment,
    judge,
    judge_lines,
)
from benchmarks.robustness.look_alikes import Outcome as Done
from tests.helpers import ROOT

# What each look-alike comes to, in the order stage 2, evaluate, predict, resume, reuse.
EXPECTED = {
    "same names, other pixels": [REFUSED, RECOMPUTED, RECOMPUTED, REFUSED, REFUSED],
    "same pixels, other labels": [REFUSED, RECOMPUTED, SAME, REFUSED, REFUSED],
    "other order": [RECOMPUTED, RECOMPUTED, SAME, REFUSED, REFUSED],
    "other class names": [REFUSED, REFUSED, SAME, REFUSED, REFUSED],
    "classes renumbered, named": [MAPPED, MAPPED, SAME, REFUSED, REFUSED],
    "classes renumbered, no names": [MAPPED, MAPPED, SAME, REFUSED, REFUSED],
    "one training image changed": [REFUSED, RECOMPUTED, SAME, REFUSED, REFUSED],
    "test labels only": [RECOMPUTED, RECOMPUTED, SAME, REFUSED, REFUSED],
    "test pixels only": [RECOMPUTED, RECOMPUTED, RECOMPUTED, REFUSED, REFUSED],
}
# What the refusal of a resumed run says.
SAID = {
    "same names, other pixels": ["other training images (content, in 3 of 3 classes)", "other test images"],
    "same pixels, other labels": ["other training labels", "other test labels"],
    "other order": ["training images in another order", "test images in another order"],
    "other class names": ["other class names"],
    "classes renumbered, named": ["classes in another order"],
    "classes renumbered, no names": ["classes in another order"],
    "one training image changed": ["other training images (content, in 1 of 3 classes)"],
    "test labels only": ["other test labels"],
    "test pixels only": ["other test images"],
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment(tmp_path_factory.mktemp("plain"), ())


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_no_command_is_silent(kind: str, experiment: Experiment) -> None:
    rows = experiment.meet(kind, COMMANDS[:5])
    assert [row["outcome"] for row in rows] == EXPECTED[kind], rows
    resumed = next(row["words"] for row in rows if row["command"] == "resume")
    assert all(words in resumed for words in SAID[kind]), resumed
    assert "test" not in resumed.partition("other settings")[2] or any("test" in words for words in SAID[kind])


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("same names, other pixels", TOLD_APART),
        ("classes renumbered, no names", TOLD_APART),
        ("test labels only", TOLD_APART),
        ("other order", SAME),
    ],
)
def test_no_mean_is_silent(kind: str, outcome: str, experiment: Experiment) -> None:
    [row] = experiment.meet(kind, ["compare"])
    assert row["outcome"] == outcome, row
    assert ("of different data" in row["words"]) == (outcome == TOLD_APART)


@pytest.fixture(scope="module")
def with_tables(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment(tmp_path_factory.mktemp("tables"), ("unified", "delta"))


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("test labels only", RECOMPUTED), ("test pixels only", RECOMPUTED), ("classes renumbered, no names", MAPPED)],
)
def test_no_table_is_silent(kind: str, outcome: str, with_tables: Experiment) -> None:
    rows = [row for row in with_tables.meet(kind, ("unified", "delta"))]
    assert [row["outcome"] for row in rows] == [outcome, outcome], rows
    if outcome == RECOMPUTED:
        assert all("measured anew, since the row that is there is of other test" in row["words"] for row in rows)


def test_a_wrong_number_is_seen() -> None:
    assert judge(Done("", None), 75.0, 50.0, None)[0] == SILENT
    assert judge(Done("", None), 50.0, 50.0, 50.0)[0] == SAME
    assert judge(Done("", None), 50.0, 50.0, 75.0)[0] == RECOMPUTED
    assert judge(Done("", "no"), None, 50.0, None) == (REFUSED, "no")
    assert judge_lines(Done("", None), ["stage 1"], one_data=False)[0] == SILENT
    assert judge_lines(Done("", None), ["stage 1", "stage 1"], one_data=False)[0] == SILENT
    assert judge_lines(Done("", None), ["stage 1, data 1", "stage 1, data 2"], one_data=False)[0] == TOLD_APART
    assert judge_lines(Done("", None), ["stage 1"], one_data=True)[0] == SAME


def test_the_recorded_table_has_every_cell() -> None:
    table = pd.read_csv(ROOT / "results" / "look_alikes.csv")
    assert set(table["second data set"]) == set(LOOK_ALIKES)
    assert set(table["outcome"]) <= set(RIGHT) and set(table["command"]) >= set(COMMANDS)
    assert (table.groupby("second data set")["command"].nunique() == table["command"].nunique()).all()
