"""The tables of `reproduce.py`: what their columns say, and the published figures beside them."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import tables.delta
import tables.path
import tables.rows
import tables.runs
import tables.unified
from methods.recipes import RECIPES
from tables.published import PUBLISHED, SOURCES, cell, published, sources
from tables.request import Request
from tables.rows import Measured, TableContext
from tables.runs import Run
from tests.helpers import EXPERIMENT, read, stage1
from tests.table_runs import SMALL, is_refusal, make, spoil, table
from tools.result_tables import markdown_tables, read_markdown_table
from utils.errors import DivergedError

WIDTH = "w4"
NAME = f"{EXPERIMENT}{WIDTH}_epochs6"
GROUPS = ("all", "many", "medium", "few")
STEPS = 13  # an epoch: 396 images in batches of 32


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stage 1s; not to be changed."""
    out = tmp_path_factory.mktemp("source")
    for seed in (0, 1):
        stage1(out, *SMALL, "--seed", seed)
    return out


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    """A copy of `source` that a test may change."""
    return Path(shutil.copytree(source, tmp_path / "out"))


def metrics_of_stage1(out: Path, seed: int = 0) -> dict:
    return read(out / EXPERIMENT / f"seed{seed}" / "stage1_epochs6_width4" / "metrics.json")


def drawn(path: Path) -> bool:
    """Tell whether a file holds a picture of something."""
    return float(matplotlib.image.imread(path).std()) > 0.01


def rows_file(out: Path) -> Path:
    """The rows of the only path in `out`."""
    (path,) = (path for path in (out / "results").glob("path_*.csv") if not path.stem.endswith("_intervals"))
    return path


# LOS over its smoothing


def test_delta_has_the_gap_that_the_target_asks_for(out: Path) -> None:
    outcome = make(out, "delta", "--seeds", 0, 1, plots=True)
    rows = pd.read_csv(out / "results" / f"delta_{NAME}.csv")
    smoothings = [0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
    assert rows["smoothing"].tolist() == smoothings * 2
    assert rows["seed"].tolist() == [0] * 9 + [1] * 9
    for row in rows.to_dict("records"):
        s = row["smoothing"]
        assert row["optimal_gap"] == pytest.approx(math.log(1 + 10 * (1 - s) / s) if s else math.inf, rel=1e-4)
        assert row["train_loma_mean"] != row["loma_mean"]
    one = rows[(rows["smoothing"] == 0.98)]["last_plain_all"]
    assert f"{one.mean():.1f} ± {one.std():.1f}" in outcome.out
    assert drawn(out / "results" / f"delta_{NAME}.png")
    lines = (out / "results" / f"delta_{NAME}.md").read_text().splitlines()
    assert lines[1] == ""
    assert "over seeds 0, 1, each with its own stage 1. Made by `python reproduce.py delta " in lines[0]
    tables = [read_markdown_table(table) for table in markdown_tables("\n".join(lines) + "\n")]
    assert lines[2] == "Accuracy in percent, last epoch, plain:"
    compared = [table for table in tables if "verdict" in table]
    assert all(len(table.columns) <= 6 for table in tables)
    assert all(len(table) == len(smoothings) - any(table is own for own in compared) for table in tables)
    titles = {title for table in tables for title in table.columns}
    assert {"harmonic mean", "worst 10 classes", "NLL", "class-wise ECE", "optimal gap", "LoMa sd/mean"} <= titles
    wanted = [f"last_plain_{name}" for name in ("harmonic", "worst_10_percent", "classwise_ece", "brier", "nll")]
    assert rows[wanted].notna().all(axis=None)
    assert (rows["last_plain_all_low"] < rows["last_plain_all"]).all()
    assert (rows["last_plain_all_high"] > rows["last_plain_all"]).all()
    assert "difference to s = 0.98 in points" in outcome.out
    assert all("0.98" not in set(table["s"]) and len(table) == len(smoothings) - 1 for table in compared)


def test_delta_without_smoothing_is_cross_entropy(out: Path) -> None:
    make(out, "delta")
    make(out, "unified", "--methods", "ce", "los")
    swept = pd.read_csv(out / "results" / f"delta_{NAME}.csv").set_index("smoothing")
    unified = pd.read_csv(out / "results" / f"unified_{NAME}_ce-los.csv").set_index("method")
    for smoothing, method in ((0.0, "ce"), (0.98, "los")):
        assert swept.loc[smoothing, "loma_mean"] == pytest.approx(unified.loc[method, "loma_mean"], rel=1e-4)
        assert swept.loc[smoothing, "last_plain_all"] == pytest.approx(unified.loc[method, "last_plain_all"], abs=0.21)


def test_delta_says_what_diverged(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.delta, "SMOOTHINGS", (0.5, 0.98))
    measure = tables.rows.measure_rows

    def last_diverging(*given: Any) -> list[Measured]:
        *rows, last = measure(*given)
        return [*rows, {**last, "metrics": None, "failure": "diverged at step 1 of epoch 1"}]

    monkeypatch.setattr(tables.rows, "measure_rows", last_diverging)
    outcome = make(out, "delta", plots=True)
    path = out / "results" / f"delta_{NAME}.csv"
    assert pd.read_csv(path)["smoothing"].tolist() == [0.5]
    for text in (outcome.out, path.with_suffix(".md").read_text()):
        assert "s = 0.98, seed 0: diverged at step 1 of epoch 1." in text


def test_delta_without_a_number_is_one_line_and_no_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.delta, "SMOOTHINGS", (0.5, 0.98))
    spoil(monkeypatch, "los")
    assert is_refusal(
        table(out, "delta", plots=True), "no row of the table has a number", "s = 0.5, seed 0: diverged at step 1"
    )
    assert not list((out / "results").iterdir())


