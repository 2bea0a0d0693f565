"""`--features`: files of features that any model made, the classifier that is trained on them, runs and tables on them,
and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import tables.path
import tables.request
from datasets import DATASETS
from datasets.names import user_dataset_name
from methods.linear_probe import fit_probe
from runs.feature_files import read_features
from settings.declare import Facet
from settings.fields import FLAGS
from tests.helpers import SCRIPTS, contents, folder_of, read, refused, run, stage1, stage2, succeed, weights
from tools import compare, release
from tools.export_features import export_features
from utils.errors import UserError
from utils.files import sha256_file, write_json

COUNTS = [40, 20, 10, 5, 3]
EXPERIMENT = "own_mine_naturalIF13.33_features"
CLASSIFIER = ("fc.weight", "fc.bias")
SHORT = ("--finetune_epoch", 2)
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every command in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def clusters(seed: int = 0, width: int = 16) -> Arrays:
    """Separable features of five long-tailed classes, with held-out rows and names."""
    draw = np.random.default_rng(seed)
    centres = 3 * draw.standard_normal((len(COUNTS), width))
    arrays: Arrays = {"class_names": np.array(["ant", "bee", "cat", "dog", "eel"])}
    for split, counts in (("train", COUNTS), ("holdout", [4] * 5), ("test", [10] * 5)):
        labels = np.repeat(np.arange(len(COUNTS)), counts)
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_features"] = (centres[labels] + draw.standard_normal((len(labels), width))).astype(np.float32)
    return arrays


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name not in names}


def write(arrays: Arrays, file: Path = Path("mine.npz")) -> Path:
    """Write a file of features, by its ending as npz or as safetensors."""
    if file.suffix == ".npz":
        np.savez(file, **arrays)
        return file
    names = {"class_names": json.dumps(arrays["class_names"].tolist())} if "class_names" in arrays else None
    save_file({name: torch.tensor(array) for name, array in without(arrays, "class_names").items()}, file, names)
    return file


def classifier_of(folder: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in weights(folder / "last.pth").items()}


def made(stage: str, out: str = "checkpoints") -> Path:
    """The only run of a stage below a folder."""
    (metrics,) = Path(out).glob(f"**/{stage}*/metrics.json")
    return metrics.parent


# What is made from a file


def test_stage_2_trains_the_missing_classifier_first_and_uses_it_again() -> None:
    file = write(clusters())
    first = succeed("main_stage2", "--features", file, *SHORT)
    assert first.err == "" and first.out.count("has no classifier: training one") == 1
    folder = Path("checkpoints") / EXPERIMENT / "seed0"
    assert {path.name for path in folder.iterdir()} == {"stage1", "stage2_los_finetune_epoch2"}
    before = contents(folder / "stage1")
    second = succeed("main_stage2", "--features", file, *SHORT, "--method", "ce")
    assert "training one" not in second.out and contents(folder / "stage1") == before
    for name in ("stage1", "stage2_los_finetune_epoch2"):
        config, metrics = read(folder / name / "config.json"), read(folder / name / "metrics.json")
        assert config["backbone"]["sha256"] == sha256_file(file)
        assert config["settings"]["features"] == "mine.npz" and config["settings"]["views"] == "plain"
        assert metrics["class_counts"] == COUNTS and metrics["imb_ratio"] == 13.33
        assert (metrics["dataset"], metrics["network"], metrics["imb_type"]) == ("own_mine", "features", "natural")
        assert metrics["subset"]["content_sha256"] == config["subset"]["content_sha256"]
        assert metrics["holdout"]["images"] == 20 and metrics["last"]["flip"] is None
        assert metrics["train"]["accuracy"] == 100 and metrics["last"]["plain"]["all"] > 90
    stage1 = read(folder / "stage1" / "metrics.json")
    assert stage1["last"]["epoch"] == 0 and stage1["train_seconds"] > 0
    assert read(folder / "stage2_los_finetune_epoch2" / "config.json")["stage1"]["sha256"] == sha256_file(
        folder / "stage1" / "last.pth"
    )


def test_the_record_names_the_precision_of_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network runs on features, so bf16 units of the CPU have no part in any number, and `--amp` has no effect."""
    monkeypatch.setattr("utils.device.has_bf16_units", lambda: True)
    file = write(clusters())
    for more in ((), ("--amp", "bf16", "--overwrite")):
        outcome = succeed("main_stage2", "--features", file, *SHORT, *more)
        assert ("not used by main_stage2 with features" in outcome.err) == bool(more)
        assert "precision: fp32 (features are given: no network runs)" in outcome.out and "bf16" not in outcome.out
        for stage in ("stage1", "stage2"):
            config = read(made(stage) / "config.json")
            assert config["precision"] == config["parts"][0]["precision"] == "fp32"
    for stage in ("stage1", "stage2"):  # one of an earlier version is used, and gone on with, as it is
        config = read(made(stage) / "config.json")
        write_json(made(stage) / "config.json", {**config, "precision": "bf16"})
    assert "training one" not in succeed("main_stage2", "--features", file, *SHORT, "--reuse").out
    succeed("main_stage1", "--features", file, "--resume")


