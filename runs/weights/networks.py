"""Which network's weights a file has, read off the names and shapes of its tensors."""

import re
from collections.abc import Mapping

from torch import Tensor

from models import network_names, resnet, resnet_cifar
from models.architectures import DEPTHS, LAYERS, VARIANTS
from runs.state_dict_adapter import SHOWN, rename
from runs.weights.containers import sees_colours

# By a part of their tensors' names, families of torchvision beside the residual networks.
FAMILIES = {
    "denseblock": "densenet",
    "block.0.0.weight": "mobilenet",
    "encoder.layers.encoder_layer_": "vit",
    "trunk_output.": "regnet",
    "branch2.": "shufflenet",
    "inception3a.": "googlenet",
    "Mixed_5b.": "inception",
    "fire": "squeezenet",
}
State = Mapping[str, Tensor]


def networks_that_fit(state: State) -> list[str]:
    """Return the flags of the networks here that a state dict is of, under whatever prefix; perhaps none.

    A residual network is told by its blocks, its stem and its widths; of others the family is told.
    """
    first = (key for key, tensor in state.items() if f".{key}".endswith(".conv1.weight") and sees_colours(key, tensor))
    prefix = next(first, "").removesuffix("conv1.weight")
    keys = [key for key in state if key.startswith(prefix)]
    names, _ = rename([key.removeprefix(prefix) for key in keys])
    shapes = {name: tuple(state[key].shape) for name, key in zip(names, keys, strict=True)}
    if len(shapes.get("conv1.weight", ())) == 4 and "layer1.0.conv1.weight" in shapes:
        return residual(shapes)
    families = [family for mark, family in FAMILIES.items() if any(mark in key for key in state)]
    if len(families) != 1:
        return []
    members = [name for name in network_names("imagenet") if name.startswith(families[0])]
    return [f"--network {name} --stem imagenet" for name in members[:SHOWN]]


def residual(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the flags of the residual network whose tensors have these shapes, in a list; perhaps none."""
    width, _, side, _ = shapes["conv1.weight"]
    blocks = blocks_per_stage(shapes)
    bottleneck = "layer1.0.conv3.weight" in shapes
    if blocks is None:
        return []
    if side == 7:
        inner, per_group = shapes.get("layer1.0.conv2.weight", (0, 0))[:2]
        found = [
            name
            for name, (block, layers, groups, group_width) in LAYERS.items()
            if layers == blocks and (block == "bottleneck") == bottleneck and width == 64
            if not bottleneck or (inner, per_group) == (groups * group_width, group_width)
        ]
        return [f"--network {name} --stem imagenet" for name in found]
    if side != 3:
        return []
    projected = any(".downsample." in name for name in shapes)
    found = [
        name for name, (block, layers) in DEPTHS.items() if layers == blocks and (block == "bottleneck") == bottleneck
    ]
    usual = resnet.DEFAULT_WIDTH
    if not found:
        usual = resnet_cifar.DEFAULT_WIDTH
        found = [
            name
            for name, (count, by_projection) in VARIANTS.items()
            if [count] * 3 == blocks and by_projection == projected and not bottleneck
        ]
    own_width = "" if width == usual else f" --width {width}"
    return [f"--network {name} --stem cifar{own_width}" for name in found]


def blocks_per_stage(shapes: Mapping[str, tuple[int, ...]]) -> list[int] | None:
    """Return how many blocks `layer1`, `layer2`, ... have; None where a number is left out."""
    stages: dict[int, set[int]] = {}
    for name in shapes:
        match = re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", name)
        if match:
            stages.setdefault(int(match[1]), set()).add(int(match[2]))
    whole = all(blocks == set(range(len(blocks))) for blocks in stages.values())
    return [len(stages[i]) for i in sorted(stages)] if whole and set(stages) == set(range(1, len(stages) + 1)) else None
