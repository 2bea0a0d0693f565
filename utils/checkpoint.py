"""Checkpoints: written whole or not at all, read without running anything that is inside them.

Ours are dictionaries of tensors and plain Python values: `format`, `stage`, `epoch`, `model` (a state dict), `config`,
and in last.pth also `optimizer` and `history`, which is all that resuming needs.
"""

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.foreign import compare_keys, find_state_dict
from utils.errors import UserError
from utils.files import sha256_file, write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: `state` by torchvision's names, `kind` in words, ours with all its `content`."""

    path: Path
    sha256: str
    kind: str
    state: dict[str, Tensor]
    content: dict[str, Any] | None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that a checkpoint of ours carries; empty for any other."""
        return {} if self.content is None else self.content["config"]

    @property
    def epoch(self) -> int | None:
        """The epoch after which a checkpoint of ours was written."""
        return None if self.content is None else self.content["epoch"]

    def settings(self) -> dict[str, Any]:
        """The settings of the run that wrote a checkpoint of ours; empty for any other."""
        return self.config.get("settings", {})


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically, serialised in memory first so that a full disk is an OSError and no other."""
    buffer = io.BytesIO()
    torch.save(on_cpu({"format": FORMAT, **content}), buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def on_cpu(content: Any) -> Any:
    """Return nested dictionaries and lists with every tensor on the CPU, so that a file opens on any machine."""
    if isinstance(content, Tensor):
        return content.detach().cpu()
    if isinstance(content, dict):
        return {key: on_cpu(value) for key, value in content.items()}
    return [on_cpu(value) for value in content] if isinstance(content, list) else content


def load_checkpoint(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint of ours, a plain state dict, or a file of a related code base (`models.foreign`).

    A name that ends in .safetensors is read as that format, any other as PyTorch's.

    A pickled whole module, as the released stage 1 writes it, can run any code when it is read: it needs
    `trust_pickle`. Raises UserError for a missing, damaged or unknown file.
    """
    try:
        digest = sha256_file(path)
        if path.suffix == ".safetensors":
            content = read_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        if "unsupported global" not in str(error).lower():
            raise UserError(f"{path} is damaged or not a checkpoint ({first_line(error)})") from error
        raise UserError(
            f"{path} holds more than tensors and plain values, such as a pickled module, and reading it can run "
            "any code; if you "
            "trust its source, add --trust_pickle"
        ) from error
    except (AttributeError, ModuleNotFoundError) as error:
        raise UserError(
            f"{path} pickles a class that is not here ({first_line(error)}); save its state_dict() in its own "
            "code base and load that"
        ) from error
    except Exception as error:  # a damaged archive can raise nearly anything
        raise UserError(f"{path} is damaged or not a checkpoint ({first_line(error)})") from error
    if isinstance(content, dict) and "format" in content:
        if content["format"] != FORMAT or not is_ours(content):
            raise UserError(
                f"{path} is not a checkpoint of format {FORMAT}; it was written by another version of this project"
            )
        return Checkpoint(
            path, digest, f"{content['stage']} checkpoint, epoch {content['epoch']}", content["model"], content
        )
    try:
        if isinstance(content, nn.Module):
            content = content.state_dict()
        state, layout = find_state_dict(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Checkpoint(path, digest, layout, state, None)


def is_ours(content: dict[str, Any]) -> bool:
    """Tell whether a checkpoint has every entry that this project's have."""
    config = content.get("config")
    entries = {"stage": str, "epoch": int, "model": dict, "config": dict}
    if not isinstance(config, dict) or not all(isinstance(content.get(name), kind) for name, kind in entries.items()):
        return False
    return isinstance(config.get("settings"), dict) and isinstance(config.get("tags"), list)


def read_safetensors(path: Path) -> dict[str, Any]:
    """Return a released file as a checkpoint of ours (`utils.release`), any other as the state dict that it is."""
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dictionary
        metadata = file.metadata() or {}
    return {**json.loads(metadata["checkpoint"]), "model": state} if "checkpoint" in metadata else state


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into a model; a UserError names missing, unexpected and misshapen keys."""
    problems = compare_keys(checkpoint.state, model.state_dict())
    if problems:
        raise UserError(f"{checkpoint.path} ({checkpoint.kind}) does not fit the network: {'; '.join(problems)}")
    model.load_state_dict(checkpoint.state)
