"""The three commands as a person types them: flags, folders, files, protocols, methods, seeds. All on the CPU."""

import copy
import shlex
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import engine.frozen_features
import stages.session
from datasets.long_tail import LongTailedData
from evaluation.logits_magnitude import summarise
from runs import checkpoint
from settings.presets import PRESETS
from tests.helpers import (
    EXPERIMENT,
    SCRIPTS,
    Outcome,
    contents,
    folder_of,
    not_used,
    numbers,
    read,
    run,
    same,
    stage1,
    stage2,
    succeed,
    use_small_cifar,
    weights,
    write_cifar,
)
from utils.files import sha256_file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one stage 1 on the digits, two epochs, complete with plots; not to be changed."""
    out = tmp_path_factory.mktemp("trained")
    stage1(out, plots=True)
    return out


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the preset of the digits be one epoch of stage 1 and two of stage 2: a run without tags takes no time."""
    monkeypatch.setitem(PRESETS, "digits", PRESETS["digits"] | {"epochs": 1, "finetune_epoch": 2})


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """The four lines of the authors, word for word, in a fresh folder that has the data; and what they printed."""
    root = tmp_path_factory.mktemp("lines")
    commands = """
        python main_stage1.py --imb_ratio 100 --cur_stage stage1
        python evaluate.py    --imb_ratio 100 --cur_stage stage1
        python main_stage2.py --imb_ratio 100 --cur_stage stage2 --label_smooth 0.98
        python evaluate.py    --imb_ratio 100 --cur_stage stage2
    """
    write_cifar(root / "data" / "cifar100")
    outcomes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        use_small_cifar(patch)
        for line in commands.strip().splitlines():
            _, script, *arguments = shlex.split(line)
            outcomes.append(run(script.removesuffix(".py"), *arguments))
    return root / "checkpoints" / "cifar100_expIF100_resnet8" / "seed0", outcomes


# The four lines


def test_authors_four_lines_chain(lines: tuple[Path, list[Outcome]]) -> None:
    folder, outcomes = lines
    assert [outcome.status for outcome in outcomes] == [0, 0, 0, 0], "\n".join(outcome.err for outcome in outcomes)
    assert sorted(path.name for path in folder.iterdir()) == ["stage1", "stage2_los"]
    for outcome in outcomes:
        assert outcome.err == ""
        assert "flip" in outcome.out and "plain" in outcome.out


def test_each_line_reports_the_run_before_it(lines: tuple[Path, list[Outcome]]) -> None:
    folder, outcomes = lines
    for trained_line, evaluated_line, name in ((0, 1, "stage1"), (2, 3, "stage2_los")):
        metrics = read(folder / name / "metrics.json")
        for outcome in (outcomes[trained_line], outcomes[evaluated_line]):
            shown = outcome.out.splitlines()
            ways = [(record, way) for record in ("last", "best") for way in ("plain", "flip")]
            titles = next(row for row in shown if "last, plain" in row)
            assert titles.replace("*", "").split() == " ".join(f"{record}, {way}" for record, way in ways).split()
            row = next(row.split() for row in shown[shown.index(titles) :] if row.split()[0] == "all")
            assert row[1:] == [f"{metrics[record][way]['all']:.2f}" for record, way in ways]


def test_metrics_hold_both_checkpoints_plain_and_flip_averaged(lines: tuple[Path, list[Outcome]]) -> None:
    folder, _ = lines
    for name in ("stage1", "stage2_los"):
        metrics = read(folder / name / "metrics.json")
        counts = np.array(metrics["class_counts"])
        assert counts.tolist() == [120, 37, 12, 3, 1]
        members = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
        for record in ("last", "best"):
            assert metrics[record]["epoch"] >= 1
            for way in ("plain", "flip"):
                report = metrics[record][way]
                accuracy = np.array(report["per_class_accuracy"])
                assert report["all"] == pytest.approx(accuracy.mean())  # the test set is balanced
                for group, mask in members.items():
                    assert report[group] == pytest.approx(accuracy[mask].mean())


def test_best_is_the_latest_of_the_best_flip_averaged_epochs(lines: tuple[Path, list[Outcome]]) -> None:
    folder, _ = lines
    for name in ("stage1", "stage2_los"):
        metrics, log = read(folder / name / "metrics.json"), pd.read_csv(folder / name / "log.csv")
        best = log.loc[log["flip_all"] == log["flip_all"].max(), "epoch"].max()
        assert metrics["best"]["epoch"] == best
        assert torch.load(folder / name / "best.pth", weights_only=True)["epoch"] == best


# Flags


RELEASED_FLAGS = {
    "--data_dir": "data",
    "--dataset": "digits",
    "--num_class": 10,
    "--imb_ratio": 25,
    "--network": "resnet8",
    "--epochs": 2,
    "--batch_size": 32,
    "--lr": 0.05,
    "--momentum": 0.9,
    "--wd": 5e-3,
    "--finetune_epoch": 2,
    "--finetune_lr": 5e-4,
    "--finetune_wd": 0,
    "--label_smooth": 0,
    "--workers": 1,
    "--seed": 0,
    "--gpu": 0,
}
UNUSED = {
    "main_stage1": {"--pretrained_pth", "--finetune_epoch", "--finetune_lr", "--finetune_wd"},
    "main_stage2": {"--epochs", "--lr", "--wd"},
    "evaluate": {
        "--epochs",
        "--batch_size",
        "--lr",
        "--momentum",
        "--wd",
        "--nesterov",
        "--finetune_epoch",
        "--finetune_lr",
        "--finetune_wd",
    },
}


