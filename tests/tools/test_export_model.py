"""One file of a run: its outputs in onnxruntime and PyTorch, what it says, predictions from it, refusals."""

import csv
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import stages.exported_model
from datasets.long_tail import Augmentation
from models import build_model
from models.heads import HEADS, build_head
from models.neighbours import Neighbours
from stages.exported_model import (
    HEADER,
    ONNX,
    PROGRAM,
    ServedNetwork,
    closed_form,
    export_bytes,
    largest_difference,
    onnx_function,
)
from tests.helpers import ROOT, Outcome, run, succeed
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

NAMES = ["blue, deep", "green", "red"]
CONSTANTS = Augmentation(0, True, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
SMALL = ("--network", "resnet8", "--stem", "cifar", "--width", 4, "--image_size", 16, "--resize", 18)


def picture(channel: int, number: int) -> Image.Image:
    """A noisy image in which one colour is strong."""
    pixels = np.random.default_rng(10 * channel + number).integers(0, 60, (40, 40, 3))
    pixels[..., channel] += 180
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes that colour alone tells."""
    folder = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(NAMES):
            (folder / part / name).mkdir(parents=True)
            for number in range(count - 2 * label if part == "train" else count):
                picture(2 - label, number + 100 * (part == "test")).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def stage2_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LOS that held images out, with a temperature."""
    out = tmp_path_factory.mktemp("runs")
    data = ("--dataset", "folder", "--data_dir", photos, *SMALL, "--workers", 0, "--out", out, "--holdout", 0.25)
    succeed("main_stage1", *data, "--epochs", 1, "--augment", "crop")
    succeed("main_stage2", *data, "--method", "los", "--finetune_epoch", 1, "--temperature", 1.5)
    (path,) = (path.parent for path in out.rglob("metrics.json") if path.parent.name.startswith("stage2"))
    return path


def export(*arguments: object) -> Outcome:
    return run("tools/export_model", *arguments)


@pytest.fixture(scope="module")
def exported(stage2_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run as both kinds of file."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    files = {suffix: folder / f"model{suffix}" for suffix in (ONNX, PROGRAM)}
    for file in files.values():
        outcome = export(stage2_run, file)
        assert outcome.status == 0, outcome.err
        (difference,) = re.findall(r"outputs differ by at most (\S+)", outcome.out)
        assert float(difference) <= 1e-5 and f"written: {file}" in outcome.out
        assert "outputs: logits and probabilities (batch, 3)" in outcome.out and "temperature: 1.5" in outcome.out
        assert [path.name for path in folder.iterdir() if "tmp" in path.name] == []
    return files


def network_of(stage2_run: Path) -> nn.Module:
    """The run's network, built by hand."""
    content = torch.load(stage2_run / "last.pth", weights_only=True)
    model = build_model("resnet8", 3, "cifar", 4)
    model.load_state_dict(content["model"])
    return model.eval()


def images_of(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnxruntime_computes_what_the_network_does(exported: dict[str, Path], stage2_run: Path, count: int) -> None:
    """With onnxruntime alone, as a user has it, against the network and the constants of the run's configuration."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(exported[ONNX], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [
        ("logits", ["batch", 3]),
        ("probabilities", ["batch", 3]),
    ]
    images = images_of(count)
    logits, probabilities = session.run(None, {"images": images.numpy()})
    constants = torch.load(stage2_run / "last.pth", weights_only=True)["config"]["images"]
    mean, std = (torch.tensor(constants[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = network_of(stage2_run)((images - mean) / std)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(probabilities, (expected / 1.5).softmax(dim=1), atol=1e-5)


def test_an_exported_program_computes_the_same(exported: dict[str, Path], stage2_run: Path) -> None:
    texts = {"metadata.json": ""}
    program = torch.export.load(str(exported[PROGRAM]), extra_files=texts).module()
    images = images_of(5)
    for found, expected in zip(program(images), onnx_function(exported[ONNX].read_bytes())(images), strict=True):
        np.testing.assert_allclose(found.detach(), expected, atol=1e-5, rtol=1e-5)
    assert json.loads(json.loads(texts["metadata.json"])["class_names"]) == NAMES


def test_the_metadata_say_what_a_user_needs(exported: dict[str, Path], stage2_run: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported[ONNX])
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["class_names"]) == NAMES and said["temperature"] == "1.5"
    assert (said["size"], said["resize"], said["network"], said["method"]) == ("16", "18", "resnet8", "los")
    config = torch.load(stage2_run / "last.pth", weights_only=True)["config"]
    assert json.loads(said["mean"]) == config["images"]["mean"] and json.loads(said["std"]) == config["images"]["std"]
    assert sum(json.loads(said["prior"])["shares"]) == pytest.approx(1)
    assert [path.name for path in exported[ONNX].parent.iterdir() if path.name.startswith("model")] in (
        ["model.onnx", "model.pt2"],
        ["model.pt2", "model.onnx"],
    ), "nothing lies beside the file"


# Predictions


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def predicted(path: Path, folder: Path, *more: object) -> list[dict[str, str]]:
    """Predictions of predict.py for the images of a folder."""
    file = folder.parent / "predictions.csv"
    where = ("--images", folder, "--csv", file, "--overwrite", "--workers", 0)
    succeed("predict", "--pretrained_pth", path, *where, *more)
    return rows_of(file)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (ONNX, ()),
        (ONNX, ("--top", 3)),
        (ONNX, ("--flip",)),
        (ONNX, ("--temperature", 3)),
        (ONNX, ("--coverage", 0.9)),
        (PROGRAM, ("--flip", "--top", 2)),
    ],
)
def test_predictions_are_those_of_the_run(
    exported: dict[str, Path], stage2_run: Path, photos: Path, kind: str, more: tuple[object, ...]
) -> None:
    trust = ("--trust_pickle",) if kind == PROGRAM else ()
    found = predicted(exported[kind], photos / "test", *more, *trust)
    same_rows(found, predicted(stage2_run, photos / "test", *more))
    assert len(found) >= len([path for path in (photos / "test").rglob("*") if path.is_file()]) > 0


def same_rows(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    assert [{**row, "probability": ""} for row in found] == [{**row, "probability": ""} for row in expected]
    numbers = ([float(row["probability"]) for row in rows] for rows in (found, expected))
    np.testing.assert_allclose(next(numbers), next(numbers), atol=1e-5)


def test_a_test_prior_is_in_the_probabilities(stage2_run: Path, photos: Path, tmp_path: Path) -> None:
    shares = tmp_path / "shares.txt"
    shares.write_text("0.2\n0.8\n0\n")
    file = tmp_path / "model.pt2"
    outcome = export(stage2_run, file, "--test_prior", shares)
    assert outcome.status == 0 and "test prior: " in outcome.out, outcome.err
    expected = predicted(stage2_run, photos / "test", "--test_prior", shares)
    same_rows(predicted(file, photos / "test", "--trust_pickle"), expected)
    assert all(row["class"] != "red" for row in expected)
    _, probabilities = torch.export.load(str(file)).module()(images_of(3))
    assert (probabilities[:, 2] == 0).all() and (probabilities[:, 1] > 0).all()
    balanced = predicted(stage2_run, photos / "test", "--test_prior", "balanced")
    same_rows(predicted(file, photos / "test", "--trust_pickle", "--test_prior", "balanced"), balanced)


def test_the_page_shows_how_a_file_is_used(
    exported: dict[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of docs/images.md, with nothing of this project, find the classes that predict.py finds."""
    text = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert "onnxruntime" in code
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers.onnx").write_bytes(exported[ONNX].read_bytes())
    (tmp_path / "photo.jpg").write_bytes(b"")
    for name in NAMES:
        path = photos / "test" / name / "0.png"
        (tmp_path / "photo.jpg").write_bytes(path.read_bytes())
        (tmp_path / "page.py").write_text(code)
        found = runpy.run_path(str(tmp_path / "page.py"))["name"]
        (row,) = (row for row in predicted(exported[ONNX], photos / "test") if row["file"] == f"{name}/0.png")
        assert found == row["class"]


# Heads


def served_head(name: str) -> tuple[ServedNetwork, nn.Linear]:
    """A head with numbers of its own on a network that exports in no time: pixels stand in the place of features."""
    torch.manual_seed(0)
    head = build_head(name, nn.Linear(12, 5), [50, 30, 20, 10, 5])
    for parameter in head.parameters():
        nn.init.normal_(parameter)

    class Pixels(nn.Module):
        fc = head

        def features(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    network: Any = Pixels()
    return ServedNetwork(network, CONSTANTS, 2.0, torch.tensor([0.0, 0.1, 0.2, -torch.inf, 0.4])), head


@pytest.mark.parametrize("name", [name for name in HEADS if name != "neighbours"])
def test_every_head_of_a_closed_form_is_exported(name: str) -> None:
    served, head = served_head(name)
    content = export_bytes(served, PROGRAM, 2, {})
    assert largest_difference(content, PROGRAM, served, 2) <= 1e-5
    images = torch.rand(3, 3, 2, 2)
    normalised = (images - torch.tensor(CONSTANTS.mean)[:, None, None]) / torch.tensor(CONSTANTS.std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(served(images)[0], head(normalised.flatten(1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["cosine", "disalign"])
def test_heads_beyond_linear_ones_are_the_same_in_onnxruntime(name: str) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    served, _ = served_head(name)
    assert largest_difference(export_bytes(served, ONNX, 2, {}), ONNX, served, 2) <= 1e-5


def test_neighbours_have_no_closed_form() -> None:
    with pytest.raises(UserError, match=r"--method knn has no closed form.*export a run of --method ncm") as caught:
        closed_form(Neighbours(nn.Linear(4, 3)))
    assert "\n" not in str(caught.value)


class Strange(nn.Linear):
    """A classifier whose forward pass depends on values, which no exporter can follow."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if float(input.sum()) > 0 else -super().forward(input)


def test_a_classifier_that_pytorch_cannot_export_is_one_line() -> None:
    model = build_model("resnet8", 3, "cifar", 2)
    model.fc = Strange(8, 3)
    with pytest.raises(UserError, match=r"PyTorch cannot export this network or its classifier to \.pt2: ") as caught:
        export_bytes(ServedNetwork(model, CONSTANTS, 1.0, torch.zeros(3)), PROGRAM, 8, {})
    assert "\n" not in str(caught.value)


# Refusals


@pytest.fixture
def refusing(stage2_run: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing may have been written."""
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def refused(*arguments: object) -> str:
    """The one line with which the tool ends."""
    outcome = export(*arguments)
    assert outcome.status == 2, outcome
    assert outcome.err.splitlines()[-1].startswith("error: ") and "Traceback" not in outcome.err
    return outcome.err.splitlines()[-1]


def test_wrong_commands_are_refused_in_a_line(stage2_run: Path, refusing: Path) -> None:
    assert "must end in .onnx or .pt2" in refused(stage2_run, refusing / "model.pb")
    assert "nothing" in refused(refusing / "nothing", refusing / "a.pt2")
    assert "temperature must be" in refused(stage2_run, refusing / "a.pt2", "--temperature", 0)
    assert "--test_prior" in refused(stage2_run, refusing / "a.pt2", "--test_prior", refusing / "none.csv")


def test_a_file_that_is_there_stays(stage2_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_text("mine")
    assert "is there already" in refused(stage2_run, tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").read_text() == "mine"


def test_an_exported_model_is_no_source(exported: dict[str, Path], refusing: Path) -> None:
    assert "name the run that it was made of" in refused(exported[ONNX], refusing / "a.pt2")


def test_missing_packages_are_one_line(
    stage2_run: Path, exported: dict[str, Path], photos: Path, refusing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name.startswith("onnx") else name)
    line = refused(stage2_run, refusing / "a.onnx")
    assert line == "error: to write .onnx needs onnx and onnxscript: pip install onnx onnxscript"
    outcome = run("predict", "--pretrained_pth", exported[ONNX], "--images", photos / "test", "--csv", "-")
    assert outcome.status == 2 and "to read .onnx needs onnxruntime: pip install onnxruntime" in outcome.err


def test_outputs_that_differ_are_not_written(stage2_run: Path, refusing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.exported_model.largest_difference", lambda *_: 2e-5)
    line = refused(stage2_run, refusing / "a.pt2")
    assert "the exported outputs differ from the network's by 2.0e-05: nothing is written" in line


def test_a_network_that_is_too_large_for_onnx_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.exported_model, "MOST_BYTES", 1000)
    served = ServedNetwork(build_model("resnet8", 3, "cifar", 2), CONSTANTS, 1.0, torch.zeros(3))
    with pytest.raises(UserError, match=r"an ONNX file holds 2 GiB: write a \.pt2 file"):
        export_bytes(served, ONNX, 8, {})


def test_features_hold_no_network(tmp_path: Path) -> None:
    arrays = {f"{split}_features": np.random.default_rng(0).normal(size=(9, 4)) for split in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays, train_labels=np.arange(9) % 3, test_labels=np.arange(9) % 3)
    succeed("main_stage2", "--features", tmp_path / "mine.npz", "--out", tmp_path / "out", "--finetune_epoch", 1)
    (folder,) = (path.parent for path in (tmp_path / "out").rglob("metrics.json") if "stage2" in path.parent.name)
    assert "was trained on features: it holds no network that could look at images" in refused(
        folder, tmp_path / "a.onnx"
    )
    assert not (tmp_path / "a.onnx").exists()


# Strangers' files


def not_read(path: Path, photos: Path, *more: object) -> str:
    outcome = run("predict", "--pretrained_pth", path, "--images", photos / "test", "--csv", "-", "--workers", 0, *more)
    assert outcome.status == 2 and "Traceback" not in outcome.err, outcome
    return outcome.err.splitlines()[-1]


def test_a_program_is_read_where_it_is_trusted(exported: dict[str, Path], photos: Path) -> None:
    assert "if you trust it, --trust_pickle" in not_read(exported[PROGRAM], photos)


@pytest.mark.parametrize("kind", [ONNX, PROGRAM])
def test_files_that_are_damaged_or_others_are_refused(
    exported: dict[str, Path], photos: Path, kind: str, tmp_path: Path
) -> None:
    content = exported[kind].read_bytes()
    for number, wrong in enumerate((b"", b"no model", content[: len(content) // 2])):
        file = tmp_path / f"{number}{kind}"
        file.write_bytes(wrong)
        assert "is no model of python -m tools.export_model, or is damaged" in not_read(file, photos, "--trust_pickle")
    assert "cannot read" in not_read(tmp_path / f"missing{kind}", photos, "--trust_pickle")


def test_another_onnx_model_is_refused(photos: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported[ONNX])
    wrong = ((HEADER, "{}"), (HEADER, "[1]"), ("class_names", '["one"]'), ("class_names", "red"))
    for name, value in wrong:
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        for entry in changed.metadata_props:
            if entry.key == name:
                entry.value = value
        onnx.save(changed, tmp_path / "changed.onnx")
        assert "damaged" in not_read(tmp_path / "changed.onnx", photos)


@pytest.mark.parametrize("flags", [("--device", "cuda"), ("--amp", "bf16")])
def test_an_exported_model_runs_on_the_cpu(exported: dict[str, Path], photos: Path, flags: tuple[str, str]) -> None:
    assert f"{' '.join(flags)}: " in not_read(exported[ONNX], photos, *flags)
