"""SIGKILL at chosen moments of real commands, and what the harness that draws the moments makes of it."""

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.robustness.kills.children import (
    being_written,
    meet,
    printed_epoch,
    saved_epoch,
    start,
    temporaries,
)
from benchmarks.robustness.kills.commands import AIMS, COMMANDS, MAX_KILLS_PER_RUN, plan
from benchmarks.robustness.kills.contents import content, contents, hashes, is_continued
from benchmarks.robustness.kills.faults import disk_case
from benchmarks.robustness.kills.report import is_good, kill_table
from datasets import Profile, load_dataset
from datasets.identity import file_hashes
from datasets.identity.content import with_identity
from datasets.identity.kept_hashes import kept_file, read_kept
from tests.helpers import assert_same_run, folder_of, image_tree, run, stage1, succeed
from utils.files import LOCK, write_json

EPOCHS = 8
LINE = (
    "--dataset",
    "digits",
    "--width",
    4,
    "--epochs",
    EPOCHS,
    "--eval_every",
    1,
    "--augment",
    "jitter",
    "--mixup",
    0.4,
)
NAME = f"stage1_epochs{EPOCHS}_width4_mixup0.4_augmentjitter"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    stage1(out, *LINE[2:])
    return folder_of(out, NAME)


def test_a_run_killed_at_a_save_goes_on_and_ends_the_same(whole: Path, tmp_path: Path) -> None:
    """All before the kill is trained in another process, with another order of its sets, and is the same to the bit."""
    process = start(["main_stage1.py", *map(str, LINE), "--save_every", "0", "--out", "runs"], tmp_path)
    at = being_written(tmp_path, AIMS["checkpoint"], 4)
    assert meet(process, at), (tmp_path / "err").read_text()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    folder = folder_of(tmp_path / "runs", NAME)
    assert set(contents(tmp_path)), "every file can be read"
    assert abs(printed_epoch(tmp_path) - saved_epoch(tmp_path)) <= 1 <= printed_epoch(tmp_path)
    assert not (folder / "metrics.json").exists() and (folder / LOCK).exists()
    stale = folder / ".last.pth.17-00000000.tmp"
    stale.write_bytes(b"half")
    assert run("main_stage1", *LINE, "--out", tmp_path / "runs").status == 2
    succeed("main_stage1", *LINE, "--out", tmp_path / "runs", "--resume")
    assert_same_run(folder, whole)
    assert not temporaries(tmp_path) and not (folder / LOCK).exists()


def test_killed_while_a_feature_file_is_written(tmp_path: Path) -> None:
    """A file of features that is half written is no file; the run that goes on makes it, and leaves no rest."""
    tree = image_tree(tmp_path / "images", 3, 60, 4, 16)
    line = ["--dataset", "folder", "--data_dir", tree, "--stem", "cifar", "--network", "resnet8", "--width", 4]
    line += ["--image_size", 12, "--resize", 12, "--out", tmp_path / "runs"]
    succeed("main_stage1", *line, "--epochs", 1)
    source = next((tmp_path / "runs").rglob("metrics.json")).parent
    line += ["--finetune_epoch", 3, "--views", 3, "--pretrained_pth", source]
    process = start(["main_stage2.py", *map(str, line)], tmp_path)
    assert meet(process, being_written(tmp_path, AIMS["features"], 1)), (tmp_path / "err").read_text()
    process.kill()
    process.wait()
    before = hashes(source)
    kept = {path: np.load(path) for path in (tmp_path / "runs").rglob("*.npy")}
    succeed("main_stage2", *line, "--resume")
    again = next((tmp_path / "runs").rglob("stage2*"))
    shutil.copytree(again, tmp_path / "first")
    assert all(np.array_equal(np.load(path), array) for path, array in kept.items())
    shutil.rmtree(tmp_path / "runs" / "features")
    succeed("main_stage2", *line, "--overwrite")
    assert_same_run(again, tmp_path / "first")
    assert not temporaries(tmp_path) and hashes(source) == before


