"""The benchmark of features on the digits' pixels; the other sets without their images; real weights where they are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import engine.choice.comparison
from benchmarks.jobs import efficientnet_lite0, extraction, feature_sets
from benchmarks.jobs.feature_sets import long_tailed_rows, superclass_of_class
from evaluation.csv_files import read_csv
from runs.shards import read_safetensors
from tests.helpers import read
from utils.errors import UserError

FEW = (("--method", "logit_adjust_posthoc", "--tau", "1"), ("--method", "ncm"))
WAYS = ["cross-entropy probe", "LOS", "tau-norm", "tau-norm, selected", "auto"]


def test_the_table_has_a_row_a_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.finish.draw_plots", lambda *_: None)
    monkeypatch.setattr(engine.choice.comparison, "TRIED", FEW)
    monkeypatch.setitem(extraction.WAYS, "tau-norm, selected", extraction.Way("tau_norm", True))
    folder, results = tmp_path / "made", tmp_path / "results"
    command = ["--sets", "pixels", "--folder", str(folder), "--results", str(results), "--ways", *WAYS]
    extraction.main(command)
    rows = read_csv(results / "extraction.csv")
    now, before = rows[rows["set"] == "pixels"], rows[rows["set"] == "before"]
    assert now["method"].tolist() == WAYS and now["command"].notna().all()
    assert now["all"].min() > 60 and (now["all_low"] < now["all"]).all() and (now["all"] < now["all_high"]).all()
    assert before["all"].between(10, 80).all() and set(before["method"]) < set(extraction.WAYS)
    card = read(folder / "pixels.json")
    assert set(now["train_images"]) == {card["rows"]["train_features"]} and set(now["test_images"]) == {500}
    auto = now.set_index("method").loc["auto"]
    assert auto["held_out"] > 80 and auto["cpu_seconds"] > 0 and isinstance(auto["chosen"], str)
    selected = now.set_index("method").loc["tau-norm, selected", "flags"]
    assert "--method tau_norm --tau" in selected
    text = (results / "extraction.md").read_text()
    gap = now["all"].iloc[-1] - now["all"].max()
    assert f"{gap:+.2f}" in text.partition("auto beside the best")[2]
    extraction.main([*command, "cosine LOS", "--finished"])  # from the features and runs that are there
    again = read_csv(results / "extraction.csv")
    same = [name for name in rows if name != "command"]
    pd.testing.assert_frame_equal(again[same], rows[same])


def test_auto_is_compared_with_the_best_of_its_own_set() -> None:
    rows, samples = [], []
    for title, numbers in (("a", {"LOS": 60, "auto": 55}), ("b", {"LOS": 40, "auto": 41})):
        for method, hits in numbers.items():
            correct = (np.arange(100) % 50 < hits / 2)[None]
            label = {"features": title, "method": method}
            samples.append(extraction.Sample(label, correct, np.array([50, 50]), np.array([200, 5]), title))
            rows.append({**label, "set": title, "all": 100 * correct.mean()})
    found = extraction.beside_best(pd.DataFrame(rows), samples).set_index("features")
    assert found["best"].tolist() == ["LOS", "auto"] and found["within 0.5"].tolist() == ["no", "yes"]
    assert float(found.loc["a", "auto - best"]) == pytest.approx(samples[1].correct.mean() * 100 - 60)
    assert float(found.loc["a", "low"]) < -4 < float(found.loc["a", "high"])
    shown = extraction.overview(pd.DataFrame(rows)).set_index("method")
    assert shown.loc["LOS", "a"] == "**60.0**" and "**" not in shown.loc["LOS", "b"]


# Sets of features


def test_superclasses_are_those_of_their_classes() -> None:
    fine = np.random.default_rng(0).permutation(np.arange(100).repeat(2)).tolist()
    found = superclass_of_class({"fine_labels": fine, "coarse_labels": [label // 5 for label in fine]})
    assert found.tolist() == [label // 5 for label in range(100)]
    with pytest.raises(UserError, match="lacks coarse_labels"):
        superclass_of_class({"fine_labels": fine})


def test_rows_fall_exponentially_from_the_largest_class_that_fits() -> None:
    labels = torch.arange(5).repeat_interleave(torch.tensor([10, 400, 90, 500, 60]))
    rows = long_tailed_rows(labels, 100.0)
    counts = torch.bincount(labels[rows])
    shares = 100.0 ** (-np.arange(5) / 4)
    order = [3, 1, 2, 4, 0]
    largest = min(np.array([500, 400, 90, 60, 10]) / shares)
    assert counts[order].tolist() == [max(1, round(largest * share)) for share in shares]
    assert torch.equal(rows, rows.sort().values)
    kept = rows[labels[rows] == 3] - (labels == 3).nonzero()[0]
    assert kept.tolist() == list(range(len(kept)))


def test_the_set_of_superclasses_is_cut_from_that_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = torch.arange(100).repeat(3)
    content = {
        "train_features": torch.arange(300.0)[:, None],
        "train_labels": fine,
        "test_features": torch.zeros(100, 1),
        "test_labels": torch.arange(100),
    }
    save_file(content, tmp_path / "lite0.safetensors")
    (tmp_path / "lite0.json").write_text("{}")
    pickled = {"fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist(), "coarse_label_names": ["x"] * 20}
    monkeypatch.setattr(feature_sets, "find_files", lambda *_: tmp_path)
    monkeypatch.setattr(feature_sets, "read_pickle", lambda _: pickled)
    made = read_safetensors(feature_sets.ensure("superclasses", tmp_path, "data"))[1]
    assert made["test_labels"].tolist() == [label // 5 for label in range(100)]
    rows = made["train_features"][:, 0].long()
    assert torch.equal(made["train_labels"], fine[rows] // 5)
    counts = torch.bincount(made["train_labels"])
    assert counts.min() == 1 and counts.max() == 15


def test_clusters_are_long_tailed_and_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sets, "CLUSTER_ROWS", 1000)
    made = read_safetensors(feature_sets.ensure("clusters", tmp_path, "data"))[1]
    counts = torch.bincount(made["train_labels"])
    assert abs(int(counts.sum()) - 1000) < 50 and counts.min() == 1 and len(counts) == 100 and counts[0] > 40
    assert made["train_features"].shape == (len(made["train_labels"]), 1280)
    assert set(extraction.USUAL) == set(feature_sets.SETS) - {"clusters"}


# Real weights


def test_weights_of_other_shapes_are_refused() -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert list(efficientnet_lite0.renamed({"x": torch.ones(2), "y": torch.ones(3)}, own)) == ["a", "b"]
    with pytest.raises(UserError, match="not those of timm's tf_efficientnet_lite0"):
        efficientnet_lite0.renamed({"x": torch.ones(2)}, own)


@pytest.mark.parametrize("size", [None, 64])
def test_real_weights_are_read(size: int | None) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip(efficientnet_lite0.MODULE, reason=f"{efficientnet_lite0.PACKAGE} is not installed")
    network, transform = efficientnet_lite0.load(size)
    pixels = transform(Image.new("RGB", (40, 30), (255, 0, 0)))
    side, middle = size or 224, (size or 224) // 2
    assert pixels.shape == (3, side, side) and pixels[:, middle, middle].tolist() == [1, -1, -1]
    with torch.no_grad():
        assert network.eval()(pixels[None]).shape == (1, 1280)
