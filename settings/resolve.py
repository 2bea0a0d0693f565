"""From the flags given to the value of every setting."""

import dataclasses
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from datasets import ON_DISK
from datasets.names import user_dataset_name
from methods.declared import loss_parameters
from methods.recipes import find_recipe, resolve_parameters
from models import check_network
from settings.checks import check_domains, check_stage, refuse_without_images
from settings.declare import STAGE1, STAGE2, Facet
from settings.fields import FLAGS, STAGE1_LOSSES, Settings, with_facet
from settings.presets import NATURAL, PROTOCOLS, stage_preset
from utils.errors import UserError
from utils.parameters import HYPERPARAMETERS
from utils.text import tell


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

    def for_dataset(self, dataset: str, known: Mapping[str, Any]) -> "Command":
        """Return the same command with another data set's preset behind the flags that were given.

        Flags are judged beside the values `known` of others, which a checkpoint settles; what has no use is told.
        """
        drawn = {"seed": self.settings.seed}  # one that was drawn is not drawn again
        command = resolve(self.script, {**self.given, **drawn}, self.arguments, dataset, known)
        idle = [f"--{name}" for name in self.given if name not in command.given]
        report_unused(self.script, idle, f" on {dataset}")
        return command


def flag_words(script: str, values: Mapping[str, Any]) -> list[str]:
    """Return settings as words of a command line of `script`: those that it reads; a switch is on."""
    words: list[str] = []
    for name, value in values.items():
        if script in FLAGS[name].read_by:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def resolve(
    script: str,
    given: dict[str, Any],
    arguments: tuple[str, ...],
    dataset: str | None = None,
    known: Mapping[str, Any] = MappingProxyType({}),
) -> Command:
    """Resolve every setting from the flags given, with the preset of `dataset` (that of the flags by default).

    A flag that has no effect in `script` counts as not given, so that it can have none by accident. The flags are
    judged beside `known`, what other settings will be.
    """
    if "features" in given:
        refuse_without_images(script, given)
        dataset = user_dataset_name(Path(given["features"]))
    told = dataset is not None or "dataset" in given or "pretrained_pth" not in given
    dataset = dataset or given.get("dataset", FLAGS["dataset"].default)
    preset = stage_preset(script, dataset, given)
    usual = {**preset, **protocol_preset(given)}
    beside = {**usual, **known, **given}
    check_given(given, Settings(**beside), dataset)
    unused = unused_flags(script, given, beside, dataset if told else None)
    used = {name: value for name, value in given.items() if name not in unused}
    settings = Settings(**{**usual, **used, "dataset": dataset})
    if settings.imb_ratio is None:
        settings = dataclasses.replace(settings, imb_type=NATURAL)
    if settings.seed is None:
        settings = dataclasses.replace(settings, seed=random.SystemRandom().randrange(2**31))
    settings = fill_stage_values(settings, script)
    check_stage(script, settings)
    return Command(
        script, settings, used, default_settings(script, {**preset, "dataset": dataset}, settings), arguments
    )


def protocol_preset(given: dict[str, Any]) -> dict[str, Any]:
    """Return what the switches of stage 2 default to under the protocol among the flags given."""
    protocol = given.get("protocol", FLAGS["protocol"].default)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol '{protocol}'; known: {', '.join(PROTOCOLS)}")
    # Batch statistics change with every batch: there is nothing to cache.
    views = {"views": "fresh"} if given.get("bn_mode") == "train" else {}
    return {**PROTOCOLS[protocol], **views}


def check_given(given: dict[str, Any], asked: Settings, dataset: str) -> None:
    """Raise UserError for values that cannot be, of the flags that the script does not use too."""
    check_domains(asked)
    if "stem" in given or "pretrained_pth" not in given:  # else the checkpoint settles the stem
        check_network(asked.network, asked.stem)
    if asked.workers == 0 and dataset not in ON_DISK and "pretrained_pth" not in given:
        raise UserError("--workers must be between 1 and 1024 for images in memory, not 0: they are threads")


