"""Make a file of features from images with a backbone of any library: what `main_stage2.py --features` reads.

    python -m tools.extract --backbone timm:resnet50.a1_in1k --dataset folder --data_dir flowers flowers.safetensors
    python -m tools.extract --backbone open_clip:ViT-B-32@openai --text_classifier --dataset cifar100 clip.safetensors
    python -m tools.extract --backbone RUN_FOLDER --dataset list --train_list flowers.csv flowers.safetensors

`--backbone` is torchvision:NAME, timm:NAME, open_clip:NAME@TAG or hf:NAME, whose package must be installed; a run or a
released file of this project; or a Python file with a function `load()`, which returns a network and its preprocessing.
Images undergo the model's own preprocessing, as they are, and its features are what its classifier is given. The other
flags are those of `main_stage1.py` that say which data, and on which device.

The file holds `train_features` (N, d), `test_features`, where images are held out `holdout_features`, and labels, in
shards; `--parquet` writes them as a table too. With `--text_classifier` it also holds `fc.weight`, the zero-shot
classifier that the model's text side makes of the names of the classes, from which stage 2 then starts. A command that
was stopped goes on where it was.

Many commands share the work with `--part 1/8` to `--part 8/8`, on as many machines as reach the file; the same command
without it then finishes the file.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.long_tail import LongTailedData
from datasets.on_disk.layouts import LIST_FLAGS
from evaluation.metrics import classification_report
from runs.dependencies import describe_data, key_of
from runs.run_record import decode_options, describe_environment
from runs.shards import SHARD_MIB, read_safetensors
from settings.command_line import flag_help, parse_command
from settings.declare import Facet
from settings.fields import FLAGS, STAGE1, with_facet
from settings.resolve import Command
from stages.data import load_data, loader_processes
from tools.backbones import FORMS, open_backbone
from tools.backbones.backbone import Backbone
from tools.backbones.prompts import read_prompts, text_classifier
from tools.extraction.layout import Layout, plan_layout
from tools.extraction.parquet import refuse_place, write_parquet
from tools.extraction.prepared import Part, PreparedImages, prepared_batches
from tools.extraction.store import Store, refuse_finished
from utils.arguments import CommandParser
from utils.command import run_command
from utils.device import Execution, choose_execution
from utils.distributed import launch_of
from utils.errors import UserError, memory_for
from utils.files import check_file
from utils.progress import show_progress
from utils.text import counted, tell

PRECISIONS = {"float16": torch.float16, "float32": torch.float32}
MACHINE = ("device", "gpu", "amp")
# The flags of stage 1 that say which data, and on which device.
DATA = (
    *("dataset", "data_dir", *(flag.removeprefix("--") for flag in LIST_FLAGS), *with_facet(Facet.PROFILE)),
    *("seed", "orientation", "bits", "max_pixels", "skip_bad", "identity", "out", *MACHINE),
)
INTERRUPTED = "; the same command goes on from here"


@dataclass(frozen=True)
class Job:
    """What is to be extracted: the parsed own flags, data and device, and the backbone on the device."""

    own: argparse.Namespace
    command: Command
    execution: Execution
    data: LongTailedData
    backbone: Backbone
    parts: list[Part]


def make_parser() -> CommandParser:
    """Return the parser of the tool: its own flags, and those of stage 1 for data and device as plain words."""
    command = "python -m tools.extract"
    usage = f"{command} --backbone MODEL --dataset NAME [flags] FILE.safetensors"
    parser = CommandParser(command, __doc__, usage=usage)
    parser.add_argument("file", type=Path, help="where to write, ending in .safetensors")
    parser.add_argument("--backbone", required=True, metavar="MODEL", help=FORMS)
    parser.add_argument("--weights", metavar="FILE", help="weights for a named network; 'none' for random ones")
    parser.add_argument("--text_classifier", action="store_true", help="add the zero-shot classifier as fc.weight")
    help_text = "prompt templates, one a line with {} for the class, or JSON ['a photo of a {}.']"
    parser.add_argument("--templates", type=Path, metavar="FILE", help=help_text)
    help_text = "side of the prepared images in pixels [the model's own]"
    parser.add_argument("--image_size", type=int, metavar="N", help=help_text)
    parser.add_argument("--mirrored", action="store_true", help="add the features of mirrored test images")
    parser.add_argument("--precision", choices=PRECISIONS, default="float16", help="of the features [float16]")
    parser.add_argument("--batch_size", type=int, metavar="N", help="images at once [by device and size]")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read images [by the machine's cores]")
    help_text = f"MiB a file holds at most [{SHARD_MIB:g}]"
    parser.add_argument("--part_mib", type=float, default=SHARD_MIB, metavar="X", help=help_text)
    help_text = "make the I-th of N shares of the shards alone; without it the file is finished"
    parser.add_argument("--part", metavar="I/N", help=help_text)
    help_text = "write a table of Parquet too, a row an image (needs pyarrow)"
    parser.add_argument("--parquet", type=Path, metavar="FILE", help=help_text)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there, finished or not")
    group = parser.add_argument_group("data and device, as in stage 1")
    for name in DATA:
        metavar, text = flag_help(FLAGS[name])
        how: dict[str, Any] = {"action": "store_true"} if metavar is None else {"metavar": metavar}
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **how)
    return parser


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Command]:
    """Parse a command line. Raises UserError for values that cannot be."""
    own = make_parser().parse_args(argv)
    given = [(name, getattr(own, name)) for name in DATA if hasattr(own, name)]
    words = [word for name, value in given for word in ([f"--{name}"] if value is True else [f"--{name}", value])]
    command = parse_command(STAGE1, "", words)
    if own.file.suffix != ".safetensors":
        raise UserError(f"{own.file} must end in .safetensors")
    if not 0 < own.part_mib < math.inf:
        raise UserError(f"--part_mib must be a positive number, not {own.part_mib:g}")
    for name, lowest in (("batch_size", 1), ("workers", 0), ("image_size", 1)):
        if getattr(own, name) is not None and getattr(own, name) < lowest:
            raise UserError(f"--{name} must be at least {lowest}, not {getattr(own, name)}")
    own.part = parse_part(own.part)
    if own.part is not None and own.overwrite:
        raise UserError("--part: other parts may be at work, so --overwrite is for the whole file; leave one out")
    check_file("FILE", own.file, makes_folder=True)
    if not own.overwrite:
        refuse_finished(own.file)
    if own.parquet is not None:
        refuse_place(own.parquet, own.overwrite)
    if own.templates is not None and not own.text_classifier:
        raise UserError("--templates are for --text_classifier: add it")
    if launch_of().count > 1:
        raise UserError("tools.extract is one process: start it without torchrun")
    return own, replace(command, arguments=tuple(sys.argv[1:] if argv is None else argv))


def parse_part(text: str | None) -> tuple[int, int] | None:
    """Return the number of a part, from 1, and how many there are; UserError where they cannot be."""
    if text is None:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--part must be I/N with 1 <= I <= N, as 1/8, not {text}")
    return int(part), int(parts)


def open_job(own: argparse.Namespace, command: Command) -> Job:
    """Load data and backbone; prompts are read first, so that what is wrong with them costs no download."""
    settings = command.settings
    amp = settings.amp if "amp" in command.given else "off"
    execution = choose_execution(settings.device, settings.gpu, amp, "off")
    data = load_data(settings, settings.seed)
    if own.text_classifier:
        read_prompts(own.templates, data.class_names)
    torch.manual_seed(settings.seed)  # of random weights
    backbone = open_backbone(own.backbone, own.weights, own.image_size)
    if own.text_classifier and backbone.text is None:
        raise UserError(f"--text_classifier: {own.backbone} knows no texts; take a model of images and texts (CLIP)")
    execution.place(backbone.network)
    splits = {"train": data.train, "holdout": data.holdout, "test": data.test}
    parts = [Part(name, split) for name, split in splits.items() if len(split)]
    parts += [Part("test", data.test, True)] if own.mirrored else []
    return Job(own, command, execution, data, backbone, parts)


def forward(job: Job, images: Tensor) -> Tensor:
    """Return the features (B, d) of prepared images, in the precision of the file, on the CPU.

    Raises UserError where the network makes something else of them, and for numbers that the precision cannot hold.
    """
    device = job.execution.device
    with torch.inference_mode(), job.execution.autocast(), memory_for("a batch of images", "--batch_size"):
        try:
            order = torch.channels_last if images.ndim == 4 else torch.preserve_format
            made: Any = job.backbone.network(images.to(device, memory_format=order))
        except (AssertionError, ValueError) as error:
            shape = "x".join(map(str, images.shape[1:]))
            raise UserError(f"{job.own.backbone} takes no images of {shape}: {error}") from error
    made = made.flatten(1) if isinstance(made, Tensor) and made[0].numel() == max(made.shape[1:], default=0) else made
    if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != len(images):
        what = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UserError(f"{job.own.backbone} has no penultimate features: it makes {what} of {len(images)} images")
    features = made.to(PRECISIONS[job.own.precision]).cpu()
    if not bool(features.isfinite().all()):
        largest = f", or above {torch.finfo(torch.float16).max:g}: try --precision float32"
        raise UserError(f"features are not finite{largest if job.own.precision == 'float16' else ''}")
    return features


def state_sha256(network: nn.Module) -> str:
    """Return the sha256 of all tensors of a network, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def classifier_of(job: Job) -> dict[str, Tensor]:
    """Return the zero-shot classifier `fc.weight` (K, d) in fp32, where one is asked for."""
    if not job.own.text_classifier:
        return {}
    assert job.backbone.text is not None
    prompts = read_prompts(job.own.templates, job.data.class_names)
    return {"fc.weight": text_classifier(job.backbone.text, prompts)}


