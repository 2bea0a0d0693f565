"""Checkpoints: written whole or not at all, read without running anything that is inside them.

Ours are dictionaries of tensors and plain Python values: `format`, `stage`, `epoch`, `model` (a state dict), `config`,
and in last.pth also `optimizer` and `history`, which is all that resuming needs.

Two kinds that are released (`tools.release`, `tools.export_features`) hold less than a network. A file of features
has, in the
place of the backbone, what it made of the images. A classifier alone names the file of its backbone, of either kind,
in its configuration: `backbone` is {file, sha256}, the file relative to the classifier's own folder. Features that
another model made (`runs.feature_files`) are read as such a file too.
"""

import io
import json
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.network import Network
from runs.archives import refuse_flipped_bits, refuse_strange_tensors, refuse_zip_bomb
from runs.feature_files import USER_FEATURES, USER_NETWORK, read_features
from runs.pretrained_weights import with_network_names
from runs.records import checkpoint_faults, refuse_faults
from runs.shards import find_shards, read_safetensors
from runs.state_dict_adapter import compare_keys, find_state_dict
from utils.errors import UserError, is_out_of_memory, no_memory
from utils.files import refuse_constant, sha256_of, write_atomically
from utils.outside import open_plain

FORMAT = 1
CLASSIFIER = "fc."  # how the names of a classifier's tensors begin


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

    @property
    def features(self) -> dict[str, Tensor] | None:
        """The features of the images, by the names of `datasets.features`, of a file that holds these; else None."""
        return None if self.content is None else self.content.get("features")


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
    """Read a checkpoint of ours, a plain state dict, or a file of a related code base (`runs.state_dict_adapter`).

    A name that ends in .safetensors is read as that format, in one piece or in shards, .npz as features that any model
    made, any other as PyTorch's.

    A pickled whole module, as the released stage 1 writes it, can run any code when it is read: it needs
    `trust_pickle`. Raises UserError for a missing, damaged or unknown file.
    """
    read = READERS.get(path.suffix, partial(read_pytorch, trust_pickle=trust_pickle))
    try:
        digest, content = read(path)
    except Exception as error:  # a damaged archive can raise nearly anything
        raise reading_error(path, error) from error
    if isinstance(content, dict) and "format" in content:
        refuse_strange_record(path, content)
        return Checkpoint(path, digest, kind_of(content), content["model"], content)
    try:
        if isinstance(content, nn.Module):
            content = content.state_dict()
        state, layout = find_state_dict(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Checkpoint(path, digest, layout, state, None)


def read_pytorch(path: Path, trust_pickle: bool = False) -> tuple[str, Any]:
    """Return the sha256 of a file of PyTorch's and what it holds: anything, if the file is to be trusted."""
    with open_plain(path, "the checkpoint") as file:
        digest = sha256_of(file)
        if not trust_pickle:
            refuse_zip_bomb(file)
            file.seek(0)
        with warnings.catch_warnings():  # of what is refused later, or is none of a user's business
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=not trust_pickle)
        refuse_flipped_bits(file)
        refuse_strange_tensors(content, os.fstat(file.fileno()).st_size)
    return digest, content


def reading_error(path: Path, error: Exception) -> UserError:
    """Return the one line for what was raised while a checkpoint was read."""
    if isinstance(error, UserError):
        return UserError(str(error) if str(path) in str(error) else f"{path}: {error}")
    if is_out_of_memory(error):
        return no_memory(f"the checkpoint {path}", "what else runs on this machine, or --width where it was trained")
    if isinstance(error, OSError):
        return UserError(f"cannot read the checkpoint {path}: {error.strerror or error}")
    if isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower():
        return UserError(
            f"{path} holds more than tensors and plain values, such as a pickled module, and reading it can run any "
            "code; if you trust its source, add --trust_pickle"
        )
    if isinstance(error, AttributeError | ModuleNotFoundError):
        return UserError(
            f"{path} pickles a class that is not here ({first_line(error)}); save its state_dict() in its own code "
            "base and load that"
        )
    return UserError(f"{path} is damaged or not a checkpoint ({first_line(error)})")


def refuse_strange_record(path: Path, content: dict[str, Any]) -> None:
    """Raise UserError for a checkpoint of ours that is of another version, or says what no run can have said."""
    if content["format"] != FORMAT or not is_ours(content):
        raise UserError(
            f"{path} is not a checkpoint of format {FORMAT}; it was written by another version of this project"
        )
    refuse_faults(path, checkpoint_faults(content))


def kind_of(content: dict[str, Any]) -> str:
    """Return in words what a checkpoint of ours holds."""
    if content.get("holds") == USER_FEATURES:
        return USER_FEATURES
    kind = f"{content['stage']} checkpoint, epoch {content['epoch']}"
    if "features" in content:
        return f"features of a {kind}"
    return f"classifier of a {kind}" if all(key.startswith(CLASSIFIER) for key in content["model"]) else kind


