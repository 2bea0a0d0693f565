"""Files of features: what they hold, that stage 2 and the tables on them are those on the run, and what is refused."""

import hashlib
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
from torch import Tensor

import tables.path
from datasets.features import DeviceFeatures, features_data
from datasets.long_tail import Split
from models.given_features import GivenFeatures
from runs.checkpoint import load_checkpoint
from runs.session import LoadedModel
from runs.shards import find_shards
from stages.data import load_features
from tests.helpers import (
    EXPERIMENT,
    folder_of,
    read,
    refused,
    run,
    stage1,
    stage2,
    succeed,
    use_small_cifar,
    weights,
    write_cifar,
)
from tests.table_runs import make
from tools import export_features as export
from tools import release
from tools.export_features import export_features, feature_tensors
from utils.device import Execution
from utils.errors import UserError
from utils.files import sha256_file

SMALL = ("--epochs", 1, "--width", 4)
RUN = "stage1_epochs1_holdout0.2_width4"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stage 1s on the digits with held-out images; `features<seed>.safetensors` of them and one in parts. And
    `all.safetensors` of one that has seen all images."""
    out = tmp_path_factory.mktemp("source")
    stage1(out, *SMALL)
    export_features(folder_of(out, "stage1_epochs1_width4"), out / "all.safetensors")
    for seed in range(3):
        stage1(out, *SMALL, "--holdout", 0.2, "--seed", seed)
        export.main([str(folder_of(out, RUN, seed)), str(out / f"features{seed}.safetensors")])
    export.main([str(folder_of(out, RUN)), str(out / "split.safetensors"), "--part_mib", "0.02"])
    return out


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    """A copy of `source` that a test may change."""
    return Path(shutil.copytree(source, tmp_path / "out"))


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of a stage 1 on images that are mirrored, in a folder that has the images no more."""
    root = tmp_path_factory.mktemp("cifar")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        use_small_cifar(patch)
        write_cifar(root / "data" / "cifar100")
        succeed("main_stage1")
        export_features(Path("checkpoints/cifar100_expIF100_resnet8/seed0/stage1"), root / "kept" / "f.safetensors")
    shutil.rmtree(root / "data")
    return root


