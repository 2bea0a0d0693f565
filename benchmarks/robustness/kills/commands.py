"""The commands that are disturbed, what they start from, and the files at whose writing they are met."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from utils.files import make_folder

MAX_KILLS_PER_RUN = 4  # then it may end
PROCESSES = (1, 2, 3)  # with which a run of several goes on
DIGITS = ("--dataset", "digits", "--width", "4")
ON_DISK = (
    *("--dataset", "folder", "--data_dir", "images", "--stem", "cifar", "--network", "resnet8", "--width", "4"),
    *("--image_size", "16", "--resize", "18", "--workers", "1"),
)


@dataclass(frozen=True)
class DisturbedCommand:
    """A command that is disturbed, what it starts from, the flags that it resumes with, and the files to meet it at.

    Of several `processes` one is killed, and the run goes on with one of the numbers in `resumed_by`.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...] = ()
    resume_flags: tuple[str, ...] = ("--resume",)
    aims: tuple[str, ...] = ("checkpoint",)
    processes: int = 1
    resumed_by: tuple[int, ...] = PROCESSES


STAGE1_DIGITS = ("main_stage1.py", *DIGITS, "--epochs", "2", "--out", "start")
STAGE1_ON_DISK = ("main_stage1.py", *ON_DISK, "--epochs", "1", "--out", "start")
DIGITS_RUN = "start/digits_expIF25_resnet8/seed0/stage1_epochs2_width4"
ON_DISK_RUN = "start/folder-images_natural_resnet8/seed0/stage1_epochs1_stemcifar_image_size16_resize18_width4"
EVERY_EPOCH = ("--save_every", "0")  # what is killed most often while it writes, and may lose one epoch
COMMANDS = (
    DisturbedCommand(
        "stage 1",
        ("main_stage1.py", *DIGITS, *EVERY_EPOCH, "--epochs", "30", "--out", "runs"),
        aims=("checkpoint", "report"),
    ),
    DisturbedCommand(
        "stage 2",
        (
            *("main_stage2.py", *DIGITS, *EVERY_EPOCH, "--finetune_epoch", "60", "--views", "4", "--out", "runs"),
            *("--pretrained_pth", DIGITS_RUN),
        ),
        (STAGE1_DIGITS,),
    ),
    DisturbedCommand(
        "stage 2 on image files",
        (
            *("main_stage2.py", *ON_DISK, *EVERY_EPOCH, "--finetune_epoch", "30", "--views", "3", "--out", "runs"),
            *("--pretrained_pth", ON_DISK_RUN),
        ),
        (STAGE1_ON_DISK,),
        aims=("features", "checkpoint"),
    ),
    DisturbedCommand(
        "reproduce.py unified",
        (
            *("reproduce.py", "unified", *DIGITS, *EVERY_EPOCH, "--epochs", "10", "--views", "2", "--out", "runs"),
            *("--methods", "ce", "los", "tau_norm"),
        ),
        resume_flags=(),
        aims=("table", "features"),
    ),
    DisturbedCommand(
        "stage 1, two processes",
        ("main_stage1.py", *DIGITS, *EVERY_EPOCH, "--epochs", "10", "--out", "runs"),
        processes=2,
    ),
    DisturbedCommand(
        "stage 1, two processes, resumed by two",
        ("main_stage1.py", *DIGITS, *EVERY_EPOCH, "--epochs", "10", "--out", "runs"),
        processes=2,
        resumed_by=(2,),
    ),
    DisturbedCommand(
        "stage 1 on image files, hashed slowly",
        (
            *("-m", "benchmarks.robustness.kills.slow_disk", "main_stage1"),
            *(*ON_DISK, *EVERY_EPOCH, "--epochs", "4", "--out", "runs"),
        ),
        aims=("hashes", "hashes", "hashes"),
    ),
    DisturbedCommand(
        "tools.export_features",
        ("-m", "tools.export_features", DIGITS_RUN, "runs/exported.safetensors", "--part_mib", "0.03"),
        (STAGE1_DIGITS,),
        resume_flags=(),
        aims=("shard", "shard"),
    ),
    DisturbedCommand(
        "tools.release",
        ("-m", "tools.release", DIGITS_RUN, "runs/released.safetensors", "--part_mib", "0.03"),
        (STAGE1_DIGITS,),
        resume_flags=(),
        aims=("shard", "shard"),
    ),
)
AIMS = {
    "checkpoint": r"\.(last|best)\.pth\.|\.log\.csv\.",
    "report": r"\.(metrics\.json|[a-z_]+\.png)\.",
    "features": r".*\.npy\.",
    "hashes": r"\.[0-9a-f]{32}\.npz\.",
    "shard": r"\.(exported|released)(-\d+-of-\d+)?\.(safetensors|json)\.",
    "table": r"\.[a-z_]+_[0-9a-f]{16}\.json\.|\.unified_.*",
}


def write_tree(folder: Path) -> None:
    """Write a tree of small images, brighter from class to class: 40 to 10 to train on, 5 to test on."""
    generator = np.random.default_rng(0)
    for part, counts in (("train", (40, 30, 20, 10)), ("test", (5, 5, 5, 5))):
        for label, count in enumerate(counts):
            place = folder / part / f"class{label}"
            make_folder(place)
            for number in range(count):
                pixels = generator.normal(50 + 45 * label, 25, (24, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


def plan(kills: int, chance: random.Random) -> list[tuple[DisturbedCommand, list[str]]]:
    """Return the commands and the moments they are met at, twice as many as needed: some end before."""
    chains = []
    for number in range(2 * kills):
        command = COMMANDS[number % len(COMMANDS)]
        kills_of_run = chance.randint(2, MAX_KILLS_PER_RUN)
        chains.append((command, [chance.choice(["any", "any", *command.aims]) for _ in range(kills_of_run)]))
    return chains
