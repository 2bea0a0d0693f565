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
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.numpy_pickles import StandIn
from models.network import Network
from runs.feature_files import USER_FEATURES, USER_NETWORK, read_features
from runs.feature_files.held_out import hold_out, is_held_out
from runs.pretrained_weights import LoadReport, load_network, other_kinds, with_cosine_head, with_network_names
from runs.records import checkpoint_faults, refuse_faults
from runs.shards import find_shards, read_safetensors
from runs.state_dict_adapter import compare_keys, find_state_dict
from runs.weights.containers import CONTAINERS, is_average
from runs.weights.formats import SAFETENSORS, TORCH
from runs.weights.pickles import find_stand_in
from runs.weights.reading import (
    Trust,
    format_of,
    more_than_tensors,
    read_pytorch,
    reading_error,
)
from utils.errors import UserError
from utils.files import refuse_constant, write_atomically
from utils.text import shown

FORMAT = 1
COSINE = "fc.scale"  # the one tensor that a cosine classifier has and a linear one does not
CLASSIFIER = "fc."  # how the names of a classifier's tensors begin


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: `state` by torchvision's names, `kind` in words, ours with all its `content`.

    `choice` is "ema" where the averaged weights of the file were taken, else empty.
    """

    path: Path
    sha256: str
    kind: str
    state: dict[str, Tensor]
    content: dict[str, Any] | None
    choice: str = ""

    @property
    def identity(self) -> str:
        """What tells these weights from all others: the sha256 of the file and, of two sets in it, which."""
        return f"{self.sha256}-{self.choice}" if self.choice else self.sha256

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
    def unfinished(self) -> str:
        """In words, which epoch this is of how many where a checkpoint of ours is not that of the last one, and where
        that is known to be so, that its run is not finished; "" for any other, and in the folder of a finished run."""
        stage = self.config.get("stage", "stage1")
        epochs = self.settings().get("epochs" if stage == "stage1" else "finetune_epoch")
        folder = self.path.parent
        if self.epoch is None or epochs is None or self.epoch == epochs or (folder / "metrics.json").exists():
            return ""
        assert self.content is not None
        begun = "history" in self.content or (folder / "config.json").exists()  # else it may be the best epoch's
        end = f": {stage.replace('stage', 'stage ')} is not finished" if begun else ""
        return f"{self.path} is of epoch {self.epoch} of {epochs}{end}"

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


def load_checkpoint(path: Path, trust_pickle: Trust = None, ema: bool = False) -> Checkpoint:
    """Read a checkpoint of ours, a plain state dict, or a file of a related code base (`runs.state_dict_adapter`).

    What a file is says its content; a name that ends in .npz is read as features that any model made, and
    .safetensors as that format in one piece or in shards.

    A pickled whole module, as the released stage 1 writes it, can run any code when it is read: it needs
    `trust_pickle`, which is None where no flag can give it. `ema` takes the averaged weights of another code base's
    file. Raises UserError for a missing, damaged or unknown file.
    """
    try:
        digest, content = reader_of(path, trust_pickle)(path)
    except Exception as error:  # a damaged archive can raise nearly anything
        raise reading_error(path, error, trust_pickle) from error
    if isinstance(content, dict) and "format" in content:
        strange = find_stand_in(content)
        if strange is not None:
            raise UserError(f"{path} {more_than_tensors(strange, None)}")
        refuse_strange_record(path, content)
        refuse_idle_ema(path, ema)
        return Checkpoint(path, digest, kind_of(content), content["model"], content)
    try:
        state, layout = find_state_dict(content, ema)
    except UserError as error:
        strange = find_stand_in(content)
        advice = "" if strange is None or trust_pickle is None else pickled_advice(content)
        raise UserError(f"{path}: {error}{advice}") from error
    return Checkpoint(path, digest, layout, state, None, "ema" if ema else "")


def reader_of(path: Path, trust_pickle: Trust) -> Callable[[Path], tuple[str, Any]]:
    """Return what reads a file: by the end of its name features and shards, else by its content."""
    if path.suffix == ".npz":
        return read_features
    is_file = path.is_file()
    safe = path.suffix == ".safetensors" or (is_file and format_of(path) == SAFETENSORS)
    if is_file and safe and format_of(path) == TORCH:
        raise UserError("this is a file of torch.save, whatever its name says; rename it to .pth")
    return read_released if safe else partial(read_pytorch, trust_pickle=trust_pickle)


def pickled_advice(content: Any) -> str:
    """Return what to say of a file without a state dict that has an object of some class where weights could be."""
    for key, value in content.items() if isinstance(content, dict) else ():
        name = find_stand_in([value]) if isinstance(value, StandIn) else None
        if name is not None and (key in CONTAINERS or is_average(str(key))):
            return f"; {key!r} is a pickled {shown(name)}: if you trust its source, add --trust_pickle"
    return ""


def refuse_idle_ema(path: Path, ema: bool) -> None:
    """Raise UserError where averaged weights are asked of a checkpoint of ours, which never has any."""
    if ema:
        raise UserError(f"{path}: --ema: no averaged weights are in a file of this project; leave the flag out")


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


def with_backbone(checkpoint: Checkpoint, mmap: str = "auto") -> Checkpoint:
    """Return a classifier with the backbone, or the features, that it names; any other checkpoint as it is.

    `mmap` says whether features stay in their file (`--mmap`). Raises UserError where the named file is missing or is
    another one.
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
    backbone = load_backbone(path, checkpoint, mmap)
    if backbone.sha256 != named["sha256"]:
        raise UserError(
            f"{path} is not the backbone of {checkpoint.path}: its sha256 is {backbone.sha256[:16]}..., that of the "
            f"right one {named['sha256'][:16]}..."
        )
    return joined(checkpoint, backbone)


