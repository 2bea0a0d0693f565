"""What everything outside this folder may rely on in a network."""

from torch import Tensor, nn


class Network(nn.Module):
    """A backbone `features`, a linear classifier `fc`, and `forward`, the one after the other.

    `fc` can be replaced by any head of `models.heads`. `torchvision_classifier` is the classifier's name in the network
    of torchvision that this one stands for.
    """

    fc: nn.Linear
    torchvision_classifier: str = "fc"

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to features (B, d), the input of `fc`."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, K)."""
        return self.fc(self.features(images))

    def torchvision_names(self) -> dict[str, str]:
        """Return the name that torchvision gives each tensor of the state dict, by its name here, in its order."""
        return {key: key for key in self.state_dict()}
