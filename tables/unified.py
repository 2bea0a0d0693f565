"""Every re-training method on one frozen feature: with a shared budget, with the numbers that it was published with,
and with numbers chosen on held-out images."""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.csv_files import csv_text, read_csv
from evaluation.run_rows import csv_row, refuse_mixed
from evaluation.shown_tables import Line, logits_cells, rebalanced_cells, report_tables
from methods.recipes import RECIPES
from runs.dependencies import class_differences, describe_data
from runs.run_record import git_revision
from settings.command_line import parse_command
from settings.fields import FLAGS, STAGE2
from settings.presets import preset_flags
from tables.claims import claims_of, with_ends
from tables.folds import fold_contexts
from tables.published import cell, sources
from tables.request import FileName, Request, name_for, write_results
from tables.rows import Measured, Row, TableContext, data_of, file_name, measure_rows, open_context
from tables.selection import Flags, refuse_other_recipe, select, stage1_recipe
from tables.unified_figures import draw_bars, draw_evenness, draw_per_class
from tables.winner import closing_lines
from utils.device import device_name
from utils.errors import UserError
from utils.files import write_text
from utils.parameters import HYPERPARAMETERS
from utils.text import tell

LONGEST_NAME = 200  # characters of a file's name that can have been written
SHARED, OWN, SELECTED = "shared", "own", "selected"
NOTES = (
    "Temperatures are fitted on the held-out images of the splits. Seconds: an equal share of the time that the heads "
    "trained in together, without the features."
)


def make_table(request: Request) -> None:
    """Write `results/unified_<experiment>.*`; with `--select`, first `..._selection.csv`."""
    methods = request.methods or list(RECIPES)
    measured: list[Measured] = []
    for ratio in request.ratios():
        for seed in request.seeds:
            flags = request.starting_point(seed, **ratio)
            context = open_context(flags, __doc__ or "")
            name = file_name("unified", context, request.seeds, request.methods)
            choices = find_choices(request, name, methods, context)
            rows = rows_of(methods, context.data.name, choices)
            measured += measure_rows(context, flags, rows, temperatures(choices))
        report(request, name, measured, choices)
        tell(closing_lines(flags, measured, choices))
        measured = []


def shared_flags(method: str, dataset: str) -> Flags:
    """Return the flags of a method under the shared budget: epochs, learning rate and its schedule of LOS on this data
    set.

    Weight decay is a method's own where it is the method.
    """
    if not RECIPES[method].trains:
        return "--method", method
    usual = parse_command(STAGE2, "", [*preset_flags(dataset), "--method", "los"]).settings
    budget: Flags = ("--finetune_epoch", str(usual.finetune_epoch), "--finetune_lr", f"{usual.finetune_lr:g}")
    if RECIPES[method].schedule != usual.finetune_schedule:
        budget += ("--finetune_schedule", str(usual.finetune_schedule))
    decay = RECIPES[method].weight_decay if method.startswith("wb") else 0
    return "--method", method, *budget, "--finetune_wd", f"{decay:g}"


def rows_of(methods: Sequence[str], dataset: str, choices: pd.DataFrame | None) -> list[Row]:
    """Return the rows: each method under the shared budget, with the numbers of its stage 2 where it was published with
    such, and with chosen ones where there are."""
    rows = [Row({"method": method, "budget": SHARED}, shared_flags(method, dataset)) for method in methods]
    own = [method for method in methods if RECIPES[method].trains and RECIPES[method].own_budget]
    rows += [Row({"method": method, "budget": OWN}, ("--method", method)) for method in own]
    if choices is not None:
        chosen = choices[choices["chosen"] & choices["method"].isin(methods)]
        rows += [
            Row({"method": method, "budget": SELECTED}, tuple(shlex.split(flags)))
            for method, flags in zip(chosen["method"], chosen["flags"], strict=True)
        ]
    return rows


def temperatures(choices: pd.DataFrame | None) -> dict[str, float]:
    """Return the temperature known for the flags of a row."""
    if choices is None:
        return {}
    known = choices[choices["temperature"].notna()]
    return dict(zip(known["flags"], known["temperature"], strict=True))


