"""Choose a method's numbers on held-out images: as many trials for every method, and the test set has no part in it.

The trials run on stage 1s that were trained without the held-out images: on images that a backbone has seen, its
features are memorised and every classifier looks good. What is chosen on such splits is then used on the stage 1 that
was trained on all images.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from engine.many_heads import Trained, chunks, train_heads
from evaluation.measure import find_temperature
from evaluation.metrics import class_balanced_accuracy
from methods.plan import Plan, plan_key
from methods.recipes import FOUR_LRS, TUNED_EPOCHS, TWELVE_LRS, find_recipe
from settings.command_line import parse_command
from settings.fields import FLAGS, STAGE1, STAGE2
from settings.presets import preset_flags
from tables.rows import TableContext, kept_place
from utils.errors import UserError
from utils.files import make_folder, read_json, write_json
from utils.progress import LineAMinute
from utils.text import counted, tell

Flags = tuple[str, ...]
LEAST_SPLITS = 2  # of networks, where each split is a stage 1 of its own: one says too little about another
WIDENED = 3  # times that a grid grows at most
FURTHER = 4.0  # the largest factor between a number and the next one beyond the grid


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
        raise UserError(f"{context.checkpoint.path} was trained on all images, so none are left to choose on; {advice}")
    if context.command.settings.start == "best":
        raise UserError(f"{context.checkpoint.path} is of the epoch that was best on the test set; choose on last.pth")


def stage1_recipe(context: TableContext) -> dict[str, Any]:
    """Return the flags that made a stage 1, but for its seed and what it held out."""
    trained = context.checkpoint.settings()
    names = ["dataset", "imb_type", "imb_ratio", "network"]
    names += [name for name, flag in FLAGS.items() if STAGE1 in flag.named_by and name != "holdout"]
    return {name: trained[name] for name in names if not (trained.get(name) is None or trained[name] is False)}


def refuse_other_recipe(split: TableContext, context: TableContext) -> None:
    """Raise UserError where numbers chosen on one kind of stage 1 would be used on another."""
    there, here = stage1_recipe(split), stage1_recipe(context)
    # A stage 1 of an earlier version lacks the settings that came later; they had their defaults.
    differing = [
        f"--{name} {there.get(name)} there, {here.get(name)} here"
        for name in {**there, **here}
        if there.get(name, FLAGS[name].default) != here.get(name, FLAGS[name].default)
    ]
    if differing:
        raise UserError(f"{split.checkpoint.path} was not trained like the table's stage 1: {'; '.join(differing)}")


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
    method, of equal ones that of the middle learning rate; where that is at an end of its grid, the grid is widened.
    `stage1` is the score of stage 1, the mean over the splits. Temperatures are the geometric mean over the splits, of
    the chosen trials and the extra ones.
    """
    for context in contexts:
        refuse_seen(context)
    # Features come with held-out rows, or folds, of their own, which no classifier here has learned from.
    needed = 1 if contexts[0].command.settings.features is not None else LEAST_SPLITS
    if len({context.checkpoint.identity for context in contexts}) < needed:
        raise UserError(f"--holdout_pth must name {LEAST_SPLITS} different stage 1s or more: the score is their mean")
    grid = [(method, flags) for method in methods for flags in trials(method) if possible(flags, contexts[0])]
    hopeless = [method for method in methods if method not in {tried for tried, _ in grid}]
    fitted = [method for method in methods if find_recipe(method).needs_held_out]
    if fitted:
        tell(f"not chosen: {', '.join(fitted)}, fitted on the held-out images that would choose")
    grid += [(f"shared budget: {flags[1]}", flags) for flags in extra if possible(flags, contexts[0])]
    table = try_grid(grid, contexts)
    for _ in range(WIDENED):
        more = [trial for trial in beyond_ends(table, methods) if possible(trial[1], contexts[0])]
        if not more:
            break
        tell(f"chosen at an end of its grid, which is widened: {', '.join(dict.fromkeys(name for name, _ in more))}")
        table = mark_chosen(pd.concat([table, try_grid(more, contexts)], ignore_index=True))
    table["temperature"] = table["temperature"].where(table["chosen"])
    table["stage1"] = float(np.mean([stage1_score(context) for context in contexts]))
    nothing = pd.DataFrame({"method": hopeless, "flags": "", "chosen": False})
    return pd.concat([table, nothing]) if hopeless else table


def try_grid(grid: Sequence[tuple[str, Flags]], contexts: Sequence[TableContext]) -> pd.DataFrame:
    """Return a row for each trial (method, flags), measured on each split."""
    table = pd.DataFrame({"method": [method for method, _ in grid], "flags": [" ".join(flags) for _, flags in grid]})
    by_split: list[list[Tried]] = []
    for number, context in enumerate(contexts):
        words = f"split {number + 1} of {len(contexts)}"
        tell(
            f"{words}: {counted(len(grid), 'trial')}, {counted(len(context.data.holdout), 'held-out image')}",
            flush=True,
        )
        by_split.append(try_all(context, [plan_for(flags, context) for _, flags in grid], words))
        table[f"split{number}"] = [math.nan if tried.score is None else tried.score for tried in by_split[-1]]
    table["mean"] = table[[f"split{number}" for number in range(len(contexts))]].mean(axis=1, skipna=False)
    table["temperature"] = pd.Series(
        [mean_temperature([tried[i].temperature for tried in by_split]) for i in range(len(grid))], dtype=float
    )
    return mark_chosen(table)


