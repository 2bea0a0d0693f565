"""What predict.py is asked for beside the most probable class: more classes, a test prior, prediction sets."""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.prediction_sets.held_out import classifier_prior
from evaluation.prediction_sets.record import HeldOut
from evaluation.prediction_sets.thresholds import CLASSWISE, MARGINAL, class_thresholds, have, without_threshold
from evaluation.priors.correction import Prior, prior_offsets
from evaluation.priors.files import read_prior
from evaluation.priors.report import ruled_out
from runs.checkpoint import Checkpoint
from runs.held_out import HOLD_OUT, assumed_of, stored_held_out
from stages.prediction import Predictor
from utils.errors import UserError
from utils.text import counted, shown


@dataclass(frozen=True)
class Asked:
    """What predict.py was asked for beside the most probable class.

    `top` classes an image where it was given; `offsets` (K,) are added to logits over their temperature; a class is in
    an image's set where its probability without them reaches its threshold (K,). `lines` say what was done.
    """

    top: int | None = None
    offsets: Tensor | None = None
    thresholds: np.ndarray | None = None
    lines: tuple[str, ...] = ()


NOTHING = Asked()


def source_prior(checkpoint: Checkpoint, temperature: float) -> Prior:
    """Return the prior that a finished run's probabilities stand for at a temperature; what was measured at another
    one says nothing of it. Raises UserError where the run does not know its training images."""
    counts = checkpoint.config.get("class_counts")
    if counts is None:
        raise UserError(f"--test_prior: {checkpoint.path} does not say how many training images its classes have")
    held_out, assumed = stored_held_out(checkpoint), assumed_of(checkpoint.config, counts)
    if held_out is not None and not is_of(held_out, temperature):
        at = f"its own was measured at the temperature {held_out.temperature:.6g}"
        return Prior(assumed.shares, f"{assumed.words}; {at}")
    return classifier_prior(held_out, assumed)


def is_of(held_out: HeldOut, temperature: float) -> bool:
    """Tell whether what is kept of held-out images is of probabilities at this temperature."""
    return abs(held_out.temperature - temperature) <= 1e-6 * held_out.temperature


def stored_prior(checkpoint: Checkpoint, num_classes: int) -> Prior | None:
    """Return the test prior that an exported model was made for (`tools.export_model`), None without one."""
    record = (checkpoint.content or {}).get("test_prior")
    if record is None:
        return None
    try:
        shares = torch.tensor(record["shares"], dtype=torch.float64)
        sound = shares.shape == (num_classes,) and bool((shares >= 0).all()) and abs(float(shares.sum()) - 1) < 1e-6
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{checkpoint.path} is damaged: its test prior cannot be")
    return Prior(shares, f"{shown(str(record.get('words')))}, of the exported model")


def ask_prior(
    checkpoint: Checkpoint, predictor: Predictor, given: str | Prior, top: int | None
) -> tuple[Prior, Tensor, str]:
    """Return `--test_prior`, or one that was read, for a finished run, its offsets (K,), and what is said of them."""
    names, source = predictor.class_names, source_prior(checkpoint, predictor.temperature)
    prior = given if isinstance(given, Prior) else read_prior(given, names, checkpoint.config["class_counts"])
    absent = ruled_out(prior)
    if (top or 1) > len(names) - absent:
        raise UserError(f"--top {top}: --test_prior gives the share 0 to {absent} of {len(names)} classes")
    never = f"; {have(absent)} the share 0: never predicted" if absent else ""
    line = f"test prior: {prior.words}; the classifier's own: {source.words}{never}"
    return prior, prior_offsets(source, prior), line


def ask_sets(
    checkpoint: Checkpoint, predictor: Predictor, coverage: float, kind: str, prior: Prior | None = None
) -> tuple[np.ndarray, str]:
    """Return the thresholds (K,) of `--coverage` for a finished run, on images that follow the `prior` where it is
    known, and what is said of them."""
    held_out = stored_held_out(checkpoint)
    if held_out is None:
        raise UserError(
            f"--coverage: {checkpoint.path} keeps nothing of held-out images, as last.pth of a run with them does; "
            f"{HOLD_OUT}"
        )
    if held_out.num_classes != len(predictor.class_names):
        raise UserError(f"{checkpoint.path} is damaged: its record of held-out images is of other classes")
    if not is_of(held_out, predictor.temperature):
        raise UserError(
            f"--coverage: the thresholds are for the temperature {held_out.temperature:.6g}, not "
            f"{predictor.temperature:.6g}; leave --temperature out"
        )
    own, classes = held_out, held_out.num_classes
    limits = class_thresholds(
        own.probabilities, own.labels, classes, coverage, kind, None if prior is None else prior.shares.numpy()
    )
    line = f"prediction sets: {kind}, coverage {coverage:g}, from {counted(len(own.labels), 'held-out image')}"
    line += ", weighted to the test prior" * (prior is not None and kind != CLASSWISE)
    always = without_threshold(own.labels, classes, coverage)
    if kind != MARGINAL and always:
        what = "in every set" if kind == CLASSWISE else "counted as of the threshold 0"
        line += f"; {have(always)} too few of them for an own threshold: {what}"
    return limits, line


def answers_of(checkpoint: Checkpoint, predictor: Predictor, asked: argparse.Namespace) -> Asked:
    """Return what the arguments of predict.py ask of a finished run; a UserError says what it cannot answer."""
    known, top = len(predictor.class_names), asked.top
    if top is not None and top > known:
        raise UserError(f"--top {top}: {checkpoint.path} knows {known} classes")
    prior = offsets = thresholds = None
    lines: list[str] = []
    wanted = asked.test_prior if asked.test_prior is not None else stored_prior(checkpoint, known)
    if wanted is not None:
        prior, offsets, line = ask_prior(checkpoint, predictor, wanted, top)
        lines.append(line)
    if asked.coverage is not None:
        if asked.flip:
            raise UserError("--coverage: the thresholds are those of images as they are; leave --flip out")
        thresholds, line = ask_sets(checkpoint, predictor, asked.coverage, asked.sets, prior)
        lines.append(line)
    return Asked(top, offsets, thresholds, tuple(lines))
