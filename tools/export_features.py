"""Make a file of features from a stage 1, in half precision: stage 2 on it needs neither network nor images.

    python -m tools.export_features RUN_FOLDER FILE.safetensors
    python -m tools.export_features CHECKPOINT.pth FILE.safetensors --imb_ratio 100 --network resnet34

The first argument is whatever `evaluate.py --pretrained_pth` reads, of a stage 1: a finished run or a checkpoint alone.
One that does not name its data and network, such as a plain state dict, takes the flags of `evaluate.py` that do.

The file holds `train_features` (N, d), `test_features`, where the data set is mirrored `test_features_mirrored`, where
images were held out `holdout_features`, each split's `*_labels` and `*_ids`, and the last epoch's classifier in full
precision: a stage-1 checkpoint whose backbone is replaced by what it makes of the images as they are. `main_stage2.py
--pretrained_pth FILE` and the tables of `reproduce.py` take it as one, with `--views plain`. It is computed in fp32
with the data of the run, which must be there. The card beside it, FILE with the ending .json, has the accuracy of the
run, the accuracy `measured` with the features as they stand in the file, and the sha256 of every shard.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datasets.features import in_memory
from engine.frozen_features import network_features
from runs.checkpoint import CLASSIFIER, load_checkpoint
from runs.session import LoadedModel
from runs.shards import SHARD_MIB, card_of, describe_files, refuse_taken_name, write_safetensors
from stages.sources import accuracy_of, describe_source, header_of, look_at, make_parser, open_source
from utils.command import run_command
from utils.errors import UserError
from utils.files import write_json
from utils.text import tell


def export_features(path: Path, file: Path, flags: Sequence[str] = (), part_mib: float = SHARD_MIB) -> list[Path]:
    """Write the features of a stage 1, a run or a checkpoint, and their card; return what was written, the card last.

    `flags` are those of `evaluate.py` by which the data are found. Raises UserError for a stage 2, where the data are
    not there, and where something stands in the place.
    """
    refuse_taken_name(file)
    source = open_source(path, flags)
    if source.stage != "stage1":
        raise UserError(f"{source.path} is of a {source.stage}; features are those of a stage 1: name that one")
    loaded = look_at(source.checkpoint, flags)
    mirror = loaded.data.augmentation.mirror
    header = {
        **header_of(source),
        "holds": "features",
        "class_names": loaded.data.class_names,
        "augmentation": {"mirror": mirror},
    }
    state = source.checkpoint.state
    classifier = {key: value.float() for key, value in state.items() if key.startswith(CLASSIFIER)}
    written = write_safetensors(file, feature_tensors(loaded, mirror) | classifier, header, part_mib)
    card = {
        **describe_files(file),
        "holds": "features",
        "precision": "float16",
        "computed": list(loaded.execution.reasons),
        "measured": accuracy_of(look_at(load_checkpoint(file), flags)),
        **describe_source(source),
    }
    write_json(card_of(file), card)
    return [*written, card_of(file)]


def feature_tensors(loaded: LoadedModel, mirror: bool) -> dict[str, Tensor]:
    """Return the features of all splits in half precision, with labels and ids, named as `datasets.features` has it."""
    features_of = network_features(loaded)
    tensors: dict[str, Tensor] = {}
    for split, images in loaded.images.items():
        if len(images) == 0:
            continue
        for mirrored in (False, True) if mirror and split == "test" else (False,):
            name = f"{split}_features" + "_mirrored" * mirrored
            tensors[name] = in_memory(features_of(split, mirrored)).half().cpu()
            if not bool(tensors[name].isfinite().all()):
                largest = torch.finfo(torch.float16).max
                raise UserError(f"{name} are not finite, or above {largest:g}, the largest number in half precision")
        tensors |= {f"{split}_labels": images.labels.cpu(), f"{split}_ids": images.ids.cpu()}
    return tensors


def main(argv: Sequence[str] | None = None) -> None:
    """Export what the command line names."""
    parser = make_parser("export_features", __doc__)
    own, flags = parser.parse_known_args(argv)
    written = export_features(own.source, own.file, flags, own.part_mib)
    tell(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    run_command(main)
