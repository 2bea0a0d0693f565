"""Right files to start from: two small runs on the digits, their released files, images, lists and features."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import main_stage1
import main_stage2
import tools.export_features
import tools.release
from benchmarks.robustness.fuzz_inputs.cases import Material, inside, shell
from benchmarks.robustness.fuzz_inputs.features import FEATURE_FILES, feature_arrays, write_arrays

RUN = Path("runs/digits_expIF25_resnet8/seed0")
STAGE1_RUN = RUN / "stage1_epochs1_width4"
STAGE2_RUN = RUN / "stage2_los_epochs1_width4_finetune_epoch1"


def make_material(folder: Path) -> Material:
    """Make all that the generators start from: two small runs on the digits, their released files, images, lists."""
    home = folder / "home"
    home.mkdir(parents=True)
    with inside(home):
        common = ["--dataset", "digits", "--width", "4", "--out", "runs"]
        for main, argv in (
            (main_stage1.main, [*common, "--epochs", "1"]),
            (main_stage2.main, [*common, "--finetune_epoch", "1"]),
        ):
            ending = shell(main, argv)
            assert ending.status == 0, ending.err
        noise = io.StringIO()
        with contextlib.redirect_stdout(noise):
            tools.release.main([str(STAGE1_RUN), "released.safetensors"])
            tools.release.main([str(STAGE2_RUN), "classifier.safetensors", "--backbone", "released.safetensors"])
            tools.export_features.main([str(STAGE1_RUN), "exported.safetensors"])
        state = torch.load(STAGE1_RUN / "last.pth", weights_only=True)["model"]
        torch.save(state, "weights.pth")
        torch.save({"state_dict": state, "epoch": 3}, "legacy.pth", _use_new_zipfile_serialization=False)
        for name in FEATURE_FILES:
            write_arrays(Path(name), feature_arrays())
        make_tree(Path("tree"))
        Path("empty").mkdir()
        Path("empty.npz").touch()
    texts = {name: (home / "tree" / name).read_bytes() for name in ("train.txt", "train.json")}
    return Material(home, texts)


def make_tree(tree: Path) -> None:
    """Write two classes of small images, as a folder a class and as lists in both forms."""
    rows: dict[str, list[tuple[str, int]]] = {}
    for part, counts in (("train", (4, 2)), ("val", (1, 1)), ("test", (2, 2))):
        for label, (name, count) in enumerate(zip(("ant", "bee"), counts, strict=True)):
            (tree / part / name).mkdir(parents=True)
            for number in range(count):
                place = f"{part}/{name}/{number}.{'jpg' if number % 2 else 'png'}"
                pixels = np.full((12, 10, 3), 60 * label + 10 * number, dtype=np.uint8)
                Image.fromarray(pixels).save(tree / place)
                rows.setdefault(part, []).append((place, label))
    for part, own in rows.items():
        (tree / f"{part}.txt").write_text("".join(f"{place} {label}\n" for place, label in own))
        content = {
            "images": [{"id": 7 + i, "file_name": place} for i, (place, _) in enumerate(own)],
            "annotations": [{"id": i, "image_id": 7 + i, "category_id": 3 + label} for i, (_, label) in enumerate(own)],
            "categories": [{"id": 3 + label, "name": name} for label, name in enumerate(("ant", "bee"))],
        }
        (tree / f"{part}.json").write_text(json.dumps(content))
