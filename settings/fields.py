"""Every setting of the scripts, declared once.

Three layers, for the order of their fields: run folders are named in it, and config.json is written in it. The middle
one is made from the table of hyper-parameters.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import DATASETS
from datasets.augment.autoaugment import AUGMENTATIONS
from datasets.decoding.options import FULL, IGNORE, ORIENTATIONS
from datasets.long_tail import IMB_TYPES, SUBSETS
from datasets.sampling import SAMPLERS
from evaluation.metrics import TEMPERATURES
from losses import LOSSES, takes_plain_logits
from losses.los import GAP, SMOOTHING
from methods.recipes import RECIPES
from models import STEMS
from settings.declare import (
    EVALUATE,
    STAGE1,
    STAGE2,
    TRAINING,
    Facet,
    Flag,
    Group,
    flag_of,
    of_stage1,
    of_stage2,
    option,
)
from utils.parameters import HYPERPARAMETERS, Hyperparameter, Range
from utils.schedules import SCHEDULES

# Losses that stage 1 can learn features with: its classifier is linear.
STAGE1_LOSSES = [name for name in LOSSES if takes_plain_logits(name)]

COUNT = Range(0, 1e9)
FROM_ONE = Range(1, 1e9)
RATE = Range(0, 1e6)
SHARE = Range(0, 1)
SEED = Range(0, 2**32 - 1)

# Facets that go together.
PLACE = Facet.PLACE | Facet.OF_IMAGES | Facet.ADDRESS
IDENTITY = Facet.FROM_CHECKPOINT | Facet.ADDRESS
DATA = Facet.FROM_FEATURES | Facet.OF_IMAGES | IDENTITY
PROFILE = Facet.PROFILE | DATA
SIZE = Facet.ON_DISK | Facet.OF_IMAGES | IDENTITY
CONSTANTS = Facet.CONSTANTS | Facet.OF_IMAGES | IDENTITY
BOTH_STEPS = Facet.STAGE1_STEPS | Facet.STAGE2_STEPS


@dataclass(frozen=True)
class _BeforeHyperparameters:
    """The first block is the released code's, by name and meaning."""

    data_dir: str = option("data", Group.DATA, "folder of the data sets", facets=PLACE, metavar="FOLDER")
    dataset: str = option("cifar100", Group.DATA, "data set", facets=DATA, choices=list(DATASETS))
    num_class: int | None = option(
        None, Group.DATA, "number of classes; checked against the data", bounds=Range(2, 1e9)
    )
    imb_ratio: float | None = option(
        100.0, Group.DATA, "largest over smallest class; images on disk: their own", facets=PROFILE
    )
    network: str = option("resnet34", Group.NETWORK, "network; with --stem imagenet any of torchvision", facets=DATA)
    epochs: int = of_stage1(200, "epochs", bounds=COUNT)
    batch_size: int = option(
        64,
        Group.STAGE1,
        "images a step, of all processes together",
        TRAINING,
        facets=BOTH_STEPS,
        named_by=TRAINING,
        bounds=FROM_ONE,
    )
    cur_stage: str | None = option(
        None, Group.RUN, "which stage", facets=Facet.LOOKUP | Facet.ROW, choices=["stage1", "stage2"]
    )
    lr: float = of_stage1(0.01, "learning rate", bounds=RATE, alias="--learning-rate")
    momentum: float = option(
        0.9, Group.STAGE1, "momentum of SGD", TRAINING, facets=BOTH_STEPS, named_by=TRAINING, bounds=SHARE
    )
    wd: float = of_stage1(5e-3, "weight decay, on all parameters", facets=Facet.NONE, bounds=RATE)
    nesterov: bool = option(False, Group.STAGE1, "Nesterov momentum", TRAINING, facets=BOTH_STEPS, named_by=TRAINING)
    finetune_epoch: int = of_stage2(None, "epochs [the method's]", bounds=FROM_ONE)
    finetune_lr: float = of_stage2(None, "learning rate [the method's]", bounds=RATE)
    finetune_wd: float = of_stage2(None, "weight decay [the method's]", bounds=RATE)
    label_smooth: float | None = option(
        None,
        Group.METHOD,
        "label smoothing [stage 1: 0; stage 2: the method's, 0.98 for los]",
        facets=Facet.STAGE1_STEPS | Facet.ROW | Facet.LOOKUP,
        named_by=TRAINING,
        bounds=SMOOTHING,
    )
    pretrained_pth: str | None = option(
        None,
        Group.NETWORK,
        "run folder or checkpoint file to read [found by the other flags]",
        (STAGE2, EVALUATE),
        facets=Facet.OF_IMAGES,
        metavar="PATH",
    )
    features: str | None = option(
        None,
        Group.DATA,
        "features of any model, for data and network: .npz, .npy, .pth, .parquet, .safetensors, a folder",
        facets=Facet.ADDRESS,
        metavar="FILE",
    )
    out: str = option(
        "checkpoints", Group.RUN, "folder of the runs", facets=Facet.LOOKUP | Facet.ADDRESS, metavar="FOLDER"
    )
    workers: int | None = option(
        None,
        Group.MACHINE,
        "processes that read images on disk; CPU threads for images in memory",
        bounds=Range(0, 1024),
    )
    seed: int = option(
        0, Group.RUN, "random seed; None draws one and records it", facets=Facet.LOOKUP | Facet.ROW, bounds=SEED
    )
    gpu: int = option(0, Group.MACHINE, "number of the CUDA device", bounds=Range(0, 1e6))

    train_list: str | None = option(
        None,
        Group.DATA,
        "training images: a list of 'path label', a CSV, or COCO's .json",
        facets=PLACE,
        metavar="FILE",
    )
    val_list: str | None = option(
        None, Group.DATA, "the same of images held out for tuning", facets=PLACE, metavar="FILE"
    )
    test_list: str | None = option(None, Group.DATA, "the same of test images", facets=PLACE, metavar="FILE")
    image_root: str | None = option(
        None, Group.DATA, "folder that paths in lists start from [that of the data set]", facets=PLACE, metavar="FOLDER"
    )
    stem: str = option(
        "cifar",
        Group.NETWORK,
        "first layers: for images of some 32 or some 224 pixels",
        facets=Facet.OF_IMAGES | IDENTITY,
        choices=STEMS,
        named_by=TRAINING,
    )
    image_size: int | None = option(
        None,
        Group.DATA,
        "images on disk: side in pixels of what the network sees",
        facets=SIZE,
        named_by=TRAINING,
        bounds=Range(1, 4096),
    )
    resize: int | None = option(
        None,
        Group.DATA,
        "images on disk: shorter side before the crop [8/7 of --image_size]",
        facets=SIZE,
        named_by=TRAINING,
        bounds=Range(1, 8192),
    )
    skip_bad: int = option(
        0,
        Group.DATA,
        "leave out at most N images that cannot be read",
        facets=Facet.ON_DISK | Facet.OF_IMAGES,
        bounds=COUNT,
    )
    identity: str = option(
        "content",
        Group.DATA,
        "images on disk: told apart by content or, weaker, by names",
        facets=Facet.ON_DISK | Facet.OF_IMAGES,
        choices=["content", "names"],
    )
    weights: str | None = option(
        None,
        Group.NETWORK,
        "pre-trained weights to start from: torchvision's, ours, MoCo's, ...",
        facets=Facet.OF_IMAGES | Facet.ADDRESS,
        named_by=TRAINING,
        metavar="FILE",
    )
    imb_type: str = option("exp", Group.DATA, "profile of the class sizes", facets=PROFILE, choices=IMB_TYPES)
    subset: str = option(
        "first", Group.DATA, "which images of a class are kept", facets=PROFILE, choices=SUBSETS, named_by=TRAINING
    )
    subset_seed: int = option(0, Group.DATA, "seed of --subset shuffle", facets=PROFILE, named_by=TRAINING, bounds=SEED)
    holdout: float = option(
        0.0,
        Group.DATA,
        "share of each class kept out of training, for tuning",
        facets=PROFILE | Facet.ROW,
        named_by=TRAINING,
    )
    width: int | None = option(
        None,
        Group.NETWORK,
        "channels of the first stage; scales the network [its own]",
        facets=DATA,
        named_by=TRAINING,
        bounds=Range(1, 1e5),
    )
    mixup: float = of_stage1(0.0, "alpha of mixup; 0 is off", bounds=RATE)
    eval_every: int = option(
        1, Group.STAGE1, "epochs between evaluations", TRAINING, facets=BOTH_STEPS, bounds=FROM_ONE
    )
    protocol: str = option(
        "honest",
        Group.RUN,
        "headline, and switches of stage 2",
        facets=Facet.MEASURE,
        choices=["honest", "released"],
    )
    loss: str = of_stage1("ce", "loss", choices=STAGE1_LOSSES)
    augment: str = of_stage1(
        "crop", "crop and mirror, jitter (colours too), autoaugment (Cutout too)", choices=AUGMENTATIONS
    )
    schedule: str = of_stage1(
        "cosine",
        "of the learning rate: cosine, warmup_cosine (halves epoch 1), cosine_to_zero (0 in the last)",
        choices=list(SCHEDULES),
    )
    warmup_epochs: int = of_stage1(0, "epochs before the schedule, in which the rate rises to --lr", bounds=COUNT)
    clip_grad: float | None = of_stage1(
        None, "clip the norm of the gradients at this", bounds=Range(0, float("inf"), "()")
    )
    sync_bn: str = of_stage1("on", "batch norm of many processes over the whole batch", choices=["on", "off"])
    drop_last: bool = of_stage1(False, "leave out the last batch of an epoch where it is not full")
    method: str = option(
        "los",
        Group.METHOD,
        "how the classifier is re-trained",
        (STAGE2, EVALUATE),
        facets=Facet.LOOKUP | Facet.ROW,
        choices=list(RECIPES),
    )


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
    _Hyperparameters = _BeforeHyperparameters  # that have no static names: they are read by those of the table
