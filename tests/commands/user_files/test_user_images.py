"""Images on disk through the scripts: all forms of the data give the same run, and every flag has its effect."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor

import engine.fit
import engine.frozen_features
from datasets import load_dataset
from datasets.identity.content import with_identity
from datasets.long_tail import LongTailedData, Profile, long_tail_counts
from datasets.on_disk.layouts import LAYOUTS, ListFiles
from engine.cache.dependencies import split_dependencies
from models import build_model
from runs.checkpoint import load_checkpoint
from runs.dependencies import key_of
from settings.command_line import parse_command
from settings.fields import STAGE2
from tests.helpers import Outcome, contents, image_tree, read, run, same, succeed, weights
from tools import check_dataset as check
from utils.device import Execution
from utils.schedules import SCHEDULES, with_warmup

CLASSES, LARGEST, TESTED, PIXELS = 4, 9, 3, 16
COUNTS = [9, 8, 7, 6]
RESNET = ("--network", "resnet8", "--stem", "cifar", "--width", 4, "--image_size", PIXELS, "--resize", PIXELS)
TINY = (*RESNET, "--workers", 0)
ONE_EPOCH = ("--epochs", 1, "--batch_size", 8, "--wd", 5e-4, "--eval_every", 1)
HEAD = ("--finetune_epoch", 2, "--eval_every", 1)
TAGS = "batch_size8_stemcifar_image_size16_resize16_width4"
Row = tuple[str, int]


def rows_of(tree: Path, part: str) -> list[Row]:
    """The images of a tree as (path, label), sorted as those of a folder are."""
    return [(file.relative_to(tree).as_posix(), int(file.parent.name[-1])) for file in sorted(tree.glob(f"{part}/*/*"))]


def write_list(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(f"{name} {label}\n" for name, label in rows), encoding="utf-8")
    return path


def write_coco(path: Path, rows: list[Row]) -> Path:
    """Write rows in the form of iNaturalist's JSON, with ids that are not the labels and annotations backwards."""
    content = {
        "images": [{"id": 50 + i, "file_name": name} for i, (name, _) in enumerate(rows)],
        "annotations": [{"id": i, "image_id": 50 + i, "category_id": 3 * y + 7} for i, (_, y) in enumerate(rows)][::-1],
        "categories": [{"id": 3 * label + 7, "name": f"class{label}"} for label in range(CLASSES)][::-1],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of class folders with every form of list beside it, also as `data/<name>` for the field's layouts."""
    root = tmp_path_factory.mktemp("data")
    tree = image_tree(root / "shades", CLASSES, LARGEST, TESTED)
    lists = {"train": ("train", "ImageNet_LT_train", "train2018"), "test": ("test", "ImageNet_LT_test", "val2018")}
    for part, names in lists.items():
        for name in names:
            write_list(tree / f"{name}.txt", rows_of(tree, part))
            write_coco(tree / f"{name}.json", rows_of(tree, part))
    for name in ("imagenet_lt", "inaturalist2018"):
        (root / name).symlink_to(tree, target_is_directory=True)
    return tree


@pytest.fixture
def tree(shades: Path, tmp_path: Path) -> Path:
    """A copy of `shades` that a test may change."""
    return Path(shutil.copytree(shades, tmp_path / "shades"))


@pytest.fixture
def few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the field's data sets have a few classes."""
    for name in ("imagenet_lt", "inaturalist2018"):
        monkeypatch.setitem(LAYOUTS, name, dataclasses.replace(LAYOUTS[name], num_classes=CLASSES))


# Of each form: its flags, and the name of the folder of its runs.
FORMS: dict[str, Callable[[Path], tuple[tuple[object, ...], str]]] = {
    "folder": lambda tree: (("--dataset", "folder", "--data_dir", tree), "folder-shades"),
    "list": lambda tree: (("--dataset", "list", "--data_dir", tree), "list-shades"),
    "named lists": lambda tree: (
        (
            "--dataset",
            "list",
            "--train_list",
            tree / "train2018.txt",
            "--test_list",
            tree / "val2018.txt",
            "--image_root",
            tree,
        ),
        "list-train2018",
    ),
    "COCO": lambda tree: (
        (
            "--dataset",
            "list",
            "--train_list",
            tree / "train.json",
            "--test_list",
            tree / "test.json",
            "--image_root",
            tree,
        ),
        "list-train",
    ),
    "imagenet_lt": lambda tree: (("--dataset", "imagenet_lt", "--data_dir", tree.parent), "imagenet_lt"),
    "inaturalist2018": lambda tree: (("--dataset", "inaturalist2018", "--data_dir", tree.parent), "inaturalist2018"),
}


def both_stages(data: tuple[object, ...], out: Path, *arguments: object) -> list[Outcome]:
    """Run both stages and the report on the second; the report is in `out`."""
    used = (*data, *TINY, "--out", out, *arguments)
    # The field's data sets have the published learning rate by default, anyone's own one for features of any scale.
    own_scale = ("--rate_scale", "features")
    return [
        succeed("main_stage1", *used, *ONE_EPOCH),
        succeed("main_stage2", *used, *HEAD, *own_scale, "--batch_size", 64),
        succeed("evaluate", *used, "--cur_stage", "stage2", "--json", out / "report.json"),
    ]


def folder_run(tree: Path, out: Path, *arguments: object, script: str = "main_stage1") -> Outcome:
    return run(script, "--dataset", "folder", "--data_dir", tree, *TINY, "--out", out, *arguments)


def trained(tree: Path, out: Path, *arguments: object) -> Path:
    """Train stage 1 on the folder of a tree; return the folder of the run."""
    before = set(out.rglob("metrics.json"))
    outcome = folder_run(tree, out, *arguments)
    assert outcome.status == 0 and outcome.err == "", outcome.err
    (made,) = set(out.rglob("metrics.json")) - before
    return made.parent


def retrained(tree: Path, out: Path, *arguments: object) -> Outcome:
    outcome = folder_run(tree, out, *HEAD, *arguments, script="main_stage2")
    assert outcome.status == 0, outcome.err
    return outcome


def only(out: Path, pattern: str) -> Path:
    (found,) = out.rglob(pattern)
    return found


def refused(outcome: Outcome, *words: str) -> bool:
    """Check that a command ended with status 2 and one line that has these words."""
    assert outcome.status == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err
    return True


def without_clocks(value: Any) -> Any:
    """What a run measured, without times and the names of data set, classes and files."""
    if isinstance(value, dict):
        idle = ("train_seconds", "images_per_second", "dataset", "class_names", "sha256", "stage1")
        return {key: without_clocks(part) for key, part in value.items() if key not in idle}
    return value


@pytest.fixture(scope="module")
def by_folder(shades: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs on the folder form, not to be changed."""
    out = tmp_path_factory.mktemp("by_folder")
    both_stages(FORMS["folder"](shades)[0], out)
    return out


# Forms


@pytest.mark.usefixtures("few_classes")
@pytest.mark.parametrize("form", [form for form in FORMS if form != "folder"])
def test_every_form_gives_the_same_run(form: str, shades: Path, by_folder: Path, tmp_path: Path) -> None:
    data, name = FORMS[form](shades)
    if form == "inaturalist2018":
        for text in ("iNaturalist18_train.txt", "iNaturalist18_val.txt"):
            assert not (shades / text).exists()  # its official JSON is read
    assert [outcome.err for outcome in both_stages(data, tmp_path)] == ["", "", ""]
    for stage in ("stage1", "stage2"):
        mine, its = (only(out, f"{stage}*/metrics.json").parent for out in (tmp_path, by_folder))
        assert mine.parent.parent.name == f"{name}_natural_resnet8"
        assert same(weights(mine / "last.pth"), weights(its / "last.pth"))
        assert without_clocks(read(mine / "metrics.json")) == without_clocks(read(its / "metrics.json"))
    reports = [without_clocks(read(out / "report.json")) for out in (tmp_path, by_folder)]
    assert reports[0]["checkpoints"] == reports[1]["checkpoints"]
    assert reports[0]["class_counts"] == COUNTS
    named = "class" if form in ("COCO", "inaturalist2018") else ""  # other lists have labels alone
    assert read(tmp_path / "report.json")["class_names"] == [f"{named}{label}" for label in range(CLASSES)]


def test_runs_are_named_by_data_and_what_differs(by_folder: Path) -> None:
    seed_folder = by_folder / "folder-shades_natural_resnet8" / "seed0"
    assert sorted(path.name for path in seed_folder.iterdir()) == [
        f"stage1_epochs1_{TAGS}",
        f"stage2_los_epochs1_stage1_{TAGS}_finetune_epoch2",
    ]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_imbalance_is_measured_on_data_that_have_their_own(stage: str, by_folder: Path) -> None:
    metrics = read(only(by_folder, f"{stage}*/metrics.json"))
    assert metrics["imb_type"] == "natural" and metrics["imb_ratio"] == 1.5
    assert metrics["class_counts"] == COUNTS and metrics["num_class"] == CLASSES


def test_the_report_is_that_of_torchvision_on_the_files(shades: Path, tmp_path: Path) -> None:
    """Labels, crops, constants and counting, against the class that each file's folder names."""
    run_folder = trained(shades, tmp_path, "--epochs", 3, "--batch_size", 4, "--lr", 0.05, "--image_size", 12)
    model = build_model("resnet8", CLASSES, "cifar", 4).eval()
    model.load_state_dict(weights(run_folder / "last.pth"))
    accuracy = []
    for label in range(CLASSES):
        right = []
        for file in sorted((shades / "test" / f"class{label}").iterdir()):
            with Image.open(file) as image:
                pixels = F.center_crop(F.resize(F.pil_to_tensor(image.convert("RGB")), [16], antialias=True), [12])
            batch = F.normalize(pixels / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]
            with torch.no_grad():
                right.append(int(model(batch).argmax()) == label)
        accuracy.append(100 * np.mean(right))
    measured = read(run_folder / "metrics.json")["last"]["plain"]
    assert measured["per_class_accuracy"] == pytest.approx(accuracy)
    assert 25 < measured["all"] <= 100  # something was learned, so that swapped labels would show


@pytest.mark.parametrize("form", ["folder", "COCO"])
def test_balanced_data_are_made_long_tailed(form: str, shades: Path, tmp_path: Path) -> None:
    data, name = FORMS[form](shades)
    both_stages(data, tmp_path, "--imb_ratio", 3)
    for stage in ("stage1", "stage2"):
        metrics = only(tmp_path, f"{stage}*/metrics.json")
        assert metrics.parent.parent.parent.name == f"{name}_expIF3_resnet8"
        assert read(metrics)["class_counts"] == long_tail_counts(9, CLASSES, 3, "exp") == [9, 6, 4, 3]
        assert read(metrics)["imb_ratio"] == 3 and read(metrics)["imb_type"] == "exp"


def test_stage_2_finds_no_run_of_another_imbalance(shades: Path, by_folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(by_folder, tmp_path / "out"))
    before = contents(out)
    outcome = folder_run(shades, out, "--imb_ratio", 3, script="main_stage2")
    assert refused(outcome, "no stage1 run", "--imb_ratio 3")
    assert contents(out) == before


def test_worker_processes_change_nothing(shades: Path, by_folder: Path, tmp_path: Path) -> None:
    both_stages(("--dataset", "folder", "--data_dir", shades), tmp_path, "--workers", 2)
    for stage in ("stage1", "stage2"):
        paths = [only(out, f"{stage}*/last.pth") for out in (by_folder, tmp_path)]
        assert same(*map(weights, paths))


def test_a_run_that_is_named_needs_no_other_flag(shades: Path, by_folder: Path, tmp_path: Path) -> None:
    stage1 = only(by_folder, "stage1*/metrics.json").parent
    succeed("main_stage2", "--pretrained_pth", stage1, "--data_dir", shades, "--out", tmp_path, *HEAD)
    assert same(*(weights(only(out, "stage2*/last.pth")) for out in (tmp_path, by_folder)))
    report = tmp_path / "report.json"
    named = only(by_folder, "stage2*/metrics.json").parent
    succeed("evaluate", "--pretrained_pth", named, "--data_dir", shades, "--json", report)
    assert read(report)["checkpoints"] == read(by_folder / "report.json")["checkpoints"]


def stop_after(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let Ctrl-C come after an epoch was reported."""
    report = engine.log.print_epoch

    def interrupted(row: dict[str, Any], *rest: Any) -> None:
        report(row, *rest)
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    patch.setattr(engine.fit, "print_epoch", interrupted)


@pytest.mark.parametrize("arguments", [("--mixup", 0.3), ("--workers", 1, "--clip_grad", 0.5)], ids=str)
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    arguments: tuple[object, ...], shades: Path, tmp_path: Path
) -> None:
    wanted = ("--epochs", 3, "--batch_size", 8, *arguments)
    whole = trained(shades, tmp_path / "whole", *wanted)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        assert folder_run(shades, tmp_path / "parts", *wanted).status == 130
    parts = trained(shades, tmp_path / "parts", *wanted, "--resume")
    assert same(weights(whole / "last.pth"), weights(parts / "last.pth"))
    assert [row["epoch"] for row in log_of(parts)] == ["1", "2", "3"]


def log_of(run_folder: Path) -> list[dict[str, str]]:
    with open(run_folder / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Held-out images


LEARNING = ("--epochs", 4, "--batch_size", 4, "--lr", 0.05)


def add_val(tree: Path, classes: int = CLASSES) -> Path:
    """Give a tree held-out images that are harder to tell than the others."""
    generator = np.random.default_rng(5)
    for label in range(classes):
        (tree / "val" / f"class{label}").mkdir(parents=True)
        for number in range(5):
            pixels = generator.normal(255 * (label + 0.5) / CLASSES, 45, (12, 12, 3)) + generator.normal(0, 40)
            path = tree / "val" / f"class{label}" / f"{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    write_list(tree / "val.txt", rows_of(tree, "val"))
    return tree


@pytest.mark.parametrize("form", ["folder", "list"])
def test_a_validation_set_is_held_out_and_gives_the_temperature(form: str, tree: Path, tmp_path: Path) -> None:
    data = ("--dataset", form, "--data_dir", tree, *TINY)
    succeed("main_stage1", *data, *LEARNING, "--out", tmp_path / "without")
    add_val(tree)
    succeed("main_stage1", *data, *LEARNING, "--out", tmp_path / "with")
    found = [only(tmp_path / out, "stage1*/metrics.json").parent for out in ("without", "with")]
    assert same(*(weights(folder / "last.pth") for folder in found))  # no image of it was trained on
    metrics = [read(folder / "metrics.json") for folder in found]
    assert metrics[0]["class_counts"] == metrics[1]["class_counts"] == COUNTS
    assert metrics[0]["holdout"] is None and metrics[0]["calibration"] is None
    assert metrics[1]["holdout"]["images"] == 5 * CLASSES
    calibration = metrics[1]["calibration"]
    assert calibration["source"] == "held-out images" and 0.01 < calibration["temperature"] < 100
    stored = torch.load(found[1] / "last.pth", weights_only=True)
    assert stored["temperature"] == calibration["temperature"]


def test_a_share_of_the_training_images_goes_before_a_validation_set(tree: Path, tmp_path: Path) -> None:
    run_folder = trained(add_val(tree), tmp_path, *ONE_EPOCH, "--holdout", 0.25)
    metrics = read(run_folder / "metrics.json")
    assert metrics["holdout"]["images"] + sum(metrics["class_counts"]) == sum(COUNTS)


def test_a_validation_set_may_lack_classes(tree: Path, tmp_path: Path) -> None:
    trained(add_val(tree, CLASSES - 1), tmp_path, *ONE_EPOCH)
    retrained(tree, tmp_path)
    holdout = read(only(tmp_path, "stage2*/metrics.json"))["holdout"]
    assert holdout["images"] == 15 and 0 <= holdout["class_balanced_accuracy"] <= 100


def test_another_training_list_goes_without_the_validation_list_beside_the_layouts_own(tree: Path) -> None:
    """It could hold the very images that the other list trains on."""
    add_val(tree)
    rows = rows_of(tree, "train") + rows_of(tree, "val")
    files = ListFiles(train=str(write_list(tree / "all.txt", rows)))
    data = load_dataset("list", Profile(imb_ratio=None), str(tree), files)
    assert len(data.train) == len(rows) and len(data.holdout) == 0
    data = load_dataset("list", Profile(imb_ratio=None), str(tree))
    assert len(data.holdout) == 20
    assert len(np.intersect1d(data.holdout.ids, data.train.ids)) == 0


def test_the_seed_of_stage_1_draws_what_both_stages_hold_out(shades: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(shades, tmp_path, *ONE_EPOCH, "--holdout", 0.3, "--seed", seed)
    retrained(shades, tmp_path, "--holdout", 0.3, "--seed", 1, "--stage1_seed", 0)
    subsets = {path.parent.parent.name + path.parent.name[:6]: read(path)["subset"] for path in tmp_path.rglob("c*son")}
    assert subsets["seed1stage2"] == subsets["seed0stage1"] == subsets["seed1stage1"]  # held-out images belong to it
    counts = {path.parent.name[:6]: read(path)["class_counts"] for path in tmp_path.rglob("seed1/*/metrics.json")}
    assert counts["stage1"] == counts["stage2"]


# What stage 2 keeps of the images


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the features that are computed from here on."""
    names: list[str] = []
    predict_blocks = engine.frozen_features.predict_blocks

    def noted(*arguments: Any, **options: Any) -> Iterator[Tensor]:
        names.append(options["message"].removeprefix("features of "))
        return predict_blocks(*arguments, **options)

    monkeypatch.setattr(engine.frozen_features, "predict_blocks", noted)
    yield names


VIEWS = {"test", "test_mirrored", "train", "train_seed4294967296_view0"}


@pytest.fixture
def runs(by_folder: Path, tmp_path: Path) -> Path:
    """A copy of `by_folder` that a test may change, without stage 2's own traces."""
    out = Path(shutil.copytree(by_folder, tmp_path / "runs"))
    shutil.rmtree(out / "features")
    return out


def test_features_are_computed_once_and_mapped(
    tree: Path, runs: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    load = np.load

    def noted(*given: Any, **options: Any) -> Any:
        opened.append(load(*given, **options))
        return opened[-1]

    monkeypatch.setattr(np, "load", noted)
    retrained(tree, runs, "--overwrite")
    assert set(computed) == VIEWS and len(computed) == len(VIEWS)
    first = weights(only(runs, "stage2*/last.pth"))
    computed.clear()
    retrained(tree, runs, "--overwrite")
    assert computed == []
    assert opened and all(isinstance(array, np.memmap) for array in opened)
    assert same(weights(only(runs, "stage2*/last.pth")), first)
    retrained(tree, runs, "--method", "tau_norm")
    assert computed == []


def change_an_image(tree: Path, part: str) -> None:
    file = tree / part / "class1" / "0.png"
    with Image.open(file) as image:
        Image.fromarray(255 - np.array(image)).save(file)


def test_features_of_a_test_image_that_has_changed_are_computed_again(
    tree: Path, runs: Path, computed: list[str]
) -> None:
    retrained(tree, runs, "--overwrite")
    first = weights(only(runs, "stage2*/last.pth"))
    computed.clear()
    change_an_image(tree, "test")
    outcome = retrained(tree, runs, "--overwrite")
    assert set(computed) == {name for name in VIEWS if name.startswith("test")}
    assert "features of test: computed anew, since these are of other images" in outcome.out
    assert same(weights(only(runs, "stage2*/last.pth")), first)


@pytest.mark.parametrize("part", ["train", "test"])
def test_of_images_known_by_name_the_changed_file_counts(
    part: str, tree: Path, runs: Path, computed: list[str]
) -> None:
    retrained(tree, runs, "--overwrite", "--identity", "names")
    first = weights(only(runs, "stage2*/last.pth"))
    computed.clear()
    change_an_image(tree, part)
    retrained(tree, runs, "--overwrite", "--identity", "names")
    assert set(computed) == {name for name in VIEWS if name.startswith(part)}
    assert same(weights(only(runs, "stage2*/last.pth")), first) == (part == "test")


def test_features_of_another_checkpoint_are_computed_anew(tree: Path, runs: Path, computed: list[str]) -> None:
    retrained(tree, runs, "--overwrite")
    computed.clear()
    path = only(runs, "stage1*/last.pth")
    content = torch.load(path, weights_only=True)
    content["model"]["conv1.weight"][0, 0, 0, 0] += 1e-3
    torch.save(content, path)
    retrained(tree, runs, "--overwrite")
    assert set(computed) == VIEWS


def test_features_belong_to_sizes_and_to_the_order_of_the_rows(shades: Path, by_folder: Path, cpu: Execution) -> None:
    """A row of the file is an image of the list: another order of the same images needs another file."""
    checkpoint = load_checkpoint(only(by_folder, "stage1*/last.pth"))
    data = load_dataset("folder", Profile(imb_ratio=None), str(shades))
    turned = dataclasses.replace(data, train=data.train.take(np.arange(len(data.train))[::-1]))
    assert turned.subset == data.subset
    bf16 = dataclasses.replace(cpu, bf16=True)
    settings = parse_command(STAGE2, "", ["--dataset", "folder", "--image_size", "16", "--resize", "16"]).settings

    def key(data: LongTailedData, execution: Execution, size: int, resize: int) -> str:
        sizes = dataclasses.replace(settings, image_size=size, resize=resize)
        loaded: Any = SimpleNamespace(data=with_identity(data), execution=execution, source=checkpoint, settings=sizes)
        return key_of(split_dependencies(loaded, "of the backbone")["train"])

    variants = [
        (data, cpu, 16, 16),
        (data, cpu, 16, 18),
        (data, cpu, 14, 16),
        (turned, cpu, 16, 16),
        (data, bf16, 16, 16),
    ]
    found = [key(*variant) for variant in variants]
    assert len(set(found)) == len(variants)
    assert key(*variants[0]) == found[0]


@pytest.mark.parametrize("left", [0, 200])
def test_a_damaged_file_of_features_is_named(left: int, tree: Path, runs: Path) -> None:
    retrained(tree, runs, "--overwrite")
    file = only(runs, "features/*/train_seed*.npy")
    file.write_bytes(file.read_bytes()[:left])
    outcome = folder_run(tree, runs, *HEAD, "--overwrite", script="main_stage2")
    assert refused(outcome, file.name, "is damaged; delete it")
    file.unlink()
    retrained(tree, runs, "--overwrite")
    assert file.stat().st_size > 200


def test_stage_2_refuses_other_images_and_classes(tree: Path, runs: Path, tmp_path: Path) -> None:
    (tree / "train" / "class3" / "0.png").unlink()
    assert refused(folder_run(tree, runs, "--overwrite", script="main_stage2"), "other training images")
    outcome = folder_run(tree, runs, script="evaluate")
    assert outcome.status == 0 and outcome.err.startswith("warning: ") and "other training images" in outcome.err
    other = Path(shutil.copytree(tree, tmp_path / "other" / "shades"))
    for part in ("train", "test"):
        (other / part / "class0").rename(other / part / "zebra")  # now the last one: all labels mean something else
    for script in ("main_stage2", "evaluate"):
        assert refused(
            folder_run(other, runs, script=script), "other classes", "class 0 is 'class0' there and 'class1' here"
        )


# Weights from elsewhere


@pytest.fixture(scope="module")
def weights_file(shades: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of the network, with another number of classes."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "elsewhere.pth"
    torch.save(build_model("resnet8", 11, "cifar", 4).state_dict(), path)
    return path


def test_stage_2_on_weights_makes_its_stage_1_once(shades: Path, weights_file: Path, tmp_path: Path) -> None:
    outcome = retrained(shades, tmp_path, "--weights", weights_file)
    assert "the classifier is new" in outcome.out
    probe = only(tmp_path, "stage1*/metrics.json").parent
    assert "weights-elsewhere" in probe.name and "epochs0" in probe.name
    head = weights(probe / "last.pth")
    file = torch.load(weights_file, weights_only=True)
    assert all(torch.equal(head[key], file[key]) for key in file if not key.startswith("fc."))
    before = contents(probe)
    outcome = retrained(shades, tmp_path, "--weights", weights_file, "--method", "tau_norm")
    assert f"using the finished run {probe}" in outcome.out and contents(probe) == before
    alone = trained(shades, tmp_path / "alone", "--weights", weights_file, "--epochs", 0)
    assert alone.name == probe.name and same(weights(alone / "last.pth"), head)
    report = folder_run(shades, tmp_path, "--weights", weights_file, "--cur_stage", "stage2", script="evaluate")
    assert report.status == 0 and report.err == ""


def test_stage_2_starts_from_the_stage_1_that_was_trained_on_weights(
    shades: Path, weights_file: Path, tmp_path: Path
) -> None:
    stage1 = trained(shades, tmp_path, *ONE_EPOCH, "--weights", weights_file)
    retrained(shades, tmp_path, "--weights", weights_file)
    config = read(only(tmp_path, "stage2*/config.json"))
    assert config["stage1"]["sha256"] == load_checkpoint(stage1 / "last.pth").sha256
    assert len(list(tmp_path.rglob("stage1*/metrics.json"))) == 1  # no probe beside it
    other = tmp_path / "other" / "elsewhere.pth"
    other.parent.mkdir()
    torch.save({**torch.load(weights_file, weights_only=True), "fc.bias": torch.zeros(11)}, other)
    before = contents(tmp_path)
    outcome = folder_run(shades, tmp_path, "--weights", other, "--method", "ce", script="main_stage2")
    assert refused(outcome, str(stage1), "another file", str(other))
    assert contents(tmp_path) == before


def test_all_processes_wait_for_the_stage_1_that_the_first_one_writes(
    shades: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []
    monkeypatch.setattr("stages.start.wait_for_all", lambda: there.append([*contents(tmp_path)]))
    retrained(shades, tmp_path, "--weights", weights_file)
    assert len(there) == 1
    assert any("stage1" in name and name.endswith("last.pth") for name in there[0])
    assert not any("stage2" in name for name in there[0])


def test_weights_are_where_stage_1_starts(shades: Path, weights_file: Path, tmp_path: Path) -> None:
    run_folder = trained(shades, tmp_path, *ONE_EPOCH, "--weights", weights_file, "--lr", 0, "--wd", 0)
    file, state = torch.load(weights_file, weights_only=True), weights(run_folder / "last.pth")
    for key in file:
        learned = not key.startswith("fc.") and not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert not learned or torch.equal(state[key], file[key]), key
    recorded = read(run_folder / "config.json")["weights"]
    assert recorded["sha256"] == load_checkpoint(weights_file).sha256


def test_another_file_of_weights_under_the_same_name_is_refused_on_resuming(
    shades: Path, weights_file: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(weights_file, tmp_path / "elsewhere.pth"))
    wanted = ("--epochs", 2, "--batch_size", 8, "--weights", file)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        assert folder_run(shades, tmp_path / "out", *wanted).status == 130
    before = contents(tmp_path / "out")
    state = torch.load(file, weights_only=True)
    torch.save({**state, "conv1.weight": state["conv1.weight"] + 1}, file)
    assert refused(folder_run(shades, tmp_path / "out", *wanted, "--resume"), "another file of --weights")
    assert contents(tmp_path / "out") == before
    shutil.copy(weights_file, file)
    trained(shades, tmp_path / "out", *wanted, "--resume")


# Images that cannot be read


def damage(tree: Path, *names: str) -> None:
    for name in names:
        (tree / name).write_bytes(b"\x89PNG no longer")


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_of_both_stages(workers: int, tree: Path, tmp_path: Path) -> None:
    add_val(tree)
    names = ("train/class0/3.png", "train/class3/0.png", "val/class1/2.png", "test/class2/1.png")
    good = Path(shutil.copytree(tree, tmp_path / "good" / "shades"))
    damage(tree, *names)
    for name in names:
        (good / name).unlink()
    arguments = ("--skip_bad", 4, "--workers", workers)
    outcome = folder_run(tree, tmp_path / "out", *ONE_EPOCH, *arguments)
    assert outcome.status == 0, outcome.err
    skipped = [line for line in outcome.out.splitlines() if line.startswith("skipped, of the ")]
    assert [line.split()[3] for line in skipped] == ["training", "training", "held-out", "test"]
    assert all(name in line for name, line in zip(names, skipped, strict=True))
    assert "4 images skipped" in outcome.out
    retrained(tree, tmp_path / "out", *arguments)
    trained(good, tmp_path / "as_if", *ONE_EPOCH)
    configs = [read(only(tmp_path / out, "stage1*/config.json")) for out in ("out", "as_if")]
    assert configs[0]["class_counts"] == configs[1]["class_counts"] == [8, 8, 7, 5]
    assert configs[0]["subset"]["content_sha256"] == configs[1]["subset"]["content_sha256"]
    assert read(only(tmp_path, "stage2*/config.json"))["subset"] == configs[0]["subset"]
    reports = [read(only(tmp_path / out, "stage1*/metrics.json")) for out in ("out", "as_if")]
    assert reports[0]["holdout"]["images"] == reports[1]["holdout"]["images"] == 19


def test_more_bad_images_than_allowed_end_the_run(tree: Path, tmp_path: Path) -> None:
    damage(tree, "train/class0/3.png", "test/class2/1.png")
    outcome = folder_run(tree, tmp_path, *ONE_EPOCH, "--skip_bad", 1)
    assert refused(outcome, "more than --skip_bad 1 images", "test/class2/1.png")
    assert list(tmp_path.rglob("stage1*")) == []


def test_a_class_that_loses_its_last_image_is_named(tree: Path, tmp_path: Path) -> None:
    damage(tree, *(f"test/class1/{number}.png" for number in range(TESTED)))
    outcome = folder_run(tree, tmp_path / "tested", *ONE_EPOCH, "--skip_bad", 9)
    assert outcome.status == 0 and "1 of 4 classes have no test image" in outcome.err and "class1" in outcome.err
    damage(tree, *(str(path.relative_to(tree)) for path in (tree / "train" / "class1").iterdir()))
    lost = ("--skip_bad", 99)
    assert refused(folder_run(tree, tmp_path, *ONE_EPOCH, *lost), "no training image", "class 1 'class1'")
    outcome = folder_run(tree, tmp_path / "dropped", *ONE_EPOCH, *lost, "--drop_empty_classes")
    assert outcome.status == 0 and "1 of 4 classes have no training image and are left out: class1" in outcome.out


def test_stage_2_does_not_skip_by_itself(tree: Path, tmp_path: Path) -> None:
    damage(tree, "train/class0/3.png")
    trained(tree, tmp_path, *ONE_EPOCH, "--skip_bad", 1)
    assert refused(folder_run(tree, tmp_path, script="main_stage2"), "other training images")


# Training


def test_clipping_bounds_the_step(shades: Path, tmp_path: Path) -> None:
    """One step of SGD without momentum's past and weight decay moves by the learning rate times the gradient."""
    one_step = ("--epochs", 1, "--batch_size", 64, "--wd", 0, "--lr", 0.1)
    torch.manual_seed(0)
    start = dict(build_model("resnet8", CLASSES, "cifar", 4).named_parameters())
    bound = 0.05
    steps = []
    for arguments in ((), ("--clip_grad", bound), ("--clip_grad", 1e6)):
        state = weights(trained(shades, tmp_path, *one_step, *arguments) / "last.pth")
        steps.append(torch.cat([(state[key] - tensor.detach()).flatten() for key, tensor in start.items()]).double())
    free, clipped, loose = steps
    gradient = torch.nn.Parameter(torch.zeros_like(free))
    gradient.grad = -free / 0.1
    torch.nn.utils.clip_grad_norm_([gradient], bound)
    assert free.norm() / 0.1 > 2 * bound
    assert clipped.norm() == pytest.approx(0.1 * bound, rel=1e-3)
    torch.testing.assert_close(clipped, -0.1 * gradient.grad, rtol=1e-3, atol=1e-6)
    assert torch.equal(loose, free)


@pytest.mark.parametrize(
    ("schedule", "warmup", "epochs"),
    [
        ("cosine", 2, 4),
        ("cosine", 3, 4),
        ("cosine", 0, 2),
        ("warmup_cosine", 1, 4),
    ],
)
def test_learning_rates_of_the_log(schedule: str, warmup: int, epochs: int, shades: Path, tmp_path: Path) -> None:
    arguments = ("--epochs", epochs, "--schedule", schedule, "--warmup_epochs", warmup, "--lr", 0.08)
    log = log_of(trained(shades, tmp_path, *arguments, "--batch_size", 64, "--eval_every", 9))
    rates = [float(row["lr"]) for row in log]
    expected = [with_warmup(SCHEDULES[schedule], warmup, 0.08, epoch, epochs) for epoch in range(epochs)]
    assert rates == pytest.approx(expected)
    by_hand = {
        ("cosine", 2): [0.08 / 3, 0.16 / 3, 0.08, 0.04],
        ("cosine", 3): [0.02, 0.04, 0.06, 0.08],
        ("cosine", 0): [0.08, 0.04],
        ("warmup_cosine", 1): [0.04, 0.04, 0.08, 0.0],
    }
    assert rates == pytest.approx(by_hand[schedule, warmup])


def test_a_warmup_leaves_an_epoch_to_the_schedule(shades: Path, tmp_path: Path) -> None:
    assert refused(folder_run(shades, tmp_path, "--epochs", 2, "--warmup_epochs", 2), "--warmup_epochs 2", "2 epochs")
    assert list(tmp_path.iterdir()) == []


def scalars(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: for each name its (step, value) in order."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run_folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def check_events(run_folder: Path) -> None:
    """Check that the events of a run are the numbers of its log.csv, each epoch's once."""
    log, shown = log_of(run_folder), scalars(run_folder)
    named = {"test" if name.startswith(("plain", "flip")) else "train": 0 for name in log[0]}
    for name in set(log[0]) - {"epoch"}:
        rows = [(int(row["epoch"]), float(row[name])) for row in log if row[name]]
        group = "test" if name.startswith(("plain_", "flip_")) else "train"
        found = shown.pop(f"{group}/{name}", [])
        assert [step for step, _ in found] == [epoch for epoch, _ in rows], name
        assert [value for _, value in found] == pytest.approx([value for _, value in rows], rel=1e-5), name
        named[group] += len(rows)
    assert shown == {} and min(named.values()) > 0


def test_events_are_the_log_and_no_epoch_comes_twice(shades: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    wanted = ("--epochs", 3, "--batch_size", 64, "--eval_every", 2, "--tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        assert folder_run(shades, tmp_path, *wanted).status == 130
    (run_folder,) = (path.parent for path in tmp_path.rglob("last.pth"))
    after_one = {
        name: (run_folder / name).read_bytes() for name in ("last.pth", "best.pth") if (run_folder / name).exists()
    }
    trained(shades, tmp_path, *wanted, "--resume")
    check_events(run_folder)
    # What a run leaves that was killed after it had written the events of two epochs and before their checkpoints.
    (run_folder / "metrics.json").unlink()
    for name, content in after_one.items():
        (run_folder / name).write_bytes(content)
    trained(shades, tmp_path, *wanted, "--resume")
    check_events(run_folder)
    outcome = folder_run(shades, tmp_path, *wanted, "--overwrite")
    assert outcome.status == 0, outcome.err
    check_events(run_folder)
    retrained(shades, tmp_path, "--tensorboard")
    check_events(only(tmp_path, "stage2*/log.csv").parent)


def test_a_network_of_torchvision_by_its_name(shades: Path, tmp_path: Path) -> None:
    small = ("--dataset", "folder", "--data_dir", shades, "--workers", 0, "--image_size", 32, "--resize", 32)
    used = (*small, "--network", "shufflenet_v2_x0_5", "--out", tmp_path)
    succeed("main_stage1", *used, "--epochs", 1)
    succeed("main_stage2", *used, *HEAD)
    succeed("evaluate", *used, "--cur_stage", "stage2", "--json", tmp_path / "report.json")
    stage2 = only(tmp_path, "stage2*/metrics.json")
    assert stage2.parent.parent.parent.name == "folder-shades_natural_shufflenet_v2_x0_5"
    assert read(tmp_path / "report.json")["checkpoints"]["last"]["plain"] == read(stage2)["last"]["plain"]
    states = [weights(only(tmp_path, f"{stage}*/last.pth")) for stage in ("stage1", "stage2")]
    assert same(*states, head=False) and not same(*states)


def test_settings_of_images_reach_the_command() -> None:
    settings = parse_command(STAGE2, "", ["--dataset", "folder", "--image_size", "112"]).settings
    assert (settings.views, settings.imb_ratio, settings.imb_type, settings.stem) == ("1", None, "natural", "imagenet")


@pytest.mark.parametrize("flag", ["--reuse", "--resume"])
def test_a_run_is_not_taken_for_one_on_other_test_images(flag: str, tree: Path, tmp_path: Path) -> None:
    used = ("--dataset", "list", "--data_dir", tree, *TINY, "--out", tmp_path / "out", *ONE_EPOCH)
    succeed("main_stage1", *used)
    turned = [(name, (label + 1) % CLASSES) for name, label in rows_of(tree, "test")]
    other = write_list(tree / "other.txt", turned)
    assert refused(run("main_stage1", *used, "--test_list", other, flag), "other test labels")
    assert run("main_stage1", *used, "--test_list", tree / "test.txt", flag).status == 0


def test_overlaps_are_said_before_training(tree: Path, tmp_path: Path) -> None:
    rows, tests = rows_of(tree, "train"), rows_of(tree, "test")
    shutil.copy(tree / rows[3][0], tree / tests[1][0])  # under a name of its own
    both = write_list(tree / "both.txt", [*rows, (rows[0][0], 1)])
    used = ("--dataset", "list", "--data_dir", tree, *TINY, "--out", tmp_path / "out", "--train_list", both)
    outcome = run("main_stage1", *used, *ONE_EPOCH)
    assert outcome.status == 0
    labels, pictures = outcome.err.splitlines()
    assert labels == f"warning: 1 training image stands under two labels (first: {rows[0][0]})"
    assert pictures.startswith("warning: 1 test image is a training image too, by content")
    assert f"{tests[1][0]} is {rows[3][0]}" in pictures


def test_a_batch_of_one_image_that_batch_norm_cannot_take_is_refused(shades: Path, tmp_path: Path) -> None:
    small = ("--dataset", "folder", "--data_dir", shades, "--workers", 0, "--image_size", 32, "--resize", 32)
    used = (*small, "--network", "shufflenet_v2_x0_5", "--out", tmp_path, "--epochs", 1, "--batch_size", 29)
    assert refused(run("main_stage1", *used), "the last batch of an epoch is one image", "--drop_last")
    assert not list(tmp_path.iterdir())
    succeed("main_stage1", *used, "--drop_last")


# What is said of runs that are not what they seem


def test_a_run_that_is_named_knows_where_its_images_are(shades: Path, by_folder: Path, tmp_path: Path) -> None:
    named = only(by_folder, "stage2*/metrics.json").parent
    succeed("evaluate", "--pretrained_pth", named, "--json", tmp_path / "report.json")
    assert read(tmp_path / "report.json")["checkpoints"] == read(by_folder / "report.json")["checkpoints"]
    elsewhere = run("evaluate", "--pretrained_pth", named, "--data_dir", tmp_path)
    assert refused(elsewhere, str(tmp_path))


def test_a_table_starts_from_weights(shades: Path, weights_file: Path, tmp_path: Path) -> None:
    used = ("--dataset", "folder", "--data_dir", shades, *TINY, "--out", tmp_path / "runs", "--weights", weights_file)
    table = ("unified", *used, "--epochs", 0, "--methods", "ce", "tau_norm", "--results", tmp_path / "results")
    succeed("reproduce", *table)
    (rows,) = (path for path in (tmp_path / "results").glob("unified*.csv") if not path.stem.endswith("_intervals"))
    assert {"ce", "tau_norm"} <= set(pd.read_csv(rows)["method"])


def test_a_run_of_other_things_says_so(tree: Path, tmp_path: Path) -> None:
    trained(tree, tmp_path, *ONE_EPOCH)
    retrained(tree, tmp_path)
    again = folder_run(tree, tmp_path, *HEAD, script="main_stage2")
    assert refused(again, "holds a finished run; --overwrite")
    first = only(tmp_path, f"stage1_epochs1_{TAGS}/last.pth")
    content = torch.load(first, weights_only=True)
    content["model"]["fc.bias"] += 1
    torch.save(content, first)
    late = folder_run(tree, tmp_path, *HEAD, "--pretrained_pth", first, script="main_stage2")
    assert refused(late, "holds a finished run of another stage 1, or of an earlier state of this one")
    (tree / "train" / "class0" / "new.png").write_bytes((tree / "train" / "class0" / "0.png").read_bytes())
    assert refused(folder_run(tree, tmp_path, *ONE_EPOCH), "holds a finished run on other training images")


def test_nothing_to_resume_is_said(shades: Path, tmp_path: Path) -> None:
    outcome = folder_run(shades, tmp_path, *ONE_EPOCH, "--resume")
    assert outcome.status == 0 and "nothing to resume in" in outcome.out


def test_the_check_names_few_classes_and_the_worst_last(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "train" / "class1" / "0.png").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        check.main(["--dataset", "folder", "--data_dir", str(tree)])
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.startswith("class")]
    assert [row[:3] for row in table] == [[f"class{c}", str(n), str(TESTED)] for c, n in enumerate(COUNTS)]
    assert stop.value.code == 1 and lines[-1].startswith("1 file cannot be used: ")
    worst = lines.index("not an image:")
    assert lines[worst + 1].strip() == "train/class1/0.png"
    assert not any(line.endswith(":") for line in lines[worst + 1 :])  # no kind is listed below it
    assert not any(line.startswith("smaller than 224:") for line in lines)
