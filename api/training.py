"""From arrays and a method to fitted heads: the plan, the linear classifier to start from, the training.

Features are multiplied by one number first, so that their mean squared norm is `REFERENCE_NORM`: the published learning
rates were made for features of that size. So features times any number give the same heads, up to rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from api.arrays import InputError
from datasets.names import SAMPLERS
from engine.feature_scale import REFERENCE_NORM, mean_squared_norm
from engine.many_heads import HeadTrainer, Trained, train_heads
from losses.los import TARGETS, optimal_gap, smoothing_for_gap
from methods.linear_probe import fit_probe
from methods.offsets import HeldOut
from methods.plan import Plan, resolve_smoothing, resolve_target
from methods.recipes import find_recipe, resolve_parameters
from models.heads import FROZEN_WEIGHT
from settings.presets import ANY_SCALE_METHODS
from utils.device import Execution
from utils.parameters import Range
from utils.schedules import SCHEDULES

# What `parameters` may have beside the method's own hyper-parameters: numbers of a plan, those of batches with their
# defaults.
PLANNED = ("weight_decay", "sampler", "max_norm", "reinit", "schedule", "ema")
BATCHES: dict[str, Any] = {"batch_size": 64, "momentum": 0.9}
OF_TRAINING = ("epochs", "learning_rate", *PLANNED, *BATCHES)  # of no meaning for a classifier that is computed
PROBE_DECAY = "probe_decay"  # weight decay of the linear probe, for features of unit spread
ALLOWED: dict[str, Range | tuple[Any, ...]] = {
    "epochs": Range(1, 1e9),
    "learning_rate": Range(0, 1e6),
    "label_smooth": Range(0, 1, "[)"),
    "weight_decay": Range(0, 1e6),
    "max_norm": Range(0, 1),
    "ema": Range(0, 1, "[)"),
    "batch_size": Range(1, 1e9),
    "momentum": Range(0, 1, "[)"),
    PROBE_DECAY: Range(0, 1e6),
    "sampler": tuple(SAMPLERS),
    "schedule": tuple(SCHEDULES),
    "reinit": (True, False),
}
WHOLE = ("epochs", "batch_size")
# Over-smoothing at fewer classes than it was published for has the gap between true and other logits that it has here.
PUBLISHED_CLASSES = 100


@dataclass(frozen=True)
class Rows:
    """Features (N, d) float32 with the class numbers (N,) of a fit, the images (K,) of each class, the held-out rows.

    `start` is the linear classifier of features as they are, (K, d) and (K,), that training starts from; None for one
    that is fitted here.
    """

    features: Tensor
    labels: Tensor
    class_counts: list[int]
    held_out: HeldOut | None = None
    start: tuple[Tensor, Tensor] | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_counts)


@dataclass(frozen=True)
class Steps:
    """How steps are made, the same for heads that are trained together; `decay` is that of the linear probe."""

    batch_size: int
    momentum: float
    decay: float
    seed: int
    device: torch.device


@dataclass(frozen=True)
class GivenArrays:
    """Features (N, d) that serve every epoch, with held-out ones, for `engine.many_heads`."""

    features: Tensor
    held: HeldOut | None
    execution: Execution
    seed: int

    def plain(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the training features (N, d)."""
        return self.features

    def held_out(self) -> HeldOut | None:
        """Return the held-out features (M, d) and labels (M,), None where there are none."""
        return self.held

    def training_view(self, epoch: int) -> Tensor:
        """Return the training features (N, d)."""
        return self.features


class ScaledHead(nn.Module):
    """A head for features as they are: `head` maps `scale` times the features (B, d) to logits (B, K)."""

    scale: Tensor

    def __init__(self, head: nn.Linear, scale: float) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        return self.head(features * self.scale)