def test_held_out_images_without_a_finite_temperature_are_named_as_the_reason() -> None:
    """Where all of them are right, the best temperature is 0: 'train with --holdout' would be no help."""
    arrays = clusters()
    for split in ("train", "holdout"):
        arrays[f"{split}_features"] = 9 * np.eye(16, dtype=np.float32)[arrays[f"{split}_labels"]]
    file = write(arrays)
    out = succeed("main_stage2", "--features", file, *SHORT).out
    report = succeed("evaluate", "--features", file, "--cur_stage", "stage2", "--json", "report.json").out
    why = "no finite temperature: all 20 held-out images are right, and the likelihood grows as the temperature falls"
    assert out.count(why) == 2  # of the stage 1 that it trains first, too
    assert report.count(why) == 2  # of the last epoch and the best
    assert "train both stages" not in out + report and "give --temperature" in report
    found = read(made("stage2") / "metrics.json")["calibration"]
    assert found["temperature"] is None and found["source"].startswith(why) and found["plain"]["nll_after"] is None
    assert found["plain"]["nll_before"] == read(Path("report.json"))["checkpoints"]["last"]["plain"]["nll"]
    content = torch.load(made("stage2") / "last.pth", weights_only=True)
    assert content["temperature"] is None and content["temperature_source"] == found["source"]
    given = succeed("evaluate", "--features", file, "--cur_stage", "stage2", "--temperature", 2).out
    assert "temperature 2 (given)" in given and why not in given
    compare.main([str(made("stage2")), "--csv", "runs.csv"])
    row = pd.read_csv("runs.csv").iloc[0]
    assert pd.isna(row["temperature"]) and pd.isna(row["last_plain_brier_after"]) and 0 < row["last_plain_brier"] < 2


def test_stage_1_alone_its_weight_decay_and_its_folder() -> None:
    file = write(clusters())
    succeed("main_stage1", "--features", file, "--wd", 0.1)
    succeed("main_stage2", "--features", file, *SHORT)
    folder = Path("checkpoints") / EXPERIMENT / "seed0"
    assert {path.name for path in folder.iterdir()} == {"stage1_wd0.1", "stage2_los_wd0.1_finetune_epoch2"}
    succeed("main_stage1", "--features", file)
    assert np.linalg.norm(classifier_of(folder / "stage1")["fc.weight"]) > 2 * np.linalg.norm(
        classifier_of(folder / "stage1_wd0.1")["fc.weight"]
    )
    assert "holds a finished run" in refused("main_stage1", "--features", file)
    assert "using the finished run" in succeed("main_stage1", "--features", file, "--reuse").out


def test_an_interrupted_run_goes_on_and_ends_the_same() -> None:
    file = write(clusters())
    succeed("main_stage2", "--features", file, *SHORT)
    before = {
        stage: (classifier_of(made(stage)), read(made(stage) / "metrics.json")["last"])
        for stage in ("stage1", "stage2")
    }
    folders = {stage: made(stage) for stage in before}
    for stage, folder in folders.items():
        (folder / "metrics.json").unlink()
        succeed(f"main_{stage}", "--features", file, "--resume", *(SHORT if stage == "stage2" else ()))
        assert (classifier_of(folder), read(folder / "metrics.json")["last"]) == before[stage]