def temperature_notes(choices: pd.DataFrame | None) -> list[str]:
    """Return what is said of the choices whose held-out images ask for no finite temperature on any split."""
    if choices is None:
        return []
    without = choices.loc[choices["chosen"] & choices["temperature"].isna(), "method"]
    words = ", ".join(str(name).removeprefix("shared budget: ") for name in dict.fromkeys(without))
    return [f"No finite temperature, so that nothing follows it: {words}."] if words else []


def find_choices(
    request: Request, name: FileName, methods: Sequence[str], context: TableContext
) -> pd.DataFrame | None:
    """Return the trials that an earlier selection left; with `--select`, after choosing for what is missing of them.

    What was chosen on other splits or other data, or for another batch size or other views, is not used; a new
    selection replaces it.
    """
    path = selection_path(request, name, data_of(context))
    settings = context.command.settings
    conditions = f"views {settings.views}, batch_size {settings.batch_size}, momentum {settings.momentum:g}"
    known = read_selection(path)
    earlier = replace(name, methods=())
    if known is None and earlier.stem != earlier.spelled and len(earlier.spelled) < LONGEST_NAME:
        known = read_selection(request.results / f"{earlier.spelled}_selection.csv")
    if known is not None and known["conditions"].iloc[0] != conditions:
        tell(f"{path} was chosen with {known['conditions'].iloc[0]}, not {conditions}: it is not used")
        known = None
    if known is not None and other_data(known, context):
        tell(f"{path} was chosen on other data ({', '.join(other_data(known, context))}): it is not used")
        known = None
    if request.select:
        known = None if known is None else without_earlier_forms(path, known, list(RECIPES))
        known = choose_missing(request, path, methods, context, known, conditions)
    known = None if known is None else of_methods(without_earlier_forms(path, known, methods), methods)
    if known is None:
        tell("no selection yet: --select chooses each method's numbers on held-out images")
        return None
    tell(f"numbers chosen on held-out images{'' if request.select else ' by an earlier command'}: {path}")
    return known


def of_methods(known: pd.DataFrame | None, methods: Sequence[str]) -> pd.DataFrame | None:
    """Return the trials of some methods, which the others of a selection have no part in; None where there are none."""
    if known is None:
        return None
    own = known[known["method"].str.removeprefix("shared budget: ").isin(methods)]
    return None if own.empty else own


def choose_missing(
    request: Request,
    path: Path,
    methods: Sequence[str],
    context: TableContext,
    known: pd.DataFrame | None,
    conditions: str,
) -> pd.DataFrame | None:
    """Return the trials with those of the methods that `known` ones lack, chosen now and written to `path`."""
    if context.command.settings.features is not None and len(context.data.holdout) == 0:
        contexts = fold_contexts(context)
    else:
        contexts = [open_context(flags, "") for flags in request.splits(**stage1_recipe(context))]
    for split in contexts:
        refuse_other_recipe(split, context)
    splits = " ".join(split.checkpoint.identity for split in contexts)
    if known is not None and known["splits_sha256"].iloc[0] != splits:
        tell(f"{path} was chosen on other splits: choosing again")
        known = None
    missing = [method for method in methods if known is None or method not in set(known["method"])]
    if not missing:
        return known
    shared = [shared_flags(method, context.data.name) for method in missing]
    started = time.perf_counter()
    trials = select(missing, shared, contexts)
    made: dict[str, Any] = {
        "conditions": conditions,
        "data_sha256": data_of(context),
        "splits_sha256": splits,
        "data": json.dumps(selection_data(context)),
        "command": request.command,
        "device": device_name(context.trainer.execution.device),
        "git_revision": git_revision(),
        "seconds_of_all": round(time.perf_counter() - started),
    }
    for column, value in made.items():  # of all trials alike: said once, in the first row
        trials[column] = [value] + [None] * (len(trials) - 1)
    trials["form"] = trials["method"].map(lambda method: form_of(method.removeprefix("shared budget: ")))
    known = trials if known is None else pd.concat([known, trials])
    write_text(path, csv_text(known, "%.6g"))
    tell(f"written to {path}")
    return known


def selection_path(request: Request, name: FileName, data: str) -> Path:
    """Return where the trials of a selection are kept; the methods of a part of the table share them."""
    whole = f"{replace(name, methods=()).stem}_selection"
    return request.results / f"{name_for(request.results, whole, [data])}.csv"