def feature_scale(features: Tensor) -> float:
    """Return what features (N, d) are multiplied by for a mean squared norm of `REFERENCE_NORM`; 1 for zeros."""
    norm = mean_squared_norm(features)
    scale = (REFERENCE_NORM / norm) ** 0.5 if norm > 0 else 1.0
    largest = float(torch.finfo(torch.float32).max)
    if not 1 / largest < scale < largest:
        raise InputError(f"X has a mean squared norm of {norm:g}: bring its numbers nearer to 1")
    return scale


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Raise InputError for a number or choice that cannot be, by its name in `ALLOWED`."""
    for name, value in numbers.items():
        values = ALLOWED[name]
        whole = name not in WHOLE or (isinstance(value, int | np.integer) and not isinstance(value, bool))
        if value is not None and (value not in values or not whole):
            words = values if isinstance(values, Range) else f"one of {', '.join(map(str, values))}"
            raise InputError(f"{name} must be {words}{', a whole number' * (name in WHOLE)}, not {value!r}")


def default_smoothing(method: str, num_classes: int) -> float | None:
    """Return the smoothing of a method for K classes, None of one without.

    It is the recipe's. Of over-smoothing at fewer than `PUBLISHED_CLASSES`, where 0.98 leaves next to no gap between
    the true logit and the others (0.06 at three classes), it is the one with the gap at `PUBLISHED_CLASSES`, 1.11.
    """
    recipe = find_recipe(method)
    published = recipe.label_smooth
    if published is None or recipe.target is None or published < 0.5 or num_classes >= PUBLISHED_CLASSES:
        return published
    gap = optimal_gap(TARGETS[recipe.target](published, PUBLISHED_CLASSES))
    return smoothing_for_gap(gap, num_classes, recipe.target)


def make_plan(method: str, num_classes: int, given: Mapping[str, Any]) -> Plan:
    """Return the plan of a method with the numbers `given` in place of its own.

    These are `OF_TRAINING`, `label_smooth`, and the method's own hyper-parameters; None stands for the method's value
    for features of any scale, as on the command line.
    Raises UserError for a number that the method does not have, or that cannot be.
    """
    recipe = find_recipe(method)
    known = {name: value for name, value in given.items() if value is not None and name != PROBE_DECAY}
    steps = {name: known.pop(name) for name in OF_TRAINING if name in known}
    given_smoothing = known.pop("label_smooth", None)
    if steps and not recipe.trains:
        raise InputError(f"{next(iter(steps))} has no meaning for the method '{method}': it is computed, not trained")
    if given_smoothing is None:
        smoothing = default_smoothing(method, num_classes)
    else:
        smoothing = resolve_smoothing(method, num_classes, given_smoothing, None)
    resolve_target(recipe, smoothing, num_classes)  # which not every number of classes may have
    reinit, max_norm = steps.get("reinit", recipe.fresh), steps.get("max_norm", recipe.max_norm)
    if reinit and recipe.head in FROZEN_WEIGHT:
        raise InputError(f"reinit: the method '{method}' keeps the weights that it starts from, it only scales them")
    if max_norm is not None and recipe.head != "linear":
        raise InputError(f"max_norm: the head of the method '{method}' has no trained row norms to constrain")
    return Plan(
        method=method,
        epochs=int(steps.get("epochs", recipe.epochs)),
        lr=float(steps.get("learning_rate", recipe.lr)),
        weight_decay=float(steps.get("weight_decay", recipe.weight_decay)),
        label_smooth=smoothing,
        sampler=steps.get("sampler", recipe.sampler),
        max_norm=max_norm,
        reinit=reinit,
        parameters=resolve_parameters(method, {**ANY_SCALE_METHODS.get(method, {}), **known}),
        schedule=steps.get("schedule", recipe.schedule),
        ema=steps.get("ema"),
    )


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device of a name, "auto" for CUDA where PyTorch finds it. Raises InputError for one that is not."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device {device!r} is none that PyTorch knows: 'auto', 'cpu', 'cuda', 'cuda:1', ..."
        ) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r}: PyTorch finds {torch.cuda.device_count()} CUDA devices here")
    return found


def starting_classifier(rows: Rows, scale: float, steps: Steps) -> nn.Linear:
    """Return the linear classifier (K, d) of features times `scale` that training starts from: the one given, or the
    one that minimises cross-entropy with a weight decay (`methods.linear_probe`)."""
    width, device = rows.features.shape[1], steps.device
    linear = nn.utils.skip_init(nn.Linear, width, rows.num_classes, device=device)
    if rows.start is None:
        features = (rows.features * scale).to(device)
        probe = fit_probe(features, rows.labels.to(device), rows.num_classes, steps.decay)
        weight, bias = probe.weight, probe.bias
    else:
        weight, bias = rows.start[0] / scale, rows.start[1]
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear


def require_held_out(method: str, rows: Rows) -> None:
    """Raise InputError, in the name of a method that is fitted on held-out rows, where a class has none."""
    labels = torch.zeros(0, dtype=torch.long) if rows.held_out is None else rows.held_out[1]
    absent = int((torch.bincount(labels, minlength=rows.num_classes) == 0).sum())
    if absent:
        raise InputError(
            f"the method '{method}' is fitted on held-out rows of every class, and {absent} of {rows.num_classes} have "
            "none: give held_out=(features, labels)"
        )


def fit_heads(rows: Rows, plans: Sequence[Plan], steps: Steps) -> list[tuple[ScaledHead, Trained]]:
    """Return for each plan its head on the CPU, for features as they are, and how its training went.

    PyTorch's global generators are left as they were. Raises InputError for a plan that needs held-out rows of
    every class where there are none.
    """
    for plan in plans:
        if plan.needs_held_out:
            require_held_out(plan.method, rows)
    scale, device = feature_scale(rows.features), steps.device
    held = None
    if rows.held_out is not None:
        held = ((rows.held_out[0] * scale).to(device), rows.held_out[1].to(device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        linear = starting_classifier(rows, scale, steps)
        execution = Execution(device, bf16=False, compile=False, reasons=())
        frozen = GivenArrays((rows.features * scale).to(device), held, execution, steps.seed)
        labels, counts = rows.labels.to(device), rows.class_counts
        trainer = HeadTrainer(frozen, linear, labels, counts, steps.batch_size, steps.momentum, steps.seed, quiet=True)
        trained = train_heads(trainer, plans)
    return [(ScaledHead(result.head.cpu().requires_grad_(False).eval(), scale), result) for result in trained]
