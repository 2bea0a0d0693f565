"""The benchmark of extraction, on digits and a small backbone; the real weights where they are installed."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.jobs import efficientnet_lite0, extraction
from tests.helpers import read
from utils.errors import UserError

SMALL = """
import numpy as np
import torch
from torch import nn

def load():
    return nn.Flatten(), lambda image: torch.from_numpy(np.array(image)[:, :, 0]).float() / 64
"""


def test_the_table_has_a_row_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.setattr(extraction, "BACKBONE", tmp_path / "small.py")
    monkeypatch.setattr("engine.finish.draw_plots", lambda *_: None)
    file = tmp_path / "made" / "digits.safetensors"
    command = ["--dataset", "digits", "--imb_ratio", "10", "--file", str(file), "--results", str(tmp_path / "results")]
    extraction.main(command)
    rows = pd.read_csv(tmp_path / "results" / "extraction.csv")
    assert rows["classifier"].tolist() == ["linear probe", "los"]
    assert rows["width"].tolist() == [64, 64] and rows["command"].notna().all()
    assert rows["all"].min() > 70  # raw pixels of digits are nearly separable
    card = read(file.with_suffix(".json"))
    assert rows["train_images"].tolist() == [card["rows"]["train_features"]] * 2
    first = (tmp_path / "results" / "extraction.csv").read_text()
    extraction.main(command)  # from the features and runs that are there
    assert (tmp_path / "results" / "extraction.csv").read_text() == first


def test_weights_of_other_shapes_are_refused() -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert list(efficientnet_lite0.renamed({"x": torch.ones(2), "y": torch.ones(3)}, own)) == ["a", "b"]
    with pytest.raises(UserError, match="not those of timm's tf_efficientnet_lite0"):
        efficientnet_lite0.renamed({"x": torch.ones(2)}, own)


def test_real_weights_are_read() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip(efficientnet_lite0.MODULE, reason=f"{efficientnet_lite0.PACKAGE} is not installed")
    network, transform = efficientnet_lite0.load()
    pixels = transform(Image.new("RGB", (40, 30), (255, 0, 0)))
    assert pixels.shape == (3, 224, 224) and pixels[:, 112, 112].tolist() == [1, -1, -1]
    with torch.no_grad():
        assert network.eval()(pixels[None]).shape == (1, 1280)
