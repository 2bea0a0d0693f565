"""`reproduce.py` as a person types it: tables made, kept and gone on with, numbers chosen, and what is refused."""

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import engine.many_heads
import tables.request
import tables.rows
import tables.selection
import tables.unified
from datasets.long_tail import LongTailedData
from evaluation.csv_files import read_csv
from methods.plan import Plan
from methods.recipes import RECIPES, TRIALS
from stages.data import device_images
from tables import TABLES
from tables.request import SPLITS, FileName
from tables.selection import trials
from tests.helpers import EXPERIMENT, ROOT, contents, read, run, stage1
from tests.table_runs import SMALL, is_refusal, make, spoil, table
from tools.result_tables import markdown_tables, read_markdown_table
from utils.files import sha256_file

NAME = f"unified_{EXPERIMENT}w4_epochs6"
GROUPS = ("all", "many", "medium", "few")
ENDINGS = (".csv", ".md", ".png", "_logits.png", "_intervals.csv", "_intervals.png")
Trainer = Callable[..., list[Any]]


def result(out: Path, *methods: str, name: str = NAME, ending: str = ".csv") -> Path:
    """The file of a table of these methods alone."""
    return out / "results" / f"{FileName(name, methods=methods).stem}{ending}"


def rows_of(out: Path, *methods: str, name: str = NAME) -> pd.DataFrame:
    return read_csv(result(out, *methods, name=name))


def markdown_of(out: Path, *methods: str) -> str:
    return result(out, *methods, ending=".md").read_text()


def numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """What a table says of its rows, without what made them."""
    return rows.drop(columns=["command", "git_revision"])


def stage1_of(out: Path, seed: int = 0, holdout: str = "") -> Path:
    return out / EXPERIMENT / f"seed{seed}" / f"stage1_epochs6{holdout}_width4"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1s with and without held-out images; not to be changed."""
    out = tmp_path_factory.mktemp("source")
    for seed in SPLITS:
        stage1(out, *SMALL, "--seed", seed, "--holdout", 0.2)
    for seed in (0, 1):
        stage1(out, *SMALL, "--seed", seed)
    return out


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    """A copy of `source` that a test may change."""
    return Path(shutil.copytree(source, tmp_path / "out"))


@pytest.fixture(scope="module")
def source_of_ce(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a table of cross-entropy alone; not to be changed."""
    out = Path(shutil.copytree(source, tmp_path_factory.mktemp("source_of_ce") / "out"))
    make(out, "unified", "--methods", "ce")
    return out