def unused_flags(script: str, given: dict[str, Any], values: dict[str, Any], dataset: str | None) -> set[str]:
    """Return which of the flags given have no effect in `script`, where settings without preset are left out of
    `values`; `dataset` is None where a checkpoint will say it."""
    unused = {name for name, flag in FLAGS.items() if script not in flag.read_by}
    if dataset is not None and dataset not in ON_DISK:
        unused |= set(with_facet(Facet.ON_DISK))
    if script == STAGE1 and given.get("epochs") == 0:
        unused |= {*with_facet(Facet.STAGE1_STEPS), "tensorboard"} - {"epochs"}
    if given.get("subset") != "shuffle":
        unused.add("subset_seed")
    if not given.get("test_share"):
        unused.add("test_seed")
    if values.get("imb_ratio", 0) is None:
        unused |= {"imb_type", "subset", "subset_seed"}  # all images there are
    recipe = find_recipe(given.get("method", FLAGS["method"].default))
    if script == STAGE2 and not recipe.trains:
        unused |= set(with_facet(Facet.STAGE2_STEPS))
    if script == STAGE2 and not recipe.compares:
        unused.add("criterion")
    return unused & set(given)


def default_settings(script: str, preset: dict[str, Any], settings: Settings) -> Settings:
    """Return what settings would be without flags: a run folder names what differs from it.

    It names a loss that is not the default, and its parameters where they are not the loss's own.
    """
    defaults = dataclasses.replace(
        Settings(**preset), method=settings.method, loss=settings.loss, cur_stage=settings.cur_stage
    )
    return dataclasses.replace(fill_stage_values(defaults, script), loss=str(FLAGS["loss"].default))


def fill_stage_values(settings: Settings, script: str) -> Settings:
    """Replace the None of values that depend on the stage or on the method of stage 2."""
    if settings.cur_stage is None:
        settings = dataclasses.replace(settings, cur_stage="stage2" if script == STAGE2 else "stage1")
    if settings.eval_every is None and script != STAGE1:  # there it depends on the device and the data
        settings = dataclasses.replace(settings, eval_every=1)
    if settings.cur_stage == "stage2":
        return fill_method_values(settings, script)
    settings = dataclasses.replace(settings, label_smooth=settings.label_smooth or 0.0)
    return fill_loss_parameters(settings) if script == STAGE1 else settings


def fill_method_values(settings: Settings, script: str) -> Settings:
    """Give the settings of stage 2 that are None the values of the method."""
    recipe = find_recipe(settings.method)
    label_smooth = settings.label_smooth
    if label_smooth is None and settings.loma_target is None:
        label_smooth = recipe.label_smooth
    usual = {
        "finetune_epoch": recipe.epochs if recipe.trains else 0,
        "finetune_lr": recipe.lr,
        "finetune_wd": recipe.weight_decay,
        "sampler": recipe.sampler,
        "max_norm": recipe.max_norm,
        "finetune_schedule": recipe.schedule if recipe.trains else None,
    }
    given = {name: getattr(settings, name) for name in usual if getattr(settings, name) is not None}
    own: dict[str, Any] = {}
    if script == STAGE2:
        own = dict(resolve_parameters(settings.method, given_parameters(settings)))
    return dataclasses.replace(settings, label_smooth=label_smooth, **{**usual, **given, **own})


def given_parameters(settings: Settings) -> dict[str, Any]:
    """Return the hyper-parameters of losses, heads and classifiers that have a value."""
    return {name: getattr(settings, name) for name in HYPERPARAMETERS if getattr(settings, name) is not None}


def fill_loss_parameters(settings: Settings) -> Settings:
    """Give the hyper-parameters of stage 1's loss their defaults; a UserError names one that it does not have."""
    own: dict[str, Any] = dict(loss_parameters(settings.loss))
    given = given_parameters(settings)
    for name in given:
        if name not in own:
            users = ", ".join(other for other in STAGE1_LOSSES if name in loss_parameters(other))
            raise UserError(
                f"--{name} has no meaning for --loss {settings.loss}; it belongs to {users or 'no loss of stage 1'}"
            )
    return dataclasses.replace(settings, **{**own, **given})


def report_unused(script: str, flags: list[str], why: str = "") -> None:
    """Say on standard error that flags were given where they have no effect."""
    if flags:
        tell(f"not used by {script}{why}: {' '.join(flags)}", file=sys.stderr)
