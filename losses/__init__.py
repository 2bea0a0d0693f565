"""Losses, one file an idea, and the one function that builds them."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from losses.class_balanced import ClassBalancedBinary, ClassBalancedCrossEntropy, InverseFrequencyCrossEntropy
from losses.focal import Focal
from losses.functional import Loss, check_batch
from losses.gala import GALA
from losses.gcl import GaussianClouded
from losses.geometric_mean import GeometricMean
from losses.label_aware_smoothing import LabelAwareSmoothing
from losses.ldam import LDAM, WeightedLDAM
from losses.logit_adjustment import BalancedSoftmax, LogitAdjustment
from losses.los import ONE_HOT, CrossEntropy, Target
from losses.vector_scaling import VectorScaling
from utils.errors import UserError
from utils.parameters import LOSS_ARGUMENTS, check_counts, check_given, constructor_parameters, keyword_parameters

__all__ = [
    "GALA",
    "LDAM",
    "LOSSES",
    "BalancedSoftmax",
    "ClassBalancedBinary",
    "ClassBalancedCrossEntropy",
    "CrossEntropy",
    "Focal",
    "GaussianClouded",
    "GeometricMean",
    "InverseFrequencyCrossEntropy",
    "LabelAwareSmoothing",
    "LogitAdjustment",
    "Loss",
    "VectorScaling",
    "WeightedLDAM",
    "build_loss",
    "loss_parameters",
    "takes_plain_logits",
]

# A constructor names what it wants: those that are shared, and its hyper-parameters as keywords with their defaults
# (`utils.parameters` declares them). Its class says with `plain_logits` whether it takes those of a linear classifier.
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ce": CrossEntropy,
    "focal": Focal,
    "cb_ce": ClassBalancedCrossEntropy,
    "reweighted_ce": InverseFrequencyCrossEntropy,
    "wb_cb": ClassBalancedBinary,
    "logit_adjust": LogitAdjustment,
    "balanced_softmax": BalancedSoftmax,
    "ldam": LDAM,
    "ldam_weighted": WeightedLDAM,
    "las": LabelAwareSmoothing,
    "vs": VectorScaling,
    "gcl": GaussianClouded,
    "gala": GALA,
    "gml": GeometricMean,
}


def build_loss(
    name: str, class_counts: Sequence[int], target: Target = ONE_HOT, **parameters: float | str
) -> nn.Module:
    """Build the loss `name`: a module that maps logits (B, K) and labels (B,) to a scalar, the mean over the batch.

    `class_counts` (K,) are the training images of each class, for the losses that need them. `target` is what the true
    class and each other class should get: `losses.los` softens it. `parameters` are hyper-parameters of the loss;
    `loss_parameters` tells which it has. Move the module to the device of the logits. What doesn't fit is refused with
    a `UserError`. Labels follow the rule of `losses.functional.Loss`: -100 is left out, others are classes.
    """
    wanted = constructor_parameters("loss", name, LOSSES)
    check_counts(class_counts)
    check_given("loss", name, parameters, loss_parameters(name))
    if target != ONE_HOT and "target" not in wanted:
        soft = [other for other in LOSSES if "target" in constructor_parameters("loss", other, LOSSES)]
        raise UserError(f"the loss '{name}' takes no soft target; those that do: {', '.join(soft)}")
    shared = {key: value for key, value in zip(LOSS_ARGUMENTS, (class_counts, target), strict=True) if key in wanted}
    loss = LOSSES[name](**shared, **parameters)
    loss.register_forward_pre_hook(partial(_check_columns, len(class_counts)))
    if not isinstance(loss, Loss):  # a module of its own kind: its labels are checked all the same
        loss.register_forward_pre_hook(check_batch)
    return loss


def _check_columns(num_classes: int, loss: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if inputs[0].shape[-1] != num_classes:
        raise UserError(f"class_counts names {num_classes} classes, the logits have {inputs[0].shape[-1]} columns")


def loss_parameters(name: str) -> dict[str, float | str]:
    """Return the hyper-parameters of the loss `name` with their published defaults.

    Raises UserError for an unknown loss, and where its constructor asks for what nobody can give it.
    """
    return keyword_parameters("loss", name, LOSSES, LOSS_ARGUMENTS)
