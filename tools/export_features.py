"""Make a file of features from a finished stage 1, in half precision: stage 2 on it needs neither network nor images.

    python -m tools.export_features RUN_FOLDER FILE.safetensors

It holds `train_features` (N, d), `test_features`, where the data set is mirrored `test_features_mirrored`, where
images were held out `holdout_features`, each split's `*_labels` and `*_ids`, and the last epoch's classifier in full
precision: a stage-1 checkpoint whose backbone is replaced by what it makes of the images as they are. `main_stage2.py
--pretrained_pth FILE` and the tables of `reproduce.py` take it as one, with `--views plain`. It is computed in fp32
with the data of the run, which must be there. The card beside it, FILE with the ending .json, has the accuracy of the
run, the accuracy `measured` with the features as they stand in the file, and the sha256 of every part.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from evaluation.run_rows import read_run
from runs.checkpoint import CLASSIFIER, load_checkpoint
from runs.shards import PART_MIB, card_of, describe_files, refuse_present, write_safetensors
from stages.session import Subject
from tools.release import accuracy_of, describe_run, header_of, look_at
from utils.command import run_command
from utils.errors import UserError
from utils.files import write_json


def export_features(run: Path, file: Path, *, part_mib: float = PART_MIB, device: str = "auto") -> list[Path]:
    """Write the features of a finished stage-1 run and their card; return what was written, the card last.

    Raises UserError for another run, where the run's data are not there, and where something stands in the place.
    """
    refuse_present(file)
    metrics, config = read_run(run)
    if config["stage"] != "stage1":
        raise UserError(f"{run} is a {config['stage']} run; features are those of a stage 1")
    checkpoint = load_checkpoint(run / "last.pth")
    subject, data = look_at(checkpoint, device)
    header = {
        **header_of(checkpoint, metrics),
        "holds": "features",
        "class_names": data.class_names,
        "augmentation": {"mirror": data.augmentation.mirror},
    }
    classifier = {key: value.float() for key, value in checkpoint.state.items() if key.startswith(CLASSIFIER)}
    written = write_safetensors(file, feature_tensors(subject, data.augmentation.mirror) | classifier, header, part_mib)
    card = {
        **describe_files(file),
        "holds": "features",
        "precision": "float16",
        "computed": list(subject.execution.reasons),
        "measured": accuracy_of(*look_at(load_checkpoint(file), device)),
        **describe_run(checkpoint, metrics, config),
    }
    write_json(card_of(file), card)
    return [*written, card_of(file)]


def feature_tensors(subject: Subject, mirror: bool) -> dict[str, Tensor]:
    """Return the features of all splits in half precision, with labels and ids, named as `datasets.features` has it."""
    tensors: dict[str, Tensor] = {}
    for split, images in subject.images.items():
        if len(images) == 0:
            continue
        for mirrored in (False, True) if mirror and split == "test" else (False,):
            name = f"{split}_features" + "_mirrored" * mirrored
            tensors[name] = subject.features_of(split, mirrored).half().cpu()
            if not bool(tensors[name].isfinite().all()):
                largest = torch.finfo(torch.float16).max
                raise UserError(f"{name} are not finite, or above {largest:g}, the largest number in half precision")
        tensors |= {f"{split}_labels": images.labels.cpu(), f"{split}_ids": images.ids.cpu()}
    return tensors


def refuse(message: str) -> NoReturn:
    raise UserError(
        f"{message}; usage: python -m tools.export_features RUN_FOLDER FILE.safetensors [--part_mib N] [--device D]"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.export_features",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("run", type=Path, help="folder of a finished stage-1 run")
    parser.add_argument("file", type=Path, help="where to write, ending in .safetensors")
    parser.add_argument("--part_mib", type=float, default=PART_MIB, help=f"MiB a file holds at most [{PART_MIB:g}]")
    parser.add_argument("--device", default="auto", help="where to compute: auto, cpu or cuda [auto]")
    arguments = parser.parse_args(argv)
    written = export_features(arguments.run, arguments.file, part_mib=arguments.part_mib, device=arguments.device)
    print(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    run_command(main)