def test_npz_and_safetensors_are_the_same_and_so_are_types_that_hold_the_same_numbers() -> None:
    arrays = clusters()
    half = {n: a.astype(np.float16) if "_features" in n else a for n, a in arrays.items()}
    found = []
    for out, (kind, content) in {
        "a": (".npz", half),
        "b": (".safetensors", half),
        "c": (".npz", {n: a.astype(np.float64) if "_features" in n else a for n, a in half.items()}),
        "d": (".safetensors", {n: a.astype(np.int16) if "_labels" in n else a for n, a in half.items()}),
        "e": (".npz", {n: a.astype(">f4") if "_features" in n else a for n, a in half.items()}),
    }.items():
        succeed("main_stage2", "--features", write(content, Path(f"mine{kind}")), "--out", out, *SHORT)
        metrics = read(made("stage2", out) / "metrics.json")
        found.append((classifier_of(made("stage2", out)), metrics["last"], metrics["holdout"]))
    assert all(other == found[0] for other in found[1:])


def test_a_given_classifier_is_where_stage_2_starts() -> None:
    arrays = clusters()
    succeed("main_stage1", "--features", write(arrays), "--out", "trained")
    state = weights(made("stage1", "trained") / "last.pth")
    file = write({**arrays, **{name: state[name].numpy() for name in CLASSIFIER}})
    outcome = succeed("main_stage2", "--features", file, *SHORT)
    assert "training one" not in outcome.out and not list(Path("checkpoints").rglob("stage1"))
    assert made("stage2").name == f"stage2_los_from{sha256_file(file)[:8]}_finetune_epoch2"
    succeed("main_stage2", "--features", write(arrays), "--out", "trained", *SHORT)
    assert classifier_of(made("stage2")) == classifier_of(made("stage2", "trained"))
    assert "has a classifier already" in refused(
        "main_stage1", "--features", write({**arrays, "fc.weight": state["fc.weight"].numpy()})
    )
    _, content = read_features(file)
    assert content["model"]["fc.bias"].tolist() == [0.0] * 5  # left out by the last write


def test_they_are_the_exported_features_of_a_run(tmp_path: Path) -> None:
    stage1(tmp_path, "--epochs", 1, "--width", 4)
    export_features(folder_of(tmp_path, "stage1_epochs1_width4"), tmp_path / "exported.safetensors")
    assert "--pretrained_pth" in refused("main_stage2", "--features", "exported.safetensors")
    with safe_open("exported.safetensors", framework="np") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys() if "_ids" not in name}  # noqa: SIM118
    succeed(
        "main_stage2", "--features", write(arrays), "--out", "own", "--batch_size", 32, "--finetune_lr", 0.01,
        "--rate_scale", "published", *SHORT,
    )  # fmt: skip
    stage2(tmp_path / "theirs", "--pretrained_pth", "exported.safetensors", "--finetune_lr", 0.01, "--batch_size", 32)
    ours, theirs = made("stage2", "own"), made("stage2", "theirs")
    assert classifier_of(ours) == classifier_of(theirs)
    assert read(ours / "metrics.json")["last"] == read(theirs / "metrics.json")["last"]


def test_mirrored_features_are_averaged() -> None:
    arrays = clusters()
    file = write({**arrays, "test_features_mirrored": arrays["test_features"][:, ::-1]})
    succeed("main_stage2", "--features", file, *SHORT)
    last = read(made("stage2") / "metrics.json")["last"]
    assert last["flip"]["all"] < last["plain"]["all"]


@pytest.mark.parametrize("method", ["crt", "cosine", "ldam", "wb", "tau_norm", "ncm"])
def test_other_methods(method: str) -> None:
    succeed(
        "main_stage2",
        "--features",
        write(clusters()),
        "--method",
        method,
        *(SHORT if method not in ("tau_norm", "ncm") else ()),
    )
    assert read(made(f"stage2_{method}") / "metrics.json")["last"]["plain"]["all"] > 50


