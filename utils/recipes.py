"""Classifier re-training methods: a method is a row of data."""

from dataclasses import dataclass

from losses.los import ONE_HOT, TARGETS, Target, smoothing_for_gap
from utils.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """One way to re-train the classifier on frozen features.

    `target` is the convention that softens the labels (a key of `losses.los.TARGETS`, None for one-hot labels) with its
    default `smoothing`; `loss` a key of `losses.LOSSES`; the last three are the published optimiser settings of stage
    2.
    """

    title: str
    citation: str
    loss: str
    target: str | None
    smoothing: float | None
    epochs: int = 20
    lr: float = 5e-4
    weight_decay: float = 0.0


LOS_PAPER = "Sun et al., ICLR 2025, arXiv 2403.00250"

RECIPES = {
    "ce": Recipe("cross-entropy (control)", "-", "ce", None, None),
    "label_smooth": Recipe("label smoothing", "Szegedy et al., CVPR 2016, arXiv 1512.00567", "ce", "torch", 0.1),
    "los": Recipe("label over-smoothing", LOS_PAPER, "ce", "torch", 0.98),
    "lort": Recipe("label over-smoothing, (1 - d, d / (K - 1))", LOS_PAPER, "ce", "rest", 0.98),
}


def find_recipe(method: str) -> Recipe:
    """Return the row of `method`; a UserError lists the known ones."""
    if method not in RECIPES:
        raise UserError(f"unknown method '{method}'; known: {', '.join(RECIPES)}")
    return RECIPES[method]


def resolve_smoothing(
    method: str, num_classes: int, label_smooth: float | None, loma_target: float | None
) -> float | None:
    """Return the smoothing that `method` uses: given, derived from the wanted logit gap, or the recipe's own.

    Raises UserError where a value is given to a method without smoothing, or both values are given.
    """
    recipe = find_recipe(method)
    if label_smooth is not None and loma_target is not None:
        raise UserError("--label_smooth and --loma_target both set the target's smoothing; give one of them")
    if recipe.target is None:
        if label_smooth is not None or loma_target is not None:
            flag = "--label_smooth" if label_smooth is not None else "--loma_target"
            users = ", ".join(name for name, row in RECIPES.items() if row.target)
            raise UserError(f"{flag} has no meaning for --method {method}; it belongs to {users}")
        return None
    if loma_target is not None:
        return smoothing_for_gap(loma_target, num_classes, recipe.target)
    return recipe.smoothing if label_smooth is None else label_smooth


def resolve_target(recipe: Recipe, smoothing: float | None, num_classes: int) -> Target:
    """Return (y_true, y_other) for a recipe's convention and smoothing."""
    if recipe.target is None or smoothing is None:
        return ONE_HOT
    return TARGETS[recipe.target](smoothing, num_classes)
