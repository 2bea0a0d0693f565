"""Classifiers of torchvision, by the names of `torchvision.models`, with the transforms of their weights."""

from functools import partial
from pathlib import Path

import torchvision
from PIL import Image
from torch import Tensor
from torchvision.models import WeightsEnum

from models.network import Network
from models.torchvision_networks import TorchvisionNetwork, build, find_classifier
from runs.checkpoint import load_checkpoint
from runs.pretrained_weights import load_pretrained
from tools.backbones.backbone import RANDOM, Backbone, cannot_load, described, unknown_name
from tools.backbones.modules import FeaturesOf
from utils.errors import UserError
from utils.text import tell

CLASSES = 1000  # of ImageNet's classifier, which is cut off


def load(name: str, weights: str | None, size: int | None = None) -> Backbone:
    """Load `NAME` or `NAME@WEIGHTS`, such as `resnet50@IMAGENET1K_V1`; without one, torchvision's best.

    `weights` is a file of anyone's weights for the network, or "none" for those of its initialisation. `size` is that
    of the crop, None for the weights' own; the resize before it follows. Raises UserError for what torchvision does not
    have, and weights that cannot be had or do not fit.
    """
    name, _, tag = name.partition("@")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("torchvision", name, known)
    published = torchvision.models.get_model_weights(name)
    tags = [one.name for one in published]
    if tag and tag not in tags:
        raise unknown_name(f"torchvision:{name}", tag, tags, "weights")
    chosen: WeightsEnum = published[tag] if tag else published.DEFAULT
    transforms = chosen.transforms()
    crop = transforms.crop_size[0]
    if size is not None:
        resize = None if transforms.resize_size is None else round(transforms.resize_size[0] * size / crop)
        transforms = chosen.transforms(crop_size=size, resize_size=resize)
    if weights is None:
        network, words = published_network(name, chosen, crop), f"torchvision's {chosen}"
    else:
        network, words = build(name, CLASSES), "random"
        if weights != RANDOM:
            words = weights
            load_file(network, weights)
    return Backbone(FeaturesOf(network), partial(prepare, transforms), words, described(transforms))


def prepare(transforms: torchvision.transforms._presets.ImageClassification, image: Image.Image) -> Tensor:
    """Return an image as the network's weights want it: (3, H, W)."""
    return transforms(image)


def published_network(name: str, weights: WeightsEnum, size: int) -> TorchvisionNetwork:
    """Return a network with weights that torchvision publishes, downloaded where they are not yet here."""
    spec = f"torchvision:{name}"
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except Exception as error:  # of a network, a disk, a hash
        raise cannot_load(spec, error, "download them elsewhere and name the file with --weights") from error
    classifier = find_classifier(network, size)
    if classifier is None:
        raise UserError(f"{spec}: its output comes from no linear layer, so it has no penultimate features")
    return TorchvisionNetwork(network, classifier)


def load_file(network: Network, weights: str) -> None:
    """Copy the backbone that a file holds, under any prefix, into a network, and say which."""
    try:
        checkpoint = load_checkpoint(Path(weights))
        report = load_pretrained(network, checkpoint.state)
    except UserError as error:
        raise UserError(f"--weights {weights}: {error}") from error
    tell(f"weights: {weights} ({checkpoint.kind}): {report.summary()}")