def test_evaluation_finds_the_run_with_and_without_the_file_named() -> None:
    file = write(clusters())
    succeed("main_stage2", "--features", file, *SHORT)
    for stage in ("stage1", "stage2"):
        expected = read(made(stage) / "metrics.json")["last"]["plain"]
        for source in (
            ("--features", file),
            ("--pretrained_pth", made(stage)),
            ("--pretrained_pth", made(stage) / "last.pth"),
        ):
            flags = ("--cur_stage", stage) if source[0] == "--features" else ()
            succeed("evaluate", *source, *flags, "--json", "report.json")
            assert read(Path("report.json"))["checkpoints"]["last"]["plain"] == expected
    succeed("main_stage2", "--pretrained_pth", made("stage1"), "--out", "named", *SHORT)
    assert classifier_of(made("stage2", "named")) == classifier_of(made("stage2"))
    compared = succeed_compare(made("stage1"), made("stage2"))
    assert "stage 1" in compared and "los" in compared


def succeed_compare(*folders: Path) -> str:
    compare.main([*map(str, folders), "--csv", "compared.csv"])
    return Path("compared.csv").read_text()


def test_evaluation_of_a_files_own_classifier() -> None:
    arrays = clusters()
    draw = np.random.default_rng(1)
    file = write({**arrays, "fc.weight": draw.standard_normal((5, 16)), "fc.bias": np.zeros(5)})
    succeed("evaluate", "--features", file, "--json", "report.json")
    record = read(Path("report.json"))["checkpoints"]["mine"]
    predicted = (arrays["test_features"] @ draw_weights(file).T).argmax(axis=1)
    assert record["plain"]["all"] == pytest.approx(100 * (predicted == arrays["test_labels"]).mean())


def draw_weights(file: Path) -> np.ndarray:
    return read_features(file)[1]["model"]["fc.weight"].numpy()


def test_a_classifier_on_them_is_released_beside_them() -> None:
    file = write(clusters())
    succeed("main_stage2", "--features", file, *SHORT)
    release.main([str(made("stage2")), "released.safetensors", "--backbone", "mine.npz"])
    succeed("evaluate", "--pretrained_pth", "released.safetensors", "--json", "report.json")
    record = read(Path("report.json"))["checkpoints"]["released"]
    assert record["plain"] == read(made("stage2") / "metrics.json")["last"]["plain"]
    with pytest.raises(UserError, match="is not the stage 1 of"):
        write(clusters(seed=1))
        release.main([str(made("stage2")), "other.safetensors", "--backbone", "mine.npz"])


# Another file of the same name


def test_a_changed_file_is_never_taken_for_the_old_one() -> None:
    succeed("main_stage2", "--features", write(clusters()), *SHORT)
    file = write(clusters(seed=1))
    for script in ("main_stage2", "evaluate"):
        assert "was trained on another file than mine.npz is now" in refused(script, "--features", file)
    assert "another file of features" in refused("main_stage1", "--features", file, "--reuse")
    assert "is not the backbone of" in refused("evaluate", "--pretrained_pth", made("stage2"))
    succeed("main_stage1", "--features", file, "--overwrite")
    assert "holds a finished run" in refused("main_stage2", "--features", file, *SHORT)
    assert "another file of features" in refused("main_stage2", "--features", file, *SHORT, "--reuse")
    succeed("main_stage2", "--features", file, *SHORT, "--overwrite")
    assert read(made("stage2") / "config.json")["backbone"]["sha256"] == sha256_file(file)


def test_other_test_features_are_another_file() -> None:
    arrays = clusters()
    succeed("main_stage2", "--features", write(arrays), *SHORT)
    file = write({**arrays, "test_features": arrays["test_features"] + 1})
    assert "was trained on another file" in refused("main_stage2", "--features", file, "--reuse", *SHORT)


