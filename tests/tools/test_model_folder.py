"""Releases in the layout of Hugging Face's hub: its own readers load them, and so does this project."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from models import build_model
from runs.checkpoint import load_checkpoint
from runs.shards import UNFINISHED, card_of, read_safetensors, write_safetensors
from stages.prediction import make_predictor, read_trained
from tests.helpers import folder_of, read, stage1, stage2, succeed
from tools import release
from tools.publishing.model_folder import CONFIG, INDEX, MODEL_FILE, README
from utils.errors import UserError
from utils.files import write_json

RUN = "stage1_epochs1_width8"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 and a stage 2 on the digits, the stage 2 released whole and in shards."""
    out = tmp_path_factory.mktemp("source")
    stage1(out, "--epochs", 1, "--width", 8)
    stage2(out, "--pretrained_pth", folder_of(out, RUN), "--finetune_epoch", 1)
    for name, size in (("whole", "15"), ("shards", "0.03")):
        release.main([str(classified(out)), str(out / name / MODEL_FILE), "--part_mib", size])
    return out


def classified(out: Path) -> Path:
    return folder_of(out, "stage2_los_epochs1_width8_finetune_epoch1")


@pytest.mark.parametrize("name", ["whole", "shards"])
def test_readers_of_the_hub_load_it(source: Path, name: str) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    model = build_model("resnet8", 10, width=8)
    found = hub.load_torch_model(model, source / name)
    assert not found.missing_keys and not found.unexpected_keys
    original = load_checkpoint(classified(source) / "last.pth").state
    for key, value in model.state_dict().items():
        precise = key.startswith("fc.")
        torch.testing.assert_close(value, original[key], rtol=0 if precise else 1e-3, atol=0 if precise else 1e-4)


def test_the_index_names_the_shard_of_every_tensor(source: Path) -> None:
    index = read(source / "shards" / INDEX)
    state = load_checkpoint(source / "shards" / MODEL_FILE).state
    assert set(index["weight_map"]) == set(state)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    shards = {path.name for path in (source / "shards").glob("*.safetensors")}
    assert len(shards) > 2 and set(index["weight_map"].values()) == shards
    assert not (source / "whole" / INDEX).exists() and (source / "whole" / MODEL_FILE).is_file()


def test_a_tensor_larger_than_a_shard_is_not_cut(tmp_path: Path) -> None:
    """Other readers do not join rows."""
    tensors = {"a": torch.zeros(3), "b": torch.arange(30_000.0).view(300, 100), "c": torch.zeros(7)}
    paths = write_safetensors(tmp_path / MODEL_FILE, tensors, {"format": 1}, 0.05, uncut=True)
    held = []
    for path in paths:
        with safe_open(path, framework="pt") as opened:
            held.append(list(opened.keys()))
            assert opened.metadata()["format"] == "pt"
    assert held == [["a"], ["b"], ["c"]]
    assert torch.equal(read_safetensors(tmp_path / MODEL_FILE)[1]["b"], tensors["b"])


@pytest.mark.parametrize("name", ["whole", "shards"])
def test_this_project_reads_it_as_the_run(source: Path, name: str) -> None:
    succeed("evaluate", "--pretrained_pth", source / name / MODEL_FILE, "--json", source / f"{name}.json")
    metrics = read(classified(source) / "metrics.json")
    card = read(card_of(source / name / MODEL_FILE))
    assert read(source / f"{name}.json")["checkpoints"]["model"]["plain"]["all"] == card["measured"]["plain"]
    assert abs(card["measured"]["plain"] - metrics["last"]["plain"]["all"]) < 0.5
    images = torch.rand(3, 3, 8, 8)
    answers = []
    for path in (classified(source), source / name / MODEL_FILE):
        with torch.no_grad():
            answers.append(make_predictor(read_trained(path)).model.eval()(images))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-2, atol=1e-2)


def test_config_and_card_say_what_it_is(source: Path) -> None:
    config = read(source / "whole" / CONFIG)
    assert (config["architectures"], config["width"], config["num_labels"]) == (["resnet8"], 8, 10)
    assert config["id2label"]["3"] == "3" and config["image"]["size"] == 8
    front, text = (source / "whole" / README).read_text().split("---\n")[1:]
    metadata = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in front.splitlines())}
    assert metadata["license"] == "mit" and metadata["pipeline_tag"] == "image-classification"
    measured = read(card_of(source / "whole" / MODEL_FILE))["measured"]["plain"]
    [result] = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(measured, 2) and result["dataset"]["type"] == "digits"
    assert f"| plain | {measured:.2f} |" in text and "# resnet8 on digits, los" in text
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    card = hub.ModelCard.load(source / "whole" / README)
    assert card.data.license == "mit" and card.data.eval_results[0].metric_value == round(measured, 2)


def test_a_stage_1_is_released_so_too(source: Path, tmp_path: Path) -> None:
    release.main([str(folder_of(source, RUN)), str(tmp_path / MODEL_FILE)])
    assert "cross-entropy (stage 1)" in (tmp_path / README).read_text()
    succeed("main_stage2", "--pretrained_pth", tmp_path / MODEL_FILE, "--out", tmp_path / "o", "--finetune_epoch", 1)


@pytest.mark.parametrize("name", [INDEX, CONFIG, README])
def test_what_is_there_is_not_replaced(source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name} is there already; name a folder of its own"):
        release.main([str(classified(source)), str(tmp_path / MODEL_FILE)])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_what_a_stopped_release_left_is_replaced(source: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "model.json", UNFINISHED)
    for name in (INDEX, CONFIG, README):
        (tmp_path / name).write_text("half")
    release.main([str(classified(source)), str(tmp_path / MODEL_FILE)])
    assert {path.name for path in tmp_path.iterdir()} == {MODEL_FILE, "model.json", CONFIG, README}
    assert read(tmp_path / CONFIG)["num_labels"] == 10


def test_a_backbone_and_features_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds the whole network"):
        words = ["--backbone", str(source / "whole" / MODEL_FILE)]
        release.main([str(classified(source)), str(tmp_path / MODEL_FILE), *words])
    file = tmp_path / "f.safetensors"
    from tools.export_features import export_features

    export_features(folder_of(source, RUN), file)
    with pytest.raises(UserError, match="it holds no network; name the file something else"):
        release.main([str(file), str(tmp_path / "x" / MODEL_FILE)])
