"""Features of one backbone serve every stage 2 on it and evaluate.py after it, and nothing else."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import engine.frozen_features
import stages.data
from tests.helpers import ROOT, numbers, read, run, same, stage1, stage2, succeed, weights

LINE = ("--width", 4, "--device", "cpu", "--holdout", 0.2)
SPLITS = {"test", "train", "holdout"}  # digits have no mirror images
VIEWS = {f"train_seed4294967296_view{view}" for view in range(2)}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1."""
    out = tmp_path_factory.mktemp("begun")
    stage1(out, *LINE, "--epochs", 3)
    return out


@pytest.fixture
def out(begun: Path, tmp_path: Path) -> Path:
    """A place of its own for the stages 2 of a test; they start from the same stage 1."""
    return tmp_path / "runs"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names of the features that are computed from here on."""
    names: set[str] = set()
    predict_blocks = engine.frozen_features.predict_blocks

    def noted(*arguments: Any, **options: Any) -> Iterator[Tensor]:
        names.add(options["message"].removeprefix("features of "))
        return predict_blocks(*arguments, **options)

    monkeypatch.setattr(engine.frozen_features, "predict_blocks", noted)
    yield names


def retrain(begun: Path, out: Path, *flags: object) -> Path:
    """Run a stage 2 on the stage 1 and return its folder."""
    (last,) = begun.rglob("stage1*/last.pth")
    stage2(out, "--device", "cpu", "--pretrained_pth", last, "--views", 2, *flags)
    return max(out.rglob("stage2*/metrics.json"), key=lambda path: path.stat().st_mtime_ns).parent


def report(folder: Path, *flags: object) -> dict[str, Any]:
    """What evaluate.py says of a run."""
    file = folder.parent / "report.json"
    succeed("evaluate", "--device", "cpu", "--pretrained_pth", folder, "--json", file, *flags)
    return read(file)["checkpoints"]


def test_the_second_method_computes_no_features(begun: Path, out: Path, computed: set[str], tmp_path: Path) -> None:
    retrain(begun, out)
    assert computed == SPLITS | VIEWS
    computed.clear()
    reused = retrain(begun, out, "--method", "balanced_softmax")
    assert computed == set()
    anew = retrain(begun, tmp_path / "elsewhere", "--method", "balanced_softmax")
    assert computed == SPLITS | VIEWS
    assert same(weights(reused / "last.pth"), weights(anew / "last.pth"))
    found, expected = read(reused / "metrics.json"), read(anew / "metrics.json")
    for name in ("last", "best", "holdout", "calibration", "logits", "train"):
        assert found[name] == expected[name], name


def test_more_views_are_added_to_those_that_are_there(begun: Path, out: Path, computed: set[str]) -> None:
    retrain(begun, out, "--views", 1)
    computed.clear()
    retrain(begun, out)
    assert computed == {"train_seed4294967296_view1"}
    computed.clear()
    retrain(begun, out, "--seed", 1, "--stage1_seed", 0)
    assert computed == {f"train_seed4294967297_view{view}" for view in range(2)}


def test_evaluate_reads_what_stage_2_has_kept(begun: Path, out: Path, computed: set[str], tmp_path: Path) -> None:
    folder = retrain(begun, out)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    computed.clear()
    found = report(folder)
    assert computed == set() and set(found) == {"last", "best"}
    moved = tmp_path / "moved" / "run"
    moved.parent.mkdir()
    folder.rename(moved)
    expected = report(moved)
    assert computed == SPLITS
    assert found == expected and list(numbers(found))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == files
    assert not (tmp_path / "moved" / "features").exists()


@pytest.mark.parametrize(
    ("flags", "anew"),
    [
        (("--amp", "bf16"), SPLITS),
        (("--mean", "0.4", "--std", "0.3"), SPLITS),
        (("--mirror", "on"), SPLITS | {"test_mirrored"}),
    ],
)
def test_other_arithmetic_and_other_pixels_have_features_of_their_own(
    flags: tuple[object, ...], anew: set[str], begun: Path, out: Path, computed: set[str]
) -> None:
    folder = retrain(begun, out)
    computed.clear()
    report(folder, *flags)
    assert computed == anew


def test_features_of_other_code_are_computed_again(
    begun: Path, out: Path, computed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    retrain(begun, out)
    computed.clear()
    monkeypatch.setattr("engine.cache.dependencies.FORMAT", 10**6)
    (last,) = begun.rglob("stage1*/last.pth")
    line = ("main_stage2", "--dataset", "digits", "--device", "cpu", "--pretrained_pth", last, "--method", "ce")
    told = succeed(*line, "--out", out).out
    assert computed >= SPLITS and "computed anew, since these are of another version of this project" in told


def test_features_of_before_the_code_had_a_version_are_named_so(begun: Path, out: Path, computed: set[str]) -> None:
    retrain(begun, out)
    for path in (out / "features").rglob("test_*.json"):
        record = read(path)
        del record["format"]
        path.with_name("test_" + "0" * 16 + ".json").write_text(json.dumps(record))
        path.unlink()
        path.with_suffix(".npy").unlink()
    computed.clear()
    (last,) = begun.rglob("stage1*/last.pth")
    line = ("main_stage2", "--dataset", "digits", "--device", "cpu", "--pretrained_pth", last, "--method", "ce")
    told = succeed(*line, "--out", out).out
    assert "features of test: computed anew, since these are of another version of this project" in told


def test_other_weights_have_features_of_their_own(begun: Path, out: Path, computed: set[str]) -> None:
    """Batch norm that moves makes another backbone, and so does one number of it."""
    retrain(begun, out)
    moved = retrain(begun, out, "--bn_mode", "train", "--views", "fresh", "--method", "ce")
    computed.clear()
    report(moved)
    assert computed == SPLITS
    folder = retrain(begun, out, "--method", "balanced_softmax")
    content = torch.load(folder / "last.pth", weights_only=True)
    content["model"]["conv1.weight"][0, 0, 0, 0] += 0.5
    torch.save(content, folder / "last.pth")
    computed.clear()
    found = report(folder)
    assert computed == SPLITS  # those of best.pth are there
    assert found["last"]["plain"] != found["best"]["plain"]


def test_a_changed_test_image_is_seen(
    begun: Path, out: Path, computed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = retrain(begun, out)
    computed.clear()
    original = stages.data.load_dataset

    def changed(*given: Any, **more: Any) -> Any:
        data = original(*given, **more)
        data.test.images[3] = 255 - data.test.images[3]
        return data

    monkeypatch.setattr(stages.data, "load_dataset", changed)
    report(folder)
    assert computed == {"test"}


def test_a_damaged_file_is_named_and_may_be_deleted(begun: Path, out: Path) -> None:
    folder = retrain(begun, out)
    (file,) = out.rglob("test_????????????????.npy")
    whole = np.load(file)
    np.save(file, whole[:-1])
    outcome = run("evaluate", "--device", "cpu", "--pretrained_pth", folder)
    assert outcome.status == 2 and f"{file} is damaged; delete it" in outcome.err and outcome.err.count("\n") == 1
    file.unlink()
    retrain(begun, out, "--method", "ce")
    assert np.array_equal(np.load(file), whole)


def test_two_at_once_leave_whole_files(begun: Path, out: Path, tmp_path: Path) -> None:
    (last,) = begun.rglob("stage1*/last.pth")
    words = ("--dataset", "digits", "--device", "cpu", "--views", 2, "--finetune_epoch", 2, "--pretrained_pth", last)
    children = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "main_stage2.py"), *map(str, words), "--out", str(out), "--method", method],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for method in ("los", "ce")
    ]
    for child in children:
        _, err = child.communicate()
        assert child.returncode == 0, err
    alone = tmp_path / "alone"
    retrain(begun, alone, "--method", "ce")
    files = {path.name: path for path in out.rglob("*.npy")}
    expected = {path.name: path for path in alone.rglob("*.npy")}
    assert files.keys() == expected.keys() and len(files) == len(SPLITS | VIEWS)
    assert all(np.array_equal(np.load(files[name]), np.load(expected[name])) for name in files)
    assert not list(out.rglob("*.tmp"))
