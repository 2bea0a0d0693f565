"""What evaluate.py reports where it is asked: predictions under a known test prior, prediction sets."""

from typing import Any

from evaluation.measure import SplitLogits, Temperature, logits_by_way
from evaluation.prediction_sets.held_out import classifier_prior, find_held_out
from evaluation.prediction_sets.report import sets_report, sets_text
from evaluation.priors.correction import Prior
from evaluation.priors.files import read_prior, refuse_absent
from evaluation.priors.report import prior_report, prior_text
from runs.checkpoint import Checkpoint
from runs.held_out import HOLD_OUT, assumed_of, stored_held_out
from runs.session import LoadedModel
from utils.errors import UserError


def asked_prior(loaded: LoadedModel) -> Prior | None:
    """Return the prior that a report was asked for, None without one; a UserError says what is wrong with it."""
    if loaded.settings.test_prior is None:
        return None
    names = loaded.data.class_names
    prior = read_prior(loaded.settings.test_prior, names, loaded.data.class_counts.tolist())
    refuse_absent(prior, loaded.images["test"].labels, names)
    return prior


def asked_reports(
    loaded: LoadedModel, checkpoint: Checkpoint, logits_of: SplitLogits, temperature: float | None, prior: Prior | None
) -> dict[str, Any]:
    """Return the reports that were asked for: `test_prior`, `prediction_sets`.

    Held-out images at hand are measured, else what the checkpoint keeps of them is used. Raises UserError for sets
    without either.
    """
    data, coverage, labels = loaded.data, loaded.settings.coverage, loaded.images["test"].labels
    if prior is None and coverage is None:
        return {}
    assumed = assumed_of(checkpoint.config, data.class_counts.tolist())
    held_out = find_held_out(logits_of, loaded.images, assumed, temperature)
    if held_out is None and loaded.settings.temperature is None:
        held_out = stored_held_out(checkpoint)
    reports: dict[str, Any] = {}
    if prior is not None:
        source = classifier_prior(held_out, assumed)
        logits = logits_by_way(logits_of, data)
        given = (source, prior, temperature or 1.0, data.shot_bounds)
        reports["test_prior"] = prior_report(logits, labels, data.class_counts, *given)
    if coverage is not None:
        if held_out is None:
            raise UserError(f"--coverage needs held-out images, and {checkpoint.path} has none here: {HOLD_OUT}")
        test = logits_of.rows("test")
        reports["prediction_sets"] = sets_report(
            test, labels, data.class_counts, held_out, coverage, prior, data.shot_bounds
        )
    return reports


def asked_texts(record: dict[str, Any]) -> list[str]:
    """Return the tables of the reports that were asked for."""
    texts = [prior_text(record["test_prior"])] if "test_prior" in record else []
    return [*texts, *([sets_text(record["prediction_sets"])] if "prediction_sets" in record else [])]


def known_temperature(calibration: dict[str, Any] | None) -> float | None:
    """Return the temperature of a `calibration_report`, None without one."""
    return None if calibration is None else calibration["temperature"]


def stored_temperature(checkpoint: Checkpoint, given: float | None) -> Temperature:
    """Return the temperature given, else that of a checkpoint of ours."""
    if given is not None or checkpoint.content is None:
        return Temperature(given, "given")
    stored = checkpoint.content.get("temperature_source", "stored")
    return Temperature(checkpoint.content.get("temperature"), stored)
