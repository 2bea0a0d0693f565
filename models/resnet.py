"""The residual networks of the released code: ImageNet's widths behind a stem for 32-pixel images.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with a 3x3 stem of stride 1 and no max-pooling.
Layers keep PyTorch's default initialisation, as released. Names and order of the parameters are torchvision's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures import DEPTHS
from models.network import Network

# Makes the shortcut of a block from (in_channels, out_channels, stride); None where the identity will do.
Shortcut = Callable[[int, int, int], nn.Module | None]
NARROW = 16  # numbers in the longest vector of today's processors, float32


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Return a 1x1 convolution with batch norm where the shape changes (option B of the paper)."""
    if stride == 1 and in_channels == out_channels:
        return None
    kind = NarrowProjection if in_channels < NARROW else nn.Conv2d
    conv = kind(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class NarrowProjection(nn.Conv2d):
    """A strided 1x1 convolution in two steps: keep every `stride`-th pixel, then mix the channels.

    Where channels are few, the gradient of PyTorch's own form has ended processes on CPUs (2.14.1).
    """

    def forward(self, x: Tensor) -> Tensor:
        down, right = self.stride
        return F.conv2d(x[:, :, ::down, ::right], self.weight, self.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in, H, W) -> (B, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1: (B, in, H, W) -> (B, 4 * width, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + identity)


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(Network):
    """Stem, stages `layer1`, `layer2`, ... at widths w, 2w, ..., global average pooling, linear classifier `fc`."""

    def __init__(
        self, block: Block, depths: list[int], num_classes: int, width: int, shortcut: Shortcut = projection
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = [f"layer{stage + 1}" for stage in range(len(depths))]
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride, shortcut))
                channels = width * 2**stage * block.expansion
            self.add_module(self.stages[stage], nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to pooled features (B, d), the input of `fc`."""
        x = torch.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x.mean(dim=(2, 3))


BLOCKS: dict[str, Block] = {"basic": BasicBlock, "bottleneck": Bottleneck}
DEFAULT_WIDTH = 64


def build(name: str, num_classes: int, width: int) -> ResNet:
    """Build one of `DEPTHS` with `width` channels in its first stage."""
    block, depths = DEPTHS[name]
    return ResNet(BLOCKS[block], depths, num_classes, width)
