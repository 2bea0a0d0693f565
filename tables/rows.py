"""Rows of a table: classifiers re-trained together on one stage 1, each measured and kept as a run would be.

A row is a command line of `main_stage2.py`; its metrics have the schema of that run's metrics.json. Finished rows are
kept under `<out>/tables/`, keyed by everything that they depend on, so a table that was stopped goes on where it was.
"""

import contextlib
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from datasets.identity.content import CONTENT
from datasets.long_tail import LongTailedData
from datasets.on_disk.listed_split import ListedSplit
from engine.cache.dependencies import row_dependencies
from engine.feature_scale import feature_unit, unit_line
from engine.finish import run_metrics
from engine.fit import History
from engine.frozen_features import STAGE2_DRAWS, freeze
from engine.many_heads import HeadTrainer, Trained, train_heads
from evaluation.measure import Images, SplitLogits, evaluate_test, logits_by_way, selection_score
from evaluation.metrics import predicted_classes
from evaluation.run_rows import data_sha256, refuse_damaged_run
from losses.los import ONE_HOT
from methods.offsets import check_held_out
from methods.plan import Plan, plan_key
from methods.recipes import find_recipe
from runs.checkpoint import Checkpoint
from runs.dependencies import differences, key_of
from runs.records import config_faults
from runs.run_names import experiment_name, tag
from runs.run_record import dependencies, describe
from runs.session import LoadedModel
from settings.command_line import parse_command
from settings.fields import STAGE2
from settings.resolve import Command
from settings.stage2_plan import plan_of
from stages.checkpoints import adopt_checkpoint
from stages.session import load_model, settle_execution
from stages.start import find_start
from tables.request import FileName, Request
from utils.errors import DivergedError, UserError
from utils.files import make_folder, read_json, write_json
from utils.outside import within
from utils.text import tell

FORMAT = 2  # of the kept rows: raise it when a change of the code changes their numbers


@dataclass(frozen=True)
class TableContext:
    """One stage 1, its data, and everything that a row needs of them."""

    loaded: LoadedModel
    checkpoint: Checkpoint
    trainer: HeadTrainer
    unit: float = 1.0  # of the features (`engine.feature_scale`)
    fold: tuple[int, int] | None = None  # which of how many held out (`tables.folds`)

    @property
    def command(self) -> Command:
        """The command line of `main_stage2.py` that names them."""
        return self.loaded.command

    @property
    def data(self) -> LongTailedData:
        """The data set that all rows share."""
        return self.loaded.data

    @property
    def images(self) -> Images:
        """Its images on the device."""
        return self.loaded.images

    def plan_of(self, command: Command) -> Plan:
        """Return the plan of a row, with steps for the features of this stage 1.

        Raises UserError for one that makes no sense on this data set.
        """
        plan = plan_of(command.settings, self.data.num_classes)
        plan.target(self.data.num_classes)
        return replace(plan, unit=self.unit)

    def logits_of(self, head: nn.Module) -> SplitLogits:
        """Return the logits of a head on the frozen features."""
        return SplitLogits(self.trainer.frozen.plain, head)


def open_context(arguments: Sequence[str], description: str) -> TableContext:
    """Read stage 1 and the data that a command line of `main_stage2.py` names; cached features are found again."""
    command = parse_command(STAGE2, description, arguments)
    loaded = load_model(command, settle_execution(command), find_cacheable)
    loaded.execution.place(loaded.model)
    settings, checkpoint = loaded.settings, loaded.checkpoint
    assert checkpoint is not None
    frozen = freeze(loaded, seed=settings.seed + STAGE2_DRAWS, views=settings.views, in_memory=True)
    labels, class_counts = loaded.images["train"].labels, loaded.data.class_counts.tolist()
    trainer = HeadTrainer(
        frozen, loaded.model.fc, labels, class_counts, settings.batch_size, settings.momentum, settings.seed
    )
    tell(f"stage 1: {checkpoint.path} ({checkpoint.kind}), sha256 {checkpoint.sha256[:16]}")
    unit = feature_unit(frozen.plain("train"), settings.rate_scale)
    if unit != 1:
        tell(unit_line(unit, find_recipe("los").lr))
    return TableContext(loaded, checkpoint, trainer, unit)


def find_cacheable(command: Command) -> tuple[Command, Checkpoint]:
    """Find the stage 1 of a table; a UserError refuses what cannot be trained on cached features."""
    command, checkpoint = find_start(command)
    settings = command.settings
    if settings.bn_mode != "eval" or settings.views == "fresh" or settings.protocol != "honest" or settings.nesterov:
        raise UserError(
            "this table trains on cached features: --bn_mode train, --views fresh, --protocol released and --nesterov "
            "are for main_stage2.py"
        )
    return command, checkpoint