@pytest.mark.parametrize("lr_flag", ["--lr", "--learning-rate"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_the_released_code_is_accepted(script: str, lr_flag: str, trained: Path, tmp_path: Path) -> None:
    flags = {lr_flag if flag == "--lr" else flag: value for flag, value in RELEASED_FLAGS.items()}
    flags |= {"--out": tmp_path, "--cur_stage": "stage2" if script == "main_stage2" else "stage1"}
    flags["--pretrained_pth"] = folder_of(trained, "stage1_epochs2")
    outcome = succeed(script, "--nesterov", *(word for pair in flags.items() for word in pair))
    assert not_used(outcome.err, script) == UNUSED[script]


def test_a_flag_without_effect_is_named_in_one_line(runs: Path) -> None:
    assert stage2(runs, "--epochs", 7).err.splitlines() == ["not used by main_stage2: --epochs"]
    assert stage2(runs, "--label_smooth", 0.5).err == ""


def test_a_flag_without_effect_changes_nothing(trained: Path, tmp_path: Path) -> None:
    used = ("--pretrained_pth", folder_of(trained, "stage1_epochs2"))
    stage2(tmp_path / "a", *used)
    stage2(tmp_path / "b", *used, "--epochs", 7, "--lr", 3, "--wd", 1, "--mixup", 0.4, "--json", tmp_path / "no.json")
    name = "stage2_los_epochs2_finetune_epoch2"
    assert same(*(weights(folder_of(tmp_path / out, name) / "last.pth") for out in "ab"))
    assert not (tmp_path / "no.json").exists()


def test_a_stage_1_flag_said_to_be_unused_has_no_effect(tmp_path: Path) -> None:
    outcomes = [
        stage1(tmp_path / out, "--holdout", 0.2, *extra)
        for out, extra in (("a", ()), ("b", ("--stage1_seed", 5, "--views", 2, "--method", "ce")))
    ]
    assert not_used(outcomes[1].err, "main_stage1") == {"--stage1_seed", "--views", "--method"}
    assert same(*(weights(folder_of(tmp_path / out, "stage1_epochs2_holdout0.2") / "last.pth") for out in "ab"))


@pytest.mark.usefixtures("quick")
def test_evaluating_stage_1_reads_label_smooth_or_says_that_it_does_not(tmp_path: Path) -> None:
    for flags in ((), ("--label_smooth", 0.1)):
        stage1(tmp_path, "--epochs", 1, *flags)
    arguments = ("--dataset", "digits", "--out", tmp_path, "--cur_stage", "stage1", "--label_smooth", 0.1)
    outcome = succeed("evaluate", *arguments)
    assert "label_smooth0.1" in outcome.out or "--label_smooth" in outcome.err


def test_a_subset_seed_without_a_shuffle_is_said_to_have_no_effect(tmp_path: Path) -> None:
    outcome = stage1(tmp_path, "--epochs", 1, "--subset_seed", 5)
    assert "not used by main_stage1" in outcome.err and "--subset_seed" in outcome.err


def test_a_stage_1_seed_beside_a_checkpoint_is_refused_or_said_to_have_no_effect(trained: Path, tmp_path: Path) -> None:
    flags = ("--pretrained_pth", folder_of(trained, "stage1_epochs2"), "--stage1_seed", 5)
    outcome = run("main_stage2", "--dataset", "digits", "--out", tmp_path, "--finetune_epoch", 1, *flags)
    assert outcome.err.count("\n") == 1 and "--stage1_seed" in outcome.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_flag_and_ends_well(script: str) -> None:
    outcome = succeed(script, "--help-all")
    for flag in [*RELEASED_FLAGS, "--learning-rate", "--nesterov", "--cur_stage", "--protocol", "--resume"]:
        assert flag in outcome.out


def test_each_script_runs_its_own_stage_only(runs: Path) -> None:
    for script, other in (("main_stage1", "stage2"), ("main_stage2", "stage1")):
        outcome = run(script, "--dataset", "digits", "--out", runs, "--cur_stage", other)
        assert outcome.status == 2
        assert f"main_{other}.py" in outcome.err


# Folders and lookups


@pytest.mark.usefixtures("quick")
def test_a_run_at_its_preset_has_no_tags(tmp_path: Path) -> None:
    succeed("main_stage1", "--dataset", "digits", "--out", tmp_path, "--lr", 0.05, "--batch_size", 32)
    succeed("main_stage2", "--dataset", "digits", "--out", tmp_path, "--label_smooth", 0.98)
    assert sorted(path.name for path in folder_of(tmp_path, "").iterdir()) == ["stage1", "stage2_los"]


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (("--imb_ratio", 10, "--imb_type", "step"), "digits_stepIF10_resnet8/seed0/stage1_epochs1"),
        (("--imb_ratio", 12.5, "--seed", 3), "digits_expIF12.5_resnet8/seed3/stage1_epochs1"),
        (("--network", "resnet20", "--width", 2), "digits_expIF25_resnet20/seed0/stage1_epochs1_width2"),
        (("--lr", 0.1, "--nesterov", "--wd", 0), f"{EXPERIMENT}/seed0/stage1_epochs1_lr0.1_wd0_nesterov"),
        (("--mixup", 0.4, "--subset", "shuffle"), f"{EXPERIMENT}/seed0/stage1_epochs1_subsetshuffle_mixup0.4"),
        (("--eval_every", 5, "--workers", 1, "--num_class", 10), f"{EXPERIMENT}/seed0/stage1_epochs1"),
    ],
)
def test_stage_1_folder_names_what_differs(arguments: tuple[object, ...], folder: str, tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 1, *arguments)
    assert [str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("config.json")] == [folder]


