"""Files as everybody has them: cases are judged by what came out, and the recorded table is whole."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.command import ROOT
from benchmarks.robustness import everyday_files
from benchmarks.robustness.everyday_files import CASES, KINDS, by_kind, main, measure
from benchmarks.robustness.everyday_inputs.case import (
    NOT_RUN,
    REFUSED,
    RIGHT,
    TRACEBACK,
    WAY_OUT,
    WRONG,
    Case,
    Ended,
    differs,
    judge,
)
from benchmarks.robustness.everyday_inputs.checkout import CHECKS, Checkout, export
from evaluation.csv_files import read_csv
from utils.errors import UserError

QUICK = ("labels of losses", "a training folder without images", "labels 1 to K")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with Checkout(ROOT, tmp_path_factory.mktemp("streams")) as checkout:
        yield checkout


@pytest.mark.parametrize("case", [case for case in CASES if {case.kind, case.name} & set(QUICK)], ids=lambda c: c.name)
def test_the_commands_here_do_what_is_right(case: Case, here: Checkout, tmp_path: Path) -> None:
    row = measure(case, here, tmp_path, "after")
    assert row["after_right"] == "yes", row


def test_every_kind_has_cases_of_one_name_each() -> None:
    assert {case.kind for case in CASES} == set(KINDS)
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)


def case_of(way: tuple[str, ...] = (), refuse: bool = False) -> Case:
    return Case("kind", "name", "5", None, [], lambda ended: differs("found", len(ended.text), 5), way, refuse)


@pytest.mark.parametrize(
    ("case", "status", "text", "line", "outcome", "right"),
    [
        (case_of(), 0, "12345", "", RIGHT, True),
        (case_of(), 0, "1234", "", WRONG, False),
        (case_of(("--five",)), 2, "", "no five", REFUSED, False),
        (case_of(("--five",)), 2, "", "no five; give --five", WAY_OUT, False),
        (case_of(("--five",), refuse=True), 2, "", "no five; give --five", WAY_OUT, True),
        (case_of(("--five",), refuse=True), 2, "", "no five", REFUSED, False),
        (case_of(("--five",), refuse=True), 0, "12345", "", RIGHT, False),
        (case_of(), 2, "", "no", REFUSED, False),
        (case_of(), 1, "Traceback (most recent call last):\nKeyError: 5", "KeyError: 5", TRACEBACK, False),
        (case_of(), -9, "12345", "", WRONG, False),
    ],
)
def test_outcomes(case: Case, status: int, text: str, line: str, outcome: str, right: bool) -> None:
    found, _ = judge(case, Ended(Path(), status, text, line, 0.0))
    assert (found, case.is_right(found)) == (outcome, right)


def test_a_file_that_is_not_there_is_wrong() -> None:
    case = Case("kind", "name", "", None, [], lambda ended: str(ended.report()))
    assert judge(case, Ended(Path("nowhere"), 0, "", "", 0.0))[0] == WRONG


def test_an_earlier_revision_gets_its_own_words(here: Checkout, tmp_path: Path) -> None:
    """Flags that a command does not have are left out with their values, and its check goes by the name it has."""
    words = ["main_stage1.py", "--dataset", "folder", "--no_such_flag", "3", "--epochs", "1", "--not_this", "--wd", "0"]
    assert here.translate(words) == ["main_stage1.py", "--dataset", "folder", "--epochs", "1", "--wd", "0"]
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "check.py").touch()
    earlier = object.__new__(Checkout)
    earlier.root, earlier.flags = tmp_path, {f"-m {CHECKS[1]}": {"--json"}}
    found = earlier.translate(["-m", CHECKS[0], "--test_share", "0.2", "--json", "a.json"])
    assert found == ["-m", CHECKS[1], "--json", "a.json"]


def test_a_revision_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the revision 0123abcd is not in this clone; git fetch --unshallow"):
        export("0123abcd", tmp_path)


def test_the_record_of_a_run(
    here: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the revision its half is empty, with the reason."""
    monkeypatch.setattr(everyday_files, "Checkout", lambda *_: nullcontext(here))
    main(["--only", "labels of losses", "--before", "0123abcd", "--results", str(tmp_path)])
    table = pd.read_csv(tmp_path / "everyday_files.csv")
    assert (table["before"] == NOT_RUN).all() and table["before_words"].str.contains("not in this clone").all()
    assert (table["after_right"] == "yes").all() and (table["after_seconds"] > 0).all()
    assert "note: the revision 0123abcd is not in this clone" in capsys.readouterr().out


def test_the_recorded_table_has_every_case() -> None:
    table = read_csv(ROOT / "results" / "everyday_files.csv")
    assert list(zip(table["kind"], table["case"], strict=True)) == [(case.kind, case.name) for case in CASES]
    outcomes = {RIGHT, WAY_OUT, REFUSED, WRONG, TRACEBACK, NOT_RUN}
    assert set(table["before"]) | set(table["after"]) <= outcomes
    assert ((table["after"] == NOT_RUN) | (table["after_right"] == "yes")).all()
    assert by_kind(table)["cases"].iloc[-1] == (table["after"] != NOT_RUN).sum()
