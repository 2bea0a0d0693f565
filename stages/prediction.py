"""Predictions for anyone's images: a finished run's network, the images it is shown, the rows of a CSV.

All that is needed stands in the checkpoint: the network, the names of the classes, what an image undergoes before the
network sees it, and the temperature that makes probabilities of logits (Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017).
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets import ON_DISK, cifar
from datasets.decoding.options import BEFORE_OPTIONS, FULL, ORIENTATIONS, DecodeOptions
from datasets.long_tail import Augmentation
from datasets.on_disk.listed_split import ListedSplit, pack, without_rows
from datasets.on_disk.paths import LONGEST
from datasets.on_disk.walk import IMAGE_EXTENSIONS, LeftOut, numbers_above, walk
from datasets.streamed import StreamedImages
from datasets.workers import PIECE, Reading, find_unreadable
from engine.epoch import predict_blocks
from engine.frozen_features import evaluated_backbone
from methods.plan import attach_head
from models import build_model
from models.network import Network
from runs.checkpoint import CLASSIFIER, Checkpoint, load_checkpoint, load_weights, with_backbone
from settings.places import no_images
from stages.exported_model import ExportedNetwork, is_exported, read_exported
from utils.device import Execution
from utils.errors import DivergedError, UserError
from utils.parameters import TEMPERATURES
from utils.text import shown, tell, utf8_text

# Checkpoints from before the images' constants were recorded: those of the data sets whose images have one size.
CIFAR_IMAGES = {
    "size": 32,
    "resize": 32,
    "mean": cifar.AUGMENTATION.mean,
    "std": cifar.AUGMENTATION.std,
    "mirror": cifar.AUGMENTATION.mirror,
}
BEFORE_RECORDED = {"cifar100": CIFAR_IMAGES, "cifar10": CIFAR_IMAGES}


@dataclass(frozen=True)
class Predictor:
    """What a checkpoint holds for predicting: the network, K class names, and what an image undergoes before it.

    `size` is the side in pixels of what the network sees, `resize` the shorter side before that crop; `options` are
    those by which the run made pixels of its files, None where it read none. Probabilities are softmax(logits /
    `temperature`); `source` says where that number is from, None where there is none.
    """

    model: Network
    class_names: list[str]
    size: int
    resize: int
    augmentation: Augmentation
    temperature: float = 1.0
    source: str | None = None
    options: DecodeOptions | None = None


def find_images(given: Sequence[str]) -> tuple[ListedSplit, LeftOut]:
    """Return the images that files and folders name, and what was left out of the folders.

    A folder is walked through with all folders in it: first its own files, then those of each folder, sorted by name.
    Files of other extensions, litter and everything hidden are left out, as in training (`datasets.on_disk.walk`); a
    file named itself is taken whatever it is called. The paths of the split are relative to the folder where one folder
    alone is given, else as they are given. Labels are 0. Raises UserError for what is not there, and where there is no
    image.
    """
    alone = len(given) == 1 and os.path.isdir(given[0])
    paths: list[str] = []
    left_out = LeftOut()
    for name in given:
        if os.path.isdir(name):
            inside = walk(Path(name), "", left_out, numbers_above(Path(name)))
            paths += inside if alone else [os.path.join(name, path) for path in inside]
        elif os.path.isfile(name):
            paths.append(name)
        else:
            raise no_images(name)
    if not paths:
        raise UserError(
            f"{', '.join(map(shown, given))}: no images in it ({left_out.total()} other entries); images are files "
            f"whose names end in {', '.join(IMAGE_EXTENSIONS)}"
        )
    longest = max(paths, key=len)
    if len(longest) > LONGEST:
        raise UserError(f"the path '{shown(longest)}' has more than {LONGEST} characters")
    return pack(Path(given[0] if alone else ""), list(map(os.fsencode, paths)), [0] * len(paths)), left_out


def leave_out_unreadable(
    split: ListedSplit, workers: int, limit: int, options: DecodeOptions
) -> tuple[ListedSplit, list[str]]:
    """Return a split without the images that cannot be read, and a line for each of these.

    Raises UserError where they are more than `limit`, and where no image is left.
    """
    bad = find_unreadable(split, workers, limit, options)
    if len(bad) > limit:
        raise UserError(f"more than --skip_bad {limit} images cannot be read, the last one: {bad[-1][1]}")
    if len(bad) == len(split):
        raise UserError(f"none of the images can be read, the first one: {bad[0][1]}")
    return without_rows(split, [row for row, _ in bad]), [reason for _, reason in bad]


def read_trained(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """Return the checkpoint of a run folder (its last one) or of a file, with its backbone.

    Raises UserError where there is none, and for one that holds no network of ours. An exported model is one.
    """
    if is_exported(path) and not os.path.isdir(path):
        return read_exported(path, trust_pickle)
    is_folder = os.path.isdir(path)  # unlike pathlib, it has no exceptions for names that cannot be
    file = path / "last.pth" if is_folder else path
    if is_folder and not file.exists():
        raise UserError(f"{path} holds no last.pth: name the folder of a run, as main_stage2.py prints it, or a file")
    checkpoint = load_checkpoint(file, trust_pickle)
    if checkpoint.content is None:
        raise UserError(
            f"{file} ({checkpoint.kind}) does not say what it was trained on; python -m tools.release {file} "
            "NEW.safetensors, with the flags of its data and network, makes a file that does"
        )
    recorded = checkpoint.config.get("images", {})
    if recorded is None or checkpoint.settings().get("features") is not None or checkpoint.features is not None:
        raise UserError(f"{file} was trained on features: it holds no network that could look at images")
    checkpoint = with_backbone(checkpoint)
    if checkpoint.features is not None or all(key.startswith(CLASSIFIER) for key in checkpoint.state):
        raise UserError(f"{file} is a classifier of features: it holds no network that could look at images")
    if is_folder and not (path / "metrics.json").exists():
        tell(f"warning: {path} is not finished: this is its epoch {checkpoint.epoch}", file=sys.stderr)
    elif words := checkpoint.unfinished:
        tell(f"warning: {words}", file=sys.stderr)
    return checkpoint


def make_predictor(checkpoint: Checkpoint, temperature: float | None = None) -> Predictor:
    """Return the network of a checkpoint with its weights, on the CPU, and all else that predicting needs.

    A `temperature` given takes the place of the checkpoint's own. Raises UserError where the checkpoint does not say
    enough, or contradicts itself.
    """
    number = checkpoint.config.get("num_class")
    if type(number) is not int or number < 1:
        raise UserError(f"{checkpoint.path} does not say how many classes it has: another version wrote it")
    size, resize, augmentation = image_constants(checkpoint)
    own, source = (temperature, "given") if temperature is not None else own_temperature(checkpoint)
    exported = is_exported(checkpoint.path) and not checkpoint.state
    if exported:  # the file normalises its images itself
        augmentation = replace(augmentation, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Predictor(
        ExportedNetwork(checkpoint.path) if exported else restore_network(checkpoint, number),
        names_of(checkpoint, number),
        size,
        resize,
        augmentation,
        1.0 if own is None else own,
        source,
        recorded_decoding(checkpoint),
    )


def names_of(checkpoint: Checkpoint, num_classes: int) -> list[str]:
    """Return the class names (K) of a checkpoint, the numbers of the labels for one that does not have them."""
    names = checkpoint.config.get("class_names")
    if names is None:
        return [str(label) for label in range(num_classes)]
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{checkpoint.path} is damaged: its class names are not one for each of {num_classes} classes")
    return [utf8_text(name) for name in names]


def image_constants(checkpoint: Checkpoint) -> tuple[int, int, Augmentation]:
    """Return what a checkpoint's images undergo: the side of the crop, the shorter side before it, the constants."""
    dataset = checkpoint.settings().get("dataset")
    images: Any = checkpoint.config.get("images") or BEFORE_RECORDED.get(str(dataset))
    if images is None:
        raise UserError(
            f"{checkpoint.path} does not say how the images of {dataset} were prepared: it was written before that was "
            "recorded; train it anew"
        )
    try:
        size, resize, mirror = images["size"], images["resize"], images["mirror"]
        constants: list[Any] = [tuple(map(float, images[name])) for name in ("mean", "std")]
        mean, std = constants
        sound = type(size) is type(resize) is int and 1 <= size <= 4096 and size <= resize <= 8192
        sound &= isinstance(mirror, bool) and len(mean) == len(std) == 3 and all(map(math.isfinite, mean + std))
        sound &= min(std) > 0
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{checkpoint.path} is damaged: what it says of its images cannot be")
    return size, resize, Augmentation(padding=0, mirror=mirror, mean=mean, std=std)


