"""Choose the stage-2 values of the `digits` preset on held-out images; the test set has no part in it.

    python -m benchmarks.jobs.select_digits    # about four minutes on one core

For five seeds a quarter of every class is kept out of stage 1 (`--holdout 0.25`, at least one image), and stage 2 runs
on the rest with every combination of the grid. The preset takes the combination with the highest class-balanced
accuracy on the held-out images, averaged over the seeds. Cross-entropy, the control, has the same grid. Writes
`results/digits_selection.csv`.
"""

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Sequence

import pandas as pd
import torch

import main_stage1
import main_stage2
from benchmarks.command import make_own_parser
from benchmarks.record import provenance
from evaluation.csv_files import csv_text
from utils.command import run_command
from utils.files import make_folder, write_text

SEEDS = range(5)
LEARNING_RATES = [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3]
METHODS = {"ce": ["--method", "ce"], "los s=0.98": [], "los gap=1.112": ["--loma_target", "1.112"]}


def main(argv: Sequence[str] | None = None) -> None:
    own = make_own_parser("jobs.select_digits", __doc__, quick="one seed").parse_args(argv)
    started = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        common = ["--dataset", "digits", "--holdout", "0.25", "--out", folder, "--overwrite"]
        for seed in SEEDS[:1] if own.quick else SEEDS:
            with contextlib.redirect_stdout(io.StringIO()):
                main_stage1.main([*common, "--seed", str(seed)])
                for (method, flags), lr in itertools.product(METHODS.items(), LEARNING_RATES):
                    metrics = main_stage2.main([*common, "--seed", str(seed), *flags, "--finetune_lr", str(lr)])
                    accuracy = metrics["holdout"]["class_balanced_accuracy"]
                    rows.append({"method": method, "finetune_lr": lr, "seed": seed, "held_out": accuracy})
            print(f"seed {seed} done", flush=True)
    table = pd.DataFrame(rows).pivot(index=["method", "finetune_lr"], columns="seed", values="held_out")
    table.columns = [f"seed{seed}" for seed in table.columns]
    table.insert(0, "mean", table.mean(axis=1))
    print(table.round(2).to_string())
    table = table.assign(**provenance("jobs.select_digits", argv, torch.device("cpu")))
    table["subset_content_sha256"] = metrics["subset"]["content_sha256"]
    table["seconds_of_all"] = round(time.perf_counter() - started)
    make_folder(own.results)
    write_text(own.results / "digits_selection.csv", csv_text(table.reset_index(), "%g"))


if __name__ == "__main__":
    run_command(main)
