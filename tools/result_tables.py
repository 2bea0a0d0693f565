"""Fill the tables of the pages on results from the files under results/.

    python -m tools.result_tables [PAGE.md ...]

Without a page: README.md, RESULTS.md, benchmarks/README.md and every page under docs/. A table is declared in a comment
above it, which a reader of the page does not see:

    <!-- table results/digits.csv
    rows: protocol == 'honest'
    join: name protocol
    run = name
    all = last_plain_all .1
    -->

Sources are CSV files, or Markdown files that a command wrote (`results/a.md#2` is the second table of one). `rows` are
queries of pandas with a semicolon between, whose rows follow one another. Rows that agree in the columns of `join`
become one, with mean and sample deviation. Every further line is a column: its title, the column of the source (`a|b`:
the first that is not empty), and a format: `.2` two digits, `g` as short as it goes, `list` all values of the joined
rows, nothing for text as it stands. `columns: a | b` are columns of the source as they stand.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evaluation.csv_files import read_csv
from evaluation.run_rows import mean_cell, refuse_mixed, to_markdown
from utils.arguments import CommandParser
from utils.command import run_command
from utils.errors import UserError
from utils.files import write_text
from utils.text import tell

ROOT = Path(__file__).resolve().parent.parent
SOURCE, ROW = "source of the row", "number of the row"  # columns that `read_source` adds
DECLARED = re.compile(
    r"<!-- table (?P<declaration>.*?)-->\n\n?(?P<table>(?:\|[^\n]*(?:\n|$))*)(?=(?P<next>[^\n])?)", re.DOTALL
)
COLUMN = re.compile(r"(?P<title>.+?) = (?P<names>.+?)(?: (?P<form>\.\d|g|list))?")


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, the columns of the source that it is made of, and how they are written."""

    title: str
    names: tuple[str, ...]
    form: str


@dataclass(frozen=True)
class Declaration:
    """What a table is made of; `rows` and `join` are empty where they are not given."""

    sources: tuple[str, ...]
    rows: str
    join: tuple[str, ...]
    columns: tuple[Column, ...]


def parse_declaration(text: str) -> Declaration:
    """Read the comment above a table, without its brackets and the word `table`; a UserError names a wrong line."""
    first, *lines = [line.strip() for line in text.strip().splitlines()]
    rows = ""
    join: tuple[str, ...] = ()
    columns: list[Column] = []
    for line in lines:
        if line.startswith("rows: "):
            rows = line.removeprefix("rows: ")
        elif line.startswith("join: "):
            join = tuple(line.removeprefix("join: ").split())
        elif line.startswith("columns: "):
            columns += [Column(name, (name,), "") for name in line.removeprefix("columns: ").split(" | ")]
        elif found := COLUMN.fullmatch(line):
            columns.append(Column(found["title"], tuple(found["names"].split("|")), found["form"] or ""))
        else:
            raise UserError(
                f"the table of {first} has a line that is none of rows, join, columns and title = column: {line}"
            )
    return Declaration(tuple(first.split()), rows, join, tuple(columns))


def markdown_tables(text: str) -> list[str]:
    """Return the tables of a page, each as it stands there."""
    return re.findall(r"(?m)(?:^\|.*(?:\n|\Z))+", text)


def read_markdown_table(table: str) -> pd.DataFrame:
    """Return a Markdown table as text cells under its titles."""
    lines = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table.strip().splitlines()]
    return pd.DataFrame(lines[2:], columns=lines[0])


def read_source(name: str, root: Path = ROOT) -> pd.DataFrame:
    """Return a CSV file, or the n-th table of a Markdown file (`file.md#n`, 1 if not said), with its row numbers."""
    path, _, number = name.partition("#")
    if not (root / path).is_file():
        raise UserError(f"a table is declared to be made of {path}, which is not there")
    if path.endswith(".csv"):
        rows = read_csv(root / path)
    else:
        rows = read_markdown_table(markdown_tables((root / path).read_text(encoding="utf-8"))[int(number or 1) - 1])
    numbered = pd.DataFrame({SOURCE: name, ROW: range(len(rows))}, index=rows.index)
    return pd.concat([rows, numbered], axis=1)


def choose_rows(declaration: Declaration, root: Path = ROOT) -> pd.DataFrame:
    """Return the rows of the sources that the table is made of."""
    rows = pd.concat([read_source(name, root) for name in declaration.sources], ignore_index=True)
    if declaration.rows:
        rows = pd.concat([rows.query(query, engine="python") for query in declaration.rows.split(";")])
    absent = [name for column in declaration.columns for name in column.names if name not in rows]
    if absent or rows.empty:
        raise UserError(f"{' '.join(declaration.sources)} has no {f'column {absent[0]}' if absent else 'such row'}")
    return rows


def write_cell(rows: pd.DataFrame, column: Column) -> str:
    """Return a cell from the rows that share it: "-" for what does not exist."""
    filled = [name for name in column.names if rows[name].notna().any()]
    values = rows[filled[0] if filled else column.names[-1]]
    if column.form == "list":
        return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    if not filled:
        return "-"
    if column.form.startswith("."):
        refuse_mixed(rows)
        return mean_cell(values, int(column.form[1:]))
    return f"{values.iloc[0]:g}" if values.dtype.kind in "iuf" else str(values.iloc[0]) or "-"


def make_table(declaration: Declaration, root: Path = ROOT) -> str:
    """Return the Markdown table that a declaration asks for."""
    rows = choose_rows(declaration, root)
    by = list(declaration.join) or [SOURCE, ROW]
    groups = [group for _, group in rows.groupby(by, sort=False, dropna=False)]
    return to_markdown(
        pd.DataFrame([{column.title: write_cell(group, column) for column in declaration.columns} for group in groups])
    )


def declarations(text: str) -> list[tuple[Declaration, str]]:
    """Return the declarations on a page, each with the table that stands below it."""
    return [(parse_declaration(found["declaration"]), found["table"]) for found in DECLARED.finditer(text)]


def fill_tables(text: str, root: Path = ROOT) -> str:
    """Return a page with the tables that its declarations ask for."""
    return DECLARED.sub(
        lambda found: (
            f"<!-- table {found['declaration']}-->\n\n{make_table(parse_declaration(found['declaration']), root)}"
            f"{'' if found['next'] is None else chr(10)}"  # text right behind a table would be a row of it
        ),
        text,
    )


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages that may have tables of results."""
    return [root / "README.md", root / "RESULTS.md", root / "benchmarks/README.md", *sorted(root.glob("docs/**/*.md"))]


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the tables of the pages that a command line names, of all pages where it names none."""
    usage = "python -m tools.result_tables [PAGE.md ...]"
    parser = CommandParser("python -m tools.result_tables", __doc__, f"usage: {usage}", usage=usage)
    parser.add_argument("pages", nargs="*", type=Path, help="pages whose tables are filled [all]")
    for page in parser.parse_args(argv).pages or pages():
        if not page.is_file():
            raise UserError(f"{page} is not there")
        before = page.read_text(encoding="utf-8")
        after = fill_tables(before)
        if after != before:
            write_text(page, after)
        tell(f"{page}: {len(declarations(after))} tables{'' if after == before else ', changed'}")


if __name__ == "__main__":
    run_command(main)
