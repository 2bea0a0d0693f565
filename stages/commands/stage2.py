"""Stage 2: what an epoch of it is, and the run from the frozen features to its report."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from datasets.image_source import steps_per_epoch
from engine.averaging import swap_averages
from engine.choice.comparison import Comparison, choose_classifier
from engine.epoch import EpochResult, train_epoch
from engine.feature_scale import FEATURES, feature_unit, unit_line
from engine.finish import balanced_held_out_accuracy, balanced_training_accuracy, collapse_line, fall_line, finish_run
from engine.fit import Training, fit, make_sgd, no_training
from engine.frozen_features import (
    STAGE2_DRAWS,
    FrozenFeatures,
    batch_statistics_features,
    feature_batches,
    freeze,
    network_features,
)
from engine.many_heads import HeadTrainer
from evaluation.measure import SplitLogits
from methods.plan import Plan, compute_head, in_late_phase, row_norm_limit, start_head, visiting_order
from models.heads import max_norm_
from runs.run_folder import read_metrics, saved_or_removed
from runs.session import Session
from settings.command_line import parse_command
from settings.fields import STAGE2
from settings.resolve import Command
from settings.stage2_plan import plan_of
from stages.announcement import announce_method
from stages.commands.comparison_files import record_choice, write_comparison
from stages.session import open_session
from stages.start import find_start
from utils.text import tell


def run_stage2(command: Command) -> dict[str, Any]:
    """Run stage 2 and return what metrics.json holds."""
    session = open_session(command, find_start)
    if session.run.finished:
        return read_metrics(session.run)
    with saved_or_removed(session.run):
        return train_stage2(session)


def train_stage2(session: Session) -> dict[str, Any]:
    """Re-train the classifier of a session, report on it, and return what metrics.json holds."""
    plan = session.plan
    assert plan is not None, "a session of stage 2 has one"
    announce_method(session, plan)
    frozen = freeze(session, seed=session.settings.seed + STAGE2_DRAWS, views=session.settings.views)
    if session.settings.rate_scale == FEATURES:
        plan = replace(plan, unit=feature_unit(frozen.plain("train"), FEATURES))
    if plan.recipe.trains and plan.unit != 1:
        tell(unit_line(plan.unit, plan.lr))
    # With batch norm in train mode the running statistics move, and the features of evaluation with them.
    moving = session.settings.bn_mode == "train"
    start = SplitLogits(frozen.plain, session.model.fc)
    before = 0.0 if moving else balanced_training_accuracy(start, session.images)
    held_out = None if moving else balanced_held_out_accuracy(start, session.images)
    comparison = choose(session, plan, frozen) if plan.recipe.compares else None
    if comparison is not None:
        record_choice(session.run, comparison)
    training = no_training(session.model.fc) if plan.recipe.compares else plan_training(session, plan, frozen)
    history, logits_of = fit(session, training, network_features(session) if moving else frozen.plain)
    history.train_seconds += 0.0 if comparison is None else comparison.seconds
    metrics = finish_run(session, history, logits_of)
    if comparison is not None:  # rows that no candidate has seen have chosen: those that stage 1 knows say less
        write_comparison(session.run.folder, comparison)
    elif line := collapse_line(
        before, balanced_training_accuracy(logits_of, session.images), trains=plan.recipe.trains
    ):
        tell(line)
    if line := fall_line(held_out, balanced_held_out_accuracy(logits_of, session.images)):
        tell(line)
    return metrics


def choose(session: Session, plan: Plan, frozen: FrozenFeatures) -> Comparison:
    """Put the best of several classifiers in the place of stage 1's, and return how they compared."""
    settings, model, counts = session.settings, session.model, session.data.class_counts.tolist()
    labels = session.images["train"].labels
    trainer = HeadTrainer(frozen, model.fc, labels, counts, settings.batch_size, settings.momentum, settings.seed)

    def make_plan(flags: Sequence[str]) -> Plan:
        own = plan_of(parse_command(STAGE2, "", flags).settings, len(counts))
        return replace(own, unit=feature_unit(frozen.plain("train"), FEATURES))

    model.fc, comparison = choose_classifier(trainer, frozen.held_out(), make_plan, settings.criterion)
    return comparison


def plan_training(session: Session, plan: Plan, frozen: FrozenFeatures) -> Training:
    """Return what an epoch of stage 2 is, the classifier that it trains put in the place of stage 1's."""
    settings, model, train, execution = session.settings, session.model, session.images["train"], session.execution
    assert isinstance(session.loss, nn.ModuleList)
    phases = session.loss
    limit = row_norm_limit(plan, model.fc)
    if plan.recipe.trains:
        model.fc = start_head(plan, model.fc, settings.seed, session.data.class_counts.tolist())
    else:
        held_out = frozen.held_out() if plan.needs_held_out else None
        counts = session.data.class_counts.tolist()
        features, fitted = frozen.rows_to_fit(train.labels, plan.fits_views)
        model.fc = compute_head(plan, model.fc, features, fitted, counts, held_out)
    optimizer = make_sgd(model.fc, settings.momentum, plan.weight_decay, settings.nesterov, plan.ema, plan.unit)
    steps = steps_per_epoch(len(train), settings.batch_size)
    labels = train.labels.cpu()

    def train_one_epoch(epoch: int) -> EpochResult:
        order = visiting_order(plan, labels, session.data.num_classes, frozen.seed, epoch)
        if settings.bn_mode == "train":
            batches = batch_statistics_features(model, train, execution, order, settings.batch_size, frozen.seed, epoch)
        else:
            batches = feature_batches(frozen.training_view(epoch), train.labels, order, settings.batch_size)
        loss = phases[in_late_phase(epoch, plan.epochs)]
        swap_averages(optimizer)  # the trained weights come back
        result = train_epoch(model.fc, batches, steps, optimizer, loss, execution.full_precision())
        if limit is not None:
            max_norm_(model.fc, limit)
        swap_averages(optimizer)  # what is evaluated and saved are the averages, where there are any
        return result

    return Training(train_one_epoch, optimizer, plan.rate, plan.epochs, lambda: frozen.seconds_once(plan.epochs))
