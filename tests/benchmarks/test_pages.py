"""The pages on speed and robustness: their numbers stand in results/, their tables are narrow, their links lead on."""

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT

PAGES = [ROOT / "docs" / name for name in ("speed.md", "robustness.md")]
LISTED = ROOT / "benchmarks" / "README.md"
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)*(?:e[-+]?\d+)?(?=%?$)")
MOST_COLUMNS = 6

Table = list[list[str]]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[Table]:
    """Return the tables of a Markdown text, each with its header and rows, without the line between."""
    found = re.findall(r"(?m)(?:^\|.*\n?)+", text)
    return [[cells(line) for number, line in enumerate(part.splitlines()) if number != 1] for part in found]


def numbers(line: list[str]) -> set[str]:
    """Return the cells that are a number, without their sign and per cent."""
    matches = (NUMBER.match(cell) for cell in line)
    return {match[0].lstrip("+") for match in matches if match}


def sections(text: str) -> list[str]:
    return re.split(r"(?m)^## ", text)[1:]


def sources(section: str) -> list[set[str]]:
    """Return the numbers of each line of the files in results/ that a section names, in their Markdown form."""
    names = re.findall(r"\(\.\./results/(\w+)\.csv\)", section)
    lines = [line for name in names for line in (ROOT / "results" / f"{name}.md").read_text().splitlines()]
    pattern = r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)*(?:e[-+]?\d+)?(?![\w.])"
    return [{found.lstrip("+") for found in re.findall(pattern, line)} for line in lines]


def stands_in(table: Table, known: list[set[str]]) -> bool:
    """Tell whether the numbers of every row, or of every column, stand together in a line of the sources."""
    rows = [numbers(row) for row in table[1:]]
    columns = [numbers(list(column)) for column in zip(*table[1:], strict=True)]
    return any(all(any(own <= line for line in known) for own in lines) for lines in (rows, columns))


MEASURED = [
    pytest.param(section, table, id=f"{page.stem}: {section.splitlines()[0]} {number}")
    for page in PAGES
    for section in sections(page.read_text(encoding="utf-8"))
    for number, table in enumerate(tables(section))
    if "../results/" in section
]


@pytest.mark.parametrize(("section", "table"), MEASURED)
def test_every_number_of_a_table_stands_in_results(section: str, table: Table) -> None:
    assert any(numbers(row) for row in table[1:])
    assert stands_in(table, sources(section))


def test_another_number_is_noticed() -> None:
    known = [{"1.5", "2"}, {"3", "4"}]
    assert stands_in([["a", "b"], ["1.5", "+2"], ["x 7", "3"]], known)
    assert stands_in([["", "a", "b"], ["", "1.5", "3"], ["", "2", "4"]], known)
    assert not stands_in([["a", "b"], ["1.5", "3"]], [{"1.5", "2"}, {"4"}])


@pytest.mark.parametrize("page", [*PAGES, LISTED], ids=lambda page: page.name)
def test_tables_are_narrow(page: Path) -> None:
    found = tables(page.read_text(encoding="utf-8"))
    assert found
    for table in found:
        assert len(table[0]) <= MOST_COLUMNS and {len(row) for row in table} == {len(table[0])}, table[0]


@pytest.mark.parametrize("page", [*PAGES, LISTED], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    assert links
    for target, anchor in links:
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", path.read_text(encoding="utf-8"))
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], anchor


@pytest.mark.parametrize("page", [*PAGES, LISTED], ids=lambda page: page.name)
def test_commands_of_the_pages_exist(page: Path) -> None:
    modules = re.findall(r"python -m (benchmarks\.[a-z_.]+)", page.read_text(encoding="utf-8"))
    assert modules
    for name in modules:
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


def test_every_command_is_listed() -> None:
    text = LISTED.read_text(encoding="utf-8")
    scripts = [path for path in (ROOT / "benchmarks").rglob("*.py") if "__name__ ==" in path.read_text()]
    commands = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in scripts}
    children = {
        "benchmarks.builds.large_child",
        "benchmarks.speed.child",
        "benchmarks.robustness.everyday_inputs.child",
        "benchmarks.robustness.kills.slow_disk",
    }
    assert commands - children == set(re.findall(r"`python -m (benchmarks\.[a-z_.]+)", text))
