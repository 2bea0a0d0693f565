"""Every number on the pages of results stands in a file under results/.

A table on a page is declared in a comment above it, and is compared with what `tools.result_tables` makes of the file.
No table of numbers goes without, and nothing that a command measured is left out of the pages.
"""

import re
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from evaluation.csv_files import read_csv
from evaluation.run_rows import GROUPS
from tables.published import PUBLISHED
from tests.helpers import ROOT
from tools import result_tables
from tools.result_tables import (
    ROW,
    SOURCE,
    choose_rows,
    declarations,
    fill_tables,
    make_table,
    markdown_tables,
    pages,
    parse_declaration,
    read_markdown_table,
    read_source,
)
from utils.errors import UserError

PAGES = pages()
RESULTS = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
MARKDOWN = sorted((ROOT / "results").glob("*.md"))
CSV = sorted((ROOT / "results").glob("*.csv"))
WIDEST = 6  # columns
RUNS = [path for path in CSV if "last_plain_all" in path.read_text(encoding="utf-8").splitlines()[0]]
PATHS = [path for path in CSV if path.name.startswith("path_") and not path.stem.endswith("_intervals")]
# One row a run, made by `tools.compare`; those of `reproduce.py` have Markdown beside them.
COMPARED = [path for path in RUNS if path.with_suffix(".md") not in MARKDOWN]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def quoted() -> dict[str, dict[str, set[int]]]:
    """For each source of a table, by its columns, the numbers of the rows that the pages quote."""
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for page in RESULTS:
        for declaration, _ in declarations(page.read_text(encoding="utf-8")):
            rows = choose_rows(declaration)
            for source, number in zip(rows[SOURCE], rows[ROW], strict=True):
                for column in declaration.columns:
                    for name in column.names:
                        found[source][name].add(number)
    return found


# Tables


def test_there_are_measured_tables() -> None:
    assert COMPARED and PATHS and MARKDOWN
    assert all(declarations(page.read_text(encoding="utf-8")) for page in RESULTS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_those_of_their_files(page: Path) -> None:
    for declaration, table in declarations(page.read_text(encoding="utf-8")):
        assert table == make_table(declaration), declaration


@pytest.mark.parametrize("page", RESULTS, ids=name_of)
def test_no_table_of_numbers_goes_undeclared(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    declared = [table for _, table in declarations(text)]
    for table in markdown_tables(text):
        cells = read_markdown_table(table).to_numpy().ravel()
        assert table in declared or not any(re.fullmatch(r"[-+]?\d[\d.,]*( ± .*)?", cell) for cell in cells), table


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RESULTS], ids=name_of)
def test_a_table_that_a_command_wrote_stands_elsewhere_as_it_is(page: Path) -> None:
    written = [table for path in MARKDOWN for table in markdown_tables(path.read_text(encoding="utf-8"))]
    titles = {table.splitlines()[0] for table in written}
    for table in markdown_tables(page.read_text(encoding="utf-8")):
        assert table.splitlines()[0] not in titles or table in written, table


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "benchmarks"], ids=name_of)
def test_tables_are_narrow(page: Path) -> None:
    for table in markdown_tables(page.read_text(encoding="utf-8")):
        assert len(read_markdown_table(table).columns) <= WIDEST, table


# Nothing is left out


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_pages_quote_every_run(path: Path, quoted: dict[str, dict[str, set[int]]]) -> None:
    """Accuracies by shot, LoMa and seconds of every run; all four ways of testing where `tools.compare` wrote them."""
    rows, columns = read_csv(path), quoted[f"results/{path.name}"]
    best = "best_flip" if rows["best_flip_all"].notna().any() else "best_plain"
    ways = ["last_plain", "last_flip", "best_plain", "best_flip"] if path in COMPARED else ["last_plain", best]
    ways = [way for way in ways if rows[f"{way}_all"].notna().any()]
    finished = {number for number, value in enumerate(rows["last_plain_all"]) if pd.notna(value)}
    for column in [*(f"{way}_{group}" for way in ways for group in GROUPS), "loma_mean", "train_seconds"]:
        assert columns[column] == finished, column


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_method_that_a_table_leaves_out_is_named_beside_it(page: Path) -> None:
    """Rows that failed have no numbers: a table that drops them would say less than its title."""
    text = page.read_text(encoding="utf-8")
    prose = [line for line in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).splitlines() if not line.startswith("|")]
    for source, declaration in re.findall(r"<!-- table (\S+\.csv)\n(.*?)-->", text, flags=re.DOTALL):
        if "failure != failure" in declaration:
            rows = read_csv(ROOT / source)
            failed = set(rows.loc[rows["failure"].notna(), "method"])
            assert {name for name in failed if f"`{name}`" not in "\n".join(prose)} == set(), source


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_pages_quote_every_path(path: Path, quoted: dict[str, dict[str, set[int]]]) -> None:
    """The step counts of the table that the command wrote, in accuracy, objective and logits."""
    short = read_source(f"results/{path.stem}.md")
    columns = quoted[f"results/{path.name}"]
    for column in [
        *(f"plain_{group}" for group in GROUPS),
        "objective",
        "training_accuracy",
        "train_loma",
        "test_loma",
    ]:
        assert len(columns[column]) == len(short), column


