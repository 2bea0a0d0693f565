"""Which values settings may take, alone and together."""

import os
from typing import Any

from datasets.augment.normalisation import constants_text, read_constants
from datasets.long_tail import ShotBounds
from evaluation.priors.words import BALANCED, FORMS, TRAIN
from methods.recipes import check_smoothing
from settings.declare import EVALUATE, STAGE1, Facet
from settings.fields import FLAGS, Settings, with_facet
from utils.errors import UserError
from utils.parameters import check_parameter
from utils.text import shown

STANDARD_OUTPUT = "-"
THIRDS = "thirds"


def refuse_without_images(script: str, given: dict[str, Any]) -> None:
    """Raise UserError for flags of data sets, networks and their training beside `--features`."""
    idle = with_facet(Facet.OF_IMAGES) + (with_facet(Facet.STAGE1_STEPS) if script == STAGE1 else ())
    flags = [f"--{name} {given[name]}" for name in idle if name in given]
    if flags:
        raise UserError(
            f"{', '.join(flags)}: no use with --features {given['features']}, a file that is data set and network; "
            "leave it out"
        )


def check_stage(script: str, settings: Settings) -> None:
    """Raise UserError where flags contradict the stage or the method."""
    if script != EVALUATE and settings.cur_stage != script.removeprefix("main_"):
        raise UserError(
            f"{script}.py runs {script.removeprefix('main_')}; --cur_stage {settings.cur_stage} is for "
            f"main_{settings.cur_stage}.py"
        )
    if settings.cur_stage == "stage2":
        check_smoothing(settings.method, settings.label_smooth, settings.loma_target)
    elif settings.loss == "gala" and settings.mixup > 0:
        raise UserError("--loss gala cannot be used with --mixup: its gradients are those of single labels")


def check_domains(settings: Settings) -> None:
    """Raise UserError for a value outside its domain."""
    values = {name: getattr(settings, name) for name in FLAGS}
    known = {name: value for name, value in values.items() if value is not None}
    for name, value in known.items():
        check_value(name, value)
    read_constants(settings.mean, settings.std)
    check_training(settings)
    check_stage2_views(settings)
    check_prior(settings.test_prior)
    if settings.shots not in (None, THIRDS):
        parse_bounds(str(settings.shots))
    if settings.resize is not None and settings.resize < (settings.image_size or 0):
        raise UserError(f"--resize {settings.resize} is smaller than the crop, --image_size {settings.image_size}")
    if settings.resume + settings.overwrite + settings.reuse > 1:
        raise UserError("--resume, --overwrite and --reuse exclude one another")


def check_value(name: str, value: Any) -> None:
    """Raise UserError for a value that the setting `name` cannot take, whatever the others are."""
    flag = FLAGS[name]
    if flag.choices is not None and value not in flag.choices:
        raise UserError(f"unknown --{name} '{value}'; known: {', '.join(flag.choices)}")
    if Facet.HYPERPARAMETER in flag.facets:
        check_parameter(name, value)
    if Facet.NUMBERS in flag.facets and constants_text([value]) != value:
        raise UserError(f"--{name} '{value}' is not what the numbers of a command line become")
    if flag.bounds is not None and value not in flag.bounds:
        shown = f"{value:g}" if isinstance(value, float) else value  # an integer may be too large for a float
        raise UserError(f"--{name} must be {flag.bounds}, not {shown}")


def check_training(settings: Settings) -> None:
    """Raise UserError where settings of the training contradict one another."""
    if settings.ema and settings.weights is None and settings.pretrained_pth is None:
        raise UserError("--ema chooses among the weights of a file: name it with --weights or --pretrained_pth")
    if settings.epochs == 0 and settings.weights is None:
        raise UserError("--epochs 0 trains a classifier alone: say with --weights on what")
    if 0 < settings.epochs <= settings.warmup_epochs:
        raise UserError(
            f"--warmup_epochs {settings.warmup_epochs} leaves none of {settings.epochs} epochs to the schedule"
        )
    if settings.nesterov and settings.momentum == 0:
        raise UserError("--nesterov needs a --momentum above 0")


def check_prior(given: str | None) -> None:
    """Raise UserError for a `--test_prior` that is no word and no file; what the file says is checked with the data."""
    if given is not None and given not in (BALANCED, TRAIN) and not os.path.exists(given):
        raise UserError(f"--test_prior {shown(given)}: there is no such file; it is {BALANCED}, {TRAIN}, or {FORMS}")


def check_stage2_views(settings: Settings) -> None:
    """Raise UserError for views of the images that there are not, or that cannot be cached."""
    if settings.views not in ("plain", "fresh") and not (settings.views.isdecimal() and int(settings.views) >= 1):
        raise UserError(f"--views must be a number of at least 1, 'plain' or 'fresh', not '{settings.views}'")
    if settings.bn_mode == "train" and settings.views != "fresh":
        raise UserError(
            "--bn_mode train changes the features with every batch, so they cannot be cached: use --views fresh"
        )


def parse_bounds(given: str) -> ShotBounds:
    """Read `--shots MANY,FEW`; a UserError says what is wrong with it."""
    words = given.split(",")
    if len(words) != 2 or not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--shots {shown(given)}: give two whole numbers, as 100,20, or {THIRDS}")
    bounds = ShotBounds(*(int(word) for word in words))
    if bounds.few_below > bounds.many_above + 1:
        raise UserError(
            f"--shots {shown(given)}: a class would be both many-shot and few-shot; the first is the larger"
        )
    return bounds
