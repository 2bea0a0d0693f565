"""Flags that are wrong: one line on standard error, exit status 2, no traceback, nothing written."""

from pathlib import Path

import pytest

from datasets import DATASETS, LIST_FLAGS
from methods.recipes import RECIPES
from models import NETWORKS
from tests.forks import Child, run_script
from tests.helpers import (
    contents,
    is_refusal,
    refused,
    run,
    stage1,
    stage2,
)
from tests.image_runs import RESNET, train_on_images

DIGITS = ("--dataset", "digits")


# What is typed beside `--dataset digits`, and what the one line of the answer has.
ANSWERS: dict[str, list[tuple[str, list[str]]]] = {
    "main_stage1": [
        ("--dataset nosuch", list(DATASETS)),
        ("--network nosuch", list(NETWORKS)),
        ("--imb_type nosuch", ["exp", "step"]),
        ("--subset nosuch", ["first", "shuffle"]),
        ("--device nosuch", ["auto", "cpu", "cuda"]),
        ("--device cuda", ["--device cuda", "--device cpu"]),
        ("--tau 1", ["--loss ce; it belongs to logit_adjust, vs"]),
        ("--loss focal --noise 1", ["it belongs to no loss of stage 1"]),
        ("--loss ldam", ["known: ce, focal, cb_ce, reweighted_ce, wb_cb"]),
        ("--loss gala --mixup 0.2", ["--loss gala cannot be used with --mixup"]),
        ("--loss vs --label_smooth 0.1", ["takes no soft target; those that do: ce, logit_adjust"]),
    ],
    "main_stage2": [
        ("--dataset nosuch", list(DATASETS)),
        ("--network nosuch", list(NETWORKS)),
        ("--method nosuch", list(RECIPES)),
        ("--protocol nosuch", ["honest", "released"]),
        ("--start nosuch", ["last", "best"]),
        ("--bn_mode nosuch", ["eval", "train"]),
        ("--tau 1 --method los", ["it belongs to logit_adjust, vs, tau_norm, logit_adjust_posthoc"]),
        ("--rho 1", ["it belongs to disalign, marc"]),
        ("--gala_margin paper --method ce", ["--method ce; it belongs to gala"]),
        ("--label_smooth 0.5 --method gala", ["it belongs to label_smooth, los, lort"]),
        ("--method logit_adjust --tau -1", ["--tau must be at least 0 and at most 10, not -1"]),
        ("--method cb_ce --beta 1", ["--beta must be at least 0 and below 1, not 1"]),
        ("--method marc --rho nan", ["--rho must be at least 0 and at most 100, not nan"]),
        ("--method cosine --scale 0", ["--scale must be above 0 and at most 1000, not 0"]),
        ("--method gala --gala_margin x", ["unknown --gala_margin 'x'; known: paper, released"]),
        ("--max_norm 2", ["--max_norm must be ", "0 and ", "1, not 2"]),
        ("--sampler x", ["known: instance, class_balanced, sqrt, progressive"]),
        ("--method lort --label_smooth 0.95", ["0.9", "--method los"]),
    ],
    "evaluate": [
        ("--dataset nosuch", list(DATASETS)),
        ("--network nosuch", list(NETWORKS)),
        ("--method nosuch", list(RECIPES)),
        ("--cur_stage nosuch", ["stage1", "stage2"]),
    ],
}


@pytest.mark.parametrize("script", ANSWERS)
def test_a_wrong_flag_is_answered_with_what_is_right(script: str, trained: Path) -> None:
    before = contents(trained)
    for flags, words in ANSWERS[script]:
        outcome = run(script, *DIGITS, "--out", trained, *flags.split())
        assert outcome.status == 2, flags
        assert is_refusal(outcome, *words, *(["nosuch"] if "nosuch" in flags else [])), (flags, outcome.err)
    assert contents(trained) == before


VALUES = {
    "main_stage1": """
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
    """,
    "main_stage2": """
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
    """,
    "evaluate": """
    --num_class 100|--imb_ratio 0.5|--imb_ratio 10|--label_smooth 0.5 --method ce --cur_stage stage2|--seed 7
    --workers 0|--nosuchflag 3|--device cuda|--network resnet20|--temperature 0|--rebalance_tau -1
    --method nosuch --cur_stage stage2
    """,
}


