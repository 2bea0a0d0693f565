"""Released networks, losses and heads by `torch.hub.load`, from GitHub or from a clone:

    network = torch.hub.load(REPOSITORY, "resnet18w24_cifar100_lt", source="local")
    loss = torch.hub.load(REPOSITORY, "loss", "logit_adjust", class_counts=[500, 50, 5], source="local")

torch.hub has the repository on Python's path only while it loads, and other repositories and packages have `models`,
`utils` and `datasets` of their own. So the project is imported under a name of its own (see
`tools/installation/one_name.py`), and neither takes the place of the other, whichever comes first.
"""

# Modules alone are imported by name: torch.hub lists whatever else can be called as one of the repository's.
import collections.abc
import hashlib
import importlib
import importlib.util
import pathlib
import types
import typing

from torch import nn

dependencies = [
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "progress",
    "matplotlib",
    "sklearn",
    "scipy",
    "safetensors",
    "PIL",
]

_ROOT = pathlib.Path(__file__).resolve().parent
_RELEASED = _ROOT / "checkpoints" / "released"


def _room(name: str) -> types.ModuleType:
    """Import a module of this project, such as `losses`, under a name that no other clone and no package has."""
    package = f"longtail_los_hub_{hashlib.sha256(str(_ROOT).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(
        "longtail_los_one_name", _ROOT / "tools" / "installation" / "one_name.py"
    )
    assert spec is not None and spec.loader is not None
    one_name = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(one_name)
    one_name.import_under(package, _ROOT)
    return importlib.import_module(f"{package}.{name}")


def _trained(file: str | pathlib.Path) -> nn.Module:
    """Return the network of a run folder or a released file in eval mode, with `prepare` and `class_names`."""
    prediction = _room("stages.prediction")
    predictor = prediction.make_predictor(prediction.read_trained(pathlib.Path(file)))
    network: typing.Any = predictor.model.eval()
    network.prepare = _room("tools.backbones.files").preparation(predictor)
    network.class_names = predictor.class_names
    network.temperature = predictor.temperature
    return network


def resnet18w24_cifar100_lt(pretrained: bool = True, classifier: str = "los") -> nn.Module:
    """Return ResNet-18 at width 24, trained on CIFAR100-LT at imbalance factor 100.

    `classifier` is "los" (re-trained by LOS) or "stage1" (plain cross-entropy). `network.features(images)` are the
    features (B, 192) of images (B, 3, 32, 32), `network(images)` the logits (B, 100). `network.prepare` maps an image
    of PIL to such a tensor, `network.class_names` has the names. Raises UserError for another classifier.
    """
    if not pretrained:
        return network("resnet18", 100, width=24)
    files = {"los": "cifar100_expIF100_resnet18w24_seed0_los", "stage1": "cifar100_expIF100_resnet18w24_seed0"}
    if classifier not in files:
        raise _room("utils.errors").UserError(f"classifier '{classifier}' is none of {', '.join(files)}")
    return _trained(_RELEASED / f"{files[classifier]}.safetensors")


def resnet32_cifar100_lt_gala(pretrained: bool = True) -> nn.Module:
    """Return GALA's ResNet-32 of the CPU run on CIFAR100-LT at imbalance factor 100, its first stage."""
    if not pretrained:
        return network("resnet32", 100)
    return _trained(_RELEASED / "cifar100_expIF100_resnet32_gala_seed0.safetensors")


def trained(path: str) -> nn.Module:
    """Return the network of a run folder or of a released file of yours, as `resnet18w24_cifar100_lt` does."""
    return _trained(path)


def network(name: str, num_classes: int, stem: str = "cifar", width: int | None = None) -> nn.Module:
    """Return a network without trained weights (`models.build_model`)."""
    return _room("models").build_model(name, num_classes, stem, width)


def loss(
    name: str, class_counts: collections.abc.Sequence[int], label_smooth: float | None = None, **parameters: float | str
) -> nn.Module:
    """Return a loss of logits (B, K) and labels (B,) by its name (`losses.build_loss`).

    `class_counts` (K,) are the training images of each class. `label_smooth` softens its target as LOS does.
    """
    target = _room("losses.los").torch_target(label_smooth or 0.0, len(class_counts))
    return _room("losses").build_loss(name, class_counts, target, **parameters)


def head(
    name: str, linear: nn.Linear, class_counts: collections.abc.Sequence[int] | None = None, **parameters: float | str
) -> nn.Linear:
    """Return a classifier head by its name, made from a linear one (`models.heads.build_head`)."""
    return _room("models.heads").build_head(name, linear, class_counts, **parameters)
