"""The command `benchmarks.robustness.fuzz`: its record, its exit status, its refusals."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.robustness import fuzz
from benchmarks.robustness.fuzz_inputs import lists
from benchmarks.robustness.fuzz_inputs.command_lines import MAINS
from benchmarks.robustness.fuzz_inputs.command_words import STARTS
from benchmarks.robustness.fuzz_inputs.kinds import KINDS
from utils.errors import UserError

FLAGS = ["--only", "COCO", "--inputs", "6", "--seed", "1"]


def test_the_record_has_every_input(tmp_path: Path) -> None:
    fuzz.main([*FLAGS, "--results", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "fuzz.csv")
    assert len(rows) == 6 and set(rows["outcome"]) <= {"accepted", "refused"} and (rows["seed"] == 1).all()
    assert rows["command"].str.startswith("python -m benchmarks.robustness.fuzz --only COCO").all()
    assert "| COCO list | 6 |" in (tmp_path / "fuzz.md").read_text()


def test_a_failure_is_printed_and_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr(lists, "read_json_list", fail)
    with pytest.raises(SystemExit) as stop:
        fuzz.main([*FLAGS, "--results", str(tmp_path)])
    assert stop.value.code == 1
    assert "COCO list failed, seed 1, case 0" in capsys.readouterr().out
    assert (pd.read_csv(tmp_path / "fuzz.csv")["outcome"] == "failed").all()


def test_every_kind_has_a_weight_and_every_script_a_start() -> None:
    assert [kind.name for kind in KINDS] == list(fuzz.WEIGHTS)
    assert MAINS.keys() == STARTS.keys()


def test_a_missing_hypothesis_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(UserError, match=r"^hypothesis is not installed: pip install"):
        fuzz.main(FLAGS)


@pytest.mark.parametrize(("flags", "words"), [("--inputs 0", "between 1 and"), ("--only zebra", "known: command line")])
def test_wrong_flags(flags: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fuzz.main(flags.split())
