"""Cases of re-training: an epoch of stage 2, a stack of heads beside its matrix products, tables on small features."""

from pathlib import Path

import numpy as np

from benchmarks.builds.cases import Case, Way

CLASSES, LARGEST, IMBALANCE = 100, 500, 0.01  # those of CIFAR-100-LT at imbalance factor 100: 10,847 training images
STACK = 72  # heads
WIDTHS = {64: "ResNet-32", 512: "ResNet-34"}  # features
FAMILY = ("ce", "label_smooth", "los", "lort", "balanced_softmax", "logit_adjust")
# Prints the CPU seconds of the fastest of five epochs of LOS, after one to warm up, or of its products alone.
EPOCH = """
import sys, time, torch
from torch import nn
from engine.epoch import train_epoch
from engine.fit import make_sgd
from engine.frozen_features import feature_batches
from engine.stacked_heads import StackedSGD, stack_heads, stack_losses
from losses.los import CrossEntropy, torch_target
from models.heads import Linear
from utils.device import Execution
what, heads, width, images = sys.argv[1], *map(int, sys.argv[2:])
classes, size = 100, 64
torch.manual_seed(0)
labels = torch.randint(0, classes, (images,))
features = (torch.randn(classes, width)[labels] + torch.randn(images, width)).relu()
start, loss = nn.Linear(width, classes), CrossEntropy(torch_target(0.98, classes))
execution = Execution(torch.device("cpu"), False, False, ())
rates = torch.logspace(-4, -1, heads)
if heads == 1:
    module = Linear(start)
    optimizer = make_sgd(module, 0.9, 0.0, False)
    optimizer.param_groups[0]["lr"] = 0.01
else:
    module, loss = stack_heads([Linear(start) for _ in rates]), stack_losses([loss for _ in rates])
    optimizer = StackedSGD(module.parameters(), 0.9, torch.zeros(heads))
    optimizer.lr = rates
order = torch.randperm(images)
weights = torch.randn(heads * classes, width)
gradient = torch.zeros_like(weights)
def epoch():
    batches = feature_batches(features, labels, order, size)
    if what == "epoch":
        train_epoch(module, batches, -(-images // size), optimizer, loss, execution)
        return
    with torch.no_grad():
        for rows, _ in batches:
            torch.mm((rows @ weights.T).T, rows, out=gradient)
seconds = []
for _ in range(6):
    started = time.process_time()
    epoch()
    seconds.append(time.process_time() - started)
print(min(seconds[1:]))
"""


def retraining_cases(folder: Path, quick: bool) -> list[Case]:
    """Return the cases of re-training; features for the tables are written into `folder`. `quick` ones are small."""
    images = 640 if quick else 10_847
    by_earlier = "ratio to earlier"
    cases = []
    for width, network in WIDTHS.items():
        one, many = ("1", str(width), str(images)), (str(STACK), str(width), str(images // 5))
        ways: tuple[Way, ...] = (
            Way("earlier", ("-c", EPOCH, "epoch", *one), earlier=True, prints=True),
            Way("now", ("-c", EPOCH, "epoch", *one), prints=True),
        )
        cases.append(Case(f"re-training, an epoch, features of {network}", ways, 1 / 4, by_earlier))
        ways = (
            Way("its products", ("-c", EPOCH, "products", *many), prints=True),
            Way("earlier", ("-c", EPOCH, "epoch", *many), earlier=True, prints=True),
            Way("now", ("-c", EPOCH, "epoch", *many), prints=True),
        )
        name = f"re-training, {STACK} heads, features of {network}"
        cases.append(Case(name, ways, 1.3, "ratio to the products of the step, forward and back"))
    file = folder / "small.npz"
    write_features(file, LARGEST // 10 if quick else LARGEST)
    small = ("--features", str(file), "--device", "cpu", "--out", "{out}", "--results", "{out}/results")
    tables = {
        "delta": ("delta",),
        "unified --select, cross-entropy family": ("unified", "--select", "--methods", *FAMILY),
        "unified --select, all methods": ("unified", "--select"),
    }
    if quick:
        del tables["unified --select, all methods"]
    for name, words in tables.items():
        words = ("reproduce.py", *words, *small)
        ways = (Way("earlier", words, earlier=True), Way("now", words))
        cases.append(Case(f"re-training, {name}", ways, 1 / 2.2, by_earlier))
    return cases


def write_features(path: Path, largest: int) -> None:
    """Write features of a long-tailed set, 64 of an image, with test and held-out images; the same at every call."""
    generator = np.random.default_rng(0)
    long_tailed = np.maximum(largest * IMBALANCE ** (np.arange(CLASSES) / (CLASSES - 1)), 1).astype(int)
    means = generator.normal(0, 1.2, (CLASSES, 64))
    arrays: dict[str, np.ndarray] = {}
    for split, counts in (("train", long_tailed), ("test", [20] * CLASSES), ("holdout", [10] * CLASSES)):
        labels = np.repeat(np.arange(CLASSES), counts)
        features = np.maximum(means[labels] + generator.normal(0, 2, (len(labels), 64)), 0)
        arrays |= {f"{split}_features": features.astype(np.float32), f"{split}_labels": labels}
    np.savez(path, **arrays)  # type: ignore[arg-type]
