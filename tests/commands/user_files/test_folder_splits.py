"""Folders as people have them through all commands: without a test split, with classes that nobody tests or trains."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import image_tree, read, refused, succeed
from tools import compare

TINY = ("--network", "resnet8", "--stem", "cifar", "--width", 4, "--image_size", 16, "--resize", 16, "--workers", 0)
ONE_EPOCH = ("--epochs", 1, "--batch_size", 8, "--wd", 5e-4)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three class folders each in train and test; test has 3 images a class."""
    return image_tree(tmp_path / "shades", 3, 9, 3)


def of(tree: Path) -> tuple[object, ...]:
    return ("--dataset", "folder", "--data_dir", tree, *TINY, "--out", tree.parent / "out")


def only(tree: Path, pattern: str) -> Path:
    [found] = (tree.parent / "out").rglob(pattern)
    return found


def test_one_folder_is_split_alike_by_all_commands(tree: Path) -> None:
    for part in ("train", "test"):
        for path in sorted((tree / part).glob("*/*")):
            (tree / path.parent.name / "inside").mkdir(parents=True, exist_ok=True)
            shutil.move(path, tree / path.parent.name / "inside" / f"{part} {path.name}")
        shutil.rmtree(tree / part)
    assert "--test_share 0.2" in refused("main_stage1", *of(tree), *ONE_EPOCH)
    split = ("--test_share", 0.25, "--test_seed", 3)
    first = succeed("main_stage1", *of(tree), *ONE_EPOCH, *split, "--holdout", 0.25)
    words = "images are tested on, 0.25 of each class, by --test_seed 3"
    folder = only(tree, "splits/*")
    assert words in first.out and str(folder) in first.out and first.err == ""
    retrained = succeed("main_stage2", *of(tree), "--finetune_epoch", 1)  # what stage 1 was trained on settles it
    report = tree.parent / "report.json"
    told = succeed("evaluate", *of(tree), "--cur_stage", "stage2", "--json", report)
    assert words in retrained.out and words in told.out and only(tree, "splits/*") == folder
    last = only(tree, "stage2_*/config.json").parent
    told = succeed("evaluate", "--pretrained_pth", last, "--out", tree.parent / "elsewhere")
    assert words in told.out and not (tree.parent / "elsewhere" / "splits").exists()  # a report writes no lists
    configs = [read(only(tree, f"{stage}_*/config.json")) for stage in ("stage1", "stage2")]
    assert configs[0]["identity"] == configs[1]["identity"]
    assert [config["settings"]["test_share"] for config in configs] == [0.25, 0.25]
    assert "test_share0.25_test_seed3" in only(tree, "stage1_*/config.json").parent.name
    assert read(report)["checkpoints"]["last"]["plain"] == read(only(tree, "stage2_*/metrics.json"))["last"]["plain"]
    lists = {name: (folder / f"{name}.txt").read_text().splitlines() for name in ("train", "val", "test")}
    assert sum(map(len, lists.values())) == len(list(tree.rglob("*.png")))
    named = ("--pretrained_pth", only(tree, "stage1_*/last.pth"))
    assert "was trained with --test_share 0.25, not 0.5" in refused("evaluate", *named, "--test_share", 0.5)
    assert succeed("evaluate", *named, "--test_share", 0.25, "--skip_bad", 1).err == ""  # the file says which data
    (tree / "class0" / "@eaDir").mkdir()
    (tree / "class0" / "notes.txt").touch()
    csv = tree.parent / "rows.csv"
    predicted = succeed("predict", "--pretrained_pth", only(tree, "stage2_*/last.pth"), "--images", tree, "--csv", csv)
    assert "2 other entries passed over" in predicted.out and ".txt 1 (class0/notes.txt)" in predicted.out
    assert "class0/@eaDir" in predicted.out and "class0/inside/train " in csv.read_text()


def test_a_class_that_nobody_tests_is_in_no_mean(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tree / "test" / "class1")
    warning = "warning: 1 of 3 classes have no test image, so no accuracy, and are in no mean: class1\n"
    first = succeed("main_stage1", *of(tree), *ONE_EPOCH, "--holdout", 0.25, plots=True)
    second = succeed("main_stage2", *of(tree), "--finetune_epoch", 1, "--holdout", 0.25, plots=True)
    told = succeed("evaluate", *of(tree), "--cur_stage", "stage2", "--holdout", 0.25)
    assert first.err == second.err == told.err == warning
    for stage in ("stage1", "stage2"):
        metrics = read(only(tree, f"{stage}_*/metrics.json"))
        for way in ("plain", "flip"):
            report = metrics["last"][way]
            accuracies = report["per_class_accuracy"]
            assert accuracies[1] is None and report["many"] is None
            assert report["few"] == pytest.approx(np.mean([accuracies[0], accuracies[2]]))
        assert metrics["logits"]["test"]["column"]["loma"][1] is None
        assert metrics["logits"]["train"]["column"]["loma"][1] is not None
    compare.main([str(only(tree, f"{stage}_*/metrics.json").parent) for stage in ("stage1", "stage2")])
    assert "los" in capsys.readouterr().out


def test_a_class_that_nobody_trains_is_left_out_by_all_commands(tree: Path) -> None:
    for part in ("train", "test"):
        shutil.move(tree / part / "class1", tree / part / "b")  # between the others
        shutil.move(tree / part / "class0", tree / part / "a")
    shutil.rmtree(tree / "train" / "b")
    assert "--drop_empty_classes" in refused("main_stage1", *of(tree), *ONE_EPOCH)
    line = "1 of 3 classes have no training image and are left out: b\n"
    outcomes = [
        succeed("main_stage1", *of(tree), *ONE_EPOCH, "--drop_empty_classes"),
        succeed("main_stage2", *of(tree), "--finetune_epoch", 1),
        succeed("evaluate", *of(tree), "--cur_stage", "stage2"),
    ]
    assert all(line in outcome.out and "3 test images are of these" in outcome.out for outcome in outcomes)
    config = read(only(tree, "stage2_*/config.json"))
    assert config["class_names"] == ["a", "class2"] and config["settings"]["drop_empty_classes"] is True
    assert config["identity"]["test"]["images"] == 6
    # A class that was emptied after training is left out too: nothing but the flag is asked for.
    kept = [tree.parent / "other" / part for part in ("train", "test")]
    for folder in kept:
        shutil.copytree(tree / folder.name, folder)
    shutil.rmtree(tree / "test" / "b")
    there = ("--dataset", "folder", "--data_dir", tree, *TINY, "--out", tree.parent / "clean")
    succeed("main_stage1", *there, *ONE_EPOCH)
    [run] = (tree.parent / "clean").rglob("last.pth")
    again = ("--pretrained_pth", run, "--data_dir", kept[0].parent)
    assert "--drop_empty_classes" in refused("evaluate", *again)
    assert line in succeed("evaluate", *again, "--drop_empty_classes").out
