"""The job scripts under a pretended SLURM: several nodes, a job whose time is up, an array that makes one file."""

import subprocess
from pathlib import Path

import torch
from safetensors import safe_open

from tests.helpers import ROOT, assert_same_run, read, run
from tests.tools.pretended_slurm import install
from tools.extract import extract

SMALL = ("--dataset", "digits", "--width", "4", "--device", "cpu", "--save_every", "0")
EPOCHS = 40
TRAIN, EXTRACT = "tools/slurm/train.sbatch", "tools/slurm/extract.sbatch"
ONE_NODE = {"PRETENDED_NODES": "1", "PROCESSES": "1", "OMP_NUM_THREADS": "1"}


def submit(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sbatch", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def outputs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.out")))


def run_of(out: Path) -> Path:
    [found] = out.rglob("config.json")
    return found.parent


def test_a_job_whose_time_is_up_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """SIGTERM to the script reaches the training, which saves; requeued, it resumes, and ends as one that was not."""
    assert run("main_stage1", *SMALL, "--epochs", EPOCHS, "--out", tmp_path / "a").status == 0
    its = run_of(tmp_path / "a")
    mine = tmp_path / "b" / its.relative_to(tmp_path / "a")
    environment = install(tmp_path / "slurm", PRETENDED_END=str(mine / "last.pth"), **ONE_NODE)
    done = submit(environment, TRAIN, *SMALL, "--epochs", str(EPOCHS), "--out", str(tmp_path / "b"))
    told = outputs(tmp_path / "slurm")
    assert done.returncode == 0, told
    assert "interrupted by SIGTERM: finished epochs are saved" in told
    assert told.count("its time is up; it goes back into the queue") == 1
    parts = read(mine / "config.json")["parts"]
    assert len(parts) == 2 and 1 <= parts[1]["epochs_done"] < EPOCHS
    assert_same_run(mine, its)


def test_two_nodes_train_one_network(tmp_path: Path) -> None:
    """A process on each, which find each other."""
    environment = install(tmp_path / "slurm", **{**ONE_NODE, "PRETENDED_NODES": "2"})
    done = submit(environment, TRAIN, *SMALL, "--epochs", "1", "--out", str(tmp_path / "a"))
    assert done.returncode == 0, outputs(tmp_path / "slurm")
    folder = run_of(tmp_path / "a")
    assert read(folder / "config.json")["processes"] == 2 and (folder / "metrics.json").is_file()
    assert outputs(tmp_path / "slurm").count("run folder:") == 1


def test_a_job_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    """Its status is that of the step."""
    environment = install(tmp_path / "slurm", **ONE_NODE)
    done = submit(environment, TRAIN, *SMALL, "--lr", "-1", "--out", str(tmp_path / "a"))
    told = outputs(tmp_path / "slurm")
    assert done.returncode != 0 and "error: --lr must be" in told and "queue" not in told
    assert not (tmp_path / "slurm" / "1.ok").exists()


BACKBONE = """
import numpy as np
import torch
from torch import nn

def prepare(image):
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255

def load():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), prepare
"""


def test_an_array_makes_the_file_that_one_command_makes(tmp_path: Path) -> None:
    """Two parts, and a job behind them that finishes the file; without them it is not begun."""
    (tmp_path / "own.py").write_text(BACKBONE)
    environment = install(tmp_path / "slurm", OMP_NUM_THREADS="1")
    flags = ["--backbone", str(tmp_path / "own.py"), "--dataset", "digits", "--workers", "0", "--part_mib", "0.005"]
    many, one = str(tmp_path / "many.safetensors"), str(tmp_path / "one.safetensors")
    early = submit(environment, "--dependency=afterok:9", EXTRACT, *flags, many)
    assert early.returncode != 0 and not list(tmp_path.glob("many*"))
    parts = submit(environment, "--parsable", "--array=1-2", EXTRACT, *flags, many)
    assert parts.returncode == 0, outputs(tmp_path / "slurm")
    assert not (tmp_path / "many.json").exists()
    last = submit(environment, f"--dependency=afterok:{parts.stdout.strip()}", EXTRACT, *flags, many)
    assert last.returncode == 0, outputs(tmp_path / "slurm")
    extract([*flags, one])
    pairs = list(zip(sorted(tmp_path.glob("many-*")), sorted(tmp_path.glob("one-*")), strict=True))
    assert len(pairs) >= 3
    for left, right in pairs:
        with safe_open(left, "pt") as mine, safe_open(right, "pt") as its:
            assert mine.metadata() == its.metadata()
            assert all(torch.equal(mine.get_tensor(name), its.get_tensor(name)) for name in mine.keys())  # noqa: SIM118
    assert read(tmp_path / "many.json")["rows"] == read(tmp_path / "one.json")["rows"]
