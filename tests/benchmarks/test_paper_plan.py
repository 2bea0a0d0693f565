"""The papers' runs looked at ahead: what calls will do, and what has to be copied to another machine."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.jobs import paper_items, paper_runs, travel
from benchmarks.jobs.paper_items import Step, make_steps
from benchmarks.jobs.paper_runs import Call, main
from benchmarks.jobs.plan import Limits, Pace, at_once_factor, epoch_seconds, plan_calls, training_images
from tests.helpers import run
from utils.errors import UserError

HEADER = "item,run,epoch,seconds,evaluation_seconds\n"


def named(item: str, name: str, folder: Path, seed: int = 0) -> Step:
    epochs = {"stage1": 10, "los": 4}.get(name, 0)
    return Step(
        item, name, ("python", name, "--seed", str(seed)), folder / item / name, epochs, folder / item / "stage1"
    )


def test_a_plan_computed_by_hand(tmp_path: Path) -> None:
    """Two items of 10 epochs of 10 s, 4 of 1 s, and files; 100 s a call, 5 s a start, 220 s in all."""
    steps = [named(item, name, tmp_path) for item in ("a", "b") for name in ("stage1", "los", "features")]
    pace = Pace({step: {"stage1": 10.0, "los": 1.0}.get(step.name, 0.0) for step in steps}, float)
    calls, skipped = plan_calls(steps, pace, Limits(100, 220, 5))
    # 9 epochs in 95 s; then 1 in 15 s, 9 s, 5 s, and 6 of b in the 66 s left (5 + 60); then no time for one of 10 s.
    assert [[line.split(":")[0] for line in call.lines] for call in calls] == [
        ["a stage1"],
        ["a stage1", "a los", "a features", "b stage1"],
        ["b stage1"],
    ]
    assert "epochs 1 to 9 of 10" in calls[0].lines[0] and "epochs 10 to 10 of 10" in calls[1].lines[0]
    assert "epochs 1 to 6 of 10" in calls[1].lines[3] and "epochs 7 to 7 of 10" in calls[2].lines[0]
    assert [str(step) for step in calls[1].finished] == ["a stage1", "a los", "a features"]
    assert [str(step) for step in skipped] == ["b stage1", "b los", "b features"]


def test_an_export_is_not_begun_without_the_seconds_of_a_start(tmp_path: Path) -> None:
    """10 epochs of 10 s and a start of 20 s leave 10 s of 130 s; the next call exports."""
    steps = [named("a", name, tmp_path) for name in ("stage1", "features")]
    pace = Pace({steps[0]: 10.0, steps[1]: 0.0}, float)
    calls, skipped = plan_calls(steps, pace, Limits(130, 260, 20))
    assert [[str(step) for step in call.finished] for call in calls] == [["a stage1"], ["a features"]] and skipped == []


def test_what_is_done_is_not_planned(tmp_path: Path) -> None:
    """A finished step is left out, and one that was begun goes on, at its own pace."""
    steps = [named("a", "stage1", tmp_path), named("a", "los", tmp_path), named("b", "stage1", tmp_path)]
    for step, rows in ((steps[0], 10), (steps[2], 7)):
        step.folder.mkdir(parents=True)
        (step.folder / "log.csv").write_text("seconds,evaluation_seconds\n" + "3,1\n" * rows)
    (steps[0].folder / "metrics.json").write_text("{}")
    pace = Pace({steps[0]: 4.0, steps[1]: 2.0, steps[2]: 4.0}, float)
    [call], skipped = plan_calls(steps, pace, Limits(100, 100, 5))
    assert [line.split(":")[0] for line in call.lines] == ["a los", "b stage1"] and skipped == []
    assert "epochs 8 to 10 of 10 17 s" in call.lines[1]


def test_seeds_at_once_take_as_long_as_was_measured(tmp_path: Path) -> None:
    """Two of a kind in one child; without a measurement as long as one after the other."""
    steps = [named("a", "stage1", tmp_path, 0), named("b", "stage1", tmp_path, 1)]
    table = tmp_path / "cuda_step.csv"
    table.write_text("how,at_once,ms\neager,1,9\ngraph,1,4\ngraph,2,6\n")
    pace = Pace(dict.fromkeys(steps, 10.0), at_once_factor(table))
    [call], _ = plan_calls(steps, pace, Limits(1000, 1000, 0, at_once=2))
    assert call.lines == ["a stage1 and b stage1: epochs 1 to 10 of 10 2.5 min"]
    later = named("b", "stage1", tmp_path, 1)  # has half of the epochs left: (10 + 5) x 10 s x 6 / 4 / 2
    later.folder.mkdir(parents=True)
    (later.folder / "log.csv").write_text("seconds,evaluation_seconds\n" + "3,1\n" * 5)
    [call], _ = plan_calls(steps, pace, Limits(1000, 1000, 0, at_once=2))
    assert call.lines == ["a stage1 and b stage1: epochs 1 to 10 of 10 1.9 min"]
    assert at_once_factor(table)(3) == 3 and at_once_factor(tmp_path / "none.csv")(2) == 2


def test_epochs_take_what_they_took_for_an_image(tmp_path: Path) -> None:
    """In proportion to the training images, evaluations included; UserError where none was measured."""
    steps = [step for step in make_steps({"out": str(tmp_path)}, quick=False) if step.name == "stage1"]
    log = tmp_path / "log.csv"
    log.write_text(HEADER + "if100_seed0,stage1,1,2,\nif100_seed0,stage1,2,2,2\nelsewhere,stage1,1,900,900\n")
    seconds = {step.item: found for step, found in epoch_seconds(steps, steps, log).items()}
    images = {step.item: training_images(step) for step in steps}
    assert (images["if100_seed0"], images["if10_seed0"]) == (10847, 19573)  # of CIFAR100-LT
    assert seconds["if100_seed0"] == seconds["if100_seed2"] == 3
    assert seconds["if10_seed0"] == pytest.approx(3 * 19573 / 10847)
    assert seconds["if100_seed0_holdout"] == pytest.approx(3 * 0.8)
    with pytest.raises(UserError, match="no epoch of if100_seed0 stage1 was measured"):
        epoch_seconds(steps, steps, tmp_path / "none.csv")
    if10 = [step for step in steps if step.item == "if10_seed0"]
    assert epoch_seconds(if10, steps, log) == {if10[0]: seconds["if10_seed0"]}  # others were measured, it was not
    log.write_text(HEADER + "elsewhere,stage1,1,900,900\n")
    with pytest.raises(UserError, match="no epoch of if10_seed0 stage1 was measured"):
        epoch_seconds(if10, steps, log)


def test_a_rehearsal_does_what_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the digits: with the epochs of one item measured, the plan of the next is kept by the real scripts."""

    def run_here(command: tuple[str, ...], log: Path, call: Call) -> int:
        log.write_text("no words\n")
        return run(Path(command[1]).stem, *command[2:]).status

    monkeypatch.setattr(paper_runs, "run_child", run_here)
    monkeypatch.setattr(paper_items, "RETRAINED", {"los": {"method": "los"}})
    flags = ["--quick", "--epochs", "1", "--out", str(tmp_path / "out"), "--device", "cpu", "--minutes", "5"]
    main([*flags, "--only", "quick_if100_seed0"])
    rows = []
    for step in make_steps({"epochs": 1, "out": str(tmp_path / "out"), "device": "cpu"}, quick=True)[:2]:
        rows.append(pd.read_csv(step.folder / "log.csv").assign(item=step.item, run=step.name))
    pd.concat(rows).to_csv(tmp_path / "log.csv", index=False)
    capsys.readouterr()
    ahead = ["--only", "quick_if100_seed[01]", "--plan", "5", "--measured", str(tmp_path / "log.csv")]
    main([*flags, *ahead])
    told = capsys.readouterr().out
    [home] = [line for line in told.splitlines() if "brings home" in line]
    assert "quick_if100_seed1 stage1, quick_if100_seed1 los" in home and "seed0 stage1" not in home
    assert told.rstrip().endswith("not reached: nothing")
    main([*flags, "--only", "quick_if100_seed[01]"])
    assert "quick_if100_seed1 los: finished" in capsys.readouterr().out


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a tracked, an untracked and an ignored file, and data beside."""
    root = tmp_path / "clone"
    (root / "data").mkdir(parents=True)
    for name, size in (("tracked", 1000), ("new", 2000), ("data/images", 50_000), ("data/ignored", 10)):
        (root / name).write_bytes(bytes(size))
    (root / ".gitignore").write_text("data/\n")
    for words in (["init", "-q"], ["add", "tracked", ".gitignore"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    monkeypatch.setattr(paper_runs, "ROOT", root)
    return root


def test_what_travels_is_counted(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tracked files and others that are not ignored, once each, and paths that are named."""
    main(["--travel"])
    assert capsys.readouterr().out.startswith("to be copied: 3 files of 0.0 MiB, at most 64 MiB")
    assert {str(file) for file in travel.files_of_tree(clone)} == {".gitignore", "new", "tracked"}
    main(["--travel", "data", "data/images", "new"])
    told = capsys.readouterr().out
    assert told.startswith("to be copied: 5 files") and "data/images 0.0" in told


def test_too_much_is_refused_with_what_is_largest(clone: Path) -> None:
    """In one line; a path that is not there is refused too."""
    with pytest.raises(UserError, match=r"more than 0.05 MiB; the largest in MiB: data/images 0.0, new"):
        main(["--travel", "data", "--travel_mib", "0.05"])
    with pytest.raises(UserError, match="there is nothing at weights"):
        main(["--travel", "weights"])


def test_without_git_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_runs, "ROOT", tmp_path)
    with pytest.raises(UserError, match="git does not list"):
        main(["--travel"])
