"""No flag is dropped: beside --resume, --reuse, --features, --pretrained_pth each is obeyed, refused or named.

Obeyed: the settings that the command computes with have its value, and so has the record of the run.
"""

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runs.run_folder import CONTROL
from runs.session import LoadedModel, Session
from settings.command_line import parse_command
from settings.declare import EVALUATE, STAGE1, STAGE2, Facet, Flag
from settings.fields import FLAGS, with_facet
from stages.linear_probe_start import start_from_features
from stages.session import open_model, open_session, settle_execution, start_anew
from stages.start import find_reported, find_start
from tests.helpers import folder_of, read, refused, stage1, stage2, succeed
from utils.errors import UserError

DIGITS = ("--dataset", "digits", "--width", "4")
ONE = {STAGE1: ("--epochs", "1"), STAGE2: ("--finetune_epoch", "1")}
NAMES = {STAGE1: "stage1_epochs1_width4", STAGE2: "stage2_los_epochs1_width4_finetune_epoch1"}
# Words that a flag without a list of choices can have.
WORDS = {"network": "resnet14", "views": "3"}


def other_value(flag: Flag, place: Path) -> Any:
    """A value that a flag can have and has not by default, from its declaration."""
    if flag.kind is bool:
        return True
    if flag.choices is not None:
        return next(choice for choice in flag.choices if choice not in (flag.default, "digits"))
    if flag.kind is str:
        return WORDS.get(flag.name, str(place / "elsewhere"))
    low, high = (flag.bounds.low, flag.bounds.high) if flag.bounds is not None else (0, 1e9)
    candidates = (1, 2, 3, 0.3, 0.7, 12, 50)
    return next(
        flag.kind(value)
        for value in candidates
        if low < value < high and flag.kind(value) == value and value != flag.default
    )


def words_of(flag: Flag, value: Any) -> list[str]:
    return [f"--{flag.name}"] if flag.kind is bool else [f"--{flag.name}", str(value)]


Open = Callable[[list[str]], LoadedModel]


def opened(script: str, find: Any) -> Open:
    """Return what opens a run as a command line says, and trains nothing."""
    return lambda words: open_session(parse_command(script, "", words), find)


def report(words: list[str]) -> LoadedModel:
    """Open what `evaluate.py` reports on."""
    command = parse_command(EVALUATE, "", words)
    execution = settle_execution(command)
    command, checkpoints = find_reported(command)
    first = next(iter(checkpoints.values()))
    return open_model(command, execution, first, first.path.parent)


