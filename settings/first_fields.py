"""The first settings: those of the released code, by name and meaning, and of stage 1."""

from dataclasses import dataclass

from datasets import DATASETS
from datasets.long_tail import IMB_TYPES, SUBSETS
from datasets.names import AUGMENTATIONS
from methods.declared import losses, takes_plain_logits
from methods.recipes import COMPARISONS, RECIPES
from models import STEMS
from settings.declare import (
    EVALUATE,
    STAGE2,
    TRAINING,
    Facet,
    Group,
    of_stage1,
    of_stage2,
    option,
)
from settings.domains import (
    BOTH_STEPS,
    COUNT,
    DATA,
    FROM_ONE,
    HELD_OUT,
    IDENTITY,
    IMBALANCE,
    PLACE,
    PROFILE,
    RATE,
    SEED,
    SHARE,
    SIZE,
)
from utils.parameters import SMOOTHING, Range
from utils.schedules import SCHEDULES

# Losses that stage 1 can learn features with: its classifier is linear.
STAGE1_LOSSES = [name for name in losses() if takes_plain_logits(name)]


@dataclass(frozen=True)
class FirstFields:
    """The first block is the released code's, by name and meaning."""

    data_dir: str = option("data", Group.DATA, "folder of the data sets", facets=PLACE, metavar="FOLDER")
    dataset: str = option("cifar100", Group.DATA, "data set", facets=DATA, choices=list(DATASETS))
    num_class: int | None = option(
        None, Group.DATA, "number of classes; checked against the data", bounds=Range(2, 1e9)
    )
    imb_ratio: float | None = option(
        100.0,
        Group.DATA,
        "largest over smallest class; images on disk: their own",
        facets=PROFILE,
        bounds=IMBALANCE,
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
        "features of any model: .npz .npy .pth .parquet .safetensors, a folder",
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
        facets=Facet.OF_IMAGES | Facet.ADDRESS | Facet.LOOKUP,
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
        facets=Facet.PROFILE | Facet.FROM_FEATURES | IDENTITY | Facet.ROW,
        named_by=TRAINING,
        bounds=HELD_OUT,
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
    eval_every: int | None = option(
        None,
        Group.STAGE1,
        "epochs between evaluations [1; on a CPU more]",
        TRAINING,
        facets=BOTH_STEPS,
        bounds=FROM_ONE,
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
        "re-training",
        (STAGE2, EVALUATE),
        facets=Facet.LOOKUP | Facet.ROW,
        choices=[*RECIPES, *COMPARISONS],
    )
