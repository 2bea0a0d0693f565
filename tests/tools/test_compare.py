"""What is put side by side: repeats are averaged, and nothing else is."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.intervals.correct import pack_correct, unpack_correct
from evaluation.run_rows import csv_row, data_sha256, read_run, refuse_mixed
from evaluation.shown_tables import compared_tables
from tables.request import name_for
from tests.helpers import folder_of, read, stage1
from tools import compare
from utils.errors import UserError
from utils.files import write_json

Run = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    out = tmp_path_factory.mktemp("run")
    stage1(out, "--epochs", 1, "--width", 4)
    return folder_of(out, "stage1_epochs1_width4")


def varied(run: Path, place: Path, seed: int = 0, accuracy: float | None = None, **config: Any) -> Path:
    """Return a copy of a run with another seed, accuracy of the last epoch, or entries of config.json."""
    shutil.copytree(run, place)
    metrics, before = read(place / "metrics.json"), read(place / "config.json")
    metrics["seed"] = before["settings"]["seed"] = seed
    metrics["train_seconds"] += 1 + seed
    if accuracy is not None:
        metrics["last"]["plain"]["all"] = accuracy
    write_json(place / "metrics.json", metrics)
    write_json(place / "config.json", {**before, **config})
    return place


def shown(capsys: pytest.CaptureFixture[str], *folders: Path) -> tuple[list[str], str]:
    """The lines of the runs, those of their accuracies in the last epoch behind them, and the notes."""
    compare.main([str(folder) for folder in folders])
    said = capsys.readouterr()
    runs, accuracies, *_ = (table.splitlines()[2:] for table in said.out.split("\n\n"))
    return [f"{run} | {own}" for run, own in zip(runs, accuracies, strict=True)], said.err


def test_repeats_are_averaged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [varied(run, tmp_path / f"{seed}", seed, 80.0 + 10 * seed) for seed in (0, 1)]
    lines, notes = shown(capsys, *folders)
    assert len(lines) == 1 and "0, 1" in lines[0] and "85.0 ± 7.1" in lines[0] and notes == ""


@pytest.mark.parametrize("entry", ["subset", "test", "class_names", "weights"])
def test_other_data_of_one_name_are_not_averaged(
    entry: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As two folders of images with one name in two places, one seed or several."""
    other = {"subset": {"content_sha256": "0" * 64}, "test": {"content_sha256": "1" * 64}, "class_names": ["a"]}
    changed = {entry: other.get(entry, {"sha256": "2" * 64})}
    for seed in (0, 1):
        folders = [
            varied(run, tmp_path / f"{seed}", 0, 80.0),
            varied(run, tmp_path / f"{seed}x", seed, 100.0, **changed),
        ]
        lines, notes = shown(capsys, *folders)
        assert len(lines) == 2 and all(", data " in line and "±" not in line for line in lines)
        assert " 80.0 " in lines[0] and " 100.0 " in lines[1]
        assert notes == (
            "note: runs of one name are of different data: they are told apart by its sha256, and not averaged\n"
        )


