"""Backbones in files: a run or a released file of this project, or a Python file that makes any network at all."""

import inspect
import runpy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from datasets.augment.crops import centre_crop
from stages.prediction import Predictor, make_predictor, read_trained
from tools.backbones.backbone import Backbone, described
from tools.backbones.modules import FeaturesOf
from utils.errors import UserError
from utils.files import sha256_file

FUNCTION, SIZE = "load", "image_size"


def load(path: Path, weights: str | None, size: int | None = None) -> Backbone:
    """Load the network of a file or of a run folder.

    A `.py` file has a function `load()`, which returns the network, of images (B, 3, H, W) to features (B, d), and the
    preprocessing, of an image of PIL to a tensor (3, H, W). Its code is run. Of a run the crop and the constants are
    those that it was trained with; `size` is another crop, and a file's `load` is given it as `image_size`. Raises
    UserError for a file that is missing, or is neither.
    """
    if weights is not None:
        raise UserError("--weights is for a network that --backbone names; a file brings its own weights")
    if path.suffix == ".py":
        return of_python(path, size)
    try:
        checkpoint = read_trained(path)
    except UserError as error:
        advice = "; of a state dict alone, give --backbone torchvision:NAME --weights FILE, or timm:NAME"
        raise UserError(f"{error}{advice if 'does not say' in str(error) else ''}") from error
    predictor = make_predictor(checkpoint)
    if size is not None:
        predictor = replace(predictor, size=size, resize=round(predictor.resize * size / predictor.size))
    constants = f"mean {predictor.augmentation.mean}, std {predictor.augmentation.std}"
    words = f"shorter side {predictor.resize}, centre crop {predictor.size}, {constants}"
    weights = f"{path} ({checkpoint.sha256})"
    return Backbone(FeaturesOf(predictor.model), preparation(predictor), weights, words)


def preparation(predictor: Predictor) -> Callable[[Image.Image], Tensor]:
    """Return the preprocessing of a run: from an image of PIL (RGB) to a tensor (3, size, size)."""
    constants = (predictor.augmentation.mean, predictor.augmentation.std)
    return partial(prepare_as_trained, predictor.size, predictor.resize, *constants)


def of_python(path: Path, size: int | None) -> Backbone:
    """Return what the function `load` of a Python file makes, of images of `size` pixels where one is given."""
    if not path.is_file():
        raise UserError(f"--backbone {path}: there is no such file")
    found = runpy.run_path(str(path)).get(FUNCTION)
    if not callable(found):
        raise UserError(
            f"--backbone {path}: it has no function {FUNCTION}(), which returns a network and its transform"
        )
    if size is not None and SIZE not in inspect.signature(found).parameters:
        raise UserError(f"--image_size {size} has no use with {path}: its {FUNCTION}() takes no {SIZE}")
    made = found() if size is None else found(**{SIZE: size})
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module) or not callable(made[1]):
        raise UserError(
            f"--backbone {path}: {FUNCTION}() must return (network, transform), a torch module and a function"
        )
    network, prepare = made
    return Backbone(network, prepare, str(path), f"{described(prepare)} of {path.name} ({sha256_file(path)[:16]})")


def prepare_as_trained(
    size: int,
    resize: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    image: Image.Image,
) -> Tensor:
    """Return the centre crop (3, size, size) of an image, normalised as in a run's own evaluation."""
    pixels = centre_crop(torch.from_numpy(np.array(image)).permute(2, 0, 1), size, resize).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
