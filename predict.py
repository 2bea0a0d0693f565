"""Predict: class and calibrated probability for anyone's images, from a finished run and without its data set.

    python predict.py --pretrained_pth RUN_FOLDER_OR_FILE --images FOLDER --csv predictions.csv
    python predict.py --pretrained_pth RUN_FOLDER_OR_FILE --images FILE [FILE ...] --top 5 --csv -
    python predict.py --pretrained_pth RUN_FOLDER --images FOLDER --coverage 0.9 --sets classwise
    python predict.py --pretrained_pth model.onnx --images FOLDER

writes a row `file,class,probability,error` for each image. Folders are walked through with all folders in them. A
probability is softmax(logits / temperature) with the temperature that the run fitted on its held-out images
(`--holdout` of both stages), or that of `--temperature`. `--coverage` adds the column `set`, a JSON list of the
classes among which the true one is that often. Photos that are stored turned are turned upright first.

Exit status 1 where some images could not be read, whose rows say why in the column `error`; 2 for a wrong command.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

from datasets.decoding.options import EXIF, ORIENTATIONS
from evaluation.prediction_sets.kinds import KINDS, MARGINAL
from settings.checks import STANDARD_OUTPUT, check_prior, check_value
from settings.fields import FLAGS
from settings.places import check_readable, no_images
from settings.resolve import report_unused
from utils.arguments import CommandParser
from utils.command import run_command, standard_output
from utils.distributed import launch_of
from utils.errors import UserError
from utils.files import check_file


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this script; flags that other scripts have mean what they mean there."""
    usage = "python predict.py --pretrained_pth PATH --images PATH [PATH ...] [flags]"
    parser = CommandParser("predict.py", __doc__, usage=usage)
    parser.add_argument(
        "--pretrained_pth", required=True, metavar="PATH", help="run folder (last epoch), checkpoint or exported model"
    )
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="image files, or folders of them")
    parser.add_argument("--trust_pickle", action="store_true", help="load pickled modules, which can run any code")
    parser.add_argument(
        "--csv", default="predictions.csv", metavar="FILE", help="file to write, - for the screen [predictions.csv]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it is there")
    for name, kind, text in (
        ("top", int, "write the N most probable classes of each image, with their rank"),
        ("temperature", float, "divide the logits by this [the checkpoint's, else 1]"),
        ("coverage", float, "write prediction sets that hold the true class this often"),
        ("skip_bad", int, "leave out up to N images that cannot be read [0]"),
        ("batch_size", int, "images that pass the network at once [by device and size]"),
        ("workers", int, "processes that read images, 0 for none [by the machine's cores]"),
        ("gpu", int, "number of the CUDA device [0]"),
    ):
        metavar = "N" if kind is int else "X"
        default = 0 if name == "skip_bad" else None
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)
    parser.add_argument("--flip", action="store_true", help="average logits with those of the mirrored image")
    parser.add_argument(
        "--orientation",
        default=EXIF,
        choices=ORIENTATIONS,
        help="turn photos as EXIF says, or take them as stored [exif]",
    )
    parser.add_argument("--sets", default=MARGINAL, choices=KINDS, help="thresholds of --coverage [marginal]")
    parser.add_argument("--test_prior", metavar="PRIOR", help=FLAGS["test_prior"].help)
    for name in ("bits", "max_pixels"):
        text = FLAGS[name].help.partition(" [")[0]
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{text} [the run's]")
    for name in ("device", "amp"):
        flag = FLAGS[name]
        parser.add_argument(f"--{name}", default=flag.default, choices=flag.choices, help=f"{flag.help} [auto]")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for a value outside its domain."""
    for name in ("temperature", "coverage", "skip_bad", "batch_size", "workers", "gpu", "bits", "max_pixels"):
        if getattr(arguments, name) is not None:
            check_value(name, getattr(arguments, name))
    check_prior(arguments.test_prior)
    if arguments.top is not None and arguments.top < 1:
        raise UserError(f"--top must be at least 1, not {arguments.top}")
    if launch_of().count > 1:
        raise UserError("predict.py is one process: start it without torchrun")
    if arguments.coverage is None and arguments.sets != MARGINAL:
        report_unused("predict", ["--sets"], " without --coverage")
    if arguments.csv != STANDARD_OUTPUT:
        check_file("--csv", arguments.csv, overwrite=arguments.overwrite)
    check_readable("pretrained_pth", arguments.pretrained_pth)
    for path in arguments.images:
        if not os.path.exists(path):
            raise no_images(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Predict the images that a command line names."""
    arguments = make_parser().parse_args(argv)
    check(arguments)
    output = standard_output() if arguments.csv == STANDARD_OUTPUT else sys.stdout
    # Rows alone go to standard output, and whatever a locale cannot show is in them nevertheless.
    if arguments.csv == STANDARD_OUTPUT and isinstance(output, io.TextIOWrapper):
        output.reconfigure(encoding="utf-8")
    notes = sys.stderr if arguments.csv == STANDARD_OUTPUT else sys.stdout
    from stages.commands.predict import predict  # PyTorch, which help texts and refusals do without

    with contextlib.redirect_stdout(notes):
        unread = predict(arguments, output)
    if unread:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
