"""Grids that are widened where the best number is at their end, and the last lines of a table."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine.choice.folds import fold_numbers
from tables.selection import beyond_ends, mark_chosen, next_value
from tables.winner import closing_lines
from tests.helpers import read, refused, succeed
from tests.table_runs import make


@pytest.mark.parametrize(
    ("tried", "chosen", "expected"),
    [
        ([1e-3, 1e-2, 1e-1], 1e-2, None),
        ([1e-3, 1e-2, 1e-1], 1e-1, 0.4),  # by factors, at most 4
        ([1e-3, 1e-2, 1e-1], 1e-3, 2.5e-4),
        ([1.0, 2.0], 2.0, 4.0),
        ([0.9, 0.98, 0.99], 0.99, 0.995),  # closing in on 1
        ([0.9, 0.98, 0.99], 0.9, 0.6),
        ([0.0, 0.5, 1.0], 1.0, 1.5),
        ([0.0, 0.5, 1.0], 0.0, -0.5),  # which the flag's own range refuses
        ([0.3], 0.3, None),
    ],
)
def test_the_next_value_lies_beyond_the_end(tried: list[float], chosen: float, expected: float | None) -> None:
    found = next_value(tried, chosen)
    assert found is None if expected is None else found == pytest.approx(expected)


def trials(scores: dict[str, float], method: str = "ce") -> pd.DataFrame:
    rows = [{"method": method, "flags": f"--method {method} {own}", "mean": score} for own, score in scores.items()]
    return mark_chosen(pd.DataFrame(rows))


def test_only_a_choice_at_an_end_is_followed() -> None:
    table = trials({"--finetune_lr 0.1": 1.0, "--finetune_lr 0.2": 3.0, "--finetune_lr 0.4": 2.0})
    assert beyond_ends(table, ["ce"]) == []
    table = trials({"--finetune_lr 0.1": 1.0, "--finetune_lr 0.2": 3.0})
    assert beyond_ends(table, ["ce"]) == [("ce", ("--method", "ce", "--finetune_lr", "0.4"))]
    table = trials({"--tau 0.5": 1.0, "--tau 1": 2.0}, "tau_norm")
    assert beyond_ends(table, ["tau_norm"]) == [("tau_norm", ("--method", "tau_norm", "--tau", "2"))]


def test_of_equal_trials_the_middle_rate_is_chosen() -> None:
    table = trials({f"--finetune_epoch {e} --finetune_lr {r}": 5.0 for e in (5, 20) for r in (0.1, 4.0, 0.5)})
    assert "--finetune_lr 0.5" in table.loc[table["chosen"], "flags"].item()


def measured(flags: str, score: float, held_out: bool) -> dict[str, Any]:
    record = {"class_balanced_accuracy": score} if held_out else None
    return {"label": {"flags": flags}, "metrics": {"holdout": record, "last": {"plain": {"class_balanced": score}}}}


def test_the_last_lines_name_the_winner_and_run_it() -> None:
    rows = [measured("--method ce", 40, True), measured("--method los --tau 1", 50, True)]
    lines = closing_lines(["--features", "my file.npz"], rows, None).splitlines()
    assert lines[0].startswith("best on held-out images: los, class-balanced accuracy 50.0")
    assert lines[1].strip() == "python main_stage2.py --features 'my file.npz' --method los --tau 1"
    assert "test images" in closing_lines([], [measured("--method ce", 40, False)], None)
    tied = [measured(f"--method {name}", score, True) for name, score in (("ce", 50), ("los", 50), ("ncm", 40))]
    assert "ce, class-balanced accuracy 50.0 (1 more row is as good" in closing_lines([], tied, None)
    assert "as good" not in "".join(lines)
    assert closing_lines([], [{"label": {"flags": "--method ce"}, "metrics": None}], None) == ""


def test_a_winner_below_stage_1_is_said() -> None:
    choices = trials({"--finetune_lr 0.1": 40.0, "--finetune_lr 0.2": 30.0}).assign(stage1=[45.0, None])
    told = closing_lines([], [], choices)
    assert told.startswith("warning: on held-out images no method reaches stage 1: class-balanced accuracy 45.0")
    assert "warning" not in closing_lines([], [], choices.assign(stage1=20.0))


def test_folds_hold_every_row_out_once_and_leave_each_class_one() -> None:
    labels = np.repeat(np.arange(6), [1, 2, 3, 4, 10, 31])
    numbers = fold_numbers(labels, 3, 0)
    assert numbers[0] == -1 and (numbers[1:] >= 0).all() and set(numbers) == {-1, 0, 1, 2}
    for fold in range(3):
        assert set(labels[numbers != fold]) == set(range(6))
    sizes = [np.bincount(numbers[labels == label], minlength=3) for label in (3, 4, 5)]
    assert all(size.max() - size.min() <= 1 for size in sizes)
    assert (fold_numbers(labels, 3, 0) == numbers).all() and (fold_numbers(labels, 3, 1) != numbers).any()
    assert len(fold_numbers(labels[:0], 3, 0)) == 0


def rows(counts: list[int]) -> dict[str, np.ndarray]:
    """Features of three classes that overlap."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), counts)
    features = draw.standard_normal((len(labels), 8)) + 1.5 * np.eye(3, 8)[labels]
    return {
        f"{split}_{kind}": values
        for split in ("train", "test")
        for kind, values in (("features", features), ("labels", labels))
    }


