"""What RESULTS.md and README.md quote stands in results/, and the files they name exist."""

import re
from pathlib import Path

import pandas as pd
import pytest

from evaluation.run_rows import short_table, to_markdown

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "RESULTS.md", ROOT / "benchmarks" / "README.md"]
# Tables of `reproduce.py` and of the benchmarks have a Markdown form beside them; those of `tools.compare` are made
# again from the CSV. The tables of the benchmarks are held by tests/benchmarks/test_pages.py.
OF_BENCHMARKS = "".join((ROOT / "docs" / name).read_text() for name in ("speed.md", "robustness.md"))
WRITTEN = sorted(path for path in (ROOT / "results").glob("*.md") if f"{path.stem}.csv" not in OF_BENCHMARKS)
TABLES = sorted(
    path
    for path in (ROOT / "results").glob("*.csv")
    if "stage1_sha256" in path.read_text().splitlines()[0] and path.with_suffix(".md") not in WRITTEN
)


def test_there_are_measured_tables() -> None:
    assert TABLES


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_results_quote_the_measured_table(path: Path) -> None:
    assert to_markdown(short_table(pd.read_csv(path))) in (ROOT / "RESULTS.md").read_text()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_a_page_quotes_each_table_that_a_command_wrote(path: Path) -> None:
    first_table = next(part for part in path.read_text().split("\n\n") if part.startswith("|"))
    assert any(first_table.strip() in page.read_text() for page in PAGES)
    assert path.with_suffix(".csv").is_file()


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_each_row_says_what_made_it(path: Path) -> None:
    rows = pd.read_csv(path)
    for column in ("command", "device", "torch", "git_revision", "protocol", "seed", "subset_content_sha256"):
        assert rows[column].notna().all(), column


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_a_place_left_to_fill_in(page: Path) -> None:
    assert not re.findall(r"(?m)(?:^|\. )[A-Z]{4,}\d?$", page.read_text())


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text())
    assert targets
    for target in targets:
        assert (page.parent / target).exists(), target


def test_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # one of them writes a file
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