@pytest.mark.parametrize(
    ("arguments", "tags"),
    [
        ((), ""),
        (("--method", "lort", "--label_smooth", 0.5), "_label_smooth0.5"),
        (("--method", "ce"), ""),
        (("--reinit_classifier",), "_reinit_classifier"),
        (("--loma_target", 2.5), "_loma_target2.5"),
        (("--protocol", "released"), "_released"),
        (("--views", "plain"), "_viewsplain"),
        (("--start", "best", "--finetune_lr", 0.01), "_finetune_lr0.01_startbest"),
        (("--bn_mode", "train"), "_bn_modetrain_viewsfresh"),
    ],
)
def test_stage_2_folder_names_method_and_what_differs(arguments: tuple[object, ...], tags: str, runs: Path) -> None:
    stage2(runs, *arguments)
    method = arguments[1] if arguments[:1] == ("--method",) else "los"
    made = [path.parent.name for path in runs.rglob("config.json") if path.parent.name.startswith("stage2")]
    assert len(made) == 1
    assert made[0].startswith(f"stage2_{method}_epochs2_finetune_epoch2")
    assert sorted(made[0].removeprefix(f"stage2_{method}_epochs2_finetune_epoch2").split("_")) == sorted(
        tags.split("_")
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("flag", ["--batch_size", "--label_smooth", "--momentum"])
def test_a_setting_of_stage_1_and_the_same_of_stage_2_are_two_folders(flag: str, tmp_path: Path) -> None:
    value = {"--batch_size": 64, "--label_smooth": 0.5, "--momentum": 0.8}[flag]
    stage1(tmp_path, "--epochs", 1)
    stage1(tmp_path, "--epochs", 1, flag, value)
    usual, other = sorted(folder_of(tmp_path, "").glob("stage1*"), key=lambda path: len(path.name))
    for arguments in (("--pretrained_pth", usual, flag, value), ("--pretrained_pth", other)):
        stage2(tmp_path, *arguments)
    assert len(list(folder_of(tmp_path, "").glob("stage2_los*"))) == 2


@pytest.mark.usefixtures("quick")
def test_lookup_takes_the_exact_match_among_several(tmp_path: Path) -> None:
    for epochs in (1, 2):
        stage1(tmp_path, "--epochs", epochs, "--width", 2)
    assert "/stage1_width2/last.pth" in stage2(tmp_path, "--width", 2).out


def test_lookup_takes_the_only_candidate_and_says_so(runs: Path) -> None:
    assert f"using {folder_of(runs, 'stage1_epochs2')}, the only stage1 run that fits" in stage2(runs).out
    stage2_folder = folder_of(runs, "stage2_los_epochs2_finetune_epoch2")
    out = succeed("evaluate", "--dataset", "digits", "--out", runs, "--cur_stage", "stage2").out
    assert f"using {stage2_folder}, the only stage2 run that fits" in out


def test_lookup_refuses_several_candidates_and_lists_them(runs: Path) -> None:
    stage1(runs, "--epochs", 1)
    for script in ("main_stage2", "evaluate"):
        outcome = run(script, "--dataset", "digits", "--out", runs)
        assert outcome.status == 2
        assert outcome.err.count("\n") == 1
        for name in ("stage1_epochs1", "stage1_epochs2"):
            assert str(folder_of(runs, name)) in outcome.err
        assert "--pretrained_pth" in outcome.err
    assert not list(runs.rglob("stage2*"))


@pytest.mark.parametrize(
    ("script", "arguments", "advice"),
    [
        ("main_stage2", (), "python main_stage1.py --dataset digits --out {out}"),
        ("evaluate", (), "python main_stage1.py --dataset digits --out {out}"),
        ("main_stage2", ("--seed", 4), "python main_stage1.py --dataset digits --out {out} --seed 4"),
        (
            "main_stage2",
            ("--seed", 4, "--stage1_seed", 1),
            "python main_stage1.py --dataset digits --out {out} --seed 1",
        ),
        ("main_stage2", ("--stage1_seed", 1), "python main_stage1.py --dataset digits --out {out} --seed 1"),
        (
            "evaluate",
            ("--cur_stage", "stage2", "--method", "ce"),
            "python main_stage2.py --dataset digits --out {out} --method ce",
        ),
    ],
)
def test_lookup_without_a_candidate_says_which_command_to_run(
    script: str, arguments: tuple[object, ...], advice: str, tmp_path: Path
) -> None:
    outcome = run(script, "--dataset", "digits", "--out", tmp_path, *arguments)
    assert outcome.status == 2
    advised = outcome.err.strip().rpartition("make it first: ")[2]
    wanted = advice.format(out=tmp_path)
    assert sorted(shlex.split(advised)) == sorted(shlex.split(wanted))
    assert list(tmp_path.iterdir()) == []


def test_pretrained_pth_takes_a_folder_or_a_file(trained: Path, tmp_path: Path) -> None:
    folder = folder_of(trained, "stage1_epochs2")
    for out, path in (("folder", folder), ("file", folder / "last.pth")):
        stage2(tmp_path / out, "--pretrained_pth", path)
    made = [folder_of(tmp_path / out, "stage2_los_epochs2_finetune_epoch2") / "last.pth" for out in ("folder", "file")]
    assert same(*(weights(path) for path in made))
    report = tmp_path / "report.json"
    for path, names in ((folder, ["last", "best"]), (folder / "best.pth", ["best"])):
        succeed("evaluate", "--pretrained_pth", path, "--json", report)
        assert list(read(report)["checkpoints"]) == names


def test_start_best_reads_the_best_checkpoint(runs: Path) -> None:
    folder = folder_of(runs, "stage1_epochs2")
    content = torch.load(folder / "best.pth", weights_only=True)
    content["model"]["conv1.weight"].mul_(2)
    torch.save(content, folder / "best.pth")
    stage2(runs, "--start", "best")
    made = weights(next(runs.rglob("stage2*/last.pth")))
    assert torch.equal(made["conv1.weight"], content["model"]["conv1.weight"])


def test_last_and_best_given_as_files_are_two_runs(trained: Path, tmp_path: Path) -> None:
    for name in ("last.pth", "best.pth"):
        stage2(tmp_path, "--pretrained_pth", folder_of(trained, "stage1_epochs2") / name)
    assert len(list(tmp_path.rglob("stage2*/config.json"))) == 2


# Files


def test_a_finished_run_holds_the_promised_files(trained: Path) -> None:
    folder = folder_of(trained, "stage1_epochs2")
    files = {"config.json", "log.csv", "last.pth", "best.pth", "metrics.json", "per_class.csv"}
    assert {path.name for path in folder.iterdir()} == files | {"plots"}  # and no temporary file


def test_plots_are_pictures(trained: Path, runs: Path) -> None:
    stage2(runs, plots=True)
    for folder in (folder_of(trained, "stage1_epochs2"), folder_of(runs, "stage2_los_epochs2_finetune_epoch2")):
        pictures = sorted((folder / "plots").glob("*"))
        assert {"training_curves.png", "accuracy_per_class.png"} <= {path.name for path in pictures}
        for path in pictures:
            pixels = matplotlib.image.imread(path)  # decodes the whole file, or raises
            assert min(pixels.shape[:2]) > 200
            assert pixels[..., :3].std() > 0.01  # not blank


def test_log_has_one_row_an_epoch_with_the_promised_columns(trained: Path) -> None:
    folder = folder_of(trained, "stage1_epochs2")
    log, metrics = pd.read_csv(folder / "log.csv"), read(folder / "metrics.json")
    accuracies = [f"{way}_{group}" for way in ("plain", "flip") for group in ("all", "many", "medium", "few")]
    training = ("loss", "train_accuracy", "lr", "seconds", "images_per_second")
    assert {"epoch", *training, "evaluation_seconds", *accuracies} == set(log.columns)
    assert log["epoch"].tolist() == [1, 2]
    assert log["lr"].tolist() == pytest.approx([0.05, 0.025])  # half a cosine, stepped per epoch
    assert (log["loss"] > 0).all()
    assert log["train_accuracy"].between(0, 100).all()
    assert log["plain_all"].iloc[-1] == pytest.approx(metrics["last"]["plain"]["all"])
    assert log["flip_all"].isna().all()  # a mirrored digit is another sign
    assert (log["seconds"] * log["images_per_second"]).tolist() == pytest.approx([396, 396])


def test_checkpoints_hold_tensors_and_plain_values_only(trained: Path) -> None:
    folder = folder_of(trained, "stage1_epochs2")
    for name in ("last.pth", "best.pth"):
        content = torch.load(folder / name, weights_only=True)
        assert content["epoch"] == read(folder / "metrics.json")[name.removesuffix(".pth")]["epoch"]
        assert content["config"] == read(folder / "config.json")
        assert all(isinstance(value, Tensor) for value in content["model"].values())
        assert content["model"]["fc.weight"].shape == (10, 64)


def test_config_records_every_setting_and_what_it_ran_on(trained: Path, runs: Path) -> None:
    config = read(folder_of(trained, "stage1_epochs2") / "config.json")
    settings = config["settings"]
    expected = {
        "dataset": "digits",
        "imb_ratio": 25,
        "network": "resnet8",
        "epochs": 2,
        "batch_size": 32,
        "lr": 0.05,
        "momentum": 0.9,
        "wd": 5e-3,
        "label_smooth": 0,
        "seed": 0,
        "protocol": "honest",
        "subset": "first",
    }
    assert {name: settings[name] for name in expected} == expected
    assert config["stage1"] is None
    assert config["environment"]["torch"] == torch.__version__
    assert {"git_revision", "device", "python", "numpy"} <= set(config["environment"])
    assert all(len(config["subset"][name]) == 64 for name in ("index_sha256", "content_sha256"))
    stage2(runs)
    config = read(folder_of(runs, "stage2_los_epochs2_finetune_epoch2") / "config.json")
    last = folder_of(runs, "stage1_epochs2") / "last.pth"
    assert config["stage1"]["sha256"] == sha256_file(last)
    assert "stage1" in config["stage1"]["kind"]
    settings = config["settings"]
    assert (settings["label_smooth"], settings["finetune_epoch"], settings["finetune_wd"]) == (0.98, 2, 0)
    assert settings["finetune_lr"] == PRESETS["digits"].get("finetune_lr", 5e-4)
    assert (settings["start"], settings["bn_mode"], settings["method"]) == ("last", "eval", "los")


def test_metrics_follow_the_schema(trained: Path, runs: Path) -> None:
    stage2(runs)
    for folder in (folder_of(trained, "stage1_epochs2"), folder_of(runs, "stage2_los_epochs2_finetune_epoch2")):
        metrics, second = read(folder / "metrics.json"), folder.name.startswith("stage2")
        expected = {
            "schema": 1,
            "dataset": "digits",
            "imb_type": "exp",
            "imb_ratio": 25,
            "network": "resnet8",
            "seed": 0,
            "stage": "stage2" if second else "stage1",
            "method": "los" if second else None,
            "protocol": "honest",
            "num_class": 10,
            "class_counts": [124, 86, 60, 42, 29, 20, 14, 10, 7, 4],
        }
        assert {name: metrics[name] for name in expected} == expected
        assert metrics["train_seconds"] > 0 and metrics["images_per_second"] > 0
        assert {"index_sha256", "content_sha256"} <= set(metrics["subset"])
        assert metrics["stage1"] == read(folder / "config.json")["stage1"]
        for record in ("last", "best"):
            assert {"epoch", "plain", "flip"} <= set(metrics[record])
            assert metrics[record]["flip"] is None
            report = metrics[record]["plain"]
            for name in ("all", "many", "medium", "few", "macro_f1", "ece"):
                assert 0 <= report[name] <= 100
            assert len(report["per_class_accuracy"]) == 10
        for split in ("train", "test"):
            assert list(metrics["logits"][split]) == ["column", "row", "uncentred"]
            assert metrics["logits_summary"][split] == {
                reading: {name: summarise(values) for name, values in of_reading.items()}
                for reading, of_reading in metrics["logits"][split].items()
            }
            for reading in ("column", "row", "uncentred"):
                values = metrics["logits"][split][reading]
                assert set(values) == {"loma", "sigma_true", "sigma_other", "rsd_true", "rsd_other"}
                assert all(len(value) == 10 for value in values.values())
                for loma, sigma, rsd in zip(values["loma"], values["sigma_true"], values["rsd_true"], strict=True):
                    assert rsd is None if loma <= 1e-6 else rsd == pytest.approx(sigma / loma)


def test_calibration_and_inductive_predictions_need_held_out_images(trained: Path, tmp_path: Path) -> None:
    folder = folder_of(trained, "stage1_epochs2")
    metrics = read(folder / "metrics.json")
    assert metrics["calibration"] is None and metrics["rebalanced"]["inductive"] is None
    assert metrics["rebalanced"]["transductive"]["plain"]["all"] >= 0
    assert torch.load(folder / "last.pth", weights_only=True)["temperature"] is None
    out = succeed("evaluate", "--pretrained_pth", folder).out
    assert "no temperature" in out and "--holdout" in out


def test_a_temperature_is_fitted_on_held_out_images_and_stored(tmp_path: Path) -> None:
    stage1(tmp_path, "--holdout", 0.2)
    stage2(tmp_path, "--holdout", 0.2, "--finetune_lr", 0.01)
    report = tmp_path / "report.json"
    for pattern in ("stage1*", "stage2*"):
        folder = next(tmp_path.rglob(f"{pattern}/metrics.json")).parent
        metrics = read(folder / "metrics.json")
        calibration = metrics["calibration"]
        assert calibration["source"] == "held-out images" and calibration["temperature"] > 0
        stored = torch.load(folder / "last.pth", weights_only=True)["temperature"]
        assert stored == pytest.approx(calibration["temperature"])
        assert calibration["plain"]["ece_before"] == pytest.approx(metrics["last"]["plain"]["ece"])
        assert "flip" not in calibration  # a mirrored digit is another sign
        out = succeed("evaluate", "--pretrained_pth", folder, "--json", report).out
        found = read(report)["checkpoints"]["last"]["calibration"]
        assert found["temperature"] == stored
        assert found["plain"]["ece_after"] == pytest.approx(calibration["plain"]["ece_after"], abs=1e-3)
        assert f"temperature {stored:.4g}" in out


def test_a_temperature_that_is_given_is_used(trained: Path, tmp_path: Path) -> None:
    source, report = folder_of(trained, "stage1_epochs2"), tmp_path / "report.json"
    for temperature in (1.0, 0.2):
        out = tmp_path / f"{temperature}"
        stage2(out, "--pretrained_pth", source, "--temperature", temperature)
        folder = next(out.rglob("stage2*/metrics.json")).parent
        assert folder.name == "stage2_los_epochs2_finetune_epoch2"  # it changes the report and not the run
        metrics = read(folder / "metrics.json")
        calibration = metrics["calibration"]
        assert (calibration["temperature"], calibration["source"]) == (temperature, "given")
        same_error = calibration["plain"]["ece_after"] == pytest.approx(calibration["plain"]["ece_before"])
        assert same_error == (temperature == 1)
        succeed("evaluate", "--pretrained_pth", folder, "--json", report, "--temperature", temperature)
        found = read(report)["checkpoints"]["last"]["calibration"]
        assert found["plain"]["ece_after"] == pytest.approx(calibration["plain"]["ece_after"], abs=1e-3)


@pytest.mark.parametrize("tau", [0, 1.5])
def test_rebalanced_predictions_are_reported(tau: float, tmp_path: Path) -> None:
    stage1(tmp_path, "--holdout", 0.2, "--rebalance_tau", tau)
    folder = next(tmp_path.rglob("metrics.json")).parent
    metrics = read(folder / "metrics.json")
    rebalanced, plain = metrics["rebalanced"], metrics["last"]["plain"]
    assert rebalanced["tau"] == tau
    for form in ("transductive", "inductive"):
        found = rebalanced[form]["plain"]
        assert rebalanced[form]["flip"] is None and "ece" not in found
        assert (found["per_class_accuracy"] == plain["per_class_accuracy"]) == (tau == 0)
        assert len(found["per_class_accuracy"]) == 10 and 0 <= found["macro_f1"] <= 100
    out = succeed("evaluate", "--pretrained_pth", folder, "--rebalance_tau", tau).out
    assert f"tau = {tau:g}" in out and "supposed balanced" in out and "one image at a time" in out


def test_flip_averaged_images_are_calibrated_and_rebalanced_too(lines: tuple[Path, list[Outcome]]) -> None:
    folder, _ = lines
    report = read(folder / "stage2_los" / "metrics.json")["rebalanced"]["transductive"]
    assert set(report) == {"plain", "flip"} and report["flip"]["all"] >= 0


def test_an_empty_group_is_null(tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 1, "--imb_ratio", 1)
    report = read(next(tmp_path.rglob("metrics.json")))["last"]["plain"]
    assert report["medium"] is None and report["few"] is None
    assert report["many"] == pytest.approx(report["all"])


def test_evaluation_repeats_the_numbers_of_a_run(lines: tuple[Path, list[Outcome]], tmp_path: Path) -> None:
    folder, _ = lines
    report = tmp_path / "report.json"
    for name in ("stage1", "stage2_los"):
        with pytest.MonkeyPatch.context() as patch:
            use_small_cifar(patch)
            arguments = ("--data_dir", folder.parents[2] / "data", "--pretrained_pth", folder / name, "--json", report)
            succeed("evaluate", *arguments)
        metrics, records = read(folder / name / "metrics.json"), read(report)["checkpoints"]
        for record in ("last", "best"):
            assert records[record]["epoch"] == metrics[record]["epoch"]
            for way in ("plain", "flip"):
                ours, theirs = records[record][way], metrics[record][way]
                assert ours["per_class_accuracy"] == theirs["per_class_accuracy"]
                for key in ("all", "many", "medium", "few", "macro_f1", "ece"):
                    assert ours[key] == pytest.approx(theirs[key], abs=1e-3)
        for split in ("train", "test"):
            for reading in ("column", "row"):
                ours, theirs = records["last"]["logits"][split][reading], metrics["logits"][split][reading]
                for key in ours:
                    for mine, its in zip(ours[key], theirs[key], strict=True):
                        assert mine == its if its is None else mine == pytest.approx(its, rel=1e-3, abs=1e-5)


def test_evaluation_prints_classes_and_writes_nothing_by_itself(trained: Path, tmp_path: Path) -> None:
    before = contents(trained)
    out = succeed("evaluate", "--dataset", "digits", "--out", trained).out
    assert contents(trained) == before
    assert "LoMa" in out and "RSD" in out
    rows = [row.split() for row in out.splitlines()]
    for label, count in enumerate([124, 86, 60, 42, 29, 20, 14, 10, 7, 4]):
        assert any(row[:2] == [str(label), str(count)] for row in rows)


def test_a_plain_state_dict_is_evaluated_like_the_run_it_came_from(trained: Path, tmp_path: Path) -> None:
    source = folder_of(trained, "stage1_epochs2") / "last.pth"
    torch.save(weights(source), tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights(source).items()}}, tmp_path / "wrapped.pth")
    reports = {}
    for path in (source, tmp_path / "plain.pth", tmp_path / "wrapped.pth"):
        arguments = ("--dataset", "digits", "--pretrained_pth", path, "--json", tmp_path / "report.json")
        succeed("evaluate", *arguments)
        reports[path.stem] = read(tmp_path / "report.json")["checkpoints"][path.stem]["plain"]
    assert reports["plain"] == reports["last"] == reports["wrapped"]


