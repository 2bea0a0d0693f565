"""The sums of `benchmarks.robustness.coverage`."""

import pandas as pd
import pytest

from benchmarks.robustness.coverage import ROOMS, by_room


def test_lines_are_summed_by_room() -> None:
    rows = [("losses/los.py", 10, 1), ("losses/gala.py", 30, 3), ("elsewhere/other.py", 60, 0)]
    rooms = by_room(pd.DataFrame(rows, columns=["file", "statements", "missed"])).set_index("room")
    assert list(rooms.index) == [*ROOMS, "all"]
    assert rooms.loc["losses", ["statements", "missed"]].tolist() == [40, 4]
    assert rooms.loc["all", ["statements", "missed"]].tolist() == [40, 4]
    assert rooms["percent"].to_dict() == pytest.approx({room: 100 for room in ROOMS} | {"losses": 90, "all": 90})
