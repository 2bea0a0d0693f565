"""Choose a method's numbers on held-out images: as many trials for every method, and the test set has no part in it.

The trials run on stage 1s that were trained without the held-out images: on images that a backbone has seen, its
features are memorised and every classifier looks good. What is chosen on such splits is then used on the stage 1 that
was trained on all images.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from engine.many_heads import Trained, chunks, train_heads
from evaluation.measure import find_temperature
from evaluation.metrics import class_balanced_accuracy
from methods.plan import Plan, plan_key
from methods.recipes import FOUR_LRS, TUNED_EPOCHS, TWELVE_LRS, find_recipe
from settings.command_line import parse_command
from settings.fields import STAGE2
from settings.presets import preset_flags
from tables.rows import TableContext, kept_place
from utils.errors import UserError
from utils.files import make_folder, read_json, write_json
from utils.progress import LineAMinute
from utils.text import tell

Flags = tuple[str, ...]
SPLITS = 3


def trials(method: str) -> list[Flags]:
    """Return the flags of every trial of `method`: learning rate x epochs x its own parameter, `recipes.TRIALS` in all.

    A method without a parameter of its own has a finer grid of learning rates instead; one that is computed has a finer
    grid of its parameter; one with nothing to choose has the one trial that there is.
    """
    recipe = find_recipe(method)
    own = [()] if recipe.tuned is None else [_flag(recipe.tuned[0], value) for value in recipe.tuned[1]]
    if not recipe.trains:
        return [("--method", method, *flags) for flags in own]
    rates = TWELVE_LRS if recipe.tuned is None else FOUR_LRS
    return [
        ("--method", method, "--finetune_epoch", str(epochs), "--finetune_lr", f"{rate:g}", *flags)
        for epochs, rate, flags in itertools.product(TUNED_EPOCHS, rates, own)
    ]


def _flag(name: str, value: float) -> Flags:
    return f"--{name}", f"{value:g}"


def refuse_seen(context: TableContext) -> None:
    """Raise UserError where a stage 1 has seen the images that would choose."""
    if len(context.data.holdout) == 0:
        advice = "train stage 1 with --holdout 0.2 and name its run with --holdout_pth"
        if context.command.settings.features is not None:
            advice = f"put holdout_features and holdout_labels into {context.command.settings.features}"
        raise UserError(f"{context.checkpoint.path} was trained on all images, so none are left to choose on; {advice}")
    if context.command.settings.start == "best":
        raise UserError(f"{context.checkpoint.path} is of the epoch that was best on the test set; choose on last.pth")


def plan_for(flags: Flags, context: TableContext) -> Plan:
    """Return the plan that `main_stage2.py` would make of these flags."""
    return context.plan_of(parse_command(STAGE2, "", [*preset_of_context(context), *flags], quiet=True))


def preset_of_context(context: TableContext) -> list[str]:
    """Return the flags that give stage 2 the preset of a stage 1's data."""
    features = context.command.settings.features
    scale = ["--rate_scale", context.command.settings.rate_scale]
    return ["--features", features] if features is not None else [*preset_flags(context.data.name), *scale]


def possible(flags: Flags, context: TableContext) -> bool:
    """Tell whether a trial makes sense on this data set: `lort` does not with a large smoothing on few classes.

    A method that is fitted on the held-out images is not tried: what it scores on them would be too good.
    """
    try:
        return not plan_for(flags, context).needs_held_out
    except UserError:
        return False


