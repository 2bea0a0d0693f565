"""Features in files: what names them, whole or absent, and what is not theirs is refused."""

import copy
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.cache.dependencies import backbone_sha256
from engine.cache.store import FeatureStore
from models import build_model
from models.network import Network
from utils.errors import UserError

FEATURES = torch.arange(12.0).reshape(4, 3)


def network() -> Network:
    torch.manual_seed(0)
    return build_model("resnet8", 5, width=4)


def store(folder: Path, **more: Any) -> FeatureStore:
    return FeatureStore(folder / "kept", {"test": {"backbone": "a"}}, **more)


def blocks() -> Iterator[Tensor]:
    yield from FEATURES.split(3)


def test_a_backbone_is_known_by_its_own_numbers_alone() -> None:
    model = network()
    known = backbone_sha256(model)
    with torch.no_grad():
        model.fc.weight.zero_()
    model.fc = torch.nn.Linear(7, 3)
    counter = model.get_buffer("bn1.num_batches_tracked")
    counter += 5
    assert backbone_sha256(model) == known
    assert backbone_sha256(copy.deepcopy(model).to(memory_format=torch.channels_last)) == known  # type: ignore[call-overload]
    for name in model.state_dict():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.state_dict()[name].view(-1)[-1] += 1e-3
        assert backbone_sha256(other) != known, name


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_kept_is_found_again(mapped: bool, tmp_path: Path) -> None:
    kept = store(tmp_path, mapped=mapped)
    assert kept.find("test", "test", 4) is None
    assert torch.equal(kept.join("test", "test", blocks(), 4), FEATURES)
    found = kept.find("test", "test", 4)
    assert found is not None and torch.equal(found, FEATURES)
    assert kept.find("test", "test_mirrored", 4) is None
    other = FeatureStore(kept.folder, {"test": {"backbone": "b"}}, mapped)
    assert other.find("test", "test", 4) is None
    names = sorted(path.suffix for path in (tmp_path / "kept").iterdir())
    assert names == [".json", ".npy"]


@pytest.mark.parametrize(
    "content",
    [
        FEATURES[:3].numpy(),
        FEATURES.double().numpy(),
        FEATURES.reshape(4, 3, 1).numpy(),
        np.arange(4, dtype=np.float32),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_other_rows_than_were_asked_for_are_no_features(mapped: bool, content: np.ndarray, tmp_path: Path) -> None:
    kept = store(tmp_path, mapped=mapped)
    kept.join("test", "test", blocks(), 4)
    path = kept.path("test", "test")
    assert path is not None
    np.save(path, content)
    with pytest.raises(UserError, match="is damaged; delete it"):
        kept.find("test", "test", 4)


def test_a_report_writes_nothing(tmp_path: Path) -> None:
    read_only = store(tmp_path, read_only=True)
    assert torch.equal(read_only.join("test", "test", blocks(), 4), FEATURES)
    assert not (tmp_path / "kept").exists()
    store(tmp_path).join("test", "test", blocks(), 4)
    found = read_only.find("test", "test", 4)
    assert found is not None and torch.equal(found, FEATURES)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("place", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_writing_that_fails_leaves_no_features(
    error: BaseException, place: str, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(tmp_path, mapped=mapped)
    path = kept.path("test", "test")
    assert path is not None

    replace = os.replace

    def fails(*given: Any, **more: Any) -> None:
        names = [str(value) for value in given]
        if place == "os.fsync" and not path.with_suffix(".json").exists():
            return  # what features depend on is written first
        if place == "os.replace" and names[-1].endswith(".json"):
            return replace(*given, **more)
        raise error

    monkeypatch.setattr(place, fails)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        kept.join("test", "test", blocks(), 4)
    monkeypatch.undo()
    assert not list((tmp_path / "kept").glob("*.npy")) and not list((tmp_path / "kept").glob(".*.tmp"))
    assert kept.find("test", "test", 4) is None
    assert torch.equal(kept.join("test", "test", blocks(), 4), FEATURES)
