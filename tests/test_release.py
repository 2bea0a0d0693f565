"""Released weights are what their cards say, and a run makes such a file."""

from pathlib import Path

import pytest
import torch
from test_commands import folder_of, stage1, succeed

from models import build_model
from utils import release
from utils.checkpoint import load_checkpoint, load_weights
from utils.errors import UserError
from utils.files import read_json, sha256_file

RELEASED = sorted((Path(__file__).resolve().parent.parent / "checkpoints" / "released").glob("*.safetensors"))


def test_something_is_released() -> None:
    assert RELEASED


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_a_released_file_is_what_its_card_says(path: Path) -> None:
    card = read_json(path.with_suffix(".json"))
    assert card["sha256"] == sha256_file(path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.config["stage"] == card["stage"] and checkpoint.settings()["network"] == card["network"]
    model = build_model(card["network"], checkpoint.config["num_class"], width=card["width"])
    load_weights(model, checkpoint)  # every key is there and fits
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


def test_a_run_becomes_a_file_that_needs_no_other_flag(tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 1, "--width", 3)
    file = tmp_path / "small.safetensors"
    run = folder_of(tmp_path, "stage1_epochs1_width3")
    release.main([str(run), str(file)])
    state, original = load_checkpoint(file).state, load_checkpoint(run / "last.pth").state
    assert set(state) == set(original)
    for key, value in original.items():
        torch.testing.assert_close(state[key].to(value.dtype), value, rtol=1e-3, atol=1e-4)
    outcome = succeed("main_stage2", "--pretrained_pth", file, "--out", tmp_path, "--finetune_epoch", 1)
    assert "digits" in outcome.out and outcome.err == ""
    with pytest.raises(UserError, match="may exist"):
        release.main([str(run), str(file)])


def test_a_damaged_released_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(b"not a header")
    with pytest.raises(UserError, match=r"cut\.safetensors is damaged"):
        load_checkpoint(file)