def test_names_are_no_known_data_set() -> None:
    for dataset in DATASETS:
        assert user_dataset_name(Path(f"{dataset}.npz")) not in DATASETS
    assert user_dataset_name(Path("a b/é&c.v1.npz")) == "own_é-c.v1"
    assert user_dataset_name(Path("a/b.v1")) == user_dataset_name(Path("a/b.v1/X_train.npy")) == "own_b.v1"
    assert user_dataset_name(Path(".")) == user_dataset_name(Path("train_labels.npy")) == f"own_{Path.cwd().name}"


# The classifier


def test_the_probe_does_not_depend_on_scale_or_shift() -> None:
    arrays = clusters()
    features, labels = torch.tensor(arrays["train_features"]), torch.tensor(arrays["train_labels"])
    first = fit_probe(features, labels, 5, 1e-5)
    for scale, shift in ((1e-4, 0.0), (1e4, 0.0), (1e25, 0.0), (1.0, 5.0)):
        moved = features * scale + shift
        other = fit_probe(moved, labels, 5, 1e-5)
        torch.testing.assert_close(
            moved @ other.weight.T + other.bias, features @ first.weight.T + first.bias, rtol=0.02, atol=0.05
        )
    again = fit_probe(features, labels, 5, 1e-5)
    assert torch.equal(again.weight, first.weight) and torch.equal(again.bias, first.bias)


def test_the_probe_is_the_minimum_of_its_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 4, generator=draw), torch.randint(0, 3, (60,), generator=draw)
    probe = fit_probe(features, labels, 3, 0.01)
    spread = (features - features.mean(dim=0)).square().sum(dim=1).mean()
    weight, bias = (value.clone().requires_grad_() for value in (probe.weight, probe.bias))
    loss = nn.functional.cross_entropy(features @ weight.T + bias, labels) + 0.01 / 2 * spread * weight.square().sum()
    loss.backward()
    assert loss.item() == pytest.approx(probe.loss, abs=1e-5)
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4
    monkeypatch.setattr("methods.convex_fit.CHUNK", 30)  # ten rows at a time
    torch.testing.assert_close(fit_probe(features, labels, 3, 0.01).weight, probe.weight, rtol=1e-3, atol=1e-4)


def test_constant_features_leave_the_class_frequencies() -> None:
    probe = fit_probe(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]), 2, 1e-5)
    assert probe.weight.tolist() == [[0.0] * 3] * 2
    torch.testing.assert_close(probe.bias.softmax(0), torch.tensor([0.75, 0.25]), rtol=1e-3, atol=1e-3)


def test_unit_norm_features_need_larger_steps() -> None:
    """What docs/features.md says of unit norms: published steps hardly move stage 2, those of the scale do."""
    draw = np.random.default_rng(0)
    cone, centres = draw.standard_normal(64), 0.5 * draw.standard_normal((5, 64))

    def features(labels: np.ndarray) -> np.ndarray:
        rows = cone + centres[labels] + 0.9 * draw.standard_normal((len(labels), 64))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    arrays = {"train_labels": np.repeat(np.arange(5), [100, 40, 16, 6, 3]), "test_labels": np.repeat(np.arange(5), 40)}
    arrays |= {name.replace("labels", "features"): features(labels) for name, labels in arrays.items()}
    file = write(arrays)
    moved = {}
    for scale in ("published", "features"):
        succeed("main_stage2", "--features", file, "--rate_scale", scale, "--out", "all")
        tag = "_rate_scalepublished" if scale == "published" else ""
        folder = next(Path("all").rglob(f"stage2_los{tag}/metrics.json")).parent
        start = np.array(classifier_of(made("stage1", "all"))["fc.weight"])
        end = np.array(classifier_of(folder)["fc.weight"])
        moved[scale] = np.linalg.norm(end - start) / np.linalg.norm(start)
    assert read(made("stage1", "all") / "metrics.json")["train"]["accuracy"] == 100
    assert moved["published"] < 0.02 and moved["features"] > 10 * moved["published"]


# Tables


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.request, "save_figure", lambda *_: None)


