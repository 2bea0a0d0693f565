"""The peers' loops train and classify, and their seconds are put beside ours. No time is compared."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.peers import side_by_side as peers
from benchmarks.peers.loops import PeerTask, run_peer
from benchmarks.peers.side_by_side import main, ratios
from utils.errors import UserError


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    generator = np.random.default_rng(0)
    for part, count in (("train", 9), ("test", 2)):
        for label in range(3):
            place = folder / "folder" / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(80 * label, 80 * label + 40, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes far apart: 60 and 30 rows of 8 numbers."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(3, 8, generator=generator)
    tensors = {}
    for part, count in (("train", 20), ("test", 10)):
        labels = torch.arange(3).repeat_interleave(count)
        tensors[f"{part}_features"] = centres[labels] + torch.randn(len(labels), 8, generator=generator)
        tensors[f"{part}_labels"] = labels
    file = tmp_path_factory.mktemp("features") / "far.safetensors"
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(("peer", "seen"), [("torchvision", 27), ("timm", 24)])
def test_a_loop_sees_its_images(peer: str, seen: int, trees: Path) -> None:
    """timm's drops the rest of an epoch that fills no batch."""
    task = PeerTask(peer, str(trees / "folder" / "train"), network="resnet8", batch_size=8, epochs=2)
    answer = run_peer(task)
    assert answer["images"] == seen and len(answer["seconds"]) == 2


@pytest.mark.parametrize("peer", ["scikit-learn", "dinov2"])
def test_a_linear_classifier_parts_what_is_far_apart(peer: str, features: Path) -> None:
    answer = run_peer(PeerTask(peer, str(features), batch_size=16))
    assert answer["accuracy"] == 100 and answer["images"] == 60


def test_ratios_are_of_the_same_round() -> None:
    rows = [("ours", 0, 2.0), ("ours", 1, 4.0), ("ours", 2, 2.0), ("timm", 0, 6.0), ("timm", 1, 8.0), ("timm", 2, 2.0)]
    table = pd.DataFrame([dict(zip(("side", "round", "seconds"), row, strict=True)) for row in rows])
    shown = ratios(table.assign(what="stage 1")).set_index("side")
    assert shown.loc["timm", ["seconds", "times", "lowest", "highest"]].tolist() == [6.0, 2.0, 1.0, 3.0]
    assert shown.loc["ours", "times"] == 1


def test_classifiers_leave_their_table(features: Path, tmp_path: Path) -> None:
    main(["--features", str(features), "--quick", "--results", str(tmp_path)])
    table = pd.read_csv(tmp_path / "peers.csv")
    assert table["side"].tolist() == [peers.OURS, *peers.CLASSIFIERS]
    assert (table["accuracy"] == 100).all() and (table["seconds"] > 0).all()


def test_what_is_missing_is_said(trees: Path) -> None:
    with pytest.raises(UserError, match="give --trees, --features or both"):
        main([])
    with pytest.raises(UserError, match="has no folder/train"):
        main(["--trees", str(trees / "folder")])
