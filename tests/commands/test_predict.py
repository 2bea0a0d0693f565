"""Class and probability for anyone's images, from runs that the two stages have made of a small folder of images."""

import csv
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

import predict
from datasets import load_dataset
from datasets.cifar import AUGMENTATION as CIFAR
from datasets.long_tail import Profile
from datasets.on_disk.long_tailed import AUGMENTATION
from datasets.on_disk.walk import ENDING, HIDDEN, LOOP
from evaluation.measure import NO_FINITE
from models import build_model
from models.heads import build_head
from runs.checkpoint import save_checkpoint
from stages.prediction import find_images
from stages.prediction_csv import most_probable
from tests.helpers import Outcome, run, succeed
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

ROOT = Path(__file__).parent.parent.parent
COLOURS = {"blue, deep": (0, 2), "green": (1, 1), "red": (2, 0)}  # class name: label, channel
SMALL = ("--network", "resnet8", "--stem", "cifar", "--width", 4, "--image_size", 16, "--resize", 18)
FAST = ("--workers", 0, "--batch_size", 8)


def picture(channel: int, number: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Return a noisy image in which one colour is strong."""
    pixels = np.random.default_rng(10 * channel + number).integers(0, 60, (*size, 3))
    pixels[..., channel] += 180
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes that colour alone tells."""
    folder = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 12), ("test", 3)):
        for name, (label, channel) in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(count - 2 * label if part == "train" else count):
                seed = number + 100 * (part == "test")
                picture(channel, seed).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs by name: a stage 1, a stage 2 with LOS, one with a cosine classifier."""
    out = tmp_path_factory.mktemp("runs")
    data = ("--dataset", "folder", "--data_dir", photos, *SMALL, *FAST, "--out", out, "--holdout", 0.25)
    succeed("main_stage1", *data, "--epochs", 4, "--lr", 0.05, "--augment", "crop")
    for method in ("los", "lws", "gcl"):
        succeed("main_stage2", *data, "--method", method, "--finetune_epoch", 1)
    found = {path.parent.name: path.parent for path in out.rglob("metrics.json")}
    names = {"stage1": "stage1", "los": "stage2_los", "lws": "stage2_lws", "gcl": "stage2_gcl"}
    return {key: next(path for name, path in found.items() if name.startswith(names[key])) for key in names}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predicted(*arguments: object, file: str = "predictions.csv") -> list[dict[str, str]]:
    """Run predict.py, which must succeed, and return the rows of its CSV."""
    succeed("predict", *arguments, "--workers", 0)
    return rows_of(Path(file).read_bytes().decode())


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def refused(*arguments: object) -> str:
    """Return the one line with which predict.py ends."""
    outcome = run("predict", *arguments, "--workers", 0)
    assert outcome.status == 2, outcome
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in outcome.err
    return last


def content_of(run_folder: Path) -> dict[str, Any]:
    return torch.load(run_folder / "last.pth", weights_only=True)


def changed(run_folder: Path, path: Path, config: dict[str, Any] | None = None, **entries: Any) -> Path:
    """Write a run's last checkpoint with other entries, None for those that shall be missing, and return its path."""
    content = content_of(run_folder)
    own = {key: value for key, value in {**content["config"], **(config or {})}.items() if value != "missing"}
    save_checkpoint(path, {**content, **entries, "config": own})
    return path


def logits_by_hand(run_folder: Path, files: Sequence[Path], head: str = "linear", flip: bool = False) -> Tensor:
    """Compute logits (N, 3) from a checkpoint with torchvision's transforms."""
    model = build_model("resnet8", 3, "cifar", 4)
    model.fc = build_head(head, model.fc)
    model.load_state_dict(content_of(run_folder)["model"])
    model.eval()
    images = []
    for file in files:
        pixels = TF.pil_to_tensor(Image.open(file).convert("RGB"))
        pixels = TF.center_crop(TF.resize(pixels, [18], antialias=True), [16]).float() / 255
        images.append(TF.normalize(pixels, list(AUGMENTATION.mean), list(AUGMENTATION.std)))
    batch = torch.stack(images)
    with torch.no_grad():
        return (model(batch) + model(batch.flip(3))) / 2 if flip else model(batch)


def check_rows(rows: list[dict[str, str]], logits: Tensor, temperature: float) -> None:
    """Check classes and probabilities against logits that were computed otherwise."""
    shares, labels = (logits.double() / temperature).softmax(dim=1).max(dim=1)
    assert [row["class"] for row in rows] == [list(COLOURS)[label] for label in labels.tolist()]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], shares, rtol=2e-5)