BENCHMARKS = [path for path in MARKDOWN if path.with_suffix(".csv") not in [*RUNS, *PATHS]]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_pages_quote_every_benchmark(path: Path, quoted: dict[str, dict[str, set[int]]]) -> None:
    """All rows and columns of the first table that a benchmark wrote."""
    table = read_source(f"results/{path.name}")
    for column in table.columns.difference([SOURCE, ROW]):
        assert quoted[f"results/{path.name}"][column] == set(range(len(table))), column


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_what_a_command_wrote_has_its_numbers_beside_it(path: Path) -> None:
    assert path.with_suffix(".csv").is_file()


@pytest.mark.parametrize("path", CSV, ids=lambda path: path.name)
def test_a_page_names_every_file_of_numbers(path: Path) -> None:
    assert any(f"results/{path.name}" in page.read_text(encoding="utf-8") for page in RESULTS)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_each_row_says_what_made_it(path: Path) -> None:
    rows = read_csv(path).dropna(subset="last_plain_all")
    assert len(rows)
    for column in ("command", "device", "torch", "git_revision", "protocol", "seed", "subset_content_sha256"):
        assert rows[column].notna().all(), column


def test_published_figures_are_in_their_file(quoted: dict[str, dict[str, set[int]]]) -> None:
    rows = read_csv(ROOT / "results" / "published.csv")
    assert len(rows) == len(PUBLISHED)
    for row, figure in zip(rows.itertuples(index=False), PUBLISHED, strict=True):
        assert (row.dataset, row.row, row.all, row.source) == (figure.dataset, figure.row, figure.all, figure.source)
        assert (0 if pd.isna(row.imb_ratio) else row.imb_ratio) == figure.imb_ratio
        assert figure.groups in (None, (row.many, row.medium, row.few))
    assert quoted["results/published.csv"]["all"] == set(range(len(rows)))


@pytest.mark.parametrize("page", [*RESULTS, ROOT / "benchmarks" / "README.md"], ids=name_of)
def test_no_page_has_a_place_left_to_fill_in(page: Path) -> None:
    assert not re.findall(r"(?m)(?:^|\. )[A-Z]{4,}\d?$", page.read_text(encoding="utf-8"))


# The tool


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    rows = "name,seed,value,note,end\na,0,1,x,\na,1,2,x,\nb,0,,y,done\n"
    (tmp_path / "results" / "a.csv").write_text(rows)
    (tmp_path / "results" / "b.md").write_text(
        "text\n\n| p | q, r |\n| --- | --- |\n| 1 |  |\n\n| s |\n| --- |\n| 2 |\n"
    )
    return tmp_path


def made(declaration: str, folder: Path) -> list[str]:
    return make_table(parse_declaration(declaration), folder).splitlines()


def test_rows_are_chosen_joined_and_written(folder: Path) -> None:
    declaration = "results/a.csv\nrows: name == 'b'; name == 'a'\njoin: name\nN = name\nseeds = seed list\nv = value .1"
    assert made(declaration, folder) == [
        "| N | seeds | v |",
        "| --- | --- | --- |",
        "| b | 0 | - |",
        "| a | 0, 1 | 1.5 ± 0.7 |",
    ]
    assert made("results/a.csv\nv = value|end g", folder)[2:] == ["| 1 |", "| 2 |", "| done |"]
    assert made("results/b.md\ncolumns: p | q, r", folder)[2:] == ["| 1 | - |"]
    assert made("results/b.md#2\nS = s", folder) == ["| S |", "| --- |", "| 2 |"]
    assert made("results/a.csv results/b.md#2\nx = value|s", folder)[2:] == ["| 1 |", "| 2 |", "| - |", "| 2 |"]


@pytest.mark.parametrize(
    ("declaration", "word"),
    [
        ("results/c.csv\nx = value", "results/c.csv, which is not there"),
        ("results/a.csv\nx = values", "no column values"),
        ("results/a.csv\nrows: seed == 7\nx = value", "no such row"),
        ("results/a.csv\nsomething", "something"),
    ],
)
def test_a_wrong_declaration_is_refused(folder: Path, declaration: str, word: str) -> None:
    with pytest.raises(UserError, match=re.escape(word)):
        made(declaration, folder)


def test_text_behind_a_new_table_is_no_row_of_it() -> None:
    declared = "<!-- table results/published.csv\nrows: all == 46.08\nrow = row\n-->\n\n"
    filled = declared + "| row |\n| --- |\n| stage 1 |\n\nend\n"
    assert fill_tables(declared + "end\n") == fill_tables(filled) == filled


def test_filling_a_page_changes_its_tables_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "page.md"
    text = (
        "# A\n\n| other |\n| --- |\n\n<!-- table results/published.csv\nrows: all == 46.08\nrow = row\n-->\n\n{}\nend\n"
    )
    page.write_text(text.format("| wrong |\n| --- |\n| 1 |\n"))
    result_tables.main([str(page)])
    assert page.read_text() == text.format("| row |\n| --- |\n| stage 1 |\n") == fill_tables(page.read_text())
    result_tables.main([str(page)])
    assert capsys.readouterr().out.splitlines() == [f"{page}: 1 tables, changed", f"{page}: 1 tables"]
    with pytest.raises(UserError, match="nothing"):
        result_tables.main(["nothing.md"])


@pytest.mark.parametrize("path", [*CSV, *MARKDOWN], ids=lambda path: path.name)
def test_no_file_names_where_somebody_worked(path: Path) -> None:
    """Commands in it hold for a clone: no path begins at a home or a checkout."""
    assert not re.search(r"(?<![\w.])/(?:work|root|home|Users)/", path.read_text(encoding="utf-8"))
