"""The views of `reproduce.py proximal`: what they compute, against direct formulas, and as a person types them."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import tables.proximal.choice
import tables.proximal.families
import tables.proximal.parts
import tables.proximal.path
import tables.proximal.sensitivity
import tables.request
from engine.frozen_features import FrozenFeatures
from losses.los import CrossEntropy, smoothing_for_gap, torch_target
from methods.proximal import Anchored
from tables.proximal.choice import (
    ACCURACY,
    LIKELIHOOD,
    TEMPERATURES,
    Outcome,
    Scored,
    choose,
    class_weights,
    halves,
    long_tailed,
)
from tables.proximal.families import FIXED, GAPS, PROXIMAL, STAGE1, Candidate, Families
from tables.proximal.path import Comparison, cosine, flow
from tables.proximal.sensitivity import SOLVERS
from tests.helpers import Outcome as Ended
from tests.helpers import folder_of, is_refusal, run, stage1
from utils.errors import UserError

COUNTS = [40, 20, 10, 5, 3]
NAME = "own_mine_naturalIF13.33_features"


def problem(seed: int = 0) -> Anchored:
    """A small problem of proximal LOS."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(COUNTS))
    features = torch.randn(5, 8, generator=draw)[labels] + torch.randn(len(labels), 8, generator=draw)
    linear = nn.Linear(8, 5)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(5, 8, generator=draw))
    return Anchored.of(linear, (features, labels), COUNTS, torch_target(0.9, 5))


# Choosing


def test_halves_are_disjoint_and_have_as_many_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 4, 7])
    first, second = halves(labels, 3)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert np.bincount(labels[first]).tolist() == [5, 2, 4] and np.bincount(labels[second]).tolist() == [5, 2, 3]
    assert not np.array_equal(first, halves(labels, 4)[0])
    np.testing.assert_array_equal(first, halves(labels, 3)[0])


def test_long_tailed_held_out_images_are_a_share_of_the_training_images() -> None:
    labels = np.repeat([0, 1, 2, 3], 6)
    rows = np.random.default_rng(0).permutation(len(labels))
    chosen = long_tailed(labels, rows, np.array([500, 20, 11, 2]))
    assert np.bincount(labels[chosen]).tolist() == [6, 4, 2, 1]  # at most what there is, at least one
    assert set(chosen) <= set(rows)


def test_scores_are_class_balanced_accuracy_and_likelihood_at_the_best_temperature() -> None:
    draw = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 2, 2])
    logits = torch.tensor(draw.standard_normal((3, 6, 3)))
    right = (logits.argmax(dim=2).numpy() == labels).astype(np.float32)
    loss = np.stack(
        [
            [CrossEntropy_each(own / temperature, torch.tensor(labels)).numpy() for temperature in TEMPERATURES]
            for own in logits
        ]
    ).astype(np.float32)
    rows = np.array([0, 1, 3, 4, 5])
    found = Scored(right, loss, labels).scores(class_weights(labels, rows))
    for place in range(3):
        by_class = [right[place][rows][labels[rows] == label].mean() for label in range(3)]
        assert found[ACCURACY][place] == pytest.approx(np.mean(by_class))
        likelihoods = [
            -np.mean([loss[place, i][rows][labels[rows] == label].mean() for label in range(3)])
            for i in range(len(TEMPERATURES))
        ]
        assert found[LIKELIHOOD][place] == pytest.approx(max(likelihoods), rel=1e-5)


