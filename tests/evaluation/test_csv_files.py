"""CSV files: no cell is a formula, numbers stay numbers, and what is read back is what was written."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.csv_files import NUMBER, csv_text, guarded, read_csv, unguarded
from utils.errors import UserError

SIGNS = ("=", "+", "-", "@", "\t", "\r")
TEXTS = st.text() | st.builds(
    lambda quotes, sign, rest: "'" * quotes + sign + rest, st.integers(0, 3), st.sampled_from(SIGNS), st.text()
)


@given(TEXTS)
def test_guarding_is_undone_and_leaves_no_formula(text: str) -> None:
    cell = guarded(text)
    assert unguarded(cell) == text
    assert not cell.startswith(SIGNS) or NUMBER.fullmatch(cell)
    assert cell in (text, f"'{text}")


@pytest.mark.parametrize(
    "text", ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "-", "=", "--method los", "-1+2", "'=a", "''-a"]
)
def test_what_a_spreadsheet_would_run_is_guarded(text: str) -> None:
    assert guarded(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a", "a=b", "'a", "", "-1.5", "+3", "1e-05", "-.5", 1, -2.5, None, True])
def test_what_it_would_not_run_stays(value: object) -> None:
    assert guarded(value) is value and unguarded(value) is value


def test_a_table_is_read_back_as_it_was(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"flags": ["--a 1", None, "'=x"], "count": [1, -2, 3], "loss": [-0.5, None, 1e-9], "ok": [True] * 3}
    )
    (tmp_path / "a.csv").write_text(csv_text(table))
    rows = list(csv.reader(io.StringIO(csv_text(table))))
    assert rows[1:] == [["'--a 1", "1", "-0.5", "True"], ["", "-2", "", "True"], ["''=x", "3", "1e-09", "True"]]
    pd.testing.assert_frame_equal(read_csv(tmp_path / "a.csv"), table, check_dtype=False)


def test_a_table_without_formulas_is_written_as_ever(tmp_path: Path) -> None:
    table = pd.DataFrame({"name": ["a", "b"], "mixed": [1, None], "x": [0.123456789, -1.0]})
    assert csv_text(table, "%.6g") == table.to_csv(index=False, float_format="%.6g")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"1,2\n', b"a\n1,2\n3,4,5\n"])
def test_a_damaged_csv_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.csv"):
        read_csv(tmp_path / "bad.csv", ["method"])