# The path of LOS


@pytest.fixture(scope="module")
def walked(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, str]:
    """A short path of LOS: its folder, its rows and what it printed."""
    out = Path(shutil.copytree(source, tmp_path_factory.mktemp("walked") / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables.path, "EPOCHS", 8)
        outcome = make(out, "path", "--methods", "los", plots=True)
    return out, pd.read_csv(rows_file(out)), outcome.out


def test_path_is_measured_at_growing_step_counts(walked: tuple[Path, pd.DataFrame, str]) -> None:
    out, rows, printed = walked
    assert set(rows["method"]) == {"los"}
    for rate in (5e-4, 5e-3, 5e-2):
        steps = rows.loc[rows["learning_rate"] == rate, "steps"]
        assert steps.tolist() == [STEPS * epoch for epoch in (0, 1, 2, 3, 4, 5, 6, 8)]
    assert rows["steps"].isna().sum() == 2
    assert drawn(rows_file(out).with_suffix(".png"))
    assert f"fits {rows['train_accuracy'].iloc[0]:.1f} % of its training images" in printed


def test_path_begins_at_stage_1(walked: tuple[Path, pd.DataFrame, str]) -> None:
    out, rows, _ = walked
    report = metrics_of_stage1(out)
    for row in rows[rows["steps"] == 0].to_dict("records"):
        for group in GROUPS:
            assert row[f"plain_{group}"] == pytest.approx(report["last"]["plain"][group], abs=0.21)
        assert row["train_accuracy"] == pytest.approx(report["train"]["accuracy"], abs=0.26)
        assert row["training_accuracy"] == pytest.approx(row["train_accuracy"], abs=1e-3)
        assert row["test_loma"] == pytest.approx(np.mean(report["logits"]["test"]["column"]["loma"]), rel=1e-3)


def test_path_has_intervals_and_differences_to_its_start(walked: tuple[Path, pd.DataFrame, str]) -> None:
    out, rows, printed = walked
    assert rows["plain_all"].between(rows["plain_all_low"], rows["plain_all_high"]).all()
    assert "correct" not in rows and rows["steps_per_epoch"].eq(STEPS).all()
    path = rows_file(out)
    long = pd.read_csv(path.with_name(f"{path.stem}_intervals.csv"))
    start = "lr 0.0005, 0 steps"
    to_start = long[(long["reference"] == f"los, {start}") & (long["measure"] == "all")].set_index("at")
    own = long[long["reference"].isna() & (long["measure"] == "all")].set_index("at")["value"]
    # Of three learning rates, 5 and 8 epochs; two end points.
    assert len(own) == 1 + 3 * 2 + 2 and set(to_start.index) == set(own.index) - {start}
    for at, row in to_start.iterrows():
        assert row["value"] == pytest.approx(own[at] - own[start], abs=1e-3)
    last = rows[(rows["learning_rate"] == 0.005) & (rows["steps"] == 8 * STEPS)].iloc[0]
    assert own["lr 0.005, 104 steps"] == pytest.approx(last["plain_all"], abs=1e-3)
    tables = markdown_tables(path.with_suffix(".md").read_text())
    assert all(len(read_markdown_table(table).columns) <= 6 for table in tables)
    assert "difference to the classifier of stage 1" in printed


def test_path_ends_at_the_minimum(walked: tuple[Path, pd.DataFrame, str]) -> None:
    _, rows, printed = walked
    end = rows[rows["steps"].isna()].iloc[0]
    assert end["end"] == "converged" and rows.loc[rows["steps"].notna(), "end"].isna().all()
    assert end["largest_gradient"] <= tables.path.LBFGS_GRADIENT
    assert 0 < end["lbfgs_iterations"] <= tables.path.LBFGS_STEPS
    walk = rows[rows["steps"].notna()]
    assert end["objective"] < walk["objective"].min()
    assert "L-BFGS, converged" in printed


def test_path_says_where_it_did_not_end(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.path, "EPOCHS", 1)
    monkeypatch.setattr(tables.path, "LBFGS_STEPS", 2)
    outcome = make(out, "path", "--methods", "los")
    rows = pd.read_csv(rows_file(out))
    ends = rows[rows["steps"].isna()]
    assert ends["end"].tolist() == ["stopped after 2 iterations", "on class means, stopped after 2 iterations"]
    assert (ends["largest_gradient"] > 1e-5).all()
    assert "L-BFGS, stopped after 2 iterations" in outcome.out


def test_path_says_that_cross_entropy_has_no_minimum_where_it_meets_every_label(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image's feature becomes its label's: los ends at a minimum there, cross-entropy nowhere."""
    monkeypatch.setattr(tables.path, "EPOCHS", 1)

    def separable(context: TableContext) -> tuple[Tensor, Tensor]:
        labels = torch.arange(10).repeat(3)
        return 4 * torch.eye(10, context.trainer.linear.in_features)[labels], labels

    monkeypatch.setattr(tables.path, "all_views", separable)
    make(out, "path", "--methods", "ce", "los")
    rows = pd.read_csv(rows_file(out))
    ends = rows[rows["steps"].isna()].groupby("method")["end"].apply(list)
    for method, end in (("ce", "no minimum: separable"), ("los", "converged")):
        assert ends[method] == [end, f"on class means, {end}"]  # these features are their class means already


def test_class_means_take_the_place_of_every_row() -> None:
    features, labels = torch.randn(7, 3, dtype=torch.float64), torch.tensor([2, 0, 2, 2, 0, 3, 3])
    collapsed = tables.path.class_means(features, labels)
    for row, label in zip(collapsed, labels, strict=True):
        assert torch.allclose(row, features[labels == label].mean(dim=0))


@pytest.mark.parametrize("method", ["ncm", "crt", "wb"])
def test_path_refuses_methods_that_it_would_not_follow(method: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes plain steps from the warm start: no closed form, no sampler, no constraint, no new classifier."""
    monkeypatch.setattr(tables.path, "EPOCHS", 1)
    monkeypatch.setattr(tables.path, "LBFGS_STEPS", 1)
    assert is_refusal(table(out, "path", "--methods", method), method)


def test_path_of_several_seeds_is_refused(out: Path) -> None:
    assert is_refusal(table(out, "path", "--methods", "los", "--seeds", 0, 1), "one stage 1", "one seed")


def test_a_path_that_is_there_is_not_walked_again(
    walked: tuple[Path, pd.DataFrame, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rows, _ = walked
    monkeypatch.setattr(tables.path, "EPOCHS", 8)

    def walking(*_: object) -> None:
        raise AssertionError("walked again")

    monkeypatch.setattr(tables.path, "walk", walking)
    outcome = make(out, "path", "--methods", "los")
    assert "L-BFGS converged" not in outcome.out  # which the measurement prints
    again = pd.read_csv(rows_file(out))
    pd.testing.assert_frame_equal(again.drop(columns="command"), rows.drop(columns="command"))


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_damaged_kept_path_is_said_in_one_line(content: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.path, "EPOCHS", 1)
    monkeypatch.setattr(tables.path, "LBFGS_STEPS", 1)
    make(out, "path", "--methods", "los")
    path = next((out / "tables").rglob("path_los_*.json"))
    path.write_text(content)
    assert is_refusal(table(out, "path", "--methods", "los"), str(path))


def test_path_goes_on_without_a_learning_rate_that_diverges(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.path, "EPOCHS", 2)
    monkeypatch.setattr(tables.path, "LBFGS_STEPS", 1)
    monkeypatch.setattr(tables.path, "LEARNING_RATES", (5e-4, 5e-3, 1e38))
    outcome = make(out, "path", "--methods", "los", plots=True)
    rows = pd.read_csv(rows_file(out))
    assert rows.groupby("learning_rate").size().to_dict() == {5e-4: 3, 5e-3: 3, 1e38: 1}
    assert "los at 1e+38 diverged at step" in outcome.out


# Tables of runs


def test_cifar_has_stage_1_and_both_protocols(out: Path) -> None:
    outcome = make(out, "cifar", "--imb_ratio", 25, "--seeds", 0, 1, "--finetune_epoch", 1, plots=True)
    rows = pd.read_csv(out / "results" / f"cifar_digits_resnet8{WIDTH}_IF25.csv")
    assert rows["name"].tolist() == ["stage 1"] * 2 + ["los, honest"] * 2 + ["los, released"] * 2
    assert rows["protocol"].tolist() == ["honest"] * 4 + ["released"] * 2
    for seed in (0, 1):
        row = rows[(rows["name"] == "stage 1") & (rows["seed"] == seed)].iloc[0]
        for group in GROUPS:
            assert row[f"last_plain_{group}"] == pytest.approx(
                metrics_of_stage1(out, seed)["last"]["plain"][group], rel=1e-4
            )
    values = rows.loc[rows["name"] == "los, honest", "last_plain_all"]
    assert f"{values.mean():.1f} ± {values.std():.1f}" in outcome.out
    assert drawn(out / "results" / f"cifar_digits_resnet8{WIDTH}_IF25.png")


def test_runs_that_are_there_are_used(out: Path) -> None:
    flags = ("--imb_ratio", 25, "--finetune_epoch", 1)
    make(out, "cifar", *flags)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")}
    outcome = make(out, "cifar", *flags)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")} == times
    assert outcome.out.count("using the finished run") == 5  # stage 1 for itself and for each of two rows


def test_gala_has_both_readings_with_and_without_rebalancing(out: Path) -> None:
    outcome = make(out, "gala", "--imb_ratio", 25, "--epochs", 1, plots=True)
    rows = pd.read_csv(out / "results" / f"gala_digits_resnet8{WIDTH}_IF25.csv")
    readings = (("formula", "paper", "single"), ("released code", "released", "double"))
    assert rows["name"].tolist() == [
        f"gala, {words}, lambda {lambdas}" for words, _, _ in readings for lambdas in ("1 / 1", "1.2 / 0.9")
    ]
    assert rows["stage"].tolist() == ["stage1"] * 4
    configs = [
        read(path)["settings"] for path in out.rglob("config.json") if read(path)["settings"].get("loss") == "gala"
    ]
    made = {(c["gala_margin"], c["gala_accumulation"], c["lambda1"], c["lambda2"]) for c in configs}
    pairs = ((1, 1), (1.2, 0.9))
    assert made == {(margin, accumulation, *pair) for _, margin, accumulation in readings for pair in pairs}
    title = "Accuracy in percent, last epoch, plain, re-balanced over the test images, tau 1:"
    table = outcome.out[outcome.out.index(title) :].split("\n\n")[0]
    for row in rows.to_dict("records"):
        cells = [f"{row[f'rebalanced_plain_{group}']:.1f}" for group in ("all", "many")]
        assert " ".join([*row["name"].split(), *cells]) in " ".join(table.split())
    assert drawn(out / "results" / f"gala_digits_resnet8{WIDTH}_IF25.png")


def test_gala_stands_beside_the_figures_of_its_lambdas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Run] = []
    monkeypatch.setattr(tables.runs, "run_table", lambda request, name, rows, rebalanced: seen.extend(rows))
    tables.runs.gala(Request("gala", [0], None, None, False, [], tmp_path, {}, "", lambda _: {}, lambda _: {}))
    for run in seen:
        assert (run.stage1["lambda1"] == 1) == (run.published == "gala stage 1")
        for row in (run.published, f"{run.published} re-balanced"):
            assert len(published("cifar100", run.stage1["imb_ratio"], row)) == 1
    assert [run.stage1["imb_ratio"] for run in seen] == [200] * 4 + [100] * 4 + [50] * 4 + [10] * 4


def test_tables_of_other_subsets_have_other_names(out: Path) -> None:
    make(out, "stress", "--imb_ratio", 5, "--imb_type", "step", "--finetune_epoch", 1, "--methods", "ncm")
    [path] = (out / "results").glob("stress_*step*_ncm.csv")
    assert path.name == f"stress_digits_resnet8{WIDTH}_imb_typestep_IF5_ncm.csv"
    assert set(pd.read_csv(path)["imb_type"]) == {"step"}


def test_stress_has_stage_1_and_the_methods(out: Path) -> None:
    make(out, "stress", "--imb_ratio", 25, "--finetune_epoch", 1, "--methods", "ce", "tau_norm")
    rows = pd.read_csv(out / "results" / f"stress_digits_resnet8{WIDTH}_IF25_ce-tau_norm.csv")
    assert rows["name"].tolist() == ["stage 1", "ce", "tau_norm"]
    assert rows["last_plain_all"].notna().all()


def test_a_row_that_diverges_is_shown_and_the_others_go_on(out: Path) -> None:
    outcome = make(out, "stress", "--imb_ratio", 25, "--finetune_lr", 1e6, "--methods", "wb", "tau_norm")
    path = out / "results" / f"stress_digits_resnet8{WIDTH}_IF25_wb-tau_norm.csv"
    rows = pd.read_csv(path).set_index("name")
    assert rows["last_plain_all"].notna().to_dict() == {"stage 1": True, "wb": False, "tau_norm": True}
    assert rows["failure"].notna().to_dict() == {"stage 1": False, "wb": True, "tau_norm": False}
    shown = rows.loc["wb", "failure"]
    assert shown in outcome.out and shown in path.with_suffix(".md").read_text()
    assert "| 25 | wb | failed | failed |" in path.with_suffix(".md").read_text()


def test_runs_without_a_number_are_one_line_and_no_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = tables.runs.run_table

    def diverging(_: object) -> dict:
        raise DivergedError("the loss is not finite")

    def two(request: Request, name: str, rows: list[Run]) -> None:
        everything(replace(request, train_stage2=diverging), name, rows[:2])

    monkeypatch.setattr(tables.runs, "run_table", two)
    outcome = table(out, "ablation", "--imb_ratio", 25, plots=True)
    assert is_refusal(outcome, "no row of the table has a number", "the loss is not finite")
    assert not list((out / "results").iterdir())


def test_ablation_crosses_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Run] = []
    monkeypatch.setattr(tables.runs, "run_table", lambda request, name, rows: seen.extend(rows))
    request = Request("ablation", [0], [50], None, False, [], tmp_path, {}, "", lambda _: {}, lambda _: {})
    tables.runs.ablation(request)
    assert len(seen) == len({run.name for run in seen}) == 5 * 2 * 3 * 2
    flags = [run.stage2 or {} for run in seen]
    assert {flag["finetune_lr"] for flag in flags} == {5e-4, 5e-3, 5e-2}
    assert {flag["finetune_epoch"] for flag in flags} == {20, 100}
    assert {(flag["bn_mode"], flag["views"]) for flag in flags} >= {("train", "fresh"), ("eval", "plain")}
    assert sum("reinit_classifier" in flag for flag in flags) == 30
    assert all(run.stage1 == {"imb_ratio": 50} for run in seen)


def test_two_rows_of_the_ablation_run(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = tables.runs.run_table

    def first_and_last(request: Request, name: str, rows: list[Run]) -> None:
        short = [replace(run, stage2={**(run.stage2 or {}), "finetune_epoch": 1, "eval_every": 1}) for run in rows]
        everything(request, name, [short[0], short[-1]])

    monkeypatch.setattr(tables.runs, "run_table", first_and_last)
    make(out, "ablation", "--imb_ratio", 25)
    rows = pd.read_csv(out / "results" / f"ablation_digits_resnet8{WIDTH}_IF25.csv")
    assert rows["name"].str.contains("batch norm").all() and len(rows) == 2
    assert "--views plain" in rows["command"].iloc[0] and "--reinit_classifier" in rows["command"].iloc[1]


# Published figures


# All / many / medium / few as published, straight from the papers.
WEIGHT_BALANCING = {
    "stage 1": (46.08, 76.94, 44.28, 12.17),
    "tau_norm": (51.31, 73.11, 47.69, 30.10),
    "l2_norm": (49.60, 76.09, 47.74, 20.87),
    "wb_cb": (47.09, 77.00, 45.89, 13.60),
    "wb_wd": (52.42, 72.77, 49.74, 31.80),
    "wb_maxnorm": (50.20, 76.49, 49.23, 20.67),
    "wb": (53.35, 72.60, 51.86, 32.63),
}
SCALE = {
    "stage 1": (52.71, 66.03),
    "l2_norm": (56.33, 67.16),
    "tau_norm": (57.65, 67.79),
    "wb_wd": (57.47, 67.96),
    "wb_maxnorm": (56.06, 67.10),
    "wb": (57.71, 68.67),
}
LOS_ALL = {10: 69.7, 50: 58.8, 100: 54.9}
AGAIN = {100: (53.92, 70.11, 55.37, 33.33), 200: (47.01, 71.63, 56.90, 20.21), 500: (31.43, 67.69, 39.46, 7.44)}
CONTROLS = {100: (47.6, 52.8), 200: (42.38, 46.87), 500: (36.59, 40.57)}
GALA_ROWS = (
    "gala stage 1",
    "gala stage 1 re-balanced",
    "gala stage 1, tuned lambdas",
    "gala stage 1, tuned lambdas re-balanced",
)
GALA = {
    200: (47.4, 47.5, 48.0, 48.5),
    100: (50.9, 51.0, 52.1, 52.3),
    50: (55.1, 55.2, 56.0, 56.5),
    10: (62.5, 62.6, 63.8, 64.2),
}
LARGE = {
    "imagenet_lt": {
        "stage 1": (48.6, 68.5, 42.4, 14.2),
        "l2_norm": (52.8, 61.2, 48.9, 42.6),
        "tau_norm": (53.1, 64.0, 49.0, 36.3),
        "wb_wd": (53.3, 62.0, 49.7, 41.0),
        "wb_maxnorm": (53.0, 62.2, 50.1, 37.5),
        "wb": (53.9, 62.5, 50.4, 41.5),
        "los": (54.4,),
    },
    "inaturalist2018": {
        "stage 1": (65.4, 74.5, 66.5, 61.5),
        "l2_norm": (51.3, 11.2, 47.4, 66.9),
        "tau_norm": (69.6, 71.3, 69.8, 68.9),
        "wb_wd": (70.0, 71.0, 70.3, 69.4),
        "wb_maxnorm": (69.2, 71.4, 68.9, 69.1),
        "wb": (70.2, 71.2, 70.4, 69.7),
        "los": (70.8,),
    },
}


def accuracies(ratio: float, row: str, dataset: str = "cifar100") -> list[tuple[float, ...]]:
    """Published all (and many, medium, few)."""
    return [(figure.all, *(figure.groups or ())) for figure in published(dataset, ratio, row)]


def test_published_figures_are_those_of_the_papers() -> None:
    for row, values in WEIGHT_BALANCING.items():
        assert values in accuracies(100, row)
    for row, pair in SCALE.items():
        for ratio, value in zip((50, 10), pair, strict=True):
            assert accuracies(ratio, row) == [(value,)]
    for ratio, value in LOS_ALL.items():
        assert (value,) in accuracies(ratio, "los")
    for ratio, values in AGAIN.items():
        assert values in accuracies(ratio, "los")
    for ratio, pair in CONTROLS.items():
        for row, value in zip(("stage 1", "balanced_softmax"), pair, strict=True):
            assert (value,) in accuracies(ratio, row)
    for ratio, values in GALA.items():
        for row, value in zip(GALA_ROWS, values, strict=True):
            (figure,) = published("cifar100", ratio, row)
            assert (figure.all, figure.groups) == (value, None)
            assert ("tuned lambdas" in figure.source) == ("tuned lambdas" in row)


def test_large_data_sets_have_their_published_figures_at_any_imbalance() -> None:
    for dataset, rows in LARGE.items():
        for row, values in rows.items():
            assert accuracies(256, row, dataset) == [values]
        assert {figure.row for figure in PUBLISHED if figure.dataset == dataset} == set(rows)


def test_every_figure_has_a_source_and_a_row() -> None:
    rows = {*RECIPES, "stage 1", *GALA_ROWS}
    for figure in PUBLISHED:
        assert figure.row in rows
        assert figure.source in SOURCES and "(" in figure.source
        assert 0 < figure.all < 100
    assert len({(f.dataset, f.imb_ratio, f.row, f.source) for f in PUBLISHED}) == len(PUBLISHED)


def test_a_cell_names_its_sources() -> None:
    shown = cell("cifar100", 100, "los")
    assert "54.9 [" in shown and "53.9 / 70.1 / 55.4 / 33.3 [" in shown
    notes = sources([shown, "-"])
    assert notes.startswith("Published, not measured here:")
    assert "LOS, ICLR 2025" in notes and "Deciphering the Extremes" in notes and "Weight Balancing" not in notes
    assert cell("cifar100", 100, "lws") == cell("digits", 25, "los") == "-"
    assert sources(["-"]) == ""


def test_choices_without_a_finite_temperature_are_named() -> None:
    choices = pd.DataFrame(
        {
            "method": ["ce", "los", "los", "shared budget: ce"],
            "chosen": [True, False, True, True],
            "temperature": [1.5, None, None, None],
        }
    )
    assert tables.unified.temperature_notes(None) == tables.unified.temperature_notes(choices[:2]) == []
    (note,) = tables.unified.temperature_notes(choices)
    assert note.startswith("No finite temperature") and note.endswith(": los, ce.")
