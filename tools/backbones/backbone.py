"""What a backbone is here, and the refusals that the libraries share."""

import difflib
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from PIL import Image
from torch import Tensor, nn

from runs.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.text import shown

RANDOM = "none"  # in the place of a file of weights: those of the initialisation, a control
LISTED = 12  # names that a message has room for


@dataclass(frozen=True)
class TextEncoder:
    """The text side of a model that was trained on images and their captions.

    `embed` maps P prompts to their embeddings (P, d), on the device and of unit length. `scale` is the factor, learned
    with them, that makes logits of cosines (Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", ICML 2021).
    """

    embed: Callable[[Sequence[str]], Tensor]
    scale: float


@dataclass(frozen=True)
class Backbone:
    """A frozen network with the preprocessing that it was trained with.

    `network` maps a batch (B, 3, H, W) of what `prepare` makes of each image (PIL, RGB) to features (B, d). `weights`
    and `preprocessing` say in words which they are. `text` is there for models that know texts too.
    """

    network: nn.Module
    prepare: Callable[[Image.Image], Tensor]
    weights: str
    preprocessing: str
    text: TextEncoder | None = None


def require_package(package: str, install: str, spec: str) -> ModuleType:
    """Import an optional package. Raises UserError, with the line that installs it, where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = f"needs the package {install}" if error.name == package else f"cannot import {package} ({error})"
        raise UserError(f"--backbone {spec} {missing}: pip install {install}") from error


def one_size(spec: str, size: int | None) -> None:
    """Raise UserError where a size is asked for of a model that has one alone."""
    if size is not None:
        raise UserError(
            f"--image_size {size} has no use with {spec}, whose preprocessing comes as it is; it is for torchvision:, "
            "timm:, runs, and Python files whose load() takes image_size"
        )


def unknown_name(kind: str, name: str, known: Sequence[str], what: str = "model") -> UserError:
    """Return the line for a name that a library does not have; names that are close to it are listed."""
    close = difflib.get_close_matches(name, known, n=5)
    likely = f"close to it: {', '.join(close)}" if close else f"it has {len(known):,}, such as {few(known)}"
    return UserError(f"{kind} has no {what} '{shown(name)}'; {likely}")


def described(transform: object) -> str:
    """Return a preprocessing in words of one line, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(transform).split()))


def few(names: Sequence[str]) -> str:
    """Return the first of many names in a line."""
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def cannot_load(spec: str, error: Exception, advice: str) -> UserError:
    """Return the line for weights that could not be had."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"cannot load the weights of {spec} ({shown(reason)}); {advice}")


def load_state(network: nn.Module, file: str, allowed: tuple[str, ...] = ()) -> None:
    """Copy a state dict from a file into a network, which must have all of its tensors there by its own names.

    Tensors of the file below `allowed`, such as a classifier's, may be left over. Raises UserError for a file that
    cannot be read or does not fit.
    """
    state = load_checkpoint(Path(file)).state
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    over = [name for name in state if name not in own and not name.startswith(allowed)]
    shaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    for what, names in (("lacks", missing), ("has too many:", over), ("has in other shapes:", shaped)):
        if names:
            raise UserError(f"--weights {file} does not fit: it {what} {len(names)} tensors ({few(names)})")
    network.load_state_dict({name: state.get(name, value) for name, value in own.items()})