def test_predictions_are_those_of_the_checkpoint(runs: dict[str, Path], photos: Path) -> None:
    rows = predicted("--pretrained_pth", runs["los"], "--images", photos / "test")
    names = [f"{name}/{number}.png" for name in COLOURS for number in range(3)]
    assert [row["file"] for row in rows] == names
    logits = logits_by_hand(runs["los"], [photos / "test" / name for name in names])
    temperature = content_of(runs["los"])["temperature"] or 1.0
    check_rows(rows, logits, temperature)
    assert len(set(map(str, logits.tolist()))) == 9


@pytest.mark.parametrize(("method", "head"), [("lws", "lws"), ("gcl", "cosine")])
def test_a_classifier_of_another_kind(runs: dict[str, Path], photos: Path, method: str, head: str) -> None:
    files = sorted((photos / "test" / "red").iterdir())
    rows = predicted("--pretrained_pth", runs[method] / "last.pth", "--temperature", 2, "--images", *files)
    assert [row["file"] for row in rows] == list(map(str, files))
    check_rows(rows, logits_by_hand(runs[method], files, head), 2)


def test_the_mirrored_image_is_averaged_in(runs: dict[str, Path], photos: Path) -> None:
    files = sorted((photos / "test" / "green").iterdir())
    rows = predicted("--pretrained_pth", runs["stage1"], "--flip", "--temperature", 1, "--images", *files)
    logits = logits_by_hand(runs["stage1"], files, flip=True)
    check_rows(rows, logits, 1)
    assert (logits - logits_by_hand(runs["stage1"], files)).abs().max() > 1e-3


def test_the_temperature_is_the_checkpoints_unless_one_is_given(
    runs: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    files = sorted((photos / "test" / "red").iterdir())
    logits = logits_by_hand(runs["stage1"], files)
    path = changed(runs["stage1"], tmp_path / "with.pth", temperature=3.5, temperature_source="held-out images")
    check_rows(predicted("--pretrained_pth", path, "--images", *files), logits, 3.5)
    outcome = succeed("predict", "--pretrained_pth", path, "--images", *files, "--overwrite", "--workers", 0)
    assert "temperature: 3.5 (the checkpoint's, fitted on its held-out images)" in outcome.out
    outcome = succeed("predict", "--pretrained_pth", path, "--images", *files, "--temperature", 7, "--csv", "b.csv")
    check_rows(rows_of(Path("b.csv").read_text()), logits, 7)
    assert "temperature: 7 (given)" in outcome.out
    settings = {**content_of(runs["stage1"])["config"]["settings"], "holdout": 0.0}
    path = changed(runs["stage1"], tmp_path / "without.pth", {"settings": settings}, temperature=None)
    outcome = succeed("predict", "--pretrained_pth", path, "--images", *files, "--csv", "c.csv")
    check_rows(rows_of(Path("c.csv").read_text()), logits, 1)
    assert "NOT CALIBRATED" in outcome.out and "--holdout 0.1" in outcome.out and "--temperature" in outcome.out


def test_a_run_with_held_out_images_is_not_told_to_hold_some_out(
    runs: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """Neither where they gave no finite temperature, in this version's words and before, nor beside last.pth."""
    image = next((photos / "test" / "red").iterdir())
    why = f"{NO_FINITE}all 9 held-out images are right"
    for entries, words in (
        ({"temperature_source": why}, why),
        ({"temperature_source": "held-out images"}, "its held-out images ask for no finite temperature"),
        ({"temperature_source": None}, "kept with the last epoch (last.pth)"),
    ):
        path = changed(runs["stage1"], tmp_path / "other.pth", temperature=None, **entries)
        out = succeed("predict", "--pretrained_pth", path, "--images", image, "--overwrite", "--workers", 0).out
        assert "NOT CALIBRATED" in out and words in out and "give --temperature" in out and "--holdout" not in out


def test_the_most_probable_classes_in_their_order(runs: dict[str, Path], photos: Path) -> None:
    file = photos / "test" / "red" / "0.png"
    rows = predicted("--pretrained_pth", runs["stage1"], "--images", file, "--top", 3, "--temperature", 1)
    assert list(rows[0]) == ["file", "rank", "class", "probability", "error"]
    order = logits_by_hand(runs["stage1"], [file])[0].softmax(0).sort(descending=True)
    assert [row["rank"] for row in rows] == ["1", "2", "3"] and {row["file"] for row in rows} == {str(file)}
    assert [row["class"] for row in rows] == [list(COLOURS)[label] for label in order.indices.tolist()]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], order.values, rtol=2e-5)
    assert "knows 3 classes" in refused("--pretrained_pth", runs["stage1"], "--images", file, "--top", 4, "--overwrite")