def test_the_fields_report_is_compared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of earlier versions lack most of it, which is shown empty."""
    old = varied(run, tmp_path / "old", tags=["epochs2"])
    metrics = read(old / "metrics.json")
    kept = ("all", "many", "medium", "few", "macro_f1", "ece", "per_class_accuracy")
    for checkpoint in ("last", "best"):
        metrics[checkpoint]["plain"] = {name: metrics[checkpoint]["plain"][name] for name in kept}
    report = metrics["rebalanced"]["transductive"]
    report["plain"] = {name: report["plain"][name] for name in kept if name != "ece"}
    write_json(old / "metrics.json", metrics)
    files = {f"--{kind}": tmp_path / f"a.{kind}" for kind in ("csv", "markdown")}
    compare.main([str(run), str(old), *(str(word) for pair in files.items() for word in pair)])
    text, markdown = capsys.readouterr().out, files["--markdown"].read_text()
    new, before = pd.read_csv(files["--csv"]).to_dict("records")
    report = read(run / "metrics.json")["last"]["plain"]
    for name in ("harmonic", "geometric", "worst", "worst_10", "worst_10_percent", "top_5", "classwise_ece", "nll"):
        assert new[f"last_plain_{name}"] == pytest.approx(report[name])
        assert pd.isna(before[f"last_plain_{name}"])
    assert pd.notna(before["last_plain_ece"])
    for title in ("How even the classes are", "Probabilities, last epoch"):
        table = text[text.index(title) :].split("\n\n")[0].splitlines()
        assert len(table) == 4 and table[3].split().count("-") >= 3 and "-" not in table[2].split()
    assert f"| {report['brier']:.3f} | {report['nll']:.3f} |" in markdown


def test_test_images_that_are_not_balanced_are_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = varied(run, tmp_path / "other", 1)
    metrics = read(other / "metrics.json")
    metrics["last"]["plain"]["test_images"] |= {"smallest_class": 2, "absent_classes": 3}
    write_json(other / "metrics.json", metrics)
    notes = shown(capsys, run, other)[1].splitlines()
    assert len(notes) == 2 and "not balanced, 2 to 50 of a class" in notes[0] and "3 classes have no test" in notes[1]


def test_groups_by_different_bounds_are_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same, other = varied(run, tmp_path / "same", 1), varied(run, tmp_path / "other", 2)
    assert shown(capsys, run, same)[1] == ""
    metrics = read(other / "metrics.json")
    write_json(other / "metrics.json", {**metrics, "shot_bounds": {"many_above": 30, "few_below": 10}})
    note = "many > 100, few < 20 in stage 1; many > 30, few < 10 in stage 1\n"
    assert shown(capsys, run, other)[1].endswith(note)
    for damaged in (None, {"many_above": 30}, {"many_above": "a", "few_below": 10}):
        write_json(other / "metrics.json", {**metrics, "shot_bounds": damaged})
        with pytest.raises(UserError, match="damaged"):
            read_run(other)
    del metrics["shot_bounds"]  # an earlier version's
    write_json(other / "metrics.json", metrics)
    assert shown(capsys, run, other)[1] == ""


# Intervals and paired tests


def test_the_headline_has_its_interval_and_a_paired_test(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`other` is right on the images that the run is wrong on, in all but one class."""
    other = varied(run, tmp_path / "other", tags=["epochs2"], command="main_stage1.py")
    metrics = read(other / "metrics.json")
    report = metrics["last"]["plain"]
    right = ~unpack_correct(report["correct"], report["class_images"])
    right[: report["class_images"][0]] ^= True
    report["correct"] = pack_correct(right, np.zeros(len(right)))
    report["all"] = 100 * float(right.mean())
    write_json(other / "metrics.json", {**metrics, "width": 5})
    file = tmp_path / "a.csv"
    compare.main([str(run), str(other), "--csv", str(file)])
    text, rows = capsys.readouterr().out, pd.read_csv(file)
    assert (rows["headline_all"] == rows["last_plain_all"]).all()
    assert (rows["headline_all_low"] < rows["headline_all"]).all()
    assert pd.isna(rows["reference"][0]) and rows["reference"][1] == "stage 1, epochs1 width4"
    assert rows["difference_all"][1] == pytest.approx(rows["headline_all"][1] - rows["headline_all"][0])
    assert rows["difference_all_low"][1] < rows["difference_all"][1] < rows["difference_all_high"][1]
    assert (
        "Accuracy, difference to stage 1, epochs1 width4 in points, headline:" in text
        and text.count("bootstrap over the test") == 1
    )
    compare.main([str(run), str(other), "--reference", str(other)])
    assert "difference to stage 1, epochs2 in points" in capsys.readouterr().out


