"""The sums of `benchmarks.robustness.coverage`."""

import pandas as pd
import pytest

from benchmarks.robustness.coverage import ROOMS, by_room


def test_lines_are_summed_by_room() -> None:
    rows = [("losses/los.py", 10, 1), ("losses/gala.py", 30, 3), ("runs/run_folder.py", 60, 0)]
    rooms = by_room(pd.DataFrame(rows, columns=["file", "statements", "missed"])).set_index("room")
    assert list(rooms.index) == [*ROOMS, "all"]
    assert rooms.loc["losses", ["statements", "missed"]].tolist() == [40, 4]
    assert rooms["percent"].to_dict() == pytest.approx(
        {"losses": 90, "models": 100, "datasets": 100, "utils": 100, "tables": 100, "all": 96}
    )
