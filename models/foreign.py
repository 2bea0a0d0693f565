"""Checkpoints of other projects: find the state dict in what `torch.load` returned and give it torchvision's names.

How the projects save, read in their public code:

- Weight Balancing (Alshammari et al., CVPR 2022; `utils/trainval.py`, `utils/network_arch_resnet.py`): the bare state
  dict of a module that holds a torchvision network as `encoder`.
- MiSLAS (Zhong et al., CVPR 2021; `train_stage1.py`, `train_stage2.py`): features, classifier and, after stage 2, the
  learnable weight scaling are three modules, each under a key of its own and each wrapped in DataParallel.
- classifier-balancing (Kang et al., ICLR 2020; `run_networks.py`) and what derives from it (BALMS, GALA): one
  dictionary of two wrapped halves, `feat_model` and `classifier`, under `state_dict_best` or `state_dict`.
- LDAM-DRW and many after it (`models/resnet_cifar.py`): the classifier is `linear`, a projection is `shortcut`.
"""

import re
from typing import NamedTuple

from torch import Tensor

from utils.errors import UserError

# Keys under which a checkpoint holds the weights, beside entries such as the epoch and the optimizer.
CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "state_dict_best", "state_dict_model")


class Split(NamedTuple):
    """A network saved as several modules: what the layout is called and the keys of its parts."""

    layout: str
    required: tuple[str, ...]
    optional: tuple[str, ...]


SPLITS = (
    Split(
        layout="MiSLAS (state_dict_model + state_dict_classifier)",
        required=("state_dict_model", "state_dict_classifier"),
        optional=("state_dict_lws_model",),
    ),
    Split(
        layout="classifier-balancing or GALA (feat_model + classifier)",
        required=("feat_model", "classifier"),
        optional=(),
    ),
)

# What DataParallel and torch.compile put before the names of the module that they wrap. No ResNet has children of these
# names, so they go wherever they stand: a part of a network can be wrapped too.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")

# A prefix that every key carries, and the layout that it tells.
ROOTS = {"encoder.": "Weight Balancing (encoder.)"}

# Other names for torchvision's. The order does not matter: no result matches another pattern.
RENAMES = (
    (re.compile(r"^(?:linear|last_linear|classifier|classifier\.fc|fc\.fc)\.(weight|bias)$"), r"fc.\1"),
    (re.compile(r"^(layer\d+\.\d+)\.shortcut\."), r"\1.downsample."),
)

# One factor a class, applied to the classifier's output: (K,) in classifier-balancing (`models/TauNormClassifier.py`),
# (1, K) in MiSLAS (`LearnableWeightScaling` in `methods.py`).
SCALES = ("scales", "learned_norm")

# Every network here has this key: without it, a dictionary of tensors is something else.
LANDMARK = "conv1.weight"

SHOWN = 5


def find_state_dict(content: object) -> tuple[dict[str, Tensor], str]:
    """Return the state dict inside `content`, with torchvision's names, and one phrase saying which layout it was.

    `content` is what `torch.load` returned; it is not changed. Factors that the source applies to the logits are
    multiplied into `fc` (see `fold_scales`); all other tensors share memory with those of `content`. Whether the result
    fits a network is for `compare_keys` to say.
    Raises UserError for a layout that is not known, for values that are no tensors, for two keys that get one name, and
    for weights that a plain ResNet cannot express.
    """
    parts, layout, where = find_parts(content)
    state: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    entries: dict[str, object] = {}
    for part, raw in parts.items():
        names, root_layout = rename([str(key) for key in raw])
        if root_layout and not part:
            layout = root_layout
        for (key, value), name in zip(raw.items(), names, strict=True):
            origin = f"{part}[{key!r}]" if part else repr(key)
            if name in origins:
                raise UserError(f"{origins[name]} and {origin} of the checkpoint both become {name!r}")
            origins[name] = origin
            entries[origin] = value
            if isinstance(value, Tensor):
                state[name] = value.detach()
    if LANDMARK not in origins:
        raise UserError(f"found {listing(entries)}{where}, so no '{LANDMARK}' by any known name; {expectation()}")
    strange = {origin: value for origin, value in entries.items() if not isinstance(value, Tensor)}
    if strange:
        raise UserError(f"a state dict holds tensors only, not {listing(strange)}{where}")
    scaled = fold_scales(state)
    return scaled, f"{layout}{where}{', scales multiplied into fc' if len(scaled) < len(state) else ''}"