# Stage 2


def backbone_and_buffers(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into the backbone's parameters and the backbone's buffers."""
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    buffers = {key for key in state if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert len(buffers) == 3 * 7  # resnet8 has seven batch norms
    return {k: v for k, v in state.items() if k not in buffers}, {k: v for k, v in state.items() if k in buffers}


def test_honest_protocol_leaves_the_backbone_bit_for_bit(runs: Path) -> None:
    stage2(runs)
    before = weights(folder_of(runs, "stage1_epochs2") / "last.pth")
    for name in ("last.pth", "best.pth"):
        after = weights(folder_of(runs, "stage2_los_epochs2_finetune_epoch2") / name)
        assert same(before, after, head=False)
        assert not torch.equal(before["fc.weight"], after["fc.weight"])
        assert not torch.equal(before["fc.bias"], after["fc.bias"])


def test_released_protocol_moves_batch_statistics_and_no_weight(runs: Path) -> None:
    stage2(runs, "--protocol", "released")
    folder = next(runs.rglob("stage2*/last.pth")).parent
    (old, moved), (new, now) = (
        backbone_and_buffers(weights(path))
        for path in (folder_of(runs, "stage1_epochs2") / "best.pth", folder / "last.pth")
    )
    assert same(old, new)
    assert all(not torch.equal(moved[key], now[key]) for key in moved)
    settings = read(folder / "config.json")["settings"]
    assert (settings["start"], settings["bn_mode"], settings["views"]) == ("best", "train", "fresh")
    assert read(folder / "metrics.json")["protocol"] == "released"


def test_bn_mode_train_alone_starts_from_the_last_epoch(runs: Path) -> None:
    stage2(runs, "--bn_mode", "train")
    folder = next(runs.rglob("stage2*/last.pth")).parent
    settings = read(folder / "config.json")["settings"]
    assert (settings["start"], settings["bn_mode"], settings["views"]) == ("last", "train", "fresh")
    _, before = backbone_and_buffers(weights(folder_of(runs, "stage1_epochs2") / "last.pth"))
    _, after = backbone_and_buffers(weights(folder / "last.pth"))
    steps = 2 * 13  # two epochs of 396 images in batches of 32
    assert all(after[key] - before[key] == steps for key in before if key.endswith("num_batches_tracked"))


def test_the_headline_is_the_protocols(trained: Path) -> None:
    for protocol, record in (("honest", "last"), ("released", "best")):
        out = succeed("evaluate", "--dataset", "digits", "--out", trained, "--protocol", protocol).out
        assert f"{record}, plain*" in out and out.count("plain*") == 1
        assert f"\n* the headline of the {protocol} protocol\n" in out


@pytest.mark.parametrize("arguments", [("--views", 1), ("--protocol", "released")])
def test_stage_2_never_differentiates_the_backbone(
    arguments: tuple[object, ...], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[nn.Module] = []
    original = checkpoint.load_weights

    def noting(model: nn.Module, source: checkpoint.Checkpoint, *more: Any) -> Any:
        models.append(model)
        return original(model, source, *more)

    monkeypatch.setattr("stages.session.load_weights", noting)
    stage2(runs, *arguments)
    for name, parameter in models[0].named_parameters():
        assert parameter.grad is None or name.startswith("fc."), name


@pytest.mark.parametrize(
    ("views", "computed"), [("2", [0, 1]), ("plain", []), ("fresh", [0, 1, 2, 3]), ("9", [0, 1, 2, 3])]
)
def test_features_are_computed_once_a_view(
    views: str, computed: list[int], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    original = engine.frozen_features.predict_blocks

    def counting(*arguments: Any, **options: Any) -> Tensor:
        if options.get("view") is not None:
            seen.append(options["view"])
        return original(*arguments, **options)

    monkeypatch.setattr(engine.frozen_features, "predict_blocks", counting)
    stage2(runs, "--views", views, "--finetune_epoch", 4)
    assert seen == [(engine.frozen_features.STAGE2_DRAWS, view) for view in computed]


def test_views_change_what_is_learned(trained: Path, tmp_path: Path) -> None:
    made = {}
    for views in ("1", "2", "plain", "fresh"):
        out = tmp_path / views
        stage2(out, "--views", views, "--pretrained_pth", folder_of(trained, "stage1_epochs2"))
        made[views] = weights(next(out.rglob("last.pth")))["fc.weight"]
    assert torch.equal(made["2"], made["fresh"])  # two epochs: two views are fresh
    assert not torch.equal(made["1"], made["2"])
    assert not torch.equal(made["plain"], made["1"])


def classifier(trained: Path, out: Path, *arguments: object) -> Tensor:
    """Run stage 2 in a folder of its own and return its last classifier, weight and bias in one (K, d + 1)."""
    stage2(out, "--pretrained_pth", folder_of(trained, "stage1_epochs2"), *arguments)
    state = weights(next(out.rglob("last.pth")))
    return torch.cat([state["fc.weight"], state["fc.bias"][:, None]], dim=1)


def test_warm_start_and_reinit_classifier(trained: Path, tmp_path: Path) -> None:
    before = weights(folder_of(trained, "stage1_epochs2") / "last.pth")["fc.weight"]
    still = ("--finetune_lr", 0)
    assert torch.equal(classifier(trained, tmp_path / "warm", *still)[:, :-1], before)
    fresh = [classifier(trained, tmp_path / name, *still, "--reinit_classifier") for name in "ab"]
    assert torch.equal(*fresh)
    other = classifier(trained, tmp_path / "c", *still, "--reinit_classifier", "--seed", 1, "--stage1_seed", 0)
    assert not torch.equal(fresh[0], other)
    assert (fresh[0][:, :-1] - before).abs().min() > 0


def test_methods_differ_in_their_target_only(trained: Path, tmp_path: Path) -> None:
    los = classifier(trained, tmp_path / "los")
    same_target = classifier(trained, tmp_path / "smooth", "--method", "label_smooth", "--label_smooth", 0.98)
    assert torch.equal(los, same_target)
    ce = classifier(trained, tmp_path / "ce", "--method", "ce")
    nothing = classifier(trained, tmp_path / "zero", "--label_smooth", 0)
    torch.testing.assert_close(ce, nothing)
    assert not torch.equal(ce, los)
    rest = classifier(trained, tmp_path / "lort", "--method", "lort", "--label_smooth", 0.5)
    torch.testing.assert_close(rest, classifier(trained, tmp_path / "equal", "--label_smooth", 0.5 * 10 / 9))
    assert not torch.allclose(rest, classifier(trained, tmp_path / "half", "--label_smooth", 0.5))


def test_label_smooth_method_has_its_own_default(runs: Path) -> None:
    stage2(runs, "--method", "label_smooth")
    config = read(next(runs.rglob("stage2_label_smooth*/config.json")))
    assert config["settings"]["label_smooth"] == 0.1
    assert config["method"] == "label_smooth"


@pytest.mark.parametrize("method", ["los", "lort"])
def test_loma_target_sets_the_smoothing(method: str, trained: Path, tmp_path: Path) -> None:
    smoothing = 10 / (10 + np.exp(2.0) - 1)
    if method == "lort":
        smoothing *= 9 / 10
    wanted = classifier(trained, tmp_path / "gap", "--method", method, "--loma_target", 2)
    given = classifier(trained, tmp_path / "given", "--method", method, "--label_smooth", smoothing)
    torch.testing.assert_close(wanted, given)


def test_config_records_the_smoothing_that_loma_target_came_to(runs: Path) -> None:
    stage2(runs, "--loma_target", 2)
    config = read(next(runs.rglob("stage2*/config.json")))
    smoothing = 10 / (10 + np.exp(2.0) - 1)
    assert any(value == pytest.approx(smoothing, rel=1e-6) for value in numbers(config))


def test_stage1_seed_shares_features_between_stage_2_seeds(runs: Path) -> None:
    stage2(runs, "--seed", 1, "--stage1_seed", 0)
    folder = folder_of(runs, "stage2_los_epochs2_stage1_seed0_finetune_epoch2", seed=1)
    assert same(weights(folder / "last.pth"), weights(folder_of(runs, "stage1_epochs2") / "last.pth"), head=False)
    config = read(folder / "config.json")
    assert (config["settings"]["seed"], config["settings"]["stage1_seed"]) == (1, 0)
    assert config["stage1"]["seed"] == 0
    stage2(runs)
    first = weights(folder_of(runs, "stage2_los_epochs2_finetune_epoch2") / "last.pth")
    assert not torch.equal(first["fc.weight"], weights(folder / "last.pth")["fc.weight"])


# Data


def test_stage_2_trains_on_the_images_that_stage_1_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LongTailedData] = []
    original = stages.session.load_data

    def noting(*arguments: Any, **more: Any) -> LongTailedData:
        seen.append(original(*arguments, **more))
        return seen[-1]

    monkeypatch.setattr(stages.session, "load_data", noting)
    stage1(tmp_path, "--holdout", 0.2, "--seed", 3)
    stage2(tmp_path, "--holdout", 0.2, "--seed", 5, "--stage1_seed", 3)
    made = next(tmp_path.rglob("stage2*/metrics.json")).parent
    succeed("evaluate", "--pretrained_pth", made)
    first, *others = seen
    assert len(first.holdout) > 0 and not set(first.holdout.ids) & set(first.train.ids)
    assert len(others) == 2
    for other in others:
        np.testing.assert_array_equal(other.train.ids, first.train.ids)
        np.testing.assert_array_equal(other.holdout.ids, first.holdout.ids)
    metrics = read(made / "metrics.json")
    assert metrics["holdout"]["images"] == len(first.holdout)
    assert metrics["class_counts"] == first.class_counts.tolist()


def test_a_checkpoint_settles_the_data_and_a_flag_against_it_is_refused(tmp_path: Path) -> None:
    stage1(tmp_path, "--holdout", 0.2, "--imb_ratio", 10)
    source = next(tmp_path.rglob("stage1*/last.pth")).parent
    stage2(tmp_path, "--pretrained_pth", source)
    config = read(next(tmp_path.rglob("stage2*/config.json")))
    assert (config["settings"]["holdout"], config["settings"]["imb_ratio"]) == (0.2, 10)
    for flags in (("--imb_ratio", 25), ("--holdout", 0), ("--network", "resnet20"), ("--subset", "shuffle")):
        outcome = run("main_stage2", "--dataset", "digits", "--out", tmp_path, "--pretrained_pth", source, *flags)
        assert outcome.status == 2
        assert str(flags[0]) in outcome.err


def test_subset_identity_tells_other_images(tmp_path: Path) -> None:
    found = {}
    for name, arguments in {
        "first": (),
        "shuffle": ("--subset", "shuffle"),
        "other": ("--subset", "shuffle", "--subset_seed", 1),
    }.items():
        stage1(tmp_path / name, "--epochs", 1, *arguments)
        subset = read(next((tmp_path / name).rglob("config.json")))["subset"]
        found[name] = (subset["index_sha256"], subset["content_sha256"])
    assert len({index for index, _ in found.values()}) == len({content for _, content in found.values()}) == 3


def test_mixup_and_label_smooth_change_stage_1(trained: Path, tmp_path: Path) -> None:
    plain = weights(folder_of(trained, "stage1_epochs2") / "last.pth")
    for name, arguments in {"mixup": ("--mixup", 0.4), "smooth": ("--label_smooth", 0.1)}.items():
        stage1(tmp_path / name, *arguments)
        assert not same(plain, weights(next((tmp_path / name).rglob("last.pth"))))


def test_eval_every_leaves_gaps_and_always_evaluates_the_last(tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 3, "--eval_every", 2)
    folder = folder_of(tmp_path, "stage1_epochs3")
    log = pd.read_csv(folder / "log.csv")
    assert log["plain_all"].isna().tolist() == [True, False, False]
    assert log["loss"].notna().all()
    metrics = read(folder / "metrics.json")
    assert metrics["last"]["epoch"] == 3 and metrics["best"]["epoch"] in (2, 3)


# Seeds


def test_the_same_seed_gives_the_same_bits(trained: Path, tmp_path: Path) -> None:
    stage1(tmp_path)
    assert same(*(weights(folder_of(out, "stage1_epochs2") / "last.pth") for out in (trained, tmp_path)))
    stage1(tmp_path, "--seed", 1)
    other = weights(folder_of(tmp_path, "stage1_epochs2", seed=1) / "last.pth")
    assert not same(weights(folder_of(trained, "stage1_epochs2") / "last.pth"), other)
    assert torch.equal(*(classifier(trained, tmp_path / name, "--protocol", "released") for name in "ab"))


def test_seed_none_draws_one_and_records_it(tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 1, "--seed", "None")
    folder = next(tmp_path.rglob("config.json")).parent
    seed = read(folder / "config.json")["settings"]["seed"]
    assert isinstance(seed, int) and folder.parent.name == f"seed{seed}"
    assert read(folder / "metrics.json")["seed"] == seed
    stage1(tmp_path / "again", "--epochs", 1, "--seed", seed)
    assert same(weights(folder / "last.pth"), weights(next((tmp_path / "again").rglob("last.pth"))))


def test_two_drawn_seeds_differ(tmp_path: Path) -> None:
    for _ in range(2):
        stage1(tmp_path, "--epochs", 1, "--width", 1, "--seed", "None")
    assert len(list(tmp_path.rglob("config.json"))) == 2


def test_presets_are_not_changed_by_running(tmp_path: Path) -> None:
    before = copy.deepcopy(PRESETS)
    stage1(tmp_path, "--epochs", 1, "--lr", 0.2)
    assert before == PRESETS