def content_of(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118


def made(out: Path, file: Path, *arguments: object) -> Path:
    """Run one epoch of stage 2 on a file, in a folder of its own, and return the run's folder."""
    stage2(out, "--pretrained_pth", file, "--finetune_epoch", 1, *arguments)
    return next(out.rglob("stage2*/metrics.json")).parent


# What a file holds


def test_a_file_holds_features_labels_ids_and_the_classifier(source: Path) -> None:
    tensors, metadata = content_of(source / "features0.safetensors")
    state = weights(folder_of(source, RUN) / "last.pth")
    metrics = read(folder_of(source, RUN) / "metrics.json")
    sizes = {"train": sum(metrics["class_counts"]), "holdout": metrics["holdout"]["images"], "test": 500}
    kinds = ("features", "labels", "ids")
    assert set(tensors) == {f"{split}_{kind}" for split in sizes for kind in kinds} | {"fc.weight", "fc.bias"}
    for split, size in sizes.items():
        assert tensors[f"{split}_features"].shape == (size, state["fc.weight"].shape[1])
        assert [tensors[f"{split}_{kind}"].dtype for kind in kinds] == [torch.float16, torch.int64, torch.int64]
    assert all(torch.equal(tensors[key], state[key]) for key in ("fc.weight", "fc.bias"))
    header = json.loads(metadata["checkpoint"])
    assert (header["stage"], header["epoch"], header["holds"]) == ("stage1", 1, "features")
    assert header["class_names"] == [str(digit) for digit in range(10)]
    assert header["augmentation"] == {"mirror": False}
    assert header["config"]["subset"]["content_sha256"] == metrics["subset"]["content_sha256"]
    assert header["last"] == {"plain": metrics["last"]["plain"]["all"], "flip": None}


def test_the_card_says_what_was_measured_of_the_file_and_of_the_run(source: Path) -> None:
    metrics = read(folder_of(source, RUN) / "metrics.json")
    for name in ("features0", "split"):
        card = read(source / f"{name}.json")
        assert card["last"]["plain"] == metrics["last"]["plain"]["all"]
        assert card["measured"]["plain"] == pytest.approx(card["last"]["plain"], abs=0.5)
        assert card["run_sha256"] == sha256_file(folder_of(source, RUN) / "last.pth")
        assert card["command"].startswith("python main_stage1.py")
        checkpoint = load_checkpoint(source / f"{name}.safetensors")
        assert card["sha256"] == checkpoint.sha256 and "features of a stage1" in checkpoint.kind
    assert [part["sha256"] for part in card["parts"]] == list(
        map(sha256_file, find_shards(source / "split.safetensors"))
    )
    assert len(card["parts"]) > 2  # the training features alone do not fit into one


def test_features_in_parts_are_those_of_the_whole_file(source: Path) -> None:
    whole, split = (load_checkpoint(source / f"{name}.safetensors").features for name in ("features0", "split"))
    assert whole is not None and split is not None and whole.keys() == split.keys()
    assert all(torch.equal(whole[key], split[key]) for key in whole)


def test_mirrored_images_have_their_own_features(cifar: Path, cpu: Execution) -> None:
    tensors, metadata = content_of(cifar / "kept" / "f.safetensors")
    assert "test_features_mirrored" in tensors and "holdout_features" not in tensors
    assert not torch.equal(tensors["test_features"], tensors["test_features_mirrored"])
    assert json.loads(metadata["checkpoint"])["augmentation"] == {"mirror": True}
    images = DeviceFeatures(load_features(load_checkpoint(cifar / "kept" / "f.safetensors")).test, cpu.device)
    rows = torch.arange(3)
    assert torch.equal(images.plain(rows, mirrored=True), tensors["test_features_mirrored"][:3].float())
    assert torch.equal(images.plain(rows), tensors["test_features"][:3].float())
    card = read(cifar / "kept" / "f.json")
    assert all(card["measured"][way] == pytest.approx(card["last"][way], abs=5) for way in ("plain", "flip"))


# What is made from it


@pytest.mark.parametrize("flags", [("--method", "los"), ("--method", "tau_norm"), ("--method", "cosine")])
def test_stage_2_on_features_is_that_on_the_run_with_plain_views(
    flags: tuple[object, ...], source: Path, tmp_path: Path
) -> None:
    ours = made(tmp_path / "file", source / "features0.safetensors", *flags)
    theirs = made(
        tmp_path / "run", folder_of(source, RUN), *flags, *(() if "tau_norm" in flags else ("--views", "plain"))
    )
    first, second = (weights(folder / "last.pth") for folder in (ours, theirs))
    assert set(first) == {key for key in second if key.startswith("fc.")}
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=2e-3, atol=2e-3)
    one, other = (read(folder / "metrics.json") for folder in (ours, theirs))
    assert one["last"]["plain"]["all"] == pytest.approx(other["last"]["plain"]["all"], abs=0.5)
    assert one["class_counts"] == other["class_counts"] and one["subset"] == other["subset"]
    assert one["holdout"]["images"] == other["holdout"]["images"] and one["weight_norm"]
    loma = [metrics["logits_summary"]["test"]["column"]["loma"]["mean"] for metrics in (one, other)]
    assert loma[0] == pytest.approx(loma[1], rel=0.02)


def test_config_json_says_that_the_views_are_plain(source: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, source / "features0.safetensors")
    config = read(folder / "config.json")
    digest = sha256_file(source / "features0.safetensors")
    assert config["settings"]["views"] == "plain"
    assert folder.name == f"stage2_los_epochs1_holdout0.2_width4_from{digest[:8]}_finetune_epoch1_viewsplain"
    assert config["stage1"]["sha256"] == config["backbone"]["sha256"] == digest
    outcome = stage2(tmp_path, "--pretrained_pth", source / "features0.safetensors", "--finetune_epoch", 1, "--reuse")
    assert "using the finished run" in outcome.out
    before = read(folder / "metrics.json")["last"]
    (folder / "metrics.json").unlink()
    stage2(tmp_path, "--pretrained_pth", source / "features0.safetensors", "--finetune_epoch", 1, "--resume")
    assert read(folder / "metrics.json")["last"] == before


