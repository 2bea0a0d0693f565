"""Methods re-trained on a stage 1 for tables that look at their logits: the classifiers, not their reports."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from engine.many_heads import Trained, train_heads
from evaluation.measure import SplitLogits
from evaluation.prediction_sets.held_out import classifier_prior, find_held_out
from evaluation.priors.correction import Prior
from evaluation.run_rows import data_sha256, refuse_mixed
from evaluation.shown_tables import Tables
from methods.plan import Plan
from runs.held_out import assumed_of
from runs.run_record import describe
from settings.command_line import parse_command
from settings.fields import STAGE2
from settings.resolve import Command
from stages.checkpoints import adopt_checkpoint
from tables.request import FileName, Request, write_results
from tables.rows import TableContext, file_name, open_context
from utils.errors import UserError

METHODS = ("ce", "los", "proximal_los", "balanced_softmax", "logit_adjust_posthoc", "tau_norm")
MILD = ("los", "0.8")  # the method that has a second row, with a smaller smoothing


@dataclass(frozen=True)
class Retrained:
    """A classifier on a stage 1, the command that makes it alone, and what a row of a CSV says of it."""

    context: TableContext
    command: Command
    trained: Trained

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of its run."""
        target = self.trained.plan.target(self.context.data.num_classes)
        return describe(replace(self.context.loaded, command=self.command), target)

    @property
    def assumed(self) -> Prior:
        """The prior that its recipe is made for."""
        return assumed_of(self.config, self.context.data.class_counts.tolist())

    def logits_of(self) -> SplitLogits:
        """Return its logits on the frozen features."""
        return self.context.logits_of(self.trained.head)

    def prior(self, logits_of: SplitLogits, temperature: float | None) -> Prior:
        """Return the prior that its probabilities stand for: measured on held-out images, or assumed."""
        return classifier_prior(find_held_out(logits_of, self.context.images, self.assumed, temperature), self.assumed)

    def about(self) -> dict[str, Any]:
        """Return the first columns of its rows: what it is."""
        plan, settings, data = self.trained.plan, self.command.settings, self.context.data
        return {
            "row": row_name(plan),
            "method": plan.method,
            "label_smooth": plan.label_smooth,
            "dataset": data.name,
            "imb_type": settings.imb_type,
            "imb_ratio": settings.imb_ratio or data.imbalance_factor,
            "network": settings.network,
            "width": settings.width,
            "seed": settings.seed,
        }

    def origin(self) -> dict[str, Any]:
        """Return the last columns of its rows: what made it."""
        config = self.config
        environment = config["environment"]
        return {
            "views": self.command.settings.views,
            "train_seconds": self.trained.seconds,
            "data_sha256": data_sha256(config),
            "stage1_sha256": self.context.checkpoint.sha256,
            "command": config["command"],
            **{name: environment[name] for name in ("device", "torch", "git_revision")},
        }


class Shown(NamedTuple):
    """What people read of a table's rows."""

    tables: Tables
    figure: Figure
    notes: list[str]


@dataclass
class Rows:
    """The rows of a table on one kind of stage 1, over the seeds; `failed` says in words which have no numbers."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """Return them as a table; a UserError says why there is none."""
        if not self.rows:
            raise UserError(f"no row of the table has a number: {' '.join(self.failed)}")
        table = pd.DataFrame(self.rows)
        refuse_mixed(table)
        return table


def make_corrected(
    request: Request,
    description: str,
    measure: Callable[[Retrained], list[dict[str, Any]]],
    read: Callable[[pd.DataFrame], Shown],
) -> None:
    """Write `results/<table>_<experiment>.*` for each imbalance factor: the rows that `measure` makes of every method's
    classifier on each seed's stage 1, and what people `read` of them."""
    for ratio in request.ratios():
        made, name = Rows(), FileName(request.table)
        for seed in request.seeds:
            for classifier in retrain(request, seed, description, made.failed, **ratio):
                made.rows += measure(classifier)
                name = file_name(request.table, classifier.context, request.seeds, request.methods)
        table = made.table()
        shown = read(table)
        write_results(request, name, table, shown.tables, {"": shown.figure}, "\n".join([*made.failed, *shown.notes]))


def row_flags(methods: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the flags of the rows: each method with its own numbers, and LOS with a smaller smoothing too."""
    flags: list[tuple[str, ...]] = [("--method", method) for method in methods]
    return flags + [("--method", method, "--label_smooth", MILD[1]) for method in methods if method == MILD[0]]


def retrain(request: Request, seed: int, description: str, failed: list[str], **like: Any) -> Iterator[Retrained]:
    """Yield the classifiers of the table's methods on the stage 1 of a seed; add to `failed` which diverged."""
    shared = request.starting_point(seed, **like)
    context = open_context(shared, description)
    commands = [row_command(context, [*shared, *own]) for own in row_flags(request.methods or METHODS)]
    plans = [context.plan_of(command) for command in commands]
    for command, trained in zip(commands, train_heads(context.trainer, plans), strict=True):
        if trained.diverged is not None:
            failed.append(f"{trained.plan.method}, seed {seed}: diverged at {trained.diverged}.")
        else:
            yield Retrained(context, command, trained)


def row_command(context: TableContext, words: list[str]) -> Command:
    """Return the command of a row, with the start and the views that all rows share."""
    command = adopt_checkpoint(parse_command(STAGE2, "", words), context.checkpoint)
    settings = context.command.settings
    return command.replace(start=settings.start, views=settings.views)


def row_name(plan: Plan) -> str:
    """Return what a row is called: its method, and the smoothing where that is not the method's own."""
    mild = (plan.method, f"{plan.label_smooth:g}" if plan.label_smooth is not None else "") == MILD
    return f"{plan.method}, s = {MILD[1]}" if mild else plan.method
