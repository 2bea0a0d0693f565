"""The papers' runs in job slots: what comes first, when a call stops, what the next one does, what is collected.

Children are stubs on a clock of their own; an item on the digits is real.
"""

import _thread
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.jobs import collect, paper_items, paper_runs
from benchmarks.jobs.at_once import make_runs
from benchmarks.jobs.paper_items import Step, beside, children_of, command_of, make_steps, progress, unfinished
from benchmarks.jobs.paper_runs import Call, main
from runs.run_names import run_path
from settings.command_line import parse_command
from settings.fields import STAGE1
from tests.helpers import is_refusal, run
from tools import export_features as export
from utils.errors import UserError
from utils.files import read_json

STARTUP, EPOCH, FINISH = 10.0, 30.0, 5.0
MIB = 2**20
AT_ONCE = ["--minutes", "5", "--at_once", "2"]
SHORT = ("--epochs", 1, "--finetune_epoch", 1)
HEADER = "epoch,seconds,evaluation_seconds\n"


class World:
    """Stubs in the place of children and clock; `begun` are the steps started, in their order."""

    def __init__(self, out: Path) -> None:
        self.out, self.time = out, 1000.0
        self.begun: list[str] = []
        self.failures: dict[str, list[tuple[int, str]]] = {}
        self.parts = [3 * MIB, MIB]
        self.steps: dict[tuple[str, ...], Step] = {}

    def run_child(self, command: tuple[str, ...], log: Path, call: Call) -> int | None:
        """Take STARTUP seconds, EPOCH an epoch and FINISH for the report; until the call's time is up."""
        step = self.steps[command]
        self.begun.append(str(step))
        if self.failures.get(str(step)):
            status, words = self.failures[str(step)].pop(0)
            log.write_text(f"$ command\n{words}\n")
            return status
        done = progress(step)[0]
        begun = self.time + STARTUP
        epochs = min(step.epochs, done + max(0, int((call.stop - begun) // EPOCH)))
        if step.epochs and epochs > done:
            step.folder.mkdir(parents=True, exist_ok=True)
            rows = "".join(f"{epoch + 1},20.0,10.0\n" for epoch in range(epochs))
            (step.folder / "log.csv").write_text(HEADER + rows)
        self.time = begun + (epochs - done) * EPOCH + FINISH
        if epochs < step.epochs or self.time > call.stop:
            self.time = call.stop + call.grace
            return None
        if step.epochs:
            (step.folder / "metrics.json").write_text("{}")
            return 0
        folder = unfinished(step.folder)
        folder.mkdir()
        for number, size in enumerate(self.parts):
            (folder / f"{step.item}_features-{number}.safetensors").write_bytes(bytes(size))
        return 0

    def call(self, *arguments: object) -> float:
        """Make a call and return the seconds that it took."""
        argv = ["--out", str(self.out), *map(str, arguments)]
        own, given = paper_runs.parse(argv)
        self.steps = {step.command: step for step in make_steps(given, own.quick, min(15.0, own.collect_mib / 2))}
        started = self.time
        main(argv)
        return self.time - started


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path / "runs")
    monkeypatch.setattr(paper_runs, "run_child", world.run_child)
    monkeypatch.setattr(paper_runs, "monotonic", lambda: world.time)
    monkeypatch.setattr(collect, "read_run", lambda folder: ({"all": 1}, {}))
    monkeypatch.setattr(collect, "csv_row", lambda metrics, config: metrics)
    return world


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What there is to do


def test_items_stand_in_the_order_of_worth() -> None:
    items: dict[str, list[str]] = {}
    for step in make_steps({}, quick=False):
        items.setdefault(step.item, []).append(step.name)
    assert list(items) == [
        "if100_seed0",
        "if100_seed1",
        "if100_seed2",
        "if10_seed0",
        "if50_seed0",
        "if100_seed0_gala_lambda1_1",
        "if100_seed0_gala_lambda1.2_0.9",
        "if100_seed0_gala_released_lambda1_1",
        "if100_seed0_gala_released_lambda1.2_0.9",
        "if200_seed0_gala_lambda1.2_0.9",
        "if200_seed0_gala_lambda1_1",
        "if100_seed0_holdout",
        "if100_seed1_holdout",
        "if100_seed2_holdout",
        "if100_seed0_shuffle0",
        "if100_seed0_shuffle1",
        "if100_seed0_shuffle2",
        "if10_seed1",
        "if50_seed1",
        "if10_seed2",
        "if50_seed2",
        "if200_seed0",
        "if500_seed0",
    ]
    whole, first = ["stage1", "los", "los_released", "ce", "features"], ["stage1", "features"]
    assert list(items.values()) == [[*whole, "weights"]] + [whole] * 4 + [first] * 9 + [whole] * 9


@pytest.mark.parametrize("quick", [False, True])
def test_every_step_has_a_folder_of_its_own_and_names_may_travel(quick: bool) -> None:
    steps = make_steps({}, quick)
    assert len({step.folder for step in steps}) == len(steps)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", step.item) for step in steps)


def test_stage_1s_are_those_that_other_commands_look_for() -> None:
    folders = {step.item: step.folder for step in make_steps({}, quick=False) if step.name == "stage1"}
    released = "--loss gala --lambda1 1.2 --lambda2 0.9 --gala_margin released --gala_accumulation double"
    lines = {
        "if100_seed0": "--imb_ratio 100 --cur_stage stage1",
        "if100_seed1_holdout": "--holdout 0.2 --seed 1",  # reproduce.py unified --select
        "if100_seed0_gala_lambda1_1": "--loss gala",
        "if100_seed0_gala_released_lambda1.2_0.9": released,
        "if100_seed0_shuffle2": "--subset shuffle --subset_seed 2",
    }
    for name, line in lines.items():
        assert folders[name] == run_path(parse_command(STAGE1, "", line.split()))


def test_flags_of_stage_1_reach_the_children() -> None:
    steps = make_steps({"device": "cpu", "amp": "bf16", "batch_size": 128, "data_dir": "there"}, quick=False)[:5]
    *runs, features = [" ".join(step.command) for step in steps]
    assert all("--device cpu" in line and "--data_dir there" in line and line.endswith("--reuse") for line in runs)
    assert "--batch_size 128" in runs[0] and "--batch_size" not in runs[1]  # stage 2 has a budget of its own
    assert f"--pretrained_pth {steps[0].folder} " in runs[1] and "--protocol released" in runs[2]
    assert str(steps[0].folder) in features and features.endswith("--device cpu")
    scripts = [Path(step.command[1]) for step in steps[:4]]
    assert all(script.is_absolute() and script.is_file() for script in scripts)  # from whichever folder


# A call and the next ones


def test_work_goes_on_call_after_call_in_order_and_in_time(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    only = ("--only", "if100_seed0", "if100_seed0_gala_lambda1_1", "--epochs", 30, "--finetune_epoch", 3)
    for _ in range(20):
        assert world.call("--minutes", 9, *only) <= 540
        if "all runs are finished" in capsys.readouterr().out:
            break
    assert list(dict.fromkeys(world.begun)) == [
        "if100_seed0 stage1",
        "if100_seed0 los",
        "if100_seed0 los_released",
        "if100_seed0 ce",
        "if100_seed0_gala_lambda1_1 stage1",
    ]
    assert world.begun.count("if100_seed0 stage1") == 2  # of the 30 epochs 16 fit into a call: no child began anew
    begun = len(world.begun)
    assert world.call("--minutes", 9, *only) == 0
    assert len(world.begun) == begun


def test_nothing_is_begun_that_cannot_make_an_epoch(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.call("--minutes", 9)
    begun = len(world.begun)
    assert world.call("--minutes", 0.5) == 0  # some of the half minute is kept for saving
    assert len(world.begun) == begun
    assert "if100_seed0 stage1: not begun, 22 s left, an epoch takes 30 s" in capsys.readouterr().out


def test_the_list_tells_states_and_times(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.call("--minutes", 9)
    capsys.readouterr()
    world.call("--list")
    lines = capsys.readouterr().out.splitlines()
    left = (200 - 16) * EPOCH / 60
    assert lines[0].startswith(f"if100_seed0: stage1 16/200 ({left:.1f} min), los 0/20 (unknown), ")
    assert lines[1].startswith("if100_seed1: stage1 0/200 (unknown), ") and lines[1].endswith(", features missing")
    assert len(lines) == 23


def test_a_crash_is_tried_once_more_and_a_refusal_is_not(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--minutes", 60, "--only", "if100_seed[012]", *SHORT)
    world.failures["if100_seed0 stage1"] = [(2, "error: the data are not there")]
    world.failures["if100_seed1 stage1"] = [(1, "RuntimeError: no memory")]
    world.failures["if100_seed2 los"] = [(-11, "")] * 2
    with pytest.raises(UserError, match=r"2 steps failed, .* the first, if100_seed0 stage1: the data are not there"):
        world.call(*flags)
    assert world.begun == [
        "if100_seed0 stage1",  # what follows has nothing to start from
        "if100_seed1 stage1",
        "if100_seed1 stage1",
        "if100_seed1 los",
        "if100_seed1 los_released",
        "if100_seed1 ce",
        "if100_seed2 stage1",
        "if100_seed2 los",
        "if100_seed2 los",
        "if100_seed2 los_released",
        "if100_seed2 ce",
    ]
    out = capsys.readouterr().out
    assert "if100_seed1 stage1: failed with status 1: RuntimeError: no memory" in out and "5 runs are unfinished" in out
    world.call(*flags)
    assert "all runs are finished" in capsys.readouterr().out


# Collecting


def test_what_is_finished_is_collected_within_the_limits_of_a_call(world: World, tmp_path: Path) -> None:
    flags = ("--only", "if100_seed[01]", *SHORT, "--minutes", 60, "--collect_files", 4, "--collect_mib", 4.5)
    collected = []
    for number in range(4):
        home = tmp_path / f"home{number}"  # what was collected is taken away
        world.call(*flags, "--collect", home)
        assert sum(path.stat().st_size for path in home.iterdir()) <= 4.5 * MIB
        collected.append(names(home))
    tables = ["paper_runs.csv", "paper_runs_log.csv"]
    assert collected == [
        ["if100_seed0_features-0.safetensors", "if100_seed0_features-1.safetensors", *tables],
        ["if100_seed1_features-0.safetensors", "if100_seed1_features-1.safetensors", *tables],
        tables,
        tables,
    ]
    rows, logs = (pd.read_csv(tmp_path / "home0" / name) for name in tables)
    runs = [(f"if100_seed{seed}", run) for seed in (0, 1) for run in ("stage1", "los", "los_released", "ce")]
    assert [*zip(rows["item"], rows["run"], strict=True)] == [*zip(logs["item"], logs["run"], strict=True)] == runs
    assert world.begun.count("if100_seed0 features") == 1
    assert not any(path.is_file() for path in (world.out / "paper_runs" / "exports").rglob("*"))  # no second copy


def test_rows_join_those_of_runs_made_elsewhere(world: World, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "paper_runs.csv").write_text("item,run,all,note\nother,stage1,2.50,mine\nif100_seed0,stage1,0,old\n")
    world.call("--only", "if100_seed0", "--epochs", 16, "--minutes", 9, "--collect", home)
    assert world.begun == ["if100_seed0 stage1", "if100_seed0 los"]  # a row is collected before the item is finished
    rows = pd.read_csv(home / "paper_runs.csv", dtype=str).fillna("").to_numpy().tolist()
    assert rows == [["other", "stage1", "2.50", "mine"], ["if100_seed0", "stage1", "1", ""]]


def test_a_call_that_is_cut_off_collects_what_was_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    world.call("--only", "if100_seed0", *SHORT)
    monkeypatch.setattr(paper_runs, "run_child", interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.call("--only", "if100_seed0", *SHORT, "--collect", tmp_path / "home")
    assert names(tmp_path / "home") == ["paper_runs.csv", "paper_runs_log.csv"]


def test_a_part_that_has_no_room_is_named(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.parts = [5 * MIB, MIB]
    world.call(
        "--only", "if100_seed0_gala_lambda1_1", "--epochs", 1, "--collect", tmp_path / "home", "--collect_mib", 4
    )
    out = capsys.readouterr().out
    assert (
        "no room in this call, the next one collects: if100_seed0_gala_lambda1_1_features-0.safetensors (5.0 Mi" in out
    )
    assert (tmp_path / "home" / "if100_seed0_gala_lambda1_1_features-1.safetensors").is_file()


def test_an_export_that_was_cut_off_is_done_anew(world: World, tmp_path: Path) -> None:
    torn = world.out / "paper_runs" / "exports" / "if100_seed0_gala_lambda1_1.unfinished" / "torn.safetensors"
    torn.parent.mkdir(parents=True)
    torn.touch()
    world.call("--only", "if100_seed0_gala_lambda1_1", "--epochs", 1, "--collect", tmp_path / "home")
    assert len(names(tmp_path / "home")) == 4 and "torn.safetensors" not in names(tmp_path / "home")


def test_an_item_on_the_digits_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real scripts, in this process to spare their start, make the folders that were planned for them."""

    def run_here(command: tuple[str, ...], log: Path, call: Call) -> int:
        if command[1] == "-m":
            export.main(command[3:])
            return 0
        return run(Path(command[1]).stem, *command[2:]).status

    monkeypatch.setattr(paper_runs, "run_child", run_here)
    home, name = tmp_path / "home", "quick_if100_seed0"
    flags = ["--quick", "--only", name, "--epochs", "1", "--out", str(tmp_path / "out"), "--device", "cpu"]
    main([*flags, "--minutes", "5", "--collect", str(home)])
    assert names(home) == [
        "paper_runs.csv",
        "paper_runs_log.csv",
        f"{name}_features.json",
        f"{name}_features.safetensors",
        f"{name}_weights.json",
        f"{name}_weights.safetensors",
    ]
    rows = pd.read_csv(home / "paper_runs.csv").set_index("run")
    assert list(rows["protocol"].items()) == [
        ("stage1", "honest"),
        ("los", "honest"),
        ("los_released", "released"),
        ("ce", "honest"),
    ]
    for step in make_steps({"epochs": 1, "out": str(tmp_path / "out"), "device": "cpu"}, quick=True)[:4]:
        accuracy = read_json(step.folder / "metrics.json")["last"]["plain"]["all"]
        assert rows.loc[step.name, "last_plain_all"] == pytest.approx(accuracy)
    epochs = pd.read_csv(home / "paper_runs_log.csv").groupby("run").size()
    assert epochs["stage1"] == 1 and epochs["los"] == 2


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be"),
        (["--minutes", "soon"], "--minutes"),
        (["--at_once", "0"], "--at_once must be"),
        (["--collect_files", "2"], "--collect_files must be"),
        (["--collect_mib", "nan"], "--collect_mib at least 4"),
        (["--only", "if7"], "no item is called 'if7'"),
        (["--seed", "1"], "--seed cannot be given here"),
        (["--lambda1", "1", "--json", "x"], "--json, --lambda1 cannot be given here"),
        (["--nonsense"], "unrecognized arguments"),
        (["--device", "tpu"], "unknown --device 'tpu'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        main(["--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


# Several at once


def test_stage_1s_are_one_command_and_other_steps_children_of_their_own() -> None:
    """Stage 1s of any items are put together, with their flags; what is re-trained or exported is not."""
    steps = make_steps({}, quick=False)
    first = {step.item: step for step in steps if step.name == "stage1"}
    group = beside(first["if10_seed0"], steps, 3)
    assert [str(step) for step in group] == ["if10_seed0 stage1", "if100_seed0 stage1", "if100_seed1 stage1"]
    assert children_of(group) == [group] and command_of(group[:1]) == group[0].command
    runs = make_runs(command_of(group)[3:])
    assert [run_path(run.command) for run in runs] == [step.folder for step in group]
    assert [run.command.settings.imb_ratio for run in runs] == [10, 100, 100]
    group = beside(steps[1], steps, 3)
    assert [str(step) for step in group] == ["if100_seed0 los", "if100_seed0 los_released", "if100_seed0 ce"]
    assert children_of(group) == [[step] for step in group]


def test_at_once_does_stage_1s_first_and_what_follows_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real scripts: one child for both stage 1s, then at once what is re-trained on each, as it was planned."""
    children: list[str] = []
    run_child = paper_runs.run_child

    def run_and_note(command: tuple[str, ...], log: Path, call: Call) -> int | None:
        children.append(" ".join(command[1:]))
        return run_child(command, log, call)

    monkeypatch.setattr(paper_runs, "run_child", run_and_note)
    monkeypatch.setattr(paper_items, "RETRAINED", {"los": {"method": "los"}})
    where = ["--epochs", "1", "--out", str(tmp_path), "--device", "cpu"]
    main(["--quick", "--only", "quick_if100_seed0", "quick_if50_seed0", *where, *AT_ONCE])
    assert children[0].startswith("-m benchmarks.jobs.at_once") and children[0].count(" + ") == 1
    assert sorted(child.split("--")[-1] for child in children[1:]) == ["reuse", "reuse"]
    steps = make_steps({"epochs": 1, "out": str(tmp_path), "device": "cpu"}, quick=True)
    chosen = [step for step in steps if step.epochs and step.item in ("quick_if100_seed0", "quick_if50_seed0")]
    assert len(chosen) == 4 and all(step.is_finished() for step in chosen)


def test_ctrl_c_ends_all_children_of_a_group(tmp_path: Path) -> None:
    """They are asked to end, also those that other threads wait for, and Ctrl-C is raised."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    code = "import time; print('up', flush=True); time.sleep(20)"
    steps = [Step("a", name, (sys.executable, "-c", code), tmp_path / name, 1, tmp_path) for name in ("los", "ce")]
    with paper_runs.locked(tmp_path) as lock:
        call = Call(tmp_path, lock, time.monotonic() + 60, 5.0, 2)
        logs = [tmp_path / f"a_{step.name}.log" for step in steps]
        threading.Thread(target=interrupt_when, args=(logs,), daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            paper_runs.complete_all(children_of(steps), call, [])
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 20  # the children sleep as long
    assert all("KeyboardInterrupt" in log.read_text() for log in logs)


def test_what_failed_is_told_beside_what_ran_out_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Step("a", name, ("python",), tmp_path / name, 1, tmp_path) for name in ("late", "bad", "good")]

    def outcome(group: list[Step], call: Call) -> str | None:
        if group[0].name == "late":
            raise paper_runs.TimeUp("a late: time is up")
        return "a bad: no memory" if group[0].name == "bad" else None

    monkeypatch.setattr(paper_runs, "complete", outcome)
    errors: list[str] = []
    with paper_runs.locked(tmp_path) as lock, pytest.raises(paper_runs.TimeUp, match="a late"):
        paper_runs.complete_all(children_of(steps), Call(tmp_path, lock, 0.0, 0.0, 3), errors)
    assert errors == ["a bad: no memory"]


def interrupt_when(logs: list[Path]) -> None:
    """Interrupt the main thread once all logs say that their child is up."""
    while not all(log.is_file() and "up" in log.read_text().splitlines() for log in logs):
        time.sleep(0.05)
    _thread.interrupt_main()


# The command that trains several


def test_runs_of_one_command_are_named_by_their_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ["--dataset", "digits", "--width", "4", "--epochs", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert run("benchmarks/jobs/at_once", *common, "--imb_ratio", 10, "+", *common, "--seed", 1).status == 0
    folders = sorted(path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("metrics.json"))
    assert [folder.split("/")[:2] for folder in folders] == [
        ["digits_expIF10_resnet8", "seed0"],
        ["digits_expIF25_resnet8", "seed1"],
    ]
    outcome = run("benchmarks/jobs/at_once", *common, "+", *common)
    assert is_refusal(outcome, f"two of the runs are {tmp_path}/digits_expIF25_resnet8/seed0/", "leave one out")
    other = [*common, "--out", str(tmp_path / "other")]
    assert [run.label.split("/digits")[0] for run in make_runs([*common, "+", *other])] == [
        str(tmp_path),
        str(tmp_path / "other"),
    ]
    outcome = run("benchmarks/jobs/at_once", *common, "+", "--nonsense")
    assert outcome.status == 2 and "--nonsense" in outcome.err