def test_lines_of_one_name_say_how_they_differ(run: Path, tmp_path: Path) -> None:
    tags = read(run / "config.json")["tags"]
    held, small = varied(run, tmp_path / "a", tags=[*tags, "holdout0.2"]), varied(run, tmp_path / "b")
    write_json(small / "metrics.json", {**read(small / "metrics.json"), "network": "resnet20"})
    again = varied(run, tmp_path / "c", seed=1)

    def names(*folders: Path) -> list[str]:
        rows = pd.DataFrame([csv_row(*read_run(folder)) for folder in folders])
        return compared_tables(rows)["Runs"]["run"].tolist()

    assert names(run, again) == ["stage 1"]
    assert names(run, held, again) == ["stage 1", "stage 1, holdout0.2"]
    assert names(run, small) == ["stage 1, resnet8", "stage 1, resnet20"]


def other_test_images(config: dict[str, Any]) -> dict[str, Any]:
    identity = copy.deepcopy(config["identity"])
    identity["test"]["order_sha256"] = "0" * 64
    return identity


def test_runs_on_other_test_images_have_no_paired_test(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = varied(run, tmp_path / "other", identity=other_test_images(read(run / "config.json")))
    _, notes = shown(capsys, run, other)
    assert notes.count("no paired test of ") == 1 and "other test images than stage 1" in notes
    with pytest.raises(UserError, match=r"no paired test: .* other test images .*; leave it out"):
        compare.main([str(run), str(other), "--reference", str(run)])


def test_runs_of_before_have_no_interval_and_say_so_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [varied(run, tmp_path / f"{seed}", seed, tags=["epochs2"], command=str(seed)) for seed in (1, 2)]
    for folder in old:
        metrics = read(folder / "metrics.json")
        del metrics["last"]["plain"]["correct"]
        write_json(folder / "metrics.json", metrics)
    _, notes = shown(capsys, run, *old)
    assert notes.count("no interval") == 1
    shown(capsys, *old)
    with pytest.raises(UserError, match="--reference does not record which test images are right"):
        compare.main([str(run), str(old[0]), "--reference", str(old[0])])
    with pytest.raises(UserError, match="none of the runs that are compared"):
        compare.main([str(run), "--reference", str(old[0])])


@pytest.mark.parametrize("damage", ["", "AAAA", 3, None])
def test_a_damaged_record_of_images_is_refused(damage: Any, run: Path, tmp_path: Path) -> None:
    other = varied(run, tmp_path / "other")
    metrics = read(other / "metrics.json")
    metrics["last"]["plain"]["correct"] = damage
    write_json(other / "metrics.json", metrics)
    with pytest.raises(UserError, match="other is damaged"):
        compare.main([str(run), str(other)])


def test_a_run_named_twice_counts_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to(run)
    copied = Path(shutil.copytree(run, tmp_path / "copy"))
    lines, notes = shown(capsys, run, run, link, copied)
    assert len(lines) == 1 and "±" not in lines[0]
    assert notes.splitlines() == [
        f"note: {run} is named twice: it counts once",
        f"note: {link} is named twice: it counts once",
        f"note: {copied} is a copy of {run}: it counts once",
    ]


def test_a_repetition_of_a_seed_is_no_repeat(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says nothing of other seeds: "seeds 0, 0: +- 0.0" would."""
    lines, _ = shown(capsys, run, varied(run, tmp_path / "again", 0))
    assert len(lines) == 2 and ", run 2" in lines[1] and not any("±" in line for line in lines)


def test_with_held_out_images_seeds_are_repeats_nevertheless(run: Path) -> None:
    """The seed chooses which images are held out, and with that the training images."""
    config = read(run / "config.json")
    held_out = {**config, "settings": {**config["settings"], "holdout": 0.2}}
    assert data_sha256(held_out) == data_sha256({**held_out, "subset": {"content_sha256": "0" * 64}})
    assert data_sha256(held_out) != data_sha256({**held_out, "test": {"content_sha256": "0" * 64}})


def test_images_on_disk_are_told_apart_by_content_where_it_is_recorded() -> None:
    def config(pixels: str, how: str = "content") -> dict[str, Any]:
        part = {"content_sha256": pixels * 64}
        subset = {"content_sha256": "0" * 64, "content": "labels and relative paths"}
        return {"subset": subset, "identity": {"how": how, "train": part, "holdout": part, "test": part}}

    assert data_sha256(config("a")) == data_sha256(config("a")) != data_sha256(config("b"))
    by_names, before = data_sha256(config("a", "names")), data_sha256({"subset": config("a")["subset"]})
    assert by_names == before and by_names.startswith("names-")
    refuse_mixed(pd.DataFrame({"data_sha256": [data_sha256(config("a")), before]}))  # not known to be other data
    with pytest.raises(UserError, match="different data"):
        refuse_mixed(pd.DataFrame({"data_sha256": [data_sha256(config("a")), data_sha256(config("b"))]}))


ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 90)), min_size=1, max_size=8)


@given(chosen=ROWS)
@settings(max_examples=60, deadline=None)
def test_a_mean_is_over_seeds_of_one_data_set(run: Path, chosen: list[tuple[int, int, int]]) -> None:
    """Whatever runs there are: a line of the table holds each seed once, and one data set."""
    metrics, config = read_run(run)
    rows = []
    for data, seed, accuracy in chosen:
        own, of = copy.deepcopy(metrics), {**config, "test": {"content_sha256": str(data)}}
        own["seed"], own["last"]["plain"]["all"] = seed, accuracy + 0.0
        rows.append({**csv_row(own, of), "data": data})
    tables = compared_tables(pd.DataFrame(rows))
    accuracies = tables["Accuracy in percent, last epoch, plain"]
    lines = list(zip((seeds.split(", ") for seeds in tables["Runs"]["seeds"]), accuracies["all"], strict=True))
    assert all(len(table.columns) <= 6 and "/" not in table.to_string(header=False) for table in tables.values())
    assert all(len(set(seeds)) == len(seeds) for seeds, _ in lines)
    assert sum(len(seeds) for seeds, _ in lines) == len(rows)
    for data in {row["data"] for row in rows}:
        of_data = [row for row in rows if row["data"] == data]
        if len({row["seed"] for row in of_data}) == len(of_data):
            mean = f"{sum(row['last_plain_all'] for row in of_data) / len(of_data):.1f}"
            assert any(cell.split(" ")[0] == mean for _, cell in lines)


# Results


def test_rows_of_different_data_have_no_mean() -> None:
    rows = pd.DataFrame({"name": ["los"] * 3, "data_sha256": ["a" * 64, "a" * 64, None]})
    refuse_mixed(rows)
    refuse_mixed(rows[["name"]])
    with pytest.raises(UserError, match="los: its repeats are of different data"):
        refuse_mixed(rows.assign(data_sha256=["a" * 64, "b" * 64, None]))


def test_results_of_other_data_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.csv"
    assert name_for(tmp_path, "table", ["a" * 64]) == "table"
    pd.DataFrame({"data_sha256": ["a" * 64, None]}).to_csv(path)
    assert name_for(tmp_path, "table", ["a" * 64]) == "table"
    assert capsys.readouterr().out == ""
    assert name_for(tmp_path, "table", ["b" * 64]) == "table_databbbbbbbb"
    assert f"{path} is of other data of that name: it stays" in capsys.readouterr().out
    pd.DataFrame({"name": ["los"]}).to_csv(path)  # made before it was recorded
    assert name_for(tmp_path, "table", ["b" * 64]) == "table"
    assert "does not say what data it is of" in capsys.readouterr().out


def test_files_that_cannot_be_written_are_refused_before_the_work(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"--figure": ("a.xyz", "must end in"), "--csv": ("no/a.csv", "no folder"), "--markdown": (".", "a folder")}
    for flag, (name, words) in places.items():
        with pytest.raises(UserError, match=f"{flag} .*{words}"):
            compare.main([str(run), flag, str(tmp_path / name)])
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())
    compare.main([str(run), "--figure", str(tmp_path / "a.pdf")])
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")
