"""What the rows of a table may claim: intervals, paired differences to LOS, rows of before they were recorded."""

from pathlib import Path

import pandas as pd
import pytest

from evaluation.csv_files import read_csv
from evaluation.intervals.bootstrap import SCORES
from evaluation.intervals.comparison import UNKNOWN
from tests.helpers import EXPERIMENT, read
from tests.table_runs import make
from tools.result_tables import markdown_tables, read_markdown_table
from utils.files import write_json

NAME = f"unified_{EXPERIMENT}w4_epochs6"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of three methods and two seeds."""
    out = tmp_path_factory.mktemp("claims")
    make(out, "unified", "--methods", "los", "tau_norm", "ncm", "--seeds", 0, 1)
    return out


def files(out: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame, list[pd.DataFrame]]:
    path = out / "results" / f"{name}.csv"
    tables = markdown_tables(path.with_suffix(".md").read_text())
    return (
        read_csv(path),
        read_csv(path.with_name(f"{name}_intervals.csv")),
        [read_markdown_table(table) for table in tables],
    )


def test_rows_and_lines_have_intervals(made: Path) -> None:
    rows, long, tables = files(made, f"{NAME}_los-tau_norm-ncm")
    assert (rows["last_plain_all_low"] < rows["last_plain_all"]).all()
    assert (rows["last_plain_all_high"] > rows["last_plain_all"]).all()
    assert {"last_plain_harmonic_low", "best_plain_all_high"} <= set(rows)
    own = long[long["reference"].isna() & (long["measure"] == "all")].set_index("method")
    means = rows.groupby("method")["last_plain_all"].mean()
    assert own["value"].to_dict() == pytest.approx(means.to_dict(), abs=1e-3)
    assert (own["low"] < own["value"]).all() and (own["seeds"] == 2).all() and "harmonic" in SCORES
    shown = next(table for table in tables if list(table) == ["method", "budget", "all", "low", "high"])
    assert [cell.strip("*") for cell in shown["low"]] == [f"{own['low'][name]:.1f}" for name in shown["method"]]


def test_lines_are_compared_with_los_and_the_best(made: Path) -> None:
    rows, long, tables = files(made, f"{NAME}_los-tau_norm-ncm")
    to_los = long[(long["reference"] == "los, shared") & (long["measure"] == "all")].set_index("method")
    means = rows.groupby("method")["last_plain_all"].mean()
    assert set(to_los.index) == {"tau_norm", "ncm"}
    for name, row in to_los.iterrows():
        assert row["value"] == pytest.approx(means[name] - means["los"], abs=1e-3)
        assert row["p"] <= row["p_holm"] <= 1 and (row["verdict"] == UNKNOWN) == (row["p_holm"] >= 0.05)
    assert f"{means.idxmax()}, shared" in set(long["reference"].dropna())
    shown = next(table for table in tables if list(table)[2:] == ["difference", "low", "high", "verdict"])
    assert list(shown["method"]) == ["tau_norm", "ncm"]
    assert all(len(table.columns) <= 6 for table in tables)


def test_rows_kept_before_have_no_interval_and_say_so_once(tmp_path: Path) -> None:
    make(tmp_path, "unified", "--methods", "tau_norm", "ncm")
    (kept,) = tmp_path.glob("tables/*/ncm_*.json")
    content = read(kept)
    for checkpoint in ("last", "best"):
        del content["metrics"][checkpoint]["plain"]["correct"]
    write_json(kept, content)
    outcome = make(tmp_path, "unified", "--methods", "tau_norm", "ncm")
    rows, long, _ = files(tmp_path, f"{NAME}_tau_norm-ncm")
    assert outcome.out.count("no interval") == 1 and "ncm, shared: no interval" in outcome.out
    assert rows.set_index("method")["last_plain_all_low"].isna().to_dict() == {"tau_norm": False, "ncm": True}
    assert set(long["method"]) == {"tau_norm"}


def test_runs_of_one_imbalance_are_compared(tmp_path: Path) -> None:
    make(tmp_path, "stress", "--imb_ratio", 10, 20, "--methods", "ce", "los", "--epochs", 2, "--finetune_epoch", 2)
    (path,) = (tmp_path / "results").glob("stress_*_intervals.csv")
    long = read_csv(path)
    to_los = long[(long["reference"].str.contains("los", na=False)) & (long["measure"] == "all")]
    assert {(str(row["IF"]), row["row"], row["reference"]) for _, row in to_los.iterrows()} >= {
        ("10", "ce", "10, los"),
        ("20", "ce", "20, los"),
        ("20", "stage 1", "20, los"),
    }
