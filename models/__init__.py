"""Backbones, one file a family, and the one function that builds them.

Every network here is a `models.network.Network`: it has `features(images) -> (B, d)`, a linear classifier `fc` and
`forward = fc(features)`.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from models.architectures import DEPTHS, LAYERS, VARIANTS
from utils.errors import UserError

if TYPE_CHECKING:
    from models.network import Network

NETWORKS = [*VARIANTS, *DEPTHS]  # those of the stem "cifar"
STEMS = ["cifar", "imagenet"]
REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)  # a classifier of torchvision
LISTED = 20  # longer lists of names are no help in an error


def build_model(name: str, num_classes: int, stem: str = "cifar", width: int | None = None) -> Network:
    """Build the network `name` for `num_classes` classes.

    `stem` "cifar" is a 3x3 convolution of stride 1. `width` is the number of channels of the first stage and scales all
    the others with it; None is the family's own (64 for resnet18 to resnet152, 16 for resnet8 to resnet56 and those
    with a b).

    `stem` "imagenet" is the architecture for 224-pixel images: `resnet10` or any classifier of torchvision, with the
    initialisation that torchvision gives it and without weights.

    Raises UserError for a name or a stem that is not known, for sizes below 1, for a width where there is none to
    choose, and for an architecture whose output comes from no linear layer.
    """
    check_network(name, stem)
    if num_classes < 1 or (width is not None and width < 1):
        raise UserError(f"a network needs at least one class and one channel, not {num_classes} and {width}")
    from models import resnet, resnet_cifar  # PyTorch: what only checks names does without

    if stem == "imagenet":
        if width is not None:
            raise UserError(f"the networks of the imagenet stem have one width: leave out --width {width}")
        from models import resnet_imagenet, torchvision_networks  # torchvision

        if name in LAYERS:
            return resnet_imagenet.build(name, num_classes)
        return torchvision_networks.build(name, num_classes)
    family = resnet if name in DEPTHS else resnet_cifar
    return family.build(name, num_classes, family.DEFAULT_WIDTH if width is None else width)


def network_names(stem: str) -> list[str]:
    """Return the names of the networks that a stem has. Raises UserError for an unknown stem."""
    if stem not in STEMS:
        raise UserError(f"unknown stem '{stem}'; known: {', '.join(STEMS)}")
    if stem == "cifar":
        return list(NETWORKS)
    return [*LAYERS, *(name for name in torchvision_names() if name not in LAYERS)]


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers, sorted, as its `list_models` does.

    They are read off the text of its files, since importing it takes longer than PyTorch does; where no name stands
    there any more, it is imported and asked.
    """
    spec = importlib.util.find_spec("torchvision")
    folders = [Path(folder, "models") for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in folder.glob("*.py")]
    names = {name for file in files for name in REGISTERED.findall(file.read_text(encoding="utf-8"))}
    if not names:
        import torchvision

        names = set(torchvision.models.list_models(module=torchvision.models))
    return sorted(names)


def check_network(name: str, stem: str) -> None:
    """Raise UserError unless the stem has a network of that name; names that are close to it are listed."""
    known = network_names(stem)
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=5)
    likely = f"; close to it: {', '.join(close)}" if close else ""
    elsewhere = [other for other in STEMS if other != stem and name in network_names(other)]
    belongs = f"; the {elsewhere[0]} stem has it" if elsewhere else ""
    all_names = f"; known: {', '.join(known)}"
    if len(known) > LISTED:
        all_names = f"; known: {', '.join(LAYERS)} and torchvision's other classifiers by their names"
    raise UserError(f"unknown --network '{name}' for the {stem} stem{belongs}{likely}{all_names}")
