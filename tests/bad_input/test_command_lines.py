"""What a user can do wrong: one line on standard error, exit status 2, no traceback, nothing lost."""

import dataclasses
import errno
import http.client
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

import engine.fit
import losses
import stages.session
from datasets import DATASETS, IN_MEMORY
from datasets.cifar import load_cifar
from methods.recipes import RECIPES
from models import NETWORKS, build_model
from tests.forks import Child, run_script
from tests.helpers import (
    SMALL_CIFAR,
    contents,
    folder_of,
    read,
    refused,
    run,
    same,
    stage1,
    stage2,
    succeed,
    use_small_cifar,
    weights,
    write_cifar,
)

DIGITS = ("--dataset", "digits")
CRAFTED = "a crafted pickle ran"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one stage 1 and one stage 2 on the digits; not to be changed."""
    out = tmp_path_factory.mktemp("trained")
    stage1(out)
    stage2(out)
    return out


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every command in a folder of its own: what it leaves in `checkpoints` must not be the checkout's."""
    monkeypatch.chdir(tmp_path)


# Values


@pytest.mark.parametrize(
    ("script", "flag", "known"),
    [
        *((script, "--dataset", list(DATASETS)) for script in ("main_stage1", "main_stage2", "evaluate")),
        *((script, "--network", NETWORKS) for script in ("main_stage1", "main_stage2", "evaluate")),
        ("main_stage2", "--method", list(RECIPES)),
        ("evaluate", "--method", list(RECIPES)),
        ("main_stage1", "--imb_type", ["exp", "step"]),
        ("main_stage1", "--subset", ["first", "shuffle"]),
        ("main_stage2", "--protocol", ["honest", "released"]),
        ("main_stage2", "--start", ["last", "best"]),
        ("main_stage2", "--bn_mode", ["eval", "train"]),
        ("evaluate", "--cur_stage", ["stage1", "stage2"]),
        ("main_stage1", "--device", ["auto", "cpu", "cuda"]),
    ],
)
def test_an_unknown_name_lists_the_known_ones(script: str, flag: str, known: list[str], tmp_path: Path) -> None:
    arguments = {"--dataset": "digits", "--out": tmp_path, flag: "nosuch"}
    message = refused(script, *(word for pair in arguments.items() for word in pair))
    assert "nosuch" in message
    for name in known:
        assert name in message
    assert list(tmp_path.iterdir()) == []


