"""Anyone's lists, from the check to predictions: a CSV, labels that are ids, names from a file."""

import csv
import json
from pathlib import Path

import pytest

from tests.helpers import Outcome, image_tree, read, refused, run, succeed
from tests.image_runs import RESNET, SIZES
from tools import check_dataset as check

NAMES = ["daisy", "rose", "tulip"]


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Images of three classes, and a table of them with ids, species, genus and split."""
    root = image_tree(tmp_path / "flowers", classes=3, train=8)
    lines = ["image_id;species;genus;split"]
    for path in sorted(root.glob("*/*/*")):
        split, folder, name = path.relative_to(root).parts
        label = int(folder.removeprefix("class"))
        lines.append(f"{split}/{folder}/{name.removesuffix('.png')};{NAMES[label]};{label // 2 * 7 + 3};{split}")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    return root


def flags(flowers: Path, *more: object) -> tuple[object, ...]:
    data = ("--dataset", "list", "--train_list", flowers.parent / "all.csv", "--image_root", flowers)
    return (*data, "--image_suffix", ".png", *RESNET, *SIZES, "--workers", 0, "--out", flowers.parent / "out", *more)


def train(flowers: Path, *more: object) -> Outcome:
    return succeed("main_stage1", *flags(flowers, "--epochs", 1, *more))


def test_a_table_from_the_check_to_predictions(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, report = flowers.parent / "all.csv", flowers.parent / "check.json"
    words = ["--dataset", "list", "--train_list", table, "--image_root", flowers, "--image_suffix", ".png"]
    check.main([*map(str, words), "--out", str(flowers.parent / "out"), "--json", str(report)])
    said = capsys.readouterr().out
    columns = f"{table}: paths in column 'image_id', labels in 'species', splits in 'split'; 6 test, 21 train"
    classes = f"{table}: 3 classes, sorted by name: 0 daisy, 1 rose, 2 tulip"
    assert columns in said and classes in said and read(report)["reading"] == [columns, classes]
    assert read(report)["class_counts"] == [8, 7, 6]
    out = train(flowers).out
    assert columns in out and classes in out
    config = read(next(flowers.parent.glob("out/list-all*/seed0/stage1*/config.json")))
    assert config["class_names"] == NAMES and config["settings"]["image_suffix"] == ".png"
    assert config["lists"] == {
        "columns": {"path": "image_id", "label": "species", "split": "split"},
        "labels": {name: name for name in NAMES},
    }
    stage2 = flags(flowers, "--finetune_epoch", 1)
    succeed("main_stage2", *stage2)
    succeed("evaluate", *flags(flowers), "--cur_stage", "stage2", "--json", flowers.parent / "report.json")
    folder = next(flowers.parent.glob("out/list-all*/seed0/stage2*"))
    found = flowers.parent / "found.csv"
    succeed("predict", "--pretrained_pth", folder, "--images", flowers / "test" / "class1", "--csv", found)
    with open(found, newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} <= set(NAMES)


def test_a_run_goes_on_with_the_columns_that_it_was_begun_with(flowers: Path) -> None:
    train(flowers, "--label_column", "species")
    assert "using the finished run" in train(flowers, "--reuse").out  # the guess is the same column
    for how in ("--reuse", "--resume", "--overwrite"):
        other = flags(flowers, "--epochs", 1, "--label_column", "genus", how)
        if how == "--overwrite":
            assert "labels 3, 10 are classes 0-1" in succeed("main_stage1", *other).out
        else:
            assert "other class names" in refused("main_stage1", *other)
    said = refused("main_stage2", *flags(flowers, "--label_column", "species"))
    assert "learned" in said or "classes" in said


def test_names_from_a_file_are_shown_everywhere(flowers: Path) -> None:
    names = flowers.parent / "names.json"
    names.write_text(json.dumps({"10": "lily", "3": "aster"}))
    more = ("--label_column", "genus", "--class_names", names)
    out = train(flowers, *more).out
    assert "labels 3, 10 are classes 0-1" in out
    config = read(next(flowers.parent.glob("out/list-all*/seed0/stage1*/config.json")))
    assert config["class_names"] == ["aster", "lily"]
    assert config["lists"]["labels"] == {"3": "aster", "10": "lily"}
    succeed("main_stage2", *flags(flowers, "--finetune_epoch", 1, *more))
    names.write_text(json.dumps({"10": "lily", "3": "crocus"}))
    assert "class 0 is 'aster' there and 'crocus' here" in refused(
        "main_stage2", *flags(flowers, "--finetune_epoch", 1, "--overwrite", *more)
    )


def test_flags_of_lists_are_for_lists(tmp_path: Path) -> None:
    for flag in ("--path_column", "--label_column", "--split_column", "--image_suffix", "--class_names"):
        outcome = run("main_stage1", "--dataset", "folder", "--data_dir", tmp_path, flag, "x")
        assert outcome.status == 2 and f"{flag} x: lists are for" in outcome.err
