"""Choose the stage-2 values of the `digits` preset on held-out images; the test set has no part in it.

    python benchmarks/select_digits.py        # about four minutes on one core; writes results/digits_selection.csv

For five seeds a quarter of every class is kept out of stage 1 (`--holdout 0.25`, at least one image), and stage 2 runs
on the rest with every combination of the grid. The preset takes the combination with the highest class-balanced
accuracy on the held-out images, averaged over the seeds. Cross-entropy, the control, has the same grid.
"""

import contextlib
import io
import itertools
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main_stage1  # noqa: E402
import main_stage2  # noqa: E402
from utils.files import read_json, write_text  # noqa: E402

SEEDS = range(5)
LEARNING_RATES = ["1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3"]
TARGETS = {"ce": ["--method", "ce"], "los s=0.98": [], "los gap=1.112": ["--loma_target", "1.112"]}


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        common = ["--dataset", "digits", "--holdout", "0.25", "--out", folder]
        for seed in SEEDS:
            with contextlib.redirect_stdout(io.StringIO()):
                main_stage1.main([*common, "--seed", str(seed)])
            for (target, flags), lr in itertools.product(TARGETS.items(), LEARNING_RATES):
                with contextlib.redirect_stdout(io.StringIO()):
                    main_stage2.main([*common, "--seed", str(seed), "--overwrite", *flags, "--finetune_lr", lr])
                newest = max(
                    Path(folder).glob(f"*/seed{seed}/stage2_*/metrics.json"), key=lambda p: p.stat().st_mtime_ns
                )
                accuracy = read_json(newest)["holdout"]["class_balanced_accuracy"]
                rows.append({"target": target, "finetune_lr": lr, "seed": seed, "held_out_class_balanced": accuracy})
            print(f"seed {seed} done", flush=True)
    table = pd.DataFrame(rows).pivot(index=["target", "finetune_lr"], columns="seed", values="held_out_class_balanced")
    table.columns = [f"seed{seed}" for seed in table.columns]
    table.insert(0, "mean", table.mean(axis=1))
    print(table.round(2).to_string())
    write_text(ROOT / "results" / "digits_selection.csv", table.reset_index().to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
