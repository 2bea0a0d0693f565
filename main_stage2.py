"""Stage 2: re-train the classifier on a frozen backbone, by default with label over-smoothing (LOS).

    python main_stage2.py --imb_ratio 100 --cur_stage stage2 --label_smooth 0.98

takes seconds once the features are computed. Published for CIFAR100-LT, IF 100, ResNet-34: 54.9 %, and 53.9 % when
re-run by others. RESULTS.md has what was measured, on what, in what time.

    python main_stage2.py --features FILE.npz

does the same on features that any model made; where FILE has no classifier, one is trained first.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from datasets.image_source import steps_per_epoch
from engine.averaging import swap_averages
from engine.epoch import EpochResult, train_epoch
from engine.finish import balanced_training_accuracy, collapse_line, finish_run
from engine.fit import INTERRUPTED, Training, fit, make_sgd
from engine.frozen_features import (
    STAGE2_DRAWS,
    FrozenFeatures,
    batch_statistics_features,
    feature_batches,
    freeze,
    network_features,
)
from evaluation.measure import SplitLogits
from evaluation.text_tables import scale_line
from methods.plan import Plan, compute_head, in_late_phase, row_norm_limit, start_head, visiting_order
from models.heads import max_norm_
from runs.run_folder import read_metrics
from runs.session import Session
from settings.command_line import parse_command
from settings.fields import STAGE2
from stages.announcement import announce_method
from stages.session import open_session
from stages.start import find_start
from utils.command import run_command
from utils.text import tell


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run stage 2 and return what metrics.json holds."""
    session = open_session(parse_command(STAGE2, __doc__, argv), find_start)
    if session.run.finished:
        return read_metrics(session.run)
    plan = session.plan
    assert plan is not None, "a session of stage 2 has one"
    announce_method(session, plan)
    frozen = freeze(session, seed=session.settings.seed + STAGE2_DRAWS, views=session.settings.views)
    if plan.recipe.trains and session.settings.features is not None:
        tell(scale_line(frozen.plain("train"), plan.lr))
    # With batch norm in train mode the running statistics move, and the features of evaluation with them.
    moving = session.settings.bn_mode == "train"
    before = 0.0 if moving else balanced_training_accuracy(SplitLogits(frozen.plain, session.model.fc), session.images)
    training = plan_training(session, plan, frozen)
    history, logits_of = fit(session, training, network_features(session) if moving else frozen.plain)
    metrics = finish_run(session, history, logits_of)
    if line := collapse_line(before, balanced_training_accuracy(logits_of, session.images)):
        tell(line)
    return metrics


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
        features, labels = frozen.rows_to_fit(train.labels, plan.fits_views)
        model.fc = compute_head(plan, model.fc, features, labels, counts, held_out)
    optimizer = make_sgd(model.fc, settings.momentum, plan.weight_decay, settings.nesterov, plan.ema)
    steps = steps_per_epoch(len(train), settings.batch_size)

    def train_one_epoch(epoch: int) -> EpochResult:
        order = visiting_order(plan, train.labels, session.data.num_classes, frozen.seed, epoch)
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


if __name__ == "__main__":
    run_command(main, INTERRUPTED)
