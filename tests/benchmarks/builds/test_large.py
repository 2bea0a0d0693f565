"""The benchmark of large files: what is drawn, what a target is compared with, what the child measures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.builds import large
from benchmarks.builds.large import NEAR, measured, probe_lines, target_table, write_features
from tests.helpers import ROOT
from utils.errors import UserError


def test_drawn_features_have_every_class_and_their_size(tmp_path: Path) -> None:
    write_features(tmp_path / "own.npz", (60, 25), 5, 20, classifier=True)
    with np.load(tmp_path / "own.npz") as arrays:
        assert arrays["train_features"].shape == (60, 5) and arrays["train_features"].dtype == np.float16
        assert set(arrays["train_labels"].tolist()) == set(range(20))
        assert arrays["test_features"].shape == (25, 5) and arrays["fc.weight"].shape == (20, 5)


def line(part: str, build: str, number: int, what: str, value: float, **more: object) -> dict[str, object]:
    """Return a measured row."""
    case = {"part": part, "images": 10, "classes": 4, "file_mb": 2.0}
    return {**case, "build": build, "round": number, "what": what, "value": value, **more}


def test_targets_are_of_the_largest_size_round_by_round() -> None:
    rows = [
        line("load", build, number, "load_cpu_seconds", value)
        for build, values in (("earlier", (4.0, 6.0, 10.0)), ("now", (1.0, 3.0, 4.0)))
        for number, value in enumerate(values)
    ]
    rows += [line("load", build, 0, "load_peak_mb", value) for build, value in (("earlier", 9.0), ("now", 3.2))]
    rows += [line("load", build, 0, "load_peak_mb", 99.0, images=5) for build in ("earlier", "now")]
    seconds, peak = target_table(pd.DataFrame(rows)).to_dict("records")
    assert (seconds["ratio"], seconds["lowest"], seconds["highest"]) == (0.4, 0.25, 0.5)
    assert seconds["reached"] and seconds["earlier"] == 6.0
    assert peak["counted"] == pytest.approx(1.6) and not peak["reached"]  # 3.2 MB for a file of 2


def test_a_probe_is_timed_until_it_is_near_the_best() -> None:
    losses = {"now": (2.0, 1.0), "earlier": (1.5, 1.0 + NEAR / 2), "scikit-learn": (1.2, 1.1)}
    rows = [
        line("probe", build, 0, what, value, steps=steps)
        for build, of_steps in losses.items()
        for steps, loss in zip((10, 20), of_steps, strict=True)
        for what, value in (("held_out_loss", loss), ("probe_seconds", steps * (1.0 if build == "now" else 4.0)))
    ]
    (found,) = probe_lines(pd.DataFrame(rows))  # scikit-learn's comes near in no time that was measured
    assert found["what"] == "probe: seconds, beside earlier"
    assert (found["now"], found["earlier"], found["ratio"], found["reached"]) == (20.0, 80.0, 0.25, True)


def test_a_child_measures_this_build(tmp_path: Path) -> None:
    found = measured(ROOT, "parts", 40, 6)
    assert found["temperature_seconds"] > 0 and 1e-4 < found["temperature_result"] < 1e4
    with pytest.raises(UserError, match=r"the measurement of parts in .* failed"):
        measured(ROOT, "parts", 40, "six")


def test_a_rehearsal_writes_table_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretended(build: Path, task: str, *words: object) -> dict[str, float]:
        if task == "probe":
            return {"probe_seconds": 1.0, "held_out_loss": 2.0}
        names = ("load_cpu_seconds", "load_peak_mb", "peak_mb", "epoch_seconds", "temperature_seconds")
        return dict.fromkeys((*names, "rebalanced_seconds"), 1.0 if build == ROOT else 4.0)

    monkeypatch.setattr(large, "measured", pretended)
    monkeypatch.setattr(large, "revision_of", lambda folder: "abc")
    large.main(["--base", str(tmp_path), "--quick", "--results", str(tmp_path / "results")])
    table = pd.read_csv(tmp_path / "results" / "large_files.csv")
    assert set(table["part"]) == {"load", "command", "report", "parts", "probe"}
    assert (tmp_path / "results" / "large_files.png").stat().st_size > 0
    assert "temperature_seconds" in (tmp_path / "results" / "large_files.md").read_text()


def test_parts_alone_need_no_file() -> None:
    rows = [{"part": "parts", "images": 9, "classes": 4, "round": 0, "what": "temperature_seconds"}]
    values = [{**rows[0], "build": build, "value": value} for build, value in (("earlier", 8.0), ("now", 1.0))]
    (found,) = target_table(pd.DataFrame(values)).to_dict("records")
    assert found["counted"] == 0.125 and found["reached"]


def test_a_report_of_this_build_alone(tmp_path: Path) -> None:
    """Without an earlier build beside it: one line, and no flag that would have no effect."""
    large.main(["--report", "40", "--results", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "large_report.csv").set_index("what")
    assert (rows["images"] == 40).all() and (rows["classes"] == 40).all() and set(rows["build"]) == {"now"}
    assert rows.loc["peak_mb", "value"] > 0 and rows.loc["cpu_seconds", "value"] > 0
    assert "| images | classes | cpu_seconds | peak_mb |" in (tmp_path / "large_report.md").read_text()
    with pytest.raises(UserError, match="without --base one report is made"):
        large.main(["--only", "load", "--results", str(tmp_path)])