def recorded_decoding(checkpoint: Checkpoint) -> DecodeOptions | None:
    """Return the options by which a checkpoint's run made pixels of its files, None for images in memory.

    Options that it does not record were not there yet, or are what they were then (`recorded_options`).
    """
    if checkpoint.settings().get("dataset") not in ON_DISK:
        return None
    images: dict[str, Any] = checkpoint.config.get("images") or {}
    found = DecodeOptions(**{name: images.get(name, value) for name, value in vars(BEFORE_OPTIONS).items()})
    numbers = [(found.bits, 8, FULL), (found.max_pixels, 1, 10**10)]
    sound = all(value is None or (type(value) is int and low <= value <= high) for value, low, high in numbers)
    if found.orientation not in ORIENTATIONS or not sound:
        raise UserError(f"{checkpoint.path} is damaged: what it says of its images cannot be")
    return found


def own_temperature(checkpoint: Checkpoint) -> tuple[float | None, str | None]:
    """Return the temperature that a checkpoint holds and where it is from; None where it holds none."""
    assert checkpoint.content is not None
    temperature = checkpoint.content.get("temperature")
    if temperature is None:
        return None, None
    if not isinstance(temperature, int | float) or temperature not in TEMPERATURES:
        raise UserError(f"{checkpoint.path} is damaged: its temperature is {shown(str(temperature))}")
    source = checkpoint.content.get("temperature_source")
    origin = {"held-out images": "fitted on its held-out images", "given": "given when it was trained"}
    return float(temperature), f"the checkpoint's, {origin.get(str(source), 'stored')}"


