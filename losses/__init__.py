"""Losses, one file an idea, and the one function that builds them."""

import operator
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature

from torch import nn

from losses.balanced_softmax import BalancedSoftmax
from losses.class_balanced import ClassBalancedBinary, ClassBalancedCrossEntropy, InverseFrequencyCrossEntropy
from losses.cross_entropy import CrossEntropy
from losses.focal import Focal
from losses.gala import GALA
from losses.gcl import GaussianClouded
from losses.label_aware_smoothing import LabelAwareSmoothing
from losses.ldam import LDAM, WeightedLDAM
from losses.logit_adjustment import LogitAdjustment
from losses.los import ONE_HOT, Target
from losses.parameters import check_parameter
from losses.vector_scaling import VectorScaling
from utils.errors import UserError

# A constructor names what it wants: `class_counts`, `target`, and its hyper-parameters as keywords with their defaults.
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ce": CrossEntropy,
    "focal": Focal,
    "cb_ce": ClassBalancedCrossEntropy,
    "wb_cb": ClassBalancedBinary,
    "reweighted_ce": InverseFrequencyCrossEntropy,
    "logit_adjust": LogitAdjustment,
    "balanced_softmax": BalancedSoftmax,
    "ldam": LDAM,
    "ldam_weighted": WeightedLDAM,
    "las": LabelAwareSmoothing,
    "vs": VectorScaling,
    "gcl": GaussianClouded,
    "gala": GALA,
}


def build_loss(
    name: str, class_counts: Sequence[int], target: Target = ONE_HOT, **parameters: float | str
) -> nn.Module:
    """Build the loss `name`: a module that maps logits (B, K) and labels (B,) to a scalar, the mean over the batch.

    `class_counts` (K,) are the training images of each class, for the losses that need them. `target` is what the true
    class and each other class should get: `losses.los` softens it. `parameters` are hyper-parameters of the loss;
    `loss_parameters` tells which it has. Move the module to the device of the logits. What doesn't fit is refused with
    a `UserError`.
    """
    wanted = _signature(name)
    _check_counts(class_counts)
    known = loss_parameters(name)
    for parameter, value in parameters.items():
        if parameter not in known:
            has = ", ".join(f"--{own}" for own in known) or "no parameters"
            raise UserError(f"the loss '{name}' has no parameter --{parameter}; it has {has}")
        check_parameter(parameter, value)
    if target != ONE_HOT and "target" not in wanted:
        soft = [other for other in LOSSES if "target" in _signature(other)]
        raise UserError(f"the loss '{name}' takes no soft target; those that do: {', '.join(soft)}")
    shared = {key: value for key, value in (("class_counts", class_counts), ("target", target)) if key in wanted}
    return LOSSES[name](**shared, **parameters)


def loss_parameters(name: str) -> dict[str, float | str]:
    """Return the hyper-parameters of the loss `name` with their published defaults."""
    own = _signature(name).values()
    return {parameter.name: parameter.default for parameter in own if parameter.kind is Parameter.KEYWORD_ONLY}


def _signature(name: str) -> Mapping[str, Parameter]:
    if name not in LOSSES:
        raise UserError(f"unknown loss '{name}'; known: {', '.join(LOSSES)}")
    return signature(LOSSES[name]).parameters


def _check_counts(class_counts: Sequence[int]) -> None:
    try:
        whole = [operator.index(count) for count in class_counts]
    except TypeError:
        raise UserError("class_counts must be whole numbers, the training images of each class") from None
    if len(whole) < 2 or min(whole) < 1:
        raise UserError("class_counts must name at least two classes and at least one training image of each")
