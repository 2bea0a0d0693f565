"""Text from outside reaches no terminal as it is, and nothing prints but `tell`."""

import ast
import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.architecture import python_files
from tests.helpers import ROOT
from utils.text import tell

# Who writes to a terminal without `tell`: the function itself, the bar of progress, what Python prints in a child.
OTHERS = {"utils/text.py", "utils/progress.py"}
ROOMS = (
    "datasets",
    "engine",
    "evaluation",
    "losses",
    "methods",
    "models",
    "runs",
    "settings",
    "stages",
    "tables",
    "tools",
    "utils",
)
SCRIPTS = ("main_stage1", "main_stage2", "evaluate", "predict", "reproduce")


@given(st.text())
def test_no_sign_steers_a_terminal(text: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        tell(text)
    lines = out.getvalue().split("\n")
    assert len(lines) == text.count("\n") + 2 and all(line.isprintable() for line in lines)


def test_most_text_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tell("Zürich 東京 ± 1.5 | é\n  two lines")
    tell()
    assert capsys.readouterr().out == "Zürich 東京 ± 1.5 | é\n  two lines\n\n"


def test_nothing_else_prints() -> None:
    found = set()
    for file in python_files(ROOT, [*ROOMS, *SCRIPTS]):
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                found.add(str(file))
    assert found == OTHERS
