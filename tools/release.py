"""Make a small file to publish from a run or a checkpoint: safetensors, and a card that says what it is.

    python -m tools.release RUN_FOLDER FILE.safetensors
    python -m tools.release STAGE2_RUN_FOLDER CLASSIFIER.safetensors --backbone FILE.safetensors
    python -m tools.release CHECKPOINT.pth FILE.safetensors --imb_ratio 100 --network resnet34

    python -m tools.release RUN_FOLDER FOLDER/model.safetensors

The first argument is whatever `evaluate.py --pretrained_pth` reads: a finished run or a checkpoint alone. One that does
not name its data and network, such as a plain state dict, takes the flags of `evaluate.py` that do.

Of a stage 1 the file holds the last epoch's weights in half precision; of a stage 2 the classifier alone, in full
precision, and the name of the released stage-1 file in the same folder that has its backbone. Both hold the run's
configuration, so that `evaluate.py --pretrained_pth FILE` and `main_stage2.py --pretrained_pth FILE` need no other
flag. A file of more than `--part_mib` MiB is written in shards and still named as one (`runs.shards`). The card, FILE
with the ending .json, has the command, the data, the accuracy of the run, the accuracy `measured` with what is
published, and the sha256 of every shard.

A file that is called model.safetensors holds the whole network, of a stage 2 too, in the layout of Hugging Face's hub:
beside it lie config.json, the model card README.md and, of shards, model.safetensors.index.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from runs.checkpoint import CLASSIFIER, Checkpoint, load_backbone, with_backbone
from runs.shards import SHARD_MIB, card_of, describe_files, refuse_taken_name, write_safetensors
from stages.sources import Source, accuracy_of, describe_source, header_of, look_at, make_parser, open_source
from tools.publishing.model_folder import MODEL_FILE, refuse_taken_folder, write_model_folder
from utils.command import run_command
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.text import tell

Config = dict[str, Any]


def release_stage1(source: Source, file: Path, flags: Sequence[str] = (), part_mib: float = SHARD_MIB) -> list[Path]:
    """Write the weights of a stage 1 in half precision, and their card; return what was written.

    `flags` are those of `evaluate.py` by which the data are found.
    """
    refuse_taken_name(file)
    checkpoint = source.checkpoint
    state = {key: value.half() if value.is_floating_point() else value for key, value in checkpoint.state.items()}
    refuse_lost_numbers(state, source.path)
    header = header_of(source)
    measured = accuracy_of(look_at(Checkpoint(file, "", checkpoint.kind, state, {**header, "model": state}), flags))
    written = write_safetensors(file, state, header, part_mib)
    card = {**describe_files(file), "precision": "float16", "measured": measured, **describe_source(source)}
    write_json(card_of(file), card)
    return [*written, card_of(file)]


def release_classifier(
    source: Source, file: Path, backbone: Path, flags: Sequence[str] = (), part_mib: float = SHARD_MIB
) -> list[Path]:
    """Write the classifier of a stage 2, and its card; return what was written.

    `backbone` is the released stage 1, or the features, that it belongs to: see `refuse_other_backbone`.
    """
    refuse_taken_name(file)
    checkpoint = source.checkpoint
    base = load_backbone(backbone, checkpoint)
    refuse_other_backbone(source.path, checkpoint.config, file, base)
    state = {key: value.float() for key, value in checkpoint.state.items() if key.startswith(CLASSIFIER)}
    named = {"file": base.path.name, "sha256": base.sha256}
    header = header_of(source)
    header["config"] = {**checkpoint.config, "backbone": named}
    # What will be read back is measured before anything is written: the data may not be there.
    classifier = with_backbone(Checkpoint(file, "", checkpoint.kind, state, {**header, "model": state}))
    measured = accuracy_of(look_at(classifier, flags))
    written = write_safetensors(file, state, header, part_mib)
    described = {"precision": "float32", "backbone": named, "measured": measured, **describe_source(source)}
    write_json(card_of(file), {**describe_files(file), **described})
    return [*written, card_of(file)]


def release_model(source: Source, file: Path, flags: Sequence[str] = (), part_mib: float = SHARD_MIB) -> list[Path]:
    """Write the whole network of a run in the layout of the hub; return what was written, the card last.

    The backbone is in half precision, the classifier in full.
    """
    refuse_taken_folder(file)
    checkpoint = with_backbone(source.checkpoint)
    if checkpoint.features is not None or all(key.startswith(CLASSIFIER) for key in checkpoint.state):
        raise UserError(f"{source.path} is of features: it holds no network; name the file something else")
    state = {
        key: value.half() if value.is_floating_point() and not key.startswith(CLASSIFIER) else value
        for key, value in checkpoint.state.items()
    }
    refuse_lost_numbers(state, source.path)
    header = header_of(source)
    measured = accuracy_of(look_at(Checkpoint(file, "", checkpoint.kind, state, {**header, "model": state}), flags))
    written = write_safetensors(file, state, header, part_mib, uncut=True)
    described = {"precision": "float16, the classifier float32", "measured": measured, **describe_source(source)}
    card = {**describe_files(file), **described}
    written += write_model_folder(file, {key: value.nbytes for key, value in state.items()}, header, card)
    write_json(card_of(file), card)
    return [*written, card_of(file)]


def refuse_lost_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError where a number is not finite, as those that half precision cannot hold are."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{key} of {path} has numbers that half precision cannot hold")


def refuse_other_backbone(source: Path, config: Config, file: Path, base: Checkpoint) -> None:
    """Raise UserError unless `base` is the released stage 1 whose frozen backbone a stage-2 run used."""
    if config["settings"]["bn_mode"] != "eval":
        raise UserError(f"{source} moved the batch statistics of its backbone (--bn_mode train): it has no shared one")
    if base.path.parent.resolve() != file.parent.resolve():
        raise UserError(f"{base.path} must lie in the folder of {file}, where it will be looked for")
    if base.config.get("stage") != "stage1":
        raise UserError(f"{base.path} is no stage 1 that was written by this project")
    there, here = base.settings(), config["settings"]
    differing = [f"--{name}" for name in ("dataset", "network", "width") if there.get(name) != here.get(name)]
    if base.config.get("subset") != config["subset"]:
        differing.append("training subset")
    if differing:
        raise UserError(f"{base.path} is not the stage 1 of {source}: they differ in {', '.join(differing)}")
    # The run may have started from this file, from the run that the file was made from, from features of that run, or
    # from a classifier that was trained on this file of features.
    named = config.get("backbone", {})
    started = {config["stage1"]["sha256"], named.get("run_sha256"), named.get("sha256")}
    if not started & ({base.sha256, made_from(base)} - {None}):
        raise UserError(
            f"{base.path} is not the stage 1 of {source}: that one's sha256 is {config['stage1']['sha256'][:16]}..."
        )


def made_from(base: Checkpoint) -> str | None:
    """Return the sha256 of the run's checkpoint that a released file was made from, as its header or its card says."""
    assert base.content is not None
    if "run_sha256" in base.content:
        return base.content["run_sha256"]
    card = card_of(base.path)
    return read_json(card).get("run_sha256") if card.is_file() else None


def main(argv: Sequence[str] | None = None) -> None:
    """Release what the command line names."""
    parser = make_parser("release", __doc__, "[--backbone FILE] ")
    help_text = "of a stage 2: the released file of its stage 1"
    parser.add_argument("--backbone", type=Path, metavar="FILE", help=help_text)
    own, flags = parser.parse_known_args(argv)
    source = open_source(own.source, flags)
    if source.stage == "stage1" and own.backbone is not None:
        parser.error("--backbone is for a stage 2: a stage 1 has its own")
    if own.file.name == MODEL_FILE and own.backbone is not None:
        parser.error(f"--backbone is for a classifier alone: {MODEL_FILE} holds the whole network")
    if source.stage == "stage2" and own.backbone is None and own.file.name != MODEL_FILE:
        parser.error(
            f"{own.source} is of a stage 2, of which the classifier is released: name the file that has its stage 1 "
            "with --backbone"
        )
    if own.file.name == MODEL_FILE:
        written = release_model(source, own.file, flags, own.part_mib)
    elif source.stage == "stage1":
        written = release_stage1(source, own.file, flags, own.part_mib)
    else:
        written = release_classifier(source, own.file, own.backbone, flags, own.part_mib)
    tell(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    run_command(main)
