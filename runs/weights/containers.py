"""Where a checkpoint holds a network: the entries with weights, and which of them is taken.

Of several, one of the usual names (`CONTAINERS`) comes first, then what `preference` prefers. Exponential moving
averages (EMA) of the weights are taken where they are asked for, or where there is nothing else.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from utils.errors import UserError
from utils.text import shown

# Keys under which a checkpoint holds the weights, beside entries such as the epoch and the optimizer.
CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "state_dict_best", "state_dict_model")

# What DataParallel and torch.compile put before the names of the module that they wrap. No network here has children of
# these names, so they go wherever they stand: a part of a network can be wrapped too.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")

# Every ResNet has this key, and every other network for images a convolution on their three colours under a name of its
# own: without either, a dictionary of tensors is something else.
LANDMARK = "conv1.weight"
COLOURS = 3

# Of two networks in one file that fit equally well, the one that its own project transfers: MoCo's `encoder_q` and
# `base_encoder` (He et al., CVPR 2020; Chen et al., ICCV 2021), BYOL's online network (Grill et al., NeurIPS 2020),
# DINO's teacher (Caron et al., ICCV 2021). These are the words that such names are made of.
PREFERRED = {"q", "query", "base", "online", "teacher"}
AVOIDED = {"k", "key", "momentum", "target", "student", "ema"}
AVERAGES = {"ema", "averaged"}

# A classifier that stands beside its backbone, as an entry of its own.
CLASSIFIERS = ("classifier", "fc", "head", "linear")


class Candidate(NamedTuple):
    """An entry that holds a network: the keys that lead to it, and the dictionary."""

    path: tuple[str, ...]
    state: dict[Any, Any]

    @property
    def name(self) -> str:
        """The keys in quotation marks."""
        return "/".join(f"'{shown(key)}'" for key in self.path)


def words_of(name: str) -> set[str]:
    """Return the words that a name is made of."""
    return set(re.split(r"[._]", name.lower()))


def preference(prefix: str) -> int:
    """Return 0 for a prefix with a word of `PREFERRED`, 2 for one with a word of `AVOIDED`, 1 for any other."""
    words = words_of(prefix)
    if words & AVOIDED:
        return 2
    return 0 if words & PREFERRED else 1


def is_average(name: str) -> bool:
    """Tell whether a name is that of averaged weights."""
    return bool(words_of(name) & AVERAGES)


def sees_colours(name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor is the weight of a convolution on colour images, (channels, 3, height, width)."""
    return name.endswith(".weight") and tensor.ndim == 4 and tensor.shape[1] == COLOURS


def holds_network(value: object) -> bool:
    """Tell whether a value is the state dict of a network for images, by its first convolution."""
    if not isinstance(value, dict):
        return False
    return any(
        isinstance(tensor, Tensor) and (WRAPPERS.sub("", str(key)) == LANDMARK or sees_colours(str(key), tensor))
        for key, tensor in value.items()
    )


def holds_tensors(value: object, levels: int = 2) -> bool:
    """Tell whether `value` is a dictionary with tensors in it, at most `levels` dictionaries deep.

    Two levels reach the weights of every known layout and not those of an optimizer, which lie three deep.
    """
    if not isinstance(value, dict) or levels == 0:
        return False
    return any(isinstance(inner, Tensor) or holds_tensors(inner, levels - 1) for inner in value.values())


def find_candidates(content: Mapping[Any, Any], levels: int = 2) -> list[Candidate]:
    """Return the entries that hold a network, at most `levels` dictionaries deep: usual names first, in their order."""
    found = []
    for key, value in content.items():
        if holds_network(value):
            found.append(Candidate((str(key),), value))
        elif isinstance(value, dict) and levels > 1:
            found += [Candidate((str(key), *one.path), one.state) for one in find_candidates(value, levels - 1)]
    order = {name: place for place, name in enumerate(CONTAINERS)}
    return sorted(found, key=lambda one: order.get(one.path[0], len(order)))


def choose(candidates: list[Candidate], ema: bool) -> tuple[Candidate, str]:
    """Return the entry to take and, for the report, which others are there.

    Raises UserError where there is none of the kind asked for, or several of equal rank.
    """
    averages = [one for one in candidates if is_average(".".join(one.path))]
    others = [one for one in candidates if one not in averages]
    if ema and not averages:
        raise UserError("--ema: no averaged weights are in it by that name; leave the flag out")
    pool = averages if ema or not others else others
    best = preferred(pool)
    if len(best) > 1:
        raise UserError(
            f"several entries of the checkpoint hold weights: {', '.join(one.name for one in best)}; keep one of them"
        )
    beside = [one.name for one in pool if one is not best[0]]
    said = f", not {', '.join(beside)}" if beside else ""
    if pool is averages:
        said += " (EMA weights)" if ema else " (EMA weights, the only ones)"
    elif averages:
        said += f"; EMA weights are there too, under {', '.join(one.name for one in averages)}: --ema takes them"
    return best[0], said


def preferred(pool: list[Candidate]) -> list[Candidate]:
    """Return the entries of the highest rank: of the usual names, else by `preference`."""
    pool = [one for one in pool if one.path[0] in CONTAINERS] or pool
    ranks = [preference(".".join(one.path)) for one in pool]
    return [one for one, rank in zip(pool, ranks, strict=True) if rank == min(ranks)]


def classifier_beside(content: Mapping[Any, Any], path: tuple[str, ...]) -> tuple[str, dict[str, Tensor]] | None:
    """Return the key and the tensors, `weight` and perhaps `bias`, of the one classifier beside the entry at `path`."""
    for key in path[:-1]:
        content = content.get(key, {})
    found = []
    for key in CLASSIFIERS:
        value = content.get(key)
        if not isinstance(value, dict) or key == path[-1]:
            continue
        tensors = {str(name).rpartition(".")[2]: tensor for name, tensor in value.items()}
        weight = tensors.get("weight")
        whole = len(tensors) == len(value) and tensors.keys() <= {"weight", "bias"}
        if whole and isinstance(weight, Tensor) and weight.ndim == 2:
            found.append((key, tensors))
    return found[0] if len(found) == 1 else None


def averaged_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one state dict that stand under a prefix of averaged weights; none without a network."""
    part = {key: tensor for key, tensor in state.items() if is_average(key.rpartition(".")[0])}
    return part if any(sees_colours(key, tensor) for key, tensor in part.items()) else {}
