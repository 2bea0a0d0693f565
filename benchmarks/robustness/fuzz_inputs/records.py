"""The records of runs: metrics.json, config.json and the card of a released file."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

import evaluate
import main_stage1
import main_stage2
import tools.compare
from benchmarks.robustness.fuzz_inputs.cases import (
    ACCEPTED,
    REFUSED,
    Material,
    check_ending,
    file_states,
    inside,
    refusal,
    shell,
)
from benchmarks.robustness.fuzz_inputs.damage import json_bytes
from benchmarks.robustness.fuzz_inputs.material import STAGE1_RUN, STAGE2_RUN
from evaluation.csv_files import read_csv
from runs.checkpoint import load_checkpoint

RECORDS = {
    "metrics.json": STAGE1_RUN / "metrics.json",
    "config.json": STAGE1_RUN / "config.json",
    "stage2 metrics.json": STAGE2_RUN / "metrics.json",
    "stage2 config.json": STAGE2_RUN / "config.json",
    "card": Path("released.json"),
}


def try_record(material: Material, folder: Path, case: Any) -> str:
    """Compare, go on with, start from and read what a damaged record belongs to; the numbers shown are the file's."""
    name, done, form, broken = case
    home = folder / "home"
    shutil.copytree(material.home, home)
    file = home / RECORDS[name]
    file.write_bytes(json_bytes(file.read_bytes(), done, form, broken))
    if name == "card":
        return refusal(lambda: load_checkpoint(home / "released.safetensors"), str(home))[0]
    before = file_states(home)
    csv = folder / "rows.csv"
    with inside(home):
        run = str(RECORDS[name].parent)
        ending = shell(tools.compare.main, [run, "--csv", str(csv)])
        outcome = check_ending(ending, run if ending.status == 2 else "")
        if outcome == ACCEPTED:
            content = json.loads((home / RECORDS[name]).with_name("metrics.json").read_text())
            shown = read_csv(csv)["last_plain_all"].iloc[0]
            recorded = content["last"]["plain"]["all"]
            assert pd.isna(shown) if recorded is None else math.isclose(shown, recorded, rel_tol=1e-6)
        common = ["--dataset", "digits", "--out", "runs", "--network", "resnet8", "--width", "4"]
        endings = [
            shell(main_stage1.main, [*common, "--epochs", "1", "--reuse"]),
            shell(main_stage2.main, [*common, "--finetune_epoch", "1", "--reuse"]),
            shell(evaluate.main, [*common, "--cur_stage", "stage2"]),
        ]
        outcomes = [check_ending(ending) for ending in endings]
    changed = {path for path, state in file_states(home).items() if before.get(path) != state}
    # Where metrics.json is unreadable a run is resumed: it may write its own records again, and no weights.
    assert all(Path(path).name in ("config.json",) for path in changed), changed
    return REFUSED if REFUSED in (outcome, *outcomes) else ACCEPTED
