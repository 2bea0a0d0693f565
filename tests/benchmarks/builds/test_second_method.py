"""The second method beside an earlier build, and folding: ratios, targets, and command lines that cannot be."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.builds.second_method import FIRST, REPORT, SECOND, main, rows_of
from benchmarks.speed import folding
from utils.errors import UserError


def test_ratios_are_those_of_a_round() -> None:
    earlier = [{FIRST: 10.0, SECOND: 90.0, REPORT: 30.0}, {FIRST: 20.0, SECOND: 80.0, REPORT: 10.0}]
    now = [{FIRST: 10.0, SECOND: 10.0, REPORT: 10.0}, {FIRST: 10.0, SECOND: 8.0, REPORT: 10.0}]
    rows = {row["step"]: row for row in rows_of(earlier, now)}
    assert [rows[step]["ratio"] for step in (FIRST, SECOND, REPORT)] == [1.5, 9.5, 2.0]
    assert [rows[step]["reached"] for step in (FIRST, SECOND, REPORT)] == [None, True, False]
    assert (rows[REPORT]["ratio_low"], rows[REPORT]["ratio_high"]) == (1.0, 3.0)
    assert (rows[SECOND]["earlier_cpu_seconds"], rows[SECOND]["now_cpu_seconds"]) == (85.0, 9.0)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--stage1 .* is not there"):
        main(["--base", str(tmp_path), "--stage1", str(tmp_path / "none.pth")])
    with pytest.raises(UserError, match="--rounds must be at least 1"):
        main(["--base", str(tmp_path), "--rounds", "0"])


def test_folding_is_measured_beside_the_network(tmp_path: Path) -> None:
    folding.main(["--quick", "--networks", "resnet8", "--results", str(tmp_path)])
    table = pd.read_csv(tmp_path / "folding.csv")
    assert table["network"].tolist() == ["resnet8"] and 0 < table["difference"][0] < 1e-5
    assert table["ratio"][0] > 0 and table["batch"][0] == 128 and table["threads"][0] == 1
    short = ["--processes", "2", "--rounds", "1", "--batches", "1"]
    folding.main(["--networks", "resnet8", *short, "--results", str(tmp_path)])
    table = pd.read_csv(tmp_path / "folding.csv")
    assert table["process"].tolist() == [0, 1] and len(set(table["ratio"])) == 2
    with pytest.raises(UserError, match="--processes, --rounds and --batches must be at least 1"):
        folding.main(["--processes", "0"])
    with pytest.raises(UserError, match="names are such as"):
        folding.main(["--networks", "resnet50@large"])


def test_the_ratio_of_a_network_is_the_median_of_its_processes() -> None:
    shared = {"network": "resnet8", "pixels": 32, "cpu_ms_an_image": 1.0}
    ranges = [(0.8, 0.7, 0.9), (1.1, 1.05, 1.1), (0.85, 0.8, 0.9)]
    rows = [{**shared, "ratio": middle, "ratio_low": low, "ratio_high": high} for middle, low, high in ranges]
    (line,) = folding.network_lines(pd.DataFrame(rows)).to_dict("records")
    assert (line["ratio"], line["ratio_low"], line["ratio_high"], line["reached"]) == (0.85, 0.8, 1.1, True)
    assert line["within_one"] == pytest.approx(0.2) and line["below_target"] == "2 of 3"
