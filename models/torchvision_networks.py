"""Any classifier of torchvision as a network of this project, its classifier found by what it does."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.network import Network
from utils.errors import UserError

# The size that torchvision's architectures have where no weights are asked for.
IMAGE_SIZE = 224

# Without auxiliary classifiers, which would make the output of a training step a tuple. `transform_input` re-normalises
# images from ImageNet's statistics to a mean and deviation of 0.5, as torchvision's own weights for the two want it.
# `init_weights` is torchvision's present default, said aloud because it warns otherwise.
INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": True}
OPTIONS: dict[str, dict[str, Any]] = {"googlenet": INCEPTION, "inception_v3": INCEPTION}


class TorchvisionNetwork(Network):
    """`backbone` is torchvision's network with nothing in the place of its classifier, which is `fc`."""

    def __init__(self, network: nn.Module, classifier: str) -> None:
        """Take `network` apart at its linear layer of the name `classifier`; it is changed in place."""
        super().__init__()
        fc = network.get_submodule(classifier)
        assert isinstance(fc, nn.Linear)
        parent, _, child = classifier.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
        self.torchvision_classifier = classifier
        self.backbone = network
        self.fc = fc

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to features (B, d), the input of `fc`."""
        return self.backbone(images)

    def torchvision_names(self) -> dict[str, str]:
        """Return the name that torchvision gives each tensor of the state dict, by its name here, in its order."""
        classifier = f"{self.torchvision_classifier}."
        return {
            key: classifier + key.removeprefix("fc.") if key.startswith("fc.") else key.removeprefix("backbone.")
            for key in self.state_dict()
        }


def build(name: str, num_classes: int) -> TorchvisionNetwork:
    """Build torchvision's classifier `name` without weights. Raises UserError where its last layer is not linear."""
    import torchvision

    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **OPTIONS.get(name, {}))
    classifier = find_classifier(network)
    if classifier is None:
        raise UserError(
            f"the output of torchvision's {name} comes from no linear layer, so it has no classifier to re-train; "
            "take another network"
        )
    return TorchvisionNetwork(network, classifier)


def find_classifier(network: nn.Module, image_size: int = IMAGE_SIZE) -> str | None:
    """Return the name of the linear layer whose output (B, K) is the network's own, None where there is no such layer.

    One pass in eval mode without any arithmetic tells; the network is left in train mode.
    """
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    logits = forward_shapes(network.eval(), image_size)
    network.train()
    for hook in hooks:
        hook.remove()
    return next((name for name, output in outputs.items() if output is logits and output.ndim == 2), None)


def forward_shapes(network: nn.Module, image_size: int) -> Any:
    """Return what `network` makes of one square image, as tensors of the meta device: shapes without values.

    The network's own tensors stay where they are, which costs no memory even for the largest.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    with torch.no_grad():
        return functional_call(network, shapes, (image,))


def check_single_image(network: Network, image_size: int) -> None:
    """Raise UserError where `network` cannot be trained on one square image of `image_size` pixels alone.

    Batch norm has nothing to normalise where a map is one pixel of one image. To be called as `check_image_size` is.
    """
    training = [(module, module.training) for module in network.modules()]
    try:
        forward_shapes(network.train(), image_size)
    except ValueError as error:
        raise UserError(
            f"the last batch of an epoch is one image, whose maps shrink to one pixel at {image_size} x {image_size} "
            "pixels: batch norm cannot normalise it; take another --batch_size or --image_size (stage 1: --drop_last)"
        ) from error
    finally:
        for module, mode in training:
            module.training = mode


def check_image_size(network: Network, image_size: int) -> None:
    """Raise UserError where `network` takes no square images of `image_size` pixels a side.

    A vision transformer takes the one size it was built for; convolutions take all that leave a pixel at their end.
    To be called before the network's backbone is compiled.
    """
    training = [(module, module.training) for module in network.modules()]
    try:
        forward_shapes(network.eval(), image_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the network takes no images of {image_size} x {image_size} pixels: {reason}") from error
    finally:
        for module, mode in training:
            module.training = mode