def select(methods: Sequence[str], extra: Sequence[Flags], contexts: Sequence[TableContext]) -> pd.DataFrame:
    """Try every trial of `methods` on each split; return a row a trial: flags, score on each split, mean, temperature.

    The score is the class-balanced accuracy on the held-out images, in percent, of the last epoch; a trial that
    diverges has none. `extra` trials (the shared budget) only get a temperature. `chosen` marks the best mean of each
    method, the middle one of equal ones. Temperatures are the geometric mean over the splits, of the chosen trials and
    the extra ones.
    """
    for context in contexts:
        refuse_seen(context)
    # Features come with one held-out share of their own, which no classifier here has learned from.
    needed = 1 if contexts[0].command.settings.features is not None else SPLITS
    if len({context.checkpoint.identity for context in contexts}) < needed:
        raise UserError(f"--holdout_pth must name {SPLITS} different stage 1s: the score is their mean")
    grid = [(method, flags) for method in methods for flags in trials(method) if possible(flags, contexts[0])]
    hopeless = [method for method in methods if method not in {tried for tried, _ in grid}]
    fitted = [method for method in methods if find_recipe(method).needs_held_out]
    if fitted:
        tell(f"not chosen: {', '.join(fitted)}, fitted on the held-out images that would choose")
    grid += [(f"shared budget: {flags[1]}", flags) for flags in extra if possible(flags, contexts[0])]
    table = pd.DataFrame({"method": [method for method, _ in grid], "flags": [" ".join(flags) for _, flags in grid]})
    by_split: list[list[Tried]] = []
    for number, context in enumerate(contexts):
        words = f"split {number + 1} of {len(contexts)}"
        tell(f"{words}: {len(grid)} trials, {len(context.data.holdout)} held-out images", flush=True)
        by_split.append(try_all(context, [plan_for(flags, context) for _, flags in grid], words))
        table[f"split{number}"] = [math.nan if tried.score is None else tried.score for tried in by_split[-1]]
    splits = [f"split{number}" for number in range(len(contexts))]
    table["mean"] = table[splits].mean(axis=1, skipna=False)
    table["chosen"] = False
    for _, rows in table.groupby("method", sort=False):
        best = rows.index[rows["mean"].round(6) == rows["mean"].round(6).max()]
        if len(best):
            table.loc[best[len(best) // 2], "chosen"] = True
    nothing = pd.DataFrame({"method": hopeless, "flags": "", "chosen": False})
    table["temperature"] = [
        mean_temperature([tried[i].temperature for tried in by_split]) if chosen else None
        for i, chosen in enumerate(table["chosen"])
    ]
    return pd.concat([table, nothing]) if hopeless else table


class Tried(NamedTuple):
    """What a trial came to on one split: None for the score of one that diverged, and where none could be fitted."""

    score: float | None
    temperature: float | None


def try_all(context: TableContext, plans: Sequence[Plan], words: str) -> list[Tried]:
    """Train every plan on a split, and keep what it came to; what an earlier start has kept is used as it is.

    Those that train together are kept together: with some of them missing, the sums of the others may round otherwise.
    """
    tried: dict[int, Tried] = {}
    tell = LineAMinute()

    def after_epoch(epoch: int, trained: Sequence[Trained]) -> None:
        of = f"{len(trained)} more in epoch {epoch} of {trained[0].plan.epochs}"
        tell(lambda: f"{words}: {len(tried)} of {len(plans)} trials done, {of}")

    for chunk in chunks(plans):
        own = [plans[i] for i in chunk]
        place = kept_trials(context, own)
        kept = read_trials(place, len(own)) if place.exists() else None
        if kept is None:
            kept = [outcome(context, result) for result in train_heads(context.trainer, own, after_epoch)]
            make_folder(place.parent)
            write_json(place, {"trials": kept})
        tried |= zip(chunk, kept, strict=True)
    return [tried[i] for i in range(len(plans))]


def kept_trials(context: TableContext, plans: Sequence[Plan]) -> Path:
    """Return where the outcomes of trials that train together are kept, for everything that they depend on."""
    trainer, settings = context.trainer, context.command.settings
    place = kept_place(
        context,
        f"trials_{plans[0].method}",
        plans=[plan_key(plan) for plan in plans],
        seed=settings.seed,
        views=settings.views,
        batch_size=settings.batch_size,
        momentum=settings.momentum,
        counts=trainer.class_counts,
    )
    return place.path


def read_trials(path: Path, count: int) -> list[Tried]:
    """Read kept trials; a UserError names a damaged file."""
    rows = read_json(path).get("trials")
    if not isinstance(rows, list) or [len(row) for row in rows if isinstance(row, list)] != [2] * count:
        raise UserError(f"{path} is damaged; delete it, and the trials are made again")
    return [Tried(*row) for row in rows]


def outcome(context: TableContext, result: Trained) -> Tried:
    """Return what a trial came to on its split."""
    value = score(context, result)
    if math.isnan(value):
        return Tried(None, None)
    return Tried(value, find_temperature(context.logits_of(result.head), context.images).value)


@torch.no_grad()
def score(context: TableContext, result: Trained) -> float:
    """Return the class-balanced accuracy of a head on the held-out images, in percent; NaN where it diverged."""
    if result.diverged is not None:
        return math.nan
    logits = context.logits_of(result.head)("holdout")
    return class_balanced_accuracy(logits, context.images["holdout"].labels)


def mean_temperature(fitted: Sequence[float | None]) -> float | None:
    """Return the geometric mean of the temperatures that the held-out images of each split ask for, None where none
    could be fitted."""
    known = [math.log(value) for value in fitted if value is not None]
    return math.exp(sum(known) / len(known)) if known else None
