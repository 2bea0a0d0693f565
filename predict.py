"""Predict: class and calibrated probability for anyone's images, from a finished run and without its data set.

    python predict.py --pretrained_pth RUN_FOLDER_OR_FILE --images FOLDER --csv predictions.csv
    python predict.py --pretrained_pth RUN_FOLDER_OR_FILE --images FILE [FILE ...] --top 5 --csv -

writes a row `file,class,probability` for each image. Folders are walked through with all folders in them. A
probability is softmax(logits / temperature) with the temperature that the run fitted on its held-out images
(`--holdout` of both stages), or that of `--temperature`.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TextIO

from settings.fields import Settings
from settings.resolve import report_unused
from stages.data import loader_processes
from stages.prediction import (
    TEMPERATURES,
    find_images,
    leave_out_unreadable,
    logit_blocks,
    make_predictor,
    open_images,
    read_run,
)
from stages.prediction_csv import (
    STANDARD_OUTPUT,
    check_target,
    source_lines,
    summary_lines,
    write_predictions,
    write_to,
)
from utils.command import run_command
from utils.device import choose_execution
from utils.distributed import launch_of
from utils.errors import UserError
from utils.text import shown, utf8_text


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; --help lists the flags")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this script; flags that other scripts have mean what they mean there."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--pretrained_pth", required=True, help="run folder (its last epoch) or checkpoint file")
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="image files, or folders of them")
    parser.add_argument("--csv", default="predictions.csv", help="file to write, - for the screen [predictions.csv]")
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it is there")
    parser.add_argument("--top", type=int, help="write the N most probable classes of each image, with their rank")
    parser.add_argument("--temperature", type=float, help="divide the logits by this [the checkpoint's, else 1]")
    parser.add_argument("--flip", action="store_true", help="average logits with those of the mirrored image")
    parser.add_argument("--skip_bad", type=int, default=0, help="leave out up to N images that cannot be read [0]")
    parser.add_argument("--batch_size", type=int, help="images that pass the network at once [by device and size]")
    parser.add_argument("--workers", type=int, help="processes that read images, 0 for none [by the machine's cores]")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="where to compute [auto]")
    parser.add_argument("--gpu", type=int, help="number of the CUDA device [0]")
    parser.add_argument("--amp", default="auto", choices=["auto", "off", "bf16"], help="bf16 autocast [auto]")
    parser.add_argument("--trust_pickle", action="store_true", help="load pickled modules, which can run any code")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for a value outside its domain."""
    low, high = TEMPERATURES
    bounds = {"top": (1, 1e9), "temperature": (low, high), "skip_bad": (0, 1e9), "batch_size": (1, 1e9),
              "workers": (0, 1e6), "gpu": (0, 1e6)}  # fmt: skip
    for name, (least, most) in bounds.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} must be between {least:g} and {most:g}, not {value:g}")
    if launch_of().count > 1:
        raise UserError("predict.py is one process: start it without torchrun")
    check_target(arguments.csv, arguments.overwrite)


def say(lines: Sequence[str]) -> None:
    """Print lines, whatever bytes the names in them are made of."""
    print(utf8_text("\n".join(lines)), flush=True)


def predict(arguments: argparse.Namespace, output: TextIO) -> None:
    """Predict what the arguments ask for, with the rows on `output` for `--csv -`; say what was done."""
    checkpoint = read_run(Path(arguments.pretrained_pth), arguments.trust_pickle)
    predictor = make_predictor(checkpoint, arguments.temperature)
    known = len(predictor.class_names)
    if arguments.top is not None and arguments.top > known:
        raise UserError(f"--top {arguments.top}: {checkpoint.path} knows {known} classes")
    if arguments.flip and not predictor.augmentation.mirror:
        raise UserError("--flip: a mirrored image shows something else in the run's data set; leave the flag out")
    split, passed = find_images(arguments.images)
    execution = choose_execution(arguments.device, arguments.gpu or 0, arguments.amp, "off")
    if execution.device.type == "cpu" and arguments.gpu is not None:
        report_unused("predict", ["--gpu"], " on cpu")
    workers = loader_processes(replace(Settings(), workers=arguments.workers), execution)
    others = f", {passed} other entries passed over" if passed else ""
    say([*execution.reasons[:2], *source_lines(predictor, checkpoint, arguments.flip)])
    say([f"found: {len(split)} images{others}"])
    if arguments.skip_bad:
        split, lines = leave_out_unreadable(split, workers, arguments.skip_bad)
        say([*(f"skipped: {shown(line)}" for line in lines), f"{len(lines)} images skipped"])

    execution.place(predictor.model)
    images = open_images(predictor, split, execution, workers)
    blocks = logit_blocks(predictor.model, images, execution, arguments.flip, arguments.batch_size)
    summary = write_to(
        arguments.csv, output, lambda file: write_predictions(file, predictor, split, blocks, arguments.top)
    )
    images.close()
    say(summary_lines(summary, predictor))
    if arguments.csv != STANDARD_OUTPUT:
        say([f"written to {arguments.csv}"])


def main(argv: Sequence[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    check(arguments)
    output = sys.stdout
    # Rows alone go to standard output, and whatever a locale cannot show is in them nevertheless.
    if arguments.csv == STANDARD_OUTPUT and isinstance(output, io.TextIOWrapper):
        output.reconfigure(encoding="utf-8")
    notes = sys.stderr if arguments.csv == STANDARD_OUTPUT else sys.stdout
    with contextlib.redirect_stdout(notes):
        predict(arguments, output)


if __name__ == "__main__":
    run_command(main)