STAGE1_VALUES = """
    --imb_ratio 0.5|--imb_ratio nan|--imb_ratio 1e9|--imb_ratio inf|--imb_ratio -3|--imb_ratio ten|--imb_ratio 125
    --label_smooth 1|--label_smooth -0.1|--label_smooth nan|--label_smooth 1.5
    --num_class 9|--num_class 1|--num_class 0|--num_class ten
    --epochs 0|--epochs -1|--epochs 2.5|--epochs many|--epochs
    --batch_size 0|--batch_size 1.5|--lr nan|--lr -1|--lr inf|--learning-rate -1|--wd -1|--wd nan
    --momentum -0.1|--momentum 1.1|--momentum nan|--nesterov --momentum 0
    --holdout 1|--holdout -0.1|--holdout nan|--width 0|--width wide|--mixup -1|--mixup nan|--eval_every 0
    --workers 0|--workers two|--seed -1|--seed 1.5|--seed none|--gpu -1|--gpu first|--subset_seed -1
    --resume --overwrite|--nosuchflag 3|--epoch 3|stray|--cur_stage stage3|--device cuda
    --loss gala --mixup 0.2|--loss gala --tau 1|--loss ce --gamma 2|--loss gala --lambda1 -1|--loss las --smooth_head 1
    --loss cb_ce --beta 1|--loss focal --gamma nan|--loss gcl|--loss ldam|--loss nosuch|--max_margin 0.5
    --loss gala --gala_margin x|--loss gala --gala_accumulation triple|--augment autoaugment|--augment none
    --schedule step|--temperature 0|--temperature nan|--rebalance_tau -1|--rebalance_tau nan|--rho nan
    --reuse --resume|--reuse --overwrite|--loss vs --label_smooth 0.1|--loss focal --label_smooth 0.1
"""
STAGE2_VALUES = """
    --label_smooth 1|--label_smooth -0.1|--label_smooth nan|--label_smooth 0.5 --method ce
    --label_smooth 0.5 --loma_target 2|--loma_target 2 --method ce|--loma_target 0|--loma_target -1|--loma_target nan
    --method lort|--method lort --label_smooth 0.9|--method lort --label_smooth 0.98|--method lort --label_smooth -0.1
    --views 0|--views -1|--views 2.5|--views all|--views 5 --bn_mode train|--protocol released --views 5
    --finetune_epoch 0|--finetune_epoch -1|--finetune_epoch 1.5|--finetune_lr nan|--finetune_lr -1|--finetune_wd -1
    --num_class 100|--device cuda
    --seed -1|--stage1_seed -1|--stage1_seed 1.5|--stage1_seed 7|--resume --overwrite|--nosuchflag 3
    --tau 1|--tau 1 --method los|--tau -1 --method logit_adjust|--tau -1|--tau nan --method vs|--tau one --method vs
    --method cb_ce --beta 1|--method cb_ce --beta -0.1|--beta 1|--method gala --gala_margin x|--gala_margin x
    --method gala --gala_accumulation x|--gala_margin paper|--method marc --rho nan|--rho nan|--method disalign --rho -1
    --method focal --gamma -1|--method ldam --max_margin -1|--method gcl --noise nan|--method cosine --scale 0
    --method las --smooth_head 1|--method las --smooth_tail -1|--method gala --lambda1 -1|--method gala --lambda2 inf
    --max_norm -0.1|--max_norm 1.1|--max_norm nan|--sampler random|--method l2_norm --tau 1|--method tau_norm --tau -1
    --method tau_norm --tau nan|--method tau_norm --tau 11|--method ncm --scale 0|--method ncm --tau 1
    --method cosine --scale 1001|--method ce --scale 3|--method ldam --label_smooth 0.5|--method crt --loma_target 2
    --temperature 0|--temperature -1|--temperature nan|--temperature 1e5|--rebalance_tau -1|--rebalance_tau 101
    --rebalance_tau nan|--reuse --resume|--reuse --overwrite
"""
EVALUATE_VALUES = """
    --num_class 100|--imb_ratio 0.5|--imb_ratio 10|--label_smooth 0.5 --method ce --cur_stage stage2|--seed 7
    --workers 0|--nosuchflag 3|--device cuda|--network resnet20|--temperature 0|--rebalance_tau -1
    --method nosuch --cur_stage stage2
"""


def cells(table: str) -> list[str]:
    return [cell.strip() for line in table.strip().splitlines() for cell in line.split("|")]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        *(("main_stage1", flags) for flags in cells(STAGE1_VALUES)),
        *(("main_stage2", flags) for flags in cells(STAGE2_VALUES)),
        *(("evaluate", flags) for flags in cells(EVALUATE_VALUES)),
    ],
)
def test_a_value_outside_its_domain_is_refused(script: str, flags: str, runs: Path) -> None:
    before = contents(runs)
    message = refused(script, *DIGITS, "--out", runs, *flags.split())
    named = [word.removeprefix("--").replace("learning-rate", "lr") for word in flags.split() if word[:2] == "--"]
    if flags not in ("--method lort", "--stage1_seed 7") and script != "evaluate":
        assert any(name in message for name in named or ["stray"])
    assert contents(runs) == before  # and no folder that the next command could take for a run


