"""A trained network as one file for use elsewhere: ONNX (`.onnx`) or PyTorch's exported program (`.pt2`).

In the file are the normalisation of the images, the backbone, the classifier, the temperature and, where it was asked
for, a test prior. It maps `images`, (batch, 3, S, S) float32 in [0, 1] of any batch, to `logits` and `probabilities`,
(batch, K) each. Its metadata are texts: `class_names` (JSON), `temperature`, `size` and `resize` in pixels, ..., and
`checkpoint`, what a released file says of itself (`stages.sources.header_of`), so that `predict.py` reads it too.
"""

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.long_tail import Augmentation
from models.linear_head import Linear
from models.monotone_norms import MonotoneNorms
from models.neighbours import Neighbours
from models.network import Network
from runs.checkpoint import Checkpoint, refuse_strange_record
from utils.errors import UserError
from utils.files import check_file, refuse_constant, sha256_file
from utils.outside import read_plain
from utils.text import shown

ONNX, PROGRAM = ".onnx", ".pt2"
KINDS = {ONNX: "exported ONNX model", PROGRAM: "exported PyTorch program"}
INPUT, OUTPUTS = "images", ("logits", "probabilities")
HEADER = "checkpoint"  # the entry of the metadata that is a released file's header
METADATA = "metadata.json"  # the entry of a .pt2 archive
PACKAGES = {"to write .onnx": ("onnx", "onnxscript"), "to read .onnx": ("onnxruntime",)}
MOST_BYTES = (1 << 31) - (1 << 20)  # of an ONNX file, which is one message of protobuf
TOLERANCE = 1e-5  # of logits, in shares of the largest, and of probabilities


