"""Methods on test sets with other class shares, forward and backward, without the known prior and with it.

The protocol is LADE's (`evaluation.priors.shifted`); the correction is `evaluation.priors.correction`. With held-out
images the temperature is fitted and the classifier's own prior is measured on them; else the temperature is 1 and the
prior is that of the method's recipe. Nothing is chosen on test images.
"""

from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from engine.many_heads import Trained, train_heads
from evaluation.measure import find_temperature
from evaluation.prediction_sets.held_out import classifier_prior, find_held_out
from evaluation.priors.correction import Prior, corrected_predictions, prior_offsets
from evaluation.priors.shifted import FACTORS, shifted_profiles, weighted_accuracy
from evaluation.run_rows import data_sha256, mean_cell, refuse_mixed
from evaluation.shown_tables import Tables
from methods.plan import Plan
from runs.held_out import assumed_of
from runs.run_record import describe
from settings.command_line import parse_command
from settings.fields import STAGE2
from settings.resolve import Command
from settings.stage2_plan import plan_of
from stages.checkpoints import adopt_checkpoint
from tables.request import Request, write_results
from tables.rows import TableContext, open_context, stage1_name
from utils.errors import UserError

METHODS = ("ce", "los", "proximal_los", "balanced_softmax", "logit_adjust_posthoc", "tau_norm")
MILD = ("los", "0.8")  # the method that has a second row, with a smaller smoothing
NOT_USED, KNOWN = "not used", "known"
PROFILES = [*(f"forward-{n}" for n in FACTORS), "uniform", *(f"backward-{n}" for n in reversed(FACTORS))]
SHOWN = ("forward-50", "forward-10", "uniform", "backward-10", "backward-50")


def make_table(request: Request) -> None:
    """Write `results/priors_<experiment>.*`."""
    methods = request.methods or list(METHODS)
    flags: list[tuple[str, ...]] = [("--method", method) for method in methods]
    flags += [("--method", method, "--label_smooth", MILD[1]) for method in methods if method == MILD[0]]
    for ratio in request.ratios():
        rows: list[dict[str, Any]] = []
        failed: list[str] = []
        for seed in request.seeds:
            shared = request.starting_point(seed, **ratio)
            context = open_context(shared, __doc__ or "")
            commands = [row_command(context, [*shared, *own]) for own in flags]
            plans = [plan_of(command.settings, context.data.num_classes) for command in commands]
            for command, trained in zip(commands, train_heads(context.trainer, plans), strict=True):
                if trained.diverged is not None:
                    failed.append(f"{trained.plan.method}, seed {seed}: diverged at {trained.diverged}.")
                else:
                    rows += measure_head(context, command, trained)
        if not rows:
            raise UserError(f"no row of the table has a number: {' '.join(failed)}")
        table = pd.DataFrame(rows)
        refuse_mixed(table)
        notes = [*failed, *own_priors(table)]
        name = f"priors_{stage1_name(context)}{request.suffix()}"
        write_results(request, name, table, shown_tables(table), {"": draw(table)}, "\n".join(notes))


def row_command(context: TableContext, words: list[str]) -> Command:
    """Return the command of a row, with the start and the views that all rows share."""
    command = adopt_checkpoint(parse_command(STAGE2, "", words), context.checkpoint)
    settings = context.command.settings
    return command.replace(start=settings.start, views=settings.views)


def measure_head(context: TableContext, command: Command, trained: Trained) -> list[dict[str, Any]]:
    """Return two CSV rows of a classifier, the prior not used and known: its accuracy on every test set, in percent."""
    plan = trained.plan
    config = describe(replace(context.loaded, command=command), plan.target(context.data.num_classes))
    logits_of, counts = context.logits_of(trained.head), context.data.class_counts
    temperature = find_temperature(logits_of, context.images).value
    assumed = assumed_of(config, counts.tolist())
    source = classifier_prior(find_held_out(logits_of, context.images, assumed, temperature), assumed)
    logits, labels = logits_of("test"), context.images["test"].labels
    settings = command.settings
    common = {
        "row": row_name(plan),
        "method": plan.method,
        "label_smooth": plan.label_smooth,
        "dataset": context.data.name,
        "imb_type": settings.imb_type,
        "imb_ratio": settings.imb_ratio or context.data.imbalance_factor,
        "network": settings.network,
        "width": settings.width,
        "seed": settings.seed,
        "temperature": temperature or 1.0,
        "classifier_prior": source.words,
    }
    origin = {
        "views": settings.views,
        "train_seconds": trained.seconds,
        "data_sha256": data_sha256(config),
        "stage1_sha256": context.checkpoint.sha256,
        "command": config["command"],
        "device": config["environment"]["device"],
        "torch": config["environment"]["torch"],
        "git_revision": config["environment"]["git_revision"],
    }
    plain = logits.argmax(dim=1)
    found: dict[str, dict[str, float]] = {NOT_USED: {}, KNOWN: {}}
    for name, shares in shifted_profiles(counts).items():
        offsets = prior_offsets(source, Prior(shares, name))
        corrected = corrected_predictions(logits, offsets, temperature or 1.0)
        found[NOT_USED][name] = weighted_accuracy(plain, labels, shares)
        found[KNOWN][name] = weighted_accuracy(corrected, labels, shares)
    return [{**common, "prior": prior, **accuracies, **origin} for prior, accuracies in found.items()]


def row_name(plan: Plan) -> str:
    """Return what a row is called: its method, and the smoothing where that is not the method's own."""
    mild = (plan.method, f"{plan.label_smooth:g}" if plan.label_smooth is not None else "") == MILD
    return f"{plan.method}, s = {MILD[1]}" if mild else plan.method


def shown_tables(table: pd.DataFrame) -> Tables:
    """Return the tables that people read: five of the eleven test sets, without the prior and with it."""
    found: Tables = {}
    for prior in (NOT_USED, KNOWN):
        own = table[table["prior"] == prior]
        lines = [
            {"method": name, **{profile: mean_cell(runs[profile], 1) for profile in SHOWN}}
            for name, runs in own.groupby("row", sort=False)
        ]
        found[f"Accuracy in percent, test prior {prior}, last epoch, plain"] = pd.DataFrame(lines)
    return found


def own_priors(table: pd.DataFrame) -> list[str]:
    """Return a line for each prior that classifiers were taken to stand for, and the range of temperatures."""
    known = table[table["prior"] == KNOWN]
    groups = known.groupby("classifier_prior", sort=False)["row"]
    lines = [f"Own prior of {', '.join(dict.fromkeys(names))}: {words}." for words, names in groups]
    low, high = known["temperature"].min(), known["temperature"].max()
    return [*lines, f"Temperature {low:.3g}." if low == high else f"Temperatures {low:.3g} to {high:.3g}."]


def draw(table: pd.DataFrame) -> Figure:
    """Draw the accuracy over the test sets, from forward to backward, without the prior and with it."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, prior in zip(figure.subplots(1, 2, sharey=True), (NOT_USED, KNOWN), strict=True):
        own = table[table["prior"] == prior]
        for name, runs in own.groupby("row", sort=False):
            axes.plot(range(len(PROFILES)), runs[PROFILES].mean(), marker="o", markersize=3, label=name)
        axes.set_xticks(range(len(PROFILES)), PROFILES, rotation=60)
        axes.set(title=f"test prior {prior}", xlabel="test set")
    figure.axes[0].set(ylabel="test accuracy (%), last epoch, plain")
    figure.axes[0].legend(fontsize=8)
    return figure