def plan_of(job: Job, classifier: dict[str, Tensor]) -> dict[str, Any]:
    """Return all that the numbers of the file depend on, by names that a message can use."""
    data, own = job.data, job.own
    return {
        "backbone": own.backbone,
        "weights": state_sha256(job.backbone.network),
        "preprocessing": job.backbone.preprocessing,
        "data set": data.name,
        "images": {part.name: len(part.images) for part in job.parts},
        "contents": key_of({**describe_data(data), "subset": data.subset}),
        "precision": f"{own.precision}, computed in {'bf16' if job.execution.bf16 else 'fp32'}",
        "classifier": {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in classifier.items()},
        "part_mib": own.part_mib,
        "decoding": vars(decode_options(job.command.settings)),
    }


def extract(argv: Sequence[str] | None = None) -> list[Path]:
    """Extract what a command line names; return the files that were written, the card behind the shards."""
    own, command = parse(argv)
    job = open_job(own, command)
    for line in (*job.execution.reasons[:2], f"weights: {job.backbone.weights}", job.backbone.preprocessing):
        tell(line)
    workers = own.workers if own.workers is not None else loader_processes(command.settings, job.execution)
    images = PreparedImages(job.parts, job.backbone.prepare, decode_options(command.settings), workers)
    [first] = prepared_batches(images, [(0, job.parts[0].images.ids[:1] * 0)], 0)
    width = forward(job, first).shape[1]
    classifier = classifier_of(job)
    metadata = {"class_names": json.dumps(job.data.class_names)}
    limit = int(own.part_mib * 2**20) - len(metadata["class_names"].encode())
    layout = plan_layout(job.parts, width, PRECISIONS[own.precision], classifier, limit)
    plan = plan_of(job, classifier)
    store = Store(own.file, layout, plan, metadata, overwrite=own.overwrite, part=own.part)
    size = own.batch_size or job.execution.predict_batch(first.shape[-1])
    started, before = time.monotonic(), store.done
    if before:
        tell(f"{own.file}: {before:,} of {store.wanted:,} rows are there; going on")
    try:
        for features in features_of(job, images, store.batches(size), workers):
            store.add(features)
    except BaseException:  # also where the command is stopped
        store.leave()
        raise
    seconds = time.monotonic() - started
    if own.part is not None:
        tell(f"part {own.part[0]} of {own.part[1]}: {counted(len(store.shards), 'shard')} of {layout.row_shards}")
        return store.finish_part()
    written = store.finish(card_of_job(job, plan, layout, seconds, layout.rows - before))
    if own.parquet is not None:
        write_parquet(own.parquet, read_safetensors(own.file)[1], job.data.class_names)
        written.append(own.parquet)
    report(job, own.file, layout, seconds, layout.rows - before)
    return written