class ServedNetwork(nn.Module):
    """What is exported: normalisation, network, temperature and offsets in one, all in float32."""

    mean: Tensor
    std: Tensor
    temperature: Tensor
    offsets: Tensor

    def __init__(self, network: Network, constants: Augmentation, temperature: float, offsets: Tensor) -> None:
        """Take a network in evaluation mode, the constants of its images, and what is added (K,) to logits over their
        temperature. Raises UserError for a classifier without a closed form."""
        super().__init__()
        self.network = network
        self.head = closed_form(network.fc)
        for name, values in (("mean", constants.mean), ("std", constants.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("offsets", offsets.float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, S, S) in [0, 1] to logits and probabilities (B, K)."""
        logits = self.head(self.network.features((images - self.mean) / self.std))
        return logits, (logits / self.temperature + self.offsets).softmax(dim=1)


@torch.no_grad()
def closed_form(head: nn.Module) -> nn.Module:
    """Return a classifier as it is written into a file. Raises UserError for one that looks at training images."""
    if isinstance(head, Neighbours):
        raise UserError(
            "the classifier of --method knn has no closed form: each image is compared with all training images; "
            "export a run of --method ncm, whose classifier has one row a class"
        )
    if isinstance(head, MonotoneNorms):  # its rows are the same for every image
        linear = Linear(head)
        linear.weight.copy_(head.rows())
        linear.bias.copy_(head.monotone(head.shift_raw) + head.bias)
        return linear
    return head


def is_exported(path: Path) -> bool:
    """Tell by its name whether a file is an exported model."""
    return path.suffix in KINDS


def require_packages(purpose: str) -> None:
    """Raise UserError, with the line to install them, where packages for a `purpose` of `PACKAGES` are missing."""
    missing = [name for name in PACKAGES[purpose] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{purpose} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def export_bytes(served: ServedNetwork, suffix: str, size: int, metadata: Mapping[str, str]) -> bytes:
    """Return the content of a file that ends in `suffix`, for images of `size` pixels a side and any batch.

    Raises UserError for a network that PyTorch cannot export, and for one that is too large for ONNX.
    """
    held = sum(value.numel() * value.element_size() for value in served.state_dict().values())
    if suffix == ONNX and held > MOST_BYTES:
        raise UserError(f"the network takes {held >> 20} MiB, and an ONNX file holds 2 GiB: write a {PROGRAM} file")
    batch = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(served.eval(), (torch.rand(2, 3, size, size),), dynamic_shapes=batch)
            return onnx_bytes(program, metadata) if suffix == ONNX else program_bytes(program, metadata)
    except UserError:
        raise
    except Exception as error:  # of an operation that has no counterpart nearly anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"PyTorch cannot export this network or its classifier to {suffix}: {shown(first)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters say of their own workings from the screen."""
    out, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def onnx_bytes(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return an exported program as ONNX, its batch dimension called `batch`."""
    made = torch.onnx.export(
        program, (), input_names=[INPUT], output_names=list(OUTPUTS), dynamo=True, external_data=False, verbose=False
    )
    assert made is not None
    model = made.model_proto
    given = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == given:
                dimension.dim_param = "batch"
    for name, text in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, text
    return model.SerializeToString()


def program_bytes(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return an exported program as PyTorch's archive."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(dict(metadata))})
    return buffer.getvalue()


def largest_difference(content: bytes, suffix: str, served: ServedNetwork, size: int) -> float:
    """Return how far the outputs of an exported file are from the network's own on random images, in batches of 1 and
    5: of logits in shares of the largest one, or 1, of probabilities as they are."""
    run = onnx_function(content) if suffix == ONNX else program_function(content)
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for batch in (1, 5):
        images = torch.rand(batch, 3, size, size, generator=generator)
        with torch.no_grad():
            expected = served(images)
        for found, wanted in zip(run(images), expected, strict=True):
            unit = max(1.0, float(wanted.abs().max()))
            worst = max(worst, float((found - wanted).abs().max()) / unit)
    return worst


def onnx_function(content: bytes) -> Any:
    """Return what computes the outputs of ONNX for images (B, 3, S, S), on the CPU.

    From bytes, so that the file can name no other file to be read. Raises UserError for what is no such model.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no class
        raise UserError(f"onnxruntime cannot read it: {shown(str(error).splitlines()[0])}") from error
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    if names != ([INPUT], list(OUTPUTS)):
        raise UserError(f"it is no model of python -m tools.export_model: it maps {', '.join(map(shown, names[0]))}")

    def run(images: Tensor) -> list[Tensor]:
        pixels = np.ascontiguousarray(images.cpu().numpy())
        return [torch.from_numpy(output) for output in session.run(list(OUTPUTS), {INPUT: pixels})]

    return run


def program_function(content: bytes) -> Any:
    """Return what computes the outputs of an exported program for images (B, 3, S, S), on the CPU."""
    module = torch.export.load(io.BytesIO(content)).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(module(images.cpu().contiguous()))

    return run


class ExportedNetwork(Network):
    """The network of an exported file, on the CPU: `features` maps images (B, 3, S, S) in [0, 1] to its logits."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        content = read_plain(path)
        try:
            self.run = onnx_function(content) if path.suffix == ONNX else program_function(content)
        except UserError as error:
            raise UserError(f"cannot read {path}: {error}") from error
        except Exception as error:  # of a damaged archive nearly anything
            raise UserError(f"cannot read {path}: it is damaged ({shown(str(error))})") from error
        self.fc = nn.Identity()  # type: ignore[assignment]  # the classifier is in the file

    def features(self, images: Tensor) -> Tensor:
        """Map images (B, 3, S, S) in [0, 1] to logits (B, K)."""
        return self.run(images)[0]


def read_exported(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """Return what an exported file says of its run, as a checkpoint without tensors.

    Raises UserError for a file that is missing, damaged or another one, where onnxruntime is missing, and for a `.pt2`
    file that is not trusted: PyTorch may unpickle what is in it.
    """
    if path.suffix == PROGRAM and not trust_pickle:
        raise UserError(f"{path}: PyTorch can run any code while it reads a .pt2 file; if you trust it, --trust_pickle")
    if path.suffix == ONNX:
        require_packages("to read .onnx")
    try:
        content = read_plain(path)
        metadata = onnx_metadata(content) if path.suffix == ONNX else program_metadata(content)
        header = json.loads(metadata[HEADER], parse_constant=refuse_constant)
        names = json.loads(metadata["class_names"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except Exception as error:  # of a damaged file nearly anything
        raise UserError(f"{path} is no model of python -m tools.export_model, or is damaged") from error
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict) or "format" not in header:
        raise UserError(f"{path} is no model of python -m tools.export_model, or is damaged")
    header["config"]["class_names"] = names
    header["model"] = {}
    refuse_strange_record(path, header)
    return Checkpoint(path, sha256_file(path), KINDS[path.suffix], {}, header)


def onnx_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


def program_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a .pt2 archive, without reading anything else of it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{METADATA}"))
        return json.loads(archive.read(name))


def refuse_taken(path: Path) -> None:
    """Raise UserError for a name of no exported model, and where something stands in the place."""
    if not is_exported(path):
        raise UserError(f"{path} must end in {ONNX} or {PROGRAM}")
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; name another file, or remove it")
    check_file("FILE", path, makes_folder=True)
