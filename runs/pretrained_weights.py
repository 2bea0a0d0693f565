"""Pre-trained weights: copy the backbone that a file holds into a network for other classes.

The file's tensors are found by where most of the network's own names and shapes are, not by a table of projects: under
"" in torchvision's files, `encoder_q.` in MoCo's (He et al., CVPR 2020), `base_encoder.` in MoCo v3's, `backbone.` in
those of SimCLR's re-implementations and Lightning, `teacher.backbone.` in DINO's, and so on. What else is there, such
as projection heads, momentum encoders and queues, is left out and listed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from models.network import Network
from runs.state_dict_adapter import SHOWN, backbone_keys, compare_keys, rank_prefixes, rename
from utils.errors import UserError

CLASSIFIER = "fc."  # how the names of a network's classifier begin


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did: `tensors` were copied from under `prefix`, `left_out` are the names of the others.

    `no_classifier` says why the network keeps its own classifier, and is empty where the file's was copied too.
    `rivals` are the prefixes that fit equally well and were not taken.
    """

    prefix: str
    tensors: int
    no_classifier: str
    left_out: tuple[str, ...]
    rivals: tuple[str, ...]

    def summary(self) -> str:
        """Return one line that says all of it, with the first names that were left out."""
        parts = [f"{self.tensors} tensors loaded" + (f" from '{self.prefix}'" if self.prefix else "")]
        if self.rivals:
            parts[0] += f" rather than {' or '.join(repr(rival) for rival in self.rivals)}"
        parts.append(
            f"the classifier is new ({self.no_classifier})" if self.no_classifier else "the classifier with them"
        )
        if self.left_out:
            more = f", ... ({len(self.left_out)} in all)" if len(self.left_out) > SHOWN else ""
            parts.append(f"left out: {', '.join(self.left_out[:SHOWN])}{more}")
        return "; ".join(parts)