def is_ours(content: dict[str, Any]) -> bool:
    """Tell whether a checkpoint has every entry that this project's have."""
    config = content.get("config")
    entries = {"stage": str, "epoch": int, "model": dict, "config": dict}
    if not isinstance(config, dict) or not all(isinstance(content.get(name), kind) for name, kind in entries.items()):
        return False
    if content["stage"] not in ("stage1", "stage2"):
        return False
    if not all(is_state(tensors) for tensors in (content["model"], content.get("features", {}))):
        return False
    if "features" in content:
        held = (
            content.get("class_names"),
            config.get("class_counts"),
            content.get("augmentation"),
            config.get("subset"),
        )
        if not all(isinstance(value, kind) for value, kind in zip(held, (list, list, dict, dict), strict=True)):
            return False
    return isinstance(config.get("settings"), dict) and isinstance(config.get("tags"), list)


def is_state(content: object) -> bool:
    """Tell whether something is a dictionary of tensors by names."""
    return isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def read_released(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the sha256 of a safetensors file and its content: one that we released as a checkpoint of ours, any other
    as the state dict that it is."""
    digest, tensors, metadata = read_safetensors(path)
    if "checkpoint" not in metadata:
        return read_features(path) if "train_features" in tensors else (digest, tensors)
    header = json.loads(metadata["checkpoint"], parse_constant=refuse_constant)
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: what it says of itself is no object")
    if header.get("holds") != "features":
        return digest, {**header, "model": tensors}
    state = {key: value for key, value in tensors.items() if key.startswith(CLASSIFIER)}
    return digest, {**header, "model": state, "features": {key: tensors[key] for key in tensors.keys() - state.keys()}}


# Of a file, by the end of its name: its sha256 and its content. All others are PyTorch's.
READERS: dict[str, Callable[[Path], tuple[str, Any]]] = {".npz": read_features, ".safetensors": read_released}


def with_backbone(checkpoint: Checkpoint) -> Checkpoint:
    """Return a classifier with the backbone, or the features, that it names; any other checkpoint as it is.

    Raises UserError where that file is missing or is another one.
    """
    named = checkpoint.config.get("backbone")
    if checkpoint.content is None or named is None:
        return checkpoint
    if not isinstance(named, dict) or not all(isinstance(named.get(key), str) for key in ("file", "sha256")):
        raise UserError(f"{checkpoint.path} does not say which backbone it belongs to: it is damaged")
    name = Path(named["file"])
    # A released file lies beside its backbone; a run of ours names features elsewhere, relative to its own folder.
    beside = name.name == named["file"] and name.name not in ("", "..")
    if name.is_absolute() or (checkpoint.path.suffix == ".safetensors" and not beside):
        raise UserError(f"{checkpoint.path} names a backbone outside its own folder, {named['file']}: it is refused")
    path = checkpoint.path.parent / name
    if not (is_file(path) or (on_user_features(checkpoint) and os.path.isdir(path))):
        raise UserError(
            f"{checkpoint.path} is a classifier alone, and what it was trained on is not at {path}; put that file there"
        )
    backbone = load_backbone(path, checkpoint)
    if backbone.sha256 != named["sha256"]:
        raise UserError(
            f"{path} is not the backbone of {checkpoint.path}: its sha256 is {backbone.sha256[:16]}..., that of the "
            f"right one {named['sha256'][:16]}..."
        )
    return joined(checkpoint, backbone)


def load_backbone(path: Path, classifier: Checkpoint) -> Checkpoint:
    """Read what a classifier of ours was trained on: a checkpoint, or anyone's features, in whatever form these are."""
    if not on_user_features(classifier):
        return load_checkpoint(path)
    digest, content = read_features(path, quiet=True)  # what there is to say was said when it was trained
    return Checkpoint(path, digest, USER_FEATURES, content["model"], content)


def on_user_features(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint of ours is of a classifier on features that another model made."""
    return checkpoint.settings().get("network") == USER_NETWORK


def is_file(path: Path) -> bool:
    """Tell whether a file, whole or in parts, is there and is no device or pipe; an impossible name is not there."""
    try:
        return find_shards(path)[0].is_file()
    except OSError:
        return False


def joined(classifier: Checkpoint, backbone: Checkpoint) -> Checkpoint:
    """Return a checkpoint of ours that holds a classifier alone with the backbone, or the features, of another one."""
    assert classifier.content is not None
    shared = {key: value for key, value in backbone.state.items() if not key.startswith(CLASSIFIER)}
    content = dict(classifier.content)
    if backbone.content is not None and backbone.features is not None:
        content |= {key: backbone.content[key] for key in ("features", "class_names", "augmentation")}
    return replace(classifier, state=shared | classifier.state, content=content)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def load_weights(model: Network, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into a model; a UserError names missing, unexpected and misshapen keys."""
    state = with_network_names(model, checkpoint.state)
    own = model.state_dict()
    problems = compare_keys(state, own)
    if not problems:
        other = [key for key, value in state.items() if value.is_floating_point() != own[key].is_floating_point()]
        problems = [f"{key}: {state[key].dtype} here, {own[key].dtype} expected" for key in other[:5]]
    if problems:
        raise UserError(f"{checkpoint.path} ({checkpoint.kind}) does not fit the network: {'; '.join(problems)}")
    model.load_state_dict(state)