def find_parts(content: object) -> tuple[dict[str, dict], str, str]:
    """Return the raw dictionaries that make up the network, by part, the layout's name and where it was found.

    A network saved as one module is one part named "".
    """
    if not isinstance(content, dict):
        raise UserError(f"found an object of type {type(content).__name__}; {expectation()}")
    inner, where = content, ""
    split = match_split(content)
    if split is None:
        held = [key for key in CONTAINERS if holds_tensors(content.get(key))]
        if len(held) > 1:
            raise UserError(f"several entries of the checkpoint hold weights: {', '.join(map(repr, held))}; keep one")
        if held:
            inner, where = content[held[0]], f" under '{held[0]}'"
            split = match_split(inner)
    if split is None:
        return {"": inner}, "plain state dict", where
    known = (*split.required, *split.optional)
    # Leaving out a part of the network would give other predictions: a factor for the logits that is no state dict, or
    # the block that MiSLAS puts between features and classifier for Places-LT.
    for key, value in inner.items():
        misplaced = key in known and value is not None and not isinstance(value, dict)
        if misplaced or (key not in known and holds_tensors(value)):
            raise UserError(f"{key!r} ({type(value).__name__}) is no known part of {split.layout}{where}")
    return {part: inner[part] for part in known if isinstance(inner.get(part), dict)}, split.layout, where


def match_split(content: dict) -> Split | None:
    """Return the first of `SPLITS` whose required parts are all in `content`."""
    return next((split for split in SPLITS if all(isinstance(content.get(p), dict) for p in split.required)), None)


def holds_tensors(value: object, levels: int = 2) -> bool:
    """Tell whether `value` is a dictionary with tensors in it, at most `levels` dictionaries deep.

    Two levels reach the weights of every known layout and not those of an optimizer, which lie three deep.
    """
    if not isinstance(value, dict) or levels == 0:
        return False
    return any(isinstance(inner, Tensor) or holds_tensors(inner, levels - 1) for inner in value.values())


def rename(keys: list[str]) -> tuple[list[str], str | None]:
    """Return torchvision's names for `keys`, in their order, and the layout if a common prefix tells one."""
    names = [WRAPPERS.sub("", key) for key in keys]
    layout = None
    for root, root_layout in ROOTS.items():
        if names and all(name.startswith(root) for name in names):
            names, layout = [name.removeprefix(root) for name in names], root_layout
    for pattern, replacement in RENAMES:
        names = [pattern.sub(replacement, name) for name in names]
    return names, layout


def fold_scales(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with its factors for the logits multiplied into `fc` and removed; `state` itself without any.

    The source computes s * (W x + b) with one factor a class, which is (s W) x + (s b): rows of `fc.weight` (K, d) and
    entries of `fc.bias` (K,).
    """
    folded = dict(state)
    for key in SCALES:
        if key not in folded:
            continue
        scales = folded.pop(key)
        weight = folded.get("fc.weight")
        if weight is None or weight.ndim != 2 or scales.numel() != len(weight):
            fc = "no 'fc.weight'" if weight is None else f"'fc.weight' of shape {tuple(weight.shape)}"
            raise UserError(f"'{key}' {tuple(scales.shape)} scales one logit a class, but the checkpoint has {fc}")
        factors = scales.reshape(-1).to(weight)
        folded["fc.weight"] = weight * factors[:, None]
        if "fc.bias" in folded:
            folded["fc.bias"] = folded["fc.bias"] * factors
    return folded


def compare_keys(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return what keeps `state` from fitting a network whose own state dict is `expected`, one short line a problem.

    An empty list means that every key is there, none is left over and all shapes agree.
    """
    problems = []
    for kind, keys in (("missing", expected.keys() - state.keys()), ("unexpected", state.keys() - expected.keys())):
        if keys:
            # In the order of the network, or of the checkpoint, rather than the set's.
            ordered = [key for key in (*expected, *state) if key in keys]
            more = ", ..." if len(ordered) > SHOWN else ""
            problems.append(f"{kind} keys ({len(ordered)}): {', '.join(ordered[:SHOWN])}{more}")
    misshapen = [
        f"{key}: {tuple(state[key].shape)} here, {tuple(tensor.shape)} expected"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    problems += misshapen[:SHOWN]
    if len(misshapen) > SHOWN:
        problems.append(f"and {len(misshapen) - SHOWN} more keys of another shape than expected")
    return problems


def listing(entries: dict[str, object]) -> str:
    """List the first entries of a dictionary, each with its type, and how many there are in all if that is more."""
    if not entries:
        return "an empty dictionary"
    first = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(entries.items())[:SHOWN])
    return f"{first}, ... ({len(entries)} in all)" if len(entries) > SHOWN else first


def expectation() -> str:
    """Say which layouts are known."""
    containers = ", ".join(f"'{key}'" for key in CONTAINERS)
    layouts = ", ".join([*ROOTS.values(), *(split.layout for split in SPLITS)])
    return f"expected a ResNet's state dict with torchvision's names, bare or under {containers}, or one of {layouts}"