def fate(flag: Flag, value: Any, line: list[str], opening: Open, capsys: pytest.CaptureFixture[str]) -> str:
    """Tell what becomes of a flag that is given beside others; "dropped" where nothing says."""
    threads = torch.get_num_threads()
    capsys.readouterr()
    try:
        loaded = opening([*line, *words_of(flag, value)])
    except UserError:
        return "refused"
    finally:
        torch.set_num_threads(threads)
    named = re.findall(r"^not used by .*?: (--.*)$", capsys.readouterr().err, re.MULTILINE)
    if f"--{flag.name}" in " ".join(named).split():
        return "named"
    recorded = value
    if isinstance(loaded, Session):
        compared = loaded.run.finished and flag.name in (*with_facet(Facet.PLACE), *with_facet(Facet.ADDRESS))
        compared |= flag.name in CONTROL or (loaded.run.finished and flag.name == "trust_pickle")
        recorded = value if compared else loaded.run.config["settings"][flag.name]
    return "obeyed" if getattr(loaded.settings, flag.name) == recorded == value else "dropped"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of either stage, and features; not to be changed."""
    out = tmp_path_factory.mktemp("runs")
    stage1(out, *DIGITS, *ONE[STAGE1])
    stage2(out, *DIGITS, *ONE[STAGE2])
    generator = np.random.default_rng(0)
    labels = np.arange(4).repeat((20, 10, 5, 4))
    split = {"train_features": generator.normal(size=(len(labels), 6)).astype(np.float32), "train_labels": labels}
    test = {name.replace("train", "test"): value for name, value in split.items()}
    np.savez(out / "features.npz", **split, **test)
    for script in (STAGE1, STAGE2):
        succeed(script, "--features", out / "features.npz", "--out", out / "on_features")
    return out


def of_run(out: Path, script: str) -> Path:
    return next((folder_of(out, "")).glob("stage1*" if script == STAGE1 else "stage2*"))


def modes(out: Path) -> dict[str, tuple[str, list[str], Open]]:
    """For each mode its script, the flags that are there already, and what opens it."""
    found: dict[str, tuple[str, list[str], Open]] = {}
    for script, find in ((STAGE1, start_anew), (STAGE2, find_start)):
        line = [*DIGITS, *ONE[script], "--out", str(out)]
        stage = script.removeprefix("main_")
        for flag in ("--resume", "--reuse"):
            found[f"{flag}, {stage}, finished"] = (script, [*line, flag], opened(script, find))
            found[f"{flag}, {stage}, interrupted"] = (script, [*line, flag], opened(script, find))
    on = ["--features", str(out / "features.npz"), "--out", str(out / "new")]
    found["--features, stage1"] = (STAGE1, on, opened(STAGE1, start_from_features))
    on = [*on[:-1], str(out / "on_features")]
    found["--features, stage2"] = (STAGE2, [*on, "--overwrite"], opened(STAGE2, find_start))
    found["--features, evaluate"] = (EVALUATE, on, report)
    path = ["--pretrained_pth", str(of_run(out, STAGE1)), "--out", str(out / "new")]
    found["--pretrained_pth, stage2"] = (STAGE2, path, opened(STAGE2, find_start))
    found["--pretrained_pth, evaluate"] = (EVALUATE, path, report)
    return found


OVER_A_RUN = itertools.product(("--resume", "--reuse"), ("stage1", "stage2"), ("finished", "interrupted"))
ON_FEATURES = ("--features, stage1", "--features, stage2", "--features, evaluate")
MODES = [*map(", ".join, OVER_A_RUN), *ON_FEATURES, "--pretrained_pth, stage2", "--pretrained_pth, evaluate"]


@pytest.mark.parametrize("mode", MODES)
def test_no_flag_is_dropped(mode: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fates = {}
    for number, (name, flag) in enumerate(FLAGS.items()):
        out = Path(shutil.copytree(runs, tmp_path / str(number), ignore=shutil.ignore_patterns("plots")))
        script, line, opening = modes(out)[mode]
        if "interrupted" in mode:
            (of_run(out, script) / "metrics.json").unlink()
        if f"--{name}" in line and name not in ("width", "out"):
            continue
        fates[name] = fate(flag, other_value(flag, tmp_path), line, opening, capsys)
        shutil.rmtree(out)
    assert [name for name, what in fates.items() if what == "dropped"] == []
    assert {"refused", "named"} <= set(fates.values())
    assert "obeyed" in fates.values()


# Beside a run on a folder of images, which is not named: the checkpoint says the data set when flags are already judged


SIZE = 12
OF_IMAGES = Facet.ON_DISK | Facet.PROFILE | Facet.PLACE | Facet.CONSTANTS | Facet.LOOKUP
CONSTANTS = {"mean": "cifar"}  # a name is of both


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stage 1 on two classes of images."""
    out = tmp_path_factory.mktemp("on_disk")
    for number, name in enumerate(("train/ant", "train/bee", "test/ant", "test/bee")):
        (out / "tree" / name).mkdir(parents=True)
        for image in range(3):
            pixels = np.full((SIZE, SIZE, 3), 60 * number + image, dtype=np.uint8)
            Image.fromarray(pixels).save(out / "tree" / name / f"{image}.png")
    small = ("--network", "resnet8", "--stem", "cifar", "--image_size", SIZE, "--resize", SIZE, "--width", 4)
    data = ("--dataset", "folder", "--data_dir", out / "tree", "--batch_size", 2, "--workers", 0)
    succeed(STAGE1, *data, *small, *ONE[STAGE1], "--out", out / "runs")
    return next((out / "runs").rglob("stage1*"))


