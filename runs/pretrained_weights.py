"""Pre-trained weights: copy the backbone that a file holds into a network for other classes.

The file's tensors are found by where most of the network's own names and shapes are, not by a table of projects: under
"" in torchvision's files, `encoder_q.` in MoCo's (He et al., CVPR 2020), `base_encoder.` in MoCo v3's, `backbone.` in
those of SimCLR's re-implementations and Lightning, `teacher.backbone.` in DINO's, and so on. What else is there, such
as projection heads, momentum encoders and queues, is left out and listed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import build_head
from models.network import Network
from runs.state_dict_adapter import BATCH_COUNT, SHOWN, backbone_keys, compare_keys, rank_prefixes, rename
from runs.weights.containers import is_average
from runs.weights.networks import networks_that_fit
from utils.errors import UserError

CLASSIFIER = "fc."  # how the names of a network's classifier begin


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did: `tensors` were copied from under `prefix`, `left_out` are the names of the others.

    `no_classifier` says why the network keeps its own classifier, and is empty where the file's was copied too.
    `rivals` are the prefixes that fit equally well and were not taken. `cosine` says of a cosine classifier what it
    became, and is empty for any other. `counts` are the backbone's counts of batches that the file does not have.
    """

    prefix: str
    tensors: int
    no_classifier: str
    left_out: tuple[str, ...]
    rivals: tuple[str, ...]
    cosine: str = ""
    counts: int = 0

    def summary(self) -> str:
        """Return one line that says all of it, with the first names that were left out."""
        parts = [f"{self.tensors} tensors loaded" + (f" from '{self.prefix}'" if self.prefix else "")]
        if self.counts:
            parts[0] += (
                f", all of {self.tensors + self.counts} tensors but {self.counts} counts of batches, which files from "
                "before PyTorch 0.4.1 do not have"
            )
        if self.rivals:
            parts[0] += f" rather than {' or '.join(repr(rival) for rival in self.rivals)}"
        if self.no_classifier:
            parts.append(f"the classifier is new ({self.no_classifier})")
        else:
            parts.append(self.cosine or "the classifier with them")
        if self.left_out:
            more = f", ... ({len(self.left_out)} in all)" if len(self.left_out) > SHOWN else ""
            parts.append(f"left out: {', '.join(self.left_out[:SHOWN])}{more}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Placement:
    """Where the tensors of a file belong in a network: the backbone's and the classifier's, by the network's names.

    `cosine` is the transposed weight (d, K) of a cosine classifier in the place of a linear one. `inside` are the names
    under the prefix that are neither, and no other network's; the rest is as in `LoadReport`.
    """

    prefix: str
    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]
    cosine: Tensor | None
    no_classifier: str
    left_out: tuple[str, ...]
    inside: tuple[str, ...]
    rivals: tuple[str, ...]
    counts: int

    def report(self, tensors: int, cosine: str = "") -> LoadReport:
        """Return what was done, with this many tensors copied."""
        reason = "" if cosine else self.no_classifier
        return LoadReport(self.prefix, tensors, reason, self.left_out, self.rivals, cosine, self.counts)


