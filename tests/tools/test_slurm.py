"""The job scripts under a pretended SLURM: several nodes, a job whose time is up, an array that makes one file."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.helpers import ROOT, assert_same_run, read
from tests.tools.pretended_slurm import install

SMALL = ("--dataset", "digits", "--width", "4", "--epochs", "12", "--device", "cpu", "--save_every", "0")


def submit(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sbatch", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def outputs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.out")))


def run_of(out: Path) -> Path:
    [found] = out.rglob("config.json")
    return found.parent


@pytest.mark.parametrize("nodes", [2])
def test_a_job_whose_time_is_up_goes_on_to_the_same_end(nodes: int, tmp_path: Path) -> None:
    """SIGTERM to the script reaches the training, which saves; requeued, it resumes, and ends as one that was not."""
    usual = {"PRETENDED_NODES": str(nodes), "OMP_NUM_THREADS": "1", "PROCESSES": "1"}
    whole = install(tmp_path / "whole", **usual)
    done = submit(whole, "tools/slurm/train.sbatch", *SMALL, "--out", str(tmp_path / "a"))
    assert done.returncode == 0, outputs(tmp_path / "whole")
    saved = run_of(tmp_path / "a").relative_to(tmp_path / "a") / "last.pth"
    cut = install(tmp_path / "cut", **usual, PRETENDED_END=str(tmp_path / "b" / saved))
    done = submit(cut, "tools/slurm/train.sbatch", *SMALL, "--out", str(tmp_path / "b"))
    told = outputs(tmp_path / "cut")
    assert done.returncode == 0, told
    assert "interrupted by SIGTERM: finished epochs are saved" in told
    assert told.count("its time is up; it goes back into the queue") == 1
    mine, its = run_of(tmp_path / "b"), run_of(tmp_path / "a")
    parts = read(mine / "config.json")["parts"]
    assert len(parts) == 2 and 1 <= parts[1]["epochs_done"] < 12
    assert [part["processes"] for part in parts] == [nodes, nodes]
    assert_same_run(mine, its)


def test_a_job_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    """Its status is that of the step."""
    environment = install(tmp_path / "slurm", PRETENDED_NODES="1", PROCESSES="1")
    done = submit(environment, "tools/slurm/train.sbatch", *SMALL, "--lr", "-1", "--out", str(tmp_path / "a"))
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


def test_an_array_makes_the_file_that_one_job_makes(tmp_path: Path) -> None:
    """Three parts, and a job behind them that finishes the file; without them it is not begun."""
    (tmp_path / "own.py").write_text(BACKBONE)
    environment = install(tmp_path / "slurm", OMP_NUM_THREADS="1")
    flags = ["--backbone", str(tmp_path / "own.py"), "--dataset", "digits", "--workers", "0", "--part_mib", "0.005"]
    script, many, one = (
        "tools/slurm/extract.sbatch",
        str(tmp_path / "many.safetensors"),
        str(tmp_path / "one.safetensors"),
    )
    early = submit(environment, "--dependency=afterok:9", script, *flags, many)
    assert early.returncode != 0 and not list(tmp_path.glob("many*"))
    parts = submit(environment, "--parsable", "--array=1-3", script, *flags, many)
    assert parts.returncode == 0, outputs(tmp_path / "slurm")
    assert not (tmp_path / "many.json").exists()
    for words in ((f"--dependency=afterok:{parts.stdout.strip()}", script, *flags, many), (script, *flags, one)):
        assert submit(environment, *words).returncode == 0, outputs(tmp_path / "slurm")
    pairs = list(zip(sorted(tmp_path.glob("many-*")), sorted(tmp_path.glob("one-*")), strict=True))
    assert len(pairs) >= 3
    for left, right in pairs:
        with safe_open(left, "pt") as mine, safe_open(right, "pt") as its:
            assert mine.metadata() == its.metadata()
            assert all(torch.equal(mine.get_tensor(name), its.get_tensor(name)) for name in mine.keys())  # noqa: SIM118
    assert read(tmp_path / "many.json")["rows"] == read(tmp_path / "one.json")["rows"]