@pytest.mark.usefixtures("few_trials", "no_figures")
def test_the_unified_table_chooses_on_the_files_held_out_rows() -> None:
    file = write(clusters())
    flags = ("unified", "--features", file, "--methods", "ce", "los", "tau_norm")
    assert "no selection yet" in succeed("reproduce", *flags).out
    succeed("reproduce", *flags, "--select", "--seeds", 0, 1)
    rows = pd.read_csv(f"results/unified_{EXPERIMENT}_ce-los-tau_norm.csv")
    assert rows["last_plain_all"].notna().all() and set(rows["budget"]) == {"shared", "selected"}
    assert set(rows["imb_type"]) == {"natural"} and set(rows["seed"]) == {0, 1}
    text = Path(f"results/unified_{EXPERIMENT}_ce-los-tau_norm.md").read_text()
    assert "of stage 2 alone, on one stage 1" in text
    file = write(without(clusters(), "holdout_features", "holdout_labels"), Path("bare.npz"))
    told = succeed("reproduce", "unified", "--features", file, "--select", "--methods", "ce", "los").out
    assert "the training rows are held out in 3 folds" in told and "split 3 of 3" in told
    assert "python main_stage2.py --features bare.npz" in told.splitlines()[-1]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("table", ["delta", "path"])
def test_other_tables(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.path, "EPOCHS", 2)
    monkeypatch.setattr(tables.path, "LBFGS_STEPS", 2)
    monkeypatch.setattr("tables.delta.SMOOTHINGS", (0.0, 0.9))
    succeed("reproduce", table, "--features", write(clusters()))
    assert len(pd.read_csv(f"results/{table}_{EXPERIMENT}.csv")) > 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("cifar",), "--features has no use in the table cifar"),
        (("delta", "--epochs", 3), "--epochs would be stage 1's, and --features names one"),
        (("delta", "--imb_ratio", 3), "--imb_ratio: no use with --features"),
        (("unified", "--select", "--holdout_pth", "x"), "--holdout_pth: no use with --features"),
        (("delta", "--network", "resnet20"), "--network resnet20: no use with --features"),
    ],
)
def test_tables_that_make_no_sense(flags: tuple[object, ...], words: str) -> None:
    assert words in refused("reproduce", *flags, "--features", write(clusters()))


# What is refused


def test_flags_without_a_meaning() -> None:
    file = write(clusters())
    values = {"dataset": "digits", "imb_type": "step", "subset": "shuffle", "network": "resnet8"}
    for name in ("data_dir", "imb_ratio", "width", "pretrained_pth", *values):
        assert Facet.OF_IMAGES in FLAGS[name].facets
        for script in SCRIPTS[:2] if name == "pretrained_pth" else SCRIPTS:
            message = refused(script, "--features", file, f"--{name}", values.get(name, 1))
            assert f"--{name} " in message and "no use with --features mine.npz" in message
    for flags in (("--loss", "focal"), ("--augment", "autoaugment"), ("--epochs", 3), ("--lr", 0.1), ("--tau", 1)):
        assert Facet.STAGE1_STEPS in FLAGS[flags[0].removeprefix("--")].facets
        assert f"{flags[0]} " in refused("main_stage1", "--features", file, *flags)
    for flags in (("--views", 5), ("--views", "fresh"), ("--bn_mode", "train"), ("--protocol", "released")):
        assert f"{flags[0]} " in refused("main_stage2", "--features", file, *flags)
    assert "--num_class 9" in refused("main_stage2", "--features", file, "--num_class", 9)
    assert not list(Path("checkpoints").rglob("stage2*"))
    outcome = succeed("main_stage2", "--features", file, "--views", "plain", "--augment", "crop", *SHORT)
    assert outcome.err == "not used by main_stage2: --augment\n"


def test_one_line_and_status_2_of_every_script() -> None:
    arrays = clusters()
    arrays["train_features"][3, 2] = np.nan
    file = write(arrays)
    for script in SCRIPTS:
        assert "mine.npz: 'train_features' holds numbers that are not finite" in refused(script, "--features", file)
        assert "No such file" in refused(script, "--features", "nowhere.npz")
    assert not list(Path().rglob("config.json"))