else:
    _Hyperparameters = dataclasses.make_dataclass(
        "_Hyperparameters",
        [_hyperparameter(name, declared) for name, declared in HYPERPARAMETERS.items()],
        bases=(_BeforeHyperparameters,),
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
    amp: str = option("auto", Group.MACHINE, "bf16 autocast [on CUDA that has it]", choices=["auto", "off", "bf16"])
    compile: str = option(
        "auto",
        Group.MACHINE,
        "torch.compile the network [on CUDA]",
        (STAGE1,),
        facets=Facet.STAGE1_STEPS,
        choices=["auto", "on", "off"],
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
        bounds=Range(0, 1, "[)"),
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
        "photos turned as EXIF says, or as stored",
        facets=SIZE,
        choices=list(ORIENTATIONS),
        named_by=TRAINING,
    )
    bits: int | None = option(
        None,
        Group.DATA,
        "bits that 16-bit images use [what the files say]",
        facets=SIZE,
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


FLAGS: dict[str, Flag] = {field.name: flag_of(field) for field in dataclasses.fields(Settings)}


def with_facet(facet: Facet) -> tuple[str, ...]:
    """Return the names of the settings that have a facet, in the order of `Settings`."""
    return tuple(name for name, flag in FLAGS.items() if facet in flag.facets)


# Settings by which a lookup tells runs of one data set, imbalance, network and seed apart.
IDENTITY_TAGS = tuple(name for name in with_facet(Facet.ADDRESS) if FLAGS[name].named_by == TRAINING)
PROTOCOL_SWITCHES = with_facet(Facet.PROTOCOL)
