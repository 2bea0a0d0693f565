"""Predictions as a CSV, and their summary."""

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np
import torch
from torch import Tensor

from datasets.decode import decoder_reason
from datasets.decoding.errors import reason_alone
from datasets.decoding.options import EXIF, IGNORE, DecodeOptions
from datasets.on_disk.listed_split import ListedSplit
from evaluation.csv_files import guarded
from evaluation.measure import HELD_OUT, Temperature, missing_reason
from evaluation.prediction_sets.report import in_sets
from runs.checkpoint import Checkpoint
from settings.checks import STANDARD_OUTPUT
from stages.answers import NOTHING, Asked
from stages.prediction import Predictor
from utils.errors import UserError
from utils.files import write_atomically
from utils.text import counted, shown, utf8_text

MOST_FREQUENT = 10  # predicted classes of a summary


@dataclass
class Summary:
    """What was predicted: `counts` (K,) of the classes in first place, the sum of their probabilities, and how many
    images could not be read."""

    counts: np.ndarray
    unread: int = 0
    total: float = 0.0
    seconds: float = field(default=0.0)

    @property
    def images(self) -> int:
        return int(self.counts.sum())


def most_probable(logits: Tensor, temperature: float, top: int, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the `top` classes (B, top) of logits (B, K), the most probable first, and their probabilities, float64.

    `offsets` (K,) are added to logits over their temperature. Equal logits stand in the order of the classes.
    """
    scaled = logits.double() / temperature
    if offsets is not None:
        logits = scaled = scaled + offsets.to(logits.device)
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :top]
    return order, scaled.softmax(dim=1).gather(1, order)


def set_cells(logits: Tensor, temperature: float, thresholds: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the prediction set of each row of logits (B, K) as a JSON list of class names, in their order."""
    members = in_sets(logits, thresholds, temperature).cpu().numpy()
    return [json.dumps([classes[k] for k in row.nonzero()[0]], ensure_ascii=False) for row in members]


def write_predictions(
    file: TextIO,
    predictor: Predictor,
    split: ListedSplit,
    blocks: Iterator[Tensor],
    faults: Mapping[int, str],
    asked: Asked = NOTHING,
) -> Summary:
    """Write `file,class,probability,error` as CSV, a row an image, as blocks of logits (B, K) come in.

    With `asked.top` there are that many rows an image and a column `rank`, from 1; with thresholds a column `set`,
    filled in an image's first row. An image that cannot be read has one row
    with the reason in the column `error` and nothing else: `faults` has its number by the time its block comes.
    """
    plain = csv.writer(file, lineterminator="\n")
    # Before Python 3.13 a lone carriage return is not quoted where lines end without one.
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    ranked, with_sets = asked.top is not None, asked.thresholds is not None
    further = ["set"] if with_sets else []
    plain.writerow(["file", *(["rank"] if ranked else []), "class", "probability", *further, "error"])
    summary = Summary(np.zeros(len(predictor.class_names), dtype=np.int64))
    classes = [guarded(name) for name in predictor.class_names]
    started, row = time.perf_counter(), 0
    for logits in blocks:
        temperature = predictor.temperature
        found = most_probable(logits, temperature, asked.top or 1, asked.offsets)
        order, probabilities = (part.cpu() for part in found)
        sets = [""] * len(logits)
        if asked.thresholds is not None:
            sets = set_cells(logits, temperature, asked.thresholds, predictor.class_names)
        seen = torch.tensor([number not in faults for number in range(row, row + len(logits))])
        summary.counts += np.bincount(order[seen, 0].numpy(), minlength=len(summary.counts))
        summary.total += float(probabilities[seen, 0].sum())
        for labels, shares, members in zip(order.tolist(), probabilities.tolist(), sets, strict=True):
            name = guarded(utf8_text(os.fsdecode(split.images[row])))
            row += 1
            if row - 1 in faults:
                summary.unread += 1
                why = guarded(reason_alone(split.path(row - 1), faults[row - 1]))
                (quoted if "\r" in name else plain).writerow(
                    [name, *([""] if ranked else []), "", "", *([""] * with_sets), why]
                )
                continue
            for rank, (label, share) in enumerate(zip(labels, shares, strict=True), 1):
                own = [members if rank == 1 else ""] * with_sets
                fields: list[Any] = [name, *([rank] if ranked else []), classes[label], f"{share:.6g}", *own, ""]
                (quoted if "\r" in name or "\r" in classes[label] else plain).writerow(fields)
    summary.seconds = time.perf_counter() - started
    return summary


def write_to(target: str, output: TextIO, write: Callable[[TextIO], Summary]) -> Summary:
    """Let `write` fill the file `target`, which is whole or absent, or `output` for "-"; return what it returns."""
    if target == STANDARD_OUTPUT:
        try:
            summary = write(output)
            output.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())  # or flushing at the end would fail again
            why = "was closed" if isinstance(error, BrokenPipeError) else f"failed ({error.strerror})"
            raise UserError(f"standard output {why} before all predictions were written") from error
        return summary
    summaries = []

    def fill(file: IO[bytes]) -> None:
        with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            summaries.append(write(text))

    write_atomically(Path(target), fill)
    return summaries[0]