@pytest.fixture
def made(source_of_ce: Path, tmp_path: Path) -> Path:
    """A copy of `source_of_ce` that a test may change."""
    return Path(shutil.copytree(source_of_ce, tmp_path / "out"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that tables train or compute, in order; a test may clear it."""
    seen: list[str] = []

    def noting(original: Trainer) -> Trainer:
        def train_heads(trainer: Any, plans: Sequence[Plan], *rest: Any) -> list[Any]:
            seen.extend(plan.method for plan in plans)
            return original(trainer, plans, *rest)

        return train_heads

    for module in (tables.rows, tables.selection):
        monkeypatch.setattr(module, "train_heads", noting(module.train_heads))
    return seen


# The unified table


def test_unified_writes_its_files_and_prints_what_it_measured(out: Path) -> None:
    outcome = make(out, "unified", "--methods", "ce", "tau_norm", plots=True)
    made = {path.name for path in (out / "results").iterdir()}
    files = [result(out, "ce", "tau_norm", ending=ending) for ending in ENDINGS]
    assert made == {path.name for path in files}
    for path in [path for path in files if path.suffix == ".png"]:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[0] > 100 and pixels.std() > 0.01
    rows = rows_of(out, "ce", "tau_norm")
    assert rows["method"].tolist() == ["ce", "tau_norm"]
    assert rows["budget"].tolist() == ["shared", "shared"]
    assert rows["failure"].isna().all()
    markdown = markdown_of(out, "ce", "tau_norm")
    first = markdown.splitlines()[0]
    assert first.startswith("Seed 0. Made by `python reproduce.py ")
    assert first.endswith("--methods ce tau_norm`.") and first in outcome.out
    assert "Accuracy in percent, best epoch, plain:" in markdown and "flip" not in markdown  # a mirrored digit is none
    tables = [read_markdown_table(table) for table in markdown_tables(markdown)]
    assert all(len(table.columns) <= 6 for table in tables)
    for _, row in rows.iterrows():
        numbers = [row[f"last_plain_{group}"] for group in GROUPS]
        cells = [row["method"], "shared", *("-" if pd.isna(number) else f"{number:.1f}" for number in numbers)]
        assert f"| {' | '.join(cells)} |" in markdown and cells in [line.split() for line in outcome.out.splitlines()]
    wanted = ["loma_mean", "loma_deviation", "rsd_true_median", "last_plain_macro_f1", "last_plain_ece"]
    assert rows[[*wanted, "train_seconds"]].notna().all(axis=None)
    assert rows[["command", "device", "torch", "stage1_sha256", "citation"]].notna().all(axis=None)


def test_rows_are_what_their_commands_report(out: Path, tmp_path: Path) -> None:
    methods = ("los", "ldam_drw", "crt", "wb", "lws", "tau_norm")
    make(out, "unified", "--methods", *methods, "--seeds", 1)
    for number, row in enumerate(rows_of(out, *methods).to_dict("records")):
        _, script, *words = shlex.split(row["command"])
        assert script == "main_stage2.py"
        alone = tmp_path / str(number)  # of two budgets of one method the folders may have one name
        words[words.index("--out") + 1] = str(alone)
        outcome = run("main_stage2", *words)
        assert outcome.status == 0, outcome.err
        folder = next(alone.rglob(f"stage2_{row['method']}_*/metrics.json"))
        metrics = read(folder)
        for checkpoint in ("last", "best"):
            for group in GROUPS:
                there = metrics[checkpoint]["plain"][group]
                assert row[f"{checkpoint}_plain_{group}"] == pytest.approx(there, abs=0.21), row["method"]  # an image
        assert row["loma_mean"] == pytest.approx(np.mean(metrics["logits"]["test"]["column"]["loma"]), rel=1e-3)
        assert row["seed"] == 1


def test_a_second_start_trains_nothing_and_writes_the_same_table(out: Path, trained: list[str]) -> None:
    methods = ("--methods", "ce", "los", "ncm")
    make(out, "unified", *methods)
    before = contents(out / "results")
    assert sorted(trained) == ["ce", "los", "ncm"]
    trained.clear()
    make(out, "unified", *methods)
    assert trained == []
    assert contents(out / "results") == before


def test_another_method_trains_alone(made: Path, trained: list[str]) -> None:
    make(made, "unified", "--methods", "ce", "los")
    assert trained == ["los"]
    assert rows_of(made, "ce")["method"].tolist() == ["ce"]
    assert rows_of(made, "ce", "los")["method"].tolist() == ["ce", "los"]


def test_a_stopped_table_goes_on(out: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ("tau_norm", "ce", "lws", "focal")  # four stacks
    whole = out.with_name("whole")
    shutil.copytree(out, whole)
    make(whole, "unified", "--methods", *methods)
    train = engine.many_heads._train_stacked

    def stopping(trainer: Any, plans: Sequence[Plan], *rest: Any) -> list[Any]:
        if plans[0].method == "lws":
            raise KeyboardInterrupt
        return train(trainer, plans, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.many_heads, "_train_stacked", stopping)
        outcome = table(out, "unified", "--methods", *methods)
    assert outcome.status == 130
    assert "interrupted: what was finished is kept" in outcome.err
    assert not contents(out / "results")
    assert {path.name.rsplit("_", 1)[0] for path in (out / "tables").rglob("*.json")} == {"tau_norm", "ce"}
    trained.clear()
    make(out, "unified", "--methods", *methods)
    assert trained == ["lws", "focal", "lws"]  # lws under the shared budget, and under its own
    mine, wanted = (numbers(rows_of(folder, *methods)).drop(columns="train_seconds") for folder in (out, whole))
    pd.testing.assert_frame_equal(mine.drop(columns="images_per_second"), wanted.drop(columns="images_per_second"))


def test_no_stale_row_serves_another_question(made: Path, trained: list[str]) -> None:
    for change in (("--seeds", 1), ("--views", 2), ("--rebalance_tau", 0.5), ("--imb_ratio", 10), ("--start", "best")):
        trained.clear()
        make(made, "unified", "--methods", "ce", *change)
        assert trained == ["ce"], change


def test_batches_and_momentum_are_stage_1s(out: Path) -> None:
    """They would change the budget that all methods share."""
    make(out, "unified", "--methods", "ce", "--epochs", 1, "--batch_size", 16, "--momentum", 0.5)
    (path,) = (path for path in (out / "results").glob("*.csv") if not path.stem.endswith("_intervals"))
    assert (
        "settings of stage 1: epochs1, batch_size16, momentum0.5; 1 method: ce." in path.with_suffix(".md").read_text()
    )
    assert "--batch_size" not in read_csv(path)["command"].item()
    config = read(next((out / "tables").rglob("ce_*.json")))["config"]
    assert config["settings"]["batch_size"] == 32 and config["settings"]["momentum"] == 0.9


def change_weights(folder: Path) -> None:
    """Let the stage 1 of a folder be another one."""
    path = folder / "last.pth"
    content = torch.load(path, weights_only=True)
    content["model"]["fc.bias"] += torch.arange(10.0)
    torch.save(content, path)


def test_other_weights_in_the_same_place_are_another_stage_1(made: Path, trained: list[str]) -> None:
    before = rows_of(made, "ce")
    change_weights(stage1_of(made))
    make(made, "unified", "--methods", "ce")
    assert trained == ["ce"]
    after = rows_of(made, "ce")
    assert before["stage1_sha256"].item() != after["stage1_sha256"].item()
    assert before["last_plain_all"].item() != after["last_plain_all"].item()


def test_two_seeds_give_mean_and_deviation(out: Path) -> None:
    outcome = make(out, "unified", "--methods", "ce", "--seeds", 0, 1)
    rows = rows_of(out, "ce")
    assert rows["seed"].tolist() == [0, 1]
    assert rows["stage1_sha256"].nunique() == 2
    values = rows["last_plain_all"]
    shown = f"{values.mean():.1f} ± {values.std():.1f}"
    assert shown in outcome.out
    assert shown in markdown_of(out, "ce")
    said = "Mean and sample deviation over seeds 0, 1, each with its own stage 1."
    assert said in outcome.out and said in markdown_of(out, "ce").splitlines()[0]


def test_a_damaged_kept_row_is_said_in_one_line(made: Path) -> None:
    path = next((made / "tables").rglob("ce_*.json"))
    for content in ("", "{", "[]", '{"metrics": null}'):
        path.write_text(content)
        assert is_refusal(table(made, "unified", "--methods", "ce"), str(path)), content


def test_a_damaged_feature_file_is_said_in_one_line(made: Path) -> None:
    path = next(path for path in (made / "features").rglob("train_*.npy") if "view" not in path.name)
    whole = path.read_bytes()
    for share in (0.0, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        assert is_refusal(table(made, "unified", "--methods", "ncm"), str(path), "damaged"), share


def test_features_are_found_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def computing(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("features were computed again")

    monkeypatch.setattr("engine.frozen_features.predict_blocks", computing)
    make(made, "unified", "--methods", "los")
    assert rows_of(made, "los")["method"].tolist() == ["los"]


@pytest.mark.parametrize("flags", [("--protocol", "released"), ("--bn_mode", "train"), ("--nesterov",)])
def test_what_cached_features_cannot_serve_is_refused(flags: tuple[object, ...], out: Path) -> None:
    """A row would say that it was made with these flags, and was not."""
    outcome = table(out, "unified", "--methods", "ce", "--pretrained_pth", stage1_of(out), *flags)
    assert is_refusal(outcome, str(flags[0]))


@pytest.mark.parametrize("flags", [("--methods", "ce", "ce"), ("--methods", "ce", "--seeds", 0, 0)])
def test_what_is_asked_for_twice_is_no_repetition(flags: tuple[object, ...], out: Path) -> None:
    outcome = make(out, "unified", *flags)
    assert "±" not in outcome.out and "Seed 0." in outcome.out
    assert len(rows_of(out, "ce")) == 1


def test_repetitions_of_stage_2_alone_are_said_to_be_that(out: Path) -> None:
    make(out, "unified", "--methods", "los", "--seeds", 0, 1, "--pretrained_pth", stage1_of(out))
    markdown = markdown_of(out, "los")
    assert "±" in markdown
    assert "over seeds 0, 1, of stage 2 alone, on one stage 1." in markdown.splitlines()[0]


# A method that diverges


def test_a_method_that_diverges_stops_alone_and_is_shown(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "focal")
    outcome = make(out, "unified", "--methods", "ce", "focal", "los", plots=True)
    rows = rows_of(out, "ce", "focal", "los").set_index("method")
    assert rows["failure"].notna().to_dict() == {"ce": False, "focal": True, "los": False}
    assert rows.loc["focal", "failure"] == "diverged at step 1 of epoch 1"
    assert rows["last_plain_all"].notna().to_dict() == {"ce": True, "focal": False, "los": True}
    for text in (outcome.out, markdown_of(out, "ce", "focal", "los")):
        assert "focal, shared budget: diverged at step 1 of epoch 1." in text


def test_a_table_without_a_number_is_one_line_and_no_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "focal")
    outcome = table(out, "unified", "--methods", "focal", plots=True)
    assert is_refusal(outcome, "no row of the table has a number", "diverged at step 1 of epoch 1")
    assert not contents(out / "results")
    kept = read(next((out / "tables").rglob("focal_*.json")))
    assert kept["failure"] == "diverged at step 1 of epoch 1" and kept["metrics"] is None


def test_a_learning_rate_that_is_too_large_stops_its_trials_alone(
    out: Path, few_trials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables.selection, "TWELVE_LRS", (1e6, 5e-3))
    spoil(monkeypatch, "focal")
    make(out, "unified", "--select", "--methods", "ce", "focal")
    chosen = read_csv(out / "results" / f"{NAME}_selection.csv")
    assert not chosen.loc[chosen["method"] == "focal", "chosen"].any()
    assert chosen.loc[chosen["method"] == "focal", "mean"].isna().all()
    assert chosen.loc[chosen["method"] == "ce", "chosen"].sum() == 1
    rows = rows_of(out, "ce", "focal")
    assert rows.loc[rows["budget"] == "selected", "method"].tolist() == ["ce"]


# Choosing numbers


@pytest.mark.parametrize("method", RECIPES)
def test_every_method_that_has_numbers_to_choose_has_as_many_trials(method: str) -> None:
    found = trials(method)
    assert len(set(found)) == len(found)
    assert all(flags[:2] == ("--method", method) for flags in found)
    recipe = RECIPES[method]
    assert len(found) == (1 if not recipe.trains and recipe.tuned is None else TRIALS)


def test_select_fills_the_second_column(out: Path, few_trials: None, trained: list[str]) -> None:
    methods = ("ce", "los", "tau_norm", "ncm")
    outcome = make(out, "unified", "--select", "--methods", *methods)
    path = out / "results" / f"{NAME}_selection.csv"
    choices = read_csv(path)
    assert set(choices["conditions"].dropna()) == {"views 5, batch_size 32, momentum 0.9"}
    hashes = [sha256_file(stage1_of(out, seed, "_holdout0.2") / "last.pth") for seed in SPLITS]
    assert set(choices["splits_sha256"].dropna()) == {" ".join(hashes)}
    own = choices[~choices["method"].str.startswith("shared")]
    assert own.groupby("method").size().to_dict() == {"ce": 2, "los": 2, "tau_norm": 2, "ncm": 1}
    splits = own[[f"split{i}" for i in range(len(SPLITS))]]
    np.testing.assert_allclose(own["mean"], splits.mean(axis=1), rtol=1e-4)
    for _, tried in own.groupby("method"):
        best = tried.index[tried["mean"] == tried["mean"].max()]
        assert tried.index[tried["chosen"]].tolist() == [best[len(best) // 2]]
    chosen = own[own["chosen"]].set_index("method")
    rows = rows_of(out, *methods)
    assert rows["budget"].tolist() == ["shared"] * 4 + ["selected"] * 4
    for row in rows[rows["budget"] == "selected"].to_dict("records"):
        assert row["flags"] == chosen.loc[row["method"], "flags"]
        assert row["held_out_mean"] == pytest.approx(chosen.loc[row["method"], "mean"])
    known = dict(zip(choices["flags"], choices["temperature"], strict=True))
    np.testing.assert_allclose(rows["temperature"], [known[flags] for flags in rows["flags"]], rtol=1e-4)
    assert rows["last_plain_ece_after"].notna().all()
    assert " selected " in outcome.out and "epoch 1, lr" in outcome.out
    assert "Probabilities with the temperature, last epoch, plain:" in outcome.out

    trained.clear()
    before = contents(out / "results")
    make(out, "unified", "--select", "--methods", *methods)
    assert trained == []
    assert contents(out / "results") == before
    make(out, "unified", "--methods", *methods)  # the selection that is there is used
    assert trained == []
    markdown = result(out, *methods, ending=".md").name  # its first line has another command
    after = contents(out / "results")
    assert after[markdown].splitlines()[1:] == before[markdown].splitlines()[1:]
    assert after | {markdown: before[markdown]} == before


def test_a_selection_is_added_to_and_fits_its_conditions(out: Path, few_trials: None, trained: list[str]) -> None:
    path = out / "results" / f"{NAME}_selection.csv"
    make(out, "unified", "--select", "--methods", "ce")
    before = read_csv(path)
    trained.clear()
    make(out, "unified", "--select", "--methods", "ce", "tau_norm")
    assert "ce" not in trained
    added = read_csv(path)
    pd.testing.assert_frame_equal(added.head(len(before)), before)
    assert set(added["method"].tail(len(added) - len(before))) == {"tau_norm", "shared budget: tau_norm"}

    outcome = make(out, "unified", "--methods", "tau_norm", "--views", 2)
    assert f"{path} was chosen with views 5, batch_size 32, momentum 0.9, not views 2" in outcome.out
    assert rows_of(out, "tau_norm")["budget"].tolist() == ["shared"]
    pd.testing.assert_frame_equal(read_csv(path), added)
    make(out, "unified", "--select", "--methods", "tau_norm", "--views", 2)
    assert rows_of(out, "tau_norm")["budget"].tolist() == ["shared", "selected"]
    assert set(read_csv(path)["method"]) == {"tau_norm", "shared budget: tau_norm"}
    assert set(read_csv(path)["conditions"].dropna()) == {"views 2, batch_size 32, momentum 0.9"}


def test_a_selection_on_other_splits_is_replaced(out: Path, few_trials: None) -> None:
    path = out / "results" / f"{NAME}_selection.csv"
    make(out, "unified", "--select", "--methods", "tau_norm")
    before = read_csv(path)["splits_sha256"].iloc[0]
    change_weights(stage1_of(out, 1, "_holdout0.2"))
    outcome = make(out, "unified", "--select", "--methods", "ncm")
    assert "was chosen on other splits: choosing again" in outcome.out
    choices = read_csv(path)
    assert set(choices["method"]) == {"ncm", "shared budget: ncm"}
    (after,) = set(choices["splits_sha256"].dropna())
    assert [old == new for old, new in zip(before.split(), after.split(), strict=True)] == [True, False, True]


def test_a_stopped_selection_goes_on_where_it_was(
    out: Path, few_trials: None, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished is on disk and is not tried again; the numbers are those of a selection in one piece."""
    whole = Path(shutil.copytree(out, out.with_name("whole")))
    line = ("unified", "--select", "--methods", "ce", "tau_norm", "balanced_softmax", "crt")
    make(whole, *line)
    needed = list(trained)
    trained.clear()
    working = tables.selection.train_heads
    calls: list[int] = []

    def stopping(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return working(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tables.selection, "train_heads", stopping)
        assert table(out, *line).status == 130
    assert not (out / "results" / f"{NAME}_selection.csv").exists()
    assert len(list((out / "tables").rglob("trials_*.json"))) == 5
    done = list(trained)
    trained.clear()
    make(out, *line)
    assert sorted(done + trained) == sorted(needed)
    left, right = (
        pd.read_csv(folder / "results" / f"{NAME}_selection.csv").drop(columns=["command", "seconds_of_all"])
        for folder in (out, whole)
    )
    pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_a_selection_of_other_data_is_not_used(out: Path, few_trials: None, trained: list[str]) -> None:
    path = out / "results" / f"{NAME}_selection.csv"
    make(out, "unified", "--select", "--methods", "tau_norm")
    other = pd.read_csv(path)
    other.loc[0, "data_sha256"] = "0" * 64
    other.to_csv(path, index=False)
    before = path.read_bytes()
    assert "no selection yet" in make(out, "unified", "--methods", "tau_norm").out
    outcome = make(out, "unified", "--select", "--methods", "tau_norm")
    assert f"{path} is of other data of that name: it stays" in outcome.out
    assert path.read_bytes() == before and len(list(path.parent.glob("*_selection_data*.csv"))) == 1


def test_kept_trials_that_are_damaged_are_named(out: Path, few_trials: None) -> None:
    make(out, "unified", "--select", "--methods", "tau_norm")
    for path in (out / "tables").rglob("trials_*.json"):
        path.write_text('{"trials": [[1]]}')
    (out / "results" / f"{NAME}_selection.csv").unlink()
    assert is_refusal(table(out, "unified", "--select", "--methods", "tau_norm"), "trials_tau_norm", "is damaged")


@pytest.mark.parametrize("seeds", [(0,), (1, 1)])
def test_a_single_split_is_refused(seeds: tuple[int, ...], out: Path, trained: list[str]) -> None:
    splits = [stage1_of(out, seed, "_holdout0.2") for seed in seeds]
    outcome = table(out, "unified", "--select", "--methods", "ce", "--holdout_pth", *splits)
    assert is_refusal(outcome, "--holdout_pth must name 2 different stage 1s or more")
    assert trained == []


def test_splits_whose_epoch_the_test_images_chose_are_refused(out: Path, trained: list[str]) -> None:
    outcome = table(out, "unified", "--select", "--methods", "ce", "--start", "best")
    assert is_refusal(outcome, "best on the test set", "last.pth")
    assert trained == []


def test_a_method_that_cannot_be_tried_does_not_repeat_the_selection(
    out: Path, few_trials: None, trained: list[str]
) -> None:
    methods = ("--methods", "ce", "lort")  # ten classes rule out all smoothings of lort
    make(out, "unified", "--select", *methods)
    trained.clear()
    make(out, "unified", "--select", *methods)
    assert trained == []


def test_the_middle_of_equal_trials_is_chosen(out: Path, few_trials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.selection, "TWELVE_LRS", (5e-4, 5e-3, 5e-2))
    monkeypatch.setattr(tables.selection, "score", lambda *_: 50.0)
    make(out, "unified", "--select", "--methods", "ce", "tau_norm")
    choices = read_csv(out / "results" / f"{NAME}_selection.csv")
    chosen = choices[choices["chosen"] & ~choices["method"].str.startswith("shared")]
    assert chosen["flags"].tolist() == [" ".join(trials("ce")[1]), " ".join(trials("tau_norm")[1])]


def test_selection_never_looks_at_test_images(out: Path, few_trials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = Path(shutil.copytree(out, out.with_name("blind")))
    methods = ("--select", "--methods", "ce", "tau_norm")
    make(out, "unified", *methods)

    opened = []

    def without_test(data: LongTailedData, *rest: Any) -> dict[str, Any]:
        images = device_images(data, *rest)
        opened.append(len(data.holdout) > 0)
        return {name: split for name, split in images.items() if name != "test"} if opened[-1] else images

    monkeypatch.setattr("stages.session.device_images", without_test)
    make(blind, "unified", *methods)
    assert opened.count(True) >= 3  # the splits
    left, right = (
        read_csv(folder / "results" / f"{NAME}_selection.csv").drop(columns=["command", "seconds_of_all"])
        for folder in (out, blind)
    )
    assert left["mean"].notna().all()
    pd.testing.assert_frame_equal(left, right)


def test_select_refuses_a_stage_1_that_saw_the_images(out: Path, trained: list[str]) -> None:
    outcome = table(out, "unified", "--select", "--methods", "ce", "--holdout_pth", stage1_of(out))
    assert is_refusal(outcome, "was trained on all images", "--holdout")
    assert trained == []
    assert not list(out.glob("results/*"))


@pytest.mark.parametrize("flags", [("--imb_ratio", 10), ("--epochs", 1)])
def test_select_refuses_a_stage_1_of_another_kind(flags: tuple[object, ...], out: Path, trained: list[str]) -> None:
    made = out.with_name("other")
    stage1(made, *SMALL, "--holdout", 0.2, *flags)
    other = next(made.rglob("last.pth")).parent
    named = ("--pretrained_pth", stage1_of(out), "--holdout_pth", other)
    outcome = table(out, "unified", "--methods", "ce", "--select", *named)
    assert is_refusal(outcome, str(other), str(flags[0]))
    assert trained == []


def test_select_at_another_imbalance_chooses_on_splits_of_that_imbalance(out: Path, few_trials: None) -> None:
    make(out, "unified", "--select", "--methods", "ce", "--imb_ratio", 10, "--epochs", 1)
    rows = rows_of(out, "ce", name=NAME.replace("IF25", "IF10").replace("epochs6", "epochs1"))
    assert rows["budget"].tolist() == ["shared", "selected"]
    assert rows["imb_ratio"].tolist() == [10, 10]


# Bad input


def test_an_unknown_table_lists_the_known_ones(tmp_path: Path) -> None:
    outcome = run("reproduce", "everything")
    assert is_refusal(outcome, "'everything'", "unified", "cifar", "delta", "path", "gala", "ablation", "stress")


@pytest.mark.parametrize("name", ["unified", "path", "stress"])
def test_an_unknown_method_lists_the_known_ones_before_anything_runs(name: str, tmp_path: Path) -> None:
    outcome = table(tmp_path, name, "--methods", "ce", "nothing", "--imb_ratio", 25)
    assert is_refusal(outcome, "'nothing'", "balanced_softmax")
    assert not list(tmp_path.rglob("last.pth"))


@pytest.mark.parametrize("name", TABLES)
def test_flags_that_a_table_sets_are_refused(name: str, tmp_path: Path) -> None:
    everywhere = [
        ("--seed", 1),
        ("--method", "ce"),
        ("--resume",),
        ("--overwrite",),
        ("--reuse",),
        ("--holdout", 0.2),
        ("--label_smooth", 0.1),
        ("--temperature", 2),
        ("--gamma", 1),
        ("--tau", 1),
    ]
    budget = [
        ("--finetune_epoch", 1),
        ("--finetune_lr", 0.1),
        ("--finetune_wd", 0),
        ("--sampler", "class_balanced"),
        ("--max_norm", 0.1),
        ("--reinit_classifier",),
    ]
    own = {
        "unified": budget,
        "path": budget,
        "gala": [("--loss", "ce"), ("--gala_margin", "paper"), ("--gala_accumulation", "single"), ("--lambda1", 1)],
        "ablation": [("--bn_mode", "eval"), ("--views", 2), ("--reinit_classifier",), ("--finetune_lr", 0.1)],
        "imagenet_lt": [("--dataset", "digits")],
    }
    for flags in everywhere + own.get(name, []):
        outcome = table(tmp_path, name, *flags)
        assert is_refusal(outcome, f"{flags[0]}", f"cannot be given here: the table {name} sets them"), flags
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("cifar", ("--methods", "ce")),
        ("delta", ("--methods", "ce")),
        ("gala", ("--methods", "ce")),
        ("ablation", ("--methods", "ce")),
        ("path", ("--select",)),
        ("stress", ("--select",)),
        ("imagenet_lt", ("--imb_ratio", 10)),
        ("cifar", ("--pretrained_pth", ROOT / "README.md")),
        ("gala", ("--pretrained_pth", ROOT / "README.md")),
        ("stress", ("--pretrained_pth", ROOT / "README.md")),
    ],
)
def test_flags_that_a_table_has_no_use_for_are_refused(name: str, flags: tuple[object, ...], tmp_path: Path) -> None:
    outcome = run("reproduce", name, "--out", tmp_path, "--results", tmp_path / "results", *flags)
    assert is_refusal(outcome, f"{flags[0]} has no use in the table {name}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [("--epochs", 6), ("--batch_size", 16), ("--nesterov",)], ids=lambda flags: flags[0])
def test_flags_of_a_stage_1_that_is_named_are_refused(flags: tuple[object, ...], tmp_path: Path) -> None:
    outcome = table(tmp_path, "unified", "--pretrained_pth", ROOT / "README.md", *flags)
    assert is_refusal(outcome, f"{flags[0]} would be stage 1's, and --pretrained_pth names one")
    assert not list(tmp_path.iterdir())


def test_splits_without_a_selection_are_refused(tmp_path: Path) -> None:
    outcome = table(tmp_path, "unified", "--holdout_pth", tmp_path)
    assert is_refusal(outcome, "--holdout_pth names the stage 1s that --select chooses on")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed: int, tmp_path: Path) -> None:
    assert is_refusal(table(tmp_path, "unified", "--seeds", 0, seed), "--seeds must be between 0 and 4294967295")
    assert not list(tmp_path.iterdir())


def test_no_table_and_unknown_flags_are_refused(tmp_path: Path) -> None:
    assert is_refusal(run("reproduce"), "table")
    assert is_refusal(table(tmp_path, "unified", "--nothing", 1), "--nothing")
    assert is_refusal(table(tmp_path, "unified", "--seeds", "x"), "--seeds")


def test_help_names_the_tables() -> None:
    outcome = run("reproduce", "--help")
    assert outcome.status == 0
    for name in ("unified", "cifar", "delta", "path", "gala", "ablation", "stress", "imagenet_lt", "--select"):
        assert name in outcome.out


def test_a_missing_stage_1_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.pth"
    assert is_refusal(table(tmp_path, "unified", "--pretrained_pth", missing), str(missing))


def test_a_missing_data_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", offline)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    places = ("--data_dir", tmp_path / "data", "--out", tmp_path / "out", "--results", tmp_path / "results")
    outcome = run("reproduce", "unified", *places, "--network", "resnet20")
    assert is_refusal(outcome, str(tmp_path / "data"))


@pytest.mark.parametrize("name", ["imagenet_lt", "inaturalist2018", "places_lt"])
def test_a_data_set_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    assert is_refusal(run("reproduce", name, "--out", tmp_path, "--results", tmp_path), name)


def test_results_that_cannot_be_written_are_one_line_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for results in (tmp_path / "file", tmp_path / "file" / "results"):
        outcome = table(tmp_path, "unified", "--methods", "ce", "--results", results)
        assert is_refusal(outcome, str(results))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_selection_is_said_in_one_line(out: Path) -> None:
    (out / "results").mkdir()
    path = out / "results" / f"{NAME}_selection.csv"
    for content in ("", "a,b\n1,2\n"):
        path.write_text(content)
        for flags in ((), ("--select",)):
            assert is_refusal(table(out, "unified", "--methods", "ce", *flags), str(path))


def test_kept_rows_are_json_that_others_can_read(made: Path) -> None:
    kept = json.loads(next((made / "tables").rglob("ce_*.json")).read_text())
    assert set(kept) == {"failure", "metrics", "config", "depends"}
    assert kept["failure"] is None and kept["metrics"]["schema"] == 1
    assert kept["config"]["method"] == "ce"
