"""Golden losses: what tiny seeded runs of both stages lose in each epoch, so that a change of training does not go
unseen: other batches, crops, draws, weights to start from, steps of the optimiser, a schedule or a target.

They repeat to six digits or more from one thread to several, from one instruction set to another and from PyTorch 2.11
to 2.15. Where a change of training is meant, take the numbers of the failure over and say so in CHANGELOG.md.
"""

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import succeed

TOLERANCE = 1e-4  # relative
DATA = ("--dataset", "digits", "--width", 4, "--device", "cpu", "--holdout", 0.2)

# Numbers large enough for each of them to count within a few steps.
STAGE1 = {
    "crop": ("--epochs", 4, "--lr", 0.02, "--wd", 0.02),
    "jitter": (
        "--epochs",
        3,
        "--lr",
        0.02,
        "--wd",
        0.02,
        "--augment",
        "jitter",
        "--nesterov",
        "--mixup",
        0.4,
        "--drop_last",
        "--clip_grad",
        1.0,
        "--warmup_epochs",
        1,
        "--label_smooth",
        0.1,
    ),
    "gala": ("--epochs", 3, "--lr", 0.02, "--wd", 0.02, "--loss", "gala", "--batch_size", 48),
}
STAGE1_LOSSES = {
    "crop": [2.19725, 1.74043, 1.6202, 1.54519],
    "jitter": [2.35894, 2.02086, 1.93782],
    "gala": [2.04977, 1.81008, 1.74691],
}
STAGE2 = ("--finetune_epoch", 3, "--finetune_lr", 0.02, "--finetune_wd", 0.02, "--views", 2)
# A soft target, clouds that are drawn, a fresh classifier on images that are drawn, batch norm that moves.
STAGE2_FLAGS = {
    "los": ("--method", "los"),
    "gcl": ("--method", "gcl", "--gcl_loss", "paper"),
    "crt": ("--method", "crt"),
    "released": ("--method", "ldam_drw", "--protocol", "released", "--views", "fresh"),
}
STAGE2_LOSSES = {
    "los": [2.70141, 2.37825, 2.33403],
    "gcl": [6.67732, 3.2679, 2.59274],
    "crt": [2.33966, 2.24929, 2.23087],
    "released": [9.46367, 8.30191, 7.58471],
}


def losses(folder: Path, stage: str) -> list[float]:
    """The mean training loss of each epoch, from the log of the only run of a stage."""
    (log,) = folder.rglob(f"{stage}*/log.csv")
    return pd.read_csv(log)["loss"].tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stage 1 is that all stages 2 start from."""
    out = tmp_path_factory.mktemp("golden")
    succeed("main_stage1", *DATA, *STAGE1["crop"], "--out", out)
    return out


@pytest.mark.parametrize("name", STAGE1)
def test_stage_1_loses_what_it_always_lost(name: str, trained: Path, tmp_path: Path) -> None:
    out = trained
    if name != "crop":
        out = tmp_path
        succeed("main_stage1", *DATA, *STAGE1[name], "--out", out)
    assert losses(out, "stage1") == pytest.approx(STAGE1_LOSSES[name], rel=TOLERANCE)


@pytest.mark.parametrize("name", STAGE2_FLAGS)
def test_stage_2_loses_what_it_always_lost(name: str, trained: Path, tmp_path: Path) -> None:
    start = next(trained.rglob("stage1*/last.pth"))
    succeed("main_stage2", *DATA, *STAGE2, *STAGE2_FLAGS[name], "--pretrained_pth", start, "--out", tmp_path)
    assert losses(tmp_path, "stage2") == pytest.approx(STAGE2_LOSSES[name], rel=TOLERANCE)