def features_of(
    job: Job, images: PreparedImages, batches: Sequence[tuple[int, np.ndarray]], workers: int
) -> Iterator[Tensor]:
    """Yield the features (B, d) of batches of rows, which as many worker processes read, showing progress."""
    prepared = prepared_batches(images, batches, workers)
    for batch in show_progress(prepared, "features", len(batches)):
        yield forward(job, batch)


def card_of_job(job: Job, plan: dict[str, Any], layout: Layout, seconds: float, computed: int) -> dict[str, Any]:
    """Return what the card says beside the names and hashes of the files."""
    return {
        "holds": "features",
        "width": layout.width,
        "rows": {part.name: len(part.images) for part in job.parts},
        "plan": plan,
        "weights": job.backbone.weights,
        "prompts": read_prompts(job.own.templates, job.data.class_names) if job.own.text_classifier else None,
        "subset": job.data.subset,
        "class_counts": job.data.class_counts.tolist(),
        "command": list(job.command.arguments),
        "environment": describe_environment(job.execution),
        "images_per_second": round(computed / seconds, 1) if computed and seconds else None,
    }


def report(job: Job, file: Path, layout: Layout, seconds: float, computed: int) -> None:
    """Say what was made and, of a zero-shot classifier, how good it is on the test images."""
    counts = ", ".join(f"{part.name} {len(part.images):,}" for part in job.parts)
    tell(f"{counts}; {layout.width} numbers each, {computed:,} computed in {seconds:.0f} s")
    if not job.own.text_classifier:
        return
    tensors = read_safetensors(file)[1]
    logits = tensors["test_features"].float() @ tensors["fc.weight"].T
    accuracy = classification_report(logits, tensors["test_labels"], job.data.class_counts)
    groups = ", ".join(
        f"{name} {accuracy[name]:.1f}" for name in ("many", "medium", "few") if accuracy[name] is not None
    )
    tell(f"zero-shot on the test images: {accuracy['all']:.1f} ({groups})")


def main(argv: Sequence[str] | None = None) -> None:
    """Extract what the command line names, and say what to do with it."""
    written = extract(argv)
    tell(f"written: {', '.join(map(str, written)) or 'nothing: there are fewer shards than parts'}")
    own = make_parser().parse_args(argv)
    ready = own.part is None
    tell(f"next: {'python main_stage2.py --features' if ready else 'all parts, then this without --part:'} {own.file}")


if __name__ == "__main__":
    run_command(main, INTERRUPTED)