def data_of(context: TableContext) -> str:
    """Return the `data_sha256` of the rows on a stage 1 (`evaluation.run_rows`)."""
    return data_sha256(describe(context.loaded, ONE_HOT))


def file_name(
    table: str, context: TableContext, seeds: Sequence[int], methods: Sequence[str] | None = None
) -> FileName:
    """Return what a table's files are called: by data, network, how its stage 1 differs from the preset, and the
    `methods` where it is a part of the whole table.

    A table on a file of features says so, where views are usual: it cannot have been made with these. One on a stage 1
    of none of the table's `seeds` says of which, as runs do.
    """
    checkpoint, own = context.checkpoint, context.checkpoint.config.get("tags")
    named = [f"from{checkpoint.sha256[:8]}{checkpoint.choice}"]
    tags = named if own is None else [each for each in own if not each.startswith("width")]
    views = context.command.settings.views
    if context.checkpoint.features is not None and views != context.command.defaults.views:
        tags.append(f"views{views}")
    seed = checkpoint.settings().get("seed")
    if seed is not None and seed not in seeds:
        tags.append(tag("stage1_seed", seed))
    return FileName(f"{table}_{experiment_name(context.command.settings)}", tuple(tags), tuple(methods or ()))


@dataclass(frozen=True)
class Row:
    """A row to be: its label in the table and the flags of `main_stage2.py` that make it."""

    label: dict[str, Any]
    flags: tuple[str, ...]


Measured = dict[str, Any]


def measure_seeds(
    request: Request, ratio: dict[str, float], about: str, rows_of: Callable[[TableContext], Sequence[Row]]
) -> tuple[TableContext, list[Measured]]:
    """Return what `measure_rows` does of the rows on every stage 1 that was asked for, and the last of these.

    `ratio` is the imbalance factor as a flag, `about` what the table's command says of itself.
    """
    measured: list[Measured] = []
    for seed in request.seeds:
        flags = request.starting_point(seed, **ratio)
        context = open_context(flags, about)
        measured += measure_rows(context, flags, rows_of(context))
    return context, measured


def measure_rows(
    context: TableContext, shared: Sequence[str], rows: Sequence[Row], temperatures: dict[str, float] | None = None
) -> list[Measured]:
    """Return {label, metrics, config, failure} of each row: kept ones as they are, the others trained together.

    `shared` are the flags that all rows have in common, `temperatures` those known for a row's flags (joined by a
    space). A row whose loss stops being finite, or that makes no sense on this data set, has its `failure` in words and
    no metrics.
    """
    todo: dict[Path, tuple[Command, Plan]] = {}
    depends: dict[Path, dict[str, Any]] = {}
    places: list[Path | None] = []
    measured: list[Measured | None] = [None] * len(rows)
    for i, row in enumerate(rows):
        own = list(row.flags)
        temperature = (temperatures or {}).get(" ".join(row.flags))
        if temperature is not None:
            own += ["--temperature", f"{temperature:.6g}"]
        command = adopt_checkpoint(parse_command(STAGE2, "", [*shared, *own], quiet=True), context.checkpoint)
        command = command.replace(start=context.command.settings.start, views=context.command.settings.views)
        try:
            plan = context.plan_of(command)
            if plan.needs_held_out:
                check_held_out(plan.method, context.images["holdout"].labels, context.data.num_classes)
        except UserError as error:  # a smoothing that this number of classes rules out, say: the other rows go on
            config = describe(replace(context.loaded, command=command), ONE_HOT)
            measured[i] = {"failure": f"refused: {error}", "metrics": None, "config": config}
            places.append(None)
            continue
        place = _place(context, command, plan)
        places.append(place.path)
        depends[place.path] = place.depends
        if not place.path.exists() and place.path not in todo:
            report_changes(place, plan.method)
            todo[place.path] = (command, plan)
    kept = len([path for path in places if path is not None and path not in todo])
    if kept:
        tell(f"{kept} of {len(rows)} rows are there already")
    followed: dict[int, _Follower] = {}

    def after_epoch(epoch: int, trained: Sequence[Trained]) -> None:
        for result in trained:
            follower = followed.setdefault(id(result), _Follower(context, result))
            follower.epoch(epoch)
            if epoch == (result.plan.epochs if result.plan.recipe.trains else 0):
                path, command = next((path, command) for path, (command, plan) in todo.items() if plan is result.plan)
                make_folder(path.parent)
                write_json(path, {**follower.content(command), "depends": depends[path]})

    train_heads(context.trainer, [plan for _, plan in todo.values()], after_epoch)
    found = [read_kept(path) if path is not None else content for path, content in zip(places, measured, strict=True)]
    return [
        {**(content or {}), "label": {**row.label, "flags": " ".join(row.flags)}}
        for row, content in zip(rows, found, strict=True)
    ]


