"""How a setting is declared: once, with its help, its bounds, who reads it, and what else is true of it."""

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from utils.parameters import Range

STAGE1, STAGE2, EVALUATE = "main_stage1", "main_stage2", "evaluate"
EVERYWHERE = (STAGE1, STAGE2, EVALUATE)
TRAINING = (STAGE1, STAGE2)


class Group(enum.Enum):
    """The groups of flags, in the order in which one thinks of them; the value is the heading."""

    DATA = "data"
    NETWORK = "network"
    STAGE1 = "stage 1"
    STAGE2 = "stage 2"
    METHOD = "method (a number that is not given is the method's own)"
    REPORT = "report"
    MACHINE = "machine"
    RUN = "run"


class Facet(enum.Flag):
    """What is true of a setting beside who reads it. Every list of settings by a property is made from these."""

    NONE = 0
    PLACE = enum.auto()  # where images on disk are
    ON_DISK = enum.auto()  # no effect on images in memory
    OF_IMAGES = enum.auto()  # of data sets and networks: no use beside --features
    PROFILE = enum.auto()  # which images of a data set are kept
    FROM_FEATURES = enum.auto()  # settled by a file of features
    FROM_CHECKPOINT = enum.auto()  # settled by a checkpoint, where the command line does not say it
    ADDRESS = enum.auto()  # part of what tells which run is meant, where one is looked up
    LOOKUP = enum.auto()  # evaluate.py reads it to find a run and for nothing else
    STAGE1_STEPS = enum.auto()  # of the steps that train stage 1: no effect where its classifier is computed
    STAGE2_STEPS = enum.auto()  # of the steps that train the classifier of stage 2: no effect where it is computed
    PROTOCOL = enum.auto()  # a switch that --protocol sets
    MEASURE = enum.auto()  # enters what is measured after training: a run takes it from the command that resumes it
    ROW = enum.auto()  # a table of reproduce.py sets it, row by row
    CONSTANTS = enum.auto()  # what an image undergoes: of the checkpoint, unless given, which is obeyed and said
    NUMBERS = enum.auto()  # one number, three, or a name for three (`datasets.augment.normalisation`)
    RARE = enum.auto()  # behind stage 1 few have a use for it: --help-all lists it there, --help does not
    HYPERPARAMETER = enum.auto()  # of some losses, heads and closed forms: `utils.parameters.HYPERPARAMETERS`


@dataclass(frozen=True)
class Flag:
    """A setting and its flag.

    `kind` is the type of its value, `optional` whether None is one too. `read_by` are the scripts that use it,
    `named_by` those whose run folders name it where it is not the default. `before` is what it was in runs that do not
    record it, being older than it, where that is not what it is by default today.
    """

    name: str
    default: Any
    kind: type
    optional: bool
    group: Group
    help: str
    read_by: Sequence[str]
    named_by: Sequence[str]
    choices: Sequence[str] | None
    bounds: Range | None
    alias: str | None
    metavar: str
    facets: Facet
    before: Any = None

    @property
    def types(self) -> tuple[type, ...]:
        """The types that its value in a run's record can have."""
        numbers = (int, float) if self.kind is float else (self.kind,)
        return (*numbers, NoneType) if self.optional else numbers


def option(
    default: Any,
    group: Group,
    help_text: str,
    read_by: Sequence[str] = EVERYWHERE,
    *,
    facets: Facet = Facet.NONE,
    named_by: Sequence[str] = (),
    choices: Sequence[str] | None = None,
    bounds: Range | None = None,
    alias: str | None = None,
    metavar: str = "",
    before: Any = None,
) -> Any:
    """Declare a setting; the annotation of the field gives its type, and `bool` makes it a switch without a value."""
    declared = {
        "group": group,
        "help": help_text,
        "read_by": read_by,
        "named_by": named_by,
        "choices": choices,
        "bounds": bounds,
        "alias": alias,
        "metavar": metavar,
        "facets": facets,
        "before": before,
    }
    return dataclasses.field(default=default, metadata=declared)


def of_stage1(default: Any, help_text: str, **more: Any) -> Any:
    """Declare a setting of the steps of stage 1, which its run folder names."""
    more = {"facets": Facet.STAGE1_STEPS, "named_by": (STAGE1,), **more}
    return option(default, Group.STAGE1, help_text, (STAGE1,), **more)


def of_stage2(default: Any, help_text: str, **more: Any) -> Any:
    """Declare a setting of the steps of stage 2, which its run folder names."""
    more = {"facets": Facet.STAGE2_STEPS, "named_by": (STAGE2,), **more}
    return option(default, Group.STAGE2, help_text, (STAGE2,), **more)


def flag_of(field: dataclasses.Field[Any]) -> Flag:
    """Return the flag that a field of the settings declares."""
    kinds: tuple[type, ...] = get_args(field.type) or (field.type,)
    [kind] = [kind for kind in kinds if kind is not NoneType]
    made = Flag(field.name, field.default, kind, NoneType in kinds, **field.metadata)
    return dataclasses.replace(made, metavar=made.metavar or {int: "N", float: "X"}.get(kind, "NAME"))
