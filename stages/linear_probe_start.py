"""A stage 1 of no epochs: a linear classifier on features that are given, or on the backbone of `--weights`.

The backbone is left alone, and the classifier is computed (`methods.linear_probe`). Stage 2 makes such a run where
there is no other stage 1.
"""

from functools import partial
from typing import Any

import torch

from engine.finish import finish_run
from engine.fit import fit, no_training
from engine.frozen_features import freeze
from methods.linear_probe import fit_probe
from runs.checkpoint import Checkpoint
from runs.feature_files import USER_FEATURES
from runs.run_folder import read_metrics, saved_or_removed
from runs.session import Session
from settings.resolve import Command
from stages.checkpoints import FROM_FEATURES, open_features
from stages.session import open_session, start_anew
from utils.errors import UserError
from utils.text import tell


def train_probe(command: Command, given: Checkpoint | None = None) -> dict[str, Any]:
    """Run a stage 1 of no epochs, and return what metrics.json holds.

    With `--features` it is on these features, `given` where the file has been read; else on the backbone of
    `--weights`. Raises UserError for a file of features that has a classifier already.
    """
    on_features = command.settings.features is not None
    session = open_session(command, partial(start_from_features, given=given) if on_features else start_anew)
    if session.run.finished:
        return read_metrics(session.run)
    with saved_or_removed(session.run):
        return compute_probe(session)


def compute_probe(session: Session) -> dict[str, Any]:
    """Compute the classifier of a session on its frozen features, and return what metrics.json holds."""
    features_of = freeze(session, seed=session.settings.seed, views="plain").plain
    classifier, labels = session.model.fc, session.images["train"].labels
    decay = session.run.config["settings"]["wd"]
    probe = fit_probe(features_of("train", False), labels, session.data.num_classes, decay, message="classifier")
    with torch.no_grad():
        classifier.weight.copy_(probe.weight)
        classifier.bias.copy_(probe.bias)
    tell(
        f"classifier: cross-entropy with weight decay {decay:g} (of features of unit spread), L-BFGS, "
        f"{probe.evaluations} evaluations, loss {probe.loss:.5f}, {probe.seconds:.1f} s"
    )
    history, logits_of = fit(session, no_training(classifier), features_of)
    history.train_seconds += probe.seconds
    return finish_run(session, history, logits_of)


def start_from_features(command: Command, given: Checkpoint | None = None) -> tuple[Command, Checkpoint]:
    """Start from a file of features, `given` where it has been read, which settles data set and network."""
    if given is None:
        command, given = open_features(command)
    if given.state:
        raise UserError(f"{given.path} has a classifier already: main_stage2.py --features {given.path} starts from it")
    assert given.kind == USER_FEATURES
    known = {**{name: given.settings()[name] for name in FROM_FEATURES}, "epochs": 0}
    held_out = known.pop("holdout")  # a setting of the run, which its name has
    return command.settled(**known).replace(holdout=held_out), given