def test_equal_logits_stand_in_the_order_of_classes() -> None:
    order, shares = most_probable(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), 2.0, 3)
    assert order.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(shares, torch.tensor([[1.0, 3.0, 3.0, 0.0]]).double().div(2).softmax(1)[:, [1, 2, 0]])


def test_a_checkpoint_from_before_names_were_recorded(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    file = photos / "test" / "red" / "0.png"
    path = changed(runs["stage1"], tmp_path / "old.pth", {"class_names": "missing"})
    label = int(logits_by_hand(runs["stage1"], [file]).argmax())
    assert predicted("--pretrained_pth", path, "--images", file)[0]["class"] == str(label)
    path = changed(runs["stage1"], tmp_path / "older.pth", {"class_names": "missing", "images": "missing"})
    assert "how the images of folder were prepared" in refused(
        "--pretrained_pth", path, "--images", file, "--overwrite"
    )


def test_an_older_checkpoint_of_cifar_has_its_constants(tmp_path: Path) -> None:
    model = build_model("resnet8", 10, "cifar", 4).eval()
    settings = {"dataset": "cifar10", "network": "resnet8", "width": 4}
    config = {"stage": "stage1", "method": None, "tags": [], "settings": settings, "num_class": 10}
    save_checkpoint(
        tmp_path / "old.pth", {"stage": "stage1", "epoch": 1, "model": model.state_dict(), "config": config}
    )
    picture(1, 0, (32, 32)).save(tmp_path / "a.png")
    row = predicted("--pretrained_pth", tmp_path / "old.pth", "--images", "a.png")[0]
    pixels = TF.normalize(TF.pil_to_tensor(picture(1, 0, (32, 32))) / 255, list(CIFAR.mean), list(CIFAR.std))
    with torch.no_grad():
        share, label = model(pixels[None])[0].softmax(0).max(0)
    assert row["class"] == str(int(label)) and float(row["probability"]) == pytest.approx(float(share), rel=2e-5)


def test_images_in_memory_come_back_from_files(tmp_path: Path) -> None:
    """A network of the digits predicts for digits in files what its own report counts."""
    succeed("main_stage1", "--dataset", "digits", "--out", tmp_path, "--epochs", 3, "--network", "resnet8")
    folder = next(tmp_path.rglob("last.pth")).parent
    test = load_dataset("digits", Profile(imb_ratio=25)).test
    (tmp_path / "ink").mkdir()
    for number, pixels in enumerate(test.images):
        Image.fromarray(pixels).save(tmp_path / "ink" / f"{number:03}.png")
    rows = predicted("--pretrained_pth", folder, "--images", tmp_path / "ink")
    hits = np.mean([int(row["class"]) == label for row, label in zip(rows, test.labels, strict=True)])
    metrics = torch.load(folder / "last.pth", weights_only=True)["history"]["last"]
    assert 100 * hits == pytest.approx(metrics["plain"]["all"])
    assert "--flip" in refused("--pretrained_pth", folder, "--images", tmp_path / "ink", "--flip", "--csv", "b.csv")


def test_names_of_every_kind_survive_the_csv(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = ["a,b.png", 'c"d.png', "e\nf.png", "g\rh.png", "Å .png", os.fsdecode(b"\xff.png")]
    for number, name in enumerate(names):
        picture(0, number).save(tmp_path / "new.png")
        shutil.move(tmp_path / "new.png", folder / name)
    rows = predicted("--pretrained_pth", runs["stage1"], "--images", folder)
    shown = [*names[:-1], "\\udcff.png"]
    assert sorted(row["file"] for row in rows) == sorted(shown)
    assert all(row["class"] in COLOURS and 0 < float(row["probability"]) <= 1 for row in rows)


def test_a_folder_is_walked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.JPG", "b/10.png", "b/c/d.gif", "a.jpeg", "b.txt", ".hidden.png", ".git/x.png", "z/.DS_Store"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"x")
    (tmp_path / "tree" / "z" / "up").symlink_to(tmp_path / "tree")
    split, left_out = find_images([str(tmp_path / "tree")])
    assert split.images.tolist() == [b"a.jpeg", b"b/10.png", b"b/2.JPG", b"b/c/d.gif"]
    assert split.root == tmp_path / "tree"
    assert left_out.counts == {HIDDEN: 3, ENDING: 1, LOOP: 1}  # .hidden.png, .git, z/.DS_Store; b.txt; the way up
    split, left_out = find_images(["tree/b", "./tree/b.txt"])
    assert split.images.tolist() == [b"tree/b/10.png", b"tree/b/2.JPG", b"tree/b/c/d.gif", b"./tree/b.txt"]
    assert left_out.total() == 0 and all(os.path.isfile(split.path(row)) for row in range(4))
    for given in (["tree/z"], ["tree/none"], [""], ["tree", "\0"]):
        if given == ["tree/z"]:
            (tmp_path / "tree" / "z" / "up").unlink()
        with pytest.raises(UserError, match=r"no images in it|no such file"):
            find_images(given)


def test_images_that_cannot_be_read(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    shutil.copytree(photos / "test" / "red", folder)
    (folder / "1a.png").write_bytes(b"no image")
    (folder / "1b.jpg").write_bytes(b"")
    both = ("--pretrained_pth", runs["stage1"], "--images", folder)
    assert "more than --skip_bad 1" in refused(*both, "--skip_bad", 1)
    outcome = succeed("predict", *both, "--skip_bad", 2, "--workers", 0)
    assert "1a.png" in outcome.out and "1b.jpg" in outcome.out and "2 images skipped" in outcome.out
    assert [row["file"] for row in rows_of(Path("predictions.csv").read_text())] == ["0.png", "1.png", "2.png"]
    assert "none of the images" in refused(
        "--pretrained_pth", runs["stage1"], "--images", folder / "1b.jpg", "--skip_bad", 1, "--csv", "b.csv"
    )
    assert set(os.listdir(tmp_path)) == {"some", "predictions.csv"}


def test_where_nothing_can_be_read_no_class_is_counted(runs: dict[str, Path]) -> None:
    Path("1.jpg").write_bytes(b"no image")
    outcome = run("predict", "--pretrained_pth", runs["stage1"], "--images", "1.jpg", "--workers", 0)
    assert outcome.status == 1 and "1 of 1 images could not be read" in outcome.err
    assert "mean probability" not in outcome.out and "predicted classes" not in outcome.out


def test_a_file_that_is_there_stays(runs: dict[str, Path], photos: Path) -> None:
    both = ("--pretrained_pth", runs["stage1"], "--images", photos / "test" / "red")
    Path("predictions.csv").write_text("mine")
    assert "--overwrite" in refused(*both)
    assert Path("predictions.csv").read_text() == "mine"
    assert len(predicted(*both, "--overwrite")) == 3
    Path("folder").mkdir()
    assert "it is a folder" in refused(*both, "--csv", "folder", "--overwrite")
    assert "no folder" in refused(*both, "--csv", "none/a.csv")
    assert "no folder" in refused(*both, "--csv", "")
    assert "cannot write" in refused(*both, "--csv", "a" * 300)


def test_standard_output_has_the_rows_alone(runs: dict[str, Path], photos: Path) -> None:
    both = ("--pretrained_pth", runs["stage1"], "--images", photos / "test", "--workers", 0)
    outcome = succeed("predict", *both, "--csv", "-")
    succeed("predict", *both)
    assert outcome.out == Path("predictions.csv").read_text()
    assert "temperature:" in outcome.err and "9 images in" in outcome.err


def test_the_screen_says_what_was_predicted(runs: dict[str, Path], photos: Path) -> None:
    both = ("--pretrained_pth", runs["stage1"], "--images", photos / "test", "--workers", 0)
    outcome = succeed("predict", *both, "--gpu", 0, "--batch_size", 2)
    rows = rows_of(Path("predictions.csv").read_text())
    mean = np.mean([float(row["probability"]) for row in rows])
    assert f"mean probability {mean:.4f}" in outcome.out and "not used by predict on cpu: --gpu" in outcome.err
    for name in {row["class"] for row in rows}:
        assert f"  {sum(row['class'] == name for row in rows)}  {name}\n" in outcome.out


def test_worker_processes_and_batches_change_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(70):
        picture(number % 3, number, (20, 30)).save(folder / f"{number:02}.jpg")
    both = ("--pretrained_pth", runs["los"], "--images", folder)
    alone = predicted(*both)
    succeed("predict", *both, "--workers", 2, "--batch_size", 7, "--csv", "b.csv")
    other = rows_of(Path("b.csv").read_text())
    assert [row["class"] for row in other] == [row["class"] for row in alone] and len(alone) == 70
    np.testing.assert_allclose(
        [float(row["probability"]) for row in other], [float(row["probability"]) for row in alone], rtol=1e-4
    )


def test_what_is_no_run_of_images(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    images = ("--images", photos / "test" / "red")
    weights = content_of(runs["stage1"])["model"]
    torch.save(weights, tmp_path / "plain.pth")
    stage1 = runs["stage1"]
    settings = content_of(stage1)["config"]["settings"]
    damaged = {"size": 20, "resize": 18, "mean": [0.5] * 3, "std": [0.2] * 3, "mirror": True}
    cases = {
        "no last.pth": tmp_path,
        "cannot read the checkpoint": tmp_path / "none.pth",
        "File name too long": tmp_path / ("n" * 300),
        "it is an image": photos / "test" / "red" / "0.png",
        "does not say what it was trained on": tmp_path / "plain.pth",
        "trained on features": changed(stage1, tmp_path / "a.pth", {"images": None}),
        "no network that could": changed(
            stage1, tmp_path / "b.pth", model={key: value for key, value in weights.items() if key.startswith("fc.")}
        ),
        "does not fit the network": changed(stage1, tmp_path / "c.pth", {"settings": {**settings, "width": 8}}),
        "class_names (1 for 3 classes)": changed(stage1, tmp_path / "d.pth", {"class_names": ["a"]}),
        "says of its images cannot be": changed(stage1, tmp_path / "e.pth", {"images": damaged}),
        "how many classes": changed(stage1, tmp_path / "f.pth", {"num_class": "missing"}),
        "its network": changed(stage1, tmp_path / "g.pth", {"settings": {**settings, "network": None}}),
        "its temperature": changed(stage1, tmp_path / "h.pth", temperature=-1.0),
        "not finite": changed(stage1, tmp_path / "i.pth", model={**weights, "fc.bias": torch.full((3,), torch.nan)}),
    }
    for words, path in cases.items():
        assert words in refused("--pretrained_pth", path, *images), words
    assert not Path("predictions.csv").exists()


def test_an_unfinished_run_is_said_to_be_one(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(runs["stage1"] / "last.pth", tmp_path / "run")
    outcome = succeed("predict", "--pretrained_pth", "run", "--images", photos / "test" / "red", "--workers", 0)
    assert "not finished: this is its epoch 4" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top", "0"], "--top must be at least"),
        (["--top", "x"], "invalid int value"),
        (["--temp", "2"], "unrecognized arguments"),
        (["--temperature", "0"], "--temperature must be at least"),
        (["--temperature", "nan"], "--temperature must be at least"),
        (["--workers", "-1"], "--workers must be at least"),
        (["--device", "tpu"], "invalid choice"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_flags_out_of_their_domain(runs: dict[str, Path], photos: Path, arguments: list[str], words: str) -> None:
    given = ["--pretrained_pth", str(runs["stage1"]), "--images", str(photos / "test"), *arguments]
    outcome: Outcome = run("predict", *given)
    assert outcome.status == 2 and words in outcome.err and len(outcome.err.splitlines()) == 1


def test_both_paths_are_asked_for() -> None:
    for flags in ([], ["--images", "a.png"], ["--pretrained_pth", "a.pth"]):
        with pytest.raises(UserError, match="required"):
            predict.main(flags)


def test_many_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="torchrun"):
        predict.main(["--images", "a.png", "--pretrained_pth", "a.pth"])


def test_a_reader_that_leaves_is_no_traceback(runs: dict[str, Path], photos: Path) -> None:
    command = [sys.executable, str(ROOT / "predict.py"), "--pretrained_pth", str(runs["stage1"]), "--csv", "-"]
    command += ["--images", *[str(photos / "test" / "red" / "0.png")] * 3000, "--workers", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 2 and errors.splitlines()[-1].startswith("error: standard output was closed")
    assert "Traceback" not in errors and "Exception ignored" not in errors