def restore_network(checkpoint: Checkpoint, num_classes: int) -> Network:
    """Return the network of a checkpoint with its weights and its method's kind of classifier, for evaluation."""
    trained, method = checkpoint.settings(), checkpoint.config.get("method")
    name, stem, width = trained.get("network"), trained.get("stem", "cifar"), trained.get("width")
    if not isinstance(name, str) or not isinstance(stem, str) or not (width is None or type(width) is int):
        raise UserError(f"{checkpoint.path} does not say which network it is: another version wrote it")
    model = build_model(name, num_classes, stem, width)
    if method:
        attach_head(model, str(method), checkpoint.state)
    load_weights(model, checkpoint)
    model.eval()
    return model


def open_images(predictor: Predictor, split: ListedSplit, execution: Execution, reading: Reading) -> StreamedImages:
    """Return the images as the network sees them; a few are read without worker processes."""
    return StreamedImages(
        split,
        predictor.augmentation,
        execution.device,
        size=predictor.size,
        resize=predictor.resize,
        reading=replace(reading, workers=min(reading.workers, len(split) // (2 * PIECE))),
    )


def logit_blocks(
    model: Network, images: StreamedImages, execution: Execution, flip: bool = False, batch_size: int | None = None
) -> Iterator[Tensor]:
    """Yield the logits (B, K) float32 of consecutive images, with `flip` averaged with those of the mirrored image.

    Each file is decoded once. The classifier runs in full precision whatever the network runs in: rounded to bf16,
    logits tie. Raises DivergedError for logits that are not finite.
    """

    backbone = evaluated_backbone(model, execution)

    def features(pixels: Tensor) -> Tensor:
        plain = backbone(pixels)
        return torch.stack([plain, backbone(pixels.flip(3))], dim=1) if flip else plain[:, None]

    blocks = predict_blocks(features, images, execution, batch_size=batch_size)
    for block in blocks:
        with torch.no_grad():
            logits = model.fc(block.flatten(0, 1)).unflatten(0, block.shape[:2]).mean(dim=1)
        if not bool(logits.isfinite().all()):
            raise DivergedError("the network's logits are not finite: its weights are damaged or diverged")
        yield logits
