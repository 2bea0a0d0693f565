"""What is right before a test of bad input damages it: runs on the digits, images on disk, CIFAR's files, releases."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.robustness.fuzz_inputs.material import make_material
from tests.helpers import image_tree, stage1, stage2, use_small_cifar, write_cifar
from tests.image_runs import train_on_images


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every command in a folder of its own: what it leaves in `checkpoints` must not be the checkout's."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one stage 1 and one stage 2 on the digits; not to be changed."""
    out = tmp_path_factory.mktemp("trained")
    stage1(out)
    stage2(out)
    return out


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture(scope="session")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 4, 3 and 2 training images and 2 test images, with lists and JSON of the same beside them.

    Not to be changed.
    """
    tree = image_tree(tmp_path_factory.mktemp("good") / "shades", 3, 4)
    for part in ("train", "test"):
        rows = [
            (file.relative_to(tree).as_posix(), int(file.parent.name[-1])) for file in sorted(tree.glob(f"{part}/*/*"))
        ]
        (tree / f"{part}.txt").write_text("".join(f"{name} {label}\n" for name, label in rows))
        coco = {
            "images": [{"id": i, "file_name": name} for i, (name, _) in enumerate(rows)],
            "annotations": [{"image_id": i, "category_id": label} for i, (_, label) in enumerate(rows)],
            "categories": [{"id": label, "name": f"class{label}"} for label in range(3)],
        }
        (tree / f"{part}.json").write_text(json.dumps(coco))
    return tree


@pytest.fixture
def tree(shades: Path, tmp_path: Path) -> Path:
    """A copy of `shades` that a test may damage."""
    return Path(shutil.copytree(shades, tmp_path / "shades"))


@pytest.fixture(scope="session")
def shades_run(shades: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished stage 1 on `shades`; not to be changed."""
    out = tmp_path_factory.mktemp("shades_run")
    outcome = train_on_images(shades, out)
    assert outcome.status == 0, outcome.err
    return next(out.rglob("metrics.json")).parent


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data with the small stand-in for CIFAR-100."""
    use_small_cifar(monkeypatch)
    write_cifar(tmp_path / "data" / "cifar100")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, their released files and features; not to be changed."""
    return make_material(tmp_path_factory.mktemp("made")).home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` that a test may change, and works in."""
    copied = Path(shutil.copytree(made, tmp_path / "home"))
    monkeypatch.chdir(copied)
    return copied
