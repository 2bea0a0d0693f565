"""The classic residual networks for 32-pixel images: three stages at widths 16, 32, 64, shortcuts without parameters.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 (option A shortcuts), with the
initialisation of He et al., "Delving Deep into Rectifiers", ICCV 2015. `resnet8`, one block a stage, is the same
network for images as small as 8 x 8. `resnet20b` to `resnet56b` project where the shape changes (option B), as many
released checkpoints do.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures import VARIANTS
from models.resnet import BasicBlock, ResNet, projection


class ZeroPadding(nn.Module):
    """The shortcut without parameters: keep every `stride`-th pixel, put zero channels before and after."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def zero_padding(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Return the parameter-free shortcut where the shape changes (option A of the paper)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return ZeroPadding(stride, out_channels - in_channels)


DEFAULT_WIDTH = 16


def build(name: str, num_classes: int, width: int) -> ResNet:
    """Build one of `VARIANTS`, 6n + 2 layers, with `width` channels in its first stage."""
    count, by_projection = VARIANTS[name]
    model = ResNet(BasicBlock, [count] * 3, num_classes, width, projection if by_projection else zero_padding)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model
