"""The classic residual networks for 32-pixel images: three stages at widths 16, 32, 64, shortcuts without parameters.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 (option A shortcuts), with the
initialisation of He et al., "Delving Deep into Rectifiers", ICCV 2015. `resnet8`, one block a stage, is the same
network for images as small as 8 x 8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.resnet import conv3x3


class PlainShortcutBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut drops every second pixel and pads the new channels with zeros."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - in_channels

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ClassicResNet(nn.Module):
    """6n + 2 layers: stem, three stages of n blocks at widths w, 2w, 4w, global average pooling, classifier `fc`."""

    def __init__(self, blocks_per_stage: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        channels, stages = width, []
        for stage in range(3):
            blocks = []
            for i in range(blocks_per_stage):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(PlainShortcutBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to pooled features (B, d), the input of `fc`."""
        x = torch.relu(self.bn1(self.conv1(images)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, K)."""
        return self.fc(self.features(images))


BLOCKS_PER_STAGE = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}
DEFAULT_WIDTH = 16


def build(name: str, num_classes: int, width: int) -> ClassicResNet:
    """Build one of `BLOCKS_PER_STAGE` with `width` channels in its first stage."""
    return ClassicResNet(BLOCKS_PER_STAGE[name], num_classes, width)
