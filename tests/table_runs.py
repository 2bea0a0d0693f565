"""The tables of `reproduce.py` on the digits, run in this process."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import engine.many_heads
import tables.request
from methods.plan import Plan, build_losses
from settings.presets import PRESETS
from tests import helpers
from tests.helpers import Outcome, run

SMALL = ("--epochs", 6, "--width", 4)
# What a table says on the way stands before its error.
is_refusal = partial(helpers.is_refusal, alone=False)


def table(out: Path, name: str, *arguments: object, plots: bool = False) -> Outcome:
    """Run a table on the digits, with runs in `out` and results in its `results`; figures only on request.

    Stage 1 is a small one, unless the arguments name one; LOS's budget, which the methods share, is five epochs.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not plots:
            patch.setattr(tables.request, "save_figure", lambda *_: None)
        patch.setitem(PRESETS["digits"], "finetune_epoch", 5)
        small = () if "--pretrained_pth" in arguments else SMALL
        flags = ("--dataset", "digits", *small, "--out", out, "--results", out / "results")
        return run("reproduce", name, *flags, *arguments)


def make(out: Path, name: str, *arguments: object, plots: bool = False) -> Outcome:
    """Run a table that must end with status 0."""
    outcome = table(out, name, *arguments, plots=plots)
    assert outcome.status == 0, outcome.err
    return outcome


def spoil(monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
    """Let the losses of `methods` be NaN."""

    class NotANumber(nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return logits.mean() * torch.nan

    def building(plan: Plan, class_counts: list[int]) -> tuple[nn.Module, nn.Module]:
        return (NotANumber(), NotANumber()) if plan.method in methods else build_losses(plan, class_counts)

    monkeypatch.setattr(engine.many_heads, "build_losses", building)