def form_of(method: str) -> str:
    """Return what a method is beside its numbers, as a selection records it: its head, its schedule, its words."""
    recipe = RECIPES[method]
    words = [f"{name} {value}" for name, value in recipe.own_parameters().items() if isinstance(value, str)]
    return ", ".join([recipe.head, recipe.schedule, *words])


def has_earlier_form(method: str) -> bool:
    """Tell whether a method was another one in selections that record no form, being older than its choices."""
    recipe = RECIPES[method]
    words = {name: HYPERPARAMETERS[name].before for name in recipe.own_parameters()}
    changed = any(words[name] not in (None, value) for name, value in recipe.own_parameters().items())
    return changed or recipe.earlier_head is not None or recipe.schedule != FLAGS["finetune_schedule"].before


def without_earlier_forms(path: Path, known: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame | None:
    """Return the trials of a selection without those of methods that were other ones then, and say which these are."""
    forms = known["form"] if "form" in known else pd.Series(None, index=known.index, dtype=object)
    of = known["method"].str.removeprefix("shared budget: ")
    other = pd.Series(
        [
            method in RECIPES and (form != form_of(method) if isinstance(form, str) else has_earlier_form(method))
            for method, form in zip(of, forms, strict=True)
        ],
        index=known.index,
    )
    named = [method for method in dict.fromkeys(of[other]) if method in methods]
    if named:
        tell(f"{path} was chosen for earlier forms of {', '.join(named)}: not used for them")
    # What all trials have in common stands in the first row of a selection: it stays, whatever row is first.
    kept = known[~other].copy()
    if kept.empty:
        return None
    common = ["conditions", "data_sha256", "splits_sha256", "data", "command", "device", "git_revision"]
    for column in [*common, "seconds_of_all"]:
        if column in known and pd.isna(kept[column].iloc[0]):
            kept[column] = kept[column].astype(object)
            kept.iloc[0, kept.columns.get_loc(column)] = known[column].iloc[0]
    return kept


def selection_data(context: TableContext) -> dict[str, Any]:
    """Return what a choice of numbers depends on of the data: all training images, and the classes.

    The test set has no part in it, nor has the share that this stage 1 held out.
    """
    record = describe_data(context.data)["identity"] or {}
    return {
        "training images": {name: record.get(name) for name in ("how", "of", "pool_sha256")},
        "class_names": context.data.class_names,
    }


def other_data(known: pd.DataFrame, context: TableContext) -> list[str]:
    """Return in words how the data that numbers were chosen on differ; earlier selections did not record them."""
    recorded = known["data"].iloc[0] if "data" in known else None
    try:
        before = json.loads(recorded) if isinstance(recorded, str) else {}
    except ValueError:
        return ["unknown ones"]
    now = selection_data(context)
    before_images, images = before.get("training images") or {}, now["training images"]
    found = class_differences(before, now)
    if before_images.get("how") == images["how"] and before_images.get("pool_sha256") != images["pool_sha256"]:
        found.append(f"other training images ({images['how']})")
    return found


def read_selection(path: Path) -> pd.DataFrame | None:
    """Read the trials of an earlier selection, None where there is none; a UserError names a damaged file."""
    if not path.exists():
        return None
    needed = {"method", "flags", "mean", "chosen", "temperature", "conditions", "splits_sha256"}
    advice = "delete it and choose again with --select"
    try:
        table = read_csv(path, sorted(needed))
        sound = not table.empty and table["method"].map(type).eq(str).all() and table["chosen"].dtype == bool
        sound &= all(pd.api.types.is_numeric_dtype(table[name]) for name in ("mean", "temperature"))
        sound &= all(isinstance(cell, str) and shlex.split(cell) for cell in table.loc[table["chosen"], "flags"])
        sound &= all(isinstance(table[name].iloc[0], str) for name in ("conditions", "splits_sha256"))
    except (UserError, ValueError, IndexError) as error:  # quotation marks that do not end
        raise UserError(f"{path} is damaged; {advice}") from error
    if not sound:
        raise UserError(f"{path} is damaged; {advice}")
    return table


def report(request: Request, name: FileName, measured: Sequence[Measured], choices: pd.DataFrame | None) -> None:
    """Write the table's CSV, Markdown and figures."""
    rows = pd.DataFrame([table_row(row) for row in measured])
    if rows["failure"].notna().all():
        raise UserError(f"no row of the table has a number: {'; '.join(rows['failure'].unique())}")
    refuse_mixed(rows)
    numbers = {} if choices is None else dict(zip(choices["flags"], choices["mean"], strict=True))
    rows["held_out_mean"] = pd.to_numeric(pd.Series([numbers.get(flags) for flags in rows["flags"]], index=rows.index))
    published = {
        method: cell(rows["dataset"].iloc[0], float(rows["imb_ratio"].iloc[0]), method) for method in rows["method"]
    }
    rows = with_ends(rows, [row["metrics"] for row in measured])
    groups = rows.groupby(["budget", "method"], sort=False)
    runs = [
        [(measured[place]["metrics"], measured[place]["config"]) for place in own.index if measured[place]["metrics"]]
        for _, own in groups
    ]
    lines = [line_of(budget, method, runs, published[method]) for (budget, method), runs in groups]
    failures = [
        f"{line.label['method']}, {line.label['budget']} budget: {line.runs['failure'].dropna().iloc[0]}."
        for line in lines
        if line.failed
    ]
    notes = [*failures, NOTES, *temperature_notes(choices), *correlations(rows), sources(list(published.values()))]
    titles = {SHARED: "shared budget", OWN: "own, as published", SELECTED: "chosen on held-out images"}
    figures = {"": draw_bars(rows, titles), "logits": draw_per_class(measured, titles)}
    claims = claims_of(lines, runs, "budget", [line.label["method"] for line in lines])
    if claims is not None:
        figures["intervals"] = draw_evenness(claims.long, titles)
    write_results(request, name, rows, report_tables(lines), figures, "\n".join(notes), claims)


FEWEST = 8  # methods whose order says something


def correlations(rows: pd.DataFrame) -> list[str]:
    """Return, for each budget, how well three numbers order the methods as their test accuracy does (Spearman)."""
    names = {
        "loma_variation": "LoMa sd/mean",
        "weight_norm_variation": "weight norm sd/mean",
        "held_out_mean": "accuracy on held-out images",
    }
    lines = []
    for budget, runs in rows.groupby("budget", sort=False):
        means = runs.groupby("method")[["last_plain_all", *names]].mean()
        found = []
        for column, words in names.items():
            both = means[["last_plain_all", column]].dropna().rank()
            if len(both) >= FEWEST and (both.nunique() > 1).all():
                found.append(f"{words} {both['last_plain_all'].corr(both[column]):.2f} ({len(both)} methods)")
        if found:
            lines.append(f"Rank correlation with the accuracy over the methods, {budget} budget: {', '.join(found)}.")
    return lines


def chosen_words(flags: str) -> str:
    """Return the numbers that a selected row was given, without its method."""
    words = shlex.split(flags)[2:]
    pairs = [
        f"{name.removeprefix('--').removeprefix('finetune_')} {value}"
        for name, value in zip(words[::2], words[1::2], strict=True)
    ]
    return ", ".join(pairs) or "-"


def table_row(row: Measured) -> dict[str, Any]:
    """Return a row's CSV line; a diverged one has no numbers."""
    config, label = row["config"], row["label"]
    common = {**label, "title": RECIPES[label["method"]].title, "citation": RECIPES[label["method"]].citation}
    if row["failure"]:
        settings = config["settings"]
        known = {key: settings[key] for key in ("dataset", "imb_type", "imb_ratio", "network", "width", "seed")}
        return {**common, "failure": row["failure"], **known, "command": config["command"]}
    return {**common, "failure": None, **{k: v for k, v in csv_row(row["metrics"], config).items() if k not in common}}


def line_of(budget: str, method: str, runs: pd.DataFrame, published: str) -> Line:
    """Return the line of a method in the tables that people read."""
    chosen = chosen_words(runs["flags"].iloc[0]) if budget == SELECTED else "-"
    more = {"Numbers chosen on held-out images, and published accuracies": {"chosen": chosen, "published": published}}
    failed = bool(runs["failure"].notna().any())
    if not failed:
        more |= {**logits_cells(runs), **rebalanced_cells(runs)}
    return Line({"method": method, "budget": budget}, runs, failed, more)