def test_features_alone_are_nothing_to_report_on_or_to_publish() -> None:
    """The line says what trains a classifier on them, and what reports on it; both do."""
    file = write(clusters())
    with pytest.raises(UserError) as caught:
        release.main([str(file), "out.safetensors"])
    of_scripts = [refused(script, "--pretrained_pth", file) for script in ("main_stage2", "evaluate")]
    for refusal in (str(caught.value), *of_scripts):
        assert "mine.npz holds features and no classifier" in refusal
        assert "main_stage2.py --features mine.npz trains one" in refusal
        assert "evaluate.py --features mine.npz --cur_stage stage2 reports on it" in refusal
    succeed("main_stage2", "--features", file, "--finetune_epoch", 1)
    assert "stage2" in succeed("evaluate", "--features", file, "--cur_stage", "stage2").out


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: change(arrays[name])}


def added(**more: Any) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, **{name.replace("fc_", "fc."): np.array(value) for name, value in more.items()}}


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Put a value in the place of the last number."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[-1] = value
        return array

    return change


BAD: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    **{
        f"no {name}": (lambda arrays, name=name: without(arrays, name), f"'{name}' is missing")
        for name in (
            "train_features",
            "train_labels",
            "test_features",
            "test_labels",
            "holdout_features",
            "holdout_labels",
        )
    },
    "NaN": (changed("test_features", put(np.nan)), "'test_features' holds numbers that are not finite"),
    "infinity": (changed("holdout_features", put(-np.inf)), "'holdout_features' holds numbers that are not finite"),
    "beyond float32": (
        changed("train_features", lambda a: put(1e300)(a.astype(np.float64))),
        "that are too large for float32",
    ),
    "width": (changed("test_features", lambda a: a[:, 1:]), "'test_features' has 15 features an image"),
    "no width": (changed("train_features", lambda a: a[:, :0]), "'train_features' has 0 features"),
    "mirrored width": (added(test_features_mirrored=np.zeros((50, 3))), "'test_features_mirrored' has 3 features"),
    "mirrored length": (added(test_features_mirrored=np.zeros((49, 16))), "'test_features_mirrored' has 49 rows"),
    "length": (changed("test_features", lambda a: a[1:]), "'test_features' has 49 rows and 'test_labels' 50"),
    "dimensions": (changed("train_features", lambda a: a[0]), "'train_features' must be (images, features)"),
    "large integers": (changed("train_features", lambda a: a.astype(int) + 2**24), "which float32 rounds"),
    "truth values": (changed("train_features", lambda a: a > 0), "'train_features' must be"),
    "empty": (changed("train_labels", lambda a: a[:0]), "'train_labels' are empty"),
    "empty test": (
        lambda a: {**a, "test_labels": a["test_labels"][:0], "test_features": a["test_features"][:0]},
        "'test_features' has 0 rows",
    ),
    "labels between": (changed("train_labels", lambda a: a + 0.5), "'train_labels' holds numbers that are not whole"),
    "boolean labels": (changed("test_labels", lambda a: a > 1), "'test_labels' must be one label a row"),
    "label dimensions": (changed("train_labels", lambda a: a[:, None, None]), "'train_labels' must be one label a row"),
    "soft labels": (changed("train_labels", lambda a: np.full((len(a), 5), 0.2)), "'train_labels' must be one label"),
    "not a number": (changed("test_labels", lambda a: a * np.nan), "'test_labels' holds numbers that are not whole"),
    "negative label": (changed("train_labels", put(-1)), "'train_labels' holds -1"),
    "negative test label": (changed("test_labels", put(-2)), "'test_labels' holds -2"),
    "test label": (changed("test_labels", put(5)), "'test_labels' holds something else than classes 0 to 4"),
    "empty class": (changed("train_labels", lambda a: np.where(a == 2, 1, a)), "class 2 has no training image"),
    "huge label": (changed("train_labels", put(10**15)), "have 6 classes"),
    "one class": (lambda a: {**without(a, "class_names"), "train_labels": 0 * a["train_labels"]}, "hold one class"),
    "transposed": (
        changed("train_features", lambda a: np.ascontiguousarray(a.T)),
        "'train_features' is (16, 78) for 78 labels: its columns",
    ),
    "maps": (changed("test_features", lambda a: a.reshape(50, 4, 2, 2)), "average maps over their pixels"),
    "names": (changed("class_names", lambda a: a[1:]), "'class_names' are 4, and 'train_labels' have 5"),
    "classifier": (added(fc_weight=np.zeros((4, 16))), "'fc.weight' must be (5, 16)"),
    "classifier's type": (added(fc_weight=np.zeros((5, 16), int)), "'fc.weight' must be (5, 16)"),
    "bias": (added(fc_weight=np.zeros((5, 16)), fc_bias=np.zeros(4)), "'fc.bias' must be (5,)"),
    "bias alone": (added(fc_bias=np.zeros(5)), "'fc.weight' is missing"),
    "NaN in the classifier": (added(fc_weight=np.full((5, 16), np.nan)), "'fc.weight' holds numbers"),
}


