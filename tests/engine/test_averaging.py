"""Averaged weights: PyTorch's own average, stacked and alone, saved and gone on with."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import engine.saving
from engine.averaging import AveragedSGD, swap_averages
from engine.finish import FALL, collapse_line
from engine.fit import make_sgd
from engine.stacked_heads import StackedSGD, stack_heads
from models.heads import build_head
from tests.helpers import folder_of, is_refusal, read, run, same, stage1, succeed, weights

DECAY = 0.9


def test_it_is_pytorchs_average_and_leaves_the_training_alone() -> None:
    torch.manual_seed(0)
    plain = build_head("cosine", nn.Linear(4, 3))
    ours = build_head("cosine", nn.Linear(4, 3))
    ours.load_state_dict(plain.state_dict())
    oracle = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    theirs, own = make_sgd(plain, 0.9, 0.1, True), make_sgd(ours, 0.9, 0.1, True, DECAY)
    assert isinstance(own, AveragedSGD) and not isinstance(theirs, AveragedSGD)
    for step in range(7):
        features, labels = torch.randn(8, 4), torch.arange(8) % 3
        for head, optimizer in ((plain, theirs), (ours, own)):
            optimizer.param_groups[0]["lr"] = 0.3 / (step + 1)
            optimizer.zero_grad()
            F.cross_entropy(head(features), labels).backward()
            optimizer.step()
        oracle.update_parameters(plain)
        if step % 3 == 2:  # as between two epochs
            swap_averages(own)
            for name, value in oracle.module.named_parameters():
                torch.testing.assert_close(ours.get_parameter(name), value)
            swap_averages(own)
        assert all(torch.equal(ours.get_parameter(name), value) for name, value in plain.named_parameters())


def test_stacked_heads_are_averaged_each_with_its_own_decay() -> None:
    torch.manual_seed(0)
    heads = [build_head("linear", nn.Linear(4, 3)) for _ in range(3)]
    alone = [build_head("linear", head) for head in heads]
    decays = [0.0, 0.5, 0.9]
    stacked = stack_heads(heads)
    together = StackedSGD(stacked.stacked_parameters.values(), 0.9, torch.zeros(3), torch.tensor(decays))
    together.lr = torch.full((3,), 0.2)
    optimizers = [make_sgd(head, 0.9, 0.0, False, decay) for head, decay in zip(alone, decays, strict=True)]
    for _ in range(4):
        features, labels = torch.randn(6, 4), torch.arange(6) % 3
        together.zero_grad()
        sum(F.cross_entropy(logits, labels) for logits in stacked(features)).backward()
        together.step()
        for head, optimizer in zip(alone, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.2
            optimizer.zero_grad()
            F.cross_entropy(head(features), labels).backward()
            optimizer.step()
    swap_averages(together)
    stacked.write_back(heads)
    unaveraged = alone[0].weight.detach().clone()
    for head, found, optimizer in zip(alone, heads, optimizers, strict=True):
        swap_averages(optimizer)
        torch.testing.assert_close(found.weight, head.weight)
    torch.testing.assert_close(heads[0].weight, unaveraged)


def test_averages_are_saved_and_a_run_goes_on_from_the_trained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = engine.saving.save_checkpoint

    def stop_at_the_third_epoch(path: Path, content: dict[str, Any]) -> None:
        if content["epoch"] == 3:
            raise KeyboardInterrupt
        save(path, content)

    stage1(tmp_path, "--width", 2, "--epochs", 1)
    source = folder_of(tmp_path, "stage1_epochs1_width2")
    line = (
        "--dataset",
        "digits",
        "--pretrained_pth",
        source,
        "--method",
        "ce",
        "--finetune_lr",
        0.1,
        "--views",
        "plain",
    )
    averaged = ("--finetune_ema", DECAY)
    succeed("main_stage2", *line, "--out", tmp_path / "whole", *averaged, "--finetune_epoch", 3)
    succeed("main_stage2", *line, "--out", tmp_path / "plain", "--finetune_epoch", 3)
    parts = ("main_stage2", *line, "--out", tmp_path / "parts", *averaged, "--finetune_epoch", 3)
    with monkeypatch.context() as patch:
        patch.setattr(engine.saving, "save_checkpoint", stop_at_the_third_epoch)
        assert run(*parts, "--save_every", 0).status == 130
    assert "after epoch 2 of 3" in succeed(*parts, "--resume").out
    whole, plain, again = (next((tmp_path / name).rglob("stage2*/last.pth")) for name in ("whole", "plain", "parts"))
    assert "finetune_ema0.9" in whole.parent.name and "ema" not in plain.parent.name
    assert not same(weights(whole), weights(plain)) and same(weights(whole), weights(again))
    content = torch.load(whole, weights_only=True)
    trained = [state["other"] for state in content["optimizer"]["state"].values()]
    for found, name in zip(trained, ("fc.weight", "fc.bias"), strict=True):
        torch.testing.assert_close(found, weights(plain)[name])
    assert read(whole.parent / "config.json")["settings"]["finetune_ema"] == DECAY


def test_a_decay_out_of_range_is_refused_and_a_computed_classifier_has_no_steps(tmp_path: Path) -> None:
    for decay in (0, 1, 1.5):
        outcome = run("main_stage2", "--dataset", "digits", "--out", tmp_path, "--finetune_ema", decay)
        assert is_refusal(outcome, "--finetune_ema")


@pytest.mark.parametrize(
    ("before", "after", "warns"), [(99.3, 91.2, True), (90.0, 90.0 - FALL, False), (40, 90, False)]
)
def test_a_re_training_that_forgets_its_training_images_says_so(before: float, after: float, warns: bool) -> None:
    line = collapse_line(before, after)
    assert (line is not None) == warns
    if line is not None:
        assert "from 99.3 (stage 1) to 91.2" in line and "\n" not in line
        assert "fewer epochs" in line and "epochs" not in str(collapse_line(before, after, trains=False))
