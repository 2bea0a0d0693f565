"""The exit status of `benchmarks.robustness.coverage`."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.robustness import coverage


@pytest.mark.parametrize(
    ("passed", "missed", "flags", "status"),
    [(True, 5, [], 0), (True, 20, [], 1), (True, 20, ["--quick"], 0), (False, 0, [], 1), (False, 0, ["--quick"], 1)],
)
def test_a_failed_test_or_a_room_below_the_target_is_status_1(
    passed: bool, missed: int, flags: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = {"losses/los.py": {"statements": 100, "missed": missed}}
    monkeypatch.setattr(coverage, "measure_coverage", lambda folder, arguments: (passed, lines))
    try:
        coverage.main([*flags, "--results", str(tmp_path)])
        found = 0
    except SystemExit as stop:
        found = int(stop.code or 0)
    assert found == status
    assert pd.read_csv(tmp_path / "coverage.csv")["missed"].tolist() == [missed]