def test_killed_while_images_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hashed and kept before the kill is not hashed again, and the identity is that of a fresh one."""
    tree = image_tree(tmp_path / "images", 2, 80, 4)
    line = ["-m", "benchmarks.robustness.kills.slow_disk", "main_stage1", "--dataset", "folder", "--data_dir", tree]
    process = start([*map(str, line), "--epochs", "1", "--out", "runs"], tmp_path)
    assert meet(process, being_written(tmp_path, AIMS["hashes"], 2)), (tmp_path / "err").read_text()
    process.kill()
    process.wait()
    kept = read_kept(kept_file(tmp_path / "runs" / "identity", tree))
    assert len(kept.paths) > 0 and contents(tmp_path)
    read: list[bytes] = []
    hash_file = file_hashes.hash_file

    def noted(path: bytes) -> Any:
        read.append(path)
        return hash_file(path)

    monkeypatch.setattr(file_hashes, "hash_file", noted)
    data = load_dataset("folder", Profile(imb_ratio=None), str(tree))
    again = with_identity(data, folder=tmp_path / "runs" / "identity").identity
    assert len(read) == len(data.train) + len(data.test) - len(kept.paths)
    assert again == with_identity(data).identity


# The harness


def test_a_damaged_file_is_noticed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "runs" / "run")
    sound = contents(tmp_path)
    assert len(sound) == len([path for path in whole.rglob("*") if path.is_file()])
    for path in (tmp_path / "runs" / "run").iterdir():
        if path.is_file() and path.suffix in (".pth", ".json"):
            held = path.read_bytes()
            path.write_bytes(held[: len(held) // 2])
            with pytest.raises(Exception, match=r".+"):
                contents(tmp_path)
            path.write_bytes(held)
    assert contents(tmp_path) == sound


def test_a_weight_that_differs_in_one_bit_is_noticed_and_a_clock_is_not(whole: Path, tmp_path: Path) -> None:
    held = torch.load(whole / "last.pth", weights_only=True)
    held["history"]["train_seconds"] += 1.0
    torch.save(held, tmp_path / "clock.pth")
    assert content(tmp_path / "clock.pth") == content(whole / "last.pth")
    weight = held["model"]["fc.bias"]
    weight[0] = torch.nextafter(weight[0], weight[0] + 1)
    torch.save(held, tmp_path / "bit.pth")
    assert content(tmp_path / "bit.pth") != content(whole / "last.pth")


def test_kept_hashes_are_compared_without_the_times_of_a_copy(tmp_path: Path) -> None:
    for name, time, digest in (("one", 1, 7), ("copy", 2, 7), ("other", 1, 8)):
        place = tmp_path / name / "runs" / "identity" / f"{time * 'ab'}{'0' * (32 - 2 * time)}.npz"
        place.parent.mkdir(parents=True)
        np.savez(place, paths=np.array([b"a"]), states=np.array([[time]]), digests=np.array([[digest]], np.uint8))
    one, copy, other = (contents(tmp_path / name) for name in ("one", "copy", "other"))
    assert one == copy != other
    place.write_bytes(place.read_bytes()[:50])
    with pytest.raises(Exception, match=r".+"):
        contents(tmp_path / "other")


def test_two_processes_are_resumed_by_two_and_by_others() -> None:
    several = [command for command in COMMANDS if command.processes > 1]
    assert {command.resumed_by for command in several} == {(1, 2, 3), (2,)}


def test_the_moments_are_those_of_the_seed() -> None:
    first, second, other = (plan(20, random.Random(seed)) for seed in (0, 0, 1))
    assert first == second != other
    assert all(1 <= len(moments) <= MAX_KILLS_PER_RUN for _, moments in first)
    assert {command.name for command, _ in first[: len(COMMANDS)]} == {command.name for command in COMMANDS}


GOOD: dict[str, Any] = {
    "signal": "SIGKILL",
    "status": -9,
    "readable": True,
    "resumed": True,
    "identical": True,
    "near": False,
    "left": False,
    "lost": 1,
    "proper": False,
    "state": "an epoch",
}


def test_a_run_whose_processes_changed_is_the_reference_until_then_and_near_it_afterwards() -> None:
    log = "runs/log.csv"
    reference = {log: "epoch,loss\n1,2.0\n2,1.5\n3,1.0\n", "runs/metrics.json": {}}
    other = reference | {log: "epoch,loss\n1,2.0\n2,1.51\n3,1.02\n"}
    assert is_continued(reference, reference, 3) and is_continued(other, reference, 1)
    assert not is_continued(other, reference, 2), "the second epoch was the reference's"
    far, short = ({log: f"epoch,loss\n1,2.0\n{rest}"} for rest in ("2,1.5\n3,1.2\n", "2,1.5\n"))
    assert not any(is_continued(reference | wrong, reference, 1) for wrong in (far, short))
    assert not is_continued({log: reference[log]}, reference, 1), "a file is missing"


def test_what_counts_as_harm() -> None:
    assert is_good(GOOD) and is_good(GOOD | {"identical": False, "near": True})
    harm = ({"readable": False}, {"resumed": False}, {"identical": False}, {"left": True}, {"lost": 2}, {"lost": None})
    assert not any(is_good(GOOD | each) for each in harm)
    asked = GOOD | {"signal": "SIGTERM", "status": 143, "proper": True, "lost": 0}
    assert is_good(asked)
    assert not any(is_good(asked | each) for each in ({"lost": 1}, {"proper": False}))


def test_the_table_adds_up() -> None:
    rows = [GOOD, GOOD | {"state": "a save", "lost": 0}, GOOD | {"identical": False}]
    table = kill_table(pd.DataFrame(rows)).set_index("killed")
    assert table.loc["all", "kills"] == 3 and table.loc["all", "identical to an undisturbed run"] == "2"
    assert table.loc["all", "near it, processes changed"] == "0"
    assert table.loc["a save", "epochs lost, at most"] == "0" and table.loc["all", "epochs lost, at most"] == "1"


def test_a_disk_that_changed_a_file_is_noticed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    write_json(kept / "metrics.json", {"all": 1})
    (tmp_path / "err").write_text("error: no room\n")
    before = hashes(kept)
    assert disk_case("full", 2, tmp_path, before, kept, 2)["good"]
    assert not disk_case("full", 1, tmp_path, before, kept, 2)["good"]
    (tmp_path / "err").write_text("Traceback\nerror: no room\n")
    assert not disk_case("full", 2, tmp_path, before, kept, 2)["good"]
    (tmp_path / "err").write_text("error: no room\n")
    os.truncate(kept / "metrics.json", 3)
    assert not disk_case("full", 2, tmp_path, before, kept, 2)["good"]
