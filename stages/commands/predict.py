"""The predictions of predict.py: class and probability for anyone's images."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from datasets.decoding.options import DecodeOptions
from datasets.workers import Reading
from runs.checkpoint import Checkpoint
from settings.checks import STANDARD_OUTPUT
from settings.fields import Settings
from settings.resolve import report_unused
from stages.answers import answers_of
from stages.data import loader_processes
from stages.exported_model import is_exported
from stages.prediction import (
    Predictor,
    find_images,
    leave_out_unreadable,
    logit_blocks,
    make_predictor,
    open_images,
    read_trained,
)
from stages.prediction_csv import source_lines, summary_lines, unread_line, write_predictions, write_to
from utils.device import choose_execution
from utils.errors import UserError
from utils.text import counted, shown, tell, utf8_text


def say(lines: Sequence[str]) -> None:
    """Print lines, whatever bytes the names in them are made of."""
    tell(utf8_text("\n".join(lines)), flush=True)


def options_for(arguments: argparse.Namespace, predictor: Predictor) -> DecodeOptions:
    """Return how image files become pixels: upright unless the command says otherwise, else as in the run."""
    own = predictor.options or DecodeOptions()
    given = {name: getattr(arguments, name) for name in ("bits", "max_pixels") if getattr(arguments, name) is not None}
    return replace(own, orientation=arguments.orientation, **given)


def execution_flags(arguments: argparse.Namespace, checkpoint: Checkpoint) -> tuple[str, int, str]:
    """Return device, GPU and precision. Raises UserError for an exported model anywhere but on the CPU in fp32."""
    if not is_exported(checkpoint.path):
        return arguments.device, arguments.gpu or 0, arguments.amp
    for flag, value in (("device", "cuda"), ("amp", "bf16")):
        if getattr(arguments, flag) == value:
            raise UserError(f"--{flag} {value}: {checkpoint.path} runs on the CPU, in fp32; name its run for others")
    return "cpu", 0, "off"


def predict(arguments: argparse.Namespace, output: TextIO) -> int:
    """Predict what the arguments ask for, with the rows on `output` for `--csv -`; say what was done.

    Return how many images could not be read.
    """
    checkpoint = read_trained(Path(arguments.pretrained_pth), arguments.trust_pickle)
    predictor = make_predictor(checkpoint, arguments.temperature)
    asked = answers_of(checkpoint, predictor, arguments)
    if arguments.flip and not predictor.augmentation.mirror:
        raise UserError("--flip: a mirrored image shows something else in the run's data set; leave the flag out")
    options = options_for(arguments, predictor)
    split, left_out = find_images(arguments.images)
    execution = choose_execution(*execution_flags(arguments, checkpoint), "off")
    if execution.device.type == "cpu" and arguments.gpu is not None:
        report_unused("predict", ["--gpu"], " on cpu")
    workers = loader_processes(replace(Settings(), workers=arguments.workers), execution)
    others = f", {counted(left_out.total(), 'other entry', 'other entries')} passed over" if left_out.total() else ""
    say([*execution.reasons[:2], *source_lines(predictor, checkpoint, options, arguments.flip), *asked.lines])
    say([f"found: {counted(len(split), 'image')}{others}", *left_out.lines()])
    if arguments.skip_bad:
        split, lines = leave_out_unreadable(split, workers, arguments.skip_bad, options)
        say([*(f"skipped: {shown(line)}" for line in lines), f"{counted(len(lines), 'image')} skipped"])

    execution.place(predictor.model)
    images = open_images(predictor, split, execution, Reading(workers, options, patient=True))
    blocks = logit_blocks(predictor.model, images, execution, arguments.flip, arguments.batch_size)
    summary = write_to(
        arguments.csv,
        output,
        lambda file: write_predictions(file, predictor, split, blocks, images.faults, asked),
    )
    images.close()
    say(summary_lines(summary, predictor))
    if arguments.csv != STANDARD_OUTPUT:
        say([f"written to {arguments.csv}"])
    if summary.unread:
        tell(unread_line(summary), file=sys.stderr, flush=True)
    return summary.unread
