"""The lists of the start-up benchmark have the size they shall have, and what it writes is what it measured."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.speed import startup, startup_lists
from benchmarks.speed.startup_lists import (
    CLASSES,
    MAX_IMAGES,
    MIN_IMAGES,
    NAMES,
    ROWS,
    class_sizes,
    home,
)
from datasets.on_disk.coco import read_json_list
from datasets.on_disk.text_lists import read_list
from utils.errors import UserError


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    startup_lists.write_lists(folder, 500, 20)
    return folder


def test_sizes_are_those_of_inaturalist() -> None:
    sizes = class_sizes(ROWS, CLASSES)
    assert (len(sizes), sizes.sum(), sizes.max(), sizes.min()) == (
        CLASSES,
        ROWS,
        MAX_IMAGES,
        MIN_IMAGES,
    )
    assert sizes[0] == MAX_IMAGES and sizes[-1] == MIN_IMAGES


@pytest.mark.parametrize(("rows", "classes"), [(500, 20), (2000, 100), (8, 2), (401, 100), (12345, 67)])
def test_sizes_of_a_rehearsal(rows: int, classes: int) -> None:
    sizes = class_sizes(rows, classes)
    assert len(sizes) == classes and sizes.sum() == rows and sizes.min() >= MIN_IMAGES


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="need at least 80 rows"):
        class_sizes(79, 20)


def test_all_forms_list_the_same_images(lists: Path) -> None:
    for part, rows in ((0, 500), (1, 60)):
        text = read_list(home(lists, "text") / NAMES["text"][part], lists)
        other, names = read_json_list(home(lists, "json") / NAMES["json"][part], lists)
        assert len(text) == rows and names == [str(label) for label in range(20)]
        assert (text.images == other.images).all() and (text.labels == other.labels).all()
        assert len(np.unique(text.images)) == rows
    train = read_list(home(lists, "text") / NAMES["text"][0], lists)
    assert (np.bincount(train.labels) == class_sizes(500, 20)).all()


def test_paths_are_as_long_as_the_real_ones() -> None:
    path = startup_lists.image_path(0, 7477)
    assert path.startswith("train_val2018/") and path.split("/")[2] == "7477"
    assert len(path.split("/")[3]) == len("3b60c9486db1d2ee875f11a669fbde4a.jpg")


@pytest.mark.parametrize("task", startup.TASKS)
def test_every_task_is_measured(task: str, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # slow beside the many objects of other tests
    answer = startup.measure_task(task, lists, 20)
    assert set(answer) == {"seconds", "cpu_seconds", "again_seconds", "adds_mb", "peak_mb"}
    assert answer["seconds"] > 0 and answer["again_seconds"] > 0


def test_memory_that_work_keeps_and_needs_is_told_apart(lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> torch.Tensor:
        return torch.ones(60_000_000).mul_(2)[:30_000_000].clone()  # 240 MB at first, 120 MB kept

    monkeypatch.setitem(startup.TASKS, "sum", lambda folder, classes: work)
    answer = startup.measure_task("sum", lists, 20)
    if np.isnan(answer["adds_mb"]) or answer["peak_mb"] < 1:
        pytest.skip("this system does not tell the peak of memory")
    assert 110 < answer["adds_mb"] < 150 and 340 < answer["peak_mb"] < 400


def test_the_start_of_stage_1_is_measured_in_a_process(lists: Path, tmp_path: Path) -> None:
    answer = startup.run_start("text", lists, 20)
    assert answer["seconds"] > answer["import_seconds"] + answer["data_seconds"] > 0


ANSWER = {"seconds": 0.5, "cpu_seconds": 0.25, "again_seconds": 0.125, "adds_mb": 40.0, "peak_mb": 400.0}


def test_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(startup, "run_task", lambda *_: ANSWER)
    monkeypatch.setattr(
        startup,
        "run_start",
        lambda *_: {"seconds": 6.0, "cpu_seconds": 5.0, "import_seconds": 4.0, "data_seconds": 1.5},
    )
    startup.main(["--rows", "500", "--classes", "20", "--rounds", "2", "--results", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "startup.csv")
    assert len(rows) == 2 * (len(startup.TASKS) + len(startup.STARTS)) and (rows["rows"] == 500).all()
    assert rows[["command", "device", "torch", "git_revision"]].notna().all().all()
    page = (tmp_path / "startup.md").read_text()
    assert "6.0 s (4.0 s importing, 1.5 s flags and data; 5.0 s of CPU), target 5 s MISSED" in page
    assert "| training list, text | 0.50 | 0.25 | 0.12 | 40 | 400 |" in page
    assert "training list, text: adds 40 MB, target 300 MB met; 400 MB while reading" in page
    assert "500 training images of 20 classes" in page
    assert "training list, JSON" in capsys.readouterr().out


def test_a_task_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'error: cannot read the list' >&2\nexit 2\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(UserError, match="the measurement of training list, text failed: cannot read the list"):
        startup.run_task("training list, text", tmp_path, 20)


def test_unknown_work_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    cases = {"fits none of": "--only zebra", "--rounds must be": "--rounds 0", "--help lists": "--row 9"}
    for words, flags in cases.items():
        with pytest.raises(UserError, match=words):
            startup.main([*flags.split(), "--results", str(tmp_path)])
    assert not tmp_path.exists()
