"""Backbones, one file a family, and the one function that builds them.

Every network here has `features(images) -> (B, d)`, a linear classifier `fc` and `forward = fc(features)`.
"""

from models import resnet, resnet_cifar
from models.resnet import ResNet
from utils.errors import UserError

NETWORKS = [*resnet_cifar.BLOCKS_PER_STAGE, *resnet.DEPTHS]
STEMS = ["cifar"]


def build_model(name: str, num_classes: int, stem: str = "cifar", width: int | None = None) -> ResNet:
    """Build the network `name` for `num_classes` classes.

    `stem` "cifar" is a 3x3 convolution of stride 1. `width` is the number of channels of the first stage and scales all
    the others with it; None is the family's own (64 for resnet18 to resnet152, 16 for resnet8 to resnet56).
    Raises UserError for a name or a stem that is not known, and for sizes below 1.
    """
    if name not in NETWORKS:
        raise UserError(f"unknown network '{name}'; known: {', '.join(NETWORKS)}")
    if stem not in STEMS:
        raise UserError(f"unknown stem '{stem}'; known: {', '.join(STEMS)}")
    if num_classes < 1 or (width is not None and width < 1):
        raise UserError(f"a network needs at least one class and one channel, not {num_classes} and {width}")
    family = resnet if name in resnet.DEPTHS else resnet_cifar
    return family.build(name, num_classes, family.DEFAULT_WIDTH if width is None else width)
