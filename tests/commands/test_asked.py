"""`--test_prior` and `--coverage` of evaluate.py and predict.py, on a run with held-out images and one without."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.prediction_sets.record import KEY, unpack_held_out
from evaluation.prediction_sets.thresholds import class_thresholds
from runs.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers import is_refusal, read, refused, run, succeed
from tools.release import main as release

COLOURS = {"blue, deep": (12, 2), "green": (8, 1), "red": (4, 0)}  # class name: training images, channel
FAST = ("--network", "resnet8", "--stem", "cifar", "--width", 4, "--image_size", 16, "--resize", 18, "--workers", 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes that colour alone tells, not well."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part in ("train", "test"):
        for name, (count, channel) in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(count if part == "train" else 4):
                pixels = generator.integers(0, 120, (20, 20, 3))
                pixels[..., channel] += 30
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


def train(photos: Path, out: Path, *more: object) -> Path:
    data = ("--dataset", "folder", "--data_dir", photos, *FAST, "--out", out, "--batch_size", 8)
    succeed("main_stage1", *data, "--epochs", 2, "--lr", 0.05, "--augment", "crop", *more)
    return next(out.rglob("metrics.json")).parent


@pytest.fixture(scope="module")
def held(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(photos, tmp_path_factory.mktemp("held"), "--holdout", 0.5)


@pytest.fixture(scope="module")
def plain(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(photos, tmp_path_factory.mktemp("plain"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predicted(tmp_path: Path, *arguments: object) -> tuple[list[dict[str, str]], str]:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
    outcome = succeed("predict", *arguments, "--csv", path, "--workers", 0)
    return rows_of(path), outcome.out


def test_a_report_has_what_was_asked_for_and_nothing_else(held: Path, tmp_path: Path) -> None:
    shares = tmp_path / "shares.csv"
    shares.write_text('class,share\n"blue, deep",1\ngreen,1\nred,8\n')
    target = ("--pretrained_pth", held / "last.pth", "--workers", 0)
    out = succeed("evaluate", *target, "--test_prior", shares, "--coverage", 0.6, "--json", tmp_path / "a.json").out
    report = read(tmp_path / "a.json")["checkpoints"]["last"]
    prior, sets = report["test_prior"], report["prediction_sets"]
    assert prior["shares"] == pytest.approx([0.1, 0.1, 0.8]) and "counts divided by their sum, 10" in prior["prior"]
    accuracy = np.array(prior["plain"]["after"]["per_class_accuracy"])
    assert prior["plain"]["after"]["expected"] == pytest.approx(float(accuracy @ [0.1, 0.1, 0.8]))
    assert prior["plain"]["before"]["all"] == report["plain"]["all"]
    assert "measured on its predictions for 12 held-out images" in out and "that follow the test prior" in out
    assert sets["asked"] == 60 and sets["held_out_images"] == 12
    # What the checkpoint keeps is what the images give.
    kept = unpack_held_out(load_checkpoint(held / "last.pth").content[KEY])  # type: ignore[index]
    assert kept.prior == pytest.approx(prior["classifier_shares"]) and len(kept.labels) == 12
    assert kept.temperature == pytest.approx(prior["temperature"])
    succeed("evaluate", *target, "--json", tmp_path / "b.json")
    usual = read(tmp_path / "b.json")["checkpoints"]["last"]
    assert usual == {name: report[name] for name in usual} and set(report) - set(usual) == {
        "test_prior",
        "prediction_sets",
    }


def test_predictions_under_a_prior_and_their_sets(held: Path, photos: Path, tmp_path: Path) -> None:
    images = ("--pretrained_pth", held, "--images", photos / "test")
    usual, _ = predicted(tmp_path, *images, "--top", 3)
    flat, out = predicted(tmp_path, *images, "--top", 3, "--test_prior", "balanced")
    kept = unpack_held_out(load_checkpoint(held / "last.pth").content[KEY])  # type: ignore[index]

    def shares(rows: list[dict[str, str]]) -> np.ndarray:
        found = {(row["file"], row["class"]): float(row["probability"]) for row in rows}
        return np.array(
            [[found[file, name] for name in COLOURS] for file in dict.fromkeys(row["file"] for row in rows)]
        )

    wanted = shares(usual) / kept.prior
    np.testing.assert_allclose(shares(flat), wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-4)
    assert "test prior: every class alike; the classifier's own: measured on" in out
    rows, out = predicted(tmp_path, *images, "--top", 2, "--coverage", 0.6, "--sets", "classwise")
    assert list(rows[0]) == ["file", "rank", "class", "probability", "set", "error"]
    limits = class_thresholds(kept.probabilities, kept.labels, 3, 0.6, "classwise")
    sets = [[name for name, member in zip(COLOURS, row, strict=True) if member] for row in shares(usual) >= limits]
    assert [json.loads(row["set"]) for row in rows[::2]] == sets and {row["set"] for row in rows[1::2]} == {""}
    assert "prediction sets: classwise, coverage 0.6, from 12 held-out images" in out
    _, out = predicted(tmp_path, *images, "--coverage", 0.7, "--sets", "classwise")
    assert "1 class has too few of them" in out and ": in every set" in out


def test_a_prior_that_was_measured_at_another_temperature_says_nothing(
    held: Path, photos: Path, tmp_path: Path
) -> None:
    """Flatter probabilities stand for flatter shares: the ones that cross-entropy leaves are what is known of them."""
    images = ("--pretrained_pth", held, "--images", photos / "test", "--top", 3, "--temperature", 3)
    usual, _ = predicted(tmp_path, *images)
    flat, out = predicted(tmp_path, *images, "--test_prior", "balanced")
    counts = dict(zip(COLOURS, load_checkpoint(held / "last.pth").config["class_counts"], strict=True))
    ratio = {}
    for row in flat:
        (before,) = (one for one in usual if (one["file"], one["class"]) == (row["file"], row["class"]))
        value = float(row["probability"]) / float(before["probability"]) * counts[row["class"]]
        assert value == pytest.approx(ratio.setdefault(row["file"], value), rel=1e-4)
    assert "that of the training images, as --loss ce leaves it; its own was measured at the temperature" in out


def test_a_released_file_answers_too(held: Path, photos: Path, tmp_path: Path) -> None:
    release([str(held), str(tmp_path / "own.safetensors")])
    images = ("--images", photos / "test", "--coverage", 0.6)
    (tmp_path / "csv").mkdir()
    from_run, from_file = (
        predicted(tmp_path / "csv", "--pretrained_pth", path, *images)[0]
        for path in (held, tmp_path / "own.safetensors")
    )
    assert [row["file"] for row in from_run] == [row["file"] for row in from_file]
    assert sum(row["set"] == other["set"] for row, other in zip(from_run, from_file, strict=True)) >= 11


def test_a_class_of_the_share_0_is_never_predicted(held: Path, photos: Path, tmp_path: Path) -> None:
    shares = tmp_path / "shares.json"
    shares.write_text(json.dumps({"blue, deep": 0, "green": 0.5, "red": 0.5}))
    images = ("--pretrained_pth", held, "--images", photos / "test", "--test_prior", shares)
    (tmp_path / "csv").mkdir()
    rows, out = predicted(tmp_path / "csv", *images, "--top", 2)
    assert {row["class"] for row in rows} == {"green", "red"} and "1 class has the share 0" in out
    assert is_refusal(run("predict", *images, "--top", 3), "--top 3", "share 0 to 1 of 3", alone=False)
    evaluated = run("evaluate", "--pretrained_pth", held / "last.pth", "--workers", 0, "--test_prior", shares)
    assert is_refusal(evaluated, "share 0 to 'blue, deep'", alone=False)


def test_without_held_out_images(plain: Path, photos: Path, tmp_path: Path) -> None:
    target = ("--pretrained_pth", plain / "last.pth", "--workers", 0)
    assert is_refusal(
        run("evaluate", *target, "--coverage", 0.9), "--coverage needs held-out", "--holdout 0.1", alone=False
    )
    predicting = ("--pretrained_pth", plain, "--images", photos / "test", "--csv", tmp_path / "a.csv", "--workers", 0)
    assert is_refusal(run("predict", *predicting, "--coverage", 0.9), "keeps nothing", "--holdout 0.1", alone=False)
    assert not (tmp_path / "a.csv").exists()
    out = succeed("evaluate", *target, "--test_prior", "train").out
    assert "that of the training images, as --loss ce leaves it; no held-out images" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--coverage", 1), ["above 0 and below 1"]),
        (("--coverage", 0), ["above 0 and below 1"]),
        (("--coverage", "nan"), ["above 0 and below 1"]),
        (("--coverage", 0.9, "--temperature", 7), ["leave --temperature out"]),
        (("--test_prior", "nowhere"), ["nowhere", "no such file"]),
    ],
)
def test_what_cannot_be_answered_is_refused(held: Path, photos: Path, flags: Any, words: list[str]) -> None:
    outcome = run("predict", "--pretrained_pth", held, "--images", photos / "test", *flags, "--csv", "-")
    assert outcome.status == 2 and outcome.err.splitlines()[-1].startswith("error: "), outcome
    assert all(word in outcome.err for word in words)


def test_a_damaged_record_is_refused(held: Path, photos: Path, tmp_path: Path) -> None:
    content = torch.load(held / "last.pth", weights_only=True)
    save_checkpoint(tmp_path / "bad.pth", {**content, KEY: {**content[KEY], "images": [1, 2, 3]}})
    outcome = run("predict", "--pretrained_pth", tmp_path / "bad.pth", "--images", photos / "test")
    assert is_refusal(outcome, "is damaged", KEY, alone=False)


# The page


def test_a_page_has_tables_figures_and_the_images_that_are_wrong(plain: Path, tmp_path: Path) -> None:
    out = succeed(
        "evaluate", "--pretrained_pth", plain, "--html", tmp_path / "page.html", "--json", tmp_path / "r.json"
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"written to {tmp_path / 'page.html'}" in out.out and page.endswith("</html>\n")
    record = read(tmp_path / "r.json")["checkpoints"]["last"]
    wrong = sum(record["plain"]["class_images"]) - sum(
        round(accuracy * images / 100)
        for accuracy, images in zip(record["plain"]["per_class_accuracy"], record["plain"]["class_images"], strict=True)
    )
    assert 0 < wrong == len(record["mistakes"]) and page.count("<img ") == 3 + wrong  # curves, classes, logits
    first = record["mistakes"][0]
    names = read(tmp_path / "r.json")["class_names"]
    assert f"{names[first['true']]}, taken for {names[first['predicted']]} (" in page and ".png" in page
    lines = out.out.split("worst classes")[1].split("written to")[0].splitlines()
    assert max(map(len, lines)) <= 80


def test_a_run_leaves_a_table_of_its_classes(plain: Path) -> None:
    metrics = read(plain / "metrics.json")
    rows = rows_of(plain / "per_class.csv")
    assert [row["name"] for row in rows] == metrics["class_names"] == sorted(COLOURS)
    assert [int(row["training_images"]) for row in rows] == metrics["class_counts"]
    accuracy = metrics["last"]["plain"]["per_class_accuracy"]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(accuracy, rel=1e-4)
    confused = metrics["confusion"]["confused_with"]
    assert [row["most_confused_with"] for row in rows] == [
        "" if k is None else metrics["class_names"][k] for k in confused
    ]


def test_a_page_that_has_no_place_is_refused_at_once(plain: Path, tmp_path: Path) -> None:
    for place, words in ((tmp_path, "it is a folder"), (tmp_path / "no" / "page.html", "there is no folder")):
        outcome = run("evaluate", "--pretrained_pth", plain, "--html", place)
        assert is_refusal(outcome, "--html", words)
    assert not list(tmp_path.iterdir())


# Bounds of the shot groups


def test_shots_are_grouped_as_asked(plain: Path, tmp_path: Path) -> None:
    """12, 8 and 4 training images: few-shot all, by the field's bounds."""
    usual = succeed("evaluate", "--pretrained_pth", plain)
    assert "(0 many, 0 medium, 3 few; --shots thirds: by their sizes)" in usual.out
    out = succeed("evaluate", "--pretrained_pth", plain, "--shots", "thirds", "--json", tmp_path / "r.json").out
    assert "(1 many, 1 medium, 1 few: many > 8, few < 8)" in out
    found = read(tmp_path / "r.json")
    report = found["checkpoints"]["last"]["plain"]
    by_size = dict(zip(found["class_counts"], report["per_class_accuracy"], strict=True))
    assert [report[name] for name in ("many", "medium", "few")] == [by_size[12], by_size[8], by_size[4]]
    assert found["shot_bounds"] == {"many_above": 8, "few_below": 8}
    given = succeed("evaluate", "--pretrained_pth", plain, "--shots", "8,8").out
    assert given == out.split("written to")[0]


