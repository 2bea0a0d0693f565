"""Checkpoints as training scripts write them, as --weights and as --pretrained_pth, and constants of normalisation.

All hold the weights of one small network, trained on the digits once: `trained` asks the commands that are here for it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.robustness.everyday_inputs.case import Case, Ended, Words, first_of, near, taken
from benchmarks.robustness.everyday_inputs.pictures import folder_at
from models import build_model

State = dict[str, Tensor]
DIGITS = ("--dataset", "digits", "--network", "resnet8")
SHARED = "shared"  # the folder beside those of the cases
OWN_CONSTANTS = ("--mean", "0", "--std", "1")
TRAINING = ("main_stage1.py", *DIGITS, "--epochs", "3", *OWN_CONSTANTS, "--out")
WEIGHTS: Words = ("main_stage1.py", *DIGITS, "--epochs", "0", "--out", "{out}", "--weights")
EVALUATE: Words = ("evaluate.py", *DIGITS, "--cur_stage", "stage1", "--out", "{out}", "--pretrained_pth")


def trained(folder: Path) -> State:
    """Return the state dict of the network, with this project's names, which are torchvision's."""
    [path] = (folder.parent / SHARED).glob("*/seed0/stage1*/last.pth")
    return torch.load(path, weights_only=True)["model"]


def backbone(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def noise(state: State) -> State:
    """Return weights of the same shapes that no training made."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in state.items()
    }


def saved(make: Callable[[State], Any], name: str = "theirs.pth") -> Callable[[Path], None]:
    """Return what writes a checkpoint made of the trained state, and the same weights as a bare state dict."""

    def write(folder: Path) -> None:
        torch.save(trained(folder), folder / "bare.pth")
        torch.save(make(trained(folder)), folder / name)

    return write


def arguments() -> argparse.Namespace:
    return argparse.Namespace(lr=0.1, arch="resnet8", output_dir=PurePosixPath("runs"))


def without_counts(state: State) -> State:
    return {key: value for key, value in state.items() if "num_batches" not in key}


def lightning(state: State) -> dict[str, Any]:
    hyper = {"data": PurePosixPath("data"), "lr": np.float32(0.1)}
    return {"state_dict": prefixed("model.", state), "hyper_parameters": hyper, "callbacks": {}, "global_step": 9}


def cosine_of(state: State) -> Tensor:
    """Return the rows of the classifier at length 1, without a bias, as (K, d)."""
    return torch.nn.functional.normalize(state["fc.weight"], dim=1)


def transposed(folder: Path) -> None:
    """Write LDAM's form of a cosine classifier, (d, K), and a linear one whose largest logit is the same."""
    state = trained(folder)
    rows = cosine_of(state)
    torch.save({**backbone(state), "fc.weight": rows, "fc.bias": torch.zeros(len(rows))}, folder / "bare.pth")
    torch.save(
        {"state_dict": {**prefixed("module.", backbone(state)), "module.linear.weight": rows.T.contiguous()}},
        folder / "theirs.pth",
    )


def head_in_part(state: State) -> dict[str, Any]:
    heads = {f"head.{key}": value for key, value in state.items() if key.startswith("fc.")}
    return {"meta": {"epoch": 3}, "state_dict": {**prefixed("backbone.", backbone(state)), **heads}}


def of_dino(state: State) -> dict[str, Any]:
    student = prefixed("module.backbone.", noise(backbone(state)))
    return {"student": student, "teacher": prefixed("backbone.", backbone(state)), "epoch": 3, "args": arguments()}


def averaged(state: State) -> dict[str, Any]:
    return {"model": noise(state), "model_ema": prefixed("module.", state), "epoch": 3}


def script(folder: Path) -> None:
    network = torch.jit.trace(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3)), torch.zeros(1, 1, 8, 8))
    torch.jit.save(network, str(folder / "theirs.pth"))


