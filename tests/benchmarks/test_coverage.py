"""The sums of `benchmarks.robustness.coverage`."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.robustness import coverage
from benchmarks.robustness.coverage import ROOMS, by_room


def test_lines_are_summed_by_room() -> None:
    rows = [("losses/los.py", 10, 1), ("losses/gala.py", 30, 3), ("elsewhere/other.py", 60, 0)]
    rooms = by_room(pd.DataFrame(rows, columns=["file", "statements", "missed"])).set_index("room")
    assert list(rooms.index) == [*ROOMS, "all"]
    assert rooms.loc["losses", ["statements", "missed"]].tolist() == [40, 4]
    assert rooms.loc["all", ["statements", "missed"]].tolist() == [40, 4]
    assert rooms["percent"].to_dict() == pytest.approx({room: 100 for room in ROOMS} | {"losses": 90, "all": 90})


@pytest.mark.parametrize(
    ("passed", "missed", "flags", "status"),
    [(True, 5, [], 0), (True, 20, [], 1), (True, 20, ["--quick"], 0), (False, 0, [], 1), (False, 0, ["--quick"], 1)],
)
def test_a_failed_test_or_a_room_below_the_target_is_status_1(
    passed: bool, missed: int, flags: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = {"losses/los.py": {"statements": 100, "missed": missed}}
    monkeypatch.setattr(coverage, "measure", lambda folder, arguments: (passed, lines))
    try:
        coverage.main([*flags, "--results", str(tmp_path)])
        found = 0
    except SystemExit as stop:
        found = int(stop.code or 0)
    assert found == status
    assert pd.read_csv(tmp_path / "coverage.csv")["missed"].tolist() == [missed]
