"""The tables `priors` and `sets` on the digits, on a stage 1 without held-out images and on one with them."""

from pathlib import Path

import pandas as pd
import pytest

from evaluation.csv_files import read_csv
from tables.corrections.priors import PROFILES
from tests.helpers import folder_of, stage1
from tests.table_runs import make, spoil, table

METHODS = ("--methods", "ce", "los", "logit_adjust_posthoc")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


def result(out: Path, name: str) -> pd.DataFrame:
    (path,) = (out / "results").glob(f"{name}_*.csv")
    assert path.with_suffix(".md").is_file()
    return read_csv(path)


def test_priors_without_held_out_images(out: Path) -> None:
    text = make(out, "priors", *METHODS).out
    rows = result(out, "priors")
    assert list(rows["row"]) == [row for row in ("ce", "los", "logit_adjust_posthoc", "los, s = 0.8") for _ in "ab"]
    assert rows["temperature"].eq(1).all() and "Own prior of los, los, s = 0.8: every class alike" in text
    used, known = (rows[rows["prior"] == prior].set_index(["row", "seed"])[PROFILES] for prior in ("not used", "known"))
    # A classifier for equal shares is left alone on them, and that of the training images where these are the test's.
    assert known.loc["los", "uniform"].tolist() == used.loc["los", "uniform"].tolist()
    # Post hoc logit adjustment is cross-entropy with the prior put in: both end at the same classifier.
    difference = (known.loc["ce"] - known.loc["logit_adjust_posthoc"]).abs()
    assert difference.max().max() < 2
    assert known.loc["ce"].mean().mean() > used.loc["ce"].mean().mean()
    forward, backward = (used.loc["ce", name].mean() for name in ("forward-50", "backward-50"))
    assert forward > used.loc["ce", "uniform"].mean() > backward


def test_priors_and_sets_with_held_out_images(tmp_path: Path) -> None:
    stage1(tmp_path, "--holdout", 0.2, "--width", 4, "--epochs", 6)
    folder = next((tmp_path / folder_of(tmp_path, "").relative_to(tmp_path)).glob("stage1*"))
    make(tmp_path, "priors", *METHODS, "--pretrained_pth", folder)
    make(tmp_path, "sets", *METHODS, "--pretrained_pth", folder)
    priors, sets = result(tmp_path, "priors"), result(tmp_path, "sets")
    assert priors["classifier_prior"].str.startswith("measured on its predictions for").all()
    assert (priors["temperature"] != 1).any()
    assert (
        sets["thresholds"].str.endswith("held-out images").all() and not sets["thresholds"].str.contains("half").any()
    )
    classwise = sets[sets["sets"] == "classwise"]
    assert (classwise["coverage_few"] > 95).all()  # too few held-out images for a threshold: they are in every set


def test_sets_without_held_out_images_use_half_of_the_test_images(out: Path) -> None:
    text = make(out, "sets", *METHODS).out
    rows = result(out, "sets")
    assert list(rows["sets"].unique()) == ["marginal", "classwise", "interpolated"] and len(rows) == 12
    assert "half of the test images of every class, mean over 10 splits" in text
    assert rows["coverage_all"].between(84, 97).all()
    one = rows[(rows["row"] == "ce") & (rows["sets"] == "marginal")].iloc[0]
    assert one["coverage_medium"] > one["coverage_few"]
    assert rows["coverage_many"].isna().all() == rows["size_many"].isna().all()


def test_a_row_that_diverges_is_named(out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoil(monkeypatch, "los")
    assert (
        "los, seed 0: diverged at step 1 of epoch 1"
        in make(out, "priors", "--methods", "los", "tau_norm", "--results", tmp_path).out
    )
    outcome = table(out, "priors", "--methods", "los", "--results", tmp_path / "none")
    assert outcome.status == 2 and "no row of the table has a number" in outcome.err
