"""What a finished run leaves: metrics.json, plots, and the table on the screen."""

from typing import Any

import torch
from torch import nn

from datasets.long_tail import LongTailedData
from engine.fit import History
from evaluation.blocks import largest
from evaluation.csv_files import csv_text
from evaluation.measure import (
    Images,
    SplitLogits,
    Temperature,
    calibration_report,
    holdout_report,
    logits_report,
    logits_summary,
    rebalanced_report,
    training_fit,
)
from evaluation.metrics import feature_variance_ratio, finite_or_none
from evaluation.per_class.confusion import class_table, confusion_report
from evaluation.per_class.texts import classes_text
from evaluation.plots import draw_plots
from evaluation.text_tables import details, report_table
from models.heads import Linear
from runs.session import Session
from utils.distributed import is_main, wait_for_all
from utils.errors import memory_for
from utils.files import write_json, write_text
from utils.text import tell


def run_metrics(
    config: dict[str, Any], history: History, logits_of: SplitLogits, images: Images, data: LongTailedData
) -> dict[str, Any]:
    """Return the content of metrics.json (docs/runs.md lists it) for a classifier, of a run or of a row of a table.

    Beside the report on the test set it says how well the network fits the training images as they are, and how far
    their features have collapsed onto the class means.
    """
    settings = config["settings"]
    seconds = history.train_seconds
    fit = training_fit(logits_of, images)
    report = logits_report(logits_of, images, fit)
    given = Temperature(settings["temperature"], config.get("temperature_source", "given"))
    return {
        "schema": 1,
        "dataset": data.name,
        "imb_type": settings["imb_type"],
        "imb_ratio": settings["imb_ratio"] or data.imbalance_factor,
        "subset": {"kind": settings["subset"], "seed": settings["subset_seed"], **data.subset},
        "network": settings["network"],
        "width": settings["width"],
        "stage": config["stage"],
        "method": config["method"],
        "seed": settings["seed"],
        "stage1": config["stage1"],
        "protocol": settings["protocol"],
        "num_class": data.num_classes,
        "class_counts": data.class_counts.tolist(),
        "train_seconds": seconds,
        "images_per_second": history.images / seconds if history.images else None,
        "train": {
            "accuracy": fit.accuracy,
            "feature_variance_ratio": feature_variance_ratio(logits_of.features("train"), images["train"].labels),
        },
        "last": history.last,
        "best": history.best,
        "holdout": holdout_report(logits_of, images),
        "calibration": calibration_report(logits_of, images, data, given),
        "rebalanced": rebalanced_report(logits_of, images, data, settings["rebalance_tau"]),
        "logits": report,
        "logits_summary": logits_summary(report),
        "weight_norm": weight_norms(logits_of.classifier, data.num_classes),
    }


FALL = 5.0  # percent: measured falls of re-trainings that helped on test images stay below it, collapses lie above


def balanced_training_accuracy(logits_of: SplitLogits, images: Images) -> float:
    """Return the mean over the classes of the accuracy on their training images as they are, in percent."""
    labels = images["train"].labels.cpu()
    with memory_for("logits of training images", "--width where stage 1 is trained"):
        hits = torch.empty(len(labels), dtype=torch.bool)  # in place, as in `evaluation.probabilities.score_logits`
        for rows, logits in logits_of.blocks("train"):
            hits[rows] = largest(logits).cpu() == labels[rows]
    counts = torch.bincount(labels)
    right = torch.bincount(labels[hits], minlength=len(counts))
    return 100 * float((right[counts > 0].double() / counts[counts > 0]).mean())


def balanced_held_out_accuracy(logits_of: SplitLogits, images: Images) -> float | None:
    """Return the class-balanced accuracy on the held-out images, in percent, None where there are none."""
    report = holdout_report(logits_of, images)
    return None if report is None else float(report["class_balanced_accuracy"])


def fall_line(before: float | None, after: float | None) -> str | None:
    """Return what to say where the classifier of stage 2 is below that of stage 1 on held-out images, from their
    class-balanced accuracies in percent; None where it is not, or is not known."""
    if before is None or after is None or after >= before:
        return None
    return (
        f"warning: on held-out images stage 2 is below stage 1: class-balanced accuracy {after:.1f}, was {before:.1f}; "
        "--method auto finds the best of several, stage 1 among them"
    )


def collapse_line(before: float, after: float, *, trains: bool = True) -> str | None:
    """Return what to say where the classifier of stage 2 knows its own training images much worse than that of stage 1,
    from both class-balanced accuracies on them in percent; None where it does not.

    It happens where features are balanced already, and where LOS's target meets a head whose row norms are bound.
    A classifier that is computed, and not one that `trains`, has no rate and no epochs to lower.
    """
    if before - after <= FALL:
        return None
    return (
        f"warning: class-balanced accuracy on the training images fell from {before:.1f} (stage 1) to {after:.1f}: "
        f"{'this re-training' if trains else 'this classifier'} does not suit these features; "
        f"try {'a lower --finetune_lr, fewer epochs, ' if trains else ''}another --method"
    )


@torch.no_grad()
def weight_norms(classifier: nn.Module, num_classes: int) -> list[float | None]:
    """Return the norm of each class's effective weight row, None where a head has none (`models.heads`)."""
    weight = classifier.effective_weight() if isinstance(classifier, Linear) else classifier.get_parameter("weight")
    if weight is None:
        return [None] * num_classes
    return [finite_or_none(norm) for norm in weight.norm(dim=1).tolist()]


def finish_run(session: Session, history: History, logits_of: SplitLogits) -> dict[str, Any]:
    """Write metrics.json and the plots of a run, print its tables, and return the metrics."""
    run, settings = session.run, session.run.config["settings"]
    metrics = run_metrics(run.config, history, logits_of, session.images, session.data)
    labels, data = session.images["test"].labels, session.data
    predictions = logits_of.scored("plain", labels).predictions
    confusion = confusion_report(predictions, labels, data.class_counts, data.shot_bounds)
    metrics |= {"class_names": data.class_names, "confusion": confusion, "shot_bounds": data.shot_bounds._asdict()}
    accuracy = metrics["last"]["plain"]["per_class_accuracy"]
    classes = class_table(confusion, accuracy, data.class_names, data.class_counts, data.shot_bounds)
    if is_main():
        draw_plots(run.folder / "plots", metrics, history.log)
        write_text(run.folder / "per_class.csv", csv_text(classes, "%.6g"))
        write_json(run.folder / "metrics.json", metrics)  # last: its presence says that the run is finished
    wait_for_all()  # a stage that follows in the same processes reads these files in each of them
    tell()
    tell(report_table({name: metrics[name] for name in ("last", "best")}, settings["protocol"]))
    tell()
    tell(classes_text(confusion, classes, "last epoch, plain"))
    tell()
    tell(details(metrics))
    if metrics["holdout"]:
        tell(f"held-out images: class-balanced accuracy {metrics['holdout']['class_balanced_accuracy']:.2f}")
    tell(f"training took {metrics['train_seconds']:.1f} s; everything is in {run.folder}")
    return metrics