def test_the_data_set_need_not_be_there(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = cifar / "kept" / "f.safetensors"
    outcome = succeed("main_stage2", "--pretrained_pth", file, "--finetune_epoch", 1, "--data_dir", "nowhere")
    assert outcome.err == "not used by main_stage2 with a file of features: --data_dir\n"
    folder = next(tmp_path.rglob("stage2*/metrics.json")).parent
    metrics = read(folder / "metrics.json")
    assert metrics["last"]["flip"]["all"] > 0
    for name in (folder, folder / "last.pth"):
        succeed("evaluate", "--pretrained_pth", name, "--json", "report.json")
        assert read(Path("report.json"))["checkpoints"]["last"]["flip"] == metrics["last"]["flip"]
    succeed("evaluate", "--pretrained_pth", file, "--json", "report.json")
    record = read(Path("report.json"))["checkpoints"]["f"]
    assert {way: record[way]["all"] for way in ("plain", "flip")} == read(file.with_suffix(".json"))["measured"]


def test_a_report_on_a_run_finds_its_features_and_no_others(out: Path) -> None:
    folder, file = made(out, out / "features0.safetensors"), out / "features0.safetensors"
    moved = shutil.copytree(out, out.parent / "moved")  # as a whole: both are where they were to one another
    shutil.rmtree(out)
    folder, file = moved / folder.relative_to(out), moved / file.name
    assert run("evaluate", "--pretrained_pth", folder).status == 0
    file.with_suffix(".json").unlink()
    file.unlink()
    assert "features0.safetensors" in refused("evaluate", "--pretrained_pth", folder)
    shutil.copy(moved / "features1.safetensors", file)
    assert "is not the backbone of" in refused("evaluate", "--pretrained_pth", folder)


def test_a_classifier_made_from_features_is_released_with_the_weights_of_the_same_run(out: Path) -> None:
    folder = made(out / "runs", out / "features0.safetensors")
    release.main([str(folder_of(out, RUN)), str(out / "weights.safetensors")])
    release.main([str(folder_of(out, RUN, 1)), str(out / "others.safetensors")])
    for name in ("weights", "features0"):
        classifier = out / f"classifier_{name}.safetensors"
        release.main([str(folder), str(classifier), "--backbone", str(out / f"{name}.safetensors")])
        succeed("evaluate", "--pretrained_pth", classifier, "--json", out / "report.json")
        record = read(out / "report.json")["checkpoints"][classifier.stem]
        assert record["plain"]["all"] == read(classifier.with_suffix(".json"))["measured"]["plain"]
    with pytest.raises(UserError, match="is not the stage 1 of"):
        release.main([str(folder), str(out / "x.safetensors"), "--backbone", str(out / "others.safetensors")])


# Tables


@pytest.mark.usefixtures("few_trials")
def test_the_unified_table_takes_files_of_features(source: Path, tmp_path: Path) -> None:
    splits = [source / f"features{seed}.safetensors" for seed in range(3)]
    methods = ("--methods", "ce", "los", "tau_norm")
    make(
        tmp_path,
        "unified",
        *methods,
        "--pretrained_pth",
        source / "split.safetensors",
        "--select",
        "--holdout_pth",
        *splits,
    )
    settings = hashlib.sha256(b"epochs1_holdout0.2_viewsplain").hexdigest()[:8]  # in words they would be too long
    name = f"unified_{EXPERIMENT}w4_{settings}"
    rows = pd.read_csv(tmp_path / "results" / f"{name}_ce-los-tau_norm.csv")
    assert rows["last_plain_all"].notna().all() and set(rows["budget"]) == {"shared", "selected"}
    choices = pd.read_csv(tmp_path / "results" / f"{name}_selection.csv")
    assert choices["conditions"].iloc[0].startswith("views plain,")
    assert not (tmp_path / "features").exists()  # nothing is computed that would be worth keeping
    rows_kept = [path for path in (tmp_path / "tables").rglob("*.json") if not path.name.startswith("trials_")]
    kept = [read(path)["config"]["settings"]["views"] for path in rows_kept]
    assert kept and set(kept) == {"plain"}


@pytest.mark.parametrize("table", ["delta", "path"])
def test_other_tables_take_them_too(table: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.path, "EPOCHS", 2)
    monkeypatch.setattr(tables.path, "LBFGS_STEPS", 2)
    monkeypatch.setattr("tables.delta.SMOOTHINGS", (0.0, 0.9))
    make(tmp_path, table, "--pretrained_pth", source / "all.safetensors")
    rows = pd.read_csv(next((tmp_path / "results").glob(f"{table}_*_viewsplain.csv")))
    assert len(rows) > 1


# What is refused


@pytest.mark.parametrize(
    "flags",
    [
        ("--views", 5),
        ("--views", "fresh"),
        ("--bn_mode", "train"),
        ("--protocol", "released"),
        ("--imb_ratio", 10),
        ("--network", "resnet20"),
        ("--dataset", "cifar10"),
        ("--holdout", 0.1),
        ("--width", 5),
        ("--num_class", 9),
    ],
)
def test_a_flag_that_contradicts_a_file_of_features(flags: tuple[str, object], source: Path, tmp_path: Path) -> None:
    file = source / "features0.safetensors"
    assert flags[0] in refused("main_stage2", "--pretrained_pth", file, "--out", tmp_path, *flags)
    assert not list(tmp_path.rglob("config.json"))


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def filled(value: float) -> Callable[[Tensor], Tensor]:
    """Put a value in the place of the last number."""

    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


def first_changed(labels: Tensor) -> Tensor:
    """Turn the first label into another one."""
    labels[0] = 9 - labels[0]
    return labels


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    **{f"no {name}": (without(name), name) for name in ("train_features", "test_labels", "train_ids", "fc.bias")},
    "no holdout": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("holdout")],
        "holdout_ids",
    ),
    "NaN": (changed("test_features", filled(np.nan)), "'test_features' holds numbers that are not finite"),
    "infinity": (changed("train_features", filled(np.inf)), "'train_features' holds numbers that are not finite"),
    "label": (changed("test_labels", filled(10)), "'test_labels' holds something else than classes 0 to 9"),
    "negative label": (changed("train_labels", filled(-1)), "'train_labels' holds something else"),
    "other label": (changed("train_labels", first_changed), "train_labels"),
    "other id": (changed("train_ids", filled(0)), "train_ids"),
    "width": (changed("test_features", lambda features: features[:, 1:]), "'test_features' has 15 features"),
    "length": (changed("test_features", lambda features: features[1:]), "'test_features' has 499 rows"),
    "ids": (changed("holdout_ids", lambda ids: ids[1:]), "holdout_ids"),
    "dimensions": (changed("train_features", lambda features: features[0]), "'train_features' must be"),
    "number": (changed("train_labels", lambda labels: labels[0]), "'train_labels' must be"),
    "dtype": (changed("train_labels", Tensor.float), "'train_labels' must be"),
    "integers": (changed("train_features", Tensor.int), "'train_features' must be"),
    "classifier": (changed("fc.weight", lambda weight: weight[1:]), "fc.weight: (9, 16) here, (10, 16) expected"),
    "mirrored": (lambda tensors: None, "'test_features_mirrored' is missing"),
    "names": (lambda tensors: None, "is not a checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_features_are_named(damage: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors, metadata = content_of(source / "features0.safetensors")
    change, words = DAMAGES[damage]
    change(tensors)
    header = json.loads(metadata["checkpoint"])
    if damage == "mirrored":
        header["augmentation"]["mirror"] = True
    if damage == "names":
        del header["class_names"]
    file = tmp_path / "damaged.safetensors"
    save_file(tensors, file, {"checkpoint": json.dumps(header)})
    for script in ("main_stage2", "evaluate"):
        message = refused(script, "--pretrained_pth", file)
        assert str(file) in message and words in message
    assert not list(tmp_path.rglob("config.json"))


def test_a_checkpoint_alone_gives_the_features_of_its_run(source: Path, tmp_path: Path) -> None:
    whole, (alone, file) = source / "all.safetensors", (tmp_path / "alone.pth", tmp_path / "alone.safetensors")
    shutil.copy(folder_of(source, "stage1_epochs1_width4") / "last.pth", alone)
    export.main([str(alone), str(file)])
    expected, found = content_of(whole)[0], content_of(file)[0]
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
    card = read(file.with_suffix(".json"))
    assert card["measured"] == read(whole.with_suffix(".json"))["measured"]
    assert (card["run_sha256"], card["dataset"], card["stage"]) == (sha256_file(alone), "digits", "stage1")


def test_a_plain_state_dict_is_exported_on_the_data_and_network_that_flags_name(source: Path, tmp_path: Path) -> None:
    whole, (plain, file) = source / "all.safetensors", (tmp_path / "plain.pth", tmp_path / "plain.safetensors")
    torch.save(weights(folder_of(source, "stage1_epochs1_width4") / "last.pth"), plain)
    flags = ["--dataset", "digits", "--width", "4"]
    export.main([str(plain), str(file), *flags])
    expected, found = content_of(whole)[0], content_of(file)[0]
    assert set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
    assert read(file.with_suffix(".json"))["source"]["sha256"] == sha256_file(plain)
    on_run, on_file = (made(tmp_path / name, path, "--views", "plain") for name, path in (("a", whole), ("b", file)))
    assert read(on_run / "metrics.json")["last"] == read(on_file / "metrics.json")["last"]
    with pytest.raises(UserError, match="does not fit the network"):
        export.main([str(plain), str(tmp_path / "wrong.safetensors"), "--dataset", "digits", "--width", "8"])
    assert not (tmp_path / "wrong.safetensors").exists()
    released = tmp_path / "released.safetensors"
    release.main([str(plain), str(released), *flags])
    measured = read(released.with_suffix(".json"))["measured"]["plain"]
    outcome = succeed("evaluate", "--pretrained_pth", released)
    assert f"{measured:.2f}" in outcome.out


def test_what_cannot_be_exported(source: Path, tmp_path: Path) -> None:
    def failure(folder: Path, file: Path, *arguments: str) -> str:
        with pytest.raises(UserError) as caught:
            export.main([str(folder), str(file), *arguments])
        return str(caught.value)

    folder, file = folder_of(source, RUN), tmp_path / "f.safetensors"
    assert "may exist" in failure(folder, source / "features0.safetensors")
    assert "may exist" in failure(folder, source / "split.safetensors")
    assert ".safetensors" in failure(folder, tmp_path / "f.npz")
    assert "not a finished run" in failure(tmp_path, file)
    assert "no room" in failure(folder, file, "--part_mib", "0.001")
    assert "is of a stage2" in failure(made(tmp_path, folder, "--views", 1), file)
    assert "--nonsense" in failure(folder, file, "--nonsense", "5")
    assert not file.exists()


def test_features_too_large_for_half_precision_are_refused(cpu: Execution) -> None:
    split = Split(np.full((3, 1, 2), 1e5, np.float32), np.zeros(3, np.int64), np.arange(3))
    images = {"train": DeviceFeatures(split, cpu.device)}
    command: Any = None  # features of a network alone do not ask for it
    loaded = LoadedModel(command, cpu, command, dict(images), GivenFeatures(2, 2), None, None)
    with pytest.raises(UserError, match=r"train_features .* half precision"):
        feature_tensors(loaded, mirror=False)


def test_features_cannot_be_augmented(source: Path, cpu: Execution) -> None:
    data = load_features(load_checkpoint(source / "features0.safetensors"))
    with pytest.raises(UserError, match="--views plain"):
        DeviceFeatures(data.train, cpu.device).augmented(torch.arange(2), 0, 0)


def test_anyones_features_are_a_data_set() -> None:
    labels = {"train": torch.tensor([0, 0, 0, 1, 1]), "test": torch.tensor([0, 1])}
    tensors = {f"{split}_labels": values for split, values in labels.items()}
    tensors |= {f"{split}_features": torch.randn(len(values), 3) for split, values in labels.items()}
    tensors |= {f"{split}_ids": torch.arange(len(values)) for split, values in labels.items()}
    data = features_data("mine", tensors, ["a", "b"], mirror=False)
    assert data.class_counts.tolist() == [3, 2] and len(data.holdout) == 0 and len(data.subset["content_sha256"]) == 64
    with pytest.raises(UserError, match="class 2 has no training image"):
        features_data("mine", tensors, ["a", "b", "c"], mirror=False)
