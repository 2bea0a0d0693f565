"""The report of evaluate.py: everything that is measured on the checkpoints that a command line names."""

from pathlib import Path
from typing import Any

from engine.cache.dependencies import backbone_sha256
from engine.frozen_features import FrozenFeatures, reported_features
from evaluation.intervals.findings import headline_text
from evaluation.measure import (
    SplitFeatures,
    SplitLogits,
    calibration_report,
    evaluate_test,
    logits_report,
    logits_summary,
    rebalanced_report,
)
from evaluation.per_class.confusion import class_table, confusion_report, most_certain_mistakes
from evaluation.per_class.texts import classes_text
from evaluation.priors.correction import Prior
from evaluation.text_tables import details, headline_of, per_class_table, report_table
from runs.checkpoint import Checkpoint, load_weights
from runs.session import LoadedModel
from settings.resolve import Command
from stages.asked_reports import (
    asked_prior,
    asked_reports,
    asked_texts,
    known_temperature,
    stored_temperature,
)
from stages.page import MISTAKES, run_page
from stages.session import open_model, settle_execution
from stages.start import find_reported
from utils.distributed import is_main
from utils.files import write_json, write_text
from utils.text import tell


def evaluate(command: Command) -> None:
    """Report on what the command line names."""
    execution = settle_execution(command)
    command, checkpoints = find_reported(command)
    first = next(iter(checkpoints.values()))
    loaded = open_model(command, execution, first, first.path.parent)
    data = loaded.data
    prior = asked_prior(loaded)
    records = {}
    known: dict[str, FrozenFeatures] = {}
    for name, checkpoint in checkpoints.items():
        load_weights(loaded.model, checkpoint)
        backbone = backbone_sha256(loaded.model)
        if backbone not in known:  # last and best of a stage 2 share theirs; those of another backbone are let go
            known = {backbone: reported_features(loaded, checkpoint, backbone)}
        records[name] = report_on(loaded, checkpoint, known[backbone].plain, prior)
    tell(per_class_table(records, data))
    tell()
    tell(report_table(records, loaded.settings.protocol))
    tell(headline_text(headline_of(records, loaded.settings.protocol), data.class_counts))
    name, record = next(iter(records.items()))
    accuracy = record["plain"]["per_class_accuracy"]
    classes = class_table(record["confusion"], accuracy, data.class_names, data.class_counts, data.shot_bounds)
    tell(f"\n{classes_text(record['confusion'], classes, f'{name}, plain')}")
    for name, record in records.items():
        tell(f"\n{name}:")
        tell("\n\n".join([details(record), *asked_texts(record)]))
    if loaded.settings.json is not None and is_main():
        subset = {"dataset": data.name, "class_counts": data.class_counts.tolist(), "subset": data.subset}
        about = {"schema": 1, **subset, "class_names": data.class_names, "shot_bounds": data.shot_bounds._asdict()}
        write_json(Path(loaded.settings.json), {**about, "checkpoints": records})
        tell(f"written to {loaded.settings.json}")
    if loaded.settings.html is not None and is_main():
        load_weights(loaded.model, first)
        write_text(Path(loaded.settings.html), run_page(loaded, first, records))
        tell(f"written to {loaded.settings.html}")


def report_on(
    loaded: LoadedModel, checkpoint: Checkpoint, features_of: SplitFeatures, prior: Prior | None = None
) -> dict[str, Any]:
    """Return everything that is reported on a checkpoint whose weights, and features, the loaded model has.

    `prior` is that of the images it will be used on, where it was asked for.
    """
    images, data, settings = loaded.images, loaded.data, loaded.settings
    logits_of = SplitLogits(features_of, loaded.model.fc)
    logits = logits_report(logits_of, images)
    given = stored_temperature(checkpoint, settings.temperature)
    calibration = calibration_report(logits_of, images, data, given)
    temperature = known_temperature(calibration)
    labels = images["test"].labels
    predictions = logits_of.scored("plain", labels).predictions
    return {
        "epoch": checkpoint.epoch,
        "sha256": checkpoint.sha256,
        "kind": checkpoint.kind,
        **evaluate_test(logits_of, images, data),
        "confusion": confusion_report(predictions, labels, data.class_counts, data.shot_bounds),
        "mistakes": most_certain_mistakes(logits_of.rows("test"), labels, MISTAKES),
        "logits": logits,
        "logits_summary": logits_summary(logits),
        "calibration": calibration,
        "rebalanced": rebalanced_report(logits_of, images, data, settings.rebalance_tau),
        **asked_reports(loaded, checkpoint, logits_of, temperature, prior),
    }
