"""Every setting of the scripts, declared once."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import DATASETS
from datasets.augment.autoaugment import AUGMENTATIONS
from datasets.long_tail import IMB_TYPES, SUBSETS
from datasets.sampling import SAMPLERS
from methods.recipes import RECIPES
from models import STEMS
from utils.schedules import SCHEDULES

STAGE1, STAGE2, EVALUATE = "main_stage1", "main_stage2", "evaluate"


EVERYWHERE = (STAGE1, STAGE2, EVALUATE)


TRAINING = (STAGE1, STAGE2)


# Losses that stage 1 can learn features with: those that take the logits of a linear classifier.
STAGE1_LOSSES = [
    "ce", "focal", "cb_ce", "reweighted_ce", "wb_cb", "balanced_softmax", "logit_adjust", "las", "vs", "gala"
]  # fmt: skip


def option(
    default: Any,
    help_text: str,
    used_by: Sequence[str] = EVERYWHERE,
    *,
    kind: Any = str,
    choices: Sequence[str] | None = None,
    names: Sequence[str] = (),
    folder: Sequence[str] = (),
) -> Any:
    """Declare a setting: its help text, the scripts that read it, and the stages whose run folder names it."""
    metadata = {
        "help": help_text, "used_by": used_by, "kind": kind, "choices": choices, "names": names, "folder": folder
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def switch(help_text: str, used_by: Sequence[str], folder: Sequence[str] = ()) -> Any:
    """Declare a setting that is off unless its flag is given."""
    return option(False, help_text, used_by, kind=bool, folder=folder)


def parameter(help_text: str, kind: Any = float, choices: Sequence[str] | None = None) -> Any:
    """Declare a hyper-parameter of some losses, heads and classifiers; None where the method has no such thing."""
    return option(
        None, f"{help_text} [the method's]", TRAINING, kind=kind, choices=choices, folder=TRAINING
    )  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All settings, resolved. The first block is the released code's, by name and meaning.

    `finetune_*` default to the method's own values and `seed` may be drawn: `parse_command` fills them in.
    """

    data_dir: str = option("data", "folder of the data sets")
    dataset: str = option("cifar100", "data set", choices=list(DATASETS))
    num_class: int | None = option(None, "number of classes; checked against the data", kind=int)
    imb_ratio: float | None = option(
        100.0, "imbalance factor: largest over smallest class [images on disk: their own]", kind=float
    )
    network: str = option("resnet34", "network; with --stem imagenet any classifier of torchvision")
    epochs: int = option(200, "epochs of stage 1", (STAGE1,), kind=int, folder=(STAGE1,))
    batch_size: int = option(64, "images a step, of all processes together", TRAINING, kind=int, folder=TRAINING)
    cur_stage: str | None = option(None, "which stage", choices=["stage1", "stage2"])
    lr: float = option(
        0.01, "learning rate of stage 1", (STAGE1,), kind=float, names=["--learning-rate"], folder=(STAGE1,)
    )
    momentum: float = option(0.9, "momentum of SGD", TRAINING, kind=float, folder=TRAINING)
    wd: float = option(5e-3, "weight decay of stage 1, on all parameters", (STAGE1,), kind=float, folder=(STAGE1,))
    nesterov: bool = switch("Nesterov momentum", TRAINING, folder=TRAINING)
    finetune_epoch: int = option(None, "epochs of stage 2 [the method's]", (STAGE2,), kind=int, folder=(STAGE2,))
    finetune_lr: float = option(
        None, "learning rate of stage 2 [the method's]", (STAGE2,), kind=float, folder=(STAGE2,)
    )
    finetune_wd: float = option(None, "weight decay of stage 2 [the method's]", (STAGE2,), kind=float, folder=(STAGE2,))
    label_smooth: float | None = option(
        None, "label smoothing [stage 1: 0; stage 2: the method's, 0.98 for los]", kind=float, folder=TRAINING
    )
    pretrained_pth: str | None = option(
        None, "run folder or file: the checkpoint that this script reads [found by the other flags]", (STAGE2, EVALUATE)
    )
    features: str | None = option(
        None, "file of features that any model made (.npz, .safetensors), in the place of data set and network"
    )
    out: str = option("checkpoints", "folder of the runs")
    workers: int | None = option(
        None, "images on disk: processes that read them, 0 for none; images in memory: threads that compute, on a CPU",
        kind=int,
    )  # fmt: skip
    seed: int = option(0, "random seed; None draws one and records it", kind=int)
    gpu: int = option(0, "number of the CUDA device", kind=int)

    train_list: str | None = option(None, "list of the training images: lines of 'path label', or COCO's .json")
    val_list: str | None = option(None, "list of images that are held out for tuning")
    test_list: str | None = option(None, "list of the test images")
    image_root: str | None = option(None, "folder that the paths in lists are relative to [that of the data set]")
    stem: str = option("cifar", "the network's first layers: for images of some 32 or of some 224 pixels",
        choices=STEMS, folder=TRAINING,
    )  # fmt: skip
    image_size: int | None = option(
        None, "images on disk: side in pixels of what the network sees", kind=int, folder=TRAINING
    )
    resize: int | None = option(
        None, "images on disk: shorter side in pixels before the crop of an evaluation [8/7 of --image_size]", kind=int,
        folder=TRAINING,
    )  # fmt: skip
    skip_bad: int = option(
        0, "images on disk: read all first and leave out those that cannot be, at most this many", kind=int
    )
    weights: str | None = option(
        None, "pre-trained weights to start from: a state dict of torchvision, of this project, of MoCo and its like",
        folder=TRAINING,
    )  # fmt: skip
    imb_type: str = option("exp", "profile of the class sizes", choices=IMB_TYPES)
    subset: str = option("first", "which images of a class are kept", choices=SUBSETS, folder=TRAINING)
    subset_seed: int = option(0, "seed of --subset shuffle", kind=int, folder=TRAINING)
    holdout: float = option(0.0, "share of each class kept out of training, for tuning", kind=float, folder=TRAINING)
    width: int | None = option(
        None, "channels of the first stage; scales the network [its own]", kind=int, folder=TRAINING
    )
    mixup: float = option(0.0, "alpha of mixup; 0 is off", (STAGE1,), kind=float, folder=(STAGE1,))
    eval_every: int = option(1, "epochs between evaluations", TRAINING, kind=int)
    protocol: str = option(
        "honest", "which headline, and what the stage-2 switches default to", choices=["honest", "released"]
    )
    loss: str = option("ce", "loss of stage 1", (STAGE1,), choices=STAGE1_LOSSES, folder=(STAGE1,))
    augment: str = option(
        "crop", "augmentation of stage 1: crop and mirror, or also colour jitter, or the AutoAugment policy and Cutout",
        (STAGE1,), choices=AUGMENTATIONS, folder=(STAGE1,),
    )  # fmt: skip
    schedule: str = option(
        "cosine", "learning rate of stage 1 over its epochs; warmup_cosine halves the first epoch's", (STAGE1,),
        choices=list(SCHEDULES), folder=(STAGE1,),
    )  # fmt: skip
    warmup_epochs: int = option(
        0, "epochs before the schedule in which the learning rate of stage 1 rises to --lr", (STAGE1,), kind=int,
        folder=(STAGE1,),
    )  # fmt: skip
    clip_grad: float | None = option(
        None, "clip the norm of stage 1's gradients at this", (STAGE1,), kind=float, folder=(STAGE1,)
    )
    sync_bn: str = option(
        "on", "batch norm in stage 1 on many processes: over the whole batch, or over each process's part", (STAGE1,),
        choices=["on", "off"], folder=(STAGE1,),
    )  # fmt: skip
    drop_last: bool = switch("stage 1 leaves out the last batch of an epoch where it is not full", (STAGE1,), (STAGE1,))
    method: str = option("los", "classifier re-training method", (STAGE2, EVALUATE), choices=list(RECIPES))
    tau: float | None = parameter("weight of the class prior, or exponent of the weight norm")
    gamma: float | None = parameter("exponent of focal loss, or of vector scaling's factors")
    beta: float | None = parameter("effective number of samples: (1 - beta^n) / (1 - beta)")
    rho: float | None = parameter("exponent of inverse class frequencies as weights")
    max_margin: float | None = parameter("LDAM's largest margin, before scaling")
    scale: float | None = parameter("scale of a cosine classifier")
    noise: float | None = parameter("largest width of GCL's clouds, before scaling")
    smooth_head: float | None = parameter("label-aware smoothing of the largest class")
    smooth_tail: float | None = parameter("label-aware smoothing of the smallest class")
    lambda1: float | None = parameter("weight of GALA's margin for the class of the logit")
    lambda2: float | None = parameter("weight of GALA's margin for the true class")
    gala_margin: str | None = parameter(
        "GALA's margins: on the other classes' logits, or the shift on every logit", str, ["paper", "released"]
    )
    gala_accumulation: str | None = parameter(
        "GALA's gradients: summed, or their running sums summed again", str, ["single", "double"]
    )
    sampler: str | None = option(
        None, "how stage 2 draws images [the method's]", (STAGE2,), choices=SAMPLERS, folder=(STAGE2,)
    )
    max_norm: float | None = option(
        None, "hold every weight row of the classifier to min + MAX_NORM * (max - min) of stage 1's [the method's]",
        (STAGE2,), kind=float, folder=(STAGE2,),
    )  # fmt: skip
    rebalance_tau: float = option(1.0, "exponent of the re-balanced predictions in the report", kind=float)
    temperature: float | None = option(
        None, "divide logits by this where probabilities are shown [fitted on held-out images]", kind=float
    )
    loma_target: float | None = option(
        None, "set the smoothing from the wanted logit gap", (STAGE2,), kind=float, folder=(STAGE2,)
    )
    start: str = option("last", "which stage-1 checkpoint stage 2 starts from", (STAGE2,), choices=["last", "best"])
    bn_mode: str = option("eval", "batch norm of the frozen backbone in stage 2", (STAGE2,), choices=["eval", "train"])
    views: str = option(
        "5", "views of each image whose features stage 2 trains on: N augmented ones, 'plain' (one, not augmented; all "
        "that a file of features has), 'fresh' (another every epoch)", (STAGE2,),
    )  # fmt: skip
    reinit_classifier: bool = switch("stage 2 starts from a new classifier", (STAGE2,), folder=(STAGE2,))
    stage1_seed: int | None = option(
        None, "seed of the stage-1 run that stage 2 uses [--seed]", (STAGE2, EVALUATE), kind=int
    )
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda"])
    amp: str = option("auto", "bf16 autocast [on a CUDA device that has it]", choices=["auto", "off", "bf16"])
    compile: str = option("auto", "torch.compile the network [on CUDA]", (STAGE1,), choices=["auto", "on", "off"])
    deterministic: bool = switch("runs on a CUDA device repeat bit for bit, as those on a CPU do; slower", EVERYWHERE)
    resume: bool = switch("go on with an interrupted run", TRAINING)
    overwrite: bool = switch("replace a run that is there", TRAINING)
    reuse: bool = switch("use a run that is finished as it is, go on with an interrupted one", TRAINING)
    tensorboard: bool = switch("also write what log.csv has as events for TensorBoard", TRAINING)
    trust_pickle: bool = switch(
        "load pickled modules, which can run code: only from a source you trust", (STAGE2, EVALUATE)
    )
    json: str | None = option(None, "write the report to this file", (EVALUATE,))


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


PARAMETERS = [
    "tau", "gamma", "beta", "rho", "max_margin", "scale", "noise", "smooth_head", "smooth_tail", "lambda1", "lambda2",
    "gala_margin", "gala_accumulation",
]  # fmt: skip
