"""Networks: torchvision's keys, the known parameter counts, and what they compute."""

import math

import pytest
import torch
import torchvision
from torch import nn

from models import NETWORKS, build_model
from models.resnet import NarrowProjection
from utils.errors import UserError


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def torchvision_twin(name: str, num_classes: int = 100) -> nn.Module:
    """torchvision's network behind the stem for small images."""
    twin = getattr(torchvision.models, name)(num_classes=num_classes)
    twin.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    twin.maxpool = nn.Identity()
    return twin


def randomise(model: nn.Module) -> None:
    """Give every tensor, the running statistics among them, values that a wrong layer would show."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


def test_resnet34_is_the_released_one() -> None:
    with torch.device("meta"):
        model = build_model("resnet34", 100)
    assert len(model.state_dict()) == 218
    assert parameter_count(model) == 21_328_292


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_keys_and_shapes_are_torchvisions_in_order(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_model(name, 100), torchvision_twin(name)
    expected = [(key, tuple(tensor.shape)) for key, tensor in theirs.state_dict().items()]
    assert [(key, tuple(tensor.shape)) for key, tensor in ours.state_dict().items()] == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_computes_what_torchvisions_network_computes(name: str, train: bool) -> None:
    ours, theirs = build_model(name, 7).train(train), torchvision_twin(name, 7).train(train)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-4)


def test_spatial_size_at_the_end_is_an_eighth() -> None:
    model, shapes = build_model("resnet18", 10, width=4).eval(), []
    model.layer4.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert shapes == [(1, 32, 4, 4)]


def test_released_family_keeps_the_default_initialisation() -> None:
    """PyTorch draws weights uniformly within 1 / sqrt(fan in); torchvision's own networks are drawn otherwise."""
    torch.manual_seed(0)
    model = build_model("resnet18", 100)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.99 * bound < module.weight.abs().max() <= bound * (1 + 1e-6), name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
    assert (model.fc.bias.abs() <= 1 / math.sqrt(512)).all() and model.fc.bias.std() > 0.5 / math.sqrt(3 * 512)


def test_classic_family_has_he_initialisation() -> None:
    torch.manual_seed(0)
    model = build_model("resnet32", 10)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.15), name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018)],
)
def test_classic_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 10)
    assert parameter_count(model) == parameters
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == int(name[6:])
    assert not [key for key in model.state_dict() if "downsample" in key or "shortcut" in key]


def test_classic_shortcut_drops_pixels_and_pads_channels() -> None:
    model = build_model("resnet8", 10, width=4).eval()
    block = model.layer2[0]
    nn.init.zeros_(block.bn2.weight)  # silences the branch: only the shortcut is left
    x = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = block(x)
    assert out.shape == (2, 8, 4, 4)
    torch.testing.assert_close(out[:, 2:6], x[:, :, ::2, ::2])
    assert (out[:, [0, 1, 6, 7]] == 0).all()


@pytest.mark.parametrize(
    ("name", "width", "features"),
    [("resnet18", 24, 192), ("resnet50", 8, 256), ("resnet32", 8, 32), ("resnet8", 5, 20)],
)
def test_width_scales_every_stage(name: str, width: int, features: int) -> None:
    with torch.device("meta"):
        model, reference = build_model(name, 10, width=width), build_model(name, 10)
    assert model.fc.in_features == features
    unit = reference.conv1.out_channels
    for (key, ours), theirs in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        if ours.ndim and not key.startswith("fc"):
            assert ours.shape[0] * unit == theirs.shape[0] * width, key


def test_resnet18_of_width_24_has_1_6_million_parameters() -> None:
    with torch.device("meta"):
        assert parameter_count(build_model("resnet18", 100, width=24)) == pytest.approx(1.6e6, rel=0.05)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
def test_forward_is_fc_of_features(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 5, width=4).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        features = model.features(images)
        assert features.shape == (3, model.fc.in_features)
        torch.testing.assert_close(model(images), features @ model.fc.weight.T + model.fc.bias)
        assert model(images).std() > 0


def test_errors() -> None:
    with pytest.raises(UserError, match="resnet19") as caught:
        build_model("resnet19", 10)
    assert all(name in str(caught.value) for name in NETWORKS)
    with pytest.raises(UserError, match="stem"):
        build_model("resnet18", 10, stem="patch")
    for num_classes, width in ((0, 64), (10, 0), (-3, None)):
        with pytest.raises(UserError, match="at least one"):
            build_model("resnet18", num_classes, width=width)


@pytest.mark.parametrize(("width", "narrow"), [(8, 1), (12, 1), (16, 0), (3, 3)])
def test_no_strided_projection_is_narrow(width: int, narrow: int) -> None:
    """The gradient of one has ended processes on CPUs."""
    model = build_model("resnet18", 5, width=width)
    strided = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    assert len(strided) == 3
    assert [isinstance(layer, NarrowProjection) for layer in strided] == [True] * narrow + [False] * (3 - narrow)


def test_a_narrow_projection_is_the_strided_convolution() -> None:
    layer = NarrowProjection(3, 5, kernel_size=1, stride=2, bias=False).double()
    images = torch.randn(4, 3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], images[:, :, ::2, ::2])
    torch.testing.assert_close(layer(images), expected)
    assert layer(images).shape == (4, 5, 4, 4)
