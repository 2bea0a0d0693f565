"""From a method and its numbers to a classifier, its losses, the order of its batches: what a recipe's columns mean.

A `Plan` is a `Recipe` with every number settled. `main_stage2.py` makes one from its command line and trains it alone;
`engine.many_heads` makes many and trains them together.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from datasets.features import Features
from datasets.sampling import sampled_order
from losses import build_loss, loss_parameters
from losses.los import ONE_HOT, TARGETS, Target, smoothing_for_gap
from methods.closed_form import build_closed_form, closed_form_parameters
from methods.offsets import HeldOut
from methods.recipes import LATE_FROM, Recipe, Value, check_smoothing, find_recipe
from models.heads import build_head, head_parameters, max_norm_threshold
from models.monotone_norms import MonotoneNorms
from models.neighbours import Neighbours
from models.network import Network
from utils.schedules import SCHEDULES


@dataclass(frozen=True)
class Plan:
    """Everything that decides how one classifier is re-trained."""

    method: str
    epochs: int
    lr: float
    weight_decay: float
    label_smooth: float | None
    sampler: str
    max_norm: float | None
    reinit: bool
    parameters: Mapping[str, Value] = field(default_factory=dict)
    schedule: str = "cosine"
    ema: float | None = None  # the decay of averaged weights
    unit: float = 1.0  # trained as if the features were divided by it (`engine.feature_scale`)

    @property
    def recipe(self) -> Recipe:
        """The row of `RECIPES` that the plan is of."""
        return find_recipe(self.method)

    @property
    def needs_held_out(self) -> bool:
        """Whether the classifier is fitted on held-out images."""
        return self.recipe.needs_held_out

    @property
    def fits_views(self) -> bool:
        """Whether the classifier is fitted on augmented views of the training images, not on them as they are."""
        return self.parameters.get("fit_on") == "views"

    def target(self, num_classes: int) -> Target:
        """Return (y_true, y_other)."""
        return resolve_target(self.recipe, self.label_smooth, num_classes)

    def rate(self, epoch: int) -> float:
        """Return the learning rate of `epoch` (from 0)."""
        return SCHEDULES[self.schedule](self.lr, epoch, self.epochs)


def plan_key(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values, by which a table finds a row that it has kept.

    Files that are kept know the smoothing as `smoothing`: this name stays. Those made before there was a choice of
    schedules had `cosine`, and do not name it; those before averaged weights had none, nor a unit of
    the features.
    """
    key = asdict(plan)
    if plan.unit == 1:
        del key["unit"]
    if plan.ema is None:
        del key["ema"]
    if plan.schedule == "cosine":
        del key["schedule"]
    return {"smoothing": key.pop("label_smooth"), **key}


def describe_parameters(plan: Plan) -> str:
    """Return the plan's numbers in words: its own parameters, sampling, constraint."""
    own = [f"{name} {value}" for name, value in plan.parameters.items()]
    own += [f"{plan.sampler} sampling"] if plan.sampler != "instance" else []
    own += [f"MaxNorm {plan.max_norm:g}"] if plan.max_norm is not None else []
    own += [f"schedule {plan.schedule}"] if plan.schedule != "cosine" else []
    own += [f"weights averaged with decay {plan.ema:g}"] if plan.ema is not None else []
    return ", ".join(own)


def _those(names: Mapping[str, object], plan: Plan) -> dict[str, Value]:
    return {name: value for name, value in plan.parameters.items() if name in names}


def start_head(plan: Plan, linear: nn.Linear, seed: int, class_counts: Sequence[int] | None = None) -> nn.Linear:
    """Return the classifier that training starts from: that of stage 1, or a new one drawn from `seed`.

    `class_counts` (K,) are for the heads that start from them.
    """
    if plan.reinit:
        linear = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device)
        generator = torch.Generator().manual_seed(seed)
        bound = linear.in_features**-0.5  # PyTorch's own initialisation of a linear layer
        with torch.no_grad():
            for parameter in (linear.weight, linear.bias):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
            linear.weight.div_(plan.unit)
    head = build_head(plan.recipe.head, linear, class_counts, **_those(head_parameters(plan.recipe.head), plan))
    return in_unit(plan, head)


