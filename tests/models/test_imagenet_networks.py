"""Networks for 224-pixel images: torchvision's keys and outputs, whatever the classifier is called there."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from models import NETWORKS, STEMS, build_model, check_network, network_names
from models.given_features import GivenFeatures
from models.heads import build_head
from models.network import Network
from models.resnet_imagenet import LAYERS
from models.torchvision_networks import TorchvisionNetwork, check_image_size, find_classifier
from utils.errors import UserError

CLASSES = 7
# Where torchvision's classifier is, and a size that the architecture takes at least.
SMALL = {
    "resnet10": ("fc", 32),
    "resnet18": ("fc", 32),
    "resnext50_32x4d": ("fc", 32),
    "mobilenet_v3_small": ("classifier.3", 32),
    "efficientnet_b0": ("classifier.1", 32),
    "convnext_tiny": ("classifier.2", 32),
    "swin_t": ("head", 32),
    "densenet121": ("classifier", 32),
    "regnet_y_400mf": ("fc", 32),
    "googlenet": ("fc", 32),
}
LARGE = {"vit_b_16": "heads.head", "vgg11": "classifier.6", "maxvit_t": "classifier.5", "inception_v3": "fc"}


def twin(name: str) -> nn.Module:
    """torchvision's own network, in eval mode."""
    if name == "resnet10":
        return torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES).eval()
    options = {"aux_logits": False, "transform_input": True, "init_weights": True} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options).eval()


def randomise(model: nn.Module) -> None:
    """Give every tensor, the running statistics among them, values that a wrong layer would show.

    Weights of He's size carry the images to the output, where torchvision's own may leave nothing but the biases.
    """
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif tensor.ndim > 1 and tensor.is_floating_point():
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)


@pytest.mark.parametrize("name", SMALL)
def test_computes_what_torchvisions_network_computes(name: str) -> None:
    classifier, size = SMALL[name]
    theirs, ours = twin(name), build_model(name, CLASSES, "imagenet").eval()
    randomise(theirs)
    state = theirs.state_dict()
    assert ours.torchvision_classifier == classifier
    assert set(ours.torchvision_names().values()) == set(state)
    ours.load_state_dict({key: state[name] for key, name in ours.torchvision_names().items()})
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, logits = ours.features(images), ours(images)
        assert features.shape == (2, ours.fc.in_features)
        torch.testing.assert_close(logits, theirs(images))
        torch.testing.assert_close(logits, nn.functional.linear(features, ours.fc.weight, ours.fc.bias))
        assert logits.shape == (2, CLASSES)
        assert (logits[0] - logits[1]).abs().max() > 0.001 * logits.abs().max()


@pytest.mark.parametrize("name", LARGE)
def test_classifiers_of_large_networks(name: str) -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_model(name, CLASSES, "imagenet")
    assert model.torchvision_classifier == LARGE[name]
    assert model.fc.out_features == CLASSES
    size = 299 if name == "inception_v3" else 224
    images = torch.empty(2, 3, size, size, device="meta")
    # In train mode too: no auxiliary output may join the logits.
    assert model.training and model(images).shape == (2, CLASSES)
    assert model.features(images).shape == (2, model.fc.in_features)


def test_resnet50_is_torchvisions() -> None:
    with torch.device("meta"):
        ours, theirs = build_model("resnet50", 1000, "imagenet"), torchvision.models.resnet50()
    assert sum(parameter.numel() for parameter in ours.parameters()) == 25_557_032
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", LAYERS)
def test_residual_keys_and_shapes_are_torchvisions_in_order(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_model(name, CLASSES, "imagenet"), twin(name)
    expected = [(key, tuple(tensor.shape)) for key, tensor in theirs.state_dict().items()]
    assert [(key, tuple(tensor.shape)) for key, tensor in ours.state_dict().items()] == expected
    # Groups change no name, and strides no shape: the layers themselves must agree.
    assert [str(module) for module in ours.modules() if not list(module.children())] == [
        str(module) for module in theirs.modules() if not list(module.children())
    ]
    assert list(ours.torchvision_names().items()) == [(key, key) for key, _ in expected]


def test_initialisation_is_torchvisions() -> None:
    for name in ("resnet10", "mobilenet_v3_small"):
        torch.manual_seed(3)
        theirs = twin(name).state_dict()
        torch.manual_seed(3)
        ours = build_model(name, CLASSES, "imagenet")
        for key, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs[ours.torchvision_names()[key]]), key


@pytest.mark.parametrize("name", ["resnet10", "mobilenet_v3_small"])
def test_copies_states_and_heads(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, CLASSES, "imagenet").eval()
    randomise(model)  # without it nearly all of the larger one's output is the classifier's bias
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(images)
        copied = copy.deepcopy(model)
        another = build_model(name, CLASSES, "imagenet").eval()
        assert not torch.equal(another(images), logits)
        another.load_state_dict(model.state_dict())
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(images), logits) and torch.equal(another(images), logits)
        another.fc = build_head("cosine", another.fc)
        assert [key for key in another.state_dict() if key.startswith("fc.")] == ["fc.weight", "fc.bias", "fc.scale"]
        features, rows = another.features(images).double(), another.fc.weight.double()
        cosines = (features @ rows.T) / features.norm(dim=1)[:, None] / rows.norm(dim=1)
        torch.testing.assert_close(another(images), (10 * cosines).float(), rtol=1e-4, atol=1e-5)
        placed = copied.to(memory_format=torch.channels_last)
        torch.testing.assert_close(placed(images), logits, rtol=1e-4, atol=1e-5)
        # As the backbone is compiled: an attribute of the instance takes the place of the method.
        method = copied.features
        copied.features = lambda images: 2 * method(images)
        torch.testing.assert_close(copied(images), copied.fc(2 * method(images)), rtol=1e-4, atol=1e-5)