def read_kept(path: Path) -> Measured:
    """Read a kept row; a UserError names a damaged file."""
    content = read_json(path)
    advice = "delete it, and the row is trained again"
    if not {"failure", "metrics", "config"} <= set(content):
        raise UserError(f"{path} is damaged; {advice}")
    failure, metrics, config = (content[name] for name in ("failure", "metrics", "config"))
    sound = (
        isinstance(failure, str | None) and isinstance(config, dict) and (failure is None) == isinstance(metrics, dict)
    )
    if not sound or config_faults(config):
        raise UserError(f"{path} is damaged; {advice}")
    if metrics is not None:
        refuse_damaged_run(path, metrics, config)
    return content


def _place(context: TableContext, command: Command, plan: Plan) -> "Place":
    """Return where a row is kept, by everything that its numbers depend on."""
    settings = command.settings
    names = ("seed", "views", "batch_size", "momentum", "temperature", "rebalance_tau")
    own = {name: getattr(settings, name) for name in names}
    return kept_place(context, plan.method, plan=plan_key(plan), counts=context.trainer.class_counts, **own)


@dataclass(frozen=True)
class Place:
    """The file of something measured on a stage 1, and everything that it depends on."""

    path: Path
    depends: dict[str, Any]


def kept_place(context: TableContext, name: str, **own: Any) -> Place:
    """Return where something measured on a stage 1 is kept, for everything that it depends on.

    That is the stage 1, the data (test images, labels and order included) and its `own` settings.
    """
    depends = dependencies(context.loaded, format=FORMAT, **own)
    if isinstance(context.data.train, ListedSplit) and context.data.identity is not None:
        how = context.data.identity.record["how"]
        depends["files"] = None if how == CONTENT else list(row_dependencies(context.data).values())
    out = Path(context.command.settings.out)
    path = out / "tables" / context.checkpoint.sha256[:16] / f"{name}_{key_of(depends)[:16]}.json"
    return Place(within(out, path), json.loads(json.dumps(depends)))


def report_changes(place: Place, name: str) -> None:
    """Say what changed where a row is there with the same settings, measured on other data."""
    for file in sorted(place.path.parent.glob(f"{name}_????????????????.json")):
        with contextlib.suppress(UserError):  # what cannot be read only explains
            before = read_json(file).get("depends")
            if isinstance(before, dict) and own_settings(before) == own_settings(place.depends):
                changed = ", ".join(differences(before, place.depends))
                tell(f"{name}: measured anew, since the row that is there is of {changed}")
                return


def own_settings(depends: dict[str, Any]) -> dict[str, Any]:
    """Return of what something depends on all but the data."""
    return {name: value for name, value in depends.items() if name not in ("identity", "class_names", "files")}


class _Follower:
    """Evaluates one head as it trains: the latest record, the best one, and the head that each belongs to."""

    def __init__(self, context: TableContext, result: Trained) -> None:
        self.context = context
        self.result = result
        self.history = History()
        self.best_score = -1.0
        self.best_head: nn.Module = result.head
        self.best_epoch = 0

    def epoch(self, epoch: int) -> None:
        """Keep the head if it is the best one so far; the test set decides, as for `best` of a run."""
        if self.result.diverged is not None:
            return
        labels = self.context.images["test"].labels
        logits = logits_by_way(self.context.logits_of(self.result.head), self.context.data)
        chosen = logits.get("flip", logits["plain"])
        score = float((predicted_classes(chosen) == labels).double().mean())
        if score >= self.best_score:
            self.best_score, self.best_epoch = score, epoch
            self.best_head = copy.deepcopy(self.result.head)
        self.last_epoch = epoch

    def content(self, command: Command) -> Measured:
        """Return what is kept of the finished row."""
        context, result = self.context, self.result
        config = describe(replace(context.loaded, command=command), result.plan.target(context.data.num_classes))
        config["temperature_source"] = "held-out images of the splits"
        content: Measured = {
            "failure": result.diverged and f"diverged at {result.diverged}",
            "metrics": None,
            "config": config,
        }
        if result.diverged is not None:
            return content
        history = self.history
        history.train_seconds, history.images = result.seconds, result.images
        last, best = context.logits_of(result.head), context.logits_of(self.best_head)
        try:
            history.last = {"epoch": self.last_epoch, **evaluate_test(last, context.images, context.data)}
            history.best = {"epoch": self.best_epoch, **evaluate_test(best, context.images, context.data)}
        except DivergedError:
            return {**content, "failure": "diverged: logits that are not finite"}
        assert selection_score(history.best) >= selection_score(history.last) - 1e-6
        content["metrics"] = run_metrics(config, history, last, context.images, context.data)
        return content
