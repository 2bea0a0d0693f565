"""The map of the papers: its commands exist, each row has a status, our numbers stand on the pages that it names."""

import re

import pandas as pd
import pytest

from methods.recipes import RECIPES
from tables import TABLES
from tests.helpers import ROOT
from tools.result_tables import markdown_tables, read_markdown_table

PAGE = ROOT / "docs" / "papers.md"
STATUSES = ("measured", "partly", "waiting")
LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    tables = [read_markdown_table(table) for table in markdown_tables(PAGE.read_text(encoding="utf-8"))]
    return pd.concat(tables, ignore_index=True)


def test_every_row_has_a_command_that_there_is(rows: pd.DataFrame) -> None:
    assert len(rows) > 15
    for cell in rows["command of `reproduce.py`"]:
        table, *flags = cell.strip("`").split()
        assert table in TABLES, cell
        if "--methods" in flags:
            assert "methods" in TABLES[table].uses and set(flags[flags.index("--methods") + 1 :]) <= set(RECIPES)


def test_every_row_has_a_status_and_what_is_measured_has_a_page(rows: pd.DataFrame) -> None:
    for row in rows.to_dict("records"):
        status = row["status"].split(":")[0].split(",")[0]
        assert status in STATUSES, row
        assert (row["ours"] == "-") == (status == "waiting"), row
        assert (status == "measured") or ": " in row["status"], f"{row}: what for?"


def test_our_numbers_stand_on_the_pages_that_are_named(rows: pd.DataFrame) -> None:
    seen = 0
    for cell in rows["ours"]:
        for text, target in LINK.findall(cell):
            page = (PAGE.parent / target).read_text(encoding="utf-8")
            for number in re.findall(r"\d+\.\d(?: ± \d+\.\d)?", text):
                assert f"| {number} |" in page, (number, target)
                seen += 1
    assert seen >= 5
