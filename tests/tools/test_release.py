"""Released weights are what their cards say; runs become such files, whole, in shards, or a classifier alone."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from datasets import IN_MEMORY
from datasets.long_tail import LongTailedData, Profile, select_subset
from methods.plan import attach_head
from models import build_model
from runs.checkpoint import Checkpoint, load_checkpoint, load_weights, with_backbone
from runs.shards import (
    UNFINISHED,
    describe_files,
    find_shards,
    joint_sha256,
    read_safetensors,
    shard_names,
    write_safetensors,
)
from settings.command_line import parse_command
from settings.fields import EVALUATE
from stages.checkpoints import adopt_checkpoint
from stages.data import load_features
from stages.session import build_network
from stages.sources import open_source
from tests.helpers import folder_of, read, refused, run, stage1, stage2, succeed
from tools import release
from utils.errors import UserError
from utils.files import read_json, sha256_file, write_atomically, write_json

FOLDER = Path(__file__).resolve().parent.parent.parent / "checkpoints" / "released"
CARDS = sorted(FOLDER.glob("*.json"))
SMALL = ("--epochs", 1, "--width", 8)
RUN = "stage1_epochs1_width8"


def test_every_released_file_has_a_card() -> None:
    assert CARDS
    described = [path for card in CARDS for path in find_shards(card.with_suffix(".safetensors"))]
    assert sorted(described) == sorted(FOLDER.glob("*.safetensors"))


def refuse_other_keys(checkpoint: Checkpoint) -> None:
    """Raise UserError unless a checkpoint's tensors, with the backbone that it names, are those of its network."""
    complete = with_backbone(checkpoint)
    if complete.features is None:
        model = build_model(
            complete.settings()["network"], complete.config["num_class"], width=complete.settings()["width"]
        )
    else:
        settings = adopt_checkpoint(parse_command(EVALUATE, "", []), complete).settings
        model = build_network(settings, load_features(complete))
    if complete.config["method"]:
        attach_head(model, complete.config["method"])
    load_weights(model, complete)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


