"""Tables of the papers, one file a table or a family of them, and the dictionary that `reproduce.py` chooses from."""

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial

from settings.declare import Facet
from settings.fields import with_facet
from tables import delta, path, proximal, runs, unified
from tables.corrections import priors, sets
from tables.request import Request

LARGE_SETS_METHODS = ("ce", "los", "wb", "balanced_softmax")
# Stage 1s that are there already: a run or its file, features that any model made.
STARTS = frozenset({"pretrained_pth", "features"})
BUDGET_FLAGS = (
    frozenset(with_facet(Facet.STAGE2_STEPS)) - set(with_facet(Facet.STAGE1_STEPS)) - set(with_facet(Facet.PROTOCOL))
)


@dataclass(frozen=True)
class Table:
    """A table: the function that makes it, flags of `reproduce.py` that it uses, flags of the stages that it sets."""

    make: Callable[[Request], None]
    uses: Set[str]
    sets: Set[str] = frozenset()


def _large(name: str) -> Table:
    return Table(partial(runs.of_dataset, name, LARGE_SETS_METHODS), {"methods"}, {"dataset"})


TABLES: dict[str, Table] = {
    "unified": Table(unified.make_table, {"imb_ratio", "methods", "select", "holdout_pth"} | STARTS, BUDGET_FLAGS),
    "cifar": Table(runs.cifar, {"imb_ratio"}),
    "delta": Table(delta.make_table, {"imb_ratio"} | STARTS),
    "proximal": Table(proximal.make_table, {"imb_ratio", "view", "select", "holdout_pth"} | STARTS, BUDGET_FLAGS),
    "path": Table(path.make_table, {"imb_ratio", "methods"} | STARTS, BUDGET_FLAGS),
    "priors": Table(priors.make_table, {"imb_ratio", "methods"} | STARTS),
    "sets": Table(sets.make_table, {"imb_ratio", "methods"} | STARTS),
    "gala": Table(runs.gala, {"imb_ratio"}, {"loss", "gala_margin", "gala_accumulation", "lambda1", "lambda2"}),
    "ablation": Table(
        runs.ablation,
        {"imb_ratio", "pretrained_pth"},
        {"bn_mode", "views", "reinit_classifier", "finetune_lr", "finetune_epoch"},
    ),
    "stress": Table(runs.stress, {"imb_ratio", "methods"}),
    "imagenet_lt": _large("imagenet_lt"),
    "inaturalist2018": _large("inaturalist2018"),
    "places_lt": _large("places_lt"),
}
