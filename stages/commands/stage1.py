"""Stage 1: what an epoch of it is, and the run from its first epoch to its report."""

import contextlib
from functools import partial
from typing import Any

import torch

from datasets.image_source import batch_sizes
from engine.data_parallel import average_buffers, data_parallel
from engine.epoch import EpochOptions, EpochResult, mixup_shares, train_epoch
from engine.finish import finish_run
from engine.fit import Training, fit, make_sgd
from engine.frozen_features import network_features
from engine.steps import StepGraph
from runs.run_folder import read_metrics, saved_or_removed
from runs.session import Session
from settings.resolve import Command
from stages.linear_probe_start import train_probe
from stages.session import open_session
from utils.distributed import process_rank
from utils.hashing import mix64
from utils.schedules import SCHEDULES, with_warmup

NOTHING_TO_ENTER = contextlib.nullcontext()


def run_stage1(command: Command) -> dict[str, Any]:
    """Run stage 1 and return what metrics.json holds."""
    return train_stage1(open_session(command)) if has_epochs(command) else train_probe(command)


def has_epochs(command: Command) -> bool:
    """Tell whether a stage 1 trains a network; without, its classifier is computed."""
    return command.settings.features is None and command.settings.epochs > 0


def train_stage1(
    session: Session, reporting: contextlib.AbstractContextManager[object] = NOTHING_TO_ENTER
) -> dict[str, Any]:
    """Train the network of a session, report on it within `reporting`, and return what metrics.json holds."""
    if session.run.finished:
        return read_metrics(session.run)
    with saved_or_removed(session.run):
        history, logits_of = fit(session, plan_training(session), network_features(session))
        with reporting:
            return finish_run(session, history, logits_of)


def plan_training(session: Session) -> Training:
    """Return what an epoch of stage 1 is: every image once, all weights trained."""
    settings, model, images = session.settings, session.model, session.images["train"]
    module = data_parallel(model, session.execution)
    optimizer = make_sgd(model, settings.momentum, settings.wd, settings.nesterov)
    sizes = batch_sizes(len(images), settings.batch_size, settings.drop_last)
    shared = sizes if module is not model else None
    graph = StepGraph(optimizer, session.execution.device) if session.execution.graph and shared is None else None

    def train_one_epoch(epoch: int) -> EpochResult:
        model.train()
        if process_rank():  # dropout is to differ on each; the crops do by themselves
            torch.manual_seed(mix64(mix64(settings.seed) ^ epoch) ^ process_rank())
        batches = images.training_batches(settings.batch_size, settings.seed, epoch, settings.drop_last)
        mixup = mixup_shares(settings.mixup, len(sizes), settings.seed, epoch) if settings.mixup > 0 else None
        options = EpochOptions(mixup=mixup, batch_sizes=shared, max_norm=settings.clip_grad, graph=graph)
        result = train_epoch(module, batches, len(sizes), optimizer, session.loss, session.execution, options)
        average_buffers(model)
        return result

    schedule = partial(with_warmup, SCHEDULES[settings.schedule], settings.warmup_epochs, settings.lr)
    return Training(train_one_epoch, optimizer, lambda epoch: schedule(epoch, settings.epochs), settings.epochs)