@pytest.mark.parametrize(
    ("script", "flags", "named"),
    [
        ("main_stage2", "--tau 1 --method los", "it belongs to logit_adjust, vs, tau_norm, logit_adjust_posthoc"),
        ("main_stage2", "--rho 1", "it belongs to disalign, marc"),
        ("main_stage2", "--gala_margin paper --method ce", "--method ce; it belongs to gala"),
        ("main_stage2", "--label_smooth 0.5 --method gala", "it belongs to label_smooth, los, lort"),
        ("main_stage2", "--method logit_adjust --tau -1", "--tau must be at least 0 and at most 10, not -1"),
        ("main_stage2", "--method cb_ce --beta 1", "--beta must be at least 0 and below 1, not 1"),
        ("main_stage2", "--method marc --rho nan", "--rho must be at least 0 and at most 100, not nan"),
        ("main_stage2", "--method cosine --scale 0", "--scale must be above 0 and at most 1000, not 0"),
        ("main_stage2", "--method gala --gala_margin x", "unknown --gala_margin 'x'; known: paper, released"),
        ("main_stage2", "--max_norm 2", "--max_norm must be between 0 and 1, not 2"),
        ("main_stage2", "--sampler x", "known: instance, class_balanced, sqrt, progressive"),
        ("main_stage1", "--tau 1", "--loss ce; it belongs to logit_adjust, vs"),
        ("main_stage1", "--loss focal --noise 1", "it belongs to no loss of stage 1"),
        ("main_stage1", "--loss ldam", "known: ce, focal, cb_ce, reweighted_ce, wb_cb"),
        ("main_stage1", "--loss gala --mixup 0.2", "--loss gala cannot be used with --mixup"),
        ("main_stage1", "--loss vs --label_smooth 0.1", "takes no soft target; those that do: ce, logit_adjust"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_answered_with_its_range_or_its_owners(
    script: str, flags: str, named: str, trained: Path
) -> None:
    assert named in refused(script, *DIGITS, "--out", trained, *flags.split())


def test_the_smoothing_limit_of_lort_is_named(trained: Path) -> None:
    message = refused("main_stage2", *DIGITS, "--out", trained, "--method", "lort", "--label_smooth", 0.95)
    assert "0.9" in message and "--method los" in message


def test_a_refused_smoothing_leaves_nothing_that_the_next_stage_trips_over(runs: Path) -> None:
    before = contents(runs)
    refused("main_stage1", *DIGITS, "--out", runs, "--epochs", 3, "--label_smooth", 1)
    assert contents(runs) == before
    assert "the only stage1 run that fits" in stage2(runs, "--method", "ce").out


# Devices


def test_cuda_that_is_absent(tmp_path: Path) -> None:
    message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--device", "cuda")
    assert "--device cuda" in message and "--device cpu" in message
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_absent(tmp_path: Path) -> None:
    for arguments in ((), ("--device", "cuda")):
        message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--gpu", 99, *arguments, gpus=1)
        assert "--gpu 99" in message
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_number_on_a_cpu_is_said_to_have_no_effect(tmp_path: Path) -> None:
    assert stage1(tmp_path, "--epochs", 1, "--gpu", 99).err == "not used by main_stage1 on cpu: --gpu\n"


# Data


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the dictionary in one of CIFAR's files."""
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))


class Crafted:
    """Unpickling it makes a folder: the harmless stand-in for anything."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


def blank_first_image(content: dict[str, Any]) -> None:
    content["data"][0] = 0


DATA_DAMAGE: dict[str, Callable[[Path], object]] = {
    "train is missing": lambda folder: (folder / "train").unlink(),
    "meta is missing": lambda folder: (folder / "meta").unlink(),
    "train is cut off": lambda folder: (folder / "train").write_bytes((folder / "train").read_bytes()[:-5000]),
    "test is empty": lambda folder: (folder / "test").write_bytes(b""),
    "test is text": lambda folder: (folder / "test").write_text("404: not found\n"),
    "train is a list": lambda folder: (folder / "train").write_bytes(pickle.dumps([1, 2])),
    "train is a module": lambda folder: (folder / "train").write_bytes(pickle.dumps(nn.Identity())),
    "images are too small": lambda folder: rewrite(folder / "train", lambda c: c.update(data=c["data"][:, :1024])),
    "images are floats": lambda folder: rewrite(folder / "test", lambda c: c.update(data=c["data"].astype(float))),
    "a label too many": lambda folder: rewrite(folder / "train", lambda c: c["fine_labels"].append(0)),
    "a label out of range": lambda folder: rewrite(folder / "test", lambda c: c["fine_labels"].__setitem__(0, 100)),
    "classes out of balance": lambda folder: rewrite(folder / "train", lambda c: c["fine_labels"].__setitem__(0, 1)),
    "labels by another name": lambda folder: rewrite(folder / "train", lambda c: c.update(labels=c.pop("fine_labels"))),
    "a name too few": lambda folder: rewrite(folder / "meta", lambda c: c["fine_label_names"].pop()),
    "no data": lambda folder: rewrite(folder / "train", lambda c: c.pop("data")),
    "a blank image": lambda folder: rewrite(folder / "train", blank_first_image),
    "a blank test image": lambda folder: rewrite(folder / "test", blank_first_image),
}  # fmt: skip


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data with the small stand-in for CIFAR-100."""
    use_small_cifar(monkeypatch)
    write_cifar(tmp_path / "data" / "cifar100")
    return tmp_path / "data"


def test_the_data_are_fine_when_nothing_is_done_to_them(cifar: Path, tmp_path: Path) -> None:
    outcome = succeed("main_stage1", "--data_dir", cifar, "--out", tmp_path / "runs", "--imb_ratio", 100)
    assert outcome.err == ""
    assert read(next(tmp_path.rglob("metrics.json")))["dataset"] == "cifar100"


@pytest.mark.parametrize("damage", list(DATA_DAMAGE))
def test_damaged_data_are_refused_by_name(damage: str, cifar: Path, tmp_path: Path) -> None:
    DATA_DAMAGE[damage](cifar / "cifar100" / SMALL_CIFAR.folder)
    message = refused("main_stage1", "--data_dir", cifar, "--out", tmp_path / "runs", "--imb_ratio", 100)
    assert str(cifar) in message or "index 0" in message
    assert not (tmp_path / "runs").exists()


def test_a_crafted_data_file_does_not_run(cifar: Path, tmp_path: Path) -> None:
    marker = tmp_path / CRAFTED
    (cifar / "cifar100" / SMALL_CIFAR.folder / "train").write_bytes(pickle.dumps({"data": Crafted(marker)}))
    refused("main_stage1", "--data_dir", cifar, "--out", tmp_path / "runs")
    assert not marker.exists()


@pytest.mark.parametrize(
    "error",
    [URLError("no route to host"), RuntimeError("File not found or corrupted."), http.client.IncompleteRead(b"")],
)
def test_data_that_cannot_be_downloaded(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: str, download: bool) -> None:
        raise error

    use_small_cifar(monkeypatch)
    offline = dataclasses.replace(SMALL_CIFAR, download=download)  # type: ignore[arg-type]
    monkeypatch.setitem(IN_MEMORY, "cifar100", partial(load_cifar, offline, "cifar100"))
    message = refused("main_stage1", "--data_dir", tmp_path / "data", "--out", tmp_path / "runs")
    assert str(tmp_path / "data" / "cifar100" / SMALL_CIFAR.folder) in message
    assert "--dataset digits" in message


def test_other_training_images_are_refused_by_stage_2_and_warned_of_by_the_report(cifar: Path, tmp_path: Path) -> None:
    arguments = ("--data_dir", cifar, "--out", tmp_path / "runs", "--imb_ratio", 100)
    succeed("main_stage1", *arguments)
    train = cifar / "cifar100" / SMALL_CIFAR.folder / "train"
    rewrite(train, lambda content: content.update(data=content["data"][:, ::-1].copy()))
    assert "other training images" in refused("main_stage2", *arguments)
    outcome = succeed("evaluate", *arguments)
    assert outcome.err.startswith("warning: ") and "other training images" in outcome.err


# Checkpoints


def resnet8(classes: int = 10) -> dict[str, Tensor]:
    return build_model("resnet8", classes).state_dict()


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != key}