def CrossEntropy_each(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy an image, by the loss of one image at a time."""
    return torch.stack([CrossEntropy()(one[None], label[None]) for one, label in zip(logits, labels, strict=True)])


def families() -> Families:
    head = nn.Linear(2, 2)
    names = [STAGE1, "lambda 1", "lambda 0.1", "epoch 1"]
    return Families([Candidate(name, head, False) for name in names], {STAGE1: [0], "a": [0, 1, 2], "b": [0, 3]})


def test_of_equal_scores_the_candidate_nearest_to_stage_1_is_chosen() -> None:
    scores = {ACCURACY: np.array([0.5, 0.7, 0.7, 0.4]), LIKELIHOOD: np.array([-1.0, -2.0, -0.5, -1.0])}
    assert choose(families(), scores) == {
        (STAGE1, ACCURACY): 0,
        ("a", ACCURACY): 1,
        ("b", ACCURACY): 0,  # never below stage 1 on the images that choose
        (STAGE1, LIKELIHOOD): 0,
        ("a", LIKELIHOOD): 2,
        ("b", LIKELIHOOD): 0,
    }


def test_what_halves_report_is_the_mean_over_the_draws_of_what_was_chosen() -> None:
    labels = np.array([0, 0, 1, 1])
    right = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=np.float32)
    own = Families(families().candidates, {STAGE1: [0], tables.proximal.choice.PATH: [0, 1, 2]})
    path = (tables.proximal.choice.PATH, tables.proximal.choice.FIX)
    outcome = Outcome(own, Scored(right, np.zeros((4, 1, 4), dtype=np.float32), labels))
    fixed = {(STAGE1, tables.proximal.choice.FIX): 0}
    for place, rows in ((1, [0, 2]), (2, [1, 3]), (2, [0, 2]), (2, [1, 3])):  # two draws of two halves
        outcome.add({**fixed, path: place}, np.array(rows), 2)
    found = {row["family"]: row for row in outcome.rows(np.array([30, 5]), "halves")}
    expected = np.mean([(1 + 1 + 1 + 1) / 4, (1 + 1 + 1 + 1) / 4])
    assert found[tables.proximal.choice.PATH]["all"] == pytest.approx(100 * expected)
    assert found[STAGE1]["all"] == pytest.approx(50)
    assert found[tables.proximal.choice.PATH]["to_stage1"] == pytest.approx(50)
    assert found[tables.proximal.choice.PATH]["number"] == "lambda 0.1"
    assert found[tables.proximal.choice.PATH]["distinct_numbers"] == 2


def test_the_fixed_gap_is_that_of_published_los_at_a_hundred_classes() -> None:
    assert [round(smoothing_for_gap(gap, 100), 2) for gap in GAPS if gap in (1.11, 3.26)] == [0.98, 0.8]
    anchors = [float(f"{anchor:g}") for anchor in tables.proximal.families.ANCHORS]
    assert 0.001 in anchors and FIXED[PROXIMAL] == "lambda 0.001, gap 1.11"


# The path


def test_gradient_descent_ends_at_the_minimum_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.proximal.path, "TIMES", (1.0, 1000.0))
    own = problem()
    (first, one), (last, end) = list(flow(own))
    assert (first, last) == (1.0, 1000.0)
    seen = (own.data.features.double() - own.data.mean) * own.data.scale
    weight = own.start[0].clone().requires_grad_()
    CrossEntropy(torch_target(0.9, 5))(seen @ weight.T + own.start[1], own.data.labels).backward()
    assert weight.grad is not None
    torch.testing.assert_close(one[0], own.start[0] - weight.grad)  # one step of size 1
    free = own.solve(1e-7)
    torch.testing.assert_close(seen @ end[0].T + end[1], seen @ free[0].T + free[1], rtol=0, atol=0.05)


def test_the_lambda_of_a_distance_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own = problem()
    comparison = Comparison.__new__(Comparison)
    comparison.problem = own
    comparison.known = list(own.path(list(np.logspace(1, -3, 7))))
    for anchor in (0.5, 0.02):
        wanted = own.moved_by(own.solve(anchor))
        found, point = comparison.matching(own.moved_by, wanted)
        assert found == pytest.approx(anchor, rel=0.05)
        assert own.moved_by(point) == pytest.approx(wanted, rel=0.02)
    far, _ = comparison.matching(own.moved_by, 1e9)
    assert far == pytest.approx(1e-3)  # farther than any: the nearest end


def test_a_cosine_of_what_has_moved_alike_is_one() -> None:
    own = problem()
    found = own.solve(0.1)
    assert cosine(own, found, found) == pytest.approx(1)
    back = (2 * own.start[0] - found[0], 2 * own.start[1] - found[1])
    assert cosine(own, found, back) == pytest.approx(-1)


# Solvers


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_one_minimum(name: str) -> None:
    own = problem()
    expected = own.solve(0.05)
    for found, wanted in zip(SOLVERS[name](own, 0.05), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


# Rows that a computed classifier is fitted on


class Frozen(FrozenFeatures):
    """Features whose views are the plain ones plus the number of the view."""

    def __init__(self, views: str) -> None:
        self.views = views

    def plain(self, split: str, mirrored: bool = False) -> Tensor:
        return torch.arange(6.0).view(3, 2)

    def training_view(self, epoch: int) -> Tensor:
        return self.plain("train") + 100 * (epoch + 1)


def test_views_are_fitted_one_after_the_other() -> None:
    labels, plain = torch.tensor([2, 0, 1]), torch.arange(6.0).view(3, 2)
    features, own = Frozen("2").rows_to_fit(labels, views=True)
    torch.testing.assert_close(features, torch.cat([plain + 100, plain + 200]))
    assert own.tolist() == [2, 0, 1, 2, 0, 1]
    for views, asked in (("2", False), ("plain", True)):
        features, own = Frozen(views).rows_to_fit(labels, views=asked)
        assert features.tolist() == plain.tolist() and own.tolist() == [2, 0, 1]
    with pytest.raises(UserError, match="--fit_on views"):
        Frozen("fresh").rows_to_fit(labels, views=True)


# The command


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, and no figures."""
    monkeypatch.setattr(tables.request, "save_figure", lambda *_: None)
    few = {"GAPS": (1.11, 3.26), "ANCHORS": (1.0, 0.001), "SMALL_ANCHORS": (1e-2,), "TAUS": (0.5,)}
    for name, values in few.items():
        monkeypatch.setattr(tables.proximal.families, name, values)
    monkeypatch.setattr(tables.proximal.choice, "DRAWS", 2)
    parts = tables.proximal.parts
    kept = ("LOS, s 0.98", "LOS, class-weighted", "LOS, Fisher distance", "LOS on augmented views")
    anchored = {name: (flags, anchors[-2:]) for name, (flags, anchors) in parts.ANCHORED.items() if name in kept}
    monkeypatch.setattr(parts, "ANCHORED", anchored)
    others = ("stage 1", "LOS, path, average 0.99", "tau-norm, centred, tau 1")
    monkeypatch.setattr(parts, "OTHERS", {name: flags for name, flags in parts.OTHERS.items() if name in others})


def mine(tmp_path: Path, held_out: bool) -> Path:
    """A file of features of five long-tailed classes with overlap, with held-out rows or without."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((5, 8))
    arrays: dict[str, np.ndarray] = {}
    for split, counts in (("train", COUNTS), ("holdout", [4] * 5), ("test", [10] * 5)):
        labels = np.repeat(np.arange(5), counts)
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_features"] = (centres[labels] + draw.standard_normal((len(labels), 8))).astype(np.float32)
    if not held_out:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("holdout")}
    np.savez(tmp_path / "mine.npz", **cast(Any, arrays))
    return tmp_path / "mine.npz"


def view(tmp_path: Path, name: str, held_out: bool = False, *more: object) -> Ended:
    flags = ("--out", tmp_path / "runs", "--results", tmp_path / "results", "--view", name)
    return run("reproduce", "proximal", "--features", mine(tmp_path, held_out), *flags, *more)


@pytest.mark.usefixtures("small")
def test_held_out_rows_choose_and_all_test_images_report(tmp_path: Path) -> None:
    outcome = view(tmp_path, "choice", True)
    assert outcome.status == 0, outcome.err
    rows = pd.read_csv(tmp_path / "results" / f"proximal_choice_{NAME}.csv")
    assert set(rows["images"]) == {"held out"}
    chosen = rows.set_index(["family", "criterion"])
    assert {"accuracy", "likelihood", "none: fixed", "most on test"} <= set(rows["criterion"])
    assert chosen.loc[(PROXIMAL, "none: fixed"), "number"] == FIXED[PROXIMAL]
    assert (chosen["all"] <= chosen.loc[(slice(None), "most on test"), "all"].max() + 1e-9).all()
    assert chosen.loc[(STAGE1, "accuracy"), "to_stage1"] == 0
    assert rows.loc[rows["criterion"] == "most on test", "to_stopped"].notna().all()
    markdown = (tmp_path / "results" / f"proximal_choice_{NAME}.md").read_text()
    assert "Chosen on: held out" in markdown and "halves" not in markdown.split("Accuracy and likelihood")[0]


@pytest.mark.usefixtures("small")
def test_without_held_out_rows_halves_of_the_test_images_choose(tmp_path: Path) -> None:
    assert view(tmp_path, "choice").status == 0
    rows = pd.read_csv(tmp_path / "results" / f"proximal_choice_{NAME}.csv")
    assert set(rows["images"]) == {"halves, all classes alike", "halves, long-tailed"}
    fixed = rows[rows["criterion"] == "none: fixed"].groupby("family")["all"].nunique()
    assert (fixed == 1).all()  # what nothing chooses does not depend on the draws


@pytest.mark.usefixtures("small")
def test_parts_have_a_row_a_lambda_and_the_best_of_each_in_their_tables(tmp_path: Path) -> None:
    outcome = view(tmp_path, "parts")
    assert outcome.status == 0, outcome.err
    rows = pd.read_csv(tmp_path / "results" / f"proximal_parts_{NAME}.csv")
    anchored = rows[rows["group"] == "anchored"]
    assert (anchored.groupby("kind").size() == 2).all() and "LOS on augmented views" not in set(rows["kind"])
    commands = anchored.set_index("kind")["command"]
    assert "--distance fisher" in commands["LOS, Fisher distance"].iloc[0]
    assert {"stage 1", "LOS, path, average 0.99", "tau-norm, centred, tau 1"} <= set(rows["kind"])
    best = anchored.groupby("kind")["last_plain_all"].max()
    markdown = (tmp_path / "results" / f"proximal_parts_{NAME}.md").read_text()
    assert "| LOS, class-weighted | " in markdown and f"| {best['LOS, class-weighted']:.1f} |" in markdown
    claims = pd.read_csv(tmp_path / "results" / f"proximal_parts_{NAME}_intervals.csv")
    assert set(claims["reference"].dropna()) >= {"LOS, s 0.98"}


@pytest.mark.usefixtures("small")
def test_the_path_and_the_sensitivity_have_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.proximal.path, "EPOCHS", (1,))
    monkeypatch.setattr(tables.proximal.path, "TIMES", (10.0,))
    monkeypatch.setattr(tables.proximal.path, "SEARCH", np.logspace(3, -2, 6))
    monkeypatch.setattr(tables.proximal.sensitivity, "ANCHOR", 0.05)
    outcome = view(tmp_path, "path", False, "--view", "path", "sensitivity")
    assert outcome.status == 0, outcome.err
    rows = pd.read_csv(tmp_path / "results" / f"proximal_path_{NAME}.csv")
    assert set(rows["match"]) == {"same distance", "same LoMa", "lambda = 1 / t"}
    same = rows[rows["match"] == "same distance"]
    np.testing.assert_allclose(same["proximal_distance"], same["path_distance"], rtol=0.1)  # decades apart
    np.testing.assert_allclose(rows["difference"], rows["proximal_all"] - rows["path_all"], atol=1e-4)
    assert (rows["difference_low"] <= rows["difference"]).all() and (rows["cosine"] <= 1 + 1e-9).all()
    table = pd.read_csv(tmp_path / "results" / f"proximal_sensitivity_{NAME}.csv")
    proximal = table[(table["kind"] == "scale") & (table["method"] == "proximal_los")]
    assert (proximal.groupby("number")["all"].nunique() == 1).all()
    assert table[table["kind"] == "solver"]["number"].tolist() == list(SOLVERS)
    assert (table["largest_difference"].dropna() < 0.05).all()


def test_views_and_select_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    assert is_refusal(view(tmp_path, "far"), "unknown view 'far'", "lambda, sensitivity, path, parts, choice")
    assert is_refusal(view(tmp_path, "parts", True, "--select"), "--select belongs to the view choice")
    other = run("reproduce", "delta", "--features", mine(tmp_path, False), "--view", "path")
    assert is_refusal(other, "--view has no use in the table delta")
    seeds = view(tmp_path, "choice", True, "--seeds", 0, 1)
    assert is_refusal(seeds, "give one seed", alone=False)


@pytest.mark.usefixtures("small")
def test_the_images_of_other_stage_1s_choose_for_this_one(tmp_path: Path) -> None:
    """On the digits: `--select --holdout_pth`, with the runs named, and with no run left to train."""
    small_stage1 = ("--epochs", 1, "--width", 4)
    stage1(tmp_path, *small_stage1)
    for seed in (0, 1):
        stage1(tmp_path, *small_stage1, "--holdout", 0.2, "--seed", seed)
    splits = sorted(path.parent for path in tmp_path.rglob("last.pth") if "holdout" in str(path.parent))
    flags = ("--dataset", "digits", *small_stage1, "--out", tmp_path, "--results", tmp_path / "results")
    command = ("reproduce", "proximal", "--view", "choice", *flags, "--select", "--holdout_pth")
    outcome = run(*command, *splits)
    assert outcome.status == 0, outcome.err
    [path] = (tmp_path / "results").glob("proximal_choice_digits*.csv")
    rows = pd.read_csv(path)
    assert len(splits) == 2 and set(rows["images"]) == {"splits"}
    chosen = rows.set_index(["family", "criterion"])
    assert chosen.loc[(STAGE1, "accuracy"), "to_stage1"] == 0
    assert (chosen["all"] <= chosen.loc[(slice(None), "most on test"), "all"].max() + 1e-9).all()
    unlike = run("main_stage1", "--dataset", "digits", "--epochs", 1, "--width", 8, "--holdout", 0.2, "--out", tmp_path)
    assert unlike.status == 0
    other = next(path.parent for path in tmp_path.rglob("last.pth") if "width8" in str(path.parent))
    whole = folder_of(tmp_path, "stage1_epochs1_width4")
    named = ("--view", "choice", "--out", tmp_path, "--results", tmp_path / "more", "--pretrained_pth", whole)
    command = ("reproduce", "proximal", *named, "--select", "--holdout_pth")
    assert is_refusal(run(*command, other), "was not trained like the table's stage 1", alone=False)
    assert is_refusal(run(*command, whole), "was trained on all images", alone=False)
    assert not (tmp_path / "more").exists() or not list((tmp_path / "more").iterdir())