def in_unit(plan: Plan, head: nn.Linear) -> nn.Linear:
    """Return a head whose own numbers, where they depend on the scale of the features, are for the plan's unit."""
    if plan.unit != 1 and isinstance(head, MonotoneNorms):
        head.set_unit(plan.unit)
    return head


def compute_head(
    plan: Plan,
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: list[int],
    held_out: HeldOut | None = None,
) -> nn.Linear:
    """Return the classifier of a method without training, from features (N, d) of the un-augmented training images or
    of views of them (`fits_views`), and their labels (N,).

    `held_out` are the features (M, d) and labels (M,) of held-out images, for a plan that `needs_held_out`.
    """
    name = plan.recipe.closed_form
    assert name is not None
    own = _those(closed_form_parameters(name), plan)
    target = plan.target(len(class_counts))
    return in_unit(plan, build_closed_form(name, linear, features, labels, class_counts, target, held_out, **own))


def attach_head(model: Network, method: str, state: Collection[str] | None = None) -> None:
    """Give a network the kind of classifier that `method` leaves, so that its checkpoint can be loaded.

    `state` are the names in the checkpoint, or all of it: one that was made before the method had its kind of
    classifier has that of then, and a classifier that keeps features gets room for as many.
    """
    recipe, linear = find_recipe(method), model.fc
    model.fc = build_head(recipe.head, linear)
    if isinstance(model.fc, Neighbours) and isinstance(state, Mapping) and "fc.kept" in state:
        model.fc.make_room({"kept": state["fc.kept"]})
    if isinstance(model.fc, MonotoneNorms) and state is not None and "fc.unit" in state:
        model.fc.set_unit(1.0)
    own = {f"fc.{name}" for name in model.fc.state_dict()}
    if state is not None and recipe.earlier_head is not None and not own <= set(state):
        model.fc = build_head(recipe.earlier_head, linear)


def build_losses(plan: Plan, class_counts: list[int]) -> tuple[nn.Module, nn.Module]:
    """Return the loss of the first epochs and that of the last ones (the same where the recipe has one)."""
    target = plan.target(len(class_counts))
    names = (plan.recipe.loss, plan.recipe.late_loss or plan.recipe.loss)
    early = build_loss(names[0], class_counts, target, **_those(loss_parameters(names[0]), plan))
    if names[1] == names[0]:
        return early, early
    return early, build_loss(names[1], class_counts, target, **_those(loss_parameters(names[1]), plan))


def in_late_phase(epoch: int, epochs: int) -> bool:
    """Tell whether `epoch` (from 0) is one of those that a recipe's late loss is for."""
    return epoch >= LATE_FROM * epochs


def row_norm_limit(plan: Plan, linear: nn.Linear) -> Tensor | None:
    """Return the largest row norm that the plan's MaxNorm constraint allows, None without the constraint."""
    return None if plan.max_norm is None else max_norm_threshold(linear.weight.detach(), plan.max_norm)


def visiting_order(plan: Plan, labels: Tensor, num_classes: int, seed: int, epoch: int) -> Tensor:
    """Return the positions (N,), on the CPU, of the images in the order in which `epoch` visits them.

    Labels (N,) that lie on the CPU too are not read back from a device in every epoch.
    """
    return sampled_order(labels, num_classes, plan.sampler, seed, epoch, plan.epochs)


def resolve_smoothing(
    method: str, num_classes: int, label_smooth: float | None, loma_target: float | None
) -> float | None:
    """Return the smoothing that `method` uses: given, derived from the wanted logit gap, or the recipe's own.

    Raises UserError where `check_smoothing` does, and for a gap that cannot be.
    """
    check_smoothing(method, label_smooth, loma_target)
    recipe = find_recipe(method)
    if recipe.target is not None and loma_target is not None:
        return smoothing_for_gap(loma_target, num_classes, recipe.target)
    return recipe.label_smooth if label_smooth is None else label_smooth


def resolve_target(recipe: Recipe, label_smooth: float | None, num_classes: int) -> Target:
    """Return (y_true, y_other) for a recipe's convention and smoothing; a UserError says which K it does not fit."""
    if recipe.target is None or label_smooth is None:
        return ONE_HOT
    return TARGETS[recipe.target](label_smooth, num_classes)
