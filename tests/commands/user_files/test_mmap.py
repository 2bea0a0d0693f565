"""`--mmap on`: runs and reports on features that stay in their file are those on features in memory, bit for bit."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import runs.feature_files.source
import tables.path
import tables.request
from tests.helpers import refused, run, succeed, weights, without_clocks

METHODS = ("los", "ncm", "offsets", "knn", "auto")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(classifier: bool, mirrored: bool = False) -> None:
    """Write features in half precision of five long-tailed classes, perhaps with a classifier."""
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, counts in (("train", [40, 20, 10, 5, 4]), ("test", [10] * 5)):
        labels = np.repeat(np.arange(5), counts)
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_features"] = (np.eye(5, 8)[labels] + draw.standard_normal((len(labels), 8))).astype(np.float16)
    if mirrored:
        arrays["test_features_mirrored"] = arrays["test_features"][:, ::-1].copy()
    if classifier:
        arrays |= {"fc.weight": np.eye(5, 8).astype(np.float32)}
    np.savez("mine.npz", **arrays)


def results(out: str) -> list[tuple[str, dict[str, Any], dict[str, torch.Tensor]]]:
    """What the runs below a folder measured, without times, and what they learned."""
    found = []
    for file in sorted(Path(out).rglob("metrics.json")):
        metrics = without_clocks(json.loads(file.read_text()))
        metrics.pop("stage1", None)  # its sha256 is that of a file with the clock's times in it
        found.append((file.parent.name, metrics, weights(file.parent / "last.pth")))
    return found


def assert_same(left: str, right: str) -> None:
    for (name, metrics, learned), (other, own, now) in zip(results(left), results(right), strict=True):
        assert name == other and metrics == own and learned.keys() == now.keys()
        assert all(torch.equal(learned[key], now[key]) for key in learned)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_a_classifier(method: str) -> None:
    write(classifier=False, mirrored=True)
    for mmap in ("on", "off"):
        flags = ("--features", "mine.npz", "--holdout", 0.3, "--method", method, "--out", mmap, "--mmap", mmap)
        epochs = ("--finetune_epoch", 2) if method == "los" else ()
        result = succeed("main_stage2", *flags, *epochs)
        assert ("features stay in the file" in result.out) == (mmap == "on")
    assert len(results("on")) == 2
    assert_same("on", "off")


def test_a_classifier_of_the_file_and_reports() -> None:
    write(classifier=True)
    reports = {}
    for mmap in ("on", "off"):
        where = ("--out", mmap, "--mmap", mmap)
        succeed("main_stage2", "--features", "mine.npz", "--finetune_epoch", 2, *where)
        succeed("evaluate", "--features", "mine.npz", "--cur_stage", "stage2", *where, "--json", f"{mmap}.json")
        (folder,) = Path(mmap).rglob("stage2*/metrics.json")
        succeed("evaluate", "--pretrained_pth", folder.parent, "--mmap", mmap, "--json", f"{mmap}_run.json")
        reports[mmap] = [json.loads(Path(f"{mmap}{end}.json").read_text()) for end in ("", "_run")]
    assert_same("on", "off")
    words = [re.sub(r'"sha256": "\w+"', "", json.dumps(reports[mmap])) for mmap in ("on", "off")]
    assert words[0].replace("on/", "off/") == words[1]


def test_it_is_of_features_alone() -> None:
    write(classifier=True)
    np.savez_compressed("packed.npz", **np.load("mine.npz"))
    assert "cannot stay in its file, being compressed" in refused(
        "main_stage2", "--features", "packed.npz", "--mmap", "on"
    )
    assert not Path("checkpoints").exists()
    result = run("main_stage1", "--dataset", "digits", "--network", "resnet8", "--epochs", 1, "--mmap", "on")
    assert "--mmap" in result.err


def test_tables_leave_large_features_in_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.request, "save_figure", lambda *_: None)
    monkeypatch.setattr(tables.path, "EPOCHS", 2)
    monkeypatch.setattr(tables.path, "LBFGS_STEPS", 2)
    write(classifier=True)
    size, found = runs.feature_files.source.memory_size, {}
    for where, memory in (("disk", lambda: 1.0), ("memory", size)):
        monkeypatch.setattr(runs.feature_files.source, "memory_size", memory)
        for table, more in (("path", ()), ("unified", ("--methods", "los", "ncm"))):
            flags = ("--features", "mine.npz", "--out", where, "--results", f"{where}_results", *more)
            out = succeed("reproduce", table, *flags).out
            assert ("features stay in the file" in out) == (where == "disk")
        found[where] = {file.name: pd.read_csv(file) for file in Path(f"{where}_results").glob("*.csv")}
    assert found["disk"].keys() == found["memory"].keys() and len(found["disk"]) > 1
    for name, rows in found["disk"].items():
        clocks = [column for column in rows if "second" in column or column == "command"]
        pd.testing.assert_frame_equal(rows.drop(columns=clocks), found["memory"][name].drop(columns=clocks))
