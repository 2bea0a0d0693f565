"""Every setting of the scripts, declared once.

Three layers, for the order of their fields: run folders are named in it, and config.json is written in it. The first
is in `settings.first_fields`, the middle one is made from the table of hyper-parameters.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets.decoding.options import AREA, FULL, IGNORE, ORIENTATIONS
from datasets.names import SAMPLERS
from evaluation.intervals.choices import CRITERIA
from settings.declare import (
    EVALUATE,
    STAGE1,
    STAGE2,
    TRAINING,
    Facet,
    Flag,
    Group,
    flag_of,
    of_stage2,
    option,
)
from settings.domains import (
    CONSTANTS,
    FROM_ONE,
    HELD_OUT,
    PLACE,
    SEED,
    SHARE,
    SIZE,
)
from settings.first_fields import STAGE1_LOSSES, FirstFields
from utils.parameters import GAP, HYPERPARAMETERS, TEMPERATURES, Hyperparameter, Range
from utils.schedules import SCHEDULES

__all__ = ["EVALUATE", "FLAGS", "STAGE1", "STAGE1_LOSSES", "STAGE2", "TRAINING", "Settings", "with_facet"]


def _hyperparameter(name: str, declared: Hyperparameter) -> tuple[str, Any, Any]:
    """Return the field of a hyper-parameter: None where the method has no such thing."""
    choices = None if isinstance(declared.values, Range) else declared.values
    setting = option(
        None,
        Group.METHOD,
        declared.help,
        TRAINING,
        facets=Facet.HYPERPARAMETER | Facet.STAGE1_STEPS | Facet.ROW,
        named_by=TRAINING,
        choices=choices,
        before=declared.before,
    )
    return name, (float if choices is None else str) | None, setting


if TYPE_CHECKING:
    _Hyperparameters = FirstFields  # that have no static names: they are read by those of the table
else:
    _Hyperparameters = dataclasses.make_dataclass(
        "_Hyperparameters",
        [_hyperparameter(name, declared) for name, declared in HYPERPARAMETERS.items()],
        bases=(FirstFields,),
        frozen=True,
    )


@dataclass(frozen=True)
class Settings(_Hyperparameters):
    """All settings, resolved.

    `finetune_*` default to the method's own values and `seed` may be drawn: `parse_command` fills them in.
    """

    sampler: str | None = of_stage2(None, "sampling [the method's]", choices=SAMPLERS)
    max_norm: float | None = of_stage2(
        None, "row norms held to min + X (max - min) of stage 1's [the method's]", bounds=SHARE
    )
    rebalance_tau: float = option(
        1.0, Group.REPORT, "exponent of the re-balanced predictions", facets=Facet.MEASURE, bounds=Range(0, 100)
    )
    temperature: float | None = option(
        None,
        Group.REPORT,
        "divides logits where probabilities are shown [fitted, held-out]",
        facets=Facet.MEASURE | Facet.ROW,
        bounds=TEMPERATURES,
    )
    loma_target: float | None = option(
        None,
        Group.METHOD,
        "set the smoothing from the wanted logit gap",
        (STAGE2,),
        facets=Facet.ROW,
        named_by=(STAGE2,),
        bounds=GAP,
    )
    start: str = option(
        "last",
        Group.STAGE2,
        "which checkpoint of stage 1 it starts from",
        (STAGE2,),
        facets=Facet.PROTOCOL | Facet.OF_IMAGES,
        choices=["last", "best"],
    )
    bn_mode: str = option(
        "eval",
        Group.STAGE2,
        "batch norm of the frozen backbone",
        (STAGE2,),
        facets=Facet.PROTOCOL | Facet.STAGE2_STEPS,
        choices=["eval", "train"],
    )
    views: str = option(
        "5",
        Group.STAGE2,
        "of an image: N augmented, 'plain' (as it is), 'fresh' every epoch",
        (STAGE2,),
        facets=Facet.PROTOCOL | Facet.STAGE2_STEPS,
    )
    reinit_classifier: bool = of_stage2(False, "start from a new classifier")
    stage1_seed: int | None = option(
        None,
        Group.STAGE2,
        "seed of the stage-1 run that stage 2 uses [--seed]",
        (STAGE2, EVALUATE),
        facets=Facet.FROM_CHECKPOINT | Facet.LOOKUP,
        bounds=SEED,
    )
    device: str = option("auto", Group.MACHINE, "where to compute", choices=["auto", "cpu", "cuda"])
    amp: str = option("auto", Group.MACHINE, "bf16 autocast [where there are units]", choices=["auto", "off", "bf16"])
    compile: str = option(
        "auto",
        Group.MACHINE,
        "a step as one CUDA graph, torch.compile (on) or neither [graph on CUDA]",
        (STAGE1,),
        facets=Facet.STAGE1_STEPS,
        choices=["auto", "graph", "on", "off"],
    )
    deterministic: bool = option(False, Group.MACHINE, "runs on CUDA repeat bit for bit, as those on a CPU do; slower")
    resume: bool = option(False, Group.RUN, "go on with an interrupted run", TRAINING, facets=Facet.ROW)
    overwrite: bool = option(False, Group.RUN, "replace a run that is there", TRAINING, facets=Facet.ROW)
    reuse: bool = option(
        False, Group.RUN, "use a finished run as it is, go on with an interrupted one", TRAINING, facets=Facet.ROW
    )
    tensorboard: bool = option(False, Group.RUN, "also write log.csv as events for TensorBoard", TRAINING)
    trust_pickle: bool = option(
        False,
        Group.NETWORK,
        "load pickled modules, which can run code: only if you trust them",
        facets=Facet.OF_IMAGES,
    )
    json: str | None = option(None, Group.REPORT, "write the report to this file", (EVALUATE,), metavar="FILE")
    test_share: float = option(
        0.0,
        Group.DATA,
        "one folder: share of each class to test on",
        facets=Facet.PROFILE | SIZE,
        named_by=TRAINING,
        bounds=HELD_OUT,
    )
    test_seed: int = option(
        0, Group.DATA, "seed of --test_share", facets=Facet.PROFILE | SIZE, named_by=TRAINING, bounds=SEED
    )
    drop_empty_classes: bool = option(
        False,
        Group.DATA,
        "leave out classes without training images",
        facets=Facet.PROFILE | Facet.ON_DISK | Facet.OF_IMAGES | Facet.ADDRESS,
    )
    path_column: str | None = option(
        None, Group.DATA, "tables as lists: the column of the paths [guessed]", facets=PLACE
    )
    label_column: str | None = option(None, Group.DATA, "tables as lists: that of the labels [guessed]", facets=PLACE)
    split_column: str | None = option(
        None, Group.DATA, "one table for all: its column of train, val, test", facets=PLACE
    )
    image_suffix: str | None = option(
        None, Group.DATA, "lists of ids: the ending of the files, as .jpg", facets=PLACE, metavar="END"
    )
    class_names: str | None = option(
        None, Group.DATA, "names of a list's labels: 'number name' a line, JSON, CSV", facets=PLACE, metavar="FILE"
    )
    orientation: str = option(
        IGNORE,
        Group.DATA,
        "photos upright by EXIF, as list and folder are",
        facets=SIZE,
        choices=list(ORIENTATIONS),
        named_by=TRAINING,
    )
    bits: int | None = option(
        None,
        Group.DATA,
        "bits that 16-bit images use [what the files say]",
        facets=SIZE | Facet.RARE,
        named_by=TRAINING,
        bounds=Range(8, FULL),
    )
    max_pixels: int | None = option(
        None,
        Group.DATA,
        "pixels of the largest image that is decoded in full [89478485]",
        facets=SIZE,
        named_by=TRAINING,
        bounds=FROM_ONE,
    )
    ema: bool = option(
        False,
        Group.NETWORK,
        "take the averaged (EMA) weights of a file that has them beside others",
        facets=Facet.OF_IMAGES | Facet.ADDRESS,
        named_by=TRAINING,
    )
    mean: str | None = option(
        None,
        Group.DATA,
        "mean of the pixels: 3 numbers, 1, cifar or imagenet [data set's]",
        facets=CONSTANTS | Facet.NUMBERS,
        named_by=TRAINING,
        metavar="X",
    )
    std: str | None = option(
        None,
        Group.DATA,
        "their standard deviation, 3 numbers or 1 [data set's]",
        facets=CONSTANTS | Facet.NUMBERS,
        named_by=TRAINING,
        metavar="X",
    )
    mirror: str | None = option(
        None,
        Group.DATA,
        "whether a mirrored image shows its class [data set's]",
        facets=CONSTANTS,
        choices=["on", "off"],
        named_by=TRAINING,
    )
    finetune_schedule: str | None = of_stage2(
        None, "cosine, warmup_cosine, cosine_to_zero [the method's]", choices=list(SCHEDULES), before="cosine"
    )
    finetune_ema: float | None = of_stage2(
        None,
        "average the weights over the steps, with this decay [none]",
        facets=Facet.STAGE2_STEPS | Facet.ROW | Facet.RARE,
        bounds=Range(0, 1, "()"),
    )
    test_prior: str | None = option(
        None,
        Group.REPORT,
        "class shares where it is used: balanced, train, or a file of them",
        (EVALUATE,),
        metavar="PRIOR",
    )
    coverage: float | None = option(
        None,
        Group.REPORT,
        "report prediction sets that hold the true class this often",
        (EVALUATE,),
        bounds=Range(0, 1, "()"),
    )
    html: str | None = option(
        None, Group.REPORT, "write tables, figures and mistakes as one page", (EVALUATE,), metavar="FILE"
    )
    crop_area: float = option(
        AREA[0],
        Group.DATA,
        "images on disk: least share of an image in a training crop",
        facets=SIZE | Facet.RARE,
        named_by=TRAINING,
        bounds=Range(0, 1, "(]"),
    )
    shots: str | None = option(
        None,
        Group.REPORT,
        "many- and few-shot: above and below, or thirds [100,20]",
        facets=Facet.MEASURE | Facet.ROW,
        metavar="N,N",
    )
    rate_scale: str = of_stage2(
        "published",
        "learning rates for features of any scale, or as published [data set's]",
        facets=Facet.STAGE2_STEPS | Facet.RARE,
        choices=["features", "published"],
        before="published",
    )
    criterion: str = option(
        "balanced",
        Group.STAGE2,
        "--method auto: what counts on held-out images",
        (STAGE2,),
        facets=Facet.RARE,
        named_by=(STAGE2,),
        choices=list(CRITERIA),
    )
    save_every: float = option(
        10.0,
        Group.RUN,
        "least time between two savings; 0: each epoch",
        TRAINING,
        facets=Facet.RARE,
        bounds=Range(0, 1e9),
        metavar="SECONDS",
    )
    mmap: str = option(
        "auto",
        Group.MACHINE,
        "leave the rows of --features in their file [where memory is short]",
        facets=Facet.RARE,
        choices=["auto", "on", "off"],
    )


FLAGS: dict[str, Flag] = {field.name: flag_of(field) for field in dataclasses.fields(Settings)}


def with_facet(facet: Facet) -> tuple[str, ...]:
    """Return the names of the settings that have a facet, in the order of `Settings`."""
    return tuple(name for name, flag in FLAGS.items() if facet in flag.facets)


# Settings by which a lookup tells runs of one data set, imbalance, network and seed apart.
IDENTITY_TAGS = tuple(name for name in with_facet(Facet.ADDRESS) if FLAGS[name].named_by == TRAINING)
PROTOCOL_SWITCHES = with_facet(Facet.PROTOCOL)