def load_pretrained(model: Network, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy the backbone in `state` into `model`, and the classifier where the file has one of the same classes.

    `state` is what `runs.state_dict_adapter.find_state_dict` returned or the state dict of a network here. Every
    tensor of the backbone must be in it, under one prefix, but for BatchNorm's counts of batches. A classifier of
    another shape is left out, and so is any in a file with two networks that fit, such as a query and a momentum
    encoder: what stands in its place there is a projection.
    Raises UserError, with the first names that are missing, left over or of another shape, and leaves the model as it
    was, where that is not so: nothing is loaded in part.
    """
    placed = place(model, state)
    taken = placed.backbone | placed.classifier
    model.load_state_dict(model.state_dict() | taken)
    return placed.report(len(taken))


def load_network(model: Network, state: Mapping[str, Tensor], linear: bool = False) -> LoadReport:
    """Copy a whole network, backbone and classifier, into `model`; the counts of batches may be missing.

    A cosine classifier (`cosine_weight`) takes the place of the model's own as the head "normed" or, where the
    classifier must be `linear`, becomes rows of length 1: a classifier of the same answers to stage 2 starts with.
    Raises UserError, and leaves the model as it was, where the backbone is not there, the classifier is missing or of
    other classes, or tensors are left over that its answers may depend on.
    """
    placed = place(model, state)
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(CLASSIFIER)}
    problems = [f"unexpected keys ({len(placed.inside)}): {', '.join(placed.inside[:SHOWN])}"] if placed.inside else []
    if not placed.classifier and placed.cosine is None:
        held = {f"{CLASSIFIER}{key.rpartition('.')[2]}": tensor for key, tensor in classifier_of(model, state).items()}
        problems += compare_keys(held, own)
        problems.append(f"its classifier is not one of these classes ({placed.no_classifier})")
    if problems:
        raise UserError(f"{'; '.join(problems)}; --weights takes the backbone alone")
    if placed.cosine is None:
        taken = placed.backbone | placed.classifier
        model.load_state_dict(model.state_dict() | taken)
        return placed.report(len(taken))
    rows = placed.cosine.T.to(model.fc.weight)
    if linear:
        rows, words = F.normalize(rows, dim=1), "its cosine classifier, transposed, as linear rows of length 1"
    else:
        model.fc, words = build_head("normed", model.fc), "its cosine classifier, transposed, with scale 30"
    model.load_state_dict(model.state_dict() | placed.backbone)
    with torch.no_grad():
        model.fc.weight.copy_(rows)
        model.fc.bias.zero_()
    return placed.report(len(placed.backbone) + 1, words)


def place(model: Network, state: Mapping[str, Tensor]) -> Placement:
    """Find where the tensors of `state` belong in `model`, which stays as it is; raises as `load_pretrained` does."""
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
    cause = wrong_network(source, wanted)
    if not fits:
        raise UserError(
            f"{cause}none of this network's {len(required)} tensors is in the file by any name: it expects "
            f"{', '.join(required[:SHOWN])}, ..., and the file has {', '.join(list(state)[:SHOWN]) or 'none'}"
        )
    # Where none is whole, the one with the most names says best what is wrong.
    best = fits[0] if fits[0].fitting >= len(required) else max(fits, key=lambda fit: (fit.named, fit.fitting))
    under = names_under(best.prefix, source)
    held = {name: source[key] for name, key in under.items()}
    check_whole(best.prefix, held, wanted, model.torchvision_classifier, cause)
    rivals = tuple(fit.prefix for fit in fits[1:] if fit.fitting == best.fitting)
    backbone = {key: under[name] for key, name in theirs.items() if name in under}
    classifier, reason = find_classifier(model, source, best.prefix, under)
    others = [rival for rival in rivals if is_average(rival) == is_average(best.prefix)]
    if others and classifier:
        classifier, reason = {}, f"the file's is taken for a projection, as '{others[0]}' fits too"
    cosine = None if classifier else cosine_weight(model, classifier_of(model, source))
    if cosine is not None:
        reason = f"the file's is a cosine classifier, {tuple(cosine.shape)}"
    used = {*backbone.values(), *classifier.values()}
    originals = [original for original, key in zip(state, source, strict=True) if key not in used]
    other = tuple(fit.prefix for fit in fits[1:] if fit.prefix.startswith(best.prefix) and fit.named > 1)
    heads = set(classifier_keys(model, source))
    inside = [key for key in originals if key.startswith(best.prefix) and not key.startswith(other or ("\0",))]
    return Placement(
        best.prefix,
        {key: source[name] for key, name in backbone.items()},
        {key: source[name] for key, name in classifier.items()},
        cosine,
        reason,
        tuple(originals),
        tuple(key for key in inside if key not in heads and not is_count(key)),
        rivals,
        len(theirs) - len(backbone),
    )


def with_cosine_head(model: Network, state: Mapping[str, Tensor], linear: bool) -> dict[str, Tensor]:
    """Give a network the cosine classifier that its own `state` has; return what to load, as rows where `linear`."""
    if not linear:
        model.fc = build_head("normed", model.fc)
        return dict(state)
    rows = F.normalize(state["fc.weight"], dim=1)
    return {key: tensor for key, tensor in state.items() if key != "fc.scale"} | {"fc.weight": rows}


def is_count(key: str) -> bool:
    """Tell whether a tensor is bookkeeping, such as a queue's position, that no answer depends on."""
    return key.rpartition(".")[2] == BATCH_COUNT


def wrong_network(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return the words for a file of another network than the one `wanted`, with the flags that fit; else nothing."""
    found = networks_that_fit(state)
    if not found or found == networks_that_fit(wanted):
        return ""
    return f"wrong --network: the file is of {' or '.join(found)}; "


def names_under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the keys of `state` that begin with `prefix` by torchvision's names for what follows it."""
    keys = [key for key in state if key.startswith(prefix)]
    names, _ = rename([key.removeprefix(prefix) for key in keys])
    return dict(zip(names, keys, strict=True))


def check_whole(
    prefix: str, held: dict[str, Tensor], wanted: dict[str, Tensor], classifier: str, cause: str = ""
) -> None:
    """Raise UserError, which `cause` begins, unless `held`, all under `prefix`, has exactly the backbone `wanted`.

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
        problems = other_kinds(inside, wanted)
    if not problems:
        return
    required = backbone_keys(wanted)
    fitting = sum(name in inside and inside[name].shape == wanted[name].shape for name in required)
    raise UserError(
        f"{cause}the file's backbone is not this network's: under the prefix '{prefix}', where most of it is, "
        f"{fitting} of {len(required)} tensors fit; {'; '.join(problems)}"
    )


def other_kinds(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the first tensors whose numbers are of another kind (complex, whole, truths) than expected, in words."""
    other = [key for key, value in state.items() if value.is_floating_point() != expected[key].is_floating_point()]
    return [f"{key}: {state[key].dtype} here, {expected[key].dtype} expected" for key in other[:SHOWN]]


def classifier_keys(model: Network, state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of `state` that are, by any known name and under any prefix, a classifier's weight or bias."""
    found = []
    for key in state:
        parts = key.split(".")
        tails = [".".join(parts[start:]) for start in range(len(parts))]
        names = {rename([tail])[0][0] for tail in tails} | set(tails)
        wanted = {f"{CLASSIFIER}{kind}" for kind in ("weight", "bias")}
        wanted |= {f"{model.torchvision_classifier}.{kind}" for kind in ("weight", "bias")}
        if names & wanted:
            found.append(key)
    return found


def classifier_of(model: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a classifier in `state` by their own names."""
    return {key: state[key] for key in classifier_keys(model, state)}


def cosine_weight(model: Network, held: Mapping[str, Tensor]) -> Tensor | None:
    """Return the weight (d, K) of a cosine classifier as LDAM-DRW and GCL save it; None where there is none.

    Their `NormedLinear` multiplies normalised features by the normalised columns of `linear.weight` (d, K) and has no
    bias. Where K = d the missing bias alone tells it from a linear layer.
    """
    classes, width = model.fc.weight.shape
    if len(held) != 1:
        return None
    [(key, weight)] = held.items()
    return weight if key.endswith("weight") and tuple(weight.shape) == (width, classes) else None


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
