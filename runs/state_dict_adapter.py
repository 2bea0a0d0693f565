"""Checkpoints of other projects: find the state dict in what `torch.load` returned and give it torchvision's names.

Whole networks come back under those names. Where a backbone is one part of a larger module, as self-supervised
learning saves it, its names keep their prefix (`encoder_q.conv1.weight`): `runs.pretrained_weights` finds it.

How the projects save, read in their public code:

- Weight Balancing (Alshammari et al., CVPR 2022; `utils/trainval.py`, `utils/network_arch_resnet.py`): the bare state
  dict of a module that holds a torchvision network as `encoder`.
- MiSLAS (Zhong et al., CVPR 2021; `train_stage1.py`, `train_stage2.py`): features, classifier and, after stage 2, the
  learnable weight scaling are three modules, each under a key of its own and each wrapped in DataParallel.
- classifier-balancing (Kang et al., ICLR 2020; `run_networks.py`) and what derives from it (BALMS, GALA): one
  dictionary of two wrapped halves, `feat_model` and `classifier`, under `state_dict_best` or `state_dict`.
- LDAM-DRW and many after it (`models/resnet_cifar.py`): the classifier is `linear`, a projection is `shortcut`.
- GCL (Li et al., CVPR 2022; `models/resnet_cifar.py`), like LDAM-DRW: `linear.weight` (d, K) of a cosine classifier.
- mmpretrain (`mmpretrain/models/classifiers/image.py`): `backbone.` and, of the classifier, `head.fc`.
- DINO (Caron et al., ICCV 2021; `main_dino.py`): two networks of one architecture, `student` and `teacher`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from runs.weights.containers import (
    COLOURS,
    CONTAINERS,
    LANDMARK,
    WRAPPERS,
    averaged_part,
    choose,
    classifier_beside,
    find_candidates,
    holds_network,
    holds_tensors,
    preference,
    sees_colours,
)
from utils.errors import UserError


class ModuleLayout(NamedTuple):
    """A network saved as several modules: what the layout is called and the keys of the modules."""

    layout: str
    required: tuple[str, ...]
    optional: tuple[str, ...]


MODULE_LAYOUTS = (
    ModuleLayout(
        layout="MiSLAS (state_dict_model + state_dict_classifier)",
        required=("state_dict_model", "state_dict_classifier"),
        optional=("state_dict_lws_model",),
    ),
    ModuleLayout(
        layout="classifier-balancing or GALA (feat_model + classifier)",
        required=("feat_model", "classifier"),
        optional=(),
    ),
)

# Networks of one architecture that are trained on each other, each a state dict of its own in the checkpoint.
TWINS = ("teacher", "student")

# A prefix that every key carries, and the layout that it tells.
ROOTS = {"encoder.": "Weight Balancing (encoder.)"}

# Other names for torchvision's. The order does not matter: no result matches another pattern.
RENAMES = (
    (re.compile(r"^(?:linear|last_linear|classifier|classifier\.fc|fc\.fc|head\.fc)\.(weight|bias)$"), r"fc.\1"),
    (re.compile(r"^(layer\d+\.\d+)\.shortcut\."), r"\1.downsample."),
)

# One factor a class, applied to the classifier's output: (K,) in classifier-balancing (`models/TauNormClassifier.py`),
# (1, K) in MiSLAS (`LearnableWeightScaling` in `methods.py`).
SCALES = ("scales", "learned_norm")

# BatchNorm's count of the batches that it has seen, which no prediction depends on and older files do not have.
BATCH_COUNT = "num_batches_tracked"

# Parts that can be the classifier's layer itself, its tensors without a name before them.
BARE_CLASSIFIERS = ("classifier", "state_dict_classifier")

# What averaging keeps beside the weights (`torch.optim.swa_utils.AveragedModel`).
BOOKKEEPING = ("n_averaged",)

# The names of a classifier inside a state dict.
OWN_CLASSIFIER = {f"{name}.weight" for name in ("fc", "linear", "last_linear", "classifier")}

SHOWN = 5


def find_state_dict(content: object, ema: bool = False) -> tuple[dict[str, Tensor], str]:
    """Return the state dict inside `content`, with torchvision's names, and one phrase saying which layout it was.

    `content` is what `torch.load` returned; it is not changed. Factors that the source applies to the logits are
    multiplied into `fc` (see `fold_scales`); all other tensors share memory with those of `content`. Whether the result
    fits a network is for `compare_keys` to say. With `ema` it is the averaged weights that are returned.
    Raises UserError for a layout that is not known, for values that are no tensors, for two keys that get one name, and
    for weights that a plain ResNet cannot express.
    """
    parts, layout, where = find_modules(content, ema)
    state: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    entries: dict[str, object] = {}
    for part, raw in parts.items():
        names, root_layout = rename([str(key) for key in raw])
        if part in BARE_CLASSIFIERS:
            names = [f"fc.{name}" if name in ("weight", "bias") else name for name in names]
        if root_layout and not part:
            layout = root_layout
        for (key, value), name in zip(raw.items(), names, strict=True):
            origin = f"{part}[{key!r}]" if part else repr(key)
            if name in origins:
                raise UserError(f"{origins[name]} and {origin} of the checkpoint both become {name!r}")
            origins[name] = origin
            entries[origin] = value
            if isinstance(value, Tensor) and name not in BOOKKEEPING:
                state[name] = value.detach()
    if LANDMARK not in origins and not any(sees_colours(name, tensor) for name, tensor in state.items()):
        raise UserError(
            f"found {listing(entries)}{where}, so no '{LANDMARK}' by any known name nor another convolution on "
            f"{COLOURS} colours; {expectation()}"
        )
    strange = {origin: value for origin, value in entries.items() if not isinstance(value, Tensor)}
    if strange:
        raise UserError(f"a state dict holds tensors only, not {listing(strange)}{where}")
    if "EMA" not in where:
        state, averages = choose_average(state, ema)
        where += averages
    scaled = fold_scales(state)
    return scaled, f"{layout}{where}{', scales multiplied into fc' if len(scaled) < len(state) else ''}"


def choose_average(state: dict[str, Tensor], ema: bool) -> tuple[dict[str, Tensor], str]:
    """Return what to take of a state dict with or without averaged weights beside others, and words that say so.

    Raises UserError where averaged weights are asked for and not there.
    """
    average = averaged_part(state)
    if ema and not average:
        raise UserError("--ema: no averaged weights are in it by that name; leave the flag out")
    if not average:
        return state, ""
    first = next(iter(average)).rpartition(".")[0].partition(".")[0]
    if ema:
        return average, f" (EMA weights, under '{first}.')"
    beside = any(sees_colours(key, tensor) for key, tensor in state.items() if key not in average)
    return state, f"; EMA weights are there too, under '{first}.': --ema takes them" if beside else ""


def find_modules(content: object, ema: bool = False) -> tuple[dict[str, dict], str, str]:
    """Return the raw dictionaries that make up the network, by part, the layout's name and where it was found.

    A network saved as one module is one part named "".
    """
    if not isinstance(content, dict):
        raise UserError(f"found an object of type {type(content).__name__}; {expectation()}")
    inner, where = content, ""
    modules = match_module_layout(content)
    if modules is None:
        held = [key for key in CONTAINERS if holds_halves(content.get(key))]
        if len(held) > 1:
            raise UserError(f"several entries of the checkpoint hold weights: {', '.join(map(repr, held))}; keep one")
        if held:
            inner, where = content[held[0]], f" under '{held[0]}'"
            modules = match_module_layout(inner)
    if modules is None:
        return find_one_module(content, ema)
    known = (*modules.required, *modules.optional)
    # Leaving out a part of the network would give other predictions: a factor for the logits that is no state dict, or
    # the block that MiSLAS puts between features and classifier for Places-LT.
    for key, value in inner.items():
        misplaced = key in known and value is not None and not isinstance(value, dict)
        if misplaced or (key not in known and holds_tensors(value)):
            raise UserError(f"{key!r} ({type(value).__name__}) is no known part of {modules.layout}{where}")
    return {part: inner[part] for part in known if isinstance(inner.get(part), dict)}, modules.layout, where


def find_one_module(content: dict, ema: bool) -> tuple[dict[str, dict], str, str]:
    """Return the one dictionary of a network saved as one module, or as twins, as `find_modules` does."""
    twin_places = [("", content), *((key, content[key]) for key in CONTAINERS if isinstance(content.get(key), dict))]
    candidates = find_candidates(content)
    for place, inner in twin_places:
        twins = [key for key in TWINS if holds_tensors(inner.get(key), levels=1)]
        usual = any(one.path[0] in CONTAINERS for one in candidates)
        if twins and not ema and (place or not usual):
            flat = {f"{twin}.{key}": value for twin in twins for key, value in inner[twin].items()}
            return {"": flat}, f"DINO ({' + '.join(twins)})", f" under '{place}'" if place else ""
    if candidates and not (holds_network(content) and not any(one.path[0] in CONTAINERS for one in candidates)):
        chosen, said = choose(candidates, ema)
        state, where = chosen.state, f" under {chosen.name}{said}"
        beside = None if any(str(key) in OWN_CLASSIFIER for key in state) else classifier_beside(content, chosen.path)
        if beside is not None:
            state = state | {f"fc.{key}": value for key, value in beside[1].items()}
            where += f", its classifier under '{beside[0]}'"
        return {"": state}, "plain state dict", where
    held = [key for key in CONTAINERS if holds_tensors(content.get(key))]  # of no network, which the caller says
    if held:
        return {"": content[held[0]]}, "plain state dict", f" under '{held[0]}'"
    return {"": content}, "plain state dict", ""


def holds_halves(value: object) -> bool:
    """Tell whether a value is a network saved as several modules."""
    return isinstance(value, dict) and match_module_layout(value) is not None


def match_module_layout(content: dict) -> ModuleLayout | None:
    """Return the first of `MODULE_LAYOUTS` whose required parts are all in `content`."""
    for modules in MODULE_LAYOUTS:
        if all(isinstance(content.get(part), dict) for part in modules.required):
            return modules
    return None


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

    An empty list means that every key is there, none is left over and all shapes agree. Where none of the backbone's
    names is there, but all of it under other ones, the first line says under which.
    """
    problems = []
    backbone = {key: tensor for key, tensor in expected.items() if not key.startswith("fc.")}
    if backbone and not backbone.keys() & state.keys():
        plain = {key.removeprefix("backbone."): tensor for key, tensor in backbone.items()}
        best = next(iter(rank_prefixes(state, plain)), None)
        if best is not None and best.fitting == len(backbone_keys(plain)):
            where = f"under '{best.prefix}'" if best.prefix else "by torchvision's names"
            problems.append(f"the network's backbone is there, but {where}")
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


