"""`--features` in the forms that people have: each trains, is evaluated and tabled."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tables.request
from tests.helpers import read, refused, succeed
from tools import release

SHORT = ("--finetune_epoch", 2)
NAMES = np.array(["rose", "daisy", "tulip"])
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables.request, "save_figure", lambda *_: None)


def flowers() -> Arrays:
    """Features of three classes of 16, 8 and 4 images, by this project's names."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, counts in (("train", [16, 8, 4]), ("test", [5, 5, 5])):
        labels = np.repeat(np.arange(3), counts)
        arrays[f"{split}_features"] = draw.normal(labels[:, None], 1, (len(labels), 6)).astype(np.float32)
        arrays[f"{split}_labels"] = labels
    return arrays


def in_arrays(arrays: Arrays) -> Path:
    Path("flowers").mkdir()
    for name, array in arrays.items():
        np.save(Path("flowers") / f"{name}.npy", array)
    return Path("flowers")


def by_other_names(arrays: Arrays) -> Path:
    names = {
        f"{s}_{kind}": f"{other}_{s}" for s in ("train", "test") for kind, other in (("features", "X"), ("labels", "y"))
    }
    np.savez("flowers.npz", **{names[name]: array for name, array in arrays.items()})
    return Path("flowers.npz")


def as_maps(arrays: Arrays) -> Path:
    np.savez("flowers.npz", **{n: a[:, :, None, None] if "features" in n else a[:, None] for n, a in arrays.items()})
    return Path("flowers.npz")


def in_a_dictionary(arrays: Arrays) -> Path:
    own = {
        s: {kind: torch.from_numpy(arrays[f"{s}_{kind}"]) for kind in ("features", "labels")} for s in ("train", "test")
    }
    torch.save(own, "flowers.pth")
    return Path("flowers.pth")


def in_a_table(arrays: Arrays) -> Path:
    pytest.importorskip("pyarrow")
    rows: dict[str, Any] = {"features": [], "label": [], "split": []}
    for split in ("train", "test"):
        rows["features"] += list(arrays[f"{split}_features"])
        rows["label"] += arrays[f"{split}_labels"].tolist()
        rows["split"] += [split] * len(arrays[f"{split}_labels"])
    pd.DataFrame(rows).to_parquet("flowers.parquet")
    return Path("flowers.parquet")


FORMS: dict[str, Callable[[Arrays], Path]] = {
    one.__name__: one for one in (in_arrays, by_other_names, as_maps, in_a_dictionary, in_a_table)
}


def only(pattern: str) -> Path:
    (found,) = Path("checkpoints").glob(f"own_flowers_naturalIF4_features/seed0/{pattern}")
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_and_is_evaluated(form: str) -> None:
    file = FORMS[form](flowers())
    succeed("main_stage2", "--features", file, *SHORT)
    run = only("stage2*")
    last = read(run / "metrics.json")["last"]["plain"]
    for source in (("--features", file, "--cur_stage", "stage2"), ("--pretrained_pth", run)):
        succeed("evaluate", *source, "--json", "report.json")
        assert read(Path("report.json"))["checkpoints"]["last"]["plain"] == last


def test_a_table_of_methods_on_a_folder() -> None:
    folder = in_arrays(flowers())
    succeed("reproduce", "unified", "--features", folder / "train_features.npy", "--methods", "ce", "los")
    succeed("reproduce", "unified", "--features", folder, "--methods", "ce", "los")
    assert len(pd.read_csv("results/unified_own_flowers_naturalIF4_features_ce-los.csv")) == 2


def test_the_names_of_labels_are_stored_with_the_run() -> None:
    arrays = {name: NAMES[array] if "labels" in name else array for name, array in flowers().items()}
    outcome = succeed("main_stage2", "--features", in_arrays(arrays), *SHORT)
    assert outcome.out.count("labels are texts, sorted by their characters: daisy -> 0, rose -> 1, tulip -> 2") == 1
    assert read(only("stage2*") / "config.json")["class_names"] == ["daisy", "rose", "tulip"]
    assert read(only("stage2*") / "metrics.json")["class_counts"] == [8, 16, 4]


def test_a_changed_part_is_never_taken_for_the_old_one() -> None:
    folder = in_arrays(flowers())
    succeed("main_stage2", "--features", folder, *SHORT)
    np.save(folder / "test_features.npy", flowers()["test_features"] + 1)
    message = refused("main_stage2", "--features", folder, *SHORT)
    assert "was trained on another file than flowers is now" in message
    assert "is not the backbone of" in refused("evaluate", "--pretrained_pth", only("stage2*"))
    shutil.rmtree(folder)
    assert "put that file there" in refused("evaluate", "--pretrained_pth", only("stage2*"))


@pytest.mark.parametrize("form", ["in_arrays", "in_a_dictionary"])
def test_a_classifier_is_released_beside_them(form: str) -> None:
    file = FORMS[form](flowers())
    succeed("main_stage2", "--features", file, *SHORT)
    release.main([str(only("stage2*")), "released.safetensors", "--backbone", str(file)])
    succeed("evaluate", "--pretrained_pth", "released.safetensors", "--json", "report.json")
    last = read(only("stage2*") / "metrics.json")["last"]["plain"]
    assert read(Path("report.json"))["checkpoints"]["released"]["plain"] == last


def test_packed_features_are_found_again_by_a_run() -> None:
    """A packed file is smaller than its arrays, which is no reason to refuse them."""
    arrays = {
        name: np.where(array < 9, array.round(), 0) if "features" in name else array
        for name, array in flowers().items()
    }
    arrays["train_features"] = np.hstack([arrays["train_features"], np.zeros((28, 2000), np.float32)])
    arrays["test_features"] = np.hstack([arrays["test_features"], np.zeros((15, 2000), np.float32)])
    np.savez_compressed("flowers.npz", **arrays)
    assert Path("flowers.npz").stat().st_size < arrays["train_features"].nbytes
    succeed("main_stage2", "--features", "flowers.npz", *SHORT)
    succeed("evaluate", "--pretrained_pth", only("stage2*"), "--json", "report.json")
    last = read(only("stage2*") / "metrics.json")["last"]["plain"]
    assert read(Path("report.json"))["checkpoints"]["last"]["plain"] == last
