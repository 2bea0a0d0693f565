"""Batch norm folded into convolutions: the features are the same but for rounding, the network stays as it was."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed.folding import with_statistics
from models import build_model
from models.batch_norm.folded import folded_features
from models.given_features import GivenFeatures
from models.network import Network

NETWORKS = [
    ("resnet8", "cifar", 4, 8),
    ("resnet20b", "cifar", 4, 16),
    ("resnet50", "cifar", 4, 16),
    ("resnet10", "imagenet", None, 64),
    ("mobilenet_v2", "imagenet", None, 64),
    ("densenet121", "imagenet", None, 64),  # normalises what many layers read: there it stays
    ("efficientnet_b0", "imagenet", None, 64),
    ("googlenet", "imagenet", None, 64),
    ("vgg11", "imagenet", None, 64),  # has none
]


def trained(name: str, stem: str, width: int | None) -> Network:
    """A network whose batch norms have seen images of other means and spreads than they start with."""
    torch.manual_seed(0)
    model = build_model(name, 5, stem, width)
    with_statistics(model)
    return model.eval()


def norms_left(function: object) -> int:
    assert isinstance(function, nn.Module)
    return sum(
        node.op == "call_module" and "BatchNorm" in type(function.get_submodule(str(node.target))).__name__
        for node in function.graph.nodes
    )  # type: ignore[attr-defined, union-attr]


@pytest.mark.parametrize(("name", "stem", "width", "size"), NETWORKS)
def test_features_are_the_same_but_for_rounding(name: str, stem: str, width: int | None, size: int) -> None:
    model = trained(name, stem, width)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.features(images)
        found = folded_features(model)(images)
        again = model.features(images)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max()) and float(expected.std()) > 0
    assert torch.equal(again, expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet8", "resnet20b", "resnet50"])
def test_no_batch_norm_is_left_behind_a_convolution(name: str) -> None:
    model = trained(name, "cifar", 4)
    assert norms_left(folded_features(model)) == 0
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


class Twice(Network):
    """A convolution that is called twice and normalised once, and one whose output is read beside the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)

    def features(self, images: Tensor) -> Tensor:
        x = self.first(self.norm(self.first(images)))
        y = self.second(x)
        return (y + self.other(y)).mean(dim=(2, 3))


class Asking(Twice):
    """A network whose path depends on the numbers in its images."""

    def features(self, images: Tensor) -> Tensor:
        return super().features(images) if images.sum() > 0 else super().features(-images)


@pytest.mark.parametrize("kind", [Twice, Asking])
def test_what_cannot_be_folded_stays(kind: type[Twice]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    for norm in (model.norm, model.other):
        assert norm.running_var is not None
        norm.running_var.fill_(3)
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(folded_features(model)(images), model.features(images))
    given = GivenFeatures(3, 2)
    assert folded_features(given)(images[:, :, 0, 0]) is not None
    assert torch.equal(folded_features(given)(images), images)
