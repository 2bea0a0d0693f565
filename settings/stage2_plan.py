"""From resolved settings of stage 2 to the plan of its classifier."""

from methods.plan import Plan, resolve_smoothing
from methods.recipes import find_recipe
from models.heads import FROZEN_WEIGHT
from settings.fields import Settings
from utils.errors import UserError
from utils.parameters import HYPERPARAMETERS


def plan_of(settings: Settings, num_classes: int) -> Plan:
    """Return the plan that resolved settings of stage 2 describe."""
    recipe = find_recipe(settings.method)
    own = {name: getattr(settings, name) for name in HYPERPARAMETERS}
    if settings.reinit_classifier and recipe.head in FROZEN_WEIGHT:
        raise UserError(f"--reinit_classifier: --method {settings.method} keeps stage 1's weights, it only scales them")
    if settings.max_norm is not None and recipe.head != "linear":
        raise UserError(f"--max_norm: the head of --method {settings.method} has no trained row norms to constrain")
    return Plan(
        method=settings.method,
        epochs=settings.finetune_epoch,
        lr=settings.finetune_lr,
        weight_decay=settings.finetune_wd,
        label_smooth=resolve_smoothing(settings.method, num_classes, settings.label_smooth, settings.loma_target),
        sampler=settings.sampler or recipe.sampler,
        max_norm=settings.max_norm,
        reinit=settings.reinit_classifier or recipe.fresh,
        parameters={name: value for name, value in own.items() if value is not None},
        schedule=settings.finetune_schedule or recipe.schedule,
        ema=settings.finetune_ema if recipe.trains else None,
    )