def check_card(path: Path) -> None:
    """Check a card against its files: every sha256, what they hold, the backbone of a classifier."""
    card, file = read_json(path), path.with_suffix(".safetensors")
    parts = card.get("parts") or [{"file": card["file"], "sha256": card["sha256"]}]
    assert card["file"] == file.name
    assert [file.with_name(part["file"]) for part in parts] == find_shards(file)
    digests = [part["sha256"] for part in parts]
    assert digests == [sha256_file(part) for part in find_shards(file)] and card["sha256"] == joint_sha256(digests)
    checkpoint = load_checkpoint(file)
    assert checkpoint.sha256 == card["sha256"]
    assert checkpoint.config["stage"] == card["stage"] and checkpoint.settings()["network"] == card["network"]
    if card["stage"] == "stage2":
        assert all(key.startswith("fc.") for key in checkpoint.state)
        assert describe_files(file.with_name(card["backbone"]["file"]))["sha256"] == card["backbone"]["sha256"]
        assert checkpoint.config["backbone"] == card["backbone"] and card["measured"]["plain"] > 0
    refuse_other_keys(checkpoint)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_released_file_is_what_its_card_says(path: Path) -> None:
    check_card(path)
    assert read_json(path)["license"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 and two stage 2s on the digits; the stage 1 released whole and in shards, one classifier with each."""
    out = tmp_path_factory.mktemp("source")
    stage1(out, *SMALL)
    named = ("--pretrained_pth", folder_of(out, RUN), "--finetune_epoch", 1)
    stage2(out, *named)
    stage2(out, *named, "--protocol", "released")
    release.main([str(folder_of(out, RUN)), str(out / "whole.safetensors")])
    release.main([str(folder_of(out, RUN)), str(out / "split.safetensors"), "--part_mib", "0.03"])
    for name in ("whole", "split"):
        publish(out, f"{name}_los", "--backbone", out / f"{name}.safetensors")
    return out


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    """A copy of `source` that a test may change."""
    return Path(shutil.copytree(source, tmp_path / "out"))


def classified(out: Path, protocol: str = "") -> Path:
    return folder_of(out, f"stage2_los_epochs1_width8_finetune_epoch1{protocol}")


def publish(out: Path, name: str, *arguments: object) -> None:
    release.main([str(classified(out)), str(out / f"{name}.safetensors"), *map(str, arguments)])


def split(out: Path) -> list[Path]:
    return find_shards(out / "split.safetensors")


def test_a_run_becomes_a_file_that_needs_no_other_flag(source: Path, tmp_path: Path) -> None:
    file, folder = source / "whole.safetensors", folder_of(source, RUN)
    check_card(source / "whole.json")
    state, original = load_checkpoint(file).state, load_checkpoint(folder / "last.pth").state
    assert set(state) == set(original)
    for key, value in original.items():
        torch.testing.assert_close(state[key].to(value.dtype), value, rtol=1e-3, atol=1e-4)
    outcome = succeed("main_stage2", "--pretrained_pth", file, "--out", tmp_path, "--finetune_epoch", 1)
    assert "digits" in outcome.out and outcome.err == ""
    with pytest.raises(UserError, match="may exist"):
        release.main([str(folder), str(file)])


def test_a_damaged_released_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(b"not a header")
    with pytest.raises(UserError, match=r"cut\.safetensors is damaged"):
        load_checkpoint(file)


# In shards


def test_parts_are_small_and_read_as_the_file_that_they_are(source: Path) -> None:
    parts = split(source)
    assert len(parts) > 1 and all(path.stat().st_size <= 0.03 * 2**20 for path in parts)
    assert parts[0].name == f"split-00001-of-{len(parts):05d}.safetensors"
    check_card(source / "split.json")
    assert not (source / "split.safetensors").exists()
    whole, joined = (load_checkpoint(source / f"{name}.safetensors") for name in ("whole", "split"))
    assert whole.config == joined.config and whole.sha256 != joined.sha256
    assert set(whole.state) == set(joined.state)
    assert all(torch.equal(whole.state[key], joined.state[key]) for key in whole.state)


def test_a_tensor_larger_than_a_part_is_cut_along_its_rows(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(30_000.0).view(300, 100), "b": torch.tensor(3), "c": torch.zeros(7)}
    paths = write_safetensors(tmp_path / "x.safetensors", tensors, {"format": 1}, part_mib=0.05)
    assert len(paths) == 3 and all(path.stat().st_size <= 0.05 * 2**20 for path in paths)
    read_back = read_safetensors(tmp_path / "x.safetensors")[1]
    assert read_back.keys() == tensors.keys()
    assert all(torch.equal(read_back[key], tensors[key]) for key in tensors)
    for part_mib in (0, 1e-4):
        with pytest.raises(UserError, match="--part_mib"):
            write_safetensors(tmp_path / "y.safetensors", tensors, {}, part_mib)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_release_that_was_stopped_begins_anew(stop: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before a shard or before its card, it is neither finished nor in the way of the next attempt."""
    command = [str(folder_of(out, RUN)), str(out / "again.safetensors"), "--part_mib", "0.03"]
    stranger = out / "again2-00001-of-00002.safetensors"
    stranger.write_bytes(b"mine")
    place = "tools.release.write_json" if stop == 3 else "runs.shards.write_atomically"
    working = {"tools.release.write_json": write_json, "runs.shards.write_atomically": write_atomically}[place]
    calls: list[Any] = []

    def stopping(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == stop or stop == 3:
            raise KeyboardInterrupt
        working(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, stopping)
        with pytest.raises(KeyboardInterrupt):
            release.main(command)
    assert read_json(out / "again.json") == UNFINISHED
    release.main([*command[:-1], "0.04"])  # in other shards than before
    check_card(out / "again.json")
    assert stranger.read_bytes() == b"mine"
    with pytest.raises(UserError, match="may exist"):
        release.main(command)


def test_missing_shards_and_those_of_another_file_are_named(out: Path) -> None:
    parts = split(out)
    message = refused("main_stage2", "--pretrained_pth", parts[1])
    assert "only shard 2" in message and str(out / "split.safetensors") in message
    away = parts[1].rename(out / "away")
    assert f"{parts[1]} is missing" in refused("main_stage2", "--pretrained_pth", out / "split.safetensors")
    (out / "split.json").unlink()  # no card: the shards themselves say that they do not belong together
    write_safetensors(out / "other.safetensors", {"x": torch.zeros(9000)}, {}, part_mib=0.02)
    shutil.copy(find_shards(out / "other.safetensors")[1], parts[1])
    assert f"{parts[1]} is not a shard of the same file" in refused(
        "evaluate", "--pretrained_pth", out / "split.safetensors"
    )
    away.replace(parts[1])
    stranger = shard_names(out / "split.safetensors", 2)[0]
    shutil.copy(parts[0], stranger)
    message = refused("evaluate", "--pretrained_pth", out / "split.safetensors")
    assert f"{stranger} is a shard of another file" in message
    stranger.unlink()
    assert load_checkpoint(out / "split.safetensors").state


@pytest.mark.parametrize("name", ["whole", "split"])
def test_a_card_of_another_file_is_refused_and_none_is_fine(name: str, out: Path) -> None:
    card, file = out / f"{name}.json", out / f"{name}.safetensors"
    content = read_json(card)
    part = content["parts"][1] if name == "split" else content
    part["sha256"] = "0" * 64
    write_json(card, content)
    message = refused("evaluate", "--pretrained_pth", file)
    assert str(file.with_name(part["file"])) in message and card.name in message and "sha256" in message
    card.unlink()
    assert load_checkpoint(file).state
    write_json(card, {"title": "no card of ours"})
    assert load_checkpoint(file).state


# Classifiers


@pytest.mark.parametrize("name", ["whole_los", "split_los"])
def test_a_classifier_is_read_with_its_backbone_and_gives_the_number_on_its_card(
    name: str, source: Path, tmp_path: Path
) -> None:
    check_card(source / f"{name}.json")
    card, file = read_json(source / f"{name}.json"), source / f"{name}.safetensors"
    state, original = load_checkpoint(file).state, load_checkpoint(classified(source) / "last.pth").state
    assert list(state) == ["fc.bias", "fc.weight"]
    assert all(torch.equal(value, original[key]) for key, value in state.items())
    report = tmp_path / "report.json"
    succeed("evaluate", "--imb_ratio", 25, "--cur_stage", "stage2", "--pretrained_pth", file, "--json", report)
    record = read(report)["checkpoints"][name]
    assert {way: record[way] and record[way]["all"] for way in ("plain", "flip")} == card["measured"]
    metrics = read(classified(source) / "metrics.json")
    assert card["last"]["plain"] == metrics["last"]["plain"]["all"]
    assert card["measured"]["plain"] == pytest.approx(card["last"]["plain"], abs=1)  # a backbone in half precision


def test_a_classifier_is_no_stage_1_and_needs_its_own_backbone(out: Path) -> None:
    file = out / "whole_los.safetensors"
    assert "classifier of a stage2" in load_checkpoint(file).kind
    assert "stage2 checkpoint" in refused("main_stage2", "--pretrained_pth", file)
    (out / "whole.json").unlink()
    backbone = (out / "whole.safetensors").rename(out / "away")
    message = refused("evaluate", "--pretrained_pth", file)
    assert f"not at {out / 'whole.safetensors'}" in message
    state: dict[str, Tensor] = read_safetensors(out / "split.safetensors")[1]
    write_safetensors(out / "whole.safetensors", state, {"format": 1})
    assert "is not a checkpoint" in refused("evaluate", "--pretrained_pth", file)
    (out / "whole.safetensors").unlink()
    for i, part in enumerate(split(out)):
        shutil.copy(part, shard_names(out / "whole.safetensors", len(split(out)))[i])
    assert "is not the backbone of" in refused("evaluate", "--pretrained_pth", file)
    backbone.rename(out / "whole.safetensors")
    assert run("evaluate", "--pretrained_pth", file).status == 0


@pytest.mark.parametrize("name", ["/etc/passwd", "../whole.safetensors", "/dev/null", "a" * 300])
def test_a_strangers_classifier_opens_no_file_elsewhere(name: str, out: Path) -> None:
    source = load_checkpoint(out / "whole_los.safetensors")
    assert source.content is not None
    header = {key: value for key, value in source.content.items() if key != "model"}
    header["config"] = {**source.config, "backbone": {"file": name, "sha256": "0" * 64}}
    write_safetensors(out / "strange.safetensors", source.state, header)
    message = refused("evaluate", "--pretrained_pth", out / "strange.safetensors")
    assert "outside its own folder" in message or "put that file there" in message


@pytest.mark.parametrize("header", ["[]", "3", "null"])
def test_a_released_file_whose_header_is_no_object(header: str, tmp_path: Path) -> None:
    save_file({"fc.weight": torch.ones(2, 3)}, tmp_path / "odd.safetensors", {"checkpoint": header})
    with pytest.raises(UserError, match="what it says of itself is no object"):
        load_checkpoint(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_parts_have_a_size(size: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--part_mib must be a positive number"):
        write_safetensors(tmp_path / "file.safetensors", {"weight": torch.ones(2)}, {}, size)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_missing_are_noticed(out: Path) -> None:
    first = split(out)[0]
    tensors = {"weight.rows0": torch.ones(1, 2), "weight.rows2": torch.ones(1, 2)}
    save_file(tensors, first.with_name("gap.safetensors"))
    with pytest.raises(UserError, match="rows of the tensor weight are missing"):
        read_safetensors(first.with_name("gap.safetensors"))


def test_only_a_classifier_of_a_frozen_released_backbone_is_released(out: Path, tmp_path: Path) -> None:
    whole = out / "whole.safetensors"

    def failure(folder: Path, *arguments: object) -> str:
        with pytest.raises(UserError) as caught:
            release.main([str(folder), str(out / "new.safetensors"), *map(str, arguments)])
        return str(caught.value)

    assert "--backbone" in failure(classified(out))
    assert "--backbone" in failure(folder_of(out, RUN), "--backbone", whole)
    assert "--bn_mode train" in failure(classified(out, "_released"), "--backbone", whole)
    assert "absent.safetensors" in failure(classified(out), "--backbone", out / "absent.safetensors")
    assert "stage 1" in failure(classified(out), "--backbone", out / "whole_los.safetensors")
    shutil.copy(whole, tmp_path / "whole.safetensors")
    assert "folder" in failure(classified(out), "--backbone", tmp_path / "whole.safetensors")
    for flags, words in (((*SMALL, "--lr", 0.01), "sha256"), (("--epochs", 1, "--width", 2), "--width")):
        stage1(tmp_path / words, *flags)
        other = release_other(next((tmp_path / words).rglob("last.pth")).parent, out / "other.safetensors")
        assert words in failure(classified(out), "--backbone", other)
    assert not (out / "new.safetensors").exists()


def release_other(folder: Path, file: Path) -> Path:
    """Release a run under a name, in the place of what stands there."""
    for path in (file, file.with_suffix(".json")):
        path.unlink(missing_ok=True)
    written: Sequence[Path] = release.release_stage1(open_source(folder, []), file)
    assert written == [file, file.with_suffix(".json")]
    return file


def test_what_a_run_settles_holds_without_naming_its_data_set(source: Path, tmp_path: Path) -> None:
    """The preset of the digits replaces that of CIFAR behind the flags, and nothing that was found out already."""
    assert (
        "the headline of the released protocol"
        in succeed("evaluate", "--pretrained_pth", classified(source, "_released")).out
    )
    best = folder_of(source, RUN) / "best.pth"
    succeed("main_stage2", "--pretrained_pth", best, "--out", tmp_path, "--finetune_epoch", 1)
    folder = next(tmp_path.rglob("metrics.json")).parent
    assert folder.name.endswith("_startbest") and read(folder / "config.json")["settings"]["start"] == "best"


# What the released classifier reaches, as its card says and, in percent, on the first ten test images of each class.
NAME = "cifar100_expIF100_resnet18w24_seed0_los"
OF_A_TENTH = {"plain": 48.4, "flip": 49.3}


def test_a_released_classifier_reproduces_its_card(
    cifar100_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stated use, on a tenth of the real test images; fp32 sums in another order may move a borderline image."""
    load = IN_MEMORY["cifar100"]

    def load_few(data_dir: str, profile: Profile) -> LongTailedData:
        data = load(data_dir, profile)
        train, test = (
            split.take(select_subset(split.labels, [count] * data.num_classes))
            for split, count in ((data.train, 2), (data.test, 10))
        )
        return dataclasses.replace(data, train=train, test=test)

    monkeypatch.setitem(IN_MEMORY, "cifar100", load_few)
    report = tmp_path / "report.json"
    succeed(
        "evaluate",
        "--imb_ratio",
        100,
        "--cur_stage",
        "stage2",
        "--pretrained_pth",
        FOLDER / f"{NAME}.safetensors",
        "--data_dir",
        cifar100_dir,
        "--json",
        report,
    )
    found = read_json(report)["checkpoints"][NAME]
    card = read_json(FOLDER / f"{NAME}.json")
    for way, accuracy in OF_A_TENTH.items():
        assert found[way]["all"] == pytest.approx(accuracy, abs=0.15)
        assert found[way]["all"] == pytest.approx(card["measured"][way], abs=3)  # two deviations of 1,000 images
