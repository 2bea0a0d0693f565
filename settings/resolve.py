"""From the flags given to the value of every setting."""

import dataclasses
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ON_DISK
from datasets.features import user_dataset_name
from losses import loss_parameters
from methods.recipes import RECIPES, find_recipe, resolve_parameters
from models import check_network
from settings.checks import NOT_OF_PROBES, ONLY_ON_DISK, TRAINED_ONLY, check_domains, check_stage, refuse_without_images
from settings.fields import FIELDS, PARAMETERS, STAGE1, STAGE1_LOSSES, STAGE2, Settings
from settings.presets import NATURAL, PROTOCOLS, stage_preset
from utils.errors import UserError


@dataclass(frozen=True)
class Command:
    """A parsed command line: the resolved settings, which of them the user gave, what they are by default."""

    script: str
    settings: Settings
    given: dict[str, Any]
    defaults: Settings
    arguments: tuple[str, ...]

    def replace(self, **values: Any) -> "Command":
        """Return the same command with other settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **values))

    def settled(self, **values: Any) -> "Command":
        """Return the same command where these values are what is meant by default: no folder's name has them."""
        return dataclasses.replace(self.replace(**values), defaults=dataclasses.replace(self.defaults, **values))

    def for_dataset(self, dataset: str) -> "Command":
        """Return the same command with another data set's preset behind the flags that were given."""
        drawn = {"seed": self.settings.seed}  # one that was drawn is not drawn again
        return resolve(self.script, {**self.given, **drawn}, self.arguments, dataset)


def resolve(script: str, given: dict[str, Any], arguments: tuple[str, ...], dataset: str | None = None) -> Command:
    """Resolve every setting from the flags given, with the preset of `dataset` (that of the flags by default).

    A flag that has no effect in `script` counts as not given, so that it can have none by accident.
    """
    if "features" in given:
        refuse_without_images(script, given)
        dataset = user_dataset_name(Path(given["features"]))
    dataset = dataset or given.get("dataset", FIELDS["dataset"].default)
    protocol = given.get("protocol", FIELDS["protocol"].default)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol '{protocol}'; known: {', '.join(PROTOCOLS)}")
    preset = stage_preset(script, dataset, given)
    values = {**preset, **PROTOCOLS[protocol]}
    if given.get("bn_mode") == "train":
        values["views"] = "fresh"  # batch statistics change with every batch: there is nothing to cache
    asked = Settings(**{**values, **given})
    check_domains(asked)
    if "stem" in given or "pretrained_pth" not in given:  # else the checkpoint settles the stem
        check_network(asked.network, asked.stem)
    if asked.workers == 0 and dataset not in ON_DISK and "pretrained_pth" not in given:
        raise UserError("--workers must be between 1 and 1024 for images in memory, not 0: they are threads")
    unused = {name for name in given if script not in FIELDS[name].metadata["used_by"]}
    if dataset not in ON_DISK:
        unused |= set(ONLY_ON_DISK) & set(given)
    if script == STAGE1 and given.get("epochs") == 0:
        unused |= (set(NOT_OF_PROBES) - {"epochs"} | {"tensorboard"}) & set(given)
    if given.get("subset") != "shuffle":
        unused.add("subset_seed")
    if {**values, **given}.get("imb_ratio", 0) is None:
        unused |= {"imb_type", "subset", "subset_seed"} & set(given)  # all images there are
    if script == STAGE2 and not find_recipe(given.get("method", FIELDS["method"].default)).trains:
        unused |= set(TRAINED_ONLY) & set(given)
    used = {name: value for name, value in given.items() if name not in unused}
    settings = Settings(**{**values, **used, "dataset": dataset})
    if settings.imb_ratio is None:
        settings = dataclasses.replace(settings, imb_type=NATURAL)
    if settings.seed is None:
        settings = dataclasses.replace(settings, seed=random.SystemRandom().randrange(2**31))
    settings = fill_stage_values(settings, script)
    defaults = Settings(**{**preset, "dataset": dataset})
    defaults = dataclasses.replace(defaults, method=settings.method, loss=settings.loss, cur_stage=settings.cur_stage)
    defaults = fill_stage_values(defaults, script)
    # The folder names a loss that is not the default, and its parameters where they are not the loss's own.
    defaults = dataclasses.replace(defaults, loss=str(FIELDS["loss"].default))
    check_stage(script, settings)
    return Command(script, settings, used, defaults, arguments)


def fill_stage_values(settings: Settings, script: str) -> Settings:
    """Replace the None of values that depend on the stage or on the method of stage 2."""
    if settings.cur_stage is None:
        settings = dataclasses.replace(settings, cur_stage="stage2" if script == STAGE2 else "stage1")
    if settings.cur_stage == "stage1":
        settings = dataclasses.replace(settings, label_smooth=settings.label_smooth or 0.0)
        return fill_loss_parameters(settings, settings.loss) if script == STAGE1 else settings
    recipe = RECIPES[settings.method]
    smoothing = settings.label_smooth
    if smoothing is None and settings.loma_target is None:
        smoothing = recipe.smoothing
    usual = {
        "finetune_epoch": recipe.epochs if recipe.trains else 0,
        "finetune_lr": recipe.lr,
        "finetune_wd": recipe.weight_decay,
        "sampler": recipe.sampler,
        "max_norm": recipe.max_norm,
    }
    given = {name: getattr(settings, name) for name in usual if getattr(settings, name) is not None}
    own: dict[str, Any] = {}
    if script == STAGE2:
        own = dict(resolve_parameters(settings.method, given_parameters(settings)))
    return dataclasses.replace(settings, label_smooth=smoothing, **{**usual, **given, **own})


def given_parameters(settings: Settings) -> dict[str, Any]:
    """Return the hyper-parameters of losses, heads and classifiers that have a value."""
    return {name: getattr(settings, name) for name in PARAMETERS if getattr(settings, name) is not None}


def fill_loss_parameters(settings: Settings, loss: str) -> Settings:
    """Give the hyper-parameters of stage 1's loss their defaults; a UserError names one that it does not have."""
    own: dict[str, Any] = dict(loss_parameters(loss))
    given = given_parameters(settings)
    for name in given:
        if name not in own:
            users = ", ".join(other for other in STAGE1_LOSSES if name in loss_parameters(other))
            raise UserError(f"--{name} has no meaning for --loss {loss}; it belongs to {users or 'no loss of stage 1'}")
    return dataclasses.replace(settings, **{**own, **given})


def report_unused(script: str, flags: list[str], why: str = "") -> None:
    """Say on standard error that flags were given where they have no effect."""
    if flags:
        print(f"not used by {script}{why}: {' '.join(flags)}", file=sys.stderr)