def load_backbone(path: Path, classifier: Checkpoint, mmap: str = "auto") -> Checkpoint:
    """Read what a classifier of ours was trained on: a checkpoint, or anyone's features, in whatever form these are."""
    if not on_user_features(classifier):
        return load_checkpoint(path)
    digest, content = read_features(path, quiet=True, mmap=mmap)  # what there is to say was said when it was trained
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
        share = classifier.settings().get("holdout")
        if backbone.kind == USER_FEATURES and share and not is_held_out(backbone.content):
            held_out = hold_out(backbone.content, share, split_seed(classifier.settings()))
            return joined(classifier, replace(backbone, content=held_out))
        shared_keys = ("features", "data", "class_names", "augmentation")
        content |= {key: backbone.content[key] for key in shared_keys if key in backbone.content}
    return replace(classifier, state=shared | classifier.state, content=content)


def split_seed(settings: dict[str, Any]) -> int:
    """Return the seed by which a run on anyone's features held rows out: that of its stage 1."""
    return settings["seed"] if settings.get("stage1_seed") is None else settings["stage1_seed"]


def load_weights(model: Network, checkpoint: Checkpoint, linear: bool = False) -> LoadReport | None:
    """Copy a checkpoint's tensors into a model; a UserError names missing, unexpected and misshapen keys.

    Of another code base's file the network is found under whatever prefix, and the report says what was done. A cosine
    classifier becomes the model's head or, where it must be `linear`, linear rows (`load_network`).
    """
    if checkpoint.content is None:
        try:
            return load_network(model, checkpoint.state, linear)
        except UserError as error:
            raise UserError(f"{checkpoint.path} ({checkpoint.kind}) does not fit the network: {error}") from error
    state = with_network_names(model, checkpoint.state)
    if COSINE in state and not checkpoint.config.get("method"):
        state = with_cosine_head(model, state, linear)  # of another code base, released by this one
    own = model.state_dict()
    problems = compare_keys(state, own) or other_kinds(state, own)
    if problems:
        raise UserError(f"{checkpoint.path} ({checkpoint.kind}) does not fit the network: {'; '.join(problems)}")
    model.load_state_dict(state)
    return None