def with_projections(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save({"state_dict": prefixed("module.", build_model("resnet20b", 10).state_dict())}, folder / "theirs.pth")


def plain_state(folder: Path) -> None:
    torch.save(trained(folder), folder / "theirs.pth")


def prepare(run: Callable[[Words], object], folder: Path) -> None:
    """Train the network below `folder`, beside which the cases' folders lie, unless it is there."""
    if not (folder / SHARED).exists():
        run((*TRAINING, str(folder_at(folder / SHARED))))


def same_backbone(ended: Ended) -> str | None:
    """Judge a linear probe whose frozen backbone must be the one in the file, to the bit."""
    found = torch.load(ended.run() / "last.pth", weights_only=True)["model"]
    right = backbone(trained(ended.out.parent / "any"))
    other = [key for key, value in right.items() if "num_batches" not in key and not torch.equal(found[key], value)]
    return f"{len(other)} of {len(right)} tensors are others" if other else None


def all_of(report: dict[str, Any]) -> float:
    """Return the accuracy in percent in a report of evaluate.py on one checkpoint."""
    [record] = report["checkpoints"].values()
    return record["plain"]["all"]


def same_accuracy(ended: Ended) -> str | None:
    """Judge a report that must be that on the same weights as a bare state dict."""
    return near("accuracy", all_of(ended.report()), all_of(ended.report("bare.json")))


def as_trained(ended: Ended) -> str | None:
    """Judge a report that must be the run's own, under its constants."""
    [folder] = (ended.out.parent / SHARED).glob("*/seed0/stage1*")
    right = Ended(folder.parents[2], 0, "", "", 0.0).scores()["all"]
    said = None if "pixels: mean 0 0 0, std 1 1 1" in ended.text else "no word about mean and std"
    return first_of(near("accuracy", all_of(ended.report()), right, 0.2), said)


def as_weights(*more: str, file: str = "theirs.pth") -> list[Words]:
    return [(*WEIGHTS, f"{{data}}/{file}", *more)]


def as_checkpoint(file: str = "theirs.pth") -> list[Words]:
    """Return reports on the bare state dict and on the file."""
    return [
        (*EVALUATE, "{data}/bare.pth", "--json", "{out}/bare.json"),
        (*EVALUATE, f"{{data}}/{file}", "--json", "{out}/report.json"),
    ]


def weights_case(name: str, make: Callable[[State], Any], more: Words = ()) -> Case:
    right, steps = "its backbone, to the bit", as_weights(*more)
    return Case(SCRIPTS, f"{name}, as --weights", right, saved(make), steps, same_backbone, TRUSTED)


def checkpoint_case(name: str, make: Callable[[Path], None]) -> Case:
    right = "the accuracy of the bare state dict"
    return Case(SCRIPTS, f"{name}, as --pretrained_pth", right, make, as_checkpoint(), same_accuracy, TRUSTED)


SCRIPTS, CONSTANTS = "checkpoints of scripts", "normalisation"
TRUSTED = ("--trust_pickle",)  # a way out of a refusal, though not what is right
UNDER = (*EVALUATE, "{data}/theirs.pth", *OWN_CONSTANTS, "--json", "{out}/report.json")
CASES = (
    weights_case("arguments beside it", lambda state: {"model": state, "optimizer": {}, "args": arguments()}),
    weights_case("paths (Lightning)", lightning),
    weights_case("student and teacher (DINO)", of_dino),
    weights_case("averaged weights, --ema", averaged, ("--ema",)),
    checkpoint_case("arguments beside it", saved(lambda state: {"model": state, "args": arguments()})),
    checkpoint_case("before PyTorch 0.4.1", saved(without_counts)),
    checkpoint_case("cosine classifier of LDAM-DRW", transposed),
    checkpoint_case("head.fc of mmpretrain", saved(head_in_part)),
    Case(
        SCRIPTS,
        "ResNet-20 with projections, as --weights",
        "taken",
        with_projections,
        [("main_stage1.py", "--dataset", "digits", "--network", "resnet20b", *as_weights()[0][5:])],
        lambda ended: None if ended.run().exists() else "no run",
    ),
    Case(
        SCRIPTS,
        "a TorchScript archive, as --weights",
        "refused, named for what it is",
        script,
        as_weights(),
        taken,
        way=("TorchScript", "state_dict"),
        refuse=True,
    ),
    Case(
        SCRIPTS,
        "of another network, as --weights",
        "refused, with the --network that fits",
        plain_state,
        [("main_stage1.py", "--dataset", "digits", "--network", "resnet20", *as_weights()[0][5:])],
        taken,
        way=("resnet8",),
        refuse=True,
    ),
    Case(
        CONSTANTS,
        "a state dict that learned under other constants",
        "the run's accuracy under --mean and --std, which are printed",
        plain_state,
        [UNDER],
        as_trained,
    ),
    Case(
        "plain files",
        "a bare state dict, as --weights",
        "its backbone, to the bit",
        plain_state,
        as_weights(),
        same_backbone,
    ),
)
