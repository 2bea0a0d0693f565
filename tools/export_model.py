"""Make one file of a finished run for use without this project: ONNX, or PyTorch's exported program.

    python -m tools.export_model RUN_FOLDER model.onnx
    python -m tools.export_model RUN_FOLDER model.pt2 --temperature 1.5
    python -m tools.export_model CHECKPOINT model.onnx --test_prior shares.csv

The first argument is whatever `predict.py --pretrained_pth` reads. The file maps `images`, float32 (batch, 3, S, S) in
[0, 1] of any batch, to `logits` and `probabilities`, (batch, K). Normalisation, network, classifier and temperature are
in it, with `--test_prior` the class shares of the images that it will see. Class names and what else a user needs stand
in its metadata. What is written was run first, in onnxruntime or in PyTorch, and compared with the network.

To write ONNX needs `pip install onnx onnxscript`; to compare and to predict `pip install onnxruntime`.
"""

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.priors.correction import Prior
from runs.checkpoint import Checkpoint
from settings.checks import check_prior, check_value
from settings.fields import FLAGS
from stages.answers import ask_prior, source_prior
from stages.exported_model import (
    HEADER,
    INPUT,
    ONNX,
    TOLERANCE,
    ServedNetwork,
    export_bytes,
    is_exported,
    largest_difference,
    refuse_taken,
    require_packages,
)
from stages.prediction import Predictor, make_predictor, read_trained
from stages.prediction_csv import why_uncalibrated
from stages.sources import Source, header_of
from utils.arguments import CommandParser
from utils.command import run_command
from utils.errors import UserError
from utils.files import make_folder, write_atomically
from utils.text import tell


@dataclass(frozen=True)
class Subject:
    """What is exported: a checkpoint with all that predicting needs, and a test prior with its offsets (K,)."""

    checkpoint: Checkpoint
    predictor: Predictor
    prior: Prior | None
    offsets: Tensor


def open_subject(path: Path, temperature: float | None, test_prior: str | None, trust_pickle: bool) -> Subject:
    """Read a run or a checkpoint. Raises UserError for one that holds no network that looks at images."""
    if is_exported(path):
        raise UserError(f"{path} is an exported model: name the run that it was made of")
    checkpoint = read_trained(path, trust_pickle)
    predictor = make_predictor(checkpoint, temperature)
    prior, offsets = None, torch.zeros(len(predictor.class_names))
    if test_prior is not None:
        prior, offsets, line = ask_prior(checkpoint, predictor, test_prior, None)
        tell(line)
    return Subject(checkpoint, predictor, prior, offsets)


def metadata_of(subject: Subject) -> dict[str, str]:
    """Return the metadata of an exported file: texts for any reader, and the header for `predict.py`."""
    checkpoint, predictor = subject.checkpoint, subject.predictor
    header = header_of(Source(checkpoint.path, checkpoint, None))
    header |= {"temperature": predictor.temperature, "temperature_source": predictor.source}
    if predictor.source is None:
        del header["temperature"], header["temperature_source"]
    elif predictor.source != "given":
        assert checkpoint.content is not None
        header["temperature_source"] = checkpoint.content.get("temperature_source")
    options = predictor.options
    entries: dict[str, Any] = {
        "class_names": predictor.class_names,
        "temperature": predictor.temperature if predictor.source is not None else None,
        "size": predictor.size,
        "resize": predictor.resize,
        "input": f"{INPUT}: RGB / 255; shorter side {predictor.resize}, centre crop of {predictor.size} pixels",
        "mean": predictor.augmentation.mean,
        "std": predictor.augmentation.std,
        "mirror": predictor.augmentation.mirror,
        "decoding": None if options is None else vars(options),
        "network": checkpoint.settings().get("network"),
        "method": checkpoint.config.get("method"),
    }
    if checkpoint.config.get("class_counts") is not None:
        own = source_prior(checkpoint, predictor.temperature)
        entries["prior"] = {"shares": own.shares.tolist(), "words": own.words}
    if subject.prior is not None:
        entries["test_prior"] = {"shares": subject.prior.shares.tolist(), "words": subject.prior.words}
        header["test_prior"] = entries["test_prior"]
    entries[HEADER] = header
    return {
        name: value if isinstance(value, str) else json.dumps(value, allow_nan=False) for name, value in entries.items()
    }


def export_model(subject: Subject, file: Path) -> str:
    """Write the file, and return what is said of how it was compared with the network.

    Raises UserError where it cannot be written, and where its outputs differ from the network's by more than 1e-5;
    nothing is left behind then.
    """
    predictor = subject.predictor
    served = ServedNetwork(predictor.model, predictor.augmentation, predictor.temperature, subject.offsets).eval()
    content = export_bytes(served, file.suffix, predictor.size, metadata_of(subject))
    said = "not compared with the network: that needs pip install onnxruntime"
    if file.suffix != ONNX or importlib.util.find_spec("onnxruntime") is not None:
        difference = largest_difference(content, file.suffix, served, predictor.size)
        if not difference <= TOLERANCE:
            raise UserError(f"the exported outputs differ from the network's by {difference:.1e}: nothing is written")
        said = f"compared with the network on random images: outputs differ by at most {difference:.1e}"
    make_folder(file.parent)
    write_atomically(file, lambda opened: opened.write(content))
    return said


def summary_lines(subject: Subject, file: Path, said: str) -> list[str]:
    """Return what is said of a file that was written."""
    predictor, checkpoint = subject.predictor, subject.checkpoint
    method = f", classifier by {checkpoint.config['method']}" if checkpoint.config.get("method") else ""
    size, classes = predictor.size, len(predictor.class_names)
    temperature = f"temperature: {predictor.temperature:.6g} ({predictor.source})"
    if predictor.source is None:
        temperature = f"temperature: 1, NOT CALIBRATED: {why_uncalibrated(checkpoint)}"
    return [
        f"network: {checkpoint.settings()['network']} of {checkpoint.path}{method}",
        f"input: {INPUT} (batch, 3, {size}, {size}), RGB / 255, shorter side {predictor.resize} before the crop",
        f"outputs: logits and probabilities (batch, {classes})",
        temperature,
        said,
        f"written: {file} ({os.path.getsize(file) / 2**20:.1f} MiB)",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Export what the command line names."""
    command = "python -m tools.export_model"
    usage = f"{command} RUN_OR_CHECKPOINT FILE.onnx|FILE.pt2 [--temperature X] [--test_prior PRIOR]"
    parser = CommandParser(command, __doc__, usage=usage)
    parser.add_argument("source", type=Path, help="folder of a finished run, or a checkpoint file")
    parser.add_argument("file", type=Path, help="where to write, ending in .onnx or .pt2")
    help_text = "divide the logits by this [the checkpoint's, else 1]"
    parser.add_argument("--temperature", type=float, metavar="X", help=help_text)
    parser.add_argument("--test_prior", metavar="PRIOR", help=FLAGS["test_prior"].help)
    parser.add_argument("--trust_pickle", action="store_true", help="load pickled modules, which can run any code")
    own = parser.parse_args(argv)
    if own.temperature is not None:
        check_value("temperature", own.temperature)
    check_prior(own.test_prior)
    refuse_taken(own.file)
    if own.file.suffix == ONNX:
        require_packages("to write .onnx")
    subject = open_subject(own.source, own.temperature, own.test_prior, own.trust_pickle)
    said = export_model(subject, own.file)
    for line in summary_lines(subject, own.file, said):
        tell(line)


if __name__ == "__main__":
    run_command(main)
