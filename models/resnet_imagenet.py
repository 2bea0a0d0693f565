"""The residual networks for 224-pixel images: torchvision's, with its layers, initialisation and names.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; ResNeXt: Xie et al., "Aggregated Residual
Transformations for Deep Neural Networks", CVPR 2017; wide: Zagoruyko and Komodakis, BMVC 2016. `resnet10`, one basic
block a stage, is the network that the long-tailed literature trains on ImageNet-LT (Liu et al., CVPR 2019).
"""

from torch import Tensor
from torchvision.models import ResNet as TorchvisionResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.architectures import LAYERS
from models.network import Network

# What stands before the classifier, in the order of the forward pass.
BACKBONE = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")


class ImageNetResNet(Network, TorchvisionResNet):
    """torchvision's network with its pooled features apart; state dicts of either fit the other."""

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to pooled features (B, d), the input of `fc`."""
        x = images
        for name in BACKBONE:
            x = self.get_submodule(name)(x)
        return x.flatten(1)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


def build(name: str, num_classes: int) -> ImageNetResNet:
    """Build one of `LAYERS`."""
    block, layers, groups, width_per_group = LAYERS[name]
    return ImageNetResNet(BLOCKS[block], layers, num_classes, groups=groups, width_per_group=width_per_group)