def test_rows_are_held_out_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **rows([30, 10, 1]))
    short = ("--finetune_epoch", 1)
    succeed("main_stage2", "--features", "mine.npz", "--holdout", 0.2, *short)
    run = next(Path("checkpoints").rglob("stage2_los_holdout0.2_finetune_epoch1"))
    assert read(run / "metrics.json")["holdout"]["images"] == 8 and read(run / "config.json")["class_counts"] == [
        24,
        8,
        1,
    ]
    succeed("main_stage2", "--features", "mine.npz", *short)  # another stage 1, of all rows
    assert {path.name for path in Path("checkpoints").rglob("stage1*")} == {"stage1", "stage1_holdout0.2"}
    assert "8 held out" in succeed("evaluate", "--pretrained_pth", run).out
    assert "8 held out" in succeed("evaluate", "--features", "mine.npz", "--holdout", 0.2, "--cur_stage", "stage2").out


@pytest.mark.parametrize(
    ("arrays", "flags", "words"),
    [
        ({}, ("--holdout", 1), "--holdout must be at least 0 and below 1"),
        (
            {"holdout_features": np.zeros((1, 8)), "holdout_labels": np.zeros(1, dtype=int)},
            ("--holdout", 0.2),
            "the file has held-out rows of its own",
        ),
        ({}, ("--method", "offsets"), "or --holdout 0.2"),
    ],
)
def test_held_out_rows_that_cannot_be(
    arrays: dict[str, np.ndarray],
    flags: tuple[object, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **rows([5, 3, 2]), **arrays)
    assert words in refused("main_stage2", "--features", "mine.npz", *flags)
    assert not Path("checkpoints").exists()  # before a classifier is trained for nothing


def test_single_rows_cannot_be_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **rows([1, 1, 1]))
    assert "no class has two training rows" in refused("main_stage2", "--features", "mine.npz", "--holdout", 0.5)


def test_below_stage_1_on_held_out_rows_is_said_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **rows([30, 20, 10]))
    told = succeed(
        "main_stage2", "--features", "mine.npz", "--holdout", 0.3, "--finetune_lr", 100, "--rate_scale", "published"
    )
    assert told.out.splitlines()[-1].startswith("warning: on held-out images stage 2 is below stage 1")


def test_choices_of_methods_that_were_not_asked_for_have_no_part(tmp_path: Path) -> None:
    chosen = make(tmp_path, "unified", "--methods", "ce", "ncm", "l2_norm", "--select").out
    assert "numbers chosen on held-out images: " in chosen and "not compared" not in chosen
    (path,) = (tmp_path / "results").glob("*_selection.csv")
    kept = pd.read_csv(path)
    kept.loc[kept["method"] == "ncm", "mean"] = 100.0  # it would win, and have no temperature
    kept.loc[kept["method"].str.removeprefix("shared budget: ") == "ncm", "temperature"] = np.nan
    kept.to_csv(path, index=False)
    assert "best on held-out images: ncm" in make(tmp_path, "unified", "--methods", "ce", "ncm", "l2_norm").out
    before = path.read_bytes()
    told = make(tmp_path, "unified", "--methods", "ce", "l2_norm", "tau_norm").out
    assert f"numbers chosen on held-out images by an earlier command: {path}" in told and "ncm" not in told
    own = kept[kept["chosen"] & kept["method"].isin(["ce", "l2_norm"])].set_index("flags")["mean"]
    flags, best = str(own.idxmax()).removeprefix("'"), own.max()  # which keeps a spreadsheet from running it
    lines = told.splitlines()
    assert "not compared on held-out images: tau_norm (no numbers chosen there)" in lines
    assert f"best on held-out images: {flags.split()[1]}, class-balanced accuracy {best:.1f}" in told
    assert lines[-1].endswith(flags) and path.read_bytes() == before
    (page,) = (tmp_path / "results").glob("unified*tau_norm.md")
    assert "ncm" not in page.read_text()