@pytest.mark.parametrize("script", VALUES)
def test_a_value_outside_its_domain_is_refused(script: str, runs: Path) -> None:
    before, names = contents(runs), sorted(runs.rglob("*"))
    for flags in [cell.strip() for line in VALUES[script].strip().splitlines() for cell in line.split("|")]:
        outcome = run(script, *DIGITS, "--out", runs, *flags.split())
        assert outcome.status == 2, flags
        named = [word.removeprefix("--").replace("learning-rate", "lr") for word in flags.split() if word[:2] == "--"]
        free = flags in ("--method lort", "--stage1_seed 7") or script == "evaluate"
        assert is_refusal(outcome) and (free or any(name in outcome.err for name in named or ["stray"])), outcome
        assert sorted(runs.rglob("*")) == names, flags  # no folder that the next command could take for a run
    assert contents(runs) == before


IMAGE_FLAGS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "a crop beyond the image": (("--resize", 8), ("--resize 8", "--image_size 16")),
    "a negative number of workers": (("--workers", -1), ("--workers", "-1")),
    "a size of 0": (("--image_size", 0), ("--image_size", "not 0")),
    "a skip below 0": (("--skip_bad", -1), ("--skip_bad", "not -1")),
    "a policy of CIFAR": (("--augment", "autoaugment"), ("--augment autoaugment", "CIFAR's policy")),
    "no epoch": (("--epochs", 0), ("--epochs 0", "--weights")),
    "a clip of 0": (("--clip_grad", 0), ("--clip_grad", "not 0")),
    "an infinite clip": (("--clip_grad", "inf"), ("--clip_grad", "finite")),
    "a clip that is no number": (("--clip_grad", "nan"), ("--clip_grad", "nan")),
    "features beside images": (("--features", "x.npz"), ("--dataset folder", "--features x.npz")),
    "a network with a typing error": (("--network", "resnt8"), ("unknown --network 'resnt8'", "close to it: resnet8")),
    "a network of the other stem": (("--network", "resnet8", "--stem", "imagenet"), ("the cifar stem has it",)),
}


def test_wrong_flags_of_images_are_answered(shades: Path, tmp_path: Path) -> None:
    for case, (arguments, words) in IMAGE_FLAGS.items():
        outcome = train_on_images(shades, tmp_path / "out", *arguments)
        assert outcome.status == 2, case
        assert is_refusal(outcome, *words), (case, outcome.err)
        assert not (tmp_path / "out").exists(), case


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("alexnet", ("no images of 16 x 16 pixels",)),
        ("vit_b_32", ("no images of 16 x 16 pixels", "224")),
        ("resnet5", ("unknown --network 'resnet5'", "close to it", "resnet50")),
    ],
)
def test_images_too_small_for_a_network(network: str, words: tuple[str, ...], shades: Path, tmp_path: Path) -> None:
    assert is_refusal(train_on_images(shades, tmp_path / "out", network=("--network", network)), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["main_stage1", "main_stage2", "evaluate"])
def test_features_need_no_weights_and_lists(script: str, tmp_path: Path) -> None:
    for flag in ("--weights", *LIST_FLAGS):
        outcome = run(script, "--features", "x.npz", flag, "y", "--out", tmp_path)
        assert is_refusal(outcome, f"{flag} y", "no use with --features"), outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_refused_smoothing_leaves_nothing_that_the_next_stage_trips_over(runs: Path) -> None:
    before = contents(runs)
    refused("main_stage1", *DIGITS, "--out", runs, "--epochs", 3, "--label_smooth", 1)
    assert contents(runs) == before
    assert "the only stage1 run that fits" in stage2(runs, "--method", "ce").out


def test_a_gpu_that_is_absent(tmp_path: Path) -> None:
    for arguments in ((), ("--device", "cuda")):
        message = refused("main_stage1", *DIGITS, "--out", tmp_path, "--gpu", 99, *arguments, gpus=1)
        assert "--gpu 99" in message
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_number_on_a_cpu_is_said_to_have_no_effect(tmp_path: Path) -> None:
    assert stage1(tmp_path, "--epochs", 1, "--gpu", 99).err == "not used by main_stage1 on cpu: --gpu\n"


def test_both_names_of_a_start_are_refused(shades: Path, shades_run: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", "folder", "--data_dir", shades, "--weights", shades_run / "last.pth", "--out", tmp_path)
    assert is_refusal(
        run("main_stage2", *arguments, "--pretrained_pth", shades_run, *RESNET), "--weights and --pretrained_pth"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_replaced_silently(trained: Path) -> None:
    before = contents(trained)
    for script, flags in (("main_stage1", ("--epochs", 2)), ("main_stage2", ("--finetune_epoch", 2))):
        message = refused(script, *DIGITS, "--out", trained, *flags)
        assert "finished" in message and "--overwrite" in message
    assert contents(trained) == before


def test_no_traceback_at_the_shell(tmp_path: Path) -> None:
    status, err = Child(run_script("main_stage2", *DIGITS, "--out", tmp_path)).end()
    assert status == 2
    assert err.startswith("error: no stage1 run in ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