def load_pretrained(model: Network, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy the backbone in `state` into `model`, and the classifier where the file has one of the same classes.

    `state` is what `runs.state_dict_adapter.find_state_dict` returned or the state dict of a network here. Every
    tensor of the backbone must be in it, under one prefix, but for BatchNorm's counts of batches. A classifier of
    another shape is left out, and so is any in a file with two networks that fit, such as a query and a momentum
    encoder: what stands in its place there is a projection.
    Raises UserError, with the first names that are missing, left over or of another shape, and leaves the model as it
    was, where that is not so: nothing is loaded in part.
    """
    own = model.state_dict()
    theirs = {key: name for key, name in model.torchvision_names().items() if not key.startswith(CLASSIFIER)}
    wanted = {name: own[key] for key, name in theirs.items()}
    required = backbone_keys(wanted)
    if not required:
        raise UserError("a network of given features has no backbone to load weights into")
    source = dict(state)
    fits = rank_prefixes(source, wanted)
    if not fits or fits[0].fitting < len(required):
        numbered = name_numbered_children(source, list(wanted))
        numbered_fits = rank_prefixes(numbered, wanted)
        if numbered_fits and (not fits or numbered_fits[0].fitting > fits[0].fitting):
            source, fits = numbered, numbered_fits
    if not fits:
        raise UserError(
            f"none of this network's {len(required)} tensors is in the file by any name: it expects "
            f"{', '.join(required[:SHOWN])}, ..., and the file has {', '.join(list(state)[:SHOWN]) or 'none'}"
        )
    best = fits[0]
    under = names_under(best.prefix, source)
    check_whole(best.prefix, {name: source[key] for name, key in under.items()}, wanted, model.torchvision_classifier)
    rivals = tuple(fit.prefix for fit in fits[1:] if fit.fitting == best.fitting)
    taken = {key: under[name] for key, name in theirs.items() if name in under}
    classifier, no_classifier = find_classifier(model, source, best.prefix, under)
    if rivals and classifier:
        classifier, no_classifier = {}, f"the file's is taken for a projection, as '{rivals[0]}' fits too"
    taken |= classifier
    model.load_state_dict(own | {key: source[name] for key, name in taken.items()})
    used = set(taken.values())
    left_out = tuple(original for original, key in zip(state, source, strict=True) if key not in used)
    return LoadReport(best.prefix, len(taken), no_classifier, left_out, rivals)


def names_under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the keys of `state` that begin with `prefix` by torchvision's names for what follows it."""
    keys = [key for key in state if key.startswith(prefix)]
    names, _ = rename([key.removeprefix(prefix) for key in keys])
    return dict(zip(names, keys, strict=True))


def check_whole(prefix: str, held: dict[str, Tensor], wanted: dict[str, Tensor], classifier: str) -> None:
    """Raise UserError unless `held`, all that stands under `prefix`, has exactly the backbone `wanted`.

    What belongs to none of the backbone's children does not count: it is a projection head, a queue or the like. A
    tensor too many inside of them does: the file is of a deeper network, whose first layers compute something else.
    """
    children = {name.partition(".")[0] for name in wanted}
    counts = wanted.keys() - set(backbone_keys(wanted))
    inside = {
        name: tensor
        for name, tensor in held.items()
        if name.partition(".")[0] in children and not name.startswith(f"{classifier}.")
    }
    # Counts of batches may be missing, and then the network's own stand for them.
    problems = compare_keys({name: wanted[name] for name in counts} | inside, wanted)
    if not problems:
        return
    required = backbone_keys(wanted)
    fitting = sum(name in inside and inside[name].shape == wanted[name].shape for name in required)
    raise UserError(
        f"the file's backbone is not this network's: under the prefix '{prefix}', where most of it is, {fitting} of "
        f"{len(required)} tensors fit; {'; '.join(problems)}"
    )


def find_classifier(
    model: Network, state: Mapping[str, Tensor], prefix: str, under: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """Return the keys of `state` that hold the classifier, by the model's names for it; else none and the reason.

    It stands beside the backbone's layers or, where the backbone is a module of its own, beside that.
    """
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(CLASSIFIER)}
    outer = prefix.removesuffix(".").rpartition(".")[0]
    beside = names_under(f"{outer}." if outer else "", state)
    reason = "the file has none"
    for names in (under, beside):
        for classifier in (f"{model.torchvision_classifier}.", CLASSIFIER):
            found = {key: names.get(classifier + key.removeprefix(CLASSIFIER)) for key in own}
            keys = {key: name for key, name in found.items() if name is not None}
            if len(keys) == len(own) and all(state[keys[key]].shape == own[key].shape for key in own):
                return keys, ""
            if keys and reason == "the file has none":
                reason = misfit({key: state[name] for key, name in keys.items()}, own)
    return {}, reason


def misfit(held: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Say in a few words why a file's classifier is not the network's."""
    missing = [key for key in own if key not in held]
    if missing:
        return f"the file's has no {missing[0]}"
    key = next(key for key in own if held[key].shape != own[key].shape)
    return f"the file's {key} is {tuple(held[key].shape)}, the network's {tuple(own[key].shape)}"


def name_numbered_children(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Return `state`, in its order, with a backbone's numbered children named.

    Many projects cut a classifier off with `nn.Sequential(*network.children())`, whose tensors are `0.weight`,
    `1.bias`, `4.0.conv1.weight` and so on: the children keep their order and lose their names. The numbers under one
    prefix become the first parts of `names` where there are as many of them.
    """
    children = list(dict.fromkeys(name.partition(".")[0] for name in names))
    numbers: dict[str, set[int]] = {}
    for key in state:
        prefix, number, _ = first_number(key)
        if number is not None:
            numbers.setdefault(prefix, set()).add(number)
    named: dict[tuple[str, int | None], str] = {
        (prefix, number): child
        for prefix, found in numbers.items()
        if len(found) == len(children)
        for number, child in zip(sorted(found), children, strict=True)
    }
    renamed = {}
    for key, tensor in state.items():
        prefix, number, rest = first_number(key)
        child = named.get((prefix, number))
        renamed[key if child is None else prefix + child + rest] = tensor
    return renamed if len(renamed) == len(state) else dict(state)  # a name that is taken already was none of a child


def first_number(key: str) -> tuple[str, int | None, str]:
    """Split a name at its first part that is a number: "f.4.0.conv1.weight" is ("f.", 4, ".0.conv1.weight")."""
    match = re.match(r"((?:[^.]*\.)*?)(\d+)(?=\.)", key)
    return (match[1], int(match[2]), key[match.end() :]) if match else (key, None, "")


def with_network_names(model: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a whole network's `state` by the names that `model` has for its tensors.

    It differs from `state` where the model wraps a network of torchvision and `state` has torchvision's own names.
    """
    names = {theirs: key for key, theirs in model.torchvision_names().items()}
    if any(key in state for key in names.values() if not key.startswith(CLASSIFIER)):
        return dict(state)
    return {names.get(key, key): tensor for key, tensor in state.items()}