@pytest.mark.parametrize("script", [EVALUATE, STAGE2])
def test_no_flag_is_dropped_beside_a_run_on_images_on_disk(
    script: str, on_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fates = {}
    opening = report if script == EVALUATE else opened(script, find_start)
    line = ["--pretrained_pth", str(on_disk), "--out", str(tmp_path / "new")]
    for name, flag in FLAGS.items():
        if name != "out" and flag.facets & OF_IMAGES and script in flag.read_by:
            value = CONSTANTS.get(name, other_value(flag, tmp_path))
            fates[name] = fate(flag, value, line, opening, capsys)
            shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert [name for name, what in fates.items() if what == "dropped"] == []
    assert {fates[name] for name in ("imb_type", "subset")} == {"named"} and fates["image_size"] == "refused"
    assert {fates[name] for name in ("mean", "mirror", "drop_empty_classes")} == {"obeyed"}
    assert script != EVALUATE or fates["weights"] == "named"


def test_flags_that_repeat_what_a_run_on_disk_has(on_disk: Path) -> None:
    """They are judged beside the run's other settings, not beside the defaults of its data set."""
    same = ("--resize", SIZE, "--image_size", SIZE, "--stem", "cifar", "--orientation", "exif")
    for flags in (same, same[:2], same[2:]):
        assert succeed(EVALUATE, "--pretrained_pth", on_disk, *flags).err == ""
    said = refused(EVALUATE, "--pretrained_pth", on_disk, "--orientation", "ignore")
    assert "was trained with --orientation exif, not ignore" in said
    assert "was trained without --bits; leave --bits 12 out" in refused(
        EVALUATE, "--pretrained_pth", on_disk, "--bits", 12
    )


def test_values_are_others_than_the_default(tmp_path: Path) -> None:
    for flag in FLAGS.values():
        value = other_value(flag, tmp_path)
        assert value != flag.default and isinstance(value, flag.kind)


# What used to be dropped


GIVEN = {"temperature": 3.0, "rebalance_tau": 0.5, "protocol": "released"}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_measured_is_what_the_resuming_command_asks_for(name: str, runs: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs, tmp_path / "runs"))
    line = [*DIGITS, *ONE[STAGE1], "--out", out, f"--{name}", GIVEN[name]]
    folder = of_run(out, STAGE1)
    said = refused(STAGE1, *line, "--reuse")
    assert f"--{name} {read(folder / 'config.json')['settings'][name]} there, {GIVEN[name]} now" in said
    succeed(STAGE1, *line, "--resume")
    metrics, config = read(folder / "metrics.json"), read(folder / "config.json")
    assert config["settings"][name] == GIVEN[name]
    stored = torch.load(folder / "last.pth", weights_only=True)
    if name == "temperature":
        assert metrics["calibration"]["temperature"] == stored["temperature"] == 3.0
    elif name == "rebalance_tau":
        assert metrics["rebalanced"]["tau"] == 0.5
    else:
        assert metrics["protocol"] == "released"
    before = read(of_run(runs, STAGE1) / "metrics.json")
    assert metrics["last"] == before["last"]
    assert "using the finished run" in succeed(STAGE1, *line, "--reuse").out


def test_a_finished_run_names_flags_of_no_effect(runs: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs, tmp_path / "runs"))
    outcome = succeed(STAGE1, *DIGITS, *ONE[STAGE1], "--out", out, "--reuse", "--workers", 2, "--tensorboard")
    said = f"not used by main_stage1 with the finished run {of_run(out, STAGE1)}: --workers --tensorboard\n"
    assert outcome.err == said
