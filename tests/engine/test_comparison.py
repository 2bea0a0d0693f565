"""`--method auto`: candidates compared on rows that they have not seen, the best one fitted on all."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score
from torch import nn

import engine.choice.comparison
from engine.choice.comparison import (
    OFFSETS,
    STAGE1,
    TRIED,
    Comparison,
    choose_classifier,
    class_offsets,
    cross_fitted,
    fit_all,
    name_of,
    pairs,
    put_in,
    rows_of,
    splits,
    spread,
)
from engine.many_heads import HeadTrainer
from evaluation.intervals.criteria import CRITERIA, best_of, compare_classifiers
from methods.priors import method_of
from models.heads import HEADS, build_head
from models.linear_cosine import empty_linear_cosine
from models.linear_head import Linear
from settings.command_line import parse_command
from settings.fields import STAGE2
from settings.stage2_plan import plan_of
from tests.helpers import read, refused, same, stage1, succeed, weights
from utils.device import Execution

COUNTS = [60, 30, 12, 5]
FEW = (
    ("--method", "logit_adjust_posthoc", "--tau", "1"),
    ("--method", "cosine_los", "--finetune_lr", "0.02"),
    ("--method", "samn", "--finetune_lr", "0.002"),
)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few candidates in two folds: the test is quick."""
    monkeypatch.setattr(engine.choice.comparison, "TRIED", FEW)
    monkeypatch.setattr(engine.choice.comparison, "PARTNERS", FEW[:1])
    monkeypatch.setattr(engine.choice.comparison, "COSINES", FEW[1:2])
    monkeypatch.setattr(engine.choice.comparison, "FOLDS", 2)


def arrays(seed: int = 0, noise: float = 1.0, counts: list[int] = COUNTS) -> dict[str, np.ndarray]:
    """Features of four long-tailed classes that overlap."""
    draw = np.random.default_rng(seed)
    centres, found = 1.5 * draw.standard_normal((4, 8)), {}
    for split, sizes in (("train", counts), ("test", [40] * 4)):
        labels = np.repeat(np.arange(4), sizes)
        found[f"{split}_labels"] = labels
        found[f"{split}_features"] = (centres[labels] + noise * draw.standard_normal((len(labels), 8))).astype(
            "float32"
        )
    return found


def trainer_on(cpu: Execution, own: dict[str, np.ndarray]) -> HeadTrainer:
    features, labels = torch.from_numpy(own["train_features"]), torch.from_numpy(own["train_labels"])
    linear = nn.Linear(8, 4)
    trainer = HeadTrainer(None, linear, labels, np.bincount(labels).tolist(), 64, 0.9, 0)  # type: ignore[arg-type]
    frozen: Any = engine.choice.comparison.Rows(features, cpu, 3)
    return HeadTrainer(frozen, linear, labels, trainer.class_counts, 64, 0.9, 0)


def plan(flags: Any) -> Any:
    return plan_of(parse_command(STAGE2, "", flags).settings, 4)


# What is compared by


def outcomes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.repeat(np.arange(4), [40, 20, 10, 5]))
    correct = draw.random((3, len(labels))) < np.array([0.5, 0.7, 0.4])[:, None]
    return correct, draw.random((3, len(labels))), labels


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_are_those_of_scikit_learn(criterion: str) -> None:
    correct, nll, labels = outcomes()
    found = compare_classifiers(correct, nll, labels, 5, criterion)  # the fifth class has no image
    for own, one, loss in zip(correct, found, nll, strict=True):
        predicted = np.where(own, labels, (labels + 1) % 4)
        recalls = 100 * recall_score(labels, predicted, average=None)
        expected = {
            "balanced": 100 * balanced_accuracy_score(labels, predicted),
            "harmonic": 4 / (1 / recalls).sum(),
            "all": 100 * own.mean(),
            "worst": recalls.min(),
            "nll": np.mean([loss[labels == label].mean() for label in range(4)]),
        }
        assert one.scores == pytest.approx(expected)
    sign = -1 if criterion == "nll" else 1
    assert [one.difference for one in found] == pytest.approx(
        [sign * (one.scores[criterion] - found[0].scores[criterion]) for one in found]
    )
    assert found[0][1:4] == (0, 0, 0) and all(one.low <= one.high for one in found)
    best = best_of(found, criterion)
    near = [one for one in found if not one.apart]
    assert found[best] in near and max(one.difference for one in found) in [one.difference for one in near]
    if criterion != "balanced":
        assert found[best].difference == max(one.difference for one in found)


