"""Tables of the papers, one file a table or a family of them, and the dictionary that `reproduce.py` chooses from."""

from collections.abc import Callable
from functools import partial

from tables.delta import delta
from tables.path import path
from tables.request import Request
from tables.runs import ablation, cifar, gala, of_dataset, stress
from tables.unified import unified

TABLES: dict[str, Callable[[Request], None]] = {
    "unified": unified,
    "cifar": cifar,
    "delta": delta,
    "path": path,
    "gala": gala,
    "ablation": ablation,
    "stress": stress,
    "imagenet_lt": partial(of_dataset, "imagenet_lt", ("ce", "los", "wb", "balanced_softmax")),
    "inaturalist2018": partial(of_dataset, "inaturalist2018", ("ce", "los", "wb", "balanced_softmax")),
    "places_lt": partial(of_dataset, "places_lt", ("ce", "los", "wb", "balanced_softmax")),
}