def mark_chosen(table: pd.DataFrame) -> pd.DataFrame:
    """Return trials with `chosen` at the best mean of each method, of equal ones that of the middle learning rate."""
    table["chosen"] = False
    for _, rows in table.groupby("method", sort=False):
        equal = rows.index[rows["mean"].round(6) == rows["mean"].round(6).max()]
        best = sorted(equal, key=lambda place: rate_of(table["flags"][place]))
        if len(best):
            table.loc[best[len(best) // 2], "chosen"] = True
    return table


def rate_of(flags: str) -> float:
    """Return the learning rate among flags, 0 without one."""
    words = flags.split()
    return float(words[words.index("--finetune_lr") + 1]) if "--finetune_lr" in words else 0.0


def beyond_ends(table: pd.DataFrame, methods: Sequence[str]) -> list[tuple[str, Flags]]:
    """Return trials beyond the grid of each method whose chosen number is the smallest or the largest that was tried:
    the chosen flags, with one number moved."""
    found = []
    for method in methods:
        own = table[table["method"] == method]
        for chosen in own.loc[own["chosen"], "flags"]:
            flags = chosen.split()
            for name in {"--finetune_lr", f"--{(find_recipe(method).tuned or ('finetune_lr',))[0]}"} & set(flags):
                place = flags.index(name) + 1
                tried = sorted({float(row.split()[place]) for row in own["flags"]})
                value = next_value(tried, float(flags[place]))
                if value is not None:
                    found.append((method, (*flags[:place], f"{value:.4g}", *flags[place + 1 :])))
    return found


def next_value(tried: Sequence[float], chosen: float) -> float | None:
    """Return a number beyond those `tried`, ascending, next to the `chosen` one, None where that is at no end.

    A grid between one half and 1 closes in on 1, another with a first number above 0 goes on by factors, at most
    `FURTHER`; one from 0 on by its last difference.
    """
    if len(tried) < 2 or tried[0] < chosen < tried[-1]:
        return None
    if tried[0] >= 0.5 and tried[-1] < 1:
        inner = next_value([1 - value for value in reversed(tried)], 1 - chosen)
        return None if inner is None else 1 - inner
    last, before = (tried[0], tried[1]) if chosen == tried[0] else (tried[-1], tried[-2])
    if tried[0] > 0:
        return last * min(max(last / before, 1 / FURTHER), FURTHER)
    return last + (last - before)


def stage1_score(context: TableContext) -> float:
    """Return the class-balanced accuracy of stage 1's classifier on the held-out images, in percent."""
    logits = context.logits_of(context.trainer.linear)("holdout")
    return class_balanced_accuracy(logits, context.images["holdout"].labels)


class Tried(NamedTuple):
    """What a trial came to on one split: None for the score of one that diverged, and where none could be fitted."""

    score: float | None
    temperature: float | None


def try_all(context: TableContext, plans: Sequence[Plan], words: str) -> list[Tried]:
    """Train every plan on a split, and keep what it came to; what an earlier start has kept is used as it is.

    Those that train together are kept together: with some of them missing, the sums of the others may round otherwise.
    """
    tried: dict[int, Tried] = {}
    minute = LineAMinute()

    def after_epoch(epoch: int, trained: Sequence[Trained]) -> None:
        of = f"{len(trained)} more in epoch {epoch} of {trained[0].plan.epochs}"
        minute(lambda: f"{words}: {len(tried)} of {len(plans)} trials done, {of}")

    for chunk in chunks(plans):
        own = [plans[i] for i in chunk]
        place = kept_trials(context, own)
        kept = read_trials(place, len(own)) if place.exists() else None
        if kept is None:
            kept = [outcome(context, result) for result in train_heads(context.trainer, own, after_epoch)]
            make_folder(place.parent)
            write_json(place, {"trials": kept})
        tried |= zip(chunk, kept, strict=True)
        names = list(dict.fromkeys(plan.method for plan in own))
        if all(plans[i].recipe.trains or i in tried for i, plan in enumerate(plans) if plan.method in names):
            tell(f"{words}: {len(tried)} of {len(plans)} trials done; {best_words(plans, tried, names)}", flush=True)
    return [tried[i] for i in range(len(plans))]


def best_words(plans: Sequence[Plan], tried: Mapping[int, Tried], names: Sequence[str]) -> str:
    """Return in words the best score that was `tried` of each of some methods."""
    scores = {
        name: [tried[i].score for i, plan in enumerate(plans) if plan.method == name and i in tried] for name in names
    }
    return ", ".join(
        f"{name} {max((score for score in own if score is not None), default=math.nan):.2f}"
        for name, own in scores.items()
    )


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
        **({} if context.fold is None else {"fold": list(context.fold)}),
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