@pytest.mark.parametrize(("images", "winner"), [(20, 2), (2000, 1)])
def test_of_those_that_cannot_be_told_apart_the_least_nll_wins(images: int, winner: int) -> None:
    """Right on 60, 75, 65 and 60 % of two classes' images; with few the second's lead over the third is no lead."""
    labels = np.arange(2).repeat(images // 2)
    ranks = np.random.default_rng(0).permuted(np.tile(np.arange(images // 2), (4, 2, 1)), axis=2).reshape(4, -1)
    correct = ranks < np.array([0.6, 0.75, 0.65, 0.6])[:, None] * (images // 2)
    nll = np.repeat([[0.9], [1.0], [0.8], [0.1]], images, axis=1)  # the last is no better than the first
    found = compare_classifiers(correct, nll, labels, 2, "balanced")
    assert [one.apart for one in found][1:3] == [False, images > 20]
    assert best_of(found, "balanced") == winner
    assert best_of(found[:1], "balanced") == 0


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    draw = np.random.default_rng(1)
    labels = np.repeat([0, 1], 500)
    correct = np.stack([draw.random(1000) < 0.5, draw.random(1000) < 0.6])
    one = compare_classifiers(correct, np.zeros((2, 1000)), labels, 2, "balanced")[1]
    gaps = correct[1].astype(float) - correct[0]
    error = 100 * np.sqrt(sum(gaps[labels == label].var(ddof=1) / 500 for label in (0, 1))) / 2
    assert one.difference - one.low == pytest.approx(1.96 * error, rel=0.15)
    assert one.high - one.difference == pytest.approx(1.96 * error, rel=0.15)


def test_a_harmonic_mean_with_a_lost_class_has_no_interval() -> None:
    """As in tables: of a class without a right image nobody knows how rarely it is right."""
    correct, nll, labels = outcomes()
    correct[0, labels == 3] = False
    first, *others = compare_classifiers(correct, nll, labels, 4, "harmonic")
    assert first[1:4] == (0, 0, 0)
    for one in others:
        assert one.difference > 0 and np.isnan([one.low, one.high]).all() and not one.apart
    text = Comparison(["stage 1", "a", "b"], [first, *others], "harmonic", 1, len(labels)).text()
    assert "[-, -]  a" in text and "nan" not in text and text.endswith("not told apart from stage 1 on these images")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_ends_are_differences_that_can_be(criterion: str) -> None:
    labels = np.repeat(np.arange(4), 3)
    correct = np.zeros((2, 12), dtype=bool)
    correct[1] = True
    correct[:, ::3] = [[True], [False]]
    one = compare_classifiers(correct, 0.1 + ~correct, labels, 4, criterion)[1]
    assert one.low <= one.difference <= one.high and (criterion == "nll" or -100 <= one.low <= one.high <= 100)


def test_of_equal_ones_the_first_wins() -> None:
    correct = np.ones((3, 4), dtype=bool)
    assert best_of(compare_classifiers(correct, np.zeros((3, 4)), np.arange(4), 4, "balanced"), "balanced") == 0


# What is compared


def test_the_candidates_are_command_lines() -> None:
    assert len({name_of(line) for line in TRIED}) == len(TRIED)
    heads = {name_of(line): nn.Linear(1, 1) for line in TRIED}
    members = [name for both in pairs(heads).values() for name in both]
    assert len(pairs(heads)) == 12 and set(members) <= set(heads)
    for line in TRIED:
        assert plan(line).method == line[1]


@pytest.mark.parametrize("name", ["linear", "cosine", "normed", "samn", "linear_cosine"])
def test_a_head_is_put_in_with_its_logits(name: str) -> None:
    features, linear = torch.randn(7, 8), nn.Linear(8, 4)
    head = build_head(name, linear, COUNTS)
    if name == "samn":
        head.set_unit(2.0)
    joined = empty_linear_cosine(linear)
    put_in(joined, head, 0.5)
    torch.testing.assert_close(joined(features), 0.5 * head(features))
    put_in(joined, Linear(linear), 2.0)
    torch.testing.assert_close(joined(features), 0.5 * head(features) + 2 * linear(features))
    assert (joined.effective_weight() is None) == (name in ("cosine", "normed"))
    assert not any(parameter.requires_grad for parameter in joined.parameters()) and "linear_cosine" in HEADS


def test_the_spread_is_that_of_the_logits() -> None:
    features, linear = torch.randn(50, 8), nn.Linear(8, 4)
    assert spread(linear, features) == pytest.approx(float(linear(features).detach().var(dim=1).mean().sqrt()))


def test_rows_are_measured_by_what_has_not_seen_them(cpu: Execution, few: None) -> None:
    base = trainer_on(cpu, arrays())
    found = splits(base, None)
    assert sum(len(labels) for _, _, labels in found) == sum(COUNTS)
    for fold, rows, labels in found:
        seen = {tuple(row) for row in fold.frozen.plain("train").tolist()}
        assert not seen & {tuple(row) for row in rows.tolist()}
        assert len(seen) + len(labels) == sum(COUNTS) and min(fold.class_counts) >= 1
    held_out = (torch.zeros(2, 8), torch.tensor([0, 1]))
    ((same_base, *given),) = splits(base, held_out)
    assert same_base is base and given[0] is held_out[0]
    assert torch.equal(rows_of(base, held_out[0]).plain("train"), held_out[0])


def test_offsets_are_fitted_on_the_other_half() -> None:
    labels = torch.arange(4).repeat(200)
    logits = torch.randn(800, 4, generator=torch.Generator().manual_seed(0))
    logits += nn.functional.one_hot(labels, 4) + torch.tensor([2.0, 0.0, 0.0, -2.0])
    shifted = cross_fitted(logits, labels)
    before, after = ((values.argmax(dim=1) == labels).float().mean() for values in (logits, shifted))
    assert after > before + 0.1
    assert int((shifted - logits.double()).round(decimals=6).unique(dim=0).shape[0]) == 2  # one set of offsets a half
    found = class_offsets(logits[labels < 3], labels[labels < 3])
    assert found.isfinite().all()


@pytest.mark.usefixtures("few")
def test_a_candidate_that_diverges_in_one_fold_is_left_out(cpu: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def fit(fold: HeadTrainer, plans: Any) -> dict[str, nn.Linear]:
        heads = fit_all(fold, plans)
        made.append(list(heads)[-1])
        return {name: head for name, head in heads.items() if len(made) != 2 or name != made[0]}

    monkeypatch.setattr(engine.choice.comparison, "fit_all", fit)
    _, comparison = choose_classifier(trainer_on(cpu, arrays(noise=1.5)), None, plan, "balanced")
    assert len(made) == 2 and len(set(made)) == 1
    assert STAGE1 in comparison.names and not any(made[0] in name for name in comparison.names)


@pytest.mark.usefixtures("few")
def test_nothing_helps_where_stage_1_is_right(cpu: Execution) -> None:
    own = arrays(noise=0.01)
    head, comparison = choose_classifier(trainer_on(cpu, own), None, plan, "balanced")
    assert comparison.names[comparison.winner] == STAGE1 and "nothing helps" in comparison.text()
    assert head.effective_weight() is not None


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("criterion", ["harmonic", "nll"])
def test_the_winner_is_at_least_stage_1(criterion: str, cpu: Execution) -> None:
    base = trainer_on(cpu, arrays(noise=1.5))
    _, comparison = choose_classifier(base, None, plan, criterion)
    rows = pd.DataFrame(comparison.rows)
    winner = rows[rows["chosen"]].iloc[0]
    assert winner["difference"] >= 0 and rows["difference"].max() == winner["difference"]
    assert {STAGE1, OFFSETS} < set(rows["candidate"]) and len(rows) == 6
    assert (rows["held_out_images"] == sum(COUNTS)).all()


# Runs


def compared(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "auto.csv")


@pytest.mark.usefixtures("few")
def test_a_run_is_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **arrays(noise=1.5))
    line = ("main_stage2", "--features", "mine.npz", "--method", "auto")
    told = succeed(*line).out.splitlines()
    assert told[-1].endswith("stage2_auto/auto.csv") and told[-2].startswith(("chosen: ", "nothing helps"))
    folder = next(Path("checkpoints").rglob("stage2_auto"))
    assert compared(folder)["chosen"].sum() == 1
    succeed(*line, "--out", "again")
    again = next(Path("again").rglob("stage2_auto"))
    assert same(weights(folder / "last.pth"), weights(again / "last.pth"))
    reported = succeed("evaluate", "--features", "mine.npz", "--cur_stage", "stage2", "--method", "auto")
    assert f"{read(folder / 'metrics.json')['last']['plain']['all']:.2f}" in reported.out and reported.err == ""
    succeed(*line, "--criterion", "worst", "--holdout", 0.3, "--overwrite")
    assert next(Path("checkpoints").rglob("stage2_auto_holdout0.3_criterionworst")).is_dir()
    assert "--criterion" in refused(*line, "--criterion", "best")
    assert (
        "not used" in succeed("main_stage2", "--features", "mine.npz", "--method", "tau_norm", "--criterion", "all").err
    )
    succeed(*line, "--overwrite")


@pytest.mark.usefixtures("few")
def test_a_run_stands_for_the_prior_of_what_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stage 1 stays, its probabilities follow the training images; they would be taken for balanced ones."""
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **arrays(noise=0.01))
    succeed("main_stage2", "--features", "mine.npz", "--method", "auto")
    folder = next(Path("checkpoints").rglob("stage2_auto"))
    assert read(folder / "config.json")["chosen"] == STAGE1
    line = ("evaluate", "--features", "mine.npz", "--cur_stage", "stage2", "--method", "auto")
    out = succeed(*line, "--test_prior", "balanced", "--json", "r.json").out
    assert "that of the training images, as --loss ce leaves it" in out
    shares = read(Path("r.json"))["checkpoints"]["last"]["test_prior"]["classifier_shares"]
    assert shares == pytest.approx((np.array(COUNTS) / sum(COUNTS)).tolist())


@pytest.mark.parametrize(
    ("chosen", "method"),
    [
        (None, "auto"),
        (STAGE1, None),
        (OFFSETS, "offsets"),
        ("ncm", "ncm"),
        ("los finetune_lr 0.002", "los"),
        ("los finetune_lr 0.002 + cosine_los finetune_lr 0.02", "auto"),
    ],
)
def test_the_method_of_what_was_chosen(chosen: str | None, method: str | None) -> None:
    assert method_of("auto", chosen) == method


def test_images_that_were_learned_from_cannot_choose(tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 1, "--width", 4)
    message = refused("main_stage2", "--dataset", "digits", "--out", tmp_path, "--method", "auto")
    assert "train stage 1 with --holdout 0.2" in message


@pytest.mark.usefixtures("few")
def test_held_out_images_choose(tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 1, "--width", 4, "--holdout", 0.3)
    succeed("main_stage2", "--dataset", "digits", "--out", tmp_path, "--method", "auto", "--holdout", 0.3)
    folder = next(tmp_path.rglob("stage2_auto*"))
    metrics = read(folder / "metrics.json")
    assert metrics["holdout"]["images"] == compared(folder)["held_out_images"].iloc[0]