def test_a_training_groups_as_asked_too(tmp_path: Path) -> None:
    """By 30 and 10 images four of the digits' classes are many-, three medium- and three few-shot."""
    common = ("--dataset", "digits", "--out", tmp_path, "--shots", "30,10")
    first = succeed("main_stage1", *common, "--epochs", 1, "--width", 4)
    second = succeed("main_stage2", *common, "--stage1_seed", 0, "--pretrained_pth", next(tmp_path.rglob("last.pth")))
    for outcome, stage in ((first, "stage1"), (second, "stage2")):
        assert "many > 30, few < 10" in outcome.out
        folder = next(path for path in tmp_path.rglob("metrics.json") if path.parent.name.startswith(stage)).parent
        metrics = read(folder / "metrics.json")
        report, counts = metrics["last"]["plain"], np.array(metrics["class_counts"])
        accuracy = np.array(report["per_class_accuracy"])
        groups = {"many": counts > 30, "medium": (counts >= 10) & (counts <= 30), "few": counts < 10}
        assert {name: report[name] for name in groups} == pytest.approx(
            {name: accuracy[members].mean() for name, members in groups.items()}
        )
        assert metrics["shot_bounds"] == {"many_above": 30, "few_below": 10}
        assert set(metrics["confusion"]["groups"]) == set(groups)
        shots = {row["class"]: row["shot"] for row in csv.DictReader((folder / "per_class.csv").open())}
        assert all(groups[shots[str(label)]][label] for label in range(10))
        log = list(csv.DictReader((folder / "log.csv").open()))
        assert float(log[-1]["plain_few"]) == pytest.approx(report["few"])
        again = tmp_path / "again.json"
        for given, same in ((), True), (("--shots", "100,20"), False):  # as the run did, unless others are given
            succeed("evaluate", "--pretrained_pth", folder, "--json", again, *given)
            found = read(again)["checkpoints"]["last"]["plain"]
            assert ([found[name] for name in groups] == [report[name] for name in groups]) is same
    assert "--shots" in refused("reproduce", "unified", "--dataset", "digits", "--shots", "thirds")


