"""Stage 1 on small images on disk."""

from pathlib import Path

from tests.helpers import Outcome, run

PIXELS = 16
RESNET = ("--network", "resnet8", "--stem", "cifar", "--width", 4)
SIZES = ("--image_size", PIXELS, "--resize", PIXELS)


def train_on_images(
    tree: Path, out: Path, *arguments: object, form: str = "folder", network: tuple[object, ...] = RESNET
) -> Outcome:
    """Run one epoch of stage 1 on a tree, read by this process unless the arguments say otherwise."""
    sizes = () if form == "cifar100" else SIZES
    used = ("--dataset", form, "--data_dir", tree, *network, *sizes, "--workers", 0, "--epochs", 1, "--out", out)
    return run("main_stage1", *used, *arguments)
