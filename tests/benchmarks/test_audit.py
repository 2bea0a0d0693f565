"""The audit of what is required: what is known, what is not, and who could not be asked."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness import audit
from tests.helpers import ROOT
from utils.errors import UserError

PINS = [{"metadata": {"name": "pillow", "version": "12.3.0"}}, {"metadata": {"name": "torch", "version": "2.11.0+cpu"}}]
CLEAN = {"dependencies": [{"name": "pillow", "version": "12.3.0", "vulns": []}]}
KNOWN = {
    "dependencies": [{"name": "pillow", "version": "12.3.0", "vulns": [{"id": "X-1", "fix_versions": ["13.0.0"]}]}]
}


def answers(monkeypatch: pytest.MonkeyPatch, said: str, status: int = 0, pip: int = 0) -> list[str]:
    """Let pip and pip-audit answer; return the list of pins that the latter is asked about."""
    asked: list[str] = []

    def ask(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        if words[0] == "pip":
            Path(words[words.index("--report") + 1]).write_text(json.dumps({"install": PINS}))
            return subprocess.CompletedProcess(words, pip, "", "ERROR: no network\n" if pip else "")
        asked.extend(Path(words[words.index("--requirement") + 1]).read_text().split())
        return subprocess.CompletedProcess(words, status, said, "cannot connect\n" if status else "")

    monkeypatch.setattr(audit, "ask", ask)
    return asked


def test_a_clean_set_ends_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = answers(monkeypatch, json.dumps(CLEAN))
    audit.main([])
    assert asked == ["pillow==12.3.0", "torch==2.11.0"] * 2
    assert "oldest: 2 packages, 0 known vulnerabilities" in capsys.readouterr().out


def test_findings_are_printed_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, json.dumps(KNOWN), 1)
    with pytest.raises(SystemExit) as ended:
        audit.main([])
    assert ended.value.code == 1
    assert capsys.readouterr().out.count("  pillow 12.3.0: X-1 (mended in 13.0.0)") == 2


SKIPPED = {"dependencies": [{"name": "torch", "skip_reason": "not found"}]}


@pytest.mark.parametrize("said", ["", "no JSON", "[]", "{}", json.dumps(SKIPPED)])
def test_what_could_not_be_asked_is_no_finding(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, said, 1)
    with pytest.raises(UserError, match="not audited: pip-audit is not installed or cannot reach"):
        audit.main([])


def test_pip_without_a_network_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, json.dumps(CLEAN), pip=1)
    with pytest.raises(UserError, match="pip cannot say which versions would be installed: ERROR: no network"):
        audit.main([])


def test_every_requirement_has_its_reason() -> None:
    page = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    needed: list[Any] = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line for line in needed if f"| {line} |" not in page] == []