@pytest.mark.parametrize("given", ["10", "5,20", "a,b", "20,-1", "", "1,2,3", "thirdds"])
def test_shots_that_make_no_sense_are_refused(plain: Path, given: str) -> None:
    assert is_refusal(run("evaluate", "--pretrained_pth", plain, "--shots", given), "--shots", alone=False)


# The area of crops


def test_the_area_of_crops_is_stage_1s_and_stage_2_follows_it(photos: Path, tmp_path: Path) -> None:
    whole = train(photos, tmp_path / "whole", "--crop_area", 0.9)
    usual = train(photos, tmp_path / "usual")
    assert "crop_area0.9" in whole.name and "crop_area" not in usual.name
    assert read(whole / "config.json")["images"]["crop_area"] == 0.9
    assert "crop_area" not in read(usual / "config.json")["images"]
    losses = [[row["loss"] for row in rows_of(folder / "log.csv")] for folder in (whole, usual)]
    assert losses[0] != losses[1]
    stage2 = ("--method", "los", "--finetune_epoch", 1, "--workers", 0, "--out", tmp_path / "whole")
    succeed("main_stage2", "--pretrained_pth", whole, *stage2, "--views", 2)
    (folder,) = (tmp_path / "whole").rglob("stage2*")
    assert read(folder / "config.json")["settings"]["crop_area"] == 0.9
    other = run("main_stage2", "--pretrained_pth", whole, *stage2, "--crop_area", 0.5)
    assert is_refusal(other, "was trained with --crop_area 0.9, not 0.5", alone=False)
    for wrong in (0, 1.5, -1):
        assert run("main_stage1", "--dataset", "folder", "--data_dir", photos, "--crop_area", wrong).status == 2