@pytest.mark.parametrize("damage", BAD)
def test_bad_content_is_named(damage: str) -> None:
    change, words = BAD[damage]
    for suffix in (".npz", ".safetensors"):
        file = write(change(clusters()), Path(f"mine{suffix}"))
        with pytest.raises(UserError) as caught:
            read_features(file)
        assert str(caught.value).startswith(f"--features {file}: ") and words in str(caught.value)


def test_objects_are_never_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("exploded"),)

    for name in ("train_features", "class_names"):
        file = write({**clusters(), name: np.array([Bomb()], dtype=object)})
        message = refused("main_stage2", "--features", file)
        assert f"'{name}' is an array of Python objects" in message
    outcome = run("main_stage2", "--features", write({**clusters(), "extra": np.array([Bomb()], dtype=object)}), *SHORT)
    assert outcome.status == 0 and outcome.err.startswith("not used of mine.npz: extra\n")
    assert not Path("exploded").exists()


def test_files_that_are_not_what_their_names_say() -> None:
    npz, safetensors = write(clusters()), write(clusters(), Path("mine.safetensors"))
    np.save("array.npy", np.zeros(3))
    torch.save({"a": 1}, "pickled.pth")
    for name, source in {
        "a.safetensors": npz,
        "b.npz": safetensors,
        "c.npz": Path("pickled.pth"),
        "d.npz": None,
        "e.safetensors": None,
    }.items():
        Path(name).write_bytes(b"") if source is None else shutil.copy(source, name)
        with pytest.raises(UserError, match=rf"--features {name}: (damaged, or not a |'train_features' is missing)"):
            read_features(Path(name))
    Path("short.npz").write_bytes(npz.read_bytes()[:2000])
    Path("short.safetensors").write_bytes(safetensors.read_bytes()[:2000])
    for name in ("short.npz", "short.safetensors"):
        with pytest.raises(UserError, match="damaged, or not a"):
            read_features(Path(name))
    shutil.copy("array.npy", "array.npz")
    with pytest.raises(UserError, match="a single array"):
        read_features(Path("array.npz"))
    for name in ("mine.csv", "mine", "mine.npy"):
        with pytest.raises(UserError, match=r"must end in \.npz, \.safetensors, |No such file"):
            read_features(Path(name))
    Path("folder.npz").mkdir()
    with pytest.raises(UserError, match=r"folder\.npz: no features in this folder"):
        read_features(Path("folder.npz"))
    save_file({"train_features": torch.zeros(1)}, "n.safetensors", {"class_names": '{"a": 1}'})
    with pytest.raises(UserError, match="must be a JSON list of strings"):
        read_features(Path("n.safetensors"))
    save_file({"train_features": torch.zeros(1)}, "n.safetensors", {"class_names": "ant, bee"})
    with pytest.raises(UserError, match="no JSON list"):
        read_features(Path("n.safetensors"))
    np.savez("n.npz", class_names=np.arange(3))
    with pytest.raises(UserError, match="'class_names' must hold strings"):
        read_features(Path("n.npz"))