def why_uncalibrated(checkpoint: Checkpoint) -> str:
    """Return in words why a checkpoint has no temperature, and what to do about it.

    Earlier versions did not record why: of a run with held-out images it is known that they gave none.
    """
    content = checkpoint.content or {}
    source = content.get("temperature_source")
    if reason := missing_reason(Temperature(None, source if isinstance(source, str) else None)):
        return f"{shown(reason)}; hold more images out, or give --temperature"
    if (checkpoint.settings().get("holdout") or 0) > 0:
        if source == HELD_OUT:
            return "its held-out images ask for no finite temperature; hold more images out, or give --temperature"
        return "this checkpoint has no temperature, which is kept with the last epoch (last.pth); or give --temperature"
    return (
        "the checkpoint has no temperature; train both stages with --holdout 0.1, which fits one on held-out images, "
        "or give --temperature"
    )


def source_lines(predictor: Predictor, checkpoint: Checkpoint, options: DecodeOptions, flip: bool) -> list[str]:
    """Return what is said before predicting: the network, its images, where the probabilities come from."""
    trained, config = checkpoint.settings(), checkpoint.config
    method = f", classifier by {config['method']}" if config.get("method") else ""
    lines = [
        f"network: {trained['network']} of {checkpoint.path} ({checkpoint.kind}), trained on {trained.get('dataset')}"
        f"{method}, {len(predictor.class_names)} classes",
        f"images: shorter side {predictor.resize}, centre crop of {predictor.size} pixels"
        f"{', logits averaged with those of the mirrored image' if flip else ''}; {decoder_reason()}",
        f"photos that are stored turned: {orientation_words(predictor, options)}",
    ]
    if config.get("class_names") is None:
        lines.append("classes: by their numbers; the checkpoint was written before names were recorded")
    if predictor.source is None:
        return [
            *lines,
            f"temperature: 1, NOT CALIBRATED: {why_uncalibrated(checkpoint)}; these probabilities are what the loss "
            "made of them (those of label over-smoothing are flat by design)",
        ]
    return [*lines, f"temperature: {predictor.temperature:.6g} ({predictor.source})"]


def orientation_words(predictor: Predictor, options: DecodeOptions) -> str:
    """Return what happens to photos whose EXIF data say that they are stored turned, beside what the run did."""
    if options.orientation == IGNORE:
        return "taken as they are stored (--orientation ignore)"
    trained = predictor.options and predictor.options.orientation
    unlike = "" if trained != IGNORE else ", unlike the run's own images; --orientation ignore takes them as stored"
    return f"turned upright, as their EXIF data say (--orientation {EXIF}){unlike}"


def unread_line(summary: Summary) -> str:
    """Return what is said of images that could not be read."""
    return (
        f"warning: {summary.unread} of {summary.images + summary.unread} images could not be read; their rows have no "
        "class, the column error says why"
    )


def summary_lines(summary: Summary, predictor: Predictor) -> list[str]:
    """Return what is said after predicting: nothing of classes where no image could be read."""
    if not summary.images:
        return []
    order = np.argsort(-summary.counts, kind="stable")[:MOST_FREQUENT]
    rate = (summary.images + summary.unread) / max(summary.seconds, 1e-9)
    found = int((summary.counts > 0).sum())
    lines = [
        f"{counted(summary.images, 'image')} in {summary.seconds:.1f} s ({rate:.0f} images/s), mean probability "
        f"{summary.total / max(summary.images, 1):.4f}",
        f"predicted classes: {found} of {len(summary.counts)}, the most frequent:",
    ]
    width = len(str(summary.counts.max()))
    shown_names = [(summary.counts[label], shown(predictor.class_names[label])) for label in order]
    return [*lines, *(f"  {count:>{width}}  {name}" for count, name in shown_names if count)]