def test_every_network_is_a_network() -> None:
    models = [build_model("resnet8", 3, width=2), build_model("resnet10", 3, "imagenet"), GivenFeatures(4, 3)]
    assert all(isinstance(model, Network) and isinstance(model.fc, nn.Linear) for model in models)
    assert all(model.torchvision_classifier == "fc" for model in models)
    with pytest.raises(NotImplementedError):
        Network().features(torch.zeros(1))


# The classifier


class Odd(nn.Module):
    """A network of torchvision's manners whose classifier stands first and is named like nothing else."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.wherever = nn.ModuleDict({"it_is": nn.Linear(4, CLASSES)})
        self.fc = nn.Linear(3, 4)
        self.last = last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.wherever["it_is"](torch.relu(self.fc(images.mean(dim=(2, 3))))))


def test_the_classifier_is_found_by_what_it_does() -> None:
    network = Odd(nn.Identity())
    state = copy.deepcopy(network.state_dict())
    assert find_classifier(network) == "wherever.it_is"
    assert not any(module._forward_hooks for module in network.modules())
    assert all(module.training for module in network.modules())
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    images = torch.rand(2, 3, 5, 5)
    logits = network(images)
    wrapped = TorchvisionNetwork(network, "wherever.it_is")
    assert torch.equal(wrapped(images), logits) and wrapped.features(images).shape == (2, 4)
    assert list(wrapped.state_dict()) == ["backbone.fc.weight", "backbone.fc.bias", "fc.weight", "fc.bias"]
    assert list(wrapped.torchvision_names().values()) == [
        "fc.weight",
        "fc.bias",
        "wherever.it_is.weight",
        "wherever.it_is.bias",
    ]


def test_a_network_that_ends_otherwise_has_no_classifier() -> None:
    assert find_classifier(Odd(nn.Softmax(dim=1))) is None
    assert find_classifier(Odd(nn.Unflatten(1, (CLASSES, 1)))) is None
    assert find_classifier(nn.Sequential(nn.Flatten(2), nn.Linear(224 * 224, CLASSES))) is None  # (B, 3, K)
    assert find_classifier(nn.Sequential(nn.Flatten(1), nn.Linear(3 * 224 * 224, CLASSES))) == "1"


def test_a_convolution_for_a_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="squeezenet1_1 comes from no linear layer"):
        build_model("squeezenet1_1", CLASSES, "imagenet")


# Names and sizes


def test_names_of_the_stems() -> None:
    assert STEMS == ["cifar", "imagenet"]
    assert network_names("cifar") == NETWORKS
    names = network_names("imagenet")
    assert set(names) == {"resnet10", *torchvision.models.list_models(module=torchvision.models)}
    assert len(names) == len(set(names)) and names[0] == "resnet10"
    for stem in STEMS:
        for name in network_names(stem):
            check_network(name, stem)
    network_names("cifar").clear()
    assert NETWORKS


@pytest.mark.parametrize(
    ("name", "stem", "words"),
    [
        ("vit_b16", "imagenet", ["'vit_b16'", "close to it: vit_b_16", "resnet10"]),
        ("resnext50", "imagenet", ["resnext50_32x4d", "torchvision"]),
        ("resnet32", "imagenet", ["the cifar stem has it"]),
        ("vit_b_16", "cifar", ["the imagenet stem has it", *NETWORKS]),
        ("resnet19", "cifar", ["close to it: resnet18", *NETWORKS]),
        ("fasterrcnn_resnet50_fpn", "imagenet", ["unknown --network"]),
        ("resnet18", "patch", ["unknown stem 'patch'", "cifar, imagenet"]),
    ],
)
def test_unknown_names_are_refused_with_close_ones(name: str, stem: str, words: list[str]) -> None:
    for refuse in (lambda: check_network(name, stem), lambda: build_model(name, 10, stem)):
        with pytest.raises(UserError) as caught:
            refuse()
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)


def test_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="leave out --width 32"):
        build_model("resnet18", 10, "imagenet", width=32)
    with pytest.raises(UserError, match="at least one"):
        build_model("resnet18", 0, "imagenet")
    with pytest.raises(UserError, match="unknown stem 'patch'"):
        network_names("patch")


def test_image_sizes_that_a_network_does_not_take_are_refused() -> None:
    with torch.device("meta"):
        transformer = build_model("vit_b_32", CLASSES, "imagenet")
        plain = build_model("vgg11", CLASSES, "imagenet")
    plain.fc.eval()
    for model, sizes in ((transformer, (224,)), (plain, (32, 100)), (build_model("resnet8", 3, width=2), (8, 32))):
        for size in sizes:
            check_image_size(model, size)
    for model, size, reason in ((transformer, 96, "Expected 224 but got 96"), (plain, 16, "too small")):
        with pytest.raises(UserError, match=f"no images of {size} x {size} pixels: .*{reason}"):
            check_image_size(model, size)
    assert plain.training and plain.backbone.training and not plain.fc.training