class Fit(NamedTuple):
    """A prefix of a state dict's names: how many of a network's tensors stand behind it, with their shape or any."""

    prefix: str
    fitting: int
    named: int


def backbone_keys(names: Iterable[str]) -> list[str]:
    """Return the names that a file must have: all but the counts of batches."""
    return [name for name in names if name.rpartition(".")[2] != BATCH_COUNT]


def rank_prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[Fit]:
    """Return the prefixes under which `state` has any of the names of `wanted`, the best first.

    The best has the most tensors of the right name and shape, then of the right name. Of equals it has the words of
    `PREFERRED`, then none of `AVOIDED`, then it comes first in the file.
    """
    names = set(backbone_keys(wanted))
    found: dict[str, list[bool]] = {}
    for key, tensor in state.items():
        parts = key.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in names:
                prefix = key.removesuffix(name)
                found.setdefault(prefix, []).append(tensor.shape == wanted[name].shape)
    fits = [Fit(prefix, sum(shapes), len(shapes)) for prefix, shapes in found.items()]
    return sorted(fits, key=lambda fit: (-fit.fitting, -fit.named, preference(fit.prefix)))


def listing(entries: dict[str, object]) -> str:
    """List the first entries of a dictionary, each with its type, and how many there are in all if that is more."""
    if not entries:
        return "an empty dictionary"
    first = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(entries.items())[:SHOWN])
    return f"{first}, ... ({len(entries)} in all)" if len(entries) > SHOWN else first


def expectation() -> str:
    """Say which layouts are known."""
    containers = ", ".join(f"'{key}'" for key in CONTAINERS)
    layouts = ", ".join([*ROOTS.values(), *(modules.layout for modules in MODULE_LAYOUTS)])
    return f"expected a network's state dict with torchvision's names, bare or under {containers}, or one of {layouts}"
