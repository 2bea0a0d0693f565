"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tables.selection
from methods.recipes import RECIPES
from utils.device import Execution

pytest.register_assert_rewrite("tests.helpers", "tests.forks")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def cifar100_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `--data_dir` that holds the real CIFAR-100, from $CIFAR100_DIR or the checkout's data folder; else a skip."""
    given = os.environ.get("CIFAR100_DIR")
    holder = Path(given).resolve() if given else ROOT / "data" / "cifar100"
    if not all((holder / "cifar-100-python" / name).is_file() for name in ("train", "test", "meta")):
        pytest.skip(f"the real CIFAR-100 is not in {holder}")
    if not given:
        return holder.parent
    data_dir = tmp_path_factory.mktemp("data")
    (data_dir / "cifar100").symlink_to(holder, target_is_directory=True)
    return data_dir


@pytest.fixture(scope="session", autouse=True)
def same_precision_on_every_cpu() -> Iterator[None]:
    """Let commands in this process and those that they start compute in fp32 unless a test asks for bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
        yield


@pytest.fixture(scope="session")
def cpu() -> Execution:
    """Plain fp32 arithmetic on the CPU."""
    return Execution(torch.device("cpu"), bf16=False, compile=False, reasons=())


@pytest.fixture
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a selection try two learning rates (or values of a parameter) for one epoch."""
    monkeypatch.setattr(tables.selection, "TUNED_EPOCHS", (1,))
    monkeypatch.setattr(tables.selection, "WIDENED", 0)
    for name, recipe in RECIPES.items():
        if recipe.tuned is not None:
            monkeypatch.setitem(RECIPES, name, replace(recipe, tuned=(recipe.tuned[0], recipe.tuned[1][:2])))
    monkeypatch.setattr(tables.selection, "TWELVE_LRS", (5e-3, 0.5))
    monkeypatch.setattr(tables.selection, "FOUR_LRS", (5e-3,))