TEXTS = [
    b"", b"hello world\n", b"epoch,loss\n1,2.3\n", b"<!DOCTYPE html><html>404</html>", b'{"message": "Not Found"}',
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", b"\x80\x02garbage", b"PK\x03\x04junk",
    b"]q\x00.", b"\x89PNG\r\n\x1a\n" + bytes(100),
]  # fmt: skip


@pytest.mark.parametrize("script", ["main_stage2", "evaluate"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_file_that_is_no_checkpoint(script: str, text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(text)
    message = refused(script, *DIGITS, "--pretrained_pth", path)
    assert str(path) in message
    assert "trust_pickle" not in message  # trusting it would not help, and must not be advised lightly


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda: without(resnet8(), "bn1.bias"), ["missing keys (1): bn1.bias"]),
        (lambda: resnet8() | {"fc2.weight": torch.zeros(3)}, ["unexpected keys (1): fc2.weight"]),
        (lambda: resnet8(7), ["fc.weight: (7, 64) here, (10, 64) expected", "fc.bias: (7,) here, (10,) expected"]),
        (lambda: build_model("resnet20", 10).state_dict(), ["unexpected keys", "layer1.1.conv1.weight"]),
        (lambda: build_model("resnet18", 10, width=4).state_dict(),
         ["unexpected keys", "conv1.weight: (4, 3, 3, 3) here, (16, 3, 3, 3) expected"]),
        (lambda: without(resnet8(), "conv1.weight"), ["conv1.weight"]),
        (lambda: resnet8() | {"fc.bias": [0.0] * 10}, ["fc.bias"]),
        (lambda: {"accuracy": 3.0}, ["accuracy"]),
        (lambda: {}, ["empty"]),
        (lambda: [1, 2, 3], ["list"]),
        (lambda: torch.zeros(3), ["Tensor"]),
        (lambda: None, ["None"]),
        (lambda: {"format": 99, "model": resnet8(), "config": {}, "stage": "stage1", "epoch": 1}, ["format"]),
        (lambda: {"format": 1, "model": resnet8(), "config": {}}, ["file.pth"]),
        (lambda: {"format": 1, "stage": "stage1", "epoch": 1, "model": resnet8(),
                  "config": {"settings": {"dataset": "digits"}, "tags": []}}, ["file.pth"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("script", ["main_stage2", "evaluate"])
def test_a_checkpoint_that_does_not_fit(
    script: str, content: Callable[[], object], named: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    torch.save(content(), path)
    message = refused(script, *DIGITS, "--pretrained_pth", path)
    assert str(path) in message
    for words in named:
        assert words in message


@pytest.mark.parametrize("script", ["main_stage2", "evaluate"])
def test_a_missing_or_truncated_checkpoint(script: str, runs: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nosuch.pth", tmp_path / "nosuch" / "folder"):
        assert str(path) in refused(script, *DIGITS, "--pretrained_pth", path)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty" / "last.pth") in refused(script, *DIGITS, "--pretrained_pth", tmp_path / "empty")
    last = folder_of(runs, "stage1_epochs2") / "last.pth"
    whole = last.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        last.write_bytes(whole[:size])
        message = refused(script, *DIGITS, "--out", runs)
        assert str(last) in message and "trust_pickle" not in message


def test_a_misfit_checkpoint_leaves_nothing_that_looks_like_a_run(tmp_path: Path) -> None:
    torch.save(build_model("resnet20", 10).state_dict(), tmp_path / "file.pth")
    refused("main_stage2", *DIGITS, "--pretrained_pth", tmp_path / "file.pth", "--out", tmp_path / "runs")
    assert not list(tmp_path.rglob("config.json"))


def test_overwrite_loses_nothing_where_stage_1_turns_out_not_to_fit(runs: Path) -> None:
    last = folder_of(runs, "stage1_epochs2") / "last.pth"
    content = torch.load(last, weights_only=True)
    del content["model"]["bn1.bias"]
    torch.save(content, last)
    before = contents(runs)
    message = refused("main_stage2", *DIGITS, "--out", runs, "--finetune_epoch", 2, "--overwrite")
    assert "bn1.bias" in message
    assert contents(runs) == before


def test_stage_2_does_not_start_from_stage_2(trained: Path) -> None:
    folder = folder_of(trained, "stage2_los_epochs2_finetune_epoch2")
    for path in (folder, folder / "best.pth"):
        assert "stage2 checkpoint" in refused("main_stage2", *DIGITS, "--pretrained_pth", path)


def test_a_pickled_module_needs_trust(trained: Path, tmp_path: Path) -> None:
    source, path = folder_of(trained, "stage1_epochs2") / "last.pth", tmp_path / "module.pth"
    model = build_model("resnet8", 10)
    model.load_state_dict(weights(source))
    torch.save(model, path)
    for script in ("main_stage2", "evaluate"):
        assert "--trust_pickle" in refused(script, *DIGITS, "--pretrained_pth", path)
    reports = {}
    for file, trust in ((source, ()), (path, ("--trust_pickle",))):
        succeed("evaluate", *DIGITS, "--pretrained_pth", file, "--json", tmp_path / "report.json", *trust)
        (reports[file],) = read(tmp_path / "report.json")["checkpoints"].values()
    assert reports[source]["plain"] == reports[path]["plain"]
    stage2(tmp_path / "runs", "--pretrained_pth", path, "--trust_pickle")
    made = next((tmp_path / "runs").rglob("last.pth"))
    assert same(weights(made), weights(source), head=False)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
@pytest.mark.parametrize("script", ["main_stage2", "evaluate"])
def test_a_crafted_checkpoint_does_not_run_without_trust(
    script: str, save: Callable[[object, Path], object], tmp_path: Path
) -> None:
    marker, path = tmp_path / CRAFTED, tmp_path / "file.pth"
    for content in (Crafted(marker), {"state_dict": resnet8(), "note": Crafted(marker)}):
        save(content, path)
        refused(script, *DIGITS, "--pretrained_pth", path)
        assert not marker.exists()
    torch.save(Crafted(marker), path)
    refused(script, *DIGITS, "--pretrained_pth", path, "--trust_pickle")
    assert marker.is_dir()  # the file was loaded, so the checks above mean something


def test_a_crafted_checkpoint_does_not_run_on_resuming(runs: Path, tmp_path: Path) -> None:
    folder = folder_of(runs, "stage1_epochs2")
    torch.save(Crafted(tmp_path / CRAFTED), folder / "last.pth")
    refused("main_stage1", *DIGITS, "--out", runs, "--epochs", 2, "--resume")
    assert not (tmp_path / CRAFTED).exists()


@pytest.mark.parametrize("damage", ["cut off", "best.pth in its place", "another network", "plain state dict"])
def test_a_damaged_last_checkpoint_on_resuming(damage: str, runs: Path) -> None:
    folder = folder_of(runs, "stage1_epochs2")
    last = folder / "last.pth"
    if damage == "cut off":
        last.write_bytes(last.read_bytes()[:-1000])
    elif damage == "best.pth in its place":
        shutil.copy(folder / "best.pth", last)
    elif damage == "another network":
        torch.save(torch.load(last, weights_only=True) | {"model": resnet8(7)}, last)
    else:
        torch.save(weights(last), last)
    before = contents(runs)
    message = refused("main_stage1", *DIGITS, "--out", runs, "--epochs", 2, "--resume")
    assert str(last) in message
    assert contents(runs) == before


def test_a_damaged_config_is_named(runs: Path) -> None:
    config = folder_of(runs, "stage1_epochs2") / "config.json"
    for text in ('{"stage": "sta', "", "[1, 2]"):
        config.write_text(text)
        assert str(config) in refused("main_stage2", *DIGITS, "--out", runs)
        assert str(config) in refused("main_stage1", *DIGITS, "--out", runs, "--epochs", 2, "--resume")


# Places


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_file_in_the_place_of_the_output_folder(level: int, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "runs", "stage1_epochs1")
    while len(path.relative_to(tmp_path).parts) > level + 1:
        path = path.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    message = refused("main_stage1", *DIGITS, "--out", tmp_path / "runs", "--epochs", 1)
    assert str(tmp_path / "runs") in message
    assert path.read_text() == "mine"


def test_an_output_folder_that_is_a_file_before_stage_2_and_evaluation(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    for script in ("main_stage2", "evaluate"):
        assert str(tmp_path / "runs") in refused(script, *DIGITS, "--out", tmp_path / "runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    assert str(tmp_path / "runs") in refused("main_stage1", *DIGITS, "--out", tmp_path / "runs", "--epochs", 1)


def test_an_output_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", deny)
    message = refused("main_stage1", *DIGITS, "--out", tmp_path / "runs", "--epochs", 1)
    assert str(tmp_path / "runs") in message and "Permission denied" in message


@pytest.mark.parametrize("place", ["nosuch/report.json", "folder", "file/report.json"])
def test_a_report_that_cannot_be_written(place: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    message = refused("evaluate", *DIGITS, "--out", trained, "--json", tmp_path / place)
    assert str(tmp_path / place) in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_finished_run_is_not_replaced_silently(trained: Path) -> None:
    before = contents(trained)
    for script, flags in (("main_stage1", ("--epochs", 2)), ("main_stage2", ("--finetune_epoch", 2))):
        message = refused(script, *DIGITS, "--out", trained, *flags)
        assert "finished" in message and "--overwrite" in message
    assert contents(trained) == before


# A full disk


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses files above a size, as it does on a full disk, after the first epoch is saved."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = engine.fit.save_checkpoint

    def fill(path: Path, content: dict[str, Any]) -> None:
        if content["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        save(path, content)

    arguments = (*DIGITS, "--out", tmp_path, "--epochs", 3)
    monkeypatch.setattr(engine.fit, "save_checkpoint", fill)
    try:
        message = refused("main_stage1", *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = folder_of(tmp_path, "stage1_epochs3")
    assert str(folder) in message and ".pth" in message
    for name in ("last.pth", "best.pth"):
        assert torch.load(folder / name, weights_only=True)["epoch"] == 1
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.csv", "last.pth", "best.pth"}
    monkeypatch.undo()
    succeed("main_stage1", *arguments, "--resume")
    stage1(tmp_path / "uninterrupted", "--epochs", 3)
    assert same(
        *(weights(folder_of(out, "stage1_epochs3") / "last.pth") for out in (tmp_path, tmp_path / "uninterrupted"))
    )


@pytest.mark.parametrize(
    "name", ["config.json", "log.csv", "best.pth", "last.pth", "metrics.json", "training_curves.png"]
)
def test_a_disk_that_is_full_when_a_file_is_due(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    outcome = run("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 1, plots=name.endswith(".png"))
    assert outcome.status == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert name in outcome.err and "No space left" in outcome.err
    folder = folder_of(tmp_path, "stage1_epochs1")
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob(".*"))
    assert not (folder / "metrics.json").exists()
    monkeypatch.undo()
    succeed("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 1, "--resume")


# A loss that is not finite


class Poisoned(nn.Module):
    """Cross-entropy that turns NaN at its n-th call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.left -= 1
        return nn.functional.cross_entropy(logits, labels) * (torch.nan if self.left == 0 else 1)


def test_a_loss_that_turns_nan_keeps_the_last_good_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 13  # 396 images in batches of 32
    monkeypatch.setattr(losses, "build_loss", lambda *_: Poisoned(2 * steps + 5))
    message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 4)
    assert "step 5 of epoch 3" in message
    folder = folder_of(tmp_path, "stage1_epochs4")
    assert str(folder / "last.pth") in message
    content = torch.load(folder / "last.pth", weights_only=True)
    assert content["epoch"] == 2
    assert all(tensor.isfinite().all() for tensor in content["model"].values())
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + 2
    assert not (folder / "metrics.json").exists()


def test_a_huge_learning_rate_stops_at_the_first_epoch(tmp_path: Path) -> None:
    message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--epochs", 3, "--lr", 1e6, "--momentum", 1)
    assert "of epoch 1" in message and "lower learning rate" in message
    assert not list(tmp_path.rglob("*.pth"))


def test_a_huge_learning_rate_of_stage_2(runs: Path) -> None:
    flags = ("--finetune_lr", 1e6, "--momentum", 1, "--finetune_wd", 1e6)
    message = refused("main_stage2", *DIGITS, "--out", runs, "--finetune_epoch", 3, *flags)
    assert "not finite" in message


@pytest.mark.parametrize(
    "flags",
    [
        "--lr 1",
        "--lr 30",
        "--lr 1e3",
        "--lr 1e5",
        "--wd 10 --epochs 3",
        "--wd 39",
        "--lr 0",
        "--width 1",
        "--lr 3 --width 1",
    ],
)
def test_a_poor_choice_is_measured_or_refused(flags: str, tmp_path: Path) -> None:
    """Weights may grow until logits overflow, features may collapse: a number, null or a refusal, no traceback."""
    outcome = run(
        "main_stage1", *DIGITS, "--out", tmp_path, *(flags if "--epochs" in flags else f"{flags} --epochs 2").split()
    )
    assert outcome.status in (0, 2)
    if outcome.status == 2:
        assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    else:
        read(next(tmp_path.rglob("metrics.json")))


def test_features_that_collapsed_are_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose last ReLU is dead gives one feature for every image: a ratio of variances does not exist."""
    original = stages.session.build_model

    def dead(*arguments: Any, **options: Any) -> nn.Module:
        model = original(*arguments, **options)
        block = model.layer3[-1]
        block.bn2.register_forward_hook(lambda module, inputs, output: output * 0 - 1e3)
        return model

    monkeypatch.setattr(stages.session, "build_model", dead)
    stage1(tmp_path, "--epochs", 1)
    metrics = read(next(tmp_path.rglob("metrics.json")))
    assert metrics["train"]["feature_variance_ratio"] is None
    assert set(metrics["logits"]["test"]["column"]["rsd_true"]) == {None}


# At the shell


def test_no_traceback_at_the_shell(tmp_path: Path) -> None:
    status, err = Child(run_script("main_stage2", *DIGITS, "--out", tmp_path)).end()
    assert status == 2
    assert err.startswith("error: no stage1 run in ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
