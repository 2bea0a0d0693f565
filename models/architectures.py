"""The networks of this project by name, as plain numbers: what a command line is checked against needs no PyTorch.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; ResNeXt: Xie et al., CVPR 2017; wide: Zagoruyko
and Komodakis, BMVC 2016. `models.resnet`, `models.resnet_cifar` and `models.resnet_imagenet` build them.
"""

from typing import Literal

BlockName = Literal["basic", "bottleneck"]

BLOCKS_PER_STAGE = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}
# Of each classic network for 32-pixel images the blocks a stage, and whether its shortcuts are projections (option B).
VARIANTS = {name: (count, False) for name, count in BLOCKS_PER_STAGE.items()} | {
    f"{name}b": (count, True) for name, count in BLOCKS_PER_STAGE.items() if count > 1
}
# Of each network with four stages the block, and the blocks a stage.
DEPTHS: dict[str, tuple[BlockName, list[int]]] = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
}
# Of those for 224-pixel images also the groups of the 3x3 convolutions, their channels a group where the stage has 64.
LAYERS: dict[str, tuple[BlockName, list[int], int, int]] = {
    "resnet10": ("basic", [1, 1, 1, 1], 1, 64),
    **{name: (block, layers, 1, 64) for name, (block, layers) in DEPTHS.items()},
    "resnext50_32x4d": ("bottleneck", [3, 4, 6, 3], 32, 4),
    "resnext101_32x8d": ("bottleneck", [3, 4, 23, 3], 32, 8),
    "resnext101_64x4d": ("bottleneck", [3, 4, 23, 3], 64, 4),
    "wide_resnet50_2": ("bottleneck", [3, 4, 6, 3], 1, 128),
    "wide_resnet101_2": ("bottleneck", [3, 4, 23, 3], 1, 128),
}
